//! The thread that keeps checkpoints and lets old segments go.
//!
//! Two checkpoints are kept, so that damage to the newer one costs nothing: a segment leaves the live log only when the
//! older one holds all of it. A checkpoint that does not fit on the disk is not waited for: the node is told, and told again when
//! there is room for it.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::error::JournalError;
use super::recovery::all_frames;
use super::segment_files::{self, ARCHIVE_SUFFIX, CHECKPOINT_SUFFIX};
use super::{ArchiveRetention, Shared, archive, lock};
use crate::core::id::Stream;
use crate::core::io::Input;
use crate::core::oplog::Checkpoint;
use crate::core::version::Vector;
use crate::format::encode_checkpoint;
use crate::format::segment::{ArchiveHeader, SEGMENT_HEADER_BYTES};

const DAY_MS: u64 = 24 * 3600 * 1000;

pub enum Command {
    Store(Box<Checkpoint>),
    Close,
}

pub struct Keeper {
    shared: Arc<Shared>,
    /// Number and heads of the newest checkpoint, and the heads of the one before.
    newest: Option<(u64, Vector)>,
    older: Option<Vector>,
}

impl Keeper {
    pub fn new(shared: Arc<Shared>, newest: Option<(u64, Vector)>) -> Self {
        Self { shared, newest, older: None }
    }

    pub fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(Command::Store(checkpoint)) = commands.recv() {
            if let Err(error) = self.store(&checkpoint) {
                self.shared.fatal(error);
                break;
            }
        }
        lock(&self.shared.state).keeper_gone = true;
        self.shared.checkpoint_stored.notify_all();
    }

    /// Stores a checkpoint and answers for it.
    ///
    /// # Errors
    /// A disk that fails in another way than by being full.
    fn store(&mut self, checkpoint: &Checkpoint) -> Result<(), JournalError> {
        let bytes = encode_checkpoint(checkpoint, self.shared.config.cluster);
        let number = self.newest.as_ref().map_or(0, |(number, _)| *number).max(self.highest_number()) + 1;
        let path = self.shared.places.checkpoint(number);
        match segment_files::write_durably(&path, |file| std::io::Write::write_all(file, &bytes)) {
            Ok(()) => {}
            Err(error) if error.is_no_room() => {
                self.answered(None);
                self.shared.tell(Input::CheckpointFailed);
                // Only now, so that the answer that there is room cannot overtake this one.
                self.shared.await_room((bytes.len() + bytes.len() / 8) as u64);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        drop(bytes);
        let heads: Vector = checkpoint.heads.iter().map(|(stream, head)| (stream.clone(), head.seq)).collect();
        self.older = self.newest.replace((number, heads)).map(|(_, heads)| heads);
        let floor = self.answered(Some(checkpoint));
        self.shared.tell(Input::CheckpointStored { floor });
        if let Err(error) = self.drop_old_checkpoints(number).and_then(|()| self.archive()) {
            self.shared.warn(error);
        }
        Ok(())
    }

    fn highest_number(&self) -> u64 {
        let found = segment_files::numbered(&self.shared.places.log, CHECKPOINT_SUFFIX).unwrap_or_default();
        found.into_keys().next_back().unwrap_or(0)
    }

    /// Lets the committer go on, with what continues the checkpoint if it was stored. Returns the floor.
    fn answered(&self, stored: Option<&Checkpoint>) -> Vector {
        let mut state = lock(&self.shared.state);
        if let Some(checkpoint) = stored {
            state.index.raise(&checkpoint.heads);
        }
        state.checkpoints_waiting = state.checkpoints_waiting.saturating_sub(1);
        let floor = state.index.floor();
        drop(state);
        self.shared.checkpoint_stored.notify_all();
        floor
    }

    fn drop_old_checkpoints(&self, newest: u64) -> Result<(), JournalError> {
        let found = segment_files::numbered(&self.shared.places.log, CHECKPOINT_SUFFIX)?;
        let before = found.range(..newest).next_back().map(|(&number, _)| number);
        for (_, path) in found.into_iter().filter(|&(number, _)| number < newest && Some(number) != before) {
            fs::remove_file(&path).map_err(JournalError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Moves the segments that may leave the live log into archives, oldest first.
    fn archive(&self) -> Result<(), JournalError> {
        self.drop_old_archives()?;
        let mut any = false;
        while let Some(number) = self.next_to_archive() {
            self.archive_segment(number)?;
            any = true;
        }
        if any {
            let floor = lock(&self.shared.state).index.floor();
            self.shared.tell(Input::Archived { floor });
        }
        Ok(())
    }

    fn next_to_archive(&self) -> Option<u64> {
        let covered = self.older.as_ref()?;
        let config = &self.shared.config;
        let now_ms = (self.shared.clock)();
        let state = lock(&self.shared.state);
        let (&number, oldest) = state.segments.first_key_value()?;
        if number >= state.active {
            return None;
        }
        let newer = state.segments.range(number + 1..=state.active).map(|(_, segment)| segment.end);
        let newer_bytes = newer.map(|end| end - SEGMENT_HEADER_BYTES as u64).sum::<u64>();
        let old_enough = now_ms.saturating_sub(oldest.newest_ms) >= config.keep_live_ms;
        let leaves = newer_bytes >= config.keep_live_bytes_max || (newer_bytes >= config.keep_live_bytes && old_enough);
        let all_covered = state.index.last_in(number).all(|(stream, last): (&Stream, u64)| covered.seq(stream) >= last);
        (leaves && all_covered).then_some(number)
    }

    fn archive_segment(&self, number: u64) -> Result<(), JournalError> {
        let places = &self.shared.places;
        let path = places.segment(number);
        let bytes = fs::read(&path).map_err(JournalError::io("read", &path))?;
        let frames = all_frames(&bytes);
        let readable: usize = frames.iter().map(|frame| frame.end() - frame.offset).sum();
        let known = lock(&self.shared.state).segments.get(&number).map_or(0, |segment| segment.end);
        if ((readable + SEGMENT_HEADER_BYTES) as u64) < known {
            segment_files::create_directory(&places.quarantine)?;
            let to = places.quarantine.join(format!("{number:08}.seg-archived-{}", (self.shared.clock)()));
            segment_files::write_durably(&to, |file| std::io::Write::write_all(file, &bytes))?;
            self.shared.warn(format!(
                "segment {number} was damaged when it was archived; what can be read is in the archive, all of it in {}",
                to.display()
            ));
        }
        segment_files::create_directory(&places.archive)?;
        let header = ArchiveHeader {
            cluster: self.shared.config.cluster,
            first: number,
            last: number,
            created_ms: (self.shared.clock)(),
        };
        archive::write(&places.archive_of(number), &header, &bytes, &frames, self.shared.config.zstd_level)?;
        let mut state = lock(&self.shared.state);
        state.index.drop_segment(number);
        state.segments.remove(&number);
        drop(state);
        fs::remove_file(&path).map_err(JournalError::io("remove", &path))?;
        segment_files::sync_directory(&places.log)
    }

    fn drop_old_archives(&self) -> Result<(), JournalError> {
        let ArchiveRetention::Days(days) = self.shared.config.archives else { return Ok(()) };
        let now_ms = (self.shared.clock)();
        for (_, path) in segment_files::numbered(&self.shared.places.archive, ARCHIVE_SUFFIX)? {
            let made = archive::read(&path, None).map(|content| content.header.created_ms);
            match made {
                Ok(created_ms) if now_ms.saturating_sub(created_ms) < u64::from(days) * DAY_MS => return Ok(()),
                Ok(_) => fs::remove_file(&path).map_err(JournalError::io("remove", &path))?,
                Err(error) => self.shared.warn(error),
            }
        }
        Ok(())
    }
}
