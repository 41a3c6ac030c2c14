//! The writing thread, and the one that has the next segment ready.
//!
//! One commit: everything that waits is encoded into one buffer, each entry once; it is decided which part goes into
//! which segment, and the segments are there, before a byte is written; one write and one fdatasync per segment; only
//! then index, memory and node learn of it. So a disk without room fails a batch before it has left a trace.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::error::{JournalError, is_no_room};
use super::{Segment, Shared, lock, segment_files};
use crate::core::entry::Sealed;
use crate::core::id::Stream;
use crate::core::io::Input;
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, append_frame};

/// How long to wait before trying again to make a segment on a full disk.
const RETRY: Duration = Duration::from_secs(1);
/// Most bytes that one group takes before it is written.
const GROUP_BYTES_MAX: usize = 4 << 20;

pub enum Command {
    Append(Vec<Arc<Sealed>>),
    Close,
}

/// A segment that can be written to.
pub struct OpenSegment {
    pub number: u64,
    pub path: PathBuf,
    pub file: File,
    /// Where the next frame goes.
    pub at: u64,
    pub bytes: u64,
}

impl OpenSegment {
    fn room(&self) -> u64 {
        self.bytes.saturating_sub(self.at)
    }
}

/// Where the next segment waits.
pub struct SpareSlot {
    ready: Option<OpenSegment>,
    next_number: u64,
    /// Why there is none: no room.
    no_room: bool,
    /// A batch or a checkpoint has failed for want of room, and nobody has been told that there is some again: so many bytes
    /// beside the segment that waits.
    room_awaited: Option<u64>,
    stopping: bool,
}

impl SpareSlot {
    pub fn new(ready: Option<OpenSegment>, next_number: u64) -> Self {
        Self { ready, next_number, no_room: false, room_awaited: None, stopping: false }
    }

    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Has the node told when so many bytes fit again, beside the segment that waits here. Of several, the least counts: what does
    /// not fit then fails again and waits anew.
    pub fn await_room(&mut self, bytes: u64) {
        self.room_awaited = Some(self.room_awaited.map_or(bytes, |held| held.min(bytes)));
    }
}

/// Keeps a segment ready until told to stop.
pub fn prepare_spares(shared: &Shared) {
    let mut slot = lock(&shared.slot);
    loop {
        if slot.stopping {
            return;
        }
        if slot.ready.is_some() && slot.room_awaited.is_none() {
            slot = shared.slot_changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        if slot.ready.is_some() {
            // There is a segment, and yet something did not fit: it is worth trying again only later.
            slot = shared.slot_changed.wait_timeout(slot, RETRY).unwrap_or_else(PoisonError::into_inner).0;
        }
        if slot.ready.is_none() && !slot.stopping {
            let number = slot.next_number;
            drop(slot);
            let made = make_segment(shared, number);
            slot = lock(&shared.slot);
            match made {
                Ok(segment) => {
                    slot.ready = Some(segment);
                    slot.next_number += 1;
                    slot.no_room = false;
                }
                Err(error) if error.is_no_room() => slot.no_room = true,
                Err(error) => {
                    slot.no_room = true;
                    shared.slot_changed.notify_all();
                    drop(slot);
                    shared.fatal(error);
                    return;
                }
            }
            shared.slot_changed.notify_all();
        }
        if slot.ready.is_some() {
            if slot.room_awaited.take_if(|bytes| shared.places.has_room_for(*bytes)).is_some() {
                drop(slot);
                shared.tell(Input::Room { available: true });
                slot = lock(&shared.slot);
            }
            continue;
        }
        let waited = shared.slot_changed.wait_timeout(slot, RETRY);
        slot = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn make_segment(shared: &Shared, number: u64) -> Result<OpenSegment, JournalError> {
    let path = shared.places.segment(number);
    let header = SegmentHeader { cluster: shared.config.cluster, number, created_ms: (shared.clock)() };
    let bytes = shared.config.segment_bytes;
    let file = segment_files::create_segment(&path, &header, bytes)?;
    let at = SEGMENT_HEADER_BYTES as u64;
    lock(&shared.state).segments.insert(number, Segment { end: at, file_bytes: bytes, newest_ms: 0 });
    Ok(OpenSegment { number, path, file, at, bytes })
}

pub struct Committer {
    shared: Arc<Shared>,
    /// The segment that is written to, and those behind it that are at hand.
    open: VecDeque<OpenSegment>,
    /// Set after an error that leaves the disk unknown.
    poisoned: bool,
    buffer: Vec<u8>,
}

/// Frames that go into one segment: the segment's place in `open`, and the range in the buffer.
struct Part {
    target: usize,
    start: usize,
    end: usize,
    /// The first frame, and how many.
    first: usize,
    count: usize,
}

enum Failure {
    NoRoom,
    Fatal(JournalError),
}

impl Committer {
    pub fn new(shared: Arc<Shared>, current: Option<OpenSegment>, spares: VecDeque<OpenSegment>) -> Self {
        let open = current.into_iter().chain(spares).collect();
        Self { shared, open, poisoned: false, buffer: Vec::new() }
    }

    pub fn run(mut self, commands: &Receiver<Command>) {
        let mut closing = false;
        while !closing {
            let Ok(Command::Append(first)) = commands.recv() else { return };
            let mut entries = first;
            let mut batches = 1;
            let mut weight: usize = entries.iter().map(|sealed| sealed.entry().weight_bytes()).sum();
            while weight < GROUP_BYTES_MAX {
                match commands.try_recv() {
                    Ok(Command::Append(more)) => {
                        batches += 1;
                        weight += more.iter().map(|sealed| sealed.entry().weight_bytes()).sum::<usize>();
                        entries.extend(more);
                    }
                    Ok(Command::Close) => {
                        closing = true;
                        break;
                    }
                    Err(_) => break,
                }
            }
            self.commit_group(&entries, batches);
        }
    }

    fn commit_group(&mut self, entries: &[Arc<Sealed>], batches: usize) {
        if self.poisoned {
            return;
        }
        let done = self.commit(entries);
        let answer = || if done.is_ok() { Input::Appended } else { Input::AppendFailed };
        match &done {
            Ok(()) | Err(Failure::NoRoom) => (0..batches).for_each(|_| self.shared.tell(answer())),
            Err(Failure::Fatal(_)) => {}
        }
        match done {
            Ok(()) => {}
            Err(Failure::NoRoom) => {
                self.shared.tell(Input::Room { available: false });
                // Only now, so that the answer that there is room again cannot overtake this one.
                self.shared.await_room(0);
            }
            Err(Failure::Fatal(error)) => {
                self.poisoned = true;
                self.shared.fatal(error);
            }
        }
    }

    fn commit(&mut self, entries: &[Arc<Sealed>]) -> Result<(), Failure> {
        self.check_order(entries)?;
        self.buffer.clear();
        let sizes: Vec<usize> = entries.iter().map(|sealed| append_frame(sealed, &mut self.buffer)).collect();
        let parts = self.place(&sizes)?;
        let started = Instant::now();
        for part in &parts {
            let segment = &self.open[part.target];
            let written = segment.file.write_all_at(&self.buffer[part.start..part.end], segment.at);
            let synced = written.and_then(|()| segment.file.sync_data());
            synced.map_err(|source| Failure::Fatal(JournalError::Disk { path: segment.path.clone(), source }))?;
        }
        let sync_us = started.elapsed().as_micros() as u64;
        self.publish(entries, &sizes, &parts, sync_us);
        if let Some(last) = parts.last() {
            self.open.drain(..last.target);
        }
        if self.buffer.capacity() > GROUP_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Every entry must be the next of its stream. Where a checkpoint on its way to the disk is what it continues, waits.
    fn check_order(&self, entries: &[Arc<Sealed>]) -> Result<(), Failure> {
        let mut state = lock(&self.shared.state);
        loop {
            let mut heads: BTreeMap<&Stream, u64> = BTreeMap::new();
            let misfit = entries.iter().find_map(|sealed| {
                let id = sealed.id();
                let head = heads.entry(&id.stream).or_insert_with(|| state.index.head(&id.stream));
                let expected = *head + 1;
                *head = id.seq;
                (id.seq != expected).then_some((id, expected))
            });
            match misfit {
                None => return Ok(()),
                Some((id, expected)) if id.seq > expected && state.checkpoints_waiting > 0 && !state.keeper_gone => {
                    let waited = self.shared.checkpoint_stored.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
                // The checkpoint did not get to the disk before the journal was told to stop.
                Some((id, expected)) if id.seq > expected && state.keeper_gone => return Err(Failure::NoRoom),
                Some((id, expected)) => {
                    return Err(Failure::Fatal(JournalError::OutOfOrder { id: id.clone(), expected }));
                }
            }
        }
    }

    /// Decides which frame goes where, and gets the segments that this takes.
    fn place(&mut self, sizes: &[usize]) -> Result<Vec<Part>, Failure> {
        let mut parts: Vec<Part> = Vec::new();
        let mut target = 0;
        let mut room = self.open.front().map_or(0, OpenSegment::room);
        let mut start = 0;
        for (number, &size) in sizes.iter().enumerate() {
            if (size as u64) > room {
                if !self.open.is_empty() && (parts.iter().any(|part| part.target == target) || !self.is_fresh(target)) {
                    target += 1;
                }
                while self.open.len() <= target {
                    let spare = self.take_spare()?;
                    self.open.push_back(spare);
                }
                room = self.make_fit(target, size as u64)?;
            }
            room -= size as u64;
            match parts.last_mut().filter(|part| part.target == target) {
                Some(part) => {
                    part.end += size;
                    part.count += 1;
                }
                None => parts.push(Part { target, start, end: start + size, first: number, count: 1 }),
            }
            start += size;
        }
        Ok(parts)
    }

    fn is_fresh(&self, target: usize) -> bool {
        self.open.get(target).is_some_and(|segment| segment.at == SEGMENT_HEADER_BYTES as u64)
    }

    /// Makes an empty segment longer for a frame that is larger than a whole segment. Returns the segment's room.
    fn make_fit(&mut self, target: usize, size: u64) -> Result<u64, Failure> {
        let segment = &mut self.open[target];
        let needed = segment.at + size;
        if needed > segment.bytes {
            let extended =
                segment_files::write_zeros(&segment.file, segment.bytes, needed).and_then(|()| segment.file.sync_all());
            match extended {
                Ok(()) => segment.bytes = needed,
                Err(error) if is_no_room(&error) => return Err(Failure::NoRoom),
                Err(source) => return Err(Failure::Fatal(JournalError::Disk { path: segment.path.clone(), source })),
            }
            let mut state = lock(&self.shared.state);
            if let Some(known) = state.segments.get_mut(&segment.number) {
                known.file_bytes = needed;
            }
        }
        Ok(segment.room())
    }

    fn take_spare(&self) -> Result<OpenSegment, Failure> {
        let mut slot = lock(&self.shared.slot);
        loop {
            if let Some(spare) = slot.ready.take() {
                self.shared.slot_changed.notify_all();
                return Ok(spare);
            }
            if slot.no_room {
                return Err(Failure::NoRoom);
            }
            let waited = self.shared.slot_changed.wait(slot);
            slot = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets index, memory and figures know what is durable now.
    fn publish(&mut self, entries: &[Arc<Sealed>], sizes: &[usize], parts: &[Part], sync_us: u64) {
        let mut state = lock(&self.shared.state);
        let state = &mut *state;
        for part in parts {
            let segment = &mut self.open[part.target];
            let mut newest_ms = 0;
            for number in part.first..part.first + part.count {
                let (sealed, size) = (&entries[number], sizes[number]);
                let id = sealed.id();
                state.index.push(&id.stream, id.seq, segment.number, segment.at as u32);
                segment.at += size as u64;
                newest_ms = sealed.entry().time.wall_ms().max(newest_ms);
            }
            if let Some(known) = state.segments.get_mut(&segment.number) {
                known.end = segment.at;
                known.newest_ms = known.newest_ms.max(newest_ms);
            }
            state.active = segment.number;
        }
        state.usage.syncs += parts.len() as u64;
        state.usage.appended += entries.len() as u64;
        state.usage.sync_us += sync_us;
        state.usage.sync_us_max = state.usage.sync_us_max.max(sync_us);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::sync::{Condvar, Mutex};

    use super::super::index::Index;
    use super::super::segment_files::Places;
    use super::super::{JournalConfig, JournalEvent, State, Usage};
    use super::*;
    use crate::core::clock::Timestamp;
    use crate::core::entry::Entry;
    use crate::core::id::{ClusterId, Digest, EntryId, Lane, ServerName};
    use crate::core::priority::Class;

    #[test]
    fn after_a_failed_write_nothing_is_written_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let config = JournalConfig::new(directory.path(), ClusterId([1; 16]));
        let path = directory.path().join("segment");
        std::fs::write(&path, [0; 4096]).unwrap();
        let (sender, events) = channel();
        let state = State {
            index: Index::default(),
            segments: BTreeMap::new(),
            active: 1,
            checkpoints_waiting: 0,
            keeper_gone: false,
            usage: Usage::default(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            checkpoint_stored: Condvar::new(),
            slot: Mutex::new(SpareSlot::new(None, 2)),
            slot_changed: Condvar::new(),
            places: Places::of_node(directory.path()),
            config,
            clock: Arc::new(|| 0),
            notify: Arc::new(move |event| drop(sender.send(event))),
        });
        // A file that cannot be written to stands for a disk that fails.
        let file = File::open(&path).unwrap();
        let current = OpenSegment { number: 1, path, file, at: SEGMENT_HEADER_BYTES as u64, bytes: 4096 };
        let committer = Committer::new(shared.clone(), Some(current), VecDeque::new());
        let stream = Stream { origin: ServerName::new("mail").unwrap(), run: 1, lane: Lane::Audit };
        let entry = Entry {
            id: EntryId { stream: stream.clone(), seq: 1 },
            time: Timestamp(1),
            class: Class::Transmission,
            author: String::new(),
            reason: String::new(),
            previous: Digest::ZERO,
            certificate: None,
            diffs: Vec::new(),
        };
        let sealed = Arc::new(Sealed::new(entry, None));
        let (commands, received) = channel();
        commands.send(Command::Append(vec![sealed.clone()])).unwrap();
        let thread = std::thread::spawn(move || committer.run(&received));
        let first = events.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(matches!(first, JournalEvent::Fatal(JournalError::Disk { .. })), "{first:?}");
        commands.send(Command::Append(vec![sealed])).unwrap();
        commands.send(Command::Close).unwrap();
        thread.join().unwrap();
        assert!(events.try_recv().is_err(), "nothing is acknowledged after that");
        assert_eq!(lock(&shared.state).index.head(&stream), 0);
    }
}
