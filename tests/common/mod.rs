//! Builders of entries for the tests of formats and of the journal.
#![allow(dead_code)]

#[cfg(feature = "daemon")]
pub mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use p2pdb::core::clock::Timestamp;
use p2pdb::core::diff::{Change, Diff};
use p2pdb::core::entry::{Entry, Sealed};
use p2pdb::core::id::{ClusterId, Digest, EntryId, FileName, Lane, ServerName, Stream};
use p2pdb::core::merge::Files;
use p2pdb::core::oplog::{Certifier, Head};
use p2pdb::core::priority::Class;
use p2pdb::core::record::Record;
use p2pdb::core::version::Version;

pub const CLUSTER: ClusterId = ClusterId([0xc1; 16]);

pub fn record(line: &str) -> Record {
    Record::parse(line).unwrap()
}

/// The fixed key of an origin.
pub fn signing_key(origin: &str) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(origin.as_bytes()).as_bytes())
}

/// Takes a certificate of the form `certificate of NAME`.
pub struct TestCertifier;

impl Certifier for TestCertifier {
    fn certified(&self, certificate_der: &[u8]) -> Result<(ServerName, [u8; 32]), String> {
        let text = std::str::from_utf8(certificate_der).map_err(|error| error.to_string())?;
        let name = text.strip_prefix("certificate of ").ok_or("it is no certificate")?;
        let server = ServerName::new(name).map_err(|error| error.to_string())?;
        Ok((server, signing_key(name).verifying_key().to_bytes()))
    }
}

/// Seals entries of one stream, one after the other.
pub struct Origin {
    pub stream: Stream,
    key: SigningKey,
    seq: u64,
    previous: Digest,
    time: Timestamp,
    written: BTreeMap<String, Version>,
}

impl Origin {
    pub fn new(name: &str, run: u32, lane: Lane) -> Self {
        let stream = Stream { origin: ServerName::new(name).unwrap(), run, lane };
        let time = Timestamp::from_wall_ms(1_700_000_000_000);
        Self { stream, key: signing_key(name), seq: 0, previous: Digest::ZERO, time, written: BTreeMap::new() }
    }

    /// The next entry, signed. Each change is a file, a key and the record, or none for a deletion.
    pub fn entry(&mut self, changes: &[(&str, &str, Option<&str>)]) -> Arc<Sealed> {
        self.sealed(diffs(changes))
    }

    /// A small signed entry in a file that fits the lane; it builds on the last one with the same key.
    pub fn small(&mut self) -> Arc<Sealed> {
        let diffs = self.small_diffs();
        self.sealed(diffs)
    }

    /// The same without a signature.
    pub fn small_unsigned(&mut self) -> Arc<Sealed> {
        let diffs = self.small_diffs();
        Arc::new(self.seal(diffs))
    }

    fn small_diffs(&mut self) -> Vec<Diff> {
        let key = format!("s{}", self.seq % 100);
        let mut diffs = match self.stream.lane {
            Lane::Audit => diffs(&[("Notes", &key, Some(&format!("{key}, some text {}", self.seq)))]),
            Lane::Volatile => diffs(&[("Condition", &key, Some(&format!("{key}, 0.5, 0.5, 0.5, {}", self.seq)))]),
        };
        let id = EntryId { stream: self.stream.clone(), seq: self.seq + 1 };
        let version = Version { time: Timestamp(self.time.0 + 1), entry: id };
        diffs[0].bases = self.written.insert(key, version).into_iter().collect();
        diffs
    }

    pub fn unsigned(&mut self, changes: &[(&str, &str, Option<&str>)]) -> Arc<Sealed> {
        Arc::new(self.seal(diffs(changes)))
    }

    pub fn sealed(&mut self, diffs: Vec<Diff>) -> Arc<Sealed> {
        let mut sealed = self.seal(diffs);
        sealed.sign(CLUSTER, &self.key);
        Arc::new(sealed)
    }

    pub fn advance_ms(&mut self, by_ms: u64) {
        self.time = Timestamp::from_wall_ms(self.time.wall_ms() + by_ms);
    }

    fn seal(&mut self, diffs: Vec<Diff>) -> Sealed {
        self.seq += 1;
        self.time = Timestamp(self.time.0 + 1);
        let certificate = (self.seq == 1).then(|| format!("certificate of {}", self.stream.origin).into_bytes());
        let sealed = Sealed::new(
            Entry {
                id: EntryId { stream: self.stream.clone(), seq: self.seq },
                time: self.time,
                class: Class::Transmission,
                author: "root".into(),
                reason: "test".into(),
                previous: self.previous,
                certificate: certificate.map(Arc::from),
                diffs,
            },
            None,
        );
        self.previous = sealed.hash();
        sealed
    }
}

fn diffs(changes: &[(&str, &str, Option<&str>)]) -> Vec<Diff> {
    let diff = |&(file, key, line): &(&str, &str, Option<&str>)| Diff {
        file: FileName::new(file).unwrap(),
        key: key.into(),
        change: match line {
            Some(line) => Change::Add(record(line)),
            None => Change::Del(record(key)),
        },
        bases: Vec::new(),
    };
    changes.iter().map(diff).collect()
}

/// The files that entries make.
pub fn files_of(entries: &[Arc<Sealed>]) -> Files {
    let mut files = Files::default();
    entries.iter().for_each(|sealed| files.apply(sealed.entry()));
    files
}

/// The heads that entries make.
pub fn heads_of(entries: &[Arc<Sealed>]) -> BTreeMap<Stream, Head> {
    let mut heads = BTreeMap::new();
    for sealed in entries {
        let id = sealed.id();
        let public_key = signing_key(id.stream.origin.as_str()).verifying_key().to_bytes();
        let before: Option<Head> = heads.get(&id.stream).cloned();
        let certificate = sealed.entry().certificate.clone().or(before.and_then(|head| head.certificate));
        heads.insert(id.stream.clone(), Head { public_key, certificate, ..Head::after(None, sealed) });
    }
    heads
}
