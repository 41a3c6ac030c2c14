//! Hosts as network namespaces on one bridge, and owners: processes of their own that hold a driver and a service address, so that
//! they can be frozen and killed.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use p2pdb::core::guest::{GuestRecord, GuestState};
use p2pdb::edge::bundles::BundleStore;
use p2pdb::edge::procedure::{MANIFEST, Procedure, SCRIPT};
use p2pdb::edge::process_identity::ProcessIdentity;
use p2pdb::format::guest::decode_guest;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Whether these tests can run here; says so if not.
pub fn possible(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("**** SKIPPED {test}: network namespaces need root");
    }
    root
}

pub fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < TIMEOUT, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How hosts are tied to the service network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// The interface is a bridge of the host.
    Bridge,
    /// It is a plain interface.
    Plain,
}

/// A switch with hosts `0..` and, as the last one, a client. Addresses 10.91.0.1, fd91::1 and so on.
pub struct Network {
    prefix: String,
    hosts: usize,
}

/// As the guest calls its own: taking away the wrong one would show.
pub const INTERFACE: &str = "eth0";

/// With this one the client sees the other side of a split; it has no address there.
pub const FAR: &str = "far0";

impl Network {
    pub fn of(hosts: usize, tie: Tie) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        // The tests of one process may run side by side.
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let network = Self { prefix: format!("pg{}n{number}", std::process::id()), hosts };
        let switch = network.name("s");
        run("ip", &format!("netns add {switch}"));
        run("ip", &format!("-n {switch} link add bridge0 up type bridge"));
        for host in 0..=hosts {
            let name = network.host(host);
            run("ip", &format!("netns add {name}"));
            if host == hosts {
                run("ip", &format!("-n {switch} link add far up type veth peer name {FAR} netns {name}"));
                run("ip", &format!("-n {name} link set {FAR} up"));
            }
            let plain = tie == Tie::Plain || host == hosts;
            let inner = if plain { INTERFACE } else { "uplink" };
            run("ip", &format!("-n {switch} link add port{host} type veth peer name {inner} netns {name}"));
            run("ip", &format!("-n {switch} link set port{host} master bridge0 up"));
            run("ip", &format!("-n {name} link set lo up"));
            run("ip", &format!("-n {name} link set {inner} up"));
            if !plain {
                run("ip", &format!("-n {name} link add {INTERFACE} up type bridge"));
                run("ip", &format!("-n {name} link set uplink master {INTERFACE}"));
            }
            let number = host + 1;
            run("ip", &format!("-n {name} address add 10.91.0.{number}/24 dev {INTERFACE}"));
            run("ip", &format!("-n {name} address add fd91::{number}/64 dev {INTERFACE} nodad"));
        }
        network
    }

    fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    pub fn host(&self, host: usize) -> String {
        self.name(&format!("h{host}"))
    }

    pub fn client(&self) -> String {
        self.host(self.hosts)
    }

    /// Pulls a host's plug out of the switch, or puts it in again.
    #[allow(dead_code, reason = "the tests of recovery do")]
    pub fn plug(&self, host: usize, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        run("ip", &format!("-n {} link set port{host} {state}", self.name("s")));
    }

    /// Puts some hosts on a switch of their own, until `join`. The client stays, and has an eye there: `FAR`.
    #[allow(dead_code, reason = "the tests of recovery do")]
    pub fn split(&self, hosts: &[usize]) {
        run("ip", &format!("-n {} link add bridge1 up type bridge", self.name("s")));
        run("ip", &format!("-n {} link set far master bridge1", self.name("s")));
        self.move_to("bridge1", hosts);
    }

    #[allow(dead_code, reason = "the tests of recovery do")]
    pub fn join(&self, hosts: &[usize]) {
        self.move_to("bridge0", hosts);
        run("ip", &format!("-n {} link delete bridge1", self.name("s")));
    }

    fn move_to(&self, bridge: &str, hosts: &[usize]) {
        for host in hosts {
            run("ip", &format!("-n {} link set port{host} master {bridge}", self.name("s")));
        }
    }

    /// Whether somebody answers at the address, as the client sees it. A refused connection is an answer.
    pub fn answers(&self, address: &str) -> bool {
        answers_from(&self.client(), address)
    }

    /// What the client takes for the hardware address of an address.
    pub fn neighbour(&self, address: &str) -> Option<String> {
        let entry = run("ip", &format!("-n {} neighbour show to {address} dev {INTERFACE}", self.client()));
        let mut words = entry.split_whitespace().skip_while(|word| *word != "lladdr");
        words.nth(1).map(str::to_owned)
    }

    /// What the client gets from the web server there.
    pub fn fetch(&self, address: &str) -> Option<String> {
        let address = SocketAddr::new(address.parse().unwrap(), 80);
        within(&self.client(), move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok()?;
            // Whoever was there may have gone meanwhile.
            stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
            std::io::read_to_string(stream).ok()
        })
    }
}

pub fn answers_from(namespace: &str, address: &str) -> bool {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 9);
    within(namespace, move || match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    })
}

/// Runs something in a network namespace.
pub fn within<T: Send>(namespace: &str, job: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    let there = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        job()
    };
    std::thread::scope(|scope| scope.spawn(there).join().unwrap())
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..=self.hosts).map(|host| self.host(host)).chain([self.name("s")]) {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

/// The folder of one host's daemon.
pub struct Host {
    namespace: String,
    folder: TempDir,
    count: usize,
    /// The router of the service network: the client is it.
    gateway: String,
    /// Whether its daemon runs as nobody.
    drops_rights: bool,
    /// What else its daemon is told.
    environment: Vec<(&'static str, String)>,
}

impl Host {
    pub fn new(network: &Network, host: usize, count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "the key").unwrap();
        let gateway = format!("10.91.0.{}", network.hosts + 1);
        Self { namespace: network.host(host), folder, count, gateway, drops_rights: false, environment: Vec::new() }
    }

    /// Variables for its daemon, for virtual machines `OWNER_LIBVIRT` and so on: see `owner.rs`.
    #[allow(dead_code, reason = "the tests of recovery have none")]
    pub fn with_environment(mut self, variables: Vec<(&'static str, String)>) -> Self {
        self.environment = variables;
        self
    }

    /// Its daemon is not root.
    pub fn without_rights(mut self) -> Self {
        std::os::unix::fs::chown(self.directory(), Some(NOBODY), Some(NOBODY)).unwrap();
        self.drops_rights = true;
        self
    }

    pub fn with_rights(mut self) -> Self {
        self.drops_rights = false;
        self
    }

    pub fn directory(&self) -> &Path {
        self.folder.path()
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A procedure in the store of this host; its digest.
    pub fn procedure(&self, manifest: &str, script: &str, files: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST), format!("format = 1\n{manifest}")).unwrap();
        std::fs::write(folder.path().join(SCRIPT), script).unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let store = BundleStore::open(self.directory().join("bundles"), 1 << 26, 1 << 30).unwrap();
        let digest =
            store.put(&Procedure::of_folder(folder.path()).unwrap().bundle(), &BTreeSet::new()).unwrap().to_string();
        run("chmod", &format!("-R a+rwX {}", self.directory().join("bundles").display()));
        digest
    }

    pub fn start(&self) -> Owner {
        self.start_with(self.count)
    }

    /// As if the settings named another number of originals.
    pub fn start_with(&self, count: usize) -> Owner {
        let owner = Owner::start(self, count);
        (1..=count).for_each(|number| drop(owner.wait_for(&format!("changed original-{number} "))));
        owner
    }

    pub fn start_without_waiting(&self) -> Owner {
        Owner::start(self, self.count)
    }

    /// Waits until it is on disk that the first original is on its way to this state.
    #[track_caller]
    pub fn wait_state(&self, what: &str, goal: GuestState) {
        wait_until(what, || self.record().state == goal && self.record().unfinished);
    }

    /// What is on disk of the first original.
    pub fn record(&self) -> GuestRecord {
        decode_guest(&std::fs::read(self.directory().join("originals/original-1/state")).unwrap()).unwrap()
    }

    /// The agent that holds this host's own address.
    #[allow(dead_code, reason = "the tests of addresses ask")]
    pub fn agent(&self) -> ProcessIdentity {
        std::fs::read_to_string(self.directory().join("address.pid")).unwrap().parse().unwrap()
    }

    /// The processes of guests and agents of this host, by process id.
    pub fn processes(&self) -> Vec<i32> {
        let hidden = self.directory().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for item in std::fs::read_dir("/proc").unwrap() {
            let Ok(pid) = item.unwrap().file_name().to_string_lossy().parse() else { continue };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains("util\0agent") && line.contains(&*hidden) {
                found.push(pid);
            }
        }
        found
    }
}

/// The user id of nobody.
const NOBODY: u32 = 65534;

impl Drop for Host {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
        // The agent of a host lapses and ends by itself; the namespace need not wait for it.
        if let Ok(text) = std::fs::read_to_string(self.directory().join("address.pid"))
            && let Ok(identity) = text.parse::<ProcessIdentity>()
        {
            let _ = identity.kill(Duration::from_secs(2));
        }
    }
}

/// A process that holds the driver of a host, see `owner.rs`.
pub struct Owner {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    held: std::cell::RefCell<Vec<String>>,
    ids: Cell<u64>,
}

impl Owner {
    /// The next daemon of this host; what it finds is not waited for.
    pub fn again(host: &Host) -> Self {
        host.start_without_waiting()
    }

    fn start(host: &Host, count: usize) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", host.namespace));
        if host.drops_rights {
            let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
            command.arg("setpriv").args(ids).args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
        }
        command.arg(std::env::current_exe().unwrap());
        command.args(["owner::owner", "--exact", "--ignored", "--nocapture"]);
        command.env("OWNER_DIRECTORY", host.directory()).env("OWNER_COUNT", count.to_string());
        command.env("OWNER_GATEWAY", &host.gateway);
        command.envs(host.environment.iter().cloned());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, told)) = line.split_once("@ ") {
                    let _ = sender.send(told.to_owned());
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines, held: Default::default(), ids: Cell::new(1) }
    }

    /// The next line that begins so; lines before it are kept for others.
    #[track_caller]
    pub fn wait_for(&self, beginning: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let mut held = self.held.borrow_mut();
            if let Some(place) = held.iter().position(|line| line.starts_with(beginning)) {
                return held.remove(place)[beginning.len()..].to_owned();
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => held.push(line),
                Err(error) => panic!("'{beginning}' was not told ({error}); held: {held:?}"),
            }
        }
    }

    /// Gives an order without waiting for its outcome; its number.
    pub fn begin(&self, words: &str) -> u64 {
        let id = self.ids.get();
        self.ids.set(id + 1);
        writeln!(self.input.as_ref().unwrap(), "{id} {words}").unwrap();
        id
    }

    /// Gives an order and waits for its outcome.
    #[track_caller]
    pub fn order(&self, words: &str) -> String {
        let id = self.begin(words);
        self.wait_for(&format!("outcome {id} "))
    }

    /// Gives an order that is carried out; the note.
    #[track_caller]
    pub fn done(&self, words: &str) -> String {
        let outcome = self.order(words);
        outcome.strip_prefix("done ").unwrap_or_else(|| panic!("{words}: {outcome}")).to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// As a power cut does to the daemon alone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_p2pdb").into()
}
