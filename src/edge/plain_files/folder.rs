//! The folder itself: reading what bears a name, replacing it atomically, moving it aside.
//!
//! A text is replaced by *exchanging* it with a new file: what bore the name until that moment comes out under the
//! temporary name and can be looked at, so a save that arrived an instant earlier is not lost. Nothing is synced: the
//! log is the truth, the folder is a view. Each text carries the digest of what the view wrote as an extended attribute, so that
//! after a restart it is known whether somebody has changed it since; without such attributes, it is not known.
//! Temporary names start with a dot and end in [`TEMPORARY_ENDING`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::core::plain::Obstacle;
use crate::core::text::TEXT_BYTES_MAX;

pub const TEMPORARY_ENDING: &str = ".p2pdb";

const DIGEST_ATTRIBUTE: &str = "user.p2pdb.shown";
const KEPT_MAX: u32 = 99;

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// What a new text takes over from the one before.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub mode: u32,
    /// User and group; `None`: those of the daemon.
    pub owner: Option<(u32, u32)>,
    /// Kept only if nothing but the layout changes.
    pub modified: (i64, i64),
}

impl Default for Attributes {
    fn default() -> Self {
        Self { mode: 0o644, owner: None, modified: (0, 0) }
    }
}

/// What bears a name.
pub enum Held {
    Nothing,
    Text(File),
    Obstacle(Obstacle),
}

/// What a new text has taken the place of.
pub enum Replaced {
    Nothing,
    /// The file that was known to bear the name; it is now without one.
    Known,
    /// Another file, that is now without a name.
    Text(File),
    /// No file: it keeps its place, and the text was not written.
    Obstacle,
}

pub struct Folder {
    path: PathBuf,
    directory: OwnedFd,
    identity: Identity,
}

impl Folder {
    /// Opens the folder, and makes it if it is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        let identity = identity_of(&rustix::fs::fstat(&directory)?);
        Ok(Self { path: path.to_owned(), directory, identity })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to this folder.
    pub fn is_in_place(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|stat| identity_of(&stat) == self.identity && stat.st_nlink > 0)
    }

    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Which file bears the name, with its type and number of names.
    pub fn identity(&self, name: &str) -> Option<(Identity, FileType, u64)> {
        let stat = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((identity_of(&stat), FileType::from_raw_mode(stat.st_mode), stat.st_nlink as u64))
    }

    pub fn is_readable(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.directory, name, Access::READ_OK, AtFlags::EACCESS) != Err(Errno::ACCESS)
    }

    pub fn held(&self, name: &str) -> Held {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // The type first: opening a FIFO or a device can have effects.
        let obstacle = match self.identity(name) {
            None => return Held::Nothing,
            Some((_, FileType::RegularFile, _)) => None,
            Some((_, FileType::Directory, _)) => Some(Obstacle::Directory),
            Some((_, FileType::Symlink, _)) => Some(Obstacle::SymbolicLink),
            Some(_) => Some(Obstacle::Special),
        };
        if let Some(obstacle) = obstacle {
            return Held::Obstacle(obstacle);
        }
        match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => Held::Text(File::from(file)),
            Err(Errno::NOENT) => Held::Nothing,
            Err(Errno::LOOP) => Held::Obstacle(Obstacle::SymbolicLink),
            Err(error) => Held::Obstacle(Obstacle::Unreadable { why: io::Error::from(error).to_string() }),
        }
    }

    /// Writes a file under the temporary name of `name`, for reading.
    pub fn prepare(&self, name: &str, text: &[u8], attributes: &Attributes, keep_time: bool) -> io::Result<File> {
        let temporary = temporary(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&self.directory, &temporary, flags, Mode::RUSR | Mode::WUSR);
        let file = match create() {
            Err(Errno::EXIST) => {
                self.remove(&temporary)?;
                create()?
            }
            created => created?,
        };
        let mut file = File::from(file);
        let written = self.fill(&mut file, &temporary, text, attributes, keep_time);
        if written.is_err() {
            let _ = self.remove(&temporary);
        }
        written
    }

    fn fill(
        &self,
        file: &mut File,
        temporary: &str,
        text: &[u8],
        attributes: &Attributes,
        keep_time: bool,
    ) -> io::Result<File> {
        file.write_all(text)?;
        // Before the mode is set, which may forbid it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let reader = rustix::fs::openat(&self.directory, temporary, flags, Mode::empty())?;
        // Not every file system has attributes, and not every user may give a file away: the text counts.
        let digest = blake3::hash(text);
        let _ = rustix::fs::fsetxattr(&*file, DIGEST_ATTRIBUTE, digest.as_bytes(), XattrFlags::empty());
        if let Some((user, group)) = attributes.owner {
            let _ = rustix::fs::fchown(&*file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        }
        rustix::fs::fchmod(&*file, Mode::from_raw_mode(attributes.mode))?;
        if keep_time {
            let (tv_sec, tv_nsec) = attributes.modified;
            let time = Timespec { tv_sec, tv_nsec: tv_nsec as _ };
            rustix::fs::futimens(&*file, &Timestamps { last_access: time, last_modification: time })?;
        }
        Ok(File::from(reader))
    }

    /// Puts what was prepared in the place of whatever bears the name, most likely the `known` file. What came out is
    /// without a name afterwards.
    pub fn put(&self, name: &str, known: Option<Identity>) -> io::Result<Replaced> {
        let temporary = temporary(name);
        let rename = |flags| rustix::fs::renameat_with(&self.directory, &temporary, &self.directory, name, flags);
        loop {
            match rename(RenameFlags::EXCHANGE) {
                Ok(()) => {}
                Err(Errno::NOENT) => match rename(RenameFlags::NOREPLACE) {
                    Ok(()) => return Ok(Replaced::Nothing),
                    Err(Errno::EXIST) => continue,
                    Err(error) => return Err(error.into()),
                },
                Err(Errno::INVAL | Errno::NOSYS) => return self.put_without_exchange(name, known),
                Err(error) => return Err(error.into()),
            }
            let came_out = self.identity(&temporary).map(|(identity, ..)| identity);
            if came_out.is_some() && came_out == known {
                self.remove(&temporary)?;
                return Ok(Replaced::Known);
            }
            let replaced = match self.held(&temporary) {
                Held::Text(file) => Replaced::Text(file),
                Held::Nothing => Replaced::Nothing,
                Held::Obstacle(_) => {
                    rename(RenameFlags::EXCHANGE)?;
                    Replaced::Obstacle
                }
            };
            self.remove(&temporary)?;
            return Ok(replaced);
        }
    }

    fn put_without_exchange(&self, name: &str, known: Option<Identity>) -> io::Result<Replaced> {
        let replaced = match self.held(name) {
            Held::Text(file) if Some(identity_and_attributes(&file)?.0) == known => Replaced::Known,
            Held::Text(file) => Replaced::Text(file),
            Held::Nothing => Replaced::Nothing,
            Held::Obstacle(_) => {
                self.remove(&temporary(name))?;
                return Ok(Replaced::Obstacle);
            }
        };
        rustix::fs::renameat(&self.directory, temporary(name), &self.directory, name)?;
        Ok(replaced)
    }

    /// Writes a file that nobody watches.
    pub fn write(&self, name: &str, text: &[u8], attributes: &Attributes) -> io::Result<()> {
        self.prepare(name, text, attributes, false)?;
        rustix::fs::renameat(&self.directory, temporary(name), &self.directory, name)?;
        Ok(())
    }

    /// Moves whatever bears the name to `NAME.kept.rejected`, or to a numbered name if that is taken.
    pub fn keep_aside(&self, name: &str) -> io::Result<()> {
        self.keep_aside_as(name, name)
    }

    fn keep_aside_as(&self, held: &str, name: &str) -> io::Result<()> {
        for number in 1..=KEPT_MAX {
            let kept = match number {
                1 => format!("{name}.kept.rejected"),
                number => format!("{name}.kept-{number}.rejected"),
            };
            let result =
                rustix::fs::renameat_with(&self.directory, held, &self.directory, &kept, RenameFlags::NOREPLACE);
            match result {
                Err(Errno::EXIST) => continue,
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other(format!("there are {KEPT_MAX} files kept aside for {name}; remove some")))
    }

    /// Removes a file; it may be missing.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Clears the temporary files of a daemon that was killed. One that is not of its making is a save it had just
    /// exchanged: that is kept aside.
    pub fn clear_temporaries(&self) -> io::Result<()> {
        for held in self.names()? {
            let Some(name) = held.strip_prefix('.').and_then(|name| name.strip_suffix(TEMPORARY_ENDING)) else {
                continue;
            };
            match self.held(&held) {
                Held::Text(file) if is_untouched(&file) => self.remove(&held)?,
                _ => self.keep_aside_as(&held, name)?,
            }
        }
        Ok(())
    }
}

fn temporary(name: &str) -> String {
    format!(".{name}{TEMPORARY_ENDING}")
}

/// Reads a whole text; at most one byte more than a text may have.
pub fn read_text(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (file.metadata()?.len() as usize).min(TEXT_BYTES_MAX) + 1];
    let mut length = 0;
    loop {
        if length == bytes.len() {
            if length > TEXT_BYTES_MAX {
                return Ok(bytes);
            }
            bytes.resize((2 * length).min(TEXT_BYTES_MAX + 1), 0);
        }
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Whether a file holds what the view wrote.
pub fn is_untouched(file: &File) -> bool {
    let mut digest = [0u8; 32];
    match rustix::fs::fgetxattr(file.as_fd(), DIGEST_ATTRIBUTE, &mut digest) {
        Ok(32) => read_text(file).is_ok_and(|text| *blake3::hash(&text).as_bytes() == digest),
        _ => false,
    }
}

pub fn identity_and_attributes(file: &File) -> io::Result<(Identity, Attributes)> {
    let metadata = file.metadata()?;
    let attributes = Attributes {
        mode: metadata.mode() & 0o7777,
        owner: Some((metadata.uid(), metadata.gid())),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok((Identity { device: metadata.dev(), inode: metadata.ino() }, attributes))
}

/// The name of a user of this machine, `uid 1000` if it has none here.
pub fn user_name(user: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("uid {user}"))
}

fn identity_of(stat: &Stat) -> Identity {
    Identity { device: stat.st_dev, inode: stat.st_ino }
}
