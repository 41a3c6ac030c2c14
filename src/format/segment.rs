//! Segments and archives of `Diff.dat`: a header, then frames; in a segment, zeros from there to its end.
//!
//! A segment is filled with zeros when it is made, so a frame that starts with a zero length is the end. A frame's
//! checksum covers its length too. The scanner is pure and tells apart the three ways in which frames can
//! stop: the clean end, a torn one (nothing valid follows), and damage (valid frames follow).
//! Numbers are little-endian.

use super::FormatError;
use super::entry::{ENTRY_ENCODED_MAX, append_sealed, peek_entry};
use crate::core::entry::Sealed;
use crate::core::id::ClusterId;

/// The version of segment and archive headers and of the frames behind them.
pub const SEGMENT_VERSION: u16 = 1;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 46;
/// Bytes of an archive's header.
pub const ARCHIVE_HEADER_BYTES: usize = 54;
/// Bytes in front of a frame's payload: length and checksum.
pub const FRAME_HEAD_BYTES: usize = 8;
/// Longest payload of a frame: a version byte and an entry.
pub const FRAME_PAYLOAD_MAX: usize = ENTRY_ENCODED_MAX + 1;

const SEGMENT_MAGIC: &[u8; 8] = b"P2PDIFF\n";
const ARCHIVE_MAGIC: &[u8; 8] = b"P2PDARC\n";

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub cluster: ClusterId,
    /// 1 for the first segment; no number is left out.
    pub number: u64,
    /// When the segment was made, Unix time in milliseconds.
    pub created_ms: u64,
}

/// The header of an archive, which holds the audit-lane frames of a range of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveHeader {
    pub cluster: ClusterId,
    /// First and last segment that the archive stands for.
    pub first: u64,
    pub last: u64,
    /// When the archive was made, Unix time in milliseconds.
    pub created_ms: u64,
}

/// Encodes a segment's header.
pub fn encode_segment_header(header: &SegmentHeader) -> [u8; SEGMENT_HEADER_BYTES] {
    encode_header(SEGMENT_MAGIC, header.cluster, [header.number, header.created_ms])
}

/// Encodes an archive's header.
pub fn encode_archive_header(header: &ArchiveHeader) -> [u8; ARCHIVE_HEADER_BYTES] {
    encode_header(ARCHIVE_MAGIC, header.cluster, [header.first, header.last, header.created_ms])
}

/// Decodes the header at the front of a segment.
pub fn decode_segment_header(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
    let (cluster, [number, created_ms]) =
        decode_header::<SEGMENT_HEADER_BYTES, 2>("the segment header", SEGMENT_MAGIC, bytes)?;
    Ok(SegmentHeader { cluster, number, created_ms })
}

/// Decodes the header at the front of an archive's content.
pub fn decode_archive_header(bytes: &[u8]) -> Result<ArchiveHeader, FormatError> {
    let (cluster, [first, last, created_ms]) =
        decode_header::<ARCHIVE_HEADER_BYTES, 3>("the archive header", ARCHIVE_MAGIC, bytes)?;
    Ok(ArchiveHeader { cluster, first, last, created_ms })
}

/// Appends an entry as a frame to `out`. Returns the bytes that were appended.
pub fn append_frame(sealed: &Sealed, out: &mut Vec<u8>) -> usize {
    append_payload(out, |out| append_sealed(sealed, out))
}

/// Appends a frame with the payload that `write` appends. Returns the bytes that were appended.
pub(super) fn append_payload(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
    write(out);
    let payload_bytes = (out.len() - start - FRAME_HEAD_BYTES) as u32;
    let crc = frame_crc(payload_bytes, &out[start + FRAME_HEAD_BYTES..]);
    out[start..start + 4].copy_from_slice(&payload_bytes.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.len() - start
}

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it starts, counted from the start of the bytes scanned.
    pub offset: usize,
    /// Bytes of its payload.
    pub payload_bytes: usize,
}

impl Frame {
    pub fn end(&self) -> usize {
        self.offset + FRAME_HEAD_BYTES + self.payload_bytes
    }

    pub fn payload<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.offset + FRAME_HEAD_BYTES..self.end()]
    }

    /// The whole frame, head included.
    pub fn whole<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.offset..self.end()]
    }
}

/// How a row of frames ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Only zeros follow, or nothing.
    Clean { at: usize },
    /// What follows is no frame, and no frame comes after it.
    Torn { at: usize },
    /// What follows is no frame, but frames come after it.
    Damaged { at: usize, resumes_at: usize },
}

impl End {
    pub fn at(&self) -> usize {
        match *self {
            End::Clean { at } | End::Torn { at } | End::Damaged { at, .. } => at,
        }
    }
}

/// A row of valid frames and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    pub frames: Vec<Frame>,
    pub end: End,
}

/// Scans frames from the offset `from`, up to the first place that holds none. After damage, scan again from `resumes_at`.
pub fn scan_frames(bytes: &[u8], from: usize) -> Scan {
    scan_payloads(bytes, from, |payload| peek_entry(payload).is_ok_and(|peek| peek.id().is_ok()))
}

/// Likewise, for payloads that `looks_right` knows.
pub(super) fn scan_payloads(bytes: &[u8], from: usize, looks_right: impl Fn(&[u8]) -> bool) -> Scan {
    let mut frames = Vec::new();
    let mut at = from.min(bytes.len());
    while let Some(frame) = frame_at(bytes, at) {
        at = frame.end();
        frames.push(frame);
    }
    let end = match bytes[at..].iter().position(|&byte| byte != 0) {
        None => End::Clean { at },
        // A frame may begin in the zeros before the first byte that is not zero: its length and checksum may end in zeros.
        Some(_) => match next_frame(bytes, at + 1, looks_right) {
            Some(resumes_at) => End::Damaged { at, resumes_at },
            None => End::Torn { at },
        },
    };
    Scan { frames, end }
}

/// The valid frame that starts at `at`, if there is one.
pub fn frame_at(bytes: &[u8], at: usize) -> Option<Frame> {
    let head = bytes.get(at..at.checked_add(FRAME_HEAD_BYTES)?)?;
    let payload_bytes = u32_at(head, 0);
    if payload_bytes == 0 || payload_bytes as usize > FRAME_PAYLOAD_MAX {
        return None;
    }
    let frame = Frame { offset: at, payload_bytes: payload_bytes as usize };
    let payload = bytes.get(at + FRAME_HEAD_BYTES..frame.end())?;
    (frame_crc(payload_bytes, payload) == u32_at(head, 4)).then_some(frame)
}

/// Looks for a frame at every offset from `from`. As a checksum fits by chance once in 2^32 tries, the
/// payload must look right too.
fn next_frame(bytes: &[u8], from: usize, looks_right: impl Fn(&[u8]) -> bool) -> Option<usize> {
    (from..bytes.len().saturating_sub(FRAME_HEAD_BYTES)).find(|&at| {
        bytes[at..at + 4] != [0; 4] && frame_at(bytes, at).is_some_and(|frame| looks_right(frame.payload(bytes)))
    })
}

fn frame_crc(payload_bytes: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&payload_bytes.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

pub(super) fn encode_header<const BYTES: usize, const NUMBERS: usize>(
    magic: &[u8; 8],
    cluster: ClusterId,
    numbers: [u64; NUMBERS],
) -> [u8; BYTES] {
    let mut header = [0; BYTES];
    header[..8].copy_from_slice(magic);
    header[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[10..26].copy_from_slice(&cluster.0);
    for (index, number) in numbers.into_iter().enumerate() {
        header[26 + 8 * index..34 + 8 * index].copy_from_slice(&number.to_le_bytes());
    }
    let crc = crc32fast::hash(&header[..BYTES - 4]);
    header[BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    header
}

pub(super) fn decode_header<const BYTES: usize, const NUMBERS: usize>(
    what: &'static str,
    magic: &[u8; 8],
    bytes: &[u8],
) -> Result<(ClusterId, [u64; NUMBERS]), FormatError> {
    let Some(header) = bytes.get(..BYTES) else {
        return Err(FormatError::malformed(what, format!("{} bytes are too few", bytes.len())));
    };
    if &header[..8] != magic {
        return Err(FormatError::malformed(what, "it does not begin with the magic bytes"));
    }
    let found = u16::from_le_bytes([header[8], header[9]]);
    let mut as_current = [0; BYTES];
    as_current.copy_from_slice(header);
    as_current[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    let current_fits = crc32fast::hash(&as_current[..BYTES - 4]) == u32_at(header, BYTES - 4);
    // Where the checksum fits with the current version put in, the version is what was damaged.
    if found != SEGMENT_VERSION && !current_fits {
        let supported = SEGMENT_VERSION;
        return Err(match found > supported {
            true => FormatError::Newer { what, found, supported },
            false => FormatError::Older { what, found, supported },
        });
    }
    if found != SEGMENT_VERSION || !current_fits {
        return Err(FormatError::Checksum { what });
    }
    let mut cluster = ClusterId([0; 16]);
    cluster.0.copy_from_slice(&header[10..26]);
    let mut numbers = [0; NUMBERS];
    for (index, number) in numbers.iter_mut().enumerate() {
        let mut eight = [0; 8];
        eight.copy_from_slice(&header[26 + 8 * index..34 + 8 * index]);
        *number = u64::from_le_bytes(eight);
    }
    Ok((cluster, numbers))
}
