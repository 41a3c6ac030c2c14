//! What can be wrong with the log, and what its recovery tells.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::core::id::{ClusterId, EntryId, Stream};
use crate::format::FormatError;

/// Why the log could not be opened, read or written. Each says what, where and what to do; where opening fails, nothing on
/// the disk has changed.
#[derive(Debug, Error)]
pub enum JournalError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not a directory; the log is a directory of segments: move it out of the way", .0.display())]
    NotADirectory(PathBuf),
    #[error("{}: {source}", path.display())]
    Format { path: PathBuf, source: FormatError },
    #[error(
        "{} is no segment of a log ({why}) and no entry can be found in it; put back the right file from a backup, or, \
         if it is lost, replace it by an empty file of this name: its entries are then fetched from the other servers",
        path.display()
    )]
    HeaderDamaged { path: PathBuf, why: String },
    #[error(
        "segment {number} is missing in {}; put it back, or, if it is lost, create an empty file {number:08}.seg there: \
         its entries are then fetched from the other servers",
        directory.display()
    )]
    Missing { directory: PathBuf, number: u64 },
    #[error(
        "{} belongs to cluster {found}, this server to {expected}; it has come here by mistake: move it away",
        path.display()
    )]
    Foreign { path: PathBuf, found: ClusterId, expected: ClusterId },
    #[error("{} is segment {number} by its content; give the file the name {number:08}.seg", path.display())]
    Misplaced { path: PathBuf, number: u64 },
    #[error("entry {id} cannot be appended: the log needs number {expected} of its stream next")]
    OutOfOrder { id: EntryId, expected: u64 },
    #[error(
        "writing to {} failed: {source}; what is on that disk cannot be relied upon any more: check the disk and start again",
        path.display()
    )]
    Disk { path: PathBuf, source: io::Error },
}

impl JournalError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn is_no_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_no_room(source))
    }
}

pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What recovery found and did. None of it keeps the server from starting.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecoveryWarning {
    #[error(
        "segment {segment}: an unfinished write of {bytes} bytes at offset {offset} was cut off; it was never acknowledged"
    )]
    TornTail { segment: u64, offset: u64, bytes: u64 },
    #[error("segment {segment}: {bytes} bytes at offset {offset} are damaged{}", kept_at(.quarantine))]
    Damaged { segment: u64, offset: u64, bytes: u64, quarantine: Option<PathBuf> },
    #[error("segment {segment}: its header is damaged{}", kept_at(.quarantine))]
    Header { segment: u64, quarantine: Option<PathBuf> },
    #[error("segment {segment} is empty or cut off before its first entry: its entries are lost here")]
    SegmentLost { segment: u64 },
    #[error(
        "the entries of {stream} after {held} are lost here, up to {up_to} at least; they are fetched from the other servers"
    )]
    EntriesLost { stream: Stream, held: u64, up_to: u64 },
    #[error(
        "the entries of {stream} after {held}, up to {up_to}, were dropped: the write that should have signed them never finished"
    )]
    Unvouched { stream: Stream, held: u64, up_to: u64 },
    #[error("the checkpoint {} is damaged ({why}); an older one is used", path.display())]
    Checkpoint { path: PathBuf, why: String },
    #[error("segment {segment} could not be repaired ({why}); it is left as it is and repaired at a later start")]
    NotRepaired { segment: u64, why: String },
}

fn kept_at(quarantine: &Option<PathBuf>) -> String {
    quarantine.as_ref().map_or(String::new(), |path| format!("; the segment was copied to {}", path.display()))
}
