//! The files of the log: names, preallocation, durable replacement.
//!
//! A name that does not end in `.tmp` stands for a file that is whole and durable: files are written under a temporary
//! name, synced, renamed, and then their directory is synced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::JournalError;
use crate::format::segment::{SegmentHeader, encode_segment_header};

pub const SEGMENT_SUFFIX: &str = "seg";
pub const ARCHIVE_SUFFIX: &str = "zst";
pub const CHECKPOINT_SUFFIX: &str = "ckp";
const TEMPORARY_SUFFIX: &str = "tmp";

/// Where the parts of a node's log are.
#[derive(Debug, Clone)]
pub struct Places {
    pub log: PathBuf,
    pub archive: PathBuf,
    pub quarantine: PathBuf,
}

impl Places {
    /// The places below a node's directory.
    pub fn of_node(directory: &Path) -> Self {
        let log = directory.join("Diff.dat");
        Self { archive: log.join("archive"), log, quarantine: directory.join("quarantine") }
    }

    pub fn segment(&self, number: u64) -> PathBuf {
        self.log.join(format!("{number:08}.{SEGMENT_SUFFIX}"))
    }

    pub fn checkpoint(&self, number: u64) -> PathBuf {
        self.log.join(format!("{number:08}.{CHECKPOINT_SUFFIX}"))
    }

    pub fn archive_of(&self, number: u64) -> PathBuf {
        self.archive.join(format!("{number:08}.{ARCHIVE_SUFFIX}"))
    }

    /// Whether the file system says that so many bytes fit. One that does not tell has room: to write will show.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        rustix::fs::statvfs(&self.log).map_or(true, |stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= bytes)
    }
}

/// The numbered files of a kind in a directory; empty if there is no such directory.
pub fn numbered(directory: &Path, suffix: &str) -> Result<BTreeMap<u64, PathBuf>, JournalError> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(JournalError::NotADirectory(directory.to_owned()));
        }
        Err(error) => return Err(JournalError::io("read the directory", directory)(error)),
    };
    for entry in entries {
        let path = entry.map_err(JournalError::io("read the directory", directory))?.path();
        if let Some(number) = number_of(&path, suffix) {
            found.insert(number, path);
        }
    }
    Ok(found)
}

/// The number in a name such as `00000012.seg`.
pub fn number_of(path: &Path, suffix: &str) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_suffix(suffix)?.strip_suffix('.')?;
    (digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Removes what was left by writes that did not finish.
pub fn remove_temporary(directory: &Path) -> Result<(), JournalError> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == TEMPORARY_SUFFIX) {
            fs::remove_file(&path).map_err(JournalError::io("remove", &path))?;
        }
    }
    Ok(())
}

pub fn create_directory(path: &Path) -> Result<(), JournalError> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(JournalError::io("create", path)(error)),
    }
    path.parent().map_or(Ok(()), sync_directory)
}

pub fn sync_directory(path: &Path) -> Result<(), JournalError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(JournalError::io("sync the directory", path))
}

/// Makes a file durable under its name, in place of one that may be there. On failure the temporary file is removed.
pub fn write_durably(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), JournalError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(name);
    let written = File::create(&temporary)
        .and_then(|mut file| write(&mut file).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(JournalError::io("write", path)(error));
    }
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes a segment with nothing in it, every byte of it allocated.
pub fn create_segment(path: &Path, header: &SegmentHeader, bytes: u64) -> Result<File, JournalError> {
    write_durably(path, |file| {
        let header = encode_segment_header(header);
        file.write_all(&header)?;
        write_zeros(file, header.len() as u64, bytes)
    })?;
    open_segment(path)
}

pub fn open_segment(path: &Path) -> Result<File, JournalError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(JournalError::io("open", path))
}

/// Writes zeros from one offset to another. Real zeros: an allocation that was never written would make each
/// later sync write the file system's own journal too.
pub fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 256 << 10];
    let mut at = from;
    while at < to {
        let part = (to - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..part as usize], at)?;
        at += part;
    }
    Ok(())
}
