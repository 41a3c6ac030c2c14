//! Opening the log: reading what is there, deciding what counts, and only then repairing what is not as it should be.
//!
//! The scan changes nothing on the disk, so an error leaves everything as it was. What counts is decided stream by
//! stream: an entry must continue its chain, and it counts only once a signed entry behind it (or it itself)
//! vouches for it, as nobody would take it otherwise. Frames that do not count are *strays*: those of a group that was
//! never finished, and those behind a gap that damage made. Strays are removed, so that in a repaired log each stream's numbers
//! only rise, with gaps only where a checkpoint bridges them; a damaged segment is copied to `quarantine/` before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::error::{JournalError, RecoveryWarning};
use super::index::Index;
use super::segment_files::{self, ARCHIVE_SUFFIX, CHECKPOINT_SUFFIX, Places, SEGMENT_SUFFIX};
use super::{JournalConfig, Replayed, archive};
use crate::core::entry::Sealed;
use crate::core::id::{ClusterId, EntryId, Stream};
use crate::core::oplog::{Certifier, Checkpoint, Head, follow};
use crate::core::version::Vector;
use crate::format::segment::{
    End, Frame, SEGMENT_HEADER_BYTES, SegmentHeader, decode_segment_header, encode_segment_header, scan_frames,
};
use crate::format::{FormatError, decode_checkpoint, decode_sealed, peek_entry};

/// A segment as recovery leaves it.
#[derive(Debug)]
pub struct SegmentState {
    pub number: u64,
    pub path: PathBuf,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Where the next frame would go.
    pub end: u64,
    /// The time of its newest entry, Unix time in milliseconds; 0 if it is empty.
    pub newest_ms: u64,
    appendable: bool,
}

/// What was found, after repairs.
pub struct Log {
    pub index: Index,
    pub heads: BTreeMap<Stream, Head>,
    pub segments: BTreeMap<u64, SegmentState>,
    /// The segment that is appended to, and those that lie ready behind it.
    pub current: Option<u64>,
    pub spares: Vec<u64>,
    pub next_number: u64,
    /// Number and heads of the newest checkpoint.
    pub checkpoint: Option<(u64, Vector)>,
    pub warnings: Vec<RecoveryWarning>,
    pub replayed: u64,
}

/// Reads the log below `places` and hands out the state: the checkpoint if there is one, then the entries behind it.
pub fn recover(
    config: &JournalConfig,
    places: &Places,
    certifier: &dyn Certifier,
    now_ms: u64,
    on_item: &mut dyn FnMut(Replayed),
) -> Result<Log, JournalError> {
    let paths = segment_files::numbered(&places.log, SEGMENT_SUFFIX)?;
    check_numbers(&places.log, &paths)?;
    let checkpoints = load_checkpoint(places, config.cluster)?;
    let mut heads = BTreeMap::new();
    let mut checkpoint = None;
    if let Some((number, loaded)) = checkpoints.loaded {
        heads = loaded.heads.clone();
        checkpoint = Some((number, heads.iter().map(|(stream, head)| (stream.clone(), head.seq)).collect()));
        on_item(Replayed::Checkpoint(Box::new(loaded)));
    }
    check_first(&places.log, &paths, checkpoint.is_some() || !checkpoints.damaged.is_empty())?;

    // Without any checkpoint the archives are all that is left of what it held.
    let archives = match checkpoint.is_none() && !checkpoints.damaged.is_empty() {
        true => segment_files::numbered(&places.archive, ARCHIVE_SUFFIX)?,
        false => BTreeMap::new(),
    };
    let covered = checkpoint.as_ref().map_or_else(Vector::default, |(_, heads): &(u64, Vector)| heads.clone());
    let mut admission = Admission::new(certifier, heads, on_item);
    let mut reports = Vec::new();
    let (sender, receiver) = sync_channel(8);
    std::thread::scope(|scope| {
        scope.spawn(|| produce(&archives, &paths, config.cluster, &covered, sender));
        consume(&receiver, &mut admission, &mut reports)
    })?;
    let Admitted { index, heads, strays, mut warnings, replayed } = admission.finish();
    warnings.extend(
        checkpoints
            .damaged
            .iter()
            .map(|(path, why)| RecoveryWarning::Checkpoint { path: path.clone(), why: why.clone() }),
    );
    let newest_archive = segment_files::numbered(&places.archive, ARCHIVE_SUFFIX)?.into_keys().next_back();
    let log = Log {
        index,
        heads,
        segments: BTreeMap::new(),
        current: None,
        spares: Vec::new(),
        next_number: paths.keys().next_back().copied().max(newest_archive).unwrap_or(0) + 1,
        checkpoint,
        warnings,
        replayed,
    };
    Repair { config, places, now_ms, strays }.run(log, reports, &checkpoints.damaged)
}

fn check_numbers(directory: &Path, paths: &BTreeMap<u64, PathBuf>) -> Result<(), JournalError> {
    let mut expected = paths.keys().next().copied();
    for &number in paths.keys() {
        let missing = expected.filter(|&expected| expected != number);
        if let Some(number) = missing {
            return Err(JournalError::Missing { directory: directory.to_owned(), number });
        }
        expected = Some(number + 1);
    }
    Ok(())
}

/// Segments leave at the front only after a checkpoint.
fn check_first(directory: &Path, paths: &BTreeMap<u64, PathBuf>, checkpoint: bool) -> Result<(), JournalError> {
    match paths.keys().next() {
        Some(&first) if first > 1 && !checkpoint => {
            Err(JournalError::Missing { directory: directory.to_owned(), number: first - 1 })
        }
        _ => Ok(()),
    }
}

struct Checkpoints {
    loaded: Option<(u64, Checkpoint)>,
    damaged: Vec<(PathBuf, String)>,
}

/// The newest checkpoint that is intact.
fn load_checkpoint(places: &Places, cluster: ClusterId) -> Result<Checkpoints, JournalError> {
    let mut found = Checkpoints { loaded: None, damaged: Vec::new() };
    for (number, path) in segment_files::numbered(&places.log, CHECKPOINT_SUFFIX)?.into_iter().rev() {
        let bytes = fs::read(&path).map_err(JournalError::io("read", &path))?;
        match decode_checkpoint(&bytes, cluster) {
            Ok(checkpoint) => {
                found.loaded = Some((number, checkpoint));
                break;
            }
            Err(FormatError::Foreign { found, expected, .. }) => {
                return Err(JournalError::Foreign { path, found, expected });
            }
            Err(source @ (FormatError::Newer { .. } | FormatError::Older { .. })) => {
                return Err(JournalError::Format { path, source });
            }
            Err(damage) => found.damaged.push((path, damage.to_string())),
        }
    }
    Ok(found)
}

/// What the reading thread hands to the deciding one.
enum Scanned {
    /// Entries of a segment, in order; segment 0 is an archive.
    Entries(u64, Vec<(u32, Decoded)>),
    Segment(Report),
    Failed(JournalError),
}

enum Decoded {
    /// The checkpoint holds it: it is only indexed.
    Covered(EntryId),
    Entry(Arc<Sealed>),
    /// The checksum fits, the content does not.
    Junk,
}

struct Report {
    number: u64,
    path: PathBuf,
    file_bytes: u64,
    end: u64,
    newest_ms: u64,
    /// Why the header cannot be used.
    header: Option<String>,
    /// Offset and length of what is not frames between frames.
    damages: Vec<(u64, u64)>,
    torn: bool,
    frames: usize,
    /// Not one byte of content.
    lost: bool,
}

fn produce(
    archives: &BTreeMap<u64, PathBuf>,
    segments: &BTreeMap<u64, PathBuf>,
    cluster: ClusterId,
    covered: &Vector,
    sender: SyncSender<Scanned>,
) {
    let run = || -> Result<(), JournalError> {
        for path in archives.values() {
            let content = archive::read(path, Some(cluster))?;
            send_frames(&sender, 0, path, &content.bytes, &content.frames, covered)?;
        }
        let mut bytes = Vec::new();
        for (&number, path) in segments {
            read_into(path, &mut bytes)?;
            let report = scan_segment(&sender, number, path, &bytes, cluster, covered)?;
            if sender.send(Scanned::Segment(report)).is_err() {
                break;
            }
        }
        Ok(())
    };
    if let Err(error) = run() {
        // Nobody listens any more only if the other side has failed already.
        let _ = sender.send(Scanned::Failed(error));
    }
}

fn read_into(path: &Path, bytes: &mut Vec<u8>) -> Result<(), JournalError> {
    bytes.clear();
    let read = fs::File::open(path).and_then(|mut file| file.read_to_end(bytes));
    read.map(drop).map_err(JournalError::io("read", path))
}

fn scan_segment(
    sender: &SyncSender<Scanned>,
    number: u64,
    path: &Path,
    bytes: &[u8],
    cluster: ClusterId,
    covered: &Vector,
) -> Result<Report, JournalError> {
    let header = check_header(number, path, bytes, cluster)?;
    let mut report = Report {
        number,
        path: path.to_owned(),
        file_bytes: bytes.len() as u64,
        end: SEGMENT_HEADER_BYTES as u64,
        newest_ms: 0,
        header,
        damages: Vec::new(),
        torn: false,
        frames: 0,
        lost: bytes.len() < SEGMENT_HEADER_BYTES || bytes.iter().all(|&byte| byte == 0),
    };
    let mut from = SEGMENT_HEADER_BYTES;
    loop {
        let scan = scan_frames(bytes, from);
        report.frames += scan.frames.len();
        let newest = send_frames(sender, number, path, bytes, &scan.frames, covered)?;
        report.newest_ms = report.newest_ms.max(newest);
        match scan.end {
            End::Clean { at } => report.end = at as u64,
            End::Torn { at } => (report.end, report.torn) = (at as u64, true),
            End::Damaged { at, resumes_at } => {
                report.damages.push((at as u64, (resumes_at - at) as u64));
                from = resumes_at;
                continue;
            }
        }
        break;
    }
    match (&report.header, report.frames, report.lost) {
        (Some(why), 0, false) => Err(JournalError::HeaderDamaged { path: path.to_owned(), why: why.clone() }),
        _ => Ok(report),
    }
}

/// `None` for a good header, the reason for a damaged one.
fn check_header(number: u64, path: &Path, bytes: &[u8], cluster: ClusterId) -> Result<Option<String>, JournalError> {
    let path = || path.to_owned();
    match decode_segment_header(bytes) {
        Ok(header) if header.cluster != cluster => {
            Err(JournalError::Foreign { path: path(), found: header.cluster, expected: cluster })
        }
        Ok(header) if header.number != number => Err(JournalError::Misplaced { path: path(), number: header.number }),
        Ok(_) => Ok(None),
        Err(source @ (FormatError::Newer { .. } | FormatError::Older { .. })) => {
            Err(JournalError::Format { path: path(), source })
        }
        Err(damage) => Ok(Some(damage.to_string())),
    }
}

/// Sends the entries of frames; returns the newest time among them.
fn send_frames(
    sender: &SyncSender<Scanned>,
    number: u64,
    path: &Path,
    bytes: &[u8],
    frames: &[Frame],
    covered: &Vector,
) -> Result<u64, JournalError> {
    const BATCH: usize = 512;
    let mut newest_ms = 0;
    for batch in frames.chunks(BATCH) {
        let mut entries = Vec::with_capacity(batch.len());
        for frame in batch {
            let payload = frame.payload(bytes);
            let (time_ms, decoded) = decode(path, payload, covered)?;
            newest_ms = newest_ms.max(time_ms);
            entries.push((frame.offset as u32, decoded));
        }
        if sender.send(Scanned::Entries(number, entries)).is_err() {
            break;
        }
    }
    Ok(newest_ms)
}

fn decode(path: &Path, payload: &[u8], covered: &Vector) -> Result<(u64, Decoded), JournalError> {
    if !covered.is_empty()
        && let Ok(peek) = peek_entry(payload)
        && let Ok(id) = peek.id()
        && covered.holds(&id)
    {
        return Ok((peek.time().wall_ms(), Decoded::Covered(id)));
    }
    match decode_sealed(payload) {
        Ok(sealed) => Ok((sealed.entry().time.wall_ms(), Decoded::Entry(Arc::new(sealed)))),
        Err(source @ (FormatError::Newer { .. } | FormatError::Older { .. })) => {
            Err(JournalError::Format { path: path.to_owned(), source })
        }
        Err(_) => Ok((0, Decoded::Junk)),
    }
}

fn consume(
    receiver: &Receiver<Scanned>,
    admission: &mut Admission,
    reports: &mut Vec<Report>,
) -> Result<(), JournalError> {
    for scanned in receiver {
        match scanned {
            Scanned::Entries(segment, entries) => {
                for (offset, decoded) in entries {
                    match decoded {
                        Decoded::Covered(id) => admission.cover(&id, segment, offset),
                        Decoded::Entry(sealed) => admission.admit(sealed, segment, offset),
                        Decoded::Junk => admission.stray(segment, offset),
                    }
                }
            }
            Scanned::Segment(report) => reports.push(report),
            Scanned::Failed(error) => return Err(error),
        }
    }
    Ok(())
}

struct Pending {
    sealed: Arc<Sealed>,
    segment: u64,
    offset: u32,
    head: Head,
}

/// Decides which entries count.
struct Admission<'a> {
    certifier: &'a dyn Certifier,
    on_item: &'a mut dyn FnMut(Replayed),
    index: Index,
    heads: BTreeMap<Stream, Head>,
    /// Entries that continue their chain and wait for a signature.
    pending: BTreeMap<Stream, Vec<Pending>>,
    strays: Strays,
    /// The highest number that was found behind a gap.
    lost: BTreeMap<Stream, u64>,
    replayed: u64,
}

type Strays = BTreeMap<u64, BTreeSet<u32>>;

struct Admitted {
    index: Index,
    heads: BTreeMap<Stream, Head>,
    strays: Strays,
    warnings: Vec<RecoveryWarning>,
    replayed: u64,
}

impl<'a> Admission<'a> {
    fn new(certifier: &'a dyn Certifier, heads: BTreeMap<Stream, Head>, on_item: &'a mut dyn FnMut(Replayed)) -> Self {
        let mut index = Index::default();
        index.raise(&heads);
        Self {
            certifier,
            on_item,
            index,
            heads,
            pending: BTreeMap::new(),
            strays: BTreeMap::new(),
            lost: BTreeMap::new(),
            replayed: 0,
        }
    }

    fn stray(&mut self, segment: u64, offset: u32) {
        if segment > 0 {
            self.strays.entry(segment).or_default().insert(offset);
        }
    }

    fn cover(&mut self, id: &EntryId, segment: u64, offset: u32) {
        match id.seq > self.index.last(&id.stream) {
            true => self.index.push(&id.stream, id.seq, segment, offset),
            false => self.stray(segment, offset),
        }
    }

    fn admit(&mut self, sealed: Arc<Sealed>, segment: u64, offset: u32) {
        let EntryId { stream, seq } = sealed.id().clone();
        let held = self.heads.get(&stream).map_or(0, |head| head.seq);
        let mut pending = self.pending.remove(&stream).unwrap_or_default();
        if seq > held {
            // A group that was begun again: the later copy counts.
            let keep = usize::try_from(seq - held - 1).unwrap_or(usize::MAX);
            for dropped in pending.drain(keep.min(pending.len())..) {
                self.stray(dropped.segment, dropped.offset);
            }
        }
        let tip = pending.last().map(|last| &last.head).or(self.heads.get(&stream));
        let next = tip.map_or(0, |tip| tip.seq) + 1;
        let followed = if seq == next { follow(tip.cloned(), &sealed, self.certifier).ok() } else { None };
        match followed {
            Some(head) => {
                let vouched = sealed.signature().is_some();
                pending.push(Pending { sealed, segment, offset, head });
                if vouched {
                    self.count(&stream, pending);
                    return;
                }
            }
            None => {
                self.stray(segment, offset);
                let lost = self.lost.entry(stream.clone()).or_default();
                *lost = seq.max(*lost);
            }
        }
        if !pending.is_empty() {
            self.pending.insert(stream, pending);
        }
    }

    fn count(&mut self, stream: &Stream, group: Vec<Pending>) {
        for Pending { sealed, segment, offset, head } in group {
            match segment {
                0 => self.index.raise([(stream, &head)]),
                _ => self.index.push(stream, head.seq, segment, offset),
            }
            match self.heads.get_mut(stream) {
                Some(held) => *held = head,
                None => drop(self.heads.insert(stream.clone(), head)),
            }
            self.replayed += 1;
            (self.on_item)(Replayed::Entry(sealed));
        }
    }

    fn finish(mut self) -> Admitted {
        let mut warnings = Vec::new();
        let held = |heads: &BTreeMap<Stream, Head>, stream: &Stream| heads.get(stream).map_or(0, |head| head.seq);
        for (stream, group) in std::mem::take(&mut self.pending) {
            let up_to = group.last().map_or(0, |last| last.head.seq);
            group.iter().for_each(|pending| self.stray(pending.segment, pending.offset));
            let held = held(&self.heads, &stream);
            warnings.push(RecoveryWarning::Unvouched { stream, held, up_to });
        }
        for (stream, up_to) in self.lost {
            let held = held(&self.heads, &stream);
            if held < up_to {
                warnings.push(RecoveryWarning::EntriesLost { stream, held, up_to });
            }
        }
        Admitted { index: self.index, heads: self.heads, strays: self.strays, warnings, replayed: self.replayed }
    }
}

/// Puts the disk in order after the scan.
struct Repair<'a> {
    config: &'a JournalConfig,
    places: &'a Places,
    now_ms: u64,
    strays: Strays,
}

impl Repair<'_> {
    fn run(
        self,
        mut log: Log,
        reports: Vec<Report>,
        damaged_checkpoints: &[(PathBuf, String)],
    ) -> Result<Log, JournalError> {
        segment_files::create_directory(&self.places.log)?;
        segment_files::remove_temporary(&self.places.log)?;
        segment_files::remove_temporary(&self.places.archive)?;
        for (path, _) in damaged_checkpoints {
            // On a full disk it stays where it is and is passed over again next time.
            let _ = self.quarantine_path(path, "").and_then(|to| {
                fs::rename(path, &to).map_err(JournalError::io("move to quarantine", path))?;
                segment_files::sync_directory(&self.places.log)
            });
        }
        let last_used = reports.iter().filter(|report| report.frames > 0 || report.torn).map(|report| report.number);
        let last_used = last_used.max().unwrap_or(0);
        for mut report in reports {
            let is_last = report.number == last_used;
            let tail = self.tail_of(&report, is_last)?;
            let strays = self.strays.get(&report.number).map_or(0, BTreeSet::len);
            if report.torn && !is_last {
                report.damages.push((report.end, report.file_bytes - report.end));
            }
            let mut state = SegmentState {
                number: report.number,
                path: report.path.clone(),
                file_bytes: report.file_bytes,
                end: report.end,
                newest_ms: report.newest_ms,
                appendable: true,
            };
            match tail {
                Some(Tail { from, strays: in_tail })
                    if in_tail == strays && report.damages.is_empty() && report.header.is_none() =>
                {
                    self.cut(&mut state, from, report.torn, &mut log.warnings)?;
                }
                _ if report.damages.is_empty() && report.header.is_none() && strays == 0 => {}
                _ => self.rewrite(&mut state, &report, report.number >= last_used, &mut log)?,
            }
            log.segments.insert(state.number, state);
        }
        let current = log.segments.get(&last_used).filter(|state| state.appendable);
        log.current = current.map(|state| state.number);
        let behind = log.segments.range(last_used + 1..);
        log.spares = behind.filter(|(_, state)| state.appendable).map(|(&number, _)| number).collect();
        Ok(log)
    }

    /// The part at the end of the last used segment that does not count.
    fn tail_of(&self, report: &Report, is_last: bool) -> Result<Option<Tail>, JournalError> {
        let strays = self.strays.get(&report.number);
        if !is_last || (!report.torn && strays.is_none()) {
            return Ok(None);
        }
        let mut tail = Tail { from: report.end, strays: 0 };
        if let Some(strays) = strays {
            let mut bytes = Vec::new();
            read_into(&report.path, &mut bytes)?;
            let frames = all_frames(&bytes);
            for frame in frames.iter().rev().take_while(|frame| strays.contains(&(frame.offset as u32))) {
                tail = Tail { from: frame.offset as u64, strays: tail.strays + 1 };
            }
        }
        Ok(Some(tail))
    }

    /// Writes zeros over an unfinished end.
    fn cut(
        &self,
        state: &mut SegmentState,
        from: u64,
        torn: bool,
        warnings: &mut Vec<RecoveryWarning>,
    ) -> Result<(), JournalError> {
        let disk = |source| JournalError::Disk { path: state.path.clone(), source };
        let file = segment_files::open_segment(&state.path)?;
        let mut rest = vec![0; (state.file_bytes - from) as usize];
        file.read_exact_at(&mut rest, from).map_err(disk)?;
        let used = rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1);
        segment_files::write_zeros(&file, from, from + used).map_err(disk)?;
        file.sync_data().map_err(disk)?;
        if torn {
            warnings.push(RecoveryWarning::TornTail { segment: state.number, offset: from, bytes: used });
        }
        state.end = from;
        Ok(())
    }

    /// Copies a segment to quarantine and writes it anew with the frames that count. A full disk leaves it as it is.
    fn rewrite(
        &self,
        state: &mut SegmentState,
        report: &Report,
        fill: bool,
        log: &mut Log,
    ) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        read_into(&state.path, &mut bytes)?;
        let rewritten = self.rewrite_file(state, report, fill, &bytes);
        let (quarantine, moved, end, file_bytes) = match rewritten {
            Ok(done) => done,
            Err(error) if error.is_no_room() => {
                state.appendable = false;
                log.warnings.push(RecoveryWarning::NotRepaired { segment: state.number, why: error.to_string() });
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        log.index.move_frames(state.number, &moved);
        (state.end, state.file_bytes) = (end, file_bytes);
        let segment = state.number;
        for &(offset, bytes) in &report.damages {
            log.warnings.push(RecoveryWarning::Damaged { segment, offset, bytes, quarantine: quarantine.clone() });
        }
        if report.lost {
            log.warnings.push(RecoveryWarning::SegmentLost { segment });
        } else if report.header.is_some() {
            log.warnings.push(RecoveryWarning::Header { segment, quarantine });
        }
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn rewrite_file(
        &self,
        state: &SegmentState,
        report: &Report,
        fill: bool,
        bytes: &[u8],
    ) -> Result<(Option<PathBuf>, BTreeMap<u32, u32>, u64, u64), JournalError> {
        let quarantine = match report.lost {
            true => None,
            false => {
                let at = report.damages.first().map_or(0, |(offset, _)| *offset);
                let to = self.quarantine_path(&state.path, &format!("-at-{at}"))?;
                segment_files::write_durably(&to, |file| std::io::Write::write_all(file, bytes))?;
                Some(to)
            }
        };
        let header = match decode_segment_header(bytes) {
            Ok(header) => header,
            Err(_) => SegmentHeader { cluster: self.config.cluster, number: state.number, created_ms: self.now_ms },
        };
        let mut content = encode_segment_header(&header).to_vec();
        let mut moved = BTreeMap::new();
        let strays = self.strays.get(&state.number);
        for frame in all_frames(bytes) {
            let old = frame.offset as u32;
            if strays.is_none_or(|strays| !strays.contains(&old)) {
                moved.insert(old, content.len() as u32);
                content.extend_from_slice(frame.whole(bytes));
            }
        }
        let end = content.len() as u64;
        let file_bytes = if fill { end.max(state.file_bytes).max(self.config.segment_bytes) } else { end };
        segment_files::write_durably(&state.path, |file| {
            std::io::Write::write_all(file, &content)?;
            segment_files::write_zeros(file, end, file_bytes)
        })?;
        Ok((quarantine, moved, end, file_bytes))
    }

    fn quarantine_path(&self, path: &Path, at: &str) -> Result<PathBuf, JournalError> {
        segment_files::create_directory(&self.places.quarantine)?;
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        Ok(self.places.quarantine.join(format!("{name}{at}-{}", self.now_ms)))
    }
}

struct Tail {
    from: u64,
    /// How many strays lie in it.
    strays: usize,
}

/// All frames of a segment, across damage.
pub fn all_frames(bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut from = SEGMENT_HEADER_BYTES;
    loop {
        let scan = scan_frames(bytes, from);
        frames.extend(scan.frames);
        match scan.end {
            End::Damaged { resumes_at, .. } => from = resumes_at,
            _ => return frames,
        }
    }
}
