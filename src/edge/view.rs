//! The view: the management files as sled trees, a projection of the log that can be deleted at any time.
//!
//! One tree per management file, `file/NAME`, from a record's key to its register; and a tree `meta` with the format version, the
//! vector of the entries that are in, and for each file the number and the digest of its registers. A batch of registers
//! and what `meta` says of them go in by one transaction. One thread writes; what waits is coalesced to the last value per key, so
//! the queue is bounded by the number of records. Everything sled holds is checked when it is opened; on any doubt, a panic inside sled
//! included, the folder is moved aside and an empty view begins, which the caller fills again with [`View::rewrite`].
//!
//! sled never calls fsync, loses tails silently and does not sync values beyond 128 KiB: hence the digests, the log as the only
//! truth, and long values in pieces.

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sled::Transactional;
use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionalTree, UnabortableTransactionError,
};
use thiserror::Error;

use crate::core::id::FileName;
use crate::core::merge::{Files, Register, Written};
use crate::core::version::Vector;
use crate::format::view::{
    Summary, VIEW_VERSION, decode_register, decode_summary, decode_vector, encode_register, encode_summary,
    encode_vector, register_digest,
};

/// Most registers in one transaction.
const BATCH_MAX: usize = 500;
/// How far the thread stands back, as `nice` counts.
const NICENESS: i32 = 10;
/// How long to wait for more before a batch is written.
const LINGER: Duration = Duration::from_millis(250);
/// Longest value that goes into sled in one piece, in bytes.
const PIECE_BYTES_MAX: usize = 96 << 10;
const CACHE_BYTES: u64 = 4 << 20;
const FLUSH_EVERY_MS: u64 = 500;

/// The file in which sled keeps everything, and which it locks.
const DATABASE_FILE: &str = "db";
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

const META_TREE: &str = "meta";
const FILE_TREE_PREFIX: &str = "file/";
const KEY_VERSION: &str = "version";
const KEY_SEEN: &str = "seen";
/// Absent or 1 if what is in makes a whole state, 0 between the parts of a projection that takes several transactions.
const KEY_WHOLE: &str = "whole";
const KEY_SUMMARY_PREFIX: &str = "summary/";

#[derive(Debug, Error)]
pub enum ViewError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is held by another program; stop it: only the daemon uses the view", .0.display())]
    Held(PathBuf),
}

/// The view, open for writing.
pub struct View {
    shared: Arc<Shared>,
    directory: PathBuf,
    thread: Option<JoinHandle<()>>,
}

/// A view that has been opened.
pub struct Opened {
    pub view: View,
    /// What the view holds, all of it checked; `None` if it was new or in doubt.
    pub state: Option<Files>,
    /// Why the old view was moved aside.
    pub reason_for_rebuild: Option<String>,
}

impl View {
    /// Opens the view in a directory, or begins one. With the vector of the log given, a view that is ahead of it is in doubt.
    ///
    /// Where no new view can be made, as on a full disk, this life has none ([`View::failure`] tells): nothing depends on
    /// it but the time of the next start.
    ///
    /// # Errors
    /// When the view is held by another program, or cannot be moved aside.
    pub fn open(directory: &Path, log: Option<&Vector>) -> Result<Opened, ViewError> {
        let existed = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
        let mut reason_for_rebuild = None;
        if existed {
            // That it is held says nothing about what is in it: it must not count as a doubt.
            if !wait_until_released(directory) {
                return Err(ViewError::Held(directory.join(DATABASE_FILE)));
            }
            match guarded(|| load(directory, log)) {
                Ok((trees, state)) => {
                    let view = Self::start(directory, trees)?;
                    return Ok(Opened { view, state: Some(state), reason_for_rebuild: None });
                }
                Err(why) => {
                    move_aside(directory)?;
                    reason_for_rebuild = Some(why);
                }
            }
        }
        let view = match guarded(|| begin(directory)) {
            Ok(trees) => Self::start(directory, trees)?,
            Err(why) => Self::none(directory, format!("cannot open a new view in {}: {why}", directory.display())),
        };
        Ok(Opened { view, state: None, reason_for_rebuild })
    }

    /// A view that keeps nothing.
    fn none(directory: &Path, why: String) -> Self {
        let queue = Queue { failed: Some(why), ..Queue::default() };
        let shared = Shared { queue: Mutex::new(queue), changed: Condvar::new() };
        Self { shared: Arc::new(shared), directory: directory.to_owned(), thread: None }
    }

    fn start(directory: &Path, trees: Trees) -> Result<Self, ViewError> {
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        let thread = std::thread::Builder::new().name("view".into()).spawn(move || write_all(&writer, trees));
        let thread = thread.map_err(|source| ViewError::Io {
            action: "start the thread of",
            path: PathBuf::from("view"),
            source,
        })?;
        Ok(Self { shared, directory: directory.to_owned(), thread: Some(thread) })
    }

    /// Puts registers in; `seen` holds once they are. Returns at once.
    pub fn project(&self, written: Vec<Written>, seen: Vector) {
        let mut queue = self.shared.lock();
        if queue.failed.is_some() {
            return;
        }
        for Written { file, key, register } in written {
            queue.pending.entry(file).or_default().insert(key, register);
        }
        queue.seen = Some(seen);
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Makes the view hold these files; `known` is what it holds now. Returns at once: only what differs is written, in
    /// the background.
    pub fn rewrite(&self, files: &Files, known: Option<&Files>) {
        let mut written = Vec::new();
        for (name, file) in files.iter() {
            let known = known.and_then(|known| known.file(name));
            for (key, register) in file.registers() {
                if known.and_then(|known| known.register(key)) != Some(register) {
                    written.push(Written { file: name.clone(), key: key.to_owned(), register: register.clone() });
                }
            }
        }
        if !written.is_empty() || known.is_none_or(|known| known.seen() != files.seen()) {
            self.project(written, files.seen().clone());
        }
    }

    /// Registers that wait to be written.
    pub fn waiting(&self) -> usize {
        self.shared.lock().pending.values().map(BTreeMap::len).sum()
    }

    /// Why nothing is written any more, if so. A view that stands still is harmless: it is brought up to date, or
    /// rebuilt, at the next start.
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failed.clone()
    }

    /// Writes all that waits, and stops.
    pub fn close(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        // A writer that panicked has left its reason in `failed`.
        if self.thread.take().map(JoinHandle::join).is_some() {
            wait_until_released(&self.directory);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Queue {
    pending: BTreeMap<FileName, BTreeMap<String, Register>>,
    /// What is in once all that is pending is.
    seen: Option<Vector>,
    stopping: bool,
    failed: Option<String>,
}

type Batch = BTreeMap<FileName, Vec<(String, Register)>>;

fn write_all(shared: &Shared, mut trees: Trees) {
    // Nobody waits for the view: it gives way to the threads that edits wait for. Where it may not, nothing is lost.
    let _ = rustix::process::setpriority_process(None, NICENESS);
    loop {
        let mut queue = shared.lock();
        while queue.seen.is_none() && !queue.stopping {
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if !queue.stopping {
            drop(queue);
            std::thread::sleep(LINGER);
            queue = shared.lock();
        }
        let pending = std::mem::take(&mut queue.pending);
        let Some(seen) = queue.seen.take() else { break };
        drop(queue);
        if let Err(why) = guarded(|| trees.write(pending, &seen)) {
            let mut queue = shared.lock();
            queue.failed = Some(why);
            break;
        }
    }
    // Closing flushes; what it cannot flush is written again after the next start.
    let _ = guarded(move || {
        let flushed = trees.database.flush();
        drop(trees);
        flushed.map(drop).map_err(|error| error.to_string())
    });
}

/// Runs something that uses sled, which may panic where it should return an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    super::caught("sled", work).flatten()
}

struct Trees {
    database: sled::Db,
    meta: sled::Tree,
    files: BTreeMap<FileName, sled::Tree>,
    summaries: BTreeMap<FileName, Summary>,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn open_database(directory: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::new().path(directory).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS));
    config.open().map_err(text)
}

fn begin(directory: &Path) -> Result<Trees, String> {
    let database = open_database(directory)?;
    let meta = database.open_tree(META_TREE).map_err(text)?;
    meta.insert(KEY_VERSION, &VIEW_VERSION.to_le_bytes()).map_err(text)?;
    Ok(Trees { database, meta, files: BTreeMap::new(), summaries: BTreeMap::new() })
}

/// Opens what is there, and checks everything that can be checked.
fn load(directory: &Path, log: Option<&Vector>) -> Result<(Trees, Files), String> {
    let database = open_database(directory)?;
    let meta = database.open_tree(META_TREE).map_err(text)?;
    let version = meta.get(KEY_VERSION).map_err(text)?.ok_or("it does not tell its format version")?;
    if version.as_ref() != VIEW_VERSION.to_le_bytes() {
        return Err(format!("its format version is {version:?}, not {VIEW_VERSION}"));
    }
    if meta.get(KEY_WHOLE).map_err(text)?.is_some_and(|value| value.as_ref() != [1]) {
        return Err("the last projection was not finished".into());
    }
    let seen = match meta.get(KEY_SEEN).map_err(text)? {
        Some(bytes) => decode_vector(&bytes).map_err(text)?,
        None => Vector::default(),
    };
    if log.is_some_and(|log| !log.covers(&seen)) {
        return Err("it is ahead of the log".into());
    }
    let mut summaries = BTreeMap::new();
    for item in meta.scan_prefix(KEY_SUMMARY_PREFIX) {
        let (key, value) = item.map_err(text)?;
        let name = file_name(&key, KEY_SUMMARY_PREFIX)?;
        summaries.insert(name, decode_summary(&value).map_err(text)?);
    }
    let mut files = BTreeMap::new();
    let mut registers = Vec::new();
    for tree_name in database.tree_names() {
        if !tree_name.starts_with(FILE_TREE_PREFIX.as_bytes()) {
            continue;
        }
        let name = file_name(&tree_name, FILE_TREE_PREFIX)?;
        let tree = database.open_tree(&tree_name).map_err(text)?;
        let summary = load_file(&name, &tree, &mut registers)?;
        if summaries.get(&name).copied().unwrap_or_default() != summary {
            return Err(format!("the file {name} does not add up"));
        }
        files.insert(name, tree);
    }
    if let Some((name, _)) = summaries.iter().find(|(name, _)| !files.contains_key(*name)) {
        return Err(format!("the file {name} is missing"));
    }
    Ok((Trees { database, meta, files, summaries }, Files::restore(registers, seen)))
}

fn load_file(name: &FileName, tree: &sled::Tree, registers: &mut Vec<Written>) -> Result<Summary, String> {
    let mut summary = Summary::default();
    for item in tree.iter() {
        let (key, first) = item.map_err(text)?;
        if key.contains(&0) {
            continue;
        }
        let value = join(&key, &first, |piece| tree.get(piece).map_err(text))?;
        let key = String::from_utf8(key.to_vec()).map_err(text)?;
        summary.registers += 1;
        summary.toggle(register_digest(&key, &value));
        registers.push(Written { file: name.clone(), key, register: decode_register(&value).map_err(text)? });
    }
    Ok(summary)
}

fn file_name(key: &[u8], prefix: &str) -> Result<FileName, String> {
    let name = std::str::from_utf8(&key[prefix.len()..]).map_err(text)?;
    FileName::new(name).map_err(text)
}

impl Trees {
    /// Writes registers, and then that `seen` is in.
    fn write(&mut self, pending: BTreeMap<FileName, BTreeMap<String, Register>>, seen: &Vector) -> Result<(), String> {
        let mut batches: Vec<Batch> = vec![Batch::new()];
        let mut count = 0;
        for (file, registers) in pending {
            for (key, register) in registers {
                if count == BATCH_MAX {
                    batches.push(Batch::new());
                    count = 0;
                }
                count += 1;
                let batch = batches.last_mut().expect("there is one from the start");
                batch.entry(file.clone()).or_default().push((key, register));
            }
        }
        let last = batches.len() - 1;
        for (number, batch) in batches.into_iter().enumerate() {
            self.write_batch(&batch, (number == last).then_some(seen))?;
        }
        Ok(())
    }

    fn write_batch(&mut self, batch: &Batch, seen: Option<&Vector>) -> Result<(), String> {
        for name in batch.keys() {
            if !self.files.contains_key(name) {
                let tree = self.database.open_tree(format!("{FILE_TREE_PREFIX}{name}")).map_err(text)?;
                self.files.insert(name.clone(), tree);
            }
        }
        let encoded: Vec<Vec<(&str, Vec<u8>)>> = batch
            .values()
            .map(|registers| {
                registers.iter().map(|(key, register)| (key.as_str(), encode_register(register))).collect()
            })
            .collect();
        let trees: Vec<&sled::Tree> =
            batch.keys().map(|name| &self.files[name]).chain(std::iter::once(&self.meta)).collect();
        let summaries = &self.summaries;
        let written = trees.as_slice().transaction(|trees| {
            let (meta, files) = trees.split_last().expect("the last tree is always meta");
            let mut after = Vec::with_capacity(files.len());
            for ((tree, name), registers) in files.iter().zip(batch.keys()).zip(&encoded) {
                let mut summary = summaries.get(name).copied().unwrap_or_default();
                for (key, value) in registers {
                    replace(tree, key, value, &mut summary)?;
                }
                meta.insert(format!("{KEY_SUMMARY_PREFIX}{name}").as_bytes(), encode_summary(&summary))?;
                after.push(summary);
            }
            if let Some(seen) = seen {
                meta.insert(KEY_SEEN.as_bytes(), encode_vector(seen))?;
            }
            meta.insert(KEY_WHOLE.as_bytes(), &[u8::from(seen.is_some())])?;
            Ok::<_, ConflictableTransactionError<String>>(after)
        });
        let after = written.map_err(|error| match error {
            TransactionError::Abort(why) => why,
            TransactionError::Storage(error) => error.to_string(),
        })?;
        self.summaries.extend(batch.keys().cloned().zip(after));
        Ok(())
    }
}

/// Puts a value in the place of the one before, and keeps the sum.
fn replace(
    tree: &TransactionalTree,
    key: &str,
    value: &[u8],
    summary: &mut Summary,
) -> Result<(), ConflictableTransactionError<String>> {
    let mut stale = 0;
    match tree.get(key)? {
        Some(first) => {
            let whole = join(key.as_bytes(), &first, |piece| tree.get(piece).map_err(storage));
            let whole = whole.map_err(ConflictableTransactionError::Abort)?;
            summary.toggle(register_digest(key, &whole));
            stale = pieces_of(&first).unwrap_or(0);
        }
        None => summary.registers += 1,
    }
    summary.toggle(register_digest(key, value));
    let mut pieces = 0;
    if value.len() <= PIECE_BYTES_MAX {
        let mut stored = Vec::with_capacity(value.len() + 1);
        stored.push(WHOLE);
        stored.extend_from_slice(value);
        tree.insert(key.as_bytes(), stored)?;
    } else {
        for piece in value.chunks(PIECE_BYTES_MAX) {
            tree.insert(piece_key(key.as_bytes(), pieces), piece)?;
            pieces += 1;
        }
        let mut stored = vec![IN_PIECES];
        stored.extend_from_slice(&pieces.to_le_bytes());
        tree.insert(key.as_bytes(), stored)?;
    }
    for number in pieces..stale {
        tree.remove(piece_key(key.as_bytes(), number))?;
    }
    Ok(())
}

fn storage(error: UnabortableTransactionError) -> String {
    format!("{error:?}")
}

const WHOLE: u8 = 0;
const IN_PIECES: u8 = 1;

/// A control character is in no record, so no key of a record looks like the key of a piece.
fn piece_key(key: &[u8], number: u32) -> Vec<u8> {
    let mut piece = key.to_vec();
    piece.push(0);
    piece.extend_from_slice(&number.to_be_bytes());
    piece
}

fn pieces_of(first: &[u8]) -> Option<u32> {
    let (&form, count) = first.split_first()?;
    (form == IN_PIECES).then(|| count.try_into().ok().map(u32::from_le_bytes))?
}

/// The whole value under a key, whose stored value is `first`.
fn join(
    key: &[u8],
    first: &[u8],
    mut get: impl FnMut(Vec<u8>) -> Result<Option<sled::IVec>, String>,
) -> Result<Vec<u8>, String> {
    match (first.first(), pieces_of(first)) {
        (Some(&WHOLE), _) => Ok(first[1..].to_vec()),
        (_, Some(pieces)) => {
            let mut value = Vec::new();
            for number in 0..pieces {
                let piece = get(piece_key(key, number))?;
                value.extend_from_slice(&piece.ok_or("a piece of a long value is missing")?);
            }
            Ok(value)
        }
        _ => Err("a value has no known form".into()),
    }
}

/// Waits until nobody holds the database's lock: sled's background threads go on using the file for a moment after
/// the database was closed. False if it is held for longer than that can take.
fn wait_until_released(directory: &Path) -> bool {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let locked = fs::File::open(directory.join(DATABASE_FILE)).map(|file| file.try_lock());
        if !matches!(locked, Ok(Err(TryLockError::WouldBlock))) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Keeps the newest doubtful view for whoever wants to know, and no more than one.
fn move_aside(directory: &Path) -> Result<(), ViewError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ViewError::Io { action, path, source }
    };
    let parent = directory.parent().unwrap_or(Path::new("."));
    let name = directory.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
    let prefix = format!("{name}.broken-");
    for entry in fs::read_dir(parent).map_err(failed("read", parent))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_dir_all(entry.path()).map_err(failed("remove", &entry.path()))?;
        }
    }
    let modified = fs::metadata(directory).and_then(|metadata| metadata.modified());
    let since = modified.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let aside = parent.join(format!("{prefix}{}", since.map_or(0, |since| since.as_millis())));
    fs::rename(directory, &aside).map_err(failed("move aside", directory))
}
