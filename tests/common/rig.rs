//! A log in a directory of its own, and what is done to it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use p2pdb::core::entry::Sealed;
use p2pdb::core::id::{ServerName, Stream};
use p2pdb::core::io::Input;
use p2pdb::core::merge::Files;
use p2pdb::core::oplog::Checkpoint;
use p2pdb::edge::journal::{self, Journal, JournalConfig, JournalError, JournalEvent, Recovered, Replayed};
use p2pdb::edge::log_reader::{LogItem, LogReader};
use p2pdb::format::segment::{SEGMENT_HEADER_BYTES, scan_frames};

use super::{CLUSTER, Origin, TestCertifier, files_of, heads_of};

pub struct Rig {
    pub directory: tempfile::TempDir,
    pub config: JournalConfig,
    pub clock_ms: Arc<AtomicU64>,
}

pub struct Open {
    pub journal: Journal,
    pub recovered: Recovered,
    pub files: Files,
    pub entries: Vec<Arc<Sealed>>,
    pub events: Receiver<JournalEvent>,
}

impl Rig {
    /// In memory if the system has such a place: what a sync takes on a busy disk is not what these tests are about.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        Self::within(if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap())
    }

    pub fn on_disk() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    pub fn within(directory: tempfile::TempDir) -> Self {
        let mut config = JournalConfig::new(directory.path(), CLUSTER);
        config.segment_bytes = 16 << 10;
        Self { directory, config, clock_ms: Arc::new(AtomicU64::new(1_800_000_000_000)) }
    }

    pub fn try_open(&self) -> Result<Open, JournalError> {
        let clock_ms = self.clock_ms.clone();
        let (sender, events) = channel();
        let mut files = Files::default();
        let mut entries = Vec::new();
        let on_item = |item| match item {
            Replayed::Checkpoint(checkpoint) => files = checkpoint.files,
            Replayed::Entry(sealed) => {
                files.apply(sealed.entry());
                entries.push(sealed);
            }
        };
        let notify = Arc::new(move |event| drop(sender.send(event)));
        let clock = Arc::new(move || clock_ms.load(Ordering::SeqCst));
        let (journal, recovered) = journal::open(self.config.clone(), &TestCertifier, clock, notify, on_item)?;
        Ok(Open { journal, recovered, files, entries, events })
    }

    pub fn open(&self) -> Open {
        self.try_open().unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("Diff.dat").join(name)
    }

    pub fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = fs::read_dir(self.path("")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
        paths.sort();
        paths
    }

    /// Offset and length of each frame of a segment.
    pub fn frames(&self, path: &Path) -> Vec<(u64, u64)> {
        let bytes = fs::read(path).unwrap();
        let scan = scan_frames(&bytes, SEGMENT_HEADER_BYTES);
        scan.frames.iter().map(|frame| (frame.offset as u64, (frame.end() - frame.offset) as u64)).collect()
    }

    pub fn flip(&self, path: &Path, at: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    pub fn snapshot(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut waiting = vec![self.directory.path().to_owned()];
        while let Some(directory) = waiting.pop() {
            for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                match path.is_dir() {
                    true => waiting.push(path),
                    false => found.push((path.clone(), fs::read(&path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }

    pub fn read_log(&self) -> Vec<LogItem> {
        read_all(&[self.directory.path().to_owned()])
    }
}

pub fn read_all(paths: &[PathBuf]) -> Vec<LogItem> {
    let mut reader = LogReader::open(paths).unwrap_or_else(|error| panic!("{error}"));
    std::iter::from_fn(|| reader.next_item().unwrap()).collect()
}

impl Open {
    pub fn next_input(&self) -> Input {
        match self.events.recv_timeout(Duration::from_secs(20)).expect("the journal answers") {
            JournalEvent::Input(input) => input,
            other => panic!("{other:?}"),
        }
    }

    pub fn append(&self, batch: Vec<Arc<Sealed>>) {
        self.journal.append(batch);
        assert!(matches!(self.next_input(), Input::Appended));
    }

    pub fn read(&self, stream: &Stream, from: u64, to: u64, bytes_max: usize) -> Vec<Arc<Sealed>> {
        self.journal.read(ServerName::new("peer").unwrap(), stream.clone(), from, to, bytes_max);
        match self.next_input() {
            Input::Read { entries, .. } => entries,
            other => panic!("{other:?}"),
        }
    }

    pub fn store(&self, checkpoint: Checkpoint) {
        self.journal.store_checkpoint(Box::new(checkpoint));
        assert!(matches!(self.next_input(), Input::CheckpointStored { .. }));
    }
}

pub fn checkpoint_of(entries: &[Arc<Sealed>]) -> Checkpoint {
    Checkpoint { files: files_of(entries), heads: heads_of(entries) }
}

pub fn some(origin: &mut Origin, count: usize) -> Vec<Arc<Sealed>> {
    (0..count).map(|_| origin.small()).collect()
}
