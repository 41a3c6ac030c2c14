//! Where `dump`, `replay`, `verify` and `files history` get entries from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::{Failure, Report};
use crate::core::entry::Sealed;
use crate::core::id::ClusterId;
use crate::core::oplog::Checkpoint;
use crate::edge::log_reader::{LogError, LogItem, LogReader, Position};

/// How long a follower waits before it looks whether the reader of its output is still there.
const FOLLOW_WAIT: Duration = Duration::from_secs(1);

/// One piece of a log.
#[derive(Debug)]
pub enum Piece {
    Entry(Logged),
    Damage(Damage),
}

/// One entry as it lies in a log.
#[derive(Debug, Clone)]
pub struct Logged {
    pub sealed: Arc<Sealed>,
    pub place: Position,
}

/// Bytes that are no entries.
#[derive(Debug, Clone)]
pub struct Damage {
    pub place: Position,
    pub bytes: u64,
    pub why: String,
}

impl Damage {
    pub fn text(&self) -> String {
        format!("{}: {} bytes are damaged: {}", self.place, self.bytes, self.why)
    }
}

/// Log files that are all of one cluster.
pub struct Log {
    reader: LogReader,
}

impl Log {
    /// Finds the log files at these paths: servers' directories, log folders, segments and archives.
    ///
    /// # Errors
    /// There is none, one cannot be read, or they are of different clusters.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Failure> {
        Ok(Self { reader: LogReader::open(paths)? })
    }

    /// Refuses a log of another cluster.
    pub fn expect_cluster(&self, expected: ClusterId) -> Result<(), Failure> {
        match self.reader.cluster() {
            Some(found) if found != expected => Err(Failure::input(
                format!("the log is of cluster {found}, not of {expected}"),
                "give the paths and the ca.crt of one cluster",
            )),
            _ => Ok(()),
        }
    }

    /// The newest checkpoint of each log folder.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.reader.checkpoints().iter().map(|(_, checkpoint)| checkpoint)
    }

    /// The next piece in the order in which the log was written; `None` at the end for now.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, Failure> {
        Ok(self.reader.next_item()?.map(|item| match item {
            LogItem::Entry { sealed, position: place, .. } => Piece::Entry(Logged { sealed, place }),
            LogItem::Damage { position: place, bytes, why } => Piece::Damage(Damage { place, bytes, why }),
        }))
    }

    /// Waits a while until there may be more.
    pub fn wait(&self) {
        self.reader.wait(FOLLOW_WAIT);
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Failure::Storage(Report::of(error))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::core::clock::Timestamp;
    use crate::core::diff::{Change, Diff};
    use crate::core::entry::Entry;
    use crate::core::id::{Digest, EntryId, FileName, Lane, ServerName, Stream};
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

        /// The same server's other lane.
        pub fn volatile(&mut self) {
            self.stream.lane = Lane::Volatile;
            (self.seq, self.previous) = (0, Digest::ZERO);
        }

        pub fn authority(&self) -> AuthorityCertificate {
            self.authority.certificate().clone()
        }

        pub fn certificate(&self) -> Option<Arc<[u8]>> {
            Some(Arc::from(self.credentials.certificate.as_ref()))
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
