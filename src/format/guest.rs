//! What a host keeps of one original server: version byte, record, CRC-32 (little endian) over both.

use super::v1::GuestRecordV1;
use super::{FormatError, decode_all, encode_into, versioned};
use crate::core::guest::GuestRecord;

/// Longest note that is kept, in bytes.
pub const NOTE_BYTES_MAX: usize = 4096;
/// Longest encoding of a record.
pub const GUEST_BYTES_MAX: usize = 8192;

const VERSION: u8 = 1;
const WHAT: &str = "the record of an original server";

/// Encodes a record; a note that is too long is cut.
pub fn encode_guest(record: &GuestRecord) -> Vec<u8> {
    let mut out = vec![VERSION];
    encode_into(&GuestRecordV1::from(record), &mut out);
    let checksum = crc32fast::hash(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// Decodes a record.
pub fn decode_guest(bytes: &[u8]) -> Result<GuestRecord, FormatError> {
    let (body, checksum) = bytes.split_last_chunk().ok_or_else(|| FormatError::malformed(WHAT, "it is cut off"))?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(FormatError::Checksum { what: WHAT });
    }
    decode_all::<GuestRecordV1<'_>, GUEST_BYTES_MAX>(WHAT, versioned(WHAT, body)?)?.record(WHAT)
}
