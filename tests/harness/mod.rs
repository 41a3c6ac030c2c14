//! Real daemons for tests: the built program, in folders of its own, spoken to as an operator does.
//!
//! A [`Cluster`] owns everything it starts: its daemons are its children and die with it (also when the test process is
//! killed: the kernel sees to that), its folder is removed, and what a killed run left behind is swept by the next.
//! Nothing here sleeps for a time that ought to be enough: [`wait_until`] looks again and again, with a limit that
//! only a failure reaches.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

pub mod careless;
pub mod clock;
pub mod disk;
pub mod network;
pub mod peer;
pub mod writer;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use p2pdb::core::lifecycle::Lifecycle;
use p2pdb::edge::control::{Client, LinkState, Request, Response, Status};

use disk::Disk;
use network::Network;

/// What only a failure reaches.
pub const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const PROGRAM: &str = env!("CARGO_BIN_EXE_p2pdb");
/// Folders of tests are named so, then the process that made them.
const FOLDER_PREFIX: &str = "p2pdb-test-";

/// Waits until `condition` holds.
///
/// # Panics
/// It does not within [`LIMIT`]; `what` says what was waited for.
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_within(LIMIT, what, condition);
}

#[track_caller]
pub fn wait_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {} s in vain: {what}", limit.as_secs_f64());
        std::thread::sleep(POLL);
    }
    start.elapsed()
}

/// Says loudly that a test proves nothing here.
pub fn skip(test: &str, why: impl std::fmt::Display) {
    eprintln!("\n**** SKIPPED: {test}: {why} ****\n");
}

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Output {
    fn of(output: std::process::Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The output of a command that did its work.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// What a command printed that gave the negative answer.
    #[track_caller]
    pub fn negative(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        self.out
    }

    /// What a failed command told, which must hold all of `words`.
    #[track_caller]
    pub fn fails_saying(self, words: &[&str]) -> String {
        assert_eq!(self.code, Some(2), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in: {}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.err
    }
}

/// Runs the program where it is.
pub fn p2pdb<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Output {
    Output::of(Command::new(PROGRAM).args(args).env("TZ", "UTC").output().expect("the program runs"))
}

/// One server: a folder, and a daemon while it runs.
pub struct Server {
    pub name: String,
    pub dir: PathBuf,
    pub files: PathBuf,
    pub address: SocketAddr,
    pub log: PathBuf,
    network: Option<(Network, usize)>,
    environment: Mutex<Vec<(String, String)>>,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Runs `p2pdb ARGS --dir DIR` of this server.
    pub fn cli(&self, args: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(args).arg("--dir").arg(&self.dir).env("TZ", "UTC");
        self.run(command)
    }

    /// The same for a command that takes paths instead of `--dir`.
    pub fn run_plain(&self, args: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(args).env("TZ", "UTC");
        self.run(command)
    }

    fn run(&self, mut command: Command) -> Output {
        for (name, value) in lock(&self.environment).iter() {
            command.env(name, value);
        }
        let output = match &self.network {
            Some((network, index)) => network.within(*index, move || command.output()),
            None => command.output(),
        };
        Output::of(output.expect("the program runs"))
    }

    /// Adds a record and returns the entry's name.
    #[track_caller]
    pub fn add(&self, file: &str, record: &str) -> String {
        self.cli(&["files", "add", file, record]).ok().trim().to_owned()
    }

    /// The records of a file, as lines.
    pub fn show(&self, file: &str) -> Vec<String> {
        self.cli(&["files", "show", file]).out.lines().map(str::to_owned).collect()
    }

    /// A file of the plain-file view.
    pub fn plain(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.files.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn has(&self, file: &str, record: &str) -> bool {
        self.plain(file).iter().any(|line| line == record)
    }

    /// Sets a key of the settings file, for the next start.
    pub fn set(&self, section: &str, key: &str, value: &str) {
        let path = self.dir.join("p2pdb.toml");
        let text = fs::read_to_string(&path).expect("the server has settings");
        let mut here = String::new();
        let mut found = false;
        let lines: Vec<String> = text
            .lines()
            .map(|line| {
                if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                    here = name.to_owned();
                }
                let named = line.trim_start_matches('#').split_once(" = ").is_some_and(|(name, _)| name == key);
                if here == section && named {
                    found = true;
                    format!("{key} = {value}")
                } else {
                    line.to_owned()
                }
            })
            .collect();
        assert!(found, "there is no key {section}.{key}");
        fs::write(path, lines.join("\n") + "\n").unwrap();
    }

    pub fn set_environment(&self, name: &str, value: &str) {
        lock(&self.environment).push((name.into(), value.into()));
    }

    /// Starts the daemon; it may still be about to serve when this returns.
    pub fn launch(&self) {
        let mut child = lock(&self.child);
        assert!(child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("daemon").arg("--dir").arg(&self.dir);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.env("RUST_BACKTRACE", "1");
        for (name, value) in lock(&self.environment).iter() {
            command.env(name, value);
        }
        die_with_parent(&mut command);
        let spawned = match &self.network {
            Some((network, index)) => network.within(*index, move || command.spawn()),
            None => command.spawn(),
        };
        *child = Some(spawned.expect("the daemon starts"));
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start(&self) {
        self.launch();
        wait_until(&format!("{} answers", self.name), || {
            assert!(self.is_running(), "the daemon of {} ended:\n{}", self.name, self.log_tail());
            self.status().is_some()
        });
    }

    /// Starts the daemon, which must refuse: exit code and what it told.
    #[track_caller]
    pub fn start_refused(&self) -> Output {
        let before = fs::metadata(&self.log).map_or(0, |meta| meta.len()) as usize;
        self.launch();
        let mut child = lock(&self.child).take().expect("it was just started");
        let code = wait_for_exit(&mut child, "the daemon gives up").code();
        let log = fs::read(&self.log).unwrap();
        Output { code, out: String::new(), err: String::from_utf8_lossy(&log[before..]).into_owned() }
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(libc::SIGTERM);
        let mut child = lock(&self.child).take().expect("it runs");
        let status = wait_for_exit(&mut child, "the daemon stops");
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.log_tail());
    }

    /// SIGKILL: no goodbye, nothing flushed.
    pub fn kill(&self) {
        if let Some(mut child) = lock(&self.child).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for a daemon that ends by itself.
    #[track_caller]
    pub fn wait_for_end(&self) -> Option<i32> {
        let mut child = lock(&self.child).take().expect("it runs");
        wait_for_exit(&mut child, "the daemon ends by itself").code()
    }

    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    #[allow(unsafe_code)]
    fn signal(&self, signal: i32) {
        let child = lock(&self.child);
        let pid = child.as_ref().expect("it runs").id();
        // SAFETY: kill() touches no memory, and the pid is our own child's, which has not been waited for.
        let result = unsafe { libc::kill(pid as i32, signal) };
        assert_eq!(result, 0, "signal {signal} to {pid}");
    }

    pub fn pid(&self) -> Option<u32> {
        lock(&self.child).as_ref().map(Child::id)
    }

    pub fn is_running(&self) -> bool {
        lock(&self.child).as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn client(&self) -> Option<Client> {
        let mut client = Client::connect(&self.dir).ok()?;
        client.set_timeout(Some(Duration::from_secs(20))).ok()?;
        Some(client)
    }

    /// What the daemon says of itself; `None` if nobody answers.
    pub fn status(&self) -> Option<Status> {
        match self.client()?.call(&Request::Status).ok()? {
            Response::Status(status) => Some(*status),
            _ => None,
        }
    }

    pub fn lifecycle(&self) -> Option<Lifecycle> {
        self.status().map(|status| status.lifecycle)
    }

    pub fn is_operating(&self) -> bool {
        self.lifecycle() == Some(Lifecycle::Operating)
    }

    /// The link to another member as this server sees it.
    pub fn link(&self, other: &str) -> Option<LinkState> {
        let status = self.status()?;
        status.members.iter().find(|member| member.name.as_str() == other).map(|member| member.link)
    }

    pub fn has_alarm(&self, part: &str) -> bool {
        self.status().is_some_and(|status| {
            status.alarms.iter().any(|alarm| alarm.name.contains(part) || alarm.text.contains(part))
        })
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The segment files of the log, oldest first.
    pub fn segments(&self) -> Vec<PathBuf> {
        find_files(&self.dir.join("Diff.dat"), &|name| name.ends_with(".seg"))
    }
}

/// Every file below a folder whose name fits, sorted.
pub fn find_files(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(find_files(&path, fits));
        } else if fits(&entry.file_name().to_string_lossy()) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Everything below a folder: path, mode, and a digest of the content. Equal before and after: nothing was changed.
pub fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let mode = meta.permissions().mode();
        if meta.is_dir() {
            found.extend(tree(&path));
            found.insert(path, format!("{mode:o}"));
        } else if meta.is_file() {
            let digest = blake3::hash(&fs::read(&path).unwrap_or_default());
            found.insert(path, format!("{mode:o} {} {digest}", meta.len()));
        } else {
            found.insert(path, format!("{mode:o} special"));
        }
    }
    found
}

#[track_caller]
fn wait_for_exit(child: &mut Child, what: &str) -> std::process::ExitStatus {
    let mut status = None;
    wait_until(what, || {
        status = child.try_wait().expect("a child can be waited for");
        status.is_some()
    });
    status.expect("it was waited for")
}

/// A daemon whose test process dies, dies too.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Several servers, and all that they need.
pub struct Cluster {
    servers: Vec<Server>,
    pub root: PathBuf,
    place: u32,
    network: Option<Network>,
    disks: Vec<Disk>,
}

impl Cluster {
    /// No server yet; addresses on 127.0.0.0/8 that no other test uses.
    pub fn empty() -> Self {
        sweep_leftovers();
        static PLACES: AtomicU32 = AtomicU32::new(0);
        let place = PLACES.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("{FOLDER_PREFIX}{}-{place}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Self { servers: Vec::new(), root, place, network: None, disks: Vec::new() }
    }

    /// No server yet; each will be in a network namespace of its own.
    pub fn on_network(network: Network) -> Self {
        let mut cluster = Self::empty();
        cluster.network = Some(network);
        cluster
    }

    /// `count` servers S1, S2, … that operate.
    #[track_caller]
    pub fn of(count: usize) -> Self {
        let mut cluster = Self::empty();
        cluster.grow(count);
        cluster
    }

    /// Founds the group if there is none, and joins servers until there are `count`; all operate then.
    #[track_caller]
    pub fn grow(&mut self, count: usize) {
        while self.servers.len() < count {
            let name = format!("S{}", self.servers.len() + 1);
            self.add(&name).start();
        }
        self.wait_operating();
    }

    fn address(&self, index: usize) -> SocketAddr {
        if self.network.is_some() {
            return SocketAddr::new(network::address(index), 7400);
        }
        let [_, high, mid, low] = std::process::id().to_be_bytes();
        let ip = IpAddr::V4(Ipv4Addr::new(127, 64 + high % 64, mid, low));
        SocketAddr::new(ip, 7000 + (self.place % 200) as u16 * 100 + index as u16)
    }

    /// Names a server and its places without making it.
    pub fn plan(&self, name: &str) -> Server {
        self.plan_in(name, self.root.join(name))
    }

    fn plan_in(&self, name: &str, dir: PathBuf) -> Server {
        let index = self.servers.len();
        Server {
            name: name.into(),
            files: self.root.join(format!("{name}.files")),
            log: self.root.join(format!("{name}.log")),
            dir,
            address: self.address(index),
            network: self.network.clone().map(|network| (network, index)),
            environment: Mutex::default(),
            child: Mutex::default(),
        }
    }

    /// `init` or `join` of a planned server.
    pub fn enrol(&self, server: &Server, token: Option<&str>) -> Output {
        let (address, files) = (server.address.to_string(), server.files.to_string_lossy().into_owned());
        let mut args = vec!["--name", &server.name, "--listen", &address, "--files", &files];
        let peer = self.servers.first().map(|first| first.address.to_string());
        match (token, &peer) {
            (Some(token), Some(peer)) => {
                args.insert(0, "join");
                args.extend(["--peer", peer, "--token", token]);
            }
            _ => args.insert(0, "init"),
        }
        server.cli(&args)
    }

    pub fn token(&self) -> String {
        self.servers[0].cli(&["token"]).ok().trim().to_owned()
    }

    /// Makes a server: the first founds the group, others join through the first. Its daemon is not started.
    #[track_caller]
    pub fn add(&mut self, name: &str) -> &Server {
        let server = self.plan(name);
        self.enlist(server)
    }

    /// The same for a server whose directory is on a disk of its own.
    #[track_caller]
    pub fn add_on_disk(&mut self, name: &str, disk: Disk) -> &Server {
        let server = self.plan_in(name, disk.path().join("server"));
        self.disks.push(disk);
        self.enlist(server)
    }

    #[track_caller]
    fn enlist(&mut self, server: Server) -> &Server {
        let token = (!self.servers.is_empty()).then(|| self.token());
        self.enrol(&server, token.as_deref()).ok();
        self.servers.push(server);
        self.servers.last().expect("it was just put there")
    }

    pub fn adopt(&mut self, server: Server) -> &Server {
        self.servers.push(server);
        self.servers.last().expect("it was just put there")
    }

    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    pub fn server(&self, name: &str) -> &Server {
        self.servers.iter().find(|server| server.name == name).expect("there is such a server")
    }

    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("this cluster has a network of its own")
    }

    pub fn disk(&mut self) -> &mut Disk {
        self.disks.last_mut().expect("this cluster has a disk")
    }

    pub fn running(&self) -> Vec<&Server> {
        self.servers.iter().filter(|server| server.is_running()).collect()
    }

    /// Every running server operates and is linked with every other running one.
    #[track_caller]
    pub fn wait_operating(&self) {
        let running = self.running();
        wait_until("all operate and are linked", || {
            running.iter().all(|server| {
                server.status().is_some_and(|status| {
                    let linked = |other: &&Server| {
                        other.name == server.name
                            || status
                                .members
                                .iter()
                                .any(|member| member.name.as_str() == other.name && member.link == LinkState::Up)
                    };
                    status.lifecycle == Lifecycle::Operating && running.iter().all(linked)
                })
            })
        });
    }

    /// All running servers hold the same entries and the same files, and show the same plain files.
    #[track_caller]
    pub fn wait_same(&self) {
        self.wait_same_among(&self.running());
    }

    #[track_caller]
    pub fn wait_same_among(&self, servers: &[&Server]) {
        let states = || -> Vec<_> {
            servers
                .iter()
                .map(|server| {
                    server.status().map(|status| {
                        let files: Vec<_> =
                            status.files.iter().map(|file| (file.file.clone(), file.digest, file.conflicts)).collect();
                        (status.vector.digest, files)
                    })
                })
                .collect()
        };
        let mut last = Vec::new();
        let same = |states: &[Option<_>]| states[0].is_some() && states.iter().all(|state| *state == states[0]);
        let start = Instant::now();
        loop {
            let now = states();
            if same(&now) {
                break;
            }
            last.clone_from(&now);
            if start.elapsed() > LIMIT {
                let mut text = String::new();
                for (server, state) in servers.iter().zip(&last) {
                    let _ = writeln!(text, "{}: {state:?}", server.name);
                }
                panic!("the servers do not become the same:\n{text}");
            }
            std::thread::sleep(POLL);
        }
        let names: Vec<String> =
            servers[0].status().expect("it answered").files.iter().map(|file| file.file.to_string()).collect();
        wait_until("the plain files are the same", || {
            let texts = |server: &&Server| names.iter().map(|name| server.plain(name)).collect::<Vec<_>>();
            let first = texts(&servers[0]);
            servers.iter().all(|server| texts(server) == first)
        });
    }

    /// What must hold at the end of every story: same files everywhere, every log genuine, every view equal to its log.
    #[track_caller]
    pub fn finish(&self) {
        self.wait_same();
        for server in &self.servers {
            if server.is_running() {
                server.stop();
            }
            if !server.segments().is_empty() {
                server.verify();
                server.replay_check();
            }
        }
    }
}

impl Server {
    #[track_caller]
    pub fn verify(&self) {
        self.run_plain(&["verify", &self.dir.to_string_lossy()]).ok();
    }

    /// The view equals the log.
    #[track_caller]
    pub fn replay_check(&self) {
        let dir = self.dir.to_string_lossy().into_owned();
        self.run_plain(&["replay", &dir, "--check", &dir]).ok();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.servers.iter().for_each(Server::kill);
        if std::thread::panicking() {
            for server in &self.servers {
                eprintln!("---- end of the log of {} ----\n{}", server.name, server.log_tail());
            }
        }
        self.disks.clear();
        if std::env::var_os("P2PDB_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// Removes what test processes that were killed have left: their daemons and namespaces died with them, mounts and folders did
/// not.
fn sweep_leftovers() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(FOLDER_PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if pid.parse::<u32>().is_err() || Path::new("/proc").join(pid).exists() {
            continue;
        }
        disk::unmount_below(&entry.path());
        let _ = fs::remove_dir_all(entry.path());
    }
}
