//! The disk of a simulated host: real segment bytes, of which the end may not be durable yet.
//!
//! | fault | what is lost |
//! |---|---|
//! | kill -9 | nothing that was written |
//! | power cut | what was not synced, but for a random part of its front (a torn tail) |
//! | lying disk | also the end of what it said it had synced |
//! | bit flip | one bit anywhere in the segments or the checkpoint |
//! | wipe | everything |
//!
//! Invariant: only the last segment has bytes that are not synced.

use super::random::Random;
use crate::core::id::ClusterId;
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, encode_segment_header, scan_frames};

/// One file of the log.
#[derive(Debug, Clone)]
pub struct Segment {
    pub number: u64,
    pub bytes: Vec<u8>,
}

/// What a disk holds.
#[derive(Debug, Default)]
pub struct Disk {
    pub segments: Vec<Segment>,
    /// Bytes of the last segment that survive a power cut.
    pub synced: usize,
    /// The encoded checkpoint; replaced as a whole.
    pub checkpoint: Option<Vec<u8>>,
    /// The highest run that the host has begun, in a small file of its own.
    pub run: u32,
    pub full: bool,
    /// How long a sync takes, shortest and longest.
    pub sync_us: (u64, u64),
}

impl Disk {
    /// Appends bytes to the last segment, or to a new one if that has grown to `segment_bytes`. Returns its number.
    pub fn append(&mut self, bytes: &[u8], segment_bytes: usize, cluster: ClusterId, created_ms: u64) -> u64 {
        if self.segments.last().is_none_or(|last| last.bytes.len() >= segment_bytes) {
            let number = self.segments.last().map_or(1, |last| last.number + 1);
            let header = encode_segment_header(&SegmentHeader { cluster, number, created_ms });
            self.segments.push(Segment { number, bytes: header.to_vec() });
            self.synced = SEGMENT_HEADER_BYTES;
        }
        let last = self.segments.last_mut().expect("there is one now");
        last.bytes.extend_from_slice(bytes);
        last.number
    }

    /// How long the last segment is.
    pub fn written(&self) -> usize {
        self.segments.last().map_or(0, |last| last.bytes.len())
    }

    /// Makes everything durable.
    pub fn sync(&mut self) {
        self.synced = self.written();
    }

    /// Takes back what was written after the segment was `length` bytes long.
    pub fn truncate(&mut self, length: usize) {
        if let Some(last) = self.segments.last_mut() {
            last.bytes.truncate(length.max(self.synced));
        }
    }

    pub fn power_cut(&mut self, random: &mut Random) {
        let Some(last) = self.segments.last_mut() else { return };
        let unsynced = last.bytes.len() - self.synced;
        // Often nothing of it survives, often all, else any part.
        let kept = match random.below(3) {
            0 => 0,
            1 => unsynced,
            _ => random.index(unsynced + 1),
        };
        last.bytes.truncate(self.synced + kept);
        self.sync();
    }

    /// The disk had only said that it synced. Returns whether anything is gone.
    pub fn lose_tail(&mut self, random: &mut Random) -> bool {
        let Some(last) = self.segments.last_mut() else { return false };
        let most = (last.bytes.len() - SEGMENT_HEADER_BYTES.min(last.bytes.len())).min(3000);
        let lost = random.index(most + 1);
        last.bytes.truncate(last.bytes.len() - lost);
        self.sync();
        lost > 0
    }

    /// Loses the last entries that it had said were synced.
    pub fn lose_entries(&mut self, mut entries: usize) {
        while let Some(last) = self.segments.last_mut() {
            let frames = scan_frames(&last.bytes, SEGMENT_HEADER_BYTES).frames;
            let kept = frames.len().saturating_sub(entries);
            last.bytes.truncate(frames.get(kept).map_or(last.bytes.len(), |frame| frame.offset));
            entries -= frames.len() - kept;
            if entries == 0 {
                break;
            }
            self.segments.pop();
        }
        self.sync();
    }

    /// Returns whether there was a bit to flip.
    pub fn flip_bit(&mut self, random: &mut Random) -> bool {
        let in_checkpoint = random.percent(20);
        let bytes = match &mut self.checkpoint {
            Some(checkpoint) if in_checkpoint => checkpoint,
            _ if self.segments.is_empty() => return false,
            _ => {
                let at = random.index(self.segments.len());
                &mut self.segments[at].bytes
            }
        };
        let at = random.index(bytes.len());
        bytes[at] ^= 1 << random.below(8);
        true
    }

    pub fn wipe(&mut self) {
        let sync_us = self.sync_us;
        *self = Self { sync_us, ..Self::default() };
    }
}
