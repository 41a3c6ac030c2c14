//! `Decision.dat`: what this server has promised, accepted and learned in the decision chain.
//!
//! One file: a header, frames, and zeros behind them, so that an append changes data only and seldom finds the disk full.
//! A thread of its own writes; everything that waits goes with one fdatasync. [`DecisionLog::persist`] only hands over; what
//! comes of it goes to the `notify` function given to [`open`].
//!
//! Invariants:
//! - `Persisted` is told once per `persist`, in order, after its records are durable.
//! - A vote that may have been told is never lost in silence: a torn tail, which nobody was told of, is cut off with a
//!   warning; any other damage keeps the server from starting. (Damage to the very last write looks like a torn one.)
//! - A full disk delays, it loses nothing: the write is tried again until there is room.
//! - After a failed write or sync nothing is written any more.
//! - Promises and acceptances of decided slots are dropped when the file is written anew, beside the old one.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

use super::journal::JournalError;
use super::journal::error::is_no_room;
use super::journal::segment_files::{write_durably, write_zeros};
use crate::core::chain::{ChainRecord, DECISIONS_MAX, Memory, OutOfOrder};
use crate::core::decision::Incarnation;
use crate::core::id::ClusterId;
use crate::format::FormatError;
use crate::format::decision::{
    DecisionHeader, append_records, decode_decision_header, encode_decision_header, scan_records,
};
use crate::format::segment::End;

/// The name of the file in a node's directory.
pub const FILE_NAME: &str = "Decision.dat";
/// Zeros that are kept behind the last record, in bytes, when the file grows.
const SPARE_BYTES: u64 = 64 << 10;
/// The file is written anew once this much of it is of no use any more, in bytes, and that is more than half.
const WASTE_BYTES: u64 = 256 << 10;
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// How long to wait before trying again on a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// Why the file could not be opened, read or written.
#[derive(Debug, Error)]
pub enum DecisionLogError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{}: {source}; {LOST}", path.display())]
    Format { path: PathBuf, source: FormatError },
    #[error("{}: {source}; {LOST}", path.display())]
    Order { path: PathBuf, source: OutOfOrder },
    #[error(
        "{} belongs to cluster {found}, this server to {expected}; it has come here by mistake: move it away",
        path.display()
    )]
    Foreign { path: PathBuf, found: ClusterId, expected: ClusterId },
    #[error("{}: the bytes from offset {at} to {resumes_at} are damaged; {LOST}", path.display())]
    Damaged { path: PathBuf, at: u64, resumes_at: u64 },
    #[error("{} has {bytes} bytes; it cannot be so large: {LOST}", path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error(
        "writing to {} failed: {source}; what is on that disk cannot be relied upon any more: check the disk and start again",
        path.display()
    )]
    Disk { path: PathBuf, source: io::Error },
}

/// What to do when the memory of votes is lost.
const LOST: &str = "never put back an older copy: this server would break its promises. Move the file away and start again: \
     the decisions are fetched from the other servers, and the group admits this server's votes anew";

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecisionLogWarning {
    #[error("Decision.dat: an unfinished write at offset {offset} was cut off; nobody was told of it")]
    TornTail { offset: u64 },
}

#[derive(Debug)]
pub enum DecisionLogEvent {
    /// The records of the oldest unanswered `persist` are durable.
    Persisted,
    /// There is no room on the disk: this server cannot vote until there is.
    NoRoom,
    /// There is room again.
    Room,
    /// Nothing is written any more.
    Fatal(DecisionLogError),
}

/// Told from the writing thread.
pub type Notify = Arc<dyn Fn(DecisionLogEvent) + Send + Sync>;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionFile {
    pub header: DecisionHeader,
    pub memory: Memory,
    /// Where the records end, and how.
    pub end: End,
}

/// The file, open for writing.
pub struct Opened {
    pub log: DecisionLog,
    pub incarnation: Incarnation,
    pub memory: Memory,
    pub warnings: Vec<DecisionLogWarning>,
}

pub struct DecisionLog {
    commands: Option<Sender<Vec<ChainRecord>>>,
    thread: Option<JoinHandle<()>>,
}

/// Reads the file of a node without a lock, also while its daemon writes it. A write under way is not seen.
///
/// # Errors
/// When it cannot be read, is damaged before its end, or is no such file.
pub fn read(directory: &Path) -> Result<DecisionFile, DecisionLogError> {
    let path = directory.join(FILE_NAME);
    let bytes = match fs::metadata(&path).map(|meta| meta.len()) {
        Ok(bytes) if bytes > FILE_BYTES_MAX => return Err(DecisionLogError::TooLarge { path, bytes }),
        Ok(_) => fs::read(&path),
        Err(source) => Err(source),
    };
    let bytes = bytes.map_err(|source| DecisionLogError::Io { action: "read", path: path.clone(), source })?;
    let format = |source| DecisionLogError::Format { path: path.clone(), source };
    let header = decode_decision_header(&bytes).map_err(format)?;
    let (records, end) = scan_records(&bytes).map_err(format)?;
    if let End::Damaged { at, resumes_at } = end {
        return Err(DecisionLogError::Damaged { path, at: at as u64, resumes_at: resumes_at as u64 });
    }
    let mut memory = Memory::default();
    for record in records {
        memory.replay(record).map_err(|source| DecisionLogError::Order { path: path.clone(), source })?;
    }
    Ok(DecisionFile { header, memory, end })
}

/// Opens the file of a node, or makes it, in the incarnation given and at the time given (Unix milliseconds).
///
/// # Errors
/// When it cannot be read or written, is damaged, or is another cluster's. Nothing has changed then.
pub fn open(
    directory: &Path,
    cluster: ClusterId,
    new: Incarnation,
    now_ms: u64,
    notify: Notify,
) -> Result<Opened, DecisionLogError> {
    let path = directory.join(FILE_NAME);
    let exists =
        fs::exists(&path).map_err(|source| DecisionLogError::Io { action: "find", path: path.clone(), source })?;
    if !exists {
        let header = DecisionHeader { cluster, incarnation: new, created_ms: now_ms };
        write_whole(&path, &header, &Memory::default())?;
    }
    let DecisionFile { header, memory, end } = read(directory)?;
    if header.cluster != cluster {
        return Err(DecisionLogError::Foreign { path, found: header.cluster, expected: cluster });
    }
    let writer = Writer::open(path, header, memory.clone(), end.at() as u64)?;
    let mut warnings = Vec::new();
    if let End::Torn { at } = end {
        writer.cut_off_tail()?;
        warnings.push(DecisionLogWarning::TornTail { offset: at as u64 });
    }
    let (commands, received) = channel();
    let thread = std::thread::Builder::new().name("decision-log".into()).spawn(move || writer.run(&received, &notify));
    let thread = thread.map_err(|source| DecisionLogError::Io {
        action: "start the thread that writes",
        path: directory.join(FILE_NAME),
        source,
    })?;
    let log = DecisionLog { commands: Some(commands), thread: Some(thread) };
    Ok(Opened { log, incarnation: header.incarnation, memory, warnings })
}

impl DecisionLog {
    /// Hands over records to be made durable; answered by one `Persisted`.
    pub fn persist(&self, records: Vec<ChainRecord>) {
        let commands = self.commands.as_ref().expect("it is taken only when the log is dropped");
        // A thread that has stopped has told why.
        let _ = commands.send(records);
    }
}

impl Drop for DecisionLog {
    /// Finishes what was handed over, unless there is no room for it.
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    header: DecisionHeader,
    memory: Memory,
    /// Where the next record goes.
    at: u64,
    /// How long the file is, zeros included.
    bytes: u64,
    /// Where the records ended when the file was last written anew.
    whole_bytes: u64,
    /// What was handed over and is not written yet.
    waiting: VecDeque<Vec<ChainRecord>>,
}

impl Writer {
    fn open(path: PathBuf, header: DecisionHeader, memory: Memory, at: u64) -> Result<Self, DecisionLogError> {
        let io = |source| DecisionLogError::Io { action: "open", path: path.clone(), source };
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let whole_bytes = whole(&header, &memory).len() as u64;
        Ok(Self { path, file, header, memory, at, bytes, whole_bytes, waiting: VecDeque::new() })
    }

    /// Puts zeros over a write that was not finished.
    fn cut_off_tail(&self) -> Result<(), DecisionLogError> {
        let cut = write_zeros(&self.file, self.at, self.bytes).and_then(|()| self.file.sync_all());
        cut.map_err(|source| DecisionLogError::Disk { path: self.path.clone(), source })
    }

    fn run(mut self, commands: &Receiver<Vec<ChainRecord>>, notify: &Notify) {
        while let Some(first) = self.waiting.pop_front().or_else(|| commands.recv().ok()) {
            self.waiting.extend(commands.try_iter());
            let (mut records, mut batches) = (first, 1);
            while let Some(more) = self.waiting.pop_front_if(|more| records.len() + more.len() <= DECISIONS_MAX) {
                records.extend(more);
                batches += 1;
            }
            match self.write(records, commands, notify) {
                Ok(true) => (0..batches).for_each(|_| notify(DecisionLogEvent::Persisted)),
                Ok(false) => return,
                Err(error) => return notify(DecisionLogEvent::Fatal(error)),
            }
            if let Err(error) = self.shrink() {
                return notify(DecisionLogEvent::Fatal(error));
            }
        }
    }

    /// Writes records durably. `false`: the daemon stops while there is no room.
    fn write(
        &mut self,
        records: Vec<ChainRecord>,
        commands: &Receiver<Vec<ChainRecord>>,
        notify: &Notify,
    ) -> Result<bool, DecisionLogError> {
        let mut frame = Vec::new();
        append_records(&records, &mut frame);
        for record in records {
            let order = |source| DecisionLogError::Order { path: self.path.clone(), source };
            self.memory.replay(record).map_err(order)?;
        }
        if !self.make_room(frame.len() as u64, commands, notify)? {
            return Ok(false);
        }
        let written = self.file.write_all_at(&frame, self.at).and_then(|()| self.file.sync_data());
        written.map_err(|source| DecisionLogError::Disk { path: self.path.clone(), source })?;
        self.at += frame.len() as u64;
        Ok(true)
    }

    /// Makes the file longer if it has to be, and waits for room if there is none.
    fn make_room(
        &mut self,
        bytes: u64,
        commands: &Receiver<Vec<ChainRecord>>,
        notify: &Notify,
    ) -> Result<bool, DecisionLogError> {
        let mut told = false;
        let needed = self.at + bytes;
        while needed > self.bytes {
            let longer = needed + SPARE_BYTES;
            match write_zeros(&self.file, self.bytes, longer).and_then(|()| self.file.sync_all()) {
                Ok(()) => self.bytes = longer,
                Err(error) if is_no_room(&error) => {
                    if !std::mem::replace(&mut told, true) {
                        notify(DecisionLogEvent::NoRoom);
                    }
                    match commands.recv_timeout(RETRY) {
                        Ok(records) => self.waiting.push_back(records),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return Ok(false),
                    }
                }
                Err(source) => return Err(DecisionLogError::Disk { path: self.path.clone(), source }),
            }
        }
        if told {
            notify(DecisionLogEvent::Room);
        }
        Ok(true)
    }

    /// Writes the file anew if most of it is about slots that have been decided.
    fn shrink(&mut self) -> Result<(), DecisionLogError> {
        if self.at < 2 * self.whole_bytes + WASTE_BYTES {
            return Ok(());
        }
        match write_whole(&self.path, &self.header, &self.memory) {
            Ok(()) => {}
            // The old file is as good.
            Err(error) if error.is_no_room() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let at = whole(&self.header, &self.memory).len() as u64;
        let new = Self::open(self.path.clone(), self.header, std::mem::take(&mut self.memory), at)?;
        *self = Self { waiting: std::mem::take(&mut self.waiting), ..new };
        Ok(())
    }
}

/// Header and the fewest records.
fn whole(header: &DecisionHeader, memory: &Memory) -> Vec<u8> {
    let mut bytes = encode_decision_header(header).to_vec();
    memory.records().chunks(DECISIONS_MAX).for_each(|records| append_records(records, &mut bytes));
    bytes
}

fn write_whole(path: &Path, header: &DecisionHeader, memory: &Memory) -> Result<(), JournalError> {
    write_durably(path, |file| {
        let bytes = whole(header, memory);
        file.write_all(&bytes)?;
        write_zeros(file, bytes.len() as u64, bytes.len() as u64 + SPARE_BYTES)
    })
}
