//! Disks that fill up or lose their power: a file as a loop device with ext4 on it, or a small tmpfs. Needs root.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own, unmounted when dropped.
pub struct Disk {
    mount: PathBuf,
    image: Option<PathBuf>,
    mounted: bool,
}

impl Disk {
    /// ext4 on a loop device. `Err`: why that is not possible here.
    pub fn ext4(folder: &Path, mib: u64) -> Result<Self, String> {
        let image = folder.join("disk.img");
        let file = File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(mib << 20).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").arg("-q").args(["-m", "0"]).arg(&image))?;
        let mut disk = Self { mount: folder.join("disk"), image: Some(image), mounted: false };
        fs::create_dir_all(&disk.mount).map_err(|error| error.to_string())?;
        disk.mount()?;
        Ok(disk)
    }

    /// A file system in memory.
    pub fn tmpfs(folder: &Path, mib: u64) -> Result<Self, String> {
        let mount = folder.join("disk");
        fs::create_dir_all(&mount).map_err(|error| error.to_string())?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&mount))?;
        Ok(Self { mount, image: None, mounted: true })
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    pub fn mount(&mut self) -> Result<(), String> {
        let image = self.image.as_ref().expect("a disk in memory stays mounted");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.mount))?;
        self.mounted = true;
        Ok(())
    }

    /// The power goes: what has not reached the platter is lost, nothing works any more. `Err`: not possible here.
    #[allow(unsafe_code)]
    pub fn cut_power(&self) -> Result<(), String> {
        /// `_IOR('X', 125, __u32)`
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        /// The journal is not written out either.
        const NO_LOG_FLUSH: u32 = 2;
        let folder = File::open(&self.mount).map_err(|error| error.to_string())?;
        let how = NO_LOG_FLUSH;
        // SAFETY: the request reads one u32 through the pointer, which outlives the call.
        let result = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &raw const how) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
    }

    /// The power is back: the journal is replayed by mounting.
    pub fn restore_power(&mut self) {
        self.unmount();
        self.mount().expect("ext4 replays its journal");
    }

    fn unmount(&mut self) {
        if self.mounted {
            super::wait_until("the disk is not in use any more", || {
                run(Command::new("umount").arg(&self.mount)).is_ok()
            });
            self.mounted = false;
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a panic may have left something open.
            let _ = run(Command::new("umount").arg("-l").arg(&self.mount));
        }
    }
}

/// Unmounts everything below a folder that a killed test has left.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(point).starts_with(folder) {
            let _ = run(Command::new("umount").arg("-l").arg(point));
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
