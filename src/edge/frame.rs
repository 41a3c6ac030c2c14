//! Frames on a stream, and the bounded queue of frames that wait to be sent.
//!
//! A frame is its payload's length (u32, little-endian), the CRC-32 of the payload (u32, little-endian), the payload.
//! The CRC guards against our own mistakes; TLS guards against others. Invariants: a decoder never holds more than
//! one frame of the largest size plus one read; a queue never holds more bytes than it was made for.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use tokio::sync::Notify;

/// Bytes in front of each payload.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Payloads up to this size are copied out of the read buffer, so that a kept frame does not keep its neighbours.
const COPY_BYTES_MAX: usize = 16 * 1024;
/// Payloads up to this size are copied together for sending; larger ones are handed on as they are.
const COALESCE_BYTES_MAX: usize = 4 * 1024;
/// How many payload bytes one write takes from the queue at most, beyond its first frame.
const BATCH_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes; at most {max} are allowed")]
    TooLong { length: usize, max: usize },
    #[error("a frame with a wrong checksum")]
    Checksum,
}

/// Why a frame was not taken for sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    #[error("there is no link to this server")]
    NotLinked,
    #[error("too many bytes wait to be sent on this link")]
    Full,
    #[error("the frame is larger than a frame may be")]
    TooLong,
}

/// The eight bytes in front of `payload`. The caller keeps payloads below 4 GiB.
pub fn frame_header(payload: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let length = u32::try_from(payload.len()).expect("a payload is bounded far below 4 GiB");
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    header
}

/// Turns a stream of bytes back into frames. After an error it must not be used again.
pub struct FrameDecoder {
    buffer: BytesMut,
    bytes_max: usize,
}

impl FrameDecoder {
    /// A decoder of payloads of at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), bytes_max }
    }

    /// Changes the largest payload for frames not yet returned.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole payload, or `None` until more bytes are pushed.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(mut header) = self.buffer.get(..FRAME_HEADER_BYTES) else {
            return Ok(None);
        };
        let (length, checksum) = (header.get_u32_le() as usize, header.get_u32_le());
        if length > self.bytes_max {
            return Err(FrameError::TooLong { length, max: self.bytes_max });
        }
        let Some(payload) = self.buffer.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length) else {
            return Ok(None);
        };
        if crc32fast::hash(payload) != checksum {
            return Err(FrameError::Checksum);
        }
        let payload = if length <= COPY_BYTES_MAX {
            let payload = Bytes::copy_from_slice(payload);
            self.buffer.advance(FRAME_HEADER_BYTES + length);
            payload
        } else {
            self.buffer.advance(FRAME_HEADER_BYTES);
            self.buffer.split_to(length).freeze()
        };
        Ok(Some(payload))
    }
}

/// Frames that wait for the one writer of a channel.
pub struct SendQueue {
    state: Mutex<QueueState>,
    ready: Notify,
    bytes_max: usize,
}

#[derive(Default)]
struct QueueState {
    frames: VecDeque<Bytes>,
    /// Bytes of waiting frames and of the batch that the writer holds, headers included.
    bytes: usize,
    closed: bool,
}

impl SendQueue {
    /// An empty queue of at most `bytes_max` bytes, headers included.
    pub fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), ready: Notify::new(), bytes_max }
    }

    /// Adds a frame, without waiting. Errors: `Full`, or `NotLinked` after `close`.
    pub fn push(&self, frame: Bytes) -> Result<(), SendError> {
        let mut state = self.lock();
        if state.closed {
            return Err(SendError::NotLinked);
        }
        let bytes = state.bytes + FRAME_HEADER_BYTES + frame.len();
        if bytes > self.bytes_max {
            return Err(SendError::Full);
        }
        state.bytes = bytes;
        state.frames.push_back(frame);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Waits for frames and encodes a batch of them into `chunks`; returns the bytes to `release` once they are
    /// written, or `None` after `close`.
    pub async fn next_batch(&self, chunks: &mut Vec<Bytes>) -> Option<usize> {
        loop {
            if let Some(bytes) = self.take(chunks)? {
                return Some(bytes);
            }
            self.ready.notified().await;
        }
    }

    pub fn release(&self, bytes: usize) {
        self.lock().bytes -= bytes;
    }

    /// Bytes that wait, headers included.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Drops what waits and refuses more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.frames.clear();
        drop(state);
        self.ready.notify_one();
    }

    fn take(&self, chunks: &mut Vec<Bytes>) -> Option<Option<usize>> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        {
            let mut state = self.lock();
            if state.closed {
                return None;
            }
            while let Some(frame) = state.frames.front()
                && (bytes == 0 || bytes + frame.len() <= BATCH_BYTES_MAX)
            {
                bytes += FRAME_HEADER_BYTES + frame.len();
                frames.extend(state.frames.pop_front());
            }
        }
        if frames.is_empty() {
            return Some(None);
        }
        chunks.clear();
        let mut small = BytesMut::new();
        for frame in frames {
            small.put_slice(&frame_header(&frame));
            if frame.len() <= COALESCE_BYTES_MAX {
                small.put_slice(&frame);
            } else {
                chunks.push(small.split().freeze());
                chunks.push(frame);
            }
        }
        if !small.is_empty() {
            chunks.push(small.freeze());
        }
        Some(Some(bytes))
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(payload: &[u8]) -> Vec<u8> {
        [&frame_header(payload), payload].concat()
    }

    #[test]
    fn frames_survive_any_cut() {
        let payloads = [b"".to_vec(), b"one".to_vec(), vec![7; 40_000], vec![1; 200]];
        let stream: Vec<u8> = payloads.iter().flat_map(|payload| encoded(payload)).collect();
        for size in [1, 2, 7, 8, 9, 1000, stream.len()] {
            let mut decoder = FrameDecoder::new(40_000);
            let mut seen = Vec::new();
            for piece in stream.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            assert_eq!(seen, payloads, "pieces of {size}");
        }
    }

    #[test]
    fn too_long_and_damaged_frames_are_refused() {
        let mut decoder = FrameDecoder::new(10);
        decoder.push(&encoded(&[0; 11])[..8]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { length: 11, max: 10 }));
        let mut decoder = FrameDecoder::new(10);
        let mut bytes = encoded(b"hello");
        bytes[10] ^= 1;
        decoder.push(&bytes);
        assert_eq!(decoder.next_frame(), Err(FrameError::Checksum));
    }

    #[tokio::test]
    async fn a_queue_is_bounded_by_bytes_and_batches_in_order() {
        let queue = SendQueue::new(10_000 + 3 * FRAME_HEADER_BYTES);
        for size in [4_999, 1, 5_000] {
            queue.push(Bytes::from(vec![1; size])).unwrap();
        }
        assert_eq!(queue.push(Bytes::new()), Err(SendError::Full));
        let mut chunks = Vec::new();
        let bytes = queue.next_batch(&mut chunks).await.unwrap();
        assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), bytes);
        assert_eq!(queue.push(Bytes::new()), Err(SendError::Full));
        queue.release(bytes);
        queue.push(Bytes::new()).unwrap();
        queue.close();
        assert_eq!(queue.next_batch(&mut chunks).await, None);
        assert_eq!(queue.push(Bytes::new()), Err(SendError::NotLinked));
    }
}
