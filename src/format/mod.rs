//! Bytes and types: everything that is kept on a disk or sent to another server takes its form here, and only here
//! is the encoding library named.
//!
//! | form | where | leads with | bound |
//! |---|---|---|---|
//! | entry ([`entry`]) | inside frames and messages | version byte | [`entry::ENTRY_ENCODED_MAX`] |
//! | segment and archive ([`segment`]) | `Diff.dat/` | magic, `u16` version | frames of [`segment::FRAME_PAYLOAD_MAX`] |
//! | checkpoint ([`checkpoint`]) | `Diff.dat/`, sent in parts | magic, `u16` version | [`checkpoint::CHECKPOINT_BYTES_MAX`] |
//! | decisions ([`decision`]) | `Decision.dat`, messages | magic, `u16` version; version byte | frames of [`decision::RECORDS_ENCODED_MAX`] |
//! | message ([`message`]) | between servers | version byte | [`message::MESSAGE_BYTES_MAX`] |
//! | register, vector, summary ([`view`]) | `view/` | version byte | their holder's |
//! | record of an original server ([`guest`]) | `originals/` | version byte, ends with a CRC | [`guest::GUEST_BYTES_MAX`] |
//!
//! Rules that keep old bytes readable for ever: the types of [`v1`] are frozen and separate from the core's, so that the
//! core's can change; enums only grow at their end; a changed form is a new module and a new version number, and the
//! old decoder stays; golden files in `tests/golden/` hold every form. A decoder checks that all bytes were used,
//! rebuilds every name and record through its checking constructor, never panics, and never allocates much more than
//! the bytes it was given: text and byte strings are borrowed from the input while decoding.
//! `src/docs/formats.md` describes the forms byte by byte.

pub mod checkpoint;
pub mod decision;
pub mod entry;
pub mod guest;
pub mod management;
pub mod message;
pub mod segment;
pub mod v1;
pub mod view;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use checkpoint::{decode_checkpoint, encode_checkpoint};
pub use entry::{decode_sealed, encode_sealed, peek_entry};
pub use message::{decode_message, encode_message};

/// Why bytes are not what they should be. `what` names the form.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    #[error("{what} has format version {found}; this program reads up to version {supported}: update p2pdb here")]
    Newer { what: &'static str, found: u16, supported: u16 },
    #[error("{what} has format version {found}, which this program no longer reads (it reads {supported})")]
    Older { what: &'static str, found: u16, supported: u16 },
    #[error("{what} has {bytes} bytes; at most {limit} are allowed")]
    TooLarge { what: &'static str, bytes: usize, limit: usize },
    #[error("{what} is not well formed: {why}")]
    Malformed { what: &'static str, why: String },
    #[error("{what} has {bytes} bytes behind its end")]
    Trailing { what: &'static str, bytes: usize },
    #[error("{what} does not match its checksum")]
    Checksum { what: &'static str },
    #[error("{what} belongs to cluster {found}, not to {expected}")]
    Foreign { what: &'static str, found: crate::core::id::ClusterId, expected: crate::core::id::ClusterId },
}

impl FormatError {
    pub(crate) fn malformed(what: &'static str, why: impl ToString) -> Self {
        Self::Malformed { what, why: why.to_string() }
    }
}

/// Appends the encoding of a frozen type.
fn encode_into(value: &impl Serialize, out: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
        .expect("writing plain data to memory cannot fail");
}

/// Decodes a frozen type from all of `bytes`; `LIMIT` bounds what the bytes may claim to hold.
fn decode_all<'a, T: Deserialize<'a>, const LIMIT: usize>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, FormatError> {
    if bytes.len() > LIMIT {
        return Err(FormatError::TooLarge { what, bytes: bytes.len(), limit: LIMIT });
    }
    let (value, used) = decode_front::<T, LIMIT>(what, bytes)?;
    if used != bytes.len() {
        return Err(FormatError::Trailing { what, bytes: bytes.len() - used });
    }
    Ok(value)
}

/// Decodes a frozen type from the front of `bytes`; returns how many bytes it used.
fn decode_front<'a, T: Deserialize<'a>, const LIMIT: usize>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<(T, usize), FormatError> {
    let config = bincode::config::standard().with_limit::<LIMIT>();
    bincode::serde::borrow_decode_from_slice(bytes, config).map_err(|error| FormatError::malformed(what, error))
}

/// Takes off the version byte.
fn versioned<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], FormatError> {
    const SUPPORTED: u16 = 1;
    match bytes.split_first() {
        Some((1, rest)) => Ok(rest),
        Some((0, _)) => Err(FormatError::Older { what, found: 0, supported: SUPPORTED }),
        Some((&found, _)) => Err(FormatError::Newer { what, found: found.into(), supported: SUPPORTED }),
        None => Err(FormatError::malformed(what, "it is empty")),
    }
}
