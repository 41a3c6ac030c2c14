//! An entry: one atomic transaction of 1..n diffs, sealed by its origin.
//!
//! Sealing fixes the id, the time, the hash of the previous entry of the stream, and thereby the entry's own hash.
//! The hash is taken over a canonical form of the fields that is independent of any encoding on disk or on the wire, so formats
//! can change and hashes and signatures stay. One Ed25519 signature (RFC 8032) under the last entry of a group
//! vouches for all entries before it in the stream, because each hash covers the one before.
//! The first entry of a stream carries the certificate with whose key the stream is signed.

use std::sync::Arc;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::clock::Timestamp;
use super::diff::{BASES_MAX, Change, Diff};
use super::id::{ClusterId, Digest, EntryId, FileName, Lane};
use super::priority::Class;
use super::record::Record;
use super::schema::Schema;
use super::version::Version;

/// Most diffs in one entry.
pub const DIFFS_MAX: usize = 4096;
/// Largest entry, as the sum of its text and certificate bytes.
pub const ENTRY_BYTES_MAX: usize = 512 * 1024;
/// Longest author, in bytes.
pub const AUTHOR_BYTES_MAX: usize = 128;
/// Longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EntryError {
    #[error("it has no diff and no certificate")]
    Empty,
    #[error("it is larger than the limits allow ({0})")]
    TooLarge(&'static str),
    #[error("it writes the record '{1}' of {0} twice")]
    Twice(String, String),
    #[error("it touches {0}, which does not belong in the volatile lane")]
    Lane(String),
    #[error("it builds on a version that is not older than itself")]
    Bases,
    #[error("its certificate is in the wrong place: the first entry of a stream has one, no other has")]
    Certificate,
    #[error("its signature does not match the key of its stream")]
    Signature,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: EntryId,
    pub time: Timestamp,
    pub class: Class,
    /// Who made the edit, such as `root`, `plain file` or `p2pdb`.
    pub author: String,
    /// Why, in the author's words; may be empty.
    pub reason: String,
    /// The hash of the previous entry of this stream; for the first, of the last entry known of this origin's
    /// previous run in the same lane, or zero.
    pub previous: Digest,
    /// DER; in the first entry of a stream only.
    pub certificate: Option<Arc<[u8]>>,
    pub diffs: Vec<Diff>,
}

impl Entry {
    pub fn version(&self) -> Version {
        Version { time: self.time, entry: self.id.clone() }
    }

    /// The bytes of text that the entry holds: what the bounds count, near enough what it takes on disk.
    pub fn weight_bytes(&self) -> usize {
        let diffs: usize = self.diffs.iter().map(diff_weight_bytes).sum();
        self.author.len() + self.reason.len() + self.certificate.as_ref().map_or(0, |bytes| bytes.len()) + diffs + 64
    }

    /// The most that the entry can take in the log, frame and signature included.
    pub fn frame_bytes_max(&self) -> usize {
        2 * self.weight_bytes() + 256
    }

    /// The records that it writes, by file and key.
    pub fn touched(&self) -> impl Iterator<Item = (FileName, String)> {
        self.diffs.iter().map(|diff| (diff.file.clone(), diff.key.clone()))
    }

    /// Checks the bounds and rules that hold for every entry, whoever made it.
    pub fn check(&self) -> Result<(), EntryError> {
        if (self.id.seq == 1) != self.certificate.is_some() {
            return Err(EntryError::Certificate);
        }
        if self.diffs.is_empty() && self.certificate.is_none() {
            return Err(EntryError::Empty);
        }
        if self.diffs.len() > DIFFS_MAX {
            return Err(EntryError::TooLarge("diffs"));
        }
        if self.author.len() > AUTHOR_BYTES_MAX || self.reason.len() > REASON_BYTES_MAX {
            return Err(EntryError::TooLarge("author or reason"));
        }
        if self.diffs.iter().any(|diff| diff.bases.len() > BASES_MAX) {
            return Err(EntryError::TooLarge("bases"));
        }
        let version = self.version();
        if self.diffs.iter().flat_map(|diff| &diff.bases).any(|base| *base >= version) {
            return Err(EntryError::Bases);
        }
        if self.weight_bytes() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge("bytes"));
        }
        if self.id.stream.lane == Lane::Volatile
            && let Some(diff) = self.diffs.iter().find(|diff| !Schema::is_volatile(&diff.file))
        {
            return Err(EntryError::Lane(diff.file.to_string()));
        }
        let mut written: Vec<_> = self.diffs.iter().map(|diff| (&diff.file, &diff.key)).collect();
        written.sort_unstable();
        if let Some(pair) = written.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(EntryError::Twice(pair[0].0.to_string(), pair[0].1.clone()));
        }
        Ok(())
    }

    fn hash(&self) -> Digest {
        let mut canonical = Canonical::new(b"p2pdb entry 1");
        canonical.text(self.id.stream.origin.as_str());
        canonical.number(u64::from(self.id.stream.run));
        canonical.number(self.id.stream.lane as u64);
        canonical.number(self.id.seq);
        canonical.number(self.time.0);
        canonical.number(self.class as u64);
        canonical.text(&self.author);
        canonical.text(&self.reason);
        canonical.bytes(&self.previous.0);
        canonical.bytes(self.certificate.as_deref().unwrap_or(&[]));
        canonical.number(self.diffs.len() as u64);
        for diff in &self.diffs {
            canonical.diff(diff);
        }
        canonical.finish()
    }
}

fn diff_weight_bytes(diff: &Diff) -> usize {
    let change = match &diff.change {
        Change::Add(one) | Change::Del(one) => one.weight_bytes(),
        Change::Mod { before, after } => before.weight_bytes() + after.weight_bytes(),
    };
    diff.file.as_str().len() + diff.key.len() + change + diff.bases.len() * 48
}

/// Puts fields together for a hash so that no two different entries give the same bytes: numbers are 8 bytes little-endian,
/// texts carry their length in front, variants their number.
struct Canonical(Vec<u8>);

impl Canonical {
    fn new(domain: &[u8]) -> Self {
        let mut canonical = Self(Vec::with_capacity(1024));
        canonical.bytes(domain);
        canonical
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn record(&mut self, record: &Record) {
        self.number(record.field_count() as u64);
        record.fields().for_each(|field| self.text(field));
    }

    fn diff(&mut self, diff: &Diff) {
        self.text(diff.file.as_str());
        self.text(&diff.key);
        match &diff.change {
            Change::Add(record) => {
                self.number(0);
                self.record(record);
            }
            Change::Del(record) => {
                self.number(1);
                self.record(record);
            }
            Change::Mod { before, after } => {
                self.number(2);
                self.record(before);
                self.record(after);
            }
        }
        self.number(diff.bases.len() as u64);
        for base in &diff.bases {
            self.number(base.time.0);
            self.text(base.entry.stream.origin.as_str());
            self.number(u64::from(base.entry.stream.run));
            self.number(base.entry.stream.lane as u64);
            self.number(base.entry.seq);
        }
    }

    fn finish(self) -> Digest {
        Digest(*blake3::hash(&self.0).as_bytes())
    }
}

/// An Ed25519 signature.
pub type SignatureBytes = [u8; 64];

/// An entry with its hash and, if it closes a group, its signature.
/// Invariant: `hash` is the hash of `entry`. Whether the signature is right is checked against the stream's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    entry: Entry,
    hash: Digest,
    signature: Option<SignatureBytes>,
}

impl Sealed {
    pub fn new(entry: Entry, signature: Option<SignatureBytes>) -> Self {
        let hash = entry.hash();
        Self { entry, hash, signature }
    }

    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    pub fn id(&self) -> &EntryId {
        &self.entry.id
    }

    pub fn hash(&self) -> Digest {
        self.hash
    }

    pub fn signature(&self) -> Option<&SignatureBytes> {
        self.signature.as_ref()
    }

    /// The same entry, for a place at which a later signature vouches for it.
    pub fn without_signature(self) -> Self {
        Self { signature: None, ..self }
    }

    pub fn sign(&mut self, cluster: ClusterId, key: &SigningKey) {
        self.signature = Some(key.sign(&signed_message(cluster, &self.hash)).to_bytes());
    }

    /// Checks the signature, which must be there.
    pub fn verify(&self, cluster: ClusterId, key: &VerifyingKey) -> Result<(), EntryError> {
        let signature = Signature::from_bytes(self.signature.as_ref().ok_or(EntryError::Signature)?);
        key.verify_strict(&signed_message(cluster, &self.hash), &signature).map_err(|_| EntryError::Signature)
    }
}

fn signed_message(cluster: ClusterId, hash: &Digest) -> [u8; 64] {
    let mut message = [0; 64];
    message[..16].copy_from_slice(b"p2pdb group sig1");
    message[16..32].copy_from_slice(&cluster.0);
    message[32..].copy_from_slice(&hash.0);
    message
}
