//! One daemon per directory: an exclusive `flock` on `DIR/lock`, held as long as the value lives.
//!
//! The kernel drops the lock when the process ends, however it ends, so a stale file never stands in the way. The file
//! holds the process id for the message that a second daemon gives.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum LockError {
    #[error("{} is not a directory; give the directory that 'p2pdb init' or 'p2pdb join' made", .0.display())]
    NotADirectory(PathBuf),
    #[error(
        "{} is in use by process {holder}; stop that daemon first, or give another directory",
        directory.display()
    )]
    Held { directory: PathBuf, holder: String },
    #[error("cannot lock {}: {source}; check its owner and permissions", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The right to write in a directory.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock of a directory, without waiting.
    ///
    /// # Errors
    /// When it is no directory, when another process holds the lock, when the lock file cannot be opened.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        if !directory.is_dir() {
            return Err(LockError::NotADirectory(directory.to_owned()));
        }
        let path = directory.join("lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
                let holder = if read { holder.trim().to_owned() } else { "(unknown)".to_owned() };
                return Err(LockError::Held { directory: directory.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // The process id is a courtesy: on a full disk the lock holds without it.
        let told = file.set_len(0).and_then(|()| file.rewind());
        let _ = told.and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::acquire(directory.path()).unwrap();
        let error = DirectoryLock::acquire(directory.path()).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        DirectoryLock::acquire(directory.path()).unwrap();
    }

    #[test]
    fn what_is_no_directory_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert!(matches!(DirectoryLock::acquire(&missing), Err(LockError::NotADirectory(_))));
        assert!(!missing.exists());
    }
}
