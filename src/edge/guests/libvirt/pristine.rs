//! The pristine state of an original server: booted once, with nothing of a target in it, and saved to disk.
//!
//! `pristine.save` is its memory, `pristine.qcow2` its disk (where it has one; further ones are `pristine-2.qcow2` …), `pristine.json` says what they were made from and
//! what they must be. Every life of the original begins as this state, so being put back costs no boot. Invariant: a state that does
//! not fit its description, or was made from something else than what the settings name now, is not used; nor is one whose memory
//! does not fit its disks any more, because somebody has written to what they are laid over.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::definition::{Acceleration, Base, Source};
use crate::edge::certificate::{sync_directory, write_atomically};
use crate::edge::guests::machine::Failed;

/// The form of `pristine.json` that this program knows.
const FORMAT: u32 = 1;
const DESCRIPTION_BYTES_MAX: u64 = 64 * 1024;
/// Most disks of one original.
pub const DISKS_MAX: usize = 16;
/// Says whose a folder is: the same text is in the original's folder in its daemon's directory.
const OWNER: &str = "owner";
/// How the names begin under which an owner is written before it is put in place.
const OWNER_TEMPORARY: &str = ".p2pdb-owner-";
pub const OF_ANOTHER: &str = "it belongs to another server, or to one that was here before; set another libvirt.folder in p2pdb.toml, \
     or remove it if no server uses it";
/// What else is there of an original; virtlogd keeps three older consoles.
const OTHERS: [&str; 8] = [
    "console.log",
    "console.log.0",
    "console.log.1",
    "console.log.2",
    "gate.sock",
    "gate.pid",
    "gate.log",
    "pristine.json.tmp",
];

/// `pristine.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pristine {
    format: u32,
    pub uuid: String,
    pub acceleration: Acceleration,
    /// Whether the guest agent answered; otherwise the installer's channel did.
    pub guest_agent: bool,
    /// From the start to the first answer.
    pub boot_ms: u64,
    /// What it was made from; another text means that it is out of date.
    made_from: String,
    pub save_bytes: u64,
    /// BLAKE3 of `pristine.save`, in hex.
    save_digest: String,
    /// BLAKE3 of each disk, in hex, with blanks between them.
    disk_digest: String,
}

impl Pristine {
    pub fn disks(&self) -> usize {
        self.disk_digest.split_whitespace().count()
    }
}

/// What becomes a pristine state.
pub struct Made {
    pub uuid: String,
    pub acceleration: Acceleration,
    pub guest_agent: bool,
    pub boot_ms: u64,
}

/// Where one original's files are.
#[derive(Debug, Clone)]
pub struct Store {
    pub folder: PathBuf,
}

impl Store {
    pub fn save_path(&self) -> PathBuf {
        self.folder.join("pristine.save")
    }

    /// Of the first disk, 0, and so on.
    pub fn disk_path(&self, number: usize) -> PathBuf {
        self.folder.join(numbered("pristine", number))
    }

    /// What the present life writes on.
    pub fn overlay_path(&self, number: usize) -> PathBuf {
        self.folder.join(numbered("present", number))
    }

    pub fn overlay_paths(&self, disks: usize) -> Vec<PathBuf> {
        (0..disks).map(|number| self.overlay_path(number)).collect()
    }

    pub fn console_path(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    pub fn channel_path(&self) -> PathBuf {
        self.folder.join("installer.sock")
    }

    fn description_path(&self) -> PathBuf {
        self.folder.join("pristine.json")
    }

    fn awake_path(&self) -> PathBuf {
        self.folder.join("awake")
    }

    /// Whether the present life has been resumed.
    pub fn is_awake(&self) -> bool {
        self.awake_path().exists()
    }

    pub fn set_awake(&self, awake: bool) -> io::Result<()> {
        match awake {
            true => File::create(self.awake_path()).map(drop),
            false => remove(&self.awake_path()),
        }
    }

    /// The state that is there, if it can be used; otherwise why not.
    pub fn pristine(&self, made_from: &str) -> Result<Pristine, Failed> {
        let pristine = self.description()?;
        if pristine.made_from != made_from {
            return Err("what it was made from has changed".into());
        }
        let fits = |path: &Path, digest: &str| match digest_of(path) {
            Ok(found) if found == digest => Ok(()),
            Ok(_) => Err(format!("{} is damaged", path.display())),
            Err(error) => Err(format!("{}: {error}", path.display())),
        };
        fits(&self.save_path(), &pristine.save_digest)?;
        for (number, digest) in pristine.disk_digest.split_whitespace().enumerate() {
            fits(&self.disk_path(number), digest)?;
        }
        Ok(pristine)
    }

    /// What is said of the state, whether or not it fits.
    pub fn description(&self) -> Result<Pristine, Failed> {
        let path = self.description_path();
        let at = |error: io::Error| format!("{}: {error}", path.display());
        if fs::metadata(&path).map_err(at)?.len() > DESCRIPTION_BYTES_MAX {
            return Err(format!("{} is not what p2pdb writes there", path.display()));
        }
        let text = fs::read_to_string(&path).map_err(at)?;
        let pristine: Pristine = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        match pristine.format {
            FORMAT => Ok(pristine),
            other => Err(format!("{} is of form {other}, which this version does not know", path.display())),
        }
    }

    /// Whether the disks that its disks are laid over are as they were: otherwise its memory does not fit what it would find there.
    pub fn fits_its_bases(&self) -> bool {
        let is_as_it_was = |line: &str| {
            let path = line.rsplitn(3, ' ').last().unwrap_or_default();
            stamp(Path::new(path)).is_ok_and(|now| now == line)
        };
        let described = self.description();
        described.is_ok_and(|it| it.made_from.lines().rev().take(it.disks()).all(is_as_it_was))
    }

    /// Describes the state that has just been saved, and puts all of it on disk.
    pub fn keep(&self, made: Made, made_from: String, disks: usize) -> io::Result<Pristine> {
        let save_bytes = sync(&self.save_path())?;
        let mut disk_digests = Vec::new();
        for number in 0..disks {
            let path = self.disk_path(number);
            // The saved state names the path that it was saved with: there every life finds its own overlay.
            fs::rename(self.overlay_path(number), &path)?;
            sync(&path)?;
            disk_digests.push(digest_of(&path)?);
        }
        let pristine = Pristine {
            format: FORMAT,
            uuid: made.uuid,
            acceleration: made.acceleration,
            guest_agent: made.guest_agent,
            boot_ms: made.boot_ms,
            made_from,
            save_bytes,
            save_digest: digest_of(&self.save_path())?,
            disk_digest: disk_digests.join(" "),
        };
        let text = serde_json::to_string_pretty(&pristine).map_err(io::Error::other)?;
        write_atomically(&self.description_path(), text.as_bytes(), 0o600)?;
        Ok(pristine)
    }

    /// Removes the state; nothing uses it any more.
    pub fn forget(&self) -> io::Result<()> {
        // The description first: what is not described does not exist.
        [self.description_path(), self.save_path()].iter().try_for_each(|path| remove(path))?;
        (0..DISKS_MAX).try_for_each(|number| remove(&self.disk_path(number)))
    }

    /// Removes what the present life has written.
    pub fn clear(&self) -> io::Result<()> {
        self.overlay_paths(DISKS_MAX).iter().try_for_each(|path| remove(path))?;
        remove(&self.channel_path())?;
        self.set_awake(false)
    }

    /// Makes the folder that of the original whose folder in its daemon's directory is `home`, if it is nobody's yet.
    ///
    /// # Errors
    /// It is somebody else's, or cannot be used.
    pub fn claim(&self, home: &Path) -> io::Result<()> {
        // An earlier version has told nobody whose a state is: the one that serves from it may be another server.
        if self.folder != home && owner(&self.folder)?.is_none() && self.description_path().try_exists()? {
            return Err(io::Error::other(
                "an original server is there already, and it is not known whose; set another libvirt.folder in p2pdb.toml, or remove \
                 it if no server uses it",
            ));
        }
        self.own(home)
    }

    /// The same for one that has this instance, and may have made what is there before there were owners.
    pub fn adopt(&self, home: &Path, instance: &str) -> io::Result<()> {
        let is_its = || self.description().is_ok_and(|pristine| pristine.uuid == instance);
        match owner(&self.folder)?.is_none() && (!self.description_path().try_exists()? || is_its()) {
            true => self.own(home),
            false => Ok(()),
        }
    }

    fn own(&self, home: &Path) -> io::Result<()> {
        if self.folder == home {
            return Ok(());
        }
        let mine = match owner(home)? {
            Some(mine) => mine,
            None => {
                let mine = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
                write_atomically(&home.join(OWNER), mine.as_bytes(), 0o600)?;
                mine
            }
        };
        if owner(&self.folder)?.is_none() {
            self.put_owner(&mine)?;
        }
        match owner(&self.folder)? {
            Some(its) if its == mine => Ok(()),
            _ => Err(io::Error::other(OF_ANOTHER)),
        }
    }

    /// Puts an owner in place, unless there is one: of two that do so at once, one is the first.
    fn put_owner(&self, mine: &str) -> io::Result<()> {
        let temporary = self.folder.join(format!("{OWNER_TEMPORARY}{}", mine.trim()));
        write_atomically(&temporary, mine.as_bytes(), 0o600)?;
        let linked = fs::hard_link(&temporary, self.folder.join(OWNER));
        remove(&temporary)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => sync_directory(&self.folder),
        }
    }

    /// Whether the folder belongs to the original with this folder in its daemon's directory.
    pub fn is_of(&self, home: &Path) -> io::Result<bool> {
        let mine = owner(home)?;
        Ok(self.folder == home || (mine.is_some() && mine == owner(&self.folder)?))
    }

    /// Whether it belongs, beyond doubt, to somebody else.
    pub fn is_others(&self, home: &Path) -> bool {
        let owners = (owner(home), owner(&self.folder));
        self.folder != home && matches!(owners, (Ok(mine), Ok(Some(its))) if mine.as_ref() != Some(&its))
    }

    /// Whether the original with this folder in its daemon's directory has a folder that it has not removed.
    pub fn has_claimed(home: &Path) -> io::Result<bool> {
        owner(home).map(|mine| mine.is_some())
    }

    /// Nothing is left of what the original with this folder in its daemon's directory has claimed.
    pub fn disown(home: &Path) -> io::Result<()> {
        remove(&home.join(OWNER))
    }

    /// Removes all of the original; whose it is goes last, so that what is cut off can be finished.
    pub fn remove(&self) -> io::Result<()> {
        self.forget()?;
        self.clear()?;
        OTHERS.iter().try_for_each(|name| remove(&self.folder.join(name)))?;
        for item in fs::read_dir(&self.folder)? {
            let item = item?;
            if item.file_name().to_string_lossy().starts_with(OWNER_TEMPORARY) {
                remove(&item.path())?;
            }
        }
        remove(&self.folder.join(OWNER))
    }
}

fn owner(folder: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(folder.join(OWNER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// What a pristine state would be made from now: what shapes the guest, and a line for each file of its source, disks last.
///
/// # Errors
/// A file of the source is not there.
pub fn made_from(source: &Source, shape: &str) -> Result<String, Failed> {
    let mut text = shape.to_owned();
    for path in source.files() {
        let stamp = stamp(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        text.push_str(&format!("\n{stamp}"));
    }
    Ok(text)
}

/// A file as it is now: path, length, time of the last change.
fn stamp(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    Ok(format!("{} {} {}.{}", path.display(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Makes a disk whose content is that of another one until it is written to.
///
/// # Errors
/// `qemu-img` is not there or says no.
pub fn overlay(base: &Base, path: &Path) -> Result<(), Failed> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", &base.format, "-b"]).arg(&base.path).arg(path);
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "the program 'qemu-img' is missing; install qemu-utils".to_owned(),
        _ => format!("qemu-img: {error}"),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("qemu-img: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn numbered(name: &str, number: usize) -> String {
    match number {
        0 => format!("{name}.qcow2"),
        number => format!("{name}-{}.qcow2", number + 1),
    }
}

fn sync(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

fn digest_of(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::definition::Image;
    use super::*;

    #[test]
    fn a_state_that_has_changed_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store { folder: folder.path().to_path_buf() };
        fs::write(store.save_path(), b"memory").unwrap();
        let made = Made { uuid: "u".into(), acceleration: Acceleration::Qemu, guest_agent: true, boot_ms: 7 };
        let kept = store.keep(made, "image 1".into(), 0).unwrap();
        assert_eq!(store.pristine("image 1"), Ok(kept));
        assert!(store.pristine("image 2").unwrap_err().contains("has changed"));
        fs::write(store.save_path(), b"memorz").unwrap();
        assert!(store.pristine("image 1").unwrap_err().contains("is damaged"));
    }

    #[test]
    fn a_folder_has_one_owner_who_removes_what_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let [home, other, shared] = ["home", "other", "shared"].map(|name| folder.path().join(name));
        [&home, &other, &shared].into_iter().for_each(|path| fs::create_dir(path).unwrap());
        let store = Store { folder: shared.clone() };
        assert!(!store.is_of(&home).unwrap(), "what nobody has claimed is not known to be anybody's");
        assert!(!store.is_others(&home));
        store.claim(&home).unwrap();
        store.claim(&home).unwrap();
        assert!(store.is_of(&home).unwrap() && !store.is_of(&other).unwrap());
        assert!(!store.is_others(&home) && store.is_others(&other));
        assert!(store.claim(&other).unwrap_err().to_string().contains("belongs to another server"));

        let own = [store.save_path(), store.disk_path(0), store.overlay_path(1), store.console_path()];
        own.iter().for_each(|path| fs::write(path, "").unwrap());
        fs::write(shared.join("notes"), "the administrator's").unwrap();
        // One that was killed while it claimed the folder.
        fs::write(shared.join(format!("{OWNER_TEMPORARY}0f8f")), "").unwrap();
        store.remove().unwrap();
        let left: Vec<_> = fs::read_dir(&shared).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
        store.claim(&other).unwrap();
    }

    #[test]
    fn of_those_that_claim_a_folder_at_once_one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = &Store { folder: folder.path().join("shared") };
        let homes: Vec<_> = (0..8).map(|number| folder.path().join(number.to_string())).collect();
        homes.iter().chain([&store.folder]).for_each(|path| fs::create_dir(path).unwrap());
        let claimed = std::thread::scope(|scope| {
            let threads: Vec<_> = homes.iter().map(|home| scope.spawn(move || store.claim(home).is_ok())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let is_owner: Vec<_> = homes.iter().map(|home| store.is_of(home).unwrap()).collect();
        assert_eq!(claimed, is_owner);
        assert_eq!(claimed.iter().filter(|claimed| **claimed).count(), 1);
        assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 1, "the owner alone");
    }

    #[test]
    fn a_state_from_before_there_were_owners_is_adopted_by_the_one_that_has_its_instance() {
        let folder = tempfile::tempdir().unwrap();
        let [home, other, shared] = ["home", "other", "shared"].map(|name| folder.path().join(name));
        [&home, &other, &shared].into_iter().for_each(|path| fs::create_dir(path).unwrap());
        let store = Store { folder: shared };
        fs::write(store.save_path(), b"memory").unwrap();
        let made = Made { uuid: "u".into(), acceleration: Acceleration::Qemu, guest_agent: true, boot_ms: 7 };
        store.keep(made, "image 1".into(), 0).unwrap();
        assert!(store.claim(&other).unwrap_err().to_string().contains("it is not known whose"));
        store.adopt(&other, "v").unwrap();
        assert!(!store.is_of(&other).unwrap());
        store.adopt(&home, "u").unwrap();
        store.adopt(&other, "u").unwrap();
        assert!(store.is_of(&home).unwrap() && store.is_others(&other));
        store.claim(&home).unwrap();
    }

    #[test]
    fn a_state_does_not_fit_a_disk_that_was_written_to_since() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store { folder: folder.path().to_path_buf() };
        let (kernel, disk) = (folder.path().join("vmlinuz"), folder.path().join("a disk"));
        for file in [&kernel, &disk, &store.save_path(), &store.overlay_path(0)] {
            fs::write(file, b"before").unwrap();
        }
        let boots = Some((kernel.clone(), kernel.clone()));
        let source = Source::Image(Image { kernel: boots, disk: Some(disk.clone()), memory_mib: 192, processors: 1 });
        let made = Made { uuid: "u".into(), acceleration: Acceleration::Qemu, guest_agent: true, boot_ms: 7 };
        store.keep(made, made_from(&source, "192 MiB").unwrap(), 1).unwrap();
        assert!(store.fits_its_bases());
        // It has started already.
        fs::write(&kernel, b"another").unwrap();
        assert!(store.fits_its_bases());
        fs::write(&disk, b"another").unwrap();
        assert!(!store.fits_its_bases());
    }
}
