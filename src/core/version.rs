//! Which write is newer, and which entries a server holds.
//!
//! A *version* orders all writes of a record: hybrid timestamp first, entry id to break ties; the order is total and
//! respects causality. A *vector* says how far a server has come in each stream; as streams have no gaps, it names
//! exactly the set of entries held.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::id::{Digest, EntryId, Stream};

/// The version that an entry gives to each record it writes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    pub time: Timestamp,
    pub entry: EntryId,
}

impl fmt::Debug for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.entry, self.time)
    }
}

/// For each stream the highest sequence number held; a stream that is absent is at 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Vector(BTreeMap<Stream, u64>);

impl Vector {
    pub fn seq(&self, stream: &Stream) -> u64 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    pub fn holds(&self, id: &EntryId) -> bool {
        id.seq <= self.seq(&id.stream)
    }

    /// Raises one stream; a lower number changes nothing.
    pub fn raise(&mut self, stream: &Stream, seq: u64) {
        match self.0.get_mut(stream) {
            Some(held) => *held = (*held).max(seq),
            None if seq > 0 => {
                self.0.insert(stream.clone(), seq);
            }
            None => {}
        }
    }

    /// Becomes the union of what both hold.
    pub fn join(&mut self, other: &Vector) {
        other.iter().for_each(|(stream, seq)| self.raise(stream, seq));
    }

    /// Whether everything that `other` holds is held here.
    pub fn covers(&self, other: &Vector) -> bool {
        other.iter().all(|(stream, seq)| self.seq(stream) >= seq)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Stream, u64)> {
        self.0.iter().map(|(stream, seq)| (stream, *seq))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Equal for equal vectors only.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for (stream, seq) in &self.0 {
            hasher.update(&[stream.origin.as_str().len() as u8]);
            hasher.update(stream.origin.as_str().as_bytes());
            hasher.update(&stream.run.to_le_bytes());
            hasher.update(&[stream.lane as u8]);
            hasher.update(&seq.to_le_bytes());
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

impl FromIterator<(Stream, u64)> for Vector {
    fn from_iter<I: IntoIterator<Item = (Stream, u64)>>(items: I) -> Self {
        let mut vector = Vector::default();
        items.into_iter().for_each(|(stream, seq)| vector.raise(&stream, seq));
        vector
    }
}
