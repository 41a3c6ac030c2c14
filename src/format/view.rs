//! What the view keeps as values: registers, the vector that has been applied, and a summary of each file.

use serde::{Deserialize, Serialize};

use super::v1::{RegisterV1, VectorV1, vector, vector_v1};
use super::{FormatError, decode_all, encode_into, versioned};
use crate::core::merge::Register;
use crate::core::version::Vector;

/// The version of the view as a whole: its trees and its keys.
pub const VIEW_VERSION: u16 = 1;

const VERSION: u8 = 1;
/// A register has at most a few hundred leaves of at most a few KiB.
const VALUE_BYTES_MAX: usize = 64 << 20;

/// What the view's file tree must add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Registers, those of deleted records too.
    pub registers: u64,
    /// The sum, in which the order does not count, of [`register_digest`] over all registers.
    pub digest: [u8; 32],
}

impl Summary {
    /// Puts a register's digest into the sum, or takes it out again.
    pub fn toggle(&mut self, digest: [u8; 32]) {
        self.digest.iter_mut().zip(digest).for_each(|(mine, other)| *mine ^= other);
    }
}

/// The digest of a register under its key, over its encoding.
pub fn register_digest(key: &str, encoded: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key.as_bytes());
    hasher.update(encoded);
    *hasher.finalize().as_bytes()
}

/// Encodes a register.
pub fn encode_register(register: &Register) -> Vec<u8> {
    let mut out = vec![VERSION];
    encode_into(&RegisterV1::from(register), &mut out);
    out
}

/// Decodes a register.
pub fn decode_register(bytes: &[u8]) -> Result<Register, FormatError> {
    const WHAT: &str = "a register of the view";
    decode_all::<RegisterV1, VALUE_BYTES_MAX>(WHAT, versioned(WHAT, bytes)?)?.register(WHAT)
}

/// Encodes a vector.
pub fn encode_vector(seen: &Vector) -> Vec<u8> {
    let mut out = vec![VERSION];
    encode_into(&vector_v1(seen), &mut out);
    out
}

/// Decodes a vector.
pub fn decode_vector(bytes: &[u8]) -> Result<Vector, FormatError> {
    const WHAT: &str = "the vector of the view";
    vector(WHAT, &decode_all::<VectorV1, VALUE_BYTES_MAX>(WHAT, versioned(WHAT, bytes)?)?)
}

/// Encodes a summary.
pub fn encode_summary(summary: &Summary) -> Vec<u8> {
    let mut out = vec![VERSION];
    encode_into(summary, &mut out);
    out
}

/// Decodes a summary.
pub fn decode_summary(bytes: &[u8]) -> Result<Summary, FormatError> {
    const WHAT: &str = "a summary of the view";
    decode_all::<Summary, 256>(WHAT, versioned(WHAT, bytes)?)
}
