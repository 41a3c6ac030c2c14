//! Moves a checkpoint from one server to another, in parts small enough to share a link.
//!
//! The sender encodes the state of one moment and streams it; the receiver collects parts in order and hands the
//! whole on once the digest is right. A part that does not fit ends the transfer; the receiver asks again by itself.

use std::collections::BTreeMap;

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

/// Collects what peers send; one checkpoint per peer at a time.
#[derive(Default)]
pub struct CheckpointCollector {
    collecting: BTreeMap<ServerName, (Digest, Vec<u8>)>,
}

impl CheckpointCollector {
    /// Takes a part; returns the encoded checkpoint when it is whole.
    pub fn part(
        &mut self,
        peer: &ServerName,
        digest: Digest,
        total: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        if total > CHECKPOINT_BYTES_MAX {
            return None;
        }
        if offset == 0 {
            self.collecting.insert(peer.clone(), (digest, Vec::new()));
        }
        let (wanted, collected) = self.collecting.get_mut(peer)?;
        if *wanted != digest || collected.len() as u64 != offset || offset + bytes.len() as u64 > total {
            self.collecting.remove(peer);
            return None;
        }
        collected.extend_from_slice(bytes);
        if (collected.len() as u64) < total {
            return None;
        }
        let (_, whole) = self.collecting.remove(peer)?;
        (Digest(*blake3::hash(&whole).as_bytes()) == digest).then_some(whole)
    }

    pub fn forget(&mut self, peer: &ServerName) {
        self.collecting.remove(peer);
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
            let mut whole = None;
            for (index, part) in all.iter().enumerate() {
                let Message::CheckpointPart { digest, total, offset, bytes } = part else { panic!() };
                if Some(index) != skip {
                    whole = collector.part(&peer, *digest, *total, *offset, bytes);
                }
            }
            whole
        };
        assert_eq!(feed(None).as_deref(), Some(encoded.as_ref()));
        assert_eq!(feed(Some(1)), None);
    }
}
