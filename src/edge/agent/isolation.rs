//! The world of a guest: namespaces for network, processes, mounts, names and messages, and a file system that forgets.
//!
//! The guest sees the host's file system through an overlay whose upper side is in memory: it may write anywhere, and everything
//! that it wrote is gone with its last process. `/tmp`, `/run` and `/dev/shm` are its own and empty; the
//! daemon's folder, with its keys, is covered. It is not a wall against a hostile procedure: that runs as root.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{pivot_root, setsid};
use rustix::system::sethostname;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::edge::iproute;

/// Where the new file system is put together.
const STAGING: &str = "/tmp";
/// Most memory that what a guest writes may take.
const WRITTEN_SIZE: &str = "size=50%,mode=0755";
/// Folders that are often file systems of their own: each gets an overlay of its own then.
const OFTEN_MOUNTED: [&str; 6] = ["usr", "var", "opt", "srv", "home", "boot"];

/// Leaves the host's namespaces; what this process starts is in a new process namespace.
#[allow(unsafe_code)]
pub fn leave_host() -> io::Result<()> {
    let flags =
        UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: the files of this process are not unshared, which is what could harm other threads.
    unsafe { unshare_unsafe(flags) }?;
    Ok(())
}

/// Not a part of the session of whoever started it: a signal to that terminal is not for the guest.
pub fn own_session() -> io::Result<()> {
    setsid().map(drop).or_else(|error| if error == rustix::io::Errno::PERM { Ok(()) } else { Err(error.into()) })
}

/// Makes the guest's file system and moves there.
pub fn enter_file_system(name: &str, hide: Option<&Path>) -> io::Result<()> {
    sethostname(name.as_bytes())?;
    step("mount propagation", mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE))?;
    memory(Path::new(STAGING), WRITTEN_SIZE)?;
    let staging = Path::new(STAGING);
    let root = staging.join("root");
    fs::create_dir(&root)?;
    overlay(staging, "root", Path::new("/"), &root)?;
    for name in OFTEN_MOUNTED {
        if is_mount_point(&Path::new("/").join(name)) {
            overlay(staging, name, &Path::new("/").join(name), &root.join(name))?;
        }
    }
    for (name, options) in [("tmp", "mode=1777"), ("run", "mode=0755")] {
        memory(&root.join(name), options)?;
    }
    step("/dev", mount_bind_recursive("/dev", root.join("dev")))?;
    mount_special("proc", &root.join("proc"))?;
    mount_special("sysfs", &root.join("sys"))?;
    if let Some(hidden) = hide.and_then(|hidden| hidden.strip_prefix("/").ok()).map(|hidden| root.join(hidden))
        && hidden.is_dir()
    {
        memory(&hidden, "mode=0755")?;
    }
    let old = root.join("mnt");
    fs::create_dir_all(&old)?;
    step("the new root", pivot_root(&root, &old))?;
    std::env::set_current_dir("/")?;
    step("the old root", unmount("/mnt", UnmountFlags::DETACH))?;
    if Path::new("/dev/shm").is_dir() {
        memory(Path::new("/dev/shm"), "mode=1777")?;
    }
    Ok(())
}

/// The loopback, and the interface to the service network: up, silent, without an address.
pub fn set_up_network(interface: Option<&str>) -> io::Result<()> {
    iproute::ip(&["link", "set", "lo", "up"])?;
    let Some(interface) = interface else { return Ok(()) };
    // Without this an interface gives itself an address and asks for routers. Where the kernel has no IPv6 there is nothing to say.
    for (setting, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_dad", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/{setting}");
        if Path::new(&path).exists() {
            fs::write(path, value)?;
        }
    }
    iproute::ip(&["link", "set", interface, "up"]).map(drop)
}

fn overlay(staging: &Path, name: &str, lower: &Path, target: &Path) -> io::Result<()> {
    let (upper, work) = (staging.join(format!("{name}.upper")), staging.join(format!("{name}.work")));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let options = CString::new(options).map_err(io::Error::other)?;
    step("an overlay", mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str()))
}

fn memory(target: &Path, options: &str) -> io::Result<()> {
    let options = CString::new(options).map_err(io::Error::other)?;
    step("a file system in memory", mount("tmpfs", target, "tmpfs", MountFlags::empty(), options.as_c_str()))
}

fn mount_special(kind: &str, target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    step(kind, mount(kind, target, kind, flags, None))
}

fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|data| data.dev()).ok();
    fs::symlink_metadata(path).is_ok_and(|data| data.is_dir()) && device(path) != device(Path::new("/"))
}

fn step(what: &str, done: rustix::io::Result<()>) -> io::Result<()> {
    done.map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("the guest's file system, {what}: {error}"))
    })
}
