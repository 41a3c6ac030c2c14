//! Moves a checkpoint from one server to another, in parts small enough to share a link.
//!
//! The sender encodes the state of one moment and streams it; the receiver collects parts in order and hands the
//! whole on once the digest is right. A part that does not fit ends the transfer; the receiver asks again by itself.

use bytes::Bytes;

use crate::core::id::{Digest, ServerName};
use crate::core::io::Message;

/// Bytes of one part.
pub const PART_BYTES: usize = 256 * 1024;
/// Largest checkpoint taken from a peer, in bytes.
pub const CHECKPOINT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The parts of an encoded checkpoint.
pub fn parts(encoded: &Bytes) -> impl Iterator<Item = Message> + use<> {
    let digest = Digest(*blake3::hash(encoded).as_bytes());
    let encoded = encoded.clone();
    let total = encoded.len() as u64;
    (0..encoded.len()).step_by(PART_BYTES).map(move |offset| {
        let end = encoded.len().min(offset + PART_BYTES);
        let bytes = encoded[offset..end].to_vec();
        Message::CheckpointPart { digest, total, offset: offset as u64, bytes }
    })
}

/// What a part has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Collected {
    /// It does not fit, and ends what was collected.
    Nothing,
    Part {
        /// Of this checkpoint so far.
        collected_bytes: u64,
    },
    /// The encoded checkpoint.
    Whole(Vec<u8>),
}

/// Collects what a peer sends; one checkpoint at a time, for one peer at a time is asked.
#[derive(Default)]
pub struct CheckpointCollector {
    collecting: Option<(ServerName, Digest, Vec<u8>)>,
}

impl CheckpointCollector {
    /// Takes a part. Every part but the last has [`PART_BYTES`], so that a peer cannot draw a checkpoint out.
    pub fn part(&mut self, peer: &ServerName, digest: Digest, total: u64, offset: u64, bytes: &[u8]) -> Collected {
        self.collect(peer, digest, total, offset, bytes).unwrap_or(Collected::Nothing)
    }

    fn collect(
        &mut self,
        peer: &ServerName,
        digest: Digest,
        total: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Option<Collected> {
        if total > CHECKPOINT_BYTES_MAX {
            return None;
        }
        if offset == 0 {
            self.collecting = Some((peer.clone(), digest, Vec::new()));
        }
        let (_, wanted, collected) = self.collecting.as_mut().filter(|(of, ..)| of == peer)?;
        let part_bytes = total.saturating_sub(offset).min(PART_BYTES as u64);
        if *wanted != digest || collected.len() as u64 != offset || bytes.len() as u64 != part_bytes {
            self.collecting = None;
            return None;
        }
        collected.extend_from_slice(bytes);
        let collected_bytes = collected.len() as u64;
        if collected_bytes < total {
            return Some(Collected::Part { collected_bytes });
        }
        let (_, _, whole) = self.collecting.take()?;
        (Digest(*blake3::hash(&whole).as_bytes()) == digest).then_some(Collected::Whole(whole))
    }

    pub fn forget(&mut self, peer: &ServerName) {
        self.collecting.take_if(|(of, ..)| of == peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_whole_and_a_missing_part_makes_nothing() {
        let encoded = Bytes::from((0..700_000u32).map(|number| (number / 7) as u8).collect::<Vec<u8>>());
        let peer = ServerName::new("S1").unwrap();
        let all: Vec<_> = parts(&encoded).collect();
        let feed = |skip: Option<usize>| {
            let mut collector = CheckpointCollector::default();
            let mut last = Collected::Nothing;
            for (index, part) in all.iter().enumerate() {
                let Message::CheckpointPart { digest, total, offset, bytes } = part else { panic!() };
                if Some(index) != skip {
                    last = collector.part(&peer, *digest, *total, *offset, bytes);
                }
            }
            last
        };
        assert_eq!(feed(None), Collected::Whole(encoded.to_vec()));
        assert_eq!(feed(Some(1)), Collected::Nothing);
    }

    #[test]
    fn a_checkpoint_cannot_be_drawn_out() {
        let (peer, digest, total) = (ServerName::new("S1").unwrap(), Digest([1; 32]), 2 * PART_BYTES as u64);
        let mut collector = CheckpointCollector::default();
        assert_eq!(collector.part(&peer, digest, total, 0, &[0]), Collected::Nothing, "a part too short");
        let whole_part = vec![0; PART_BYTES];
        let first = collector.part(&peer, digest, total, 0, &whole_part);
        assert_eq!(first, Collected::Part { collected_bytes: PART_BYTES as u64 });
        assert_eq!(collector.part(&peer, digest, total, PART_BYTES as u64, &[]), Collected::Nothing);
    }
}
