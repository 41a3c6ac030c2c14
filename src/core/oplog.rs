//! The chains of the operation log: for each stream the last entry held, and what may follow it.
//!
//! Nothing gets into the log that does not continue its stream: the next sequence number, the hash of the entry before,
//! a later time, the key of the stream's certificate. Entries are admitted in groups that end in a signature; an entry is
//! *durable* once the journal has it, and only then counted in the vector that peers see.

use std::collections::BTreeMap;
use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use thiserror::Error;

use super::clock::Timestamp;
use super::entry::{EntryError, Sealed};
use super::id::{ClusterId, Digest, EntryId, ServerName, Stream};
use super::merge::Files;
use super::version::Vector;

/// Received groups are put together under one signature up to this size.
const GROUP_BYTES: usize = 2 * 1024;

/// Tells whose key a certificate holds. Pure: the cluster CA's certificate is fixed when it is made.
pub trait Certifier: Send + Sync {
    /// The server and the Ed25519 key that the cluster CA has certified, whatever the time is now.
    fn certified(&self, certificate_der: &[u8]) -> Result<(ServerName, [u8; 32]), String>;
}

/// The last entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub seq: u64,
    pub hash: Digest,
    pub time: Timestamp,
    /// The Ed25519 key that signs the stream.
    pub public_key: [u8; 32],
    /// What proves that it is the origin's key, DER. `None`: the head comes from a checkpoint of version 1.
    pub certificate: Option<Arc<[u8]>>,
}

impl Head {
    /// The head that an entry makes which follows `before`.
    pub fn after(before: Option<&Head>, sealed: &Sealed) -> Self {
        Self {
            seq: sealed.id().seq,
            hash: sealed.hash(),
            time: sealed.entry().time,
            public_key: before.map_or([0; 32], |head| head.public_key),
            certificate: before.and_then(|head| head.certificate.clone()),
        }
    }

    /// Whether the cluster CA has certified the key for the origin of the stream.
    pub fn is_certified(&self, stream: &Stream, certifier: &dyn Certifier) -> bool {
        let certified = self.certificate.as_ref().and_then(|certificate| certifier.certified(certificate).ok());
        certified.is_some_and(|(name, key)| name == stream.origin && key == self.public_key)
    }
}

/// A whole state, and the chains that it continues: what a newcomer gets before the tail of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    pub files: Files,
    pub heads: BTreeMap<Stream, Head>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChainError {
    #[error("entry {id} does not follow: {held} is the last one held")]
    Gap { id: EntryId, held: u64 },
    #[error("entry {0} is not the entry that was held under this id: its origin has forked")]
    Fork(EntryId),
    #[error("entry {0} does not continue the hash chain of its stream")]
    Broken(EntryId),
    #[error("entry {0} is not later than the entry before it")]
    Time(EntryId),
    #[error("entry {0}: {1}")]
    Entry(EntryId, #[source] EntryError),
    #[error("the certificate in {0} is not valid: {1}")]
    Certificate(EntryId, String),
    #[error("the certificate in {0} is for {1}")]
    Origin(EntryId, ServerName),
    #[error("the entries up to {0} are not signed")]
    Unsigned(EntryId),
}

/// The heads of all streams.
#[derive(Clone, Default)]
pub struct Chains {
    heads: BTreeMap<Stream, Head>,
    /// Keys that have been unpacked before, which takes as long as a quarter of a verification.
    keys: BTreeMap<[u8; 32], VerifyingKey>,
}

impl Chains {
    pub fn new(heads: BTreeMap<Stream, Head>) -> Self {
        Self { heads, keys: BTreeMap::new() }
    }

    pub fn head(&self, stream: &Stream) -> Option<&Head> {
        self.heads.get(stream)
    }

    pub fn heads(&self) -> &BTreeMap<Stream, Head> {
        &self.heads
    }

    pub fn seq(&self, stream: &Stream) -> u64 {
        self.heads.get(stream).map_or(0, |head| head.seq)
    }

    pub fn vector(&self) -> Vector {
        self.heads.iter().map(|(stream, head)| (stream.clone(), head.seq)).collect()
    }

    /// The highest run known of an origin, 0 if none.
    pub fn last_run(&self, origin: &ServerName) -> u32 {
        self.heads.keys().filter(|stream| stream.origin == *origin).map(|stream| stream.run).max().unwrap_or(0)
    }

    /// Takes over the heads of a checkpoint where they are further.
    pub fn join(&mut self, heads: &BTreeMap<Stream, Head>) {
        for (stream, head) in heads {
            if self.seq(stream) < head.seq {
                self.heads.insert(stream.clone(), head.clone());
            }
        }
    }

    /// Checks entries of one stream against its head and returns those that are new and vouched for by a signature,
    /// with the head they make. Entries already held are skipped; entries behind the last signature are left out.
    ///
    /// # Errors
    /// The first entry that does not fit, and why. Nothing has changed then.
    pub fn admit(
        &mut self,
        cluster: ClusterId,
        certifier: &dyn Certifier,
        entries: &[Arc<Sealed>],
    ) -> Result<Option<Admitted>, ChainError> {
        let Some(first) = entries.first() else { return Ok(None) };
        let stream = &first.id().stream;
        let mut head = self.heads.get(stream).cloned();
        let mut admitted: Vec<Arc<Sealed>> = Vec::new();
        for (at, sealed) in entries.iter().enumerate() {
            let id = sealed.id();
            let held = head.as_ref().map_or(0, |head| head.seq);
            if id.seq <= held && admitted.is_empty() {
                if let Some(head) = &head
                    && id.seq == head.seq
                    && sealed.hash() != head.hash
                {
                    // Only the origin itself can fork; anybody can send an entry with a number that is taken.
                    return Err(match self.is_vouched(cluster, &head.public_key, &entries[at..]) {
                        true => ChainError::Fork(id.clone()),
                        false => ChainError::Entry(id.clone(), EntryError::Signature),
                    });
                }
                continue;
            }
            if id.stream != *stream || id.seq != held + 1 {
                return Err(ChainError::Gap { id: id.clone(), held });
            }
            head = Some(follow(head, sealed, certifier)?);
            admitted.push(sealed.clone());
        }
        let signed = admitted.iter().rposition(|sealed| sealed.signature().is_some());
        let Some(signed) = signed else {
            return match admitted.last() {
                Some(last) => Err(ChainError::Unsigned(last.id().clone())),
                None => Ok(None),
            };
        };
        admitted.truncate(signed + 1);
        let head = head.expect("there is a head once an entry was admitted");
        self.verify_signatures(cluster, &head.public_key, &mut admitted)?;
        let head = Head::after(Some(&head), &admitted[signed]);
        Ok(Some(Admitted { stream: stream.clone(), head, entries: admitted }))
    }

    /// Takes entries as they come, if only their numbers fit: a deliberate fault (`flaw`).
    pub fn admit_unverified(&self, entries: &[Arc<Sealed>]) -> Option<Admitted> {
        let stream = entries.first()?.id().stream.clone();
        let held = self.heads.get(&stream);
        let seq = held.map_or(0, |head| head.seq);
        let fresh: Vec<_> = entries.iter().filter(|sealed| sealed.id().seq > seq).cloned().collect();
        let last = fresh.last()?;
        let in_order = fresh.iter().zip(seq + 1..).all(|(sealed, seq)| sealed.id().seq == seq);
        let head = Head::after(held, last);
        in_order.then(|| Admitted { stream, head, entries: fresh.clone() })
    }

    /// Moves a head on to an entry that was sealed here, with the key of this certificate.
    pub fn advance(&mut self, sealed: &Sealed, public_key: [u8; 32], certificate: &Arc<[u8]>) {
        let certificate = Some(certificate.clone());
        let head = Head { public_key, certificate, ..Head::after(None, sealed) };
        self.heads.insert(sealed.id().stream.clone(), head);
    }

    pub fn set(&mut self, stream: Stream, head: Option<Head>) {
        match head {
            Some(head) => self.heads.insert(stream, head),
            None => self.heads.remove(&stream),
        };
    }

    /// Verifies the last signature, and of those before it as many as keep groups below [`GROUP_BYTES`]; drops the others.
    /// A hash does not cover a signature, so one that is kept without a look could be wrong, and be passed on.
    fn verify_signatures(
        &mut self,
        cluster: ClusterId,
        public_key: &[u8; 32],
        entries: &mut [Arc<Sealed>],
    ) -> Result<(), ChainError> {
        let (mut kept_bytes, mut group_bytes) = (0, 0);
        let mut before: Option<usize> = None;
        for at in 0..entries.len() {
            group_bytes += entries[at].entry().weight_bytes();
            if entries[at].signature().is_none() {
                continue;
            }
            if let Some(before) = before {
                if kept_bytes + group_bytes > GROUP_BYTES {
                    self.verify(cluster, public_key, &entries[before])?;
                    kept_bytes = 0;
                } else {
                    let unsigned = Sealed::clone(&entries[before]).without_signature();
                    entries[before] = Arc::new(unsigned);
                }
            }
            kept_bytes += group_bytes;
            group_bytes = 0;
            before = Some(at);
        }
        before.map_or(Ok(()), |last| self.verify(cluster, public_key, &entries[last]))
    }

    fn verify(&mut self, cluster: ClusterId, public_key: &[u8; 32], sealed: &Sealed) -> Result<(), ChainError> {
        let wrong = |error| ChainError::Entry(sealed.id().clone(), error);
        let key = match self.keys.get(public_key) {
            Some(key) => *key,
            None => {
                let key = VerifyingKey::from_bytes(public_key).map_err(|_| wrong(EntryError::Signature))?;
                *self.keys.entry(*public_key).or_insert(key)
            }
        };
        sealed.verify(cluster, &key).map_err(wrong)
    }

    /// Whether the first of some entries is covered by the next signature.
    fn is_vouched(&mut self, cluster: ClusterId, public_key: &[u8; 32], entries: &[Arc<Sealed>]) -> bool {
        let Some(signed) = entries.iter().position(|sealed| sealed.signature().is_some()) else { return false };
        let chained = entries[..=signed].windows(2).all(|pair| pair[1].entry().previous == pair[0].hash());
        chained && self.verify(cluster, public_key, &entries[signed]).is_ok()
    }
}

/// New entries of one stream, all checked.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub stream: Stream,
    pub head: Head,
    pub entries: Vec<Arc<Sealed>>,
}

/// The head that `sealed` makes if it may follow `head`.
///
/// # Errors
/// Every rule that it breaks but the signature's, which is checked once per group.
pub fn follow(head: Option<Head>, sealed: &Sealed, certifier: &dyn Certifier) -> Result<Head, ChainError> {
    let entry = sealed.entry();
    let id = || entry.id.clone();
    entry.check().map_err(|error| ChainError::Entry(id(), error))?;
    match (&head, &entry.certificate) {
        (None, Some(certificate)) => {
            let (name, key) = certifier.certified(certificate).map_err(|why| ChainError::Certificate(id(), why))?;
            if name != entry.id.stream.origin {
                return Err(ChainError::Origin(id(), name));
            }
            Ok(Head { public_key: key, certificate: Some(certificate.clone()), ..Head::after(None, sealed) })
        }
        (Some(head), None) => {
            if entry.previous != head.hash {
                return Err(ChainError::Broken(id()));
            }
            if entry.time <= head.time {
                return Err(ChainError::Time(id()));
            }
            Ok(Head::after(Some(head), sealed))
        }
        _ => Err(ChainError::Entry(id(), EntryError::Certificate)),
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::core::diff::{Change, Diff};
    use crate::core::entry::Entry;
    use crate::core::id::{FileName, Lane};
    use crate::core::priority::Class;
    use crate::core::record::Record;

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    /// Takes a certificate for the key itself, of S1.
    struct Trusting;

    impl Certifier for Trusting {
        fn certified(&self, certificate: &[u8]) -> Result<(ServerName, [u8; 32]), String> {
            Ok((ServerName::new("S1").unwrap(), certificate.try_into().unwrap()))
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    fn sealed(seq: u64, previous: Digest, value: &str, signed: bool) -> Arc<Sealed> {
        let stream = Stream { origin: ServerName::new("S1").unwrap(), run: 1, lane: Lane::Audit };
        let entry = Entry {
            id: EntryId { stream, seq },
            time: Timestamp(seq),
            class: Class::Transmission,
            author: String::new(),
            reason: String::new(),
            previous,
            certificate: (seq == 1).then(|| key().verifying_key().to_bytes().as_slice().into()),
            diffs: vec![Diff {
                file: FileName::new("Notes").unwrap(),
                key: "a".into(),
                change: Change::Add(Record::of(["a", value])),
                bases: Vec::new(),
            }],
        };
        let mut sealed = Sealed::new(entry, None);
        if signed {
            sealed.sign(CLUSTER, &key());
        }
        Arc::new(sealed)
    }

    fn admit(chains: &Chains, entries: &[Arc<Sealed>]) -> Result<Option<Admitted>, ChainError> {
        chains.clone().admit(CLUSTER, &Trusting, entries)
    }

    #[test]
    fn an_entry_under_a_taken_number_is_a_fork_only_if_its_origin_signed_it() {
        let first = sealed(1, Digest::ZERO, "1", true);
        let head = admit(&Chains::default(), std::slice::from_ref(&first)).unwrap().unwrap().head;
        let chains = Chains::new([(first.id().stream.clone(), head)].into());
        assert!(matches!(admit(&chains, &[sealed(1, Digest::ZERO, "2", true)]), Err(ChainError::Fork(_))));
        let unsigned = admit(&chains, &[sealed(1, Digest::ZERO, "2", false)]);
        assert!(matches!(unsigned, Err(ChainError::Entry(_, EntryError::Signature))));
        assert!(admit(&chains, &[first]).unwrap().is_none());
    }

    #[test]
    fn a_wrong_signature_before_the_last_one_is_not_kept() {
        let first = Sealed::clone(&sealed(1, Digest::ZERO, "1", false));
        let first = Arc::new(Sealed::new(first.entry().clone(), Some([9; 64])));
        let second = sealed(2, first.hash(), "2", true);
        let admitted = admit(&Chains::default(), &[first.clone(), second]).unwrap().unwrap();
        assert_eq!(admitted.head.seq, 2);
        assert!(admitted.entries[0].signature().is_none() && admitted.entries[1].signature().is_some());
        assert!(matches!(admit(&Chains::default(), &[first]), Err(ChainError::Entry(_, EntryError::Signature))));
    }

    #[test]
    fn signatures_that_keep_groups_small_are_kept() {
        let long = "x".repeat(GROUP_BYTES / 2);
        let mut previous = Digest::ZERO;
        let entries: Vec<_> = (1..=6)
            .map(|seq| {
                let entry = sealed(seq, previous, &long, true);
                previous = entry.hash();
                entry
            })
            .collect();
        let admitted = admit(&Chains::default(), &entries).unwrap().unwrap();
        assert!(admitted.entries.iter().all(|entry| entry.signature().is_some()));
    }
}
