//! A checkpoint as bytes: the whole state, deleted records and early bases included, and the heads of all streams with
//! the certificates of their keys. Version 1 had no certificates; it is read, and no longer written.
//!
//! Header: magic, version, cluster, content length, BLAKE3 digest of everything else. The digest is checked before
//! anything is decoded. The same bytes lie on the disk and are sent in parts to a server that is far behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::v1::{BytesV1, HeadV1, RegisterV1, VectorV1, vector, vector_v1};
use super::{FormatError, decode_all, encode_into};
use crate::core::id::{ClusterId, FileName, Stream};
use crate::core::merge::{Files, Written};
use crate::core::oplog::{Checkpoint, Head};

/// Longest checkpoint, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 1 << 30;
/// Bytes of a checkpoint's header.
pub const CHECKPOINT_HEADER_BYTES: usize = 66;
/// The version of checkpoints.
pub const CHECKPOINT_VERSION: u16 = 2;
const OLDEST_VERSION: u16 = 1;

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

/// A head, and where its certificate is in the list.
#[derive(Debug, Serialize, Deserialize)]
struct HeadV2<'a> {
    #[serde(borrow)]
    head: HeadV1<'a>,
    certificate: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CheckpointV2<'a> {
    /// Each once, in order.
    #[serde(borrow)]
    certificates: Vec<BytesV1<'a>>,
    #[serde(borrow)]
    heads: Vec<HeadV2<'a>>,
    #[serde(borrow)]
    seen: VectorV1<'a>,
    #[serde(borrow)]
    files: Vec<FileV1<'a>>,
}

/// Encodes a checkpoint.
pub fn encode_checkpoint(checkpoint: &Checkpoint, cluster: ClusterId) -> Vec<u8> {
    let keyed = |(key, register)| KeyedV1 { key, register: RegisterV1::from(register) };
    let files = checkpoint.files.iter();
    let certificates: BTreeSet<&[u8]> =
        checkpoint.heads.values().filter_map(|head| head.certificate.as_deref()).collect();
    let certificates: Vec<&[u8]> = certificates.into_iter().collect();
    let place = |certificate: &[u8]| certificates.binary_search(&certificate).ok().map(|at| at as u32);
    let head = |(stream, head)| HeadV2 {
        head: HeadV1::new(stream, head),
        certificate: head.certificate.as_deref().and_then(place),
    };
    let form = CheckpointV2 {
        heads: checkpoint.heads.iter().map(head).collect(),
        certificates: certificates.iter().map(|certificate| BytesV1(certificate)).collect(),
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
    let (heads, seen, files) = match version_of(bytes) {
        1 => {
            let form = decode_all::<CheckpointV1, CHECKPOINT_BYTES_MAX>(WHAT, content)?;
            let heads = form.heads.iter().map(|head| head.head(WHAT)).collect::<Result<_, _>>()?;
            (heads, form.seen, form.files)
        }
        _ => {
            let form = decode_all::<CheckpointV2, CHECKPOINT_BYTES_MAX>(WHAT, content)?;
            (heads_v2(&form)?, form.seen, form.files)
        }
    };
    let seen = vector(WHAT, &seen)?;
    let mut written = Vec::new();
    for file in &files {
        let name = FileName::new(file.name).map_err(|error| FormatError::malformed(WHAT, error))?;
        for KeyedV1 { key, register } in &file.registers {
            let register = register.register(WHAT)?;
            written.push(Written { file: name.clone(), key: (*key).to_owned(), register });
        }
    }
    Ok(Checkpoint { files: Files::restore(written, seen), heads })
}

fn heads_v2(form: &CheckpointV2) -> Result<BTreeMap<Stream, Head>, FormatError> {
    let certificates: Vec<Arc<[u8]>> = form.certificates.iter().map(|bytes| bytes.0.into()).collect();
    let mut heads = BTreeMap::new();
    for HeadV2 { head, certificate } in &form.heads {
        let (stream, mut head) = head.head(WHAT)?;
        if let Some(place) = certificate {
            let found = certificates.get(*place as usize);
            let missing = || FormatError::malformed(WHAT, "it lacks a certificate that it names");
            head.certificate = Some(found.ok_or_else(missing)?.clone());
        }
        heads.insert(stream, head);
    }
    Ok(heads)
}

fn version_of(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[8], bytes[9]])
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
    let version = version_of(bytes);
    if intact && version > CHECKPOINT_VERSION {
        return Err(FormatError::Newer { what: WHAT, found: version, supported: CHECKPOINT_VERSION });
    }
    if intact && version < OLDEST_VERSION {
        return Err(FormatError::Older { what: WHAT, found: version, supported: OLDEST_VERSION });
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
