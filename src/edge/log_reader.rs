//! Reading logs without a lock: a running node's `Diff.dat`, archives, segments that were copied somewhere.
//!
//! Entries come in the order of the log with the place where they lie. Nothing is written, ever. A log that is being
//! written ends where its last whole frame ends; asking again later goes on from there, into later segments too.
//! Damage is told with its place and passed over. Whether entries are right is for others to check; how an entry
//! stands to the one before it in its stream is told with it. All inputs must be of one cluster.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::journal::archive;
use super::journal::segment_files::{self, ARCHIVE_SUFFIX, CHECKPOINT_SUFFIX, SEGMENT_SUFFIX};
use crate::core::entry::Sealed;
use crate::core::id::{ClusterId, Digest, Stream};
use crate::core::oplog::Checkpoint;
use crate::edge::journal::JournalError;
use crate::format::checkpoint::checkpoint_cluster;
use crate::format::segment::{
    ARCHIVE_HEADER_BYTES, End, FRAME_HEAD_BYTES, FRAME_PAYLOAD_MAX, Frame, SEGMENT_HEADER_BYTES, decode_archive_header,
    decode_segment_header, scan_frames,
};
use crate::format::{FormatError, decode_checkpoint, decode_sealed};

#[derive(Debug, Error)]
pub enum LogError {
    #[error("{} is no log: give a node's directory, a Diff.dat directory, or .seg and .zst files", .0.display())]
    NotALog(PathBuf),
    #[error(
        "{} belongs to cluster {first}, {} to cluster {second}; read the logs of one cluster at a time",
        first_path.display(), second_path.display()
    )]
    Clusters { first_path: PathBuf, first: ClusterId, second_path: PathBuf, second: ClusterId },
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Format { path: PathBuf, source: FormatError },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A place in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub path: Arc<Path>,
    /// Bytes from the start of the file; in an archive, of what it unpacks to.
    pub offset: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} at offset {}", self.path.display(), self.offset)
    }
}

/// How an entry stands to those of its stream that came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The first that is seen of its stream, whatever its number.
    First,
    /// It continues the stream.
    Next,
    /// Numbers are left out between `held` and this one.
    Jump { held: u64 },
    /// It has been seen, or one with a higher number has.
    Repeated,
    /// Its number is the next, but it does not name the hash of the entry before.
    Broken,
}

/// What a log gives.
#[derive(Debug)]
pub enum LogItem {
    Entry { sealed: Arc<Sealed>, position: Position, standing: Standing },
    Damage { position: Position, bytes: u64, why: String },
}

/// Reads one or several logs.
pub struct LogReader {
    sources: VecDeque<Source>,
    loaded: Option<Loaded>,
    heads: BTreeMap<Stream, (u64, Digest)>,
    checkpoints: Vec<(PathBuf, Checkpoint)>,
    damages: VecDeque<LogItem>,
    cluster: Option<ClusterId>,
    torn: Option<Position>,
}

enum Source {
    /// A log directory, and the number from which on its files are still to be read.
    Live {
        log: PathBuf,
        from: u64,
    },
    Segment(PathBuf),
    Archive(PathBuf),
}

/// A file in memory, or what has not been read of it yet.
struct Loaded {
    path: Arc<Path>,
    /// Offset in the file of the first byte in memory.
    base: u64,
    bytes: Vec<u8>,
    frames: VecDeque<Frame>,
    end: End,
    /// Set for a segment, which may still grow.
    file: Option<File>,
    /// Damage is told at once in files that nobody writes to, and on the second look in others.
    looked_again: bool,
}

impl LogReader {
    /// Opens node directories, `Diff.dat` directories, segments and archives, to be read in the order given.
    ///
    /// # Errors
    /// What is no log, what cannot be read, another format version, and inputs of different clusters.
    pub fn open(paths: &[PathBuf]) -> Result<Self, LogError> {
        let mut reader = Self {
            sources: VecDeque::new(),
            loaded: None,
            heads: BTreeMap::new(),
            checkpoints: Vec::new(),
            damages: VecDeque::new(),
            cluster: None,
            torn: None,
        };
        let mut clusters: Option<(PathBuf, ClusterId)> = None;
        for path in paths {
            let (source, files) = classify(path)?;
            for file in files {
                let Some(found) = cluster_of(&file)? else { continue };
                match &clusters {
                    Some((first_path, first)) if *first != found => {
                        return Err(LogError::Clusters {
                            first_path: first_path.clone(),
                            first: *first,
                            second_path: file,
                            second: found,
                        });
                    }
                    Some(_) => {}
                    None => clusters = Some((file, found)),
                }
            }
            reader.sources.push_back(source);
        }
        reader.cluster = clusters.map(|(_, cluster)| cluster);
        reader.load_checkpoints()?;
        Ok(reader)
    }

    /// The cluster of all inputs; `None` if they hold nothing at all.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The newest intact checkpoint of each log directory, with its place.
    pub fn checkpoints(&self) -> &[(PathBuf, Checkpoint)] {
        &self.checkpoints
    }

    /// Where the last log ends in bytes that are no whole frame: an unfinished write, or one that is going on now.
    pub fn torn_tail(&self) -> Option<&Position> {
        self.torn.as_ref()
    }

    /// The next item; `None` at the end for now. If the last input is a directory, asking again gives what has been written since.
    pub fn next_item(&mut self) -> Result<Option<LogItem>, LogError> {
        loop {
            if let Some(damage) = self.damages.pop_front() {
                return Ok(Some(damage));
            }
            if let Some(item) = self.take_frame() {
                return Ok(Some(item));
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Waits until there may be more to read, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        const LOOK_EVERY: Duration = Duration::from_millis(10);
        let deadline = std::time::Instant::now() + timeout;
        loop {
            if self.loaded.as_ref().is_some_and(Loaded::has_grown) || self.next_has_begun() {
                return;
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }

    fn load_checkpoints(&mut self) -> Result<(), LogError> {
        for source in &self.sources {
            let (Source::Live { log, .. }, Some(cluster)) = (source, self.cluster) else { continue };
            for (_, path) in segment_files::numbered(log, CHECKPOINT_SUFFIX)?.into_iter().rev() {
                // One that has just been replaced by a newer one is no loss.
                let Ok(bytes) = fs::read(&path) else { continue };
                match decode_checkpoint(&bytes, cluster) {
                    Ok(checkpoint) => {
                        self.checkpoints.push((path, checkpoint));
                        break;
                    }
                    Err(damage) => {
                        let position = Position { path: Arc::from(path.as_path()), offset: 0 };
                        let bytes = bytes.len() as u64;
                        self.damages.push_back(LogItem::Damage { position, bytes, why: damage.to_string() });
                    }
                }
            }
        }
        Ok(())
    }

    fn take_frame(&mut self) -> Option<LogItem> {
        let loaded = self.loaded.as_mut()?;
        let frame = loaded.frames.pop_front()?;
        let position = Position { path: loaded.path.clone(), offset: loaded.base + frame.offset as u64 };
        let sealed = match decode_sealed(frame.payload(&loaded.bytes)) {
            Ok(sealed) => Arc::new(sealed),
            Err(error) => {
                let bytes = (frame.end() - frame.offset) as u64;
                return Some(LogItem::Damage { position, bytes, why: error.to_string() });
            }
        };
        let standing = self.stand(&sealed);
        Some(LogItem::Entry { sealed, position, standing })
    }

    fn stand(&mut self, sealed: &Sealed) -> Standing {
        let id = sealed.id();
        let Some((held, hash)) = self.heads.get_mut(&id.stream) else {
            self.heads.insert(id.stream.clone(), (id.seq, sealed.hash()));
            return Standing::First;
        };
        let standing = match id.seq {
            seq if seq <= *held => return Standing::Repeated,
            seq if seq > *held + 1 => Standing::Jump { held: *held },
            _ if sealed.entry().previous != *hash => Standing::Broken,
            _ => Standing::Next,
        };
        (*held, *hash) = (id.seq, sealed.hash());
        standing
    }

    /// Gets more frames into memory; false if there are none for now.
    fn advance(&mut self) -> Result<bool, LogError> {
        if let Some(loaded) = &mut self.loaded {
            if loaded.has_grown() {
                loaded.read_on()?;
                if !loaded.frames.is_empty() {
                    self.torn = None;
                    return Ok(true);
                }
            }
            if let End::Damaged { at, resumes_at } = loaded.end {
                if loaded.file.is_some() && !std::mem::replace(&mut loaded.looked_again, true) {
                    std::thread::sleep(Duration::from_millis(20));
                    loaded.read_on()?;
                    return Ok(true);
                }
                self.damages.push_back(loaded.damage(at, resumes_at, "the checksum does not match"));
                loaded.resume(resumes_at);
                return Ok(true);
            }
        }
        let Some((next, source_done)) = self.next_file()? else {
            self.torn = self.loaded.as_ref().and_then(Loaded::torn_at);
            return Ok(false);
        };
        if let Some(loaded) = &mut self.loaded {
            // The segment was complete before the next one was begun; what came since the last look counts.
            if loaded.has_grown() {
                loaded.read_on()?;
                if !loaded.frames.is_empty() {
                    return Ok(true);
                }
            }
            if let End::Torn { at } = loaded.end {
                let end = loaded.bytes.len();
                self.damages.push_back(loaded.damage(at, end, "it is no frame, and the log goes on in the next file"));
            }
        }
        match source_done {
            Some(number) => {
                if let Some(Source::Live { from, .. }) = self.sources.front_mut() {
                    *from = number + 1;
                }
            }
            None => drop(self.sources.pop_front()),
        }
        self.load(&next)?;
        Ok(true)
    }

    fn next_has_begun(&self) -> bool {
        matches!(self.next_file_of(0), Ok(Some(_)))
    }

    /// The next file to read; for one of a directory, its number. Goes on to the next source when one is done.
    fn next_file(&mut self) -> Result<Option<(PathBuf, Option<u64>)>, LogError> {
        loop {
            if let Some(found) = self.next_file_of(0)? {
                return Ok(Some(found));
            }
            // The last source stays, as it may grow.
            if self.sources.len() <= 1 {
                return Ok(None);
            }
            self.sources.pop_front();
        }
    }

    fn next_file_of(&self, index: usize) -> Result<Option<(PathBuf, Option<u64>)>, LogError> {
        match self.sources.get(index) {
            None => Ok(None),
            Some(Source::Segment(path) | Source::Archive(path)) => Ok(Some((path.clone(), None))),
            Some(Source::Live { log, from }) => {
                let mut files = segment_files::numbered(&log.join("archive"), ARCHIVE_SUFFIX)?;
                let segments = segment_files::numbered(log, SEGMENT_SUFFIX)?;
                // A segment that is there counts, even if it has been archived already.
                files.extend(segments);
                // An empty segment in front of one with content was emptied by damage; at the end it is the room ahead.
                let has_next = files.range(*from..).any(|(_, path)| has_content(path));
                let next = files.range(*from..).next().filter(|_| has_next);
                Ok(next.map(|(&number, path)| (path.clone(), Some(number))))
            }
        }
    }

    fn load(&mut self, path: &Path) -> Result<(), LogError> {
        if path.extension().is_some_and(|extension| extension == ARCHIVE_SUFFIX) {
            let content = archive::read(path, self.cluster)?;
            self.loaded = Some(Loaded {
                path: Arc::from(path),
                base: 0,
                bytes: content.bytes,
                frames: content.frames.into(),
                end: content.end,
                file: None,
                looked_again: true,
            });
            return Ok(());
        }
        let file = match File::open(path) {
            Ok(file) => file,
            // Archived between listing and opening: the archive is found instead.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(Source::Live { from, .. }) = self.sources.front_mut() {
                    *from = segment_files::number_of(path, SEGMENT_SUFFIX).unwrap_or(*from);
                    self.loaded = None;
                    return Ok(());
                }
                return Err(LogError::Io { path: path.to_owned(), source: error });
            }
            Err(source) => return Err(LogError::Io { path: path.to_owned(), source }),
        };
        let mut loaded = Loaded {
            path: Arc::from(path),
            base: SEGMENT_HEADER_BYTES as u64,
            bytes: Vec::new(),
            frames: VecDeque::new(),
            end: End::Clean { at: 0 },
            file: Some(file),
            looked_again: false,
        };
        if let Some(why) = loaded.header_damage()? {
            let position = Position { path: loaded.path.clone(), offset: 0 };
            let bytes = SEGMENT_HEADER_BYTES as u64;
            self.damages.push_back(LogItem::Damage { position, bytes, why });
        }
        loaded.read_on()?;
        self.loaded = Some(loaded);
        Ok(())
    }
}

impl Loaded {
    /// Whether there are bytes behind the last frame that were not there at the last look. Zeros behind a whole frame are none.
    fn has_grown(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let at = self.end.at();
        let known = self.bytes.get(at..).unwrap_or(&[]);
        // Of a frame that is there in part, any part may come later.
        let payload_bytes = match (&self.end, known.first_chunk()) {
            (End::Torn { .. }, Some(length)) => (u32::from_le_bytes(*length) as usize).min(FRAME_PAYLOAD_MAX),
            _ => 0,
        };
        let mut found = vec![0; FRAME_HEAD_BYTES + payload_bytes];
        let read = file.read_at(&mut found, self.base + at as u64).unwrap_or(0);
        let known = known.iter().chain(std::iter::repeat(&0));
        found[..read].iter().zip(known).any(|(found, known)| found != known)
    }

    /// Reads what lies behind the last frame.
    fn read_on(&mut self) -> Result<(), LogError> {
        let Some(file) = &self.file else { return Ok(()) };
        self.base += self.end.at() as u64;
        self.bytes.clear();
        let mut part = vec![0; 1 << 20];
        loop {
            let read = file.read_at(&mut part, self.base + self.bytes.len() as u64);
            let read = read.map_err(|source| LogError::Io { path: self.path.to_path_buf(), source })?;
            self.bytes.extend_from_slice(&part[..read]);
            // A whole part of zeros is the room ahead.
            if read == 0 || part[..read].iter().all(|&byte| byte == 0) {
                break;
            }
        }
        self.resume(0);
        Ok(())
    }

    fn resume(&mut self, from: usize) {
        let scan = scan_frames(&self.bytes, from);
        self.frames = scan.frames.into();
        self.end = scan.end;
    }

    fn damage(&self, at: usize, end: usize, why: &str) -> LogItem {
        let position = Position { path: self.path.clone(), offset: self.base + at as u64 };
        LogItem::Damage { position, bytes: (end - at) as u64, why: why.to_owned() }
    }

    fn torn_at(&self) -> Option<Position> {
        match self.end {
            End::Torn { at } => Some(Position { path: self.path.clone(), offset: self.base + at as u64 }),
            _ => None,
        }
    }

    fn header_damage(&self) -> Result<Option<String>, LogError> {
        let mut header = [0; SEGMENT_HEADER_BYTES];
        let read = self.file.as_ref().map_or(Ok(0), |file| file.read_at(&mut header, 0));
        let read = read.map_err(|source| LogError::Io { path: self.path.to_path_buf(), source })?;
        Ok(decode_segment_header(&header[..read]).err().map(|damage| damage.to_string()))
    }
}

fn classify(path: &Path) -> Result<(Source, Vec<PathBuf>), LogError> {
    let not_a_log = || LogError::NotALog(path.to_owned());
    let metadata = fs::metadata(path).map_err(|source| LogError::Io { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        let inner = path.join("Diff.dat");
        let log = if inner.is_dir() { inner } else { path.to_owned() };
        let mut files: Vec<PathBuf> = Vec::new();
        for (directory, suffix) in
            [(log.clone(), SEGMENT_SUFFIX), (log.join("archive"), ARCHIVE_SUFFIX), (log.clone(), CHECKPOINT_SUFFIX)]
        {
            files.extend(segment_files::numbered(&directory, suffix)?.into_values());
        }
        let named_so = log.file_name().is_some_and(|name| name == "Diff.dat");
        if files.is_empty() && !named_so {
            return Err(not_a_log());
        }
        return Ok((Source::Live { log, from: 0 }, files));
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(SEGMENT_SUFFIX) => Ok((Source::Segment(path.to_owned()), vec![path.to_owned()])),
        Some(ARCHIVE_SUFFIX) => Ok((Source::Archive(path.to_owned()), vec![path.to_owned()])),
        _ => Err(not_a_log()),
    }
}

/// The cluster that a file names; `None` if it is damaged there, or gone.
fn cluster_of(path: &Path) -> Result<Option<ClusterId>, LogError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LogError::Io { path: path.to_owned(), source }),
    };
    let mut front = Vec::new();
    let found = match path.extension().and_then(|extension| extension.to_str()) {
        Some(ARCHIVE_SUFFIX) => {
            let decoder = zstd::stream::read::Decoder::new(file);
            let _ = decoder.and_then(|decoder| decoder.take(ARCHIVE_HEADER_BYTES as u64).read_to_end(&mut front));
            decode_archive_header(&front).map(|header| header.cluster)
        }
        Some(CHECKPOINT_SUFFIX) => {
            let mut file = file;
            let _ = file.read_to_end(&mut front);
            checkpoint_cluster(&front)
        }
        _ => {
            let _ = file.take(SEGMENT_HEADER_BYTES as u64).read_to_end(&mut front);
            decode_segment_header(&front).map(|header| header.cluster)
        }
    };
    match found {
        Ok(cluster) => Ok(Some(cluster)),
        Err(source @ (FormatError::Newer { .. } | FormatError::Older { .. })) => {
            Err(LogError::Format { path: path.to_owned(), source })
        }
        Err(_) => Ok(None),
    }
}

/// Whether there is anything behind a segment's header, or it is an archive.
fn has_content(path: &Path) -> bool {
    if path.extension().is_some_and(|extension| extension == ARCHIVE_SUFFIX) {
        return true;
    }
    let mut head = [0; FRAME_HEAD_BYTES];
    let read = File::open(path).and_then(|file| file.read_at(&mut head, SEGMENT_HEADER_BYTES as u64));
    read.is_ok() && head != [0; FRAME_HEAD_BYTES]
}
