//! Starts programs in the foreground, freezes and stops them, and asks them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use p2pdb::core::probe::{Probe, ProbeKind, ProbeOutcome};
use p2pdb::edge::probes::Probes;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// How long a program may take to come up on a busy machine.
const START: Duration = Duration::from_secs(60);

pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

/// Asks at 127.0.0.1.
pub fn ask(kind: &ProbeKind, timeout_ms: u64) -> ProbeOutcome {
    let probe = Probe { id: 7, address: LOOPBACK, kind: kind.clone(), timeout_ms };
    runtime().block_on(async { Probes::new(4).ask(&probe).await })
}

pub fn free_port() -> u16 {
    TcpListener::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap().port()
}

/// The path of a program that has to be started as root, or word of what is missing.
pub fn installed_for_root(test: &str, program: &str) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("\n**** SKIPPED: {test}: {program} has to be started as root ****\n");
        return None;
    }
    installed(test, program)
}

/// The path of a program, or word of its absence.
pub fn installed(test: &str, program: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists());
    if found.is_none() {
        eprintln!("\n**** SKIPPED: {test}: {program} is not installed ****\n");
    }
    found
}

/// A program that runs until it is dropped.
pub struct Program {
    child: Child,
    pub dir: TempDir,
}

impl Program {
    /// Starts what `command` makes of an empty folder, and waits until the question is answered.
    pub fn start(question: &ProbeKind, command: impl FnOnce(&Path) -> Command) -> Self {
        let dir = tempfile::Builder::new().prefix("p2pdb-probes-").tempdir_in("/tmp").unwrap();
        let mut command = command(dir.path());
        let log = fs::File::create(dir.path().join("output")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().unwrap();
        let mut program = Self { child, dir };
        let begin = Instant::now();
        loop {
            let outcome = ask(question, 2000);
            if matches!(outcome, ProbeOutcome::Answered { .. }) {
                return program;
            }
            let ended = program.child.try_wait().unwrap();
            if begin.elapsed() > START || ended.is_some_and(|status| !status.success()) {
                let output = fs::read_to_string(program.dir.path().join("output")).unwrap_or_default();
                panic!("it does not come up ({ended:?}), the last outcome is {outcome:?}; it says:\n{output}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it with all that it started, and waits until they are gone.
    pub fn stop(&mut self) {
        self.signal(Signal::STOP);
        let family = family(self.child.id());
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
        while family.iter().any(|pid| is_alive(*pid)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        for pid in family(self.child.id()) {
            // It may have ended.
            let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A process and all that descend from it.
fn family(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}
