//! One sealed entry as bytes: what a frame of `Diff.dat` and a message between servers carry.
//!
//! The hash is not stored: it is computed again from the content, so bytes that were changed give another
//! hash and fail the chain. An entry begins with its id and time, which [`peek_entry`] reads alone.

use super::v1::{EntryFrontV1, SealedV1};
use super::{FormatError, decode_all, decode_front, encode_into, versioned};
use crate::core::clock::Timestamp;
use crate::core::entry::Sealed;
use crate::core::id::{EntryId, Stream};

/// Longest encoding of an entry, in bytes. Entries within the core's bounds stay below it.
pub const ENTRY_ENCODED_MAX: usize = (1 << 20) - 64;

const VERSION: u8 = 1;
const WHAT: &str = "an entry";

/// Encodes an entry.
pub fn encode_sealed(sealed: &Sealed) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    append_sealed(sealed, &mut out);
    out
}

/// Appends the encoding of an entry to `out`.
pub fn append_sealed(sealed: &Sealed, out: &mut Vec<u8>) {
    out.push(VERSION);
    encode_into(&SealedV1::from(sealed), out);
}

/// Decodes an entry. Names and records are checked; bounds, chain and signature are the core's to check.
pub fn decode_sealed(bytes: &[u8]) -> Result<Sealed, FormatError> {
    decode_next(bytes, None)
}

/// As [`decode_sealed`], for an entry that came with another one: names that both have are kept in memory once.
pub(super) fn decode_next(bytes: &[u8], before: Option<&Sealed>) -> Result<Sealed, FormatError> {
    let form = decode_all::<SealedV1, ENTRY_ENCODED_MAX>(WHAT, versioned(WHAT, bytes)?)?;
    form.sealed(WHAT, before.map(Sealed::entry))
}

/// Which entry some bytes hold, read from their front without decoding the rest.
#[derive(Debug, Clone, Copy)]
pub struct Peek<'a> {
    front: EntryFrontV1<'a>,
}

impl Peek<'_> {
    /// The id, if its name is well formed.
    pub fn id(&self) -> Result<EntryId, FormatError> {
        Ok(EntryId { stream: self.front.stream.stream(WHAT)?, seq: self.front.seq })
    }

    pub fn seq(&self) -> u64 {
        self.front.seq
    }

    pub fn time(&self) -> Timestamp {
        Timestamp(self.front.time)
    }

    pub fn is_of(&self, stream: &Stream) -> bool {
        let front = &self.front.stream;
        front.origin == stream.origin.as_str()
            && front.run == stream.run
            && crate::core::id::Lane::from(front.lane) == stream.lane
    }
}

/// Reads the front of an encoded entry.
pub fn peek_entry(bytes: &[u8]) -> Result<Peek<'_>, FormatError> {
    let (front, _) = decode_front::<EntryFrontV1, ENTRY_ENCODED_MAX>(WHAT, versioned(WHAT, bytes)?)?;
    Ok(Peek { front })
}
