//! `Diff.dat` on disk: the log of all entries that this server holds, and the truth about its files.
//!
//! A directory of numbered segments. Each is filled with zeros when it is made, so that an append changes data only, never
//! sizes, and cannot find the disk full. A committer thread writes everything that waits in one go and calls fdatasync once
//! for it; a second thread has the next segment ready before it is needed; a third answers reads; a fourth writes
//! checkpoints and archives segments. The methods of [`Journal`] only hand over work and never wait; what comes of it
//! goes to the `notify` function given to [`open`], from any of the threads.
//!
//! Invariants:
//! - An entry is durable before `Appended` is told, and is in the index only once it is durable.
//! - In the log each stream's numbers rise by one, except where a checkpoint bridges a gap; an entry that only a
//!   checkpoint connects to what was before is written after that checkpoint is durable.
//! - A segment is removed only when the older of the two checkpoints that are kept holds all of it, and after its
//!   audit-lane frames are durable in an archive.
//! - After a failed write or sync nothing is written any more: [`JournalEvent::Fatal`] (what a failed fsync leaves on a
//!   disk is unknown, and a second one may succeed without having written anything).

pub(crate) mod archive;
mod committer;
pub(crate) mod error;
mod index;
mod keeper;
mod reads;
mod recovery;
pub(crate) mod segment_files;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use self::committer::{Committer, OpenSegment, SpareSlot};
use self::index::Index;
use self::keeper::Keeper;
use self::segment_files::Places;
use crate::core::entry::Sealed;
use crate::core::id::{ClusterId, ServerName, Stream};
use crate::core::io::Input;
use crate::core::oplog::{Certifier, Checkpoint, Head};
use crate::core::version::Vector;

pub use self::error::{JournalError, RecoveryWarning};

/// Smallest and largest segment, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 10;
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// What to do with archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveRetention {
    Forever,
    Days(u32),
}

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// The node's directory; the log is `Diff.dat` in it.
    pub directory: PathBuf,
    pub cluster: ClusterId,
    /// Size of a segment, brought between [`SEGMENT_BYTES_MIN`] and [`SEGMENT_BYTES_MAX`].
    pub segment_bytes: u64,
    /// So much of the log stays live at least, in bytes and in milliseconds, for peers that were away.
    pub keep_live_bytes: u64,
    pub keep_live_ms: u64,
    /// So much of it stays live at most, however young it is.
    pub keep_live_bytes_max: u64,
    pub archives: ArchiveRetention,
    /// Compression level of archives, 1 to 19.
    pub zstd_level: i32,
}

impl JournalConfig {
    /// The defaults for a node's directory.
    pub fn new(directory: &Path, cluster: ClusterId) -> Self {
        Self {
            directory: directory.to_owned(),
            cluster,
            segment_bytes: 8 << 20,
            keep_live_bytes: 64 << 20,
            keep_live_ms: 24 * 3600 * 1000,
            keep_live_bytes_max: 1 << 30,
            archives: ArchiveRetention::Forever,
            zstd_level: 3,
        }
    }
}

/// The wall clock: Unix time in milliseconds.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What the journal has to tell.
#[derive(Debug)]
pub enum JournalEvent {
    /// For the node: `Appended`, `AppendFailed`, `Room`, `Read`, `CheckpointStored`, `CheckpointFailed` or `Archived`.
    Input(Input),
    /// Nothing can be written any more: the daemon must stop.
    Fatal(JournalError),
    /// Something is not as it should be, and the journal goes on.
    Warning(String),
}

pub type Notify = Arc<dyn Fn(JournalEvent) + Send + Sync>;

/// A piece of the state that a log holds, in order: at most one checkpoint, then entries.
#[derive(Debug)]
pub enum Replayed {
    Checkpoint(Box<Checkpoint>),
    Entry(Arc<Sealed>),
}

/// What was found when the log was opened.
#[derive(Debug)]
pub struct Recovered {
    /// The last entry of each stream: of the checkpoint, moved on by the log.
    pub heads: BTreeMap<Stream, Head>,
    /// For each stream the highest number that the live log cannot serve.
    pub floor: Vector,
    pub warnings: Vec<RecoveryWarning>,
    pub segments: usize,
    /// Entries that were handed out.
    pub replayed: u64,
    /// Entries that the live log can serve.
    pub entries: u64,
    /// Bytes in use by them.
    pub bytes: u64,
}

/// Figures for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub segments: usize,
    pub entries: u64,
    /// Bytes of entries in the live log, and of its files with the room ahead.
    pub live_bytes: u64,
    pub file_bytes: u64,
    /// Groups that were committed since the start, entries in them, and the time that their syncs took, sum and longest,
    /// in microseconds.
    pub syncs: u64,
    pub appended: u64,
    pub sync_us: u64,
    pub sync_us_max: u64,
}

/// A log that is open for writing. Whoever opens it holds the directory's lock.
pub struct Journal {
    shared: Arc<Shared>,
    commits: Sender<committer::Command>,
    reads: Sender<reads::Command>,
    keeps: Sender<keeper::Command>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens the log of a node, or begins one; hands out its state through `on_item`.
///
/// # Errors
/// A foreign cluster, another version, a missing segment, a file that is no segment, a directory that cannot be
/// read or written. Damage is no error: it is repaired and told in [`Recovered::warnings`].
pub fn open(
    mut config: JournalConfig,
    certifier: &dyn Certifier,
    clock: WallClock,
    notify: Notify,
    mut on_item: impl FnMut(Replayed),
) -> Result<(Journal, Recovered), JournalError> {
    config.segment_bytes = config.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    let places = Places::of_node(&config.directory);
    if !config.directory.is_dir() {
        return Err(JournalError::NotADirectory(config.directory));
    }
    let log = recovery::recover(&config, &places, certifier, clock(), &mut on_item)?;
    let opened = |number: u64| -> Result<OpenSegment, JournalError> {
        let state = &log.segments[&number];
        let file = segment_files::open_segment(&state.path)?;
        Ok(OpenSegment { number, path: state.path.clone(), file, at: state.end, bytes: state.file_bytes })
    };
    let current = log.current.map(opened).transpose()?;
    let mut spares = log.spares.iter().map(|&number| opened(number)).collect::<Result<VecDeque<_>, _>>()?;
    let mut segments = BTreeMap::new();
    for (&number, state) in &log.segments {
        let form = Segment { end: state.end, file_bytes: state.file_bytes, newest_ms: state.newest_ms };
        segments.insert(number, form);
    }
    let header_bytes = crate::format::segment::SEGMENT_HEADER_BYTES as u64;
    let recovered = Recovered {
        heads: log.heads,
        floor: log.index.floor(),
        warnings: log.warnings,
        segments: segments.len(),
        replayed: log.replayed,
        entries: log.index.entries(),
        bytes: segments.values().map(|segment| segment.end.saturating_sub(header_bytes)).sum(),
    };
    let slot = SpareSlot::new(spares.pop_front(), log.next_number);
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            index: log.index,
            segments,
            active: log.current.unwrap_or(0),
            checkpoints_waiting: 0,
            keeper_gone: false,
            usage: Usage::default(),
        }),
        checkpoint_stored: Condvar::new(),
        slot: Mutex::new(slot),
        slot_changed: Condvar::new(),
        config,
        places,
        clock,
        notify,
    });
    Ok((Journal::start(shared, current, spares, log.checkpoint)?, recovered))
}

impl Journal {
    fn start(
        shared: Arc<Shared>,
        current: Option<OpenSegment>,
        spares: VecDeque<OpenSegment>,
        checkpoint: Option<(u64, Vector)>,
    ) -> Result<Self, JournalError> {
        let (commits, commands) = channel();
        let committer = Committer::new(shared.clone(), current, spares);
        let mut threads = vec![spawn("journal-commit", move || committer.run(&commands))?];
        let preparer = shared.clone();
        threads.push(spawn("journal-prepare", move || committer::prepare_spares(&preparer))?);
        let (reads, commands) = channel();
        let reader = shared.clone();
        threads.push(spawn("journal-read", move || reads::run(&reader, &commands))?);
        let (keeps, commands) = channel();
        let keeper = Keeper::new(shared.clone(), checkpoint);
        threads.push(spawn("journal-keep", move || keeper.run(&commands))?);
        Ok(Self { shared, commits, reads, keeps, threads })
    }

    /// Makes entries durable; answered by `Appended` or `AppendFailed`, one for each call.
    pub fn append(&self, batch: Vec<Arc<Sealed>>) {
        // A committer that is gone has told why by `Fatal`.
        let _ = self.commits.send(committer::Command::Append(batch));
    }

    /// Reads consecutive entries; answered by `Read`, with none if the live log does not hold the first. At least one entry
    /// is given if it is held, even if it alone is larger than `bytes_max`.
    pub fn read(&self, peer: ServerName, stream: Stream, from: u64, to: u64, bytes_max: usize) {
        let _ = self.reads.send(reads::Command::Read { peer, stream, from, to, bytes_max });
    }

    /// Keeps a checkpoint, durably; answered by `CheckpointStored`, and by `Archived` if segments could leave the live log then. Where
    /// it does not fit, by `CheckpointFailed`, and by `Room` when it would.
    /// Entries given to `append` afterwards that continue what only the checkpoint holds are written after it.
    pub fn store_checkpoint(&self, checkpoint: Box<Checkpoint>) {
        lock(&self.shared.state).checkpoints_waiting += 1;
        let _ = self.keeps.send(keeper::Command::Store(checkpoint));
    }

    /// The newest checkpoint on disk, in the form of `format::checkpoint`, for sending.
    pub fn checkpoint_path(&self) -> Result<Option<PathBuf>, JournalError> {
        let found = segment_files::numbered(&self.shared.places.log, segment_files::CHECKPOINT_SUFFIX)?;
        Ok(found.into_values().next_back())
    }

    /// For each stream the highest number that the live log cannot serve.
    pub fn floor(&self) -> Vector {
        lock(&self.shared.state).index.floor()
    }

    /// What is certain to fit while nothing else is being appended: the rest of the segment that is written to.
    pub fn room_bytes(&self) -> u64 {
        let state = lock(&self.shared.state);
        state.segments.get(&state.active).map_or(0, |segment| segment.file_bytes.saturating_sub(segment.end))
    }

    pub fn usage(&self) -> Usage {
        let state = lock(&self.shared.state);
        let header_bytes = crate::format::segment::SEGMENT_HEADER_BYTES as u64;
        Usage {
            segments: state.segments.len(),
            entries: state.index.entries(),
            live_bytes: state.segments.values().map(|segment| segment.end.saturating_sub(header_bytes)).sum(),
            file_bytes: state.segments.values().map(|segment| segment.file_bytes).sum(),
            ..state.usage
        }
    }

    /// Finishes all work that was handed over, and stops.
    pub fn close(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let _ = self.commits.send(committer::Command::Close);
        let _ = self.reads.send(reads::Command::Close);
        let _ = self.keeps.send(keeper::Command::Close);
        // The committer may be waiting for a segment, so it goes before the one that makes them.
        let mut threads = std::mem::take(&mut self.threads).into_iter();
        join(threads.next());
        lock(&self.shared.slot).stop();
        self.shared.slot_changed.notify_all();
        threads.for_each(|thread| join(Some(thread)));
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the threads share.
struct Shared {
    state: Mutex<State>,
    checkpoint_stored: Condvar,
    slot: Mutex<SpareSlot>,
    slot_changed: Condvar,
    config: JournalConfig,
    places: Places,
    clock: WallClock,
    notify: Notify,
}

impl Shared {
    fn tell(&self, input: Input) {
        (self.notify)(JournalEvent::Input(input));
    }

    fn warn(&self, text: impl ToString) {
        (self.notify)(JournalEvent::Warning(text.to_string()));
    }

    fn fatal(&self, error: JournalError) {
        (self.notify)(JournalEvent::Fatal(error));
    }

    fn await_room(&self, bytes: u64) {
        lock(&self.slot).await_room(bytes);
        self.slot_changed.notify_all();
    }
}

struct State {
    index: Index,
    segments: BTreeMap<u64, Segment>,
    /// The segment that is written to; 0 before the first.
    active: u64,
    checkpoints_waiting: usize,
    keeper_gone: bool,
    usage: Usage,
}

struct Segment {
    end: u64,
    file_bytes: u64,
    newest_ms: u64,
}

/// A panic in another thread leaves nothing half done under these locks that matters more than going on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, JournalError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map_err(JournalError::io("start the thread", Path::new(name)))
}

fn join(thread: Option<JoinHandle<()>>) {
    // A thread that panicked has printed why; there is nothing to add while stopping.
    let _ = thread.map(JoinHandle::join);
}
