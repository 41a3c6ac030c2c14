//! A checkpoint as bytes: the whole state, deleted records and early bases included, and the heads of all streams.
//!
//! Header: magic, version, cluster, content length, BLAKE3 digest of everything else. The digest is checked before
//! anything is decoded. The same bytes lie on the disk and are sent in parts to a server that is far behind.

use serde::{Deserialize, Serialize};

use super::v1::{HeadV1, RegisterV1, VectorV1, vector, vector_v1};
use super::{FormatError, decode_all, encode_into};
use crate::core::id::{ClusterId, FileName};
use crate::core::merge::{Files, Written};
use crate::core::oplog::Checkpoint;

/// Longest checkpoint, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 1 << 30;
/// Bytes of a checkpoint's header.
pub const CHECKPOINT_HEADER_BYTES: usize = 66;
/// The version of checkpoints.
pub const CHECKPOINT_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"P2PDCKP\n";
const WHAT: &str = "the checkpoint";

#[derive(Debug, Serialize, Deserialize)]
struct KeyedV1<'a> {
    key: &'a str,
    #[serde(borrow)]
    register: RegisterV1<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileV1<'a> {
    name: &'a str,
    #[serde(borrow)]
    registers: Vec<KeyedV1<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CheckpointV1<'a> {
    #[serde(borrow)]
    heads: Vec<HeadV1<'a>>,
    #[serde(borrow)]
    seen: VectorV1<'a>,
    #[serde(borrow)]
    files: Vec<FileV1<'a>>,
}

/// Encodes a checkpoint.
pub fn encode_checkpoint(checkpoint: &Checkpoint, cluster: ClusterId) -> Vec<u8> {
    let keyed = |(key, register)| KeyedV1 { key, register: RegisterV1::from(register) };
    let files = checkpoint.files.iter();
    let form = CheckpointV1 {
        heads: checkpoint.heads.iter().map(|(stream, head)| HeadV1::new(stream, head)).collect(),
        seen: vector_v1(checkpoint.files.seen()),
        files: files
            .map(|(name, file)| FileV1 { name: name.as_str(), registers: file.registers().map(keyed).collect() })
            .collect(),
    };
    let mut out = vec![0; CHECKPOINT_HEADER_BYTES];
    encode_into(&form, &mut out);
    let content_bytes = (out.len() - CHECKPOINT_HEADER_BYTES) as u64;
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
    out[10..26].copy_from_slice(&cluster.0);
    out[26..34].copy_from_slice(&content_bytes.to_le_bytes());
    let digest = content_digest(&out);
    out[34..66].copy_from_slice(&digest);
    out
}

/// Decodes a checkpoint of a cluster.
pub fn decode_checkpoint(bytes: &[u8], cluster: ClusterId) -> Result<Checkpoint, FormatError> {
    let found = checkpoint_cluster(bytes)?;
    if found != cluster {
        return Err(FormatError::Foreign { what: WHAT, found, expected: cluster });
    }
    let content = &bytes[CHECKPOINT_HEADER_BYTES..];
    let form = decode_all::<CheckpointV1, CHECKPOINT_BYTES_MAX>(WHAT, content)?;
    let heads = form.heads.iter().map(|head| head.head(WHAT)).collect::<Result<_, _>>()?;
    let seen = vector(WHAT, &form.seen)?;
    let mut written = Vec::new();
    for file in &form.files {
        let name = FileName::new(file.name).map_err(|error| FormatError::malformed(WHAT, error))?;
        for KeyedV1 { key, register } in &file.registers {
            let register = register.register(WHAT)?;
            written.push(Written { file: name.clone(), key: (*key).to_owned(), register });
        }
    }
    Ok(Checkpoint { files: Files::restore(written, seen), heads })
}

/// Checks header and digest, and tells which cluster the checkpoint belongs to.
pub fn checkpoint_cluster(bytes: &[u8]) -> Result<ClusterId, FormatError> {
    if bytes.len() > CHECKPOINT_BYTES_MAX {
        return Err(FormatError::TooLarge { what: WHAT, bytes: bytes.len(), limit: CHECKPOINT_BYTES_MAX });
    }
    let Some(header) = bytes.get(..CHECKPOINT_HEADER_BYTES) else {
        return Err(FormatError::malformed(WHAT, format!("{} bytes are too few", bytes.len())));
    };
    if &header[..8] != MAGIC {
        return Err(FormatError::malformed(WHAT, "it does not begin with the magic bytes"));
    }
    // The digest comes first: a damaged version number must not pass for a newer one.
    let intact = content_digest(bytes) == header[34..66];
    let version = u16::from_le_bytes([header[8], header[9]]);
    match version.cmp(&CHECKPOINT_VERSION) {
        std::cmp::Ordering::Greater if intact => {
            return Err(FormatError::Newer { what: WHAT, found: version, supported: CHECKPOINT_VERSION });
        }
        std::cmp::Ordering::Less if intact => {
            return Err(FormatError::Older { what: WHAT, found: version, supported: CHECKPOINT_VERSION });
        }
        _ => {}
    }
    let content_bytes = (bytes.len() - CHECKPOINT_HEADER_BYTES) as u64;
    if !intact || header[26..34] != content_bytes.to_le_bytes() {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let mut cluster = ClusterId([0; 16]);
    cluster.0.copy_from_slice(&header[10..26]);
    Ok(cluster)
}

fn content_digest(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..34]);
    hasher.update(&bytes[CHECKPOINT_HEADER_BYTES..]);
    *hasher.finalize().as_bytes()
}
