//! A host with a libvirtd of its own: in the host's network, and in a mount namespace where libvirt's folders are private.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use p2pdb::edge::process_identity::ProcessIdentity;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::rig::{Host, Network, possible, program, run, wait_until};

/// Whether these tests can run here; says so if not.
pub fn machines_possible(test: &str) -> bool {
    let missing = if !has("libvirtd") {
        "libvirtd is not installed"
    } else if !has("qemu-system-x86_64") {
        "QEMU is not installed"
    } else if !image().join("image.json").exists() {
        "there is no image; make it with tools/image small"
    } else {
        return possible(test);
    };
    println!("**** SKIPPED {test}: {missing}");
    false
}

fn has(program: &str) -> bool {
    ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(program).exists())
}

pub fn image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images/small")
}

/// A libvirtd; ends, with its machines, when it is dropped.
pub struct Libvirtd {
    namespace: String,
    folder: TempDir,
    child: Option<Child>,
}

impl Libvirtd {
    pub fn start(network: &Network, host: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut libvirtd = Self { namespace: network.host(host), folder, child: None };
        libvirtd.run();
        libvirtd
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("run/libvirt-sock")
    }

    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    pub fn run(&mut self) {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/own-libvirtd");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program).arg(self.folder.path());
        self.child = Some(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("libvirtd listens", || std::os::unix::net::UnixStream::connect(self.socket()).is_ok());
    }

    /// Ends it as a crash does; its machines go on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// What virsh says.
    pub fn virsh(&self, words: &[&str]) -> String {
        let output = Command::new("virsh").args(["-q", "-c", &self.uri()]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Names and states of its machines, in order.
    pub fn machines(&self) -> Vec<String> {
        let listed = self.virsh(&["list", "--all"]);
        let states = listed.lines().filter_map(|line| line.split_whitespace().last());
        let mut states: Vec<_> = states.map(str::to_owned).collect();
        states.sort();
        states
    }

    pub fn name_of(&self, original: usize) -> String {
        let listed = self.virsh(&["list", "--all", "--name"]);
        let wanted = format!("p2pdb-original-{original}-");
        listed.lines().find(|name| name.trim().starts_with(&wanted)).expect("it is listed").trim().to_owned()
    }

    /// The QEMU of a machine.
    pub fn qemu(&self, name: &str) -> ProcessIdentity {
        let file = self.folder.path().join(format!("run/qemu/{name}.pid"));
        let pid = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        ProcessIdentity::of(pid).expect("it runs")
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), Signal::CONT);
            for name in self.virsh(&["list", "--all", "--name"]).lines() {
                self.virsh(&["destroy", name.trim()]);
            }
        }
        self.kill();
        let Ok(running) = std::fs::read_dir(self.folder.path().join("run/qemu")) else { return };
        for file in running.map_while(Result::ok).filter(|file| file.path().extension().is_some_and(|it| it == "pid")) {
            let pid = std::fs::read_to_string(file.path()).ok().and_then(|text| text.trim().parse().ok());
            if let Some(identity) = pid.and_then(ProcessIdentity::of) {
                let _ = identity.kill(std::time::Duration::from_secs(2));
            }
        }
    }
}

/// A host whose originals are virtual machines, and its libvirtd.
pub fn host(network: &Network, number: usize, originals: usize, keep: &str) -> (Libvirtd, Host) {
    let libvirtd = Libvirtd::start(network, number);
    let host = host_with(network, number, originals, &libvirtd, keep, &[]);
    (libvirtd, host)
}

/// With other settings than usual: `OWNER_IMAGE` and so on.
pub fn host_with(
    network: &Network,
    number: usize,
    originals: usize,
    libvirtd: &Libvirtd,
    keep: &str,
    settings: &[(&'static str, &Path)],
) -> Host {
    Host::new(network, number, originals).with_environment(environment(libvirtd, keep, settings))
}

/// What the daemon of such a host is told.
pub fn environment(libvirtd: &Libvirtd, keep: &str, settings: &[(&'static str, &Path)]) -> Vec<(&'static str, String)> {
    let usual = [
        ("OWNER_LIBVIRT", libvirtd.uri()),
        ("OWNER_IMAGE", image().display().to_string()),
        ("OWNER_ACCELERATION", "qemu".to_owned()),
        ("OWNER_KEEP", keep.to_owned()),
    ];
    let others = settings.iter().map(|(name, value)| (*name, value.display().to_string()));
    usual.into_iter().chain(others).collect()
}

/// What the doctor says on a host with a line of settings for virtual machines, line by line.
pub fn doctor(host: &Host, libvirtd: &Libvirtd, line: &str) -> Vec<String> {
    let settings = format!(
        "name = \"S1\"\nlisten = \"127.0.0.1:1\"\nfiles = \"files\"\n\
         [originals]\ndriver = \"libvirt\"\n[libvirt]\nuri = \"{}\"\n{line}\n",
        libvirtd.uri()
    );
    std::fs::write(host.directory().join("p2pdb.toml"), settings).unwrap();
    let output = Command::new(program()).arg("doctor").arg("--dir").arg(host.directory()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// How many QEMUs run in a host's network, whether or not its libvirtd knows them.
pub fn qemus(host: &Host) -> usize {
    let network = std::fs::metadata(Path::new("/run/netns").join(host.namespace())).unwrap().ino();
    let processes = std::fs::read_dir("/proc").unwrap().map_while(Result::ok).map(|item| item.path());
    let is_qemu = |process: &PathBuf| {
        std::fs::metadata(process.join("ns/net")).is_ok_and(|metadata| metadata.ino() == network)
            && std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("qemu-system"))
    };
    processes.filter(is_qemu).count()
}

/// The image with an empty disk beside it, from which it does not start.
pub fn image_with_disk() -> TempDir {
    let folder = image_without_root();
    run("qemu-img", &format!("create -q -f qcow2 {}/disk.qcow2 256M", folder.path().display()));
    folder
}

/// The image, with which a disk is not what it starts from.
pub fn image_without_root() -> TempDir {
    image_with("init", &include_str!("../../tools/guest/init").replace("[ -b /dev/vda ]", "false"))
}

/// The same, and the first bytes of the disk at its start are in `/seen`.
pub fn image_that_looks_at_its_disk() -> TempDir {
    let init = include_str!("../../tools/guest/init");
    image_with("init", &init.replace("if [ -b /dev/vda ]", "$bb head -c 8 /dev/vda >/seen\nif false"))
}

/// The image whose guest agent may not run programs, as distributions ship it.
pub fn image_with_restricted_agent() -> TempDir {
    let run = include_str!("../../tools/guest/run");
    image_with("usr/lib/p2pdb/run", &run.replace("qemu-ga --method", "qemu-ga -b guest-exec --method"))
}

/// The image with one file more, or another one: a second archive behind the first.
pub fn image_with(path: &str, content: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(image().join("vmlinuz"), folder.path().join("vmlinuz")).unwrap();
    let mut archive = std::fs::read(image().join("initrd.img")).unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    for (name, mode, content) in [(path, 0o100755, content), ("TRAILER!!!", 0, "")] {
        let fields = [0, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08X}").bytes()));
        // Name and content each end on a multiple of four, the head has 110 bytes.
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len() + (4 - (110 + name.len() + 1) % 4) % 4, 0);
        archive.extend(content.bytes());
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    std::fs::write(folder.path().join("initrd.img"), archive).unwrap();
    folder
}
