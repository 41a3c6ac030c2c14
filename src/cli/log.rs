//! Where `dump`, `replay`, `verify` and `files history` get entries from: the seam to the log reader.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::Failure;
use crate::core::entry::Sealed;
use crate::core::id::{ClusterId, Stream};
use crate::core::oplog::{Checkpoint, Head};

/// One entry as it lies in a log.
#[derive(Debug, Clone)]
pub struct Logged {
    pub sealed: Arc<Sealed>,
    pub place: Place,
}

/// Where an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at {}", self.path.display(), self.offset)
    }
}

/// Log files that are all of one cluster.
#[derive(Debug)]
pub struct Log {
    cluster: ClusterId,
    base: Option<Checkpoint>,
}

impl Log {
    /// Finds the log files at these paths: servers' directories, log folders, segments and archives.
    ///
    /// # Errors
    /// There is none, one cannot be read, or they are of different clusters.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Failure> {
        let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Err(Failure::storage(format!("{}: the log reader is not wired yet", shown.join(", ")), ""))
    }

    /// Refuses a log of another cluster.
    pub fn expect_cluster(&self, expected: ClusterId) -> Result<(), Failure> {
        if self.cluster == expected {
            return Ok(());
        }
        Err(Failure::input(
            format!("the log is of cluster {}, not of {expected}", self.cluster),
            "give the paths and the ca.crt of one cluster",
        ))
    }

    /// The state that the log begins with, if its first segments are gone.
    pub fn base(&self) -> Option<&Checkpoint> {
        self.base.as_ref()
    }

    /// The last entries of each stream that only the base holds.
    pub fn heads(&self) -> BTreeMap<Stream, Head> {
        self.base.as_ref().map(|base| base.heads.clone()).unwrap_or_default()
    }

    /// Bytes of all files, for progress.
    pub fn bytes(&self) -> u64 {
        0
    }

    /// The entries in the order in which they arrived; with `follow`, without end.
    pub fn entries(self, follow: bool) -> Entries {
        let _ = follow;
        Entries {}
    }
}

/// Reads entries one by one.
#[derive(Debug)]
pub struct Entries {}

impl Entries {
    /// Whether the next entry is there without waiting.
    pub fn has_more_at_once(&self) -> bool {
        false
    }

    /// For progress.
    pub fn bytes_read(&self) -> u64 {
        0
    }
}

impl Iterator for Entries {
    type Item = Result<Logged, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        None
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::core::clock::Timestamp;
    use crate::core::diff::{Change, Diff};
    use crate::core::entry::Entry;
    use crate::core::id::{Digest, EntryId, FileName, Lane, ServerName};
    use crate::core::priority::Class;
    use crate::core::record::Record;
    use crate::core::schema::Schema;
    use crate::edge::certificate::{Authority, AuthorityCertificate, Credentials, generate_key, issue_certificate};

    /// Makes genuine entries of one server of a cluster of its own.
    pub struct Author {
        authority: Authority,
        credentials: Credentials,
        stream: Stream,
        seq: u64,
        previous: Digest,
        pub time_ms: u64,
    }

    impl Author {
        pub fn new(name: &str) -> Self {
            let authority = Authority::generate(1_800_000_000_000, 1 << 40).unwrap();
            let key = generate_key().unwrap();
            let origin = ServerName::new(name).unwrap();
            let public_key = key.verifying_key().to_bytes();
            let der = issue_certificate(&authority, &origin, &public_key, 1_800_000_000_000, 1 << 40).unwrap();
            let credentials = Credentials::new(&der, key, authority.certificate()).unwrap();
            let stream = Stream { origin, run: 0x6b49_d200, lane: Lane::Audit };
            Self { authority, credentials, stream, seq: 0, previous: Digest::ZERO, time_ms: 1_800_000_000_000 }
        }

        pub fn authority(&self) -> AuthorityCertificate {
            self.authority.certificate().clone()
        }

        pub fn add(&mut self, file: &str, record: &str) -> Arc<Sealed> {
            self.change(file, Change::Add(Record::parse(record).unwrap()))
        }

        pub fn change(&mut self, file: &str, change: Change) -> Arc<Sealed> {
            let file = FileName::new(file).unwrap();
            let schema = Schema::builtin(&file).unwrap_or_else(Schema::any);
            let key = match &change {
                Change::Add(record) | Change::Del(record) | Change::Mod { after: record, .. } => schema.key_of(record),
            };
            self.seq += 1;
            self.time_ms += 1000;
            let certificate = (self.seq == 1).then(|| Arc::from(self.credentials.certificate.as_ref()));
            let mut sealed = Sealed::new(
                Entry {
                    id: EntryId { stream: self.stream.clone(), seq: self.seq },
                    time: Timestamp::from_wall_ms(self.time_ms),
                    class: Class::Transmission,
                    author: "root".into(),
                    reason: "a test".into(),
                    previous: self.previous,
                    certificate,
                    diffs: vec![Diff { file, key, change, bases: Vec::new() }],
                },
                None,
            );
            sealed.sign(self.authority.certificate().cluster(), &self.credentials.key);
            self.previous = sealed.hash();
            Arc::new(sealed)
        }
    }
}
