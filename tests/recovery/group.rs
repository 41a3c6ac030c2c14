//! A group of real daemons on hosts of their own, with real services, a client, and an observer that knows nothing of p2pdb.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p2pdb::edge::process_identity::ProcessIdentity;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::network::{FAR, INTERFACE, Network, Tie, program, run, wait_until};

/// What only a failure reaches.
const LIMIT: Duration = Duration::from_secs(30);

const MANIFEST: &str = r#"format = 1
[[file]]
source = "page"
target = "/var/www/index.html"
[[check]]
command = "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 80), 1)\""
"#;
const SCRIPT: &str = "cd /var/www && { setsid python3 -m http.server 80 >/dev/null 2>&1 & }\n";
const PARTS: [(&str, &str); 2] = [("procedure.toml", MANIFEST), ("install.sh", SCRIPT)];

/// What a host's settings say instead of their defaults: a line, and what stands in its place.
type Settings<'a> = &'a mut dyn FnMut(&Network, usize) -> Vec<(&'static str, String)>;

pub struct Group {
    pub network: Network,
    folder: TempDir,
    /// So many servers; whoever comes after them only votes.
    servers: usize,
    daemons: Vec<Option<Child>>,
    services: Vec<Option<Child>>,
    observer: Option<Observer>,
}

impl Group {
    /// A group of `count` servers S1, S2 and so on; each serves a page at an exclusive address and keeps one original server.
    pub fn of(count: usize) -> Self {
        Self::with_hooks(count, &[])
    }

    /// The same and a witness, which is named as if it were one more of them.
    pub fn with_witness(count: usize) -> Self {
        Self::build(count, 1, &[], &PARTS, &mut |_, _| Vec::new())
    }

    /// The same with hooks: the name of each, and a line for the shell.
    pub fn with_hooks(count: usize, hooks: &[(&str, &str)]) -> Self {
        Self::with_procedure(count, hooks, &PARTS, &mut |_, _| Vec::new())
    }

    /// The same, and so long may a hook take.
    pub fn with_hurried_hooks(count: usize, hooks: &[(&str, &str)], deadline_ms: u64) -> Self {
        let deadline = format!("deadline_ms = {deadline_ms}");
        Self::with_procedure(count, hooks, &PARTS, &mut |_, _| vec![("#deadline_ms = 30000", deadline.clone())])
    }

    /// The same with a procedure for all, which gets a file `page` as well, and with settings of the hosts: a default line, and what stands
    /// in its place.
    pub fn with_procedure(count: usize, hooks: &[(&str, &str)], parts: &[(&str, &str)], settings: Settings) -> Self {
        Self::build(count, 0, hooks, parts, settings)
    }

    fn build(
        count: usize,
        witnesses: usize,
        hooks: &[(&str, &str)],
        parts: &[(&str, &str)],
        settings: Settings,
    ) -> Self {
        let network = Network::of(count + witnesses, Tie::Bridge);
        let folder = tempfile::tempdir().unwrap();
        let daemons = (0..count + witnesses).map(|_| None).collect();
        let services = (0..count).map(|_| None).collect();
        let mut group = Self { network, folder, servers: count, daemons, services, observer: None };
        for server in 0..count {
            let settings = settings(&group.network, server);
            group.join(server, hooks, &settings);
            group.start_service(server);
            group.start(server);
        }
        for witness in count..count + witnesses {
            group.join(witness, &[], &[]);
            group.start(witness);
            let admitted = format!("{} votes as a witness", name(witness));
            wait_until("the witness votes", || group.decisions(0).contains(&admitted));
        }
        for server in 0..count {
            let name = name(server);
            group.cli(0, &["files", "add", "Service", &format!("{name}, {}/24, exclusive", address(server))]);
            group.cli(0, &["files", "add", "Check", &format!("{name}, web, http 80 /")]);
            let procedure = group.path(&format!("procedure-{name}"));
            std::fs::create_dir(&procedure).unwrap();
            for (file, content) in parts {
                std::fs::write(procedure.join(file), content).unwrap();
            }
            std::fs::write(procedure.join("page"), format!("{name} played\n")).unwrap();
            group.cli(0, &["procedure", "put", procedure.to_str().unwrap(), "--server", &name]);
        }
        for server in 0..count {
            group.wait_served(server, "itself");
        }
        // A suspicion of the beginning may have woken originals up.
        wait_until("all originals are ready", || {
            let rows = group.records("Original");
            rows.len() == count && rows.iter().all(|row| row.contains(", suspended, "))
        });
        group.observer = Some(Observer::start(&group.network, (0..count).map(address)));
        group
    }

    pub fn path(&self, what: &str) -> PathBuf {
        self.folder.path().join(what)
    }

    pub fn directory(&self, server: usize) -> PathBuf {
        self.path(&name(server))
    }

    fn join(&self, server: usize, hooks: &[(&str, &str)], settings_of: &[(&str, String)]) {
        let directory = self.directory(server);
        let (dir, files) = (directory.to_str().unwrap(), self.path(&format!("files-{}", name(server))));
        let listen = format!("10.91.0.{}:7400", server + 1);
        let common = ["--name", &name(server), "--listen", &listen, "--dir", dir, "--files", files.to_str().unwrap()];
        let mut words = vec![if server == 0 { "init" } else { "join" }];
        words.extend(common);
        let token;
        if server > 0 {
            token = self.cli(0, &["token"]).lines().last().unwrap().to_owned();
            words.extend(["--peer", "10.91.0.1:7400", "--token", &token]);
        }
        let output = self.within(server, program().to_str().unwrap()).args(&words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        let settings = directory.join("p2pdb.toml");
        let text = std::fs::read_to_string(&settings).unwrap();
        let mut text = text.replace("#count = 2", "count = 1");
        if server < self.servers {
            text = text.replace("#interface = \"\"", &format!("interface = \"{INTERFACE}\""));
        }
        for (hook, line) in hooks {
            text = text.replace(&format!("#{hook} = []"), &format!("{hook} = ['/bin/sh', '-c', '{line}']"));
        }
        for (default, line) in settings_of {
            assert!(text.contains(default), "{default}");
            text = text.replace(default, line);
        }
        std::fs::write(settings, text).unwrap();
    }

    /// A command in a host's network that ends with this test.
    fn within(&self, server: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.network.host(server)));
        command.args(["setpriv", "--pdeathsig", "KILL", program]).env("TZ", "UTC");
        command
    }

    /// Runs `p2pdb ARGS --dir DIR` of a server; what it printed.
    #[track_caller]
    pub fn cli(&self, server: usize, args: &[&str]) -> String {
        let (code, out, err) = self.try_cli(server, args);
        assert!(code == Some(0), "{args:?}: {code:?} {out}{err}");
        out
    }

    pub fn try_cli(&self, server: usize, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.within(server, program().to_str().unwrap());
        let output = command.args(args).arg("--dir").arg(self.directory(server)).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// The records of a file as the first running server has it.
    pub fn records(&self, file: &str) -> Vec<String> {
        let server = self.daemons.iter().position(Option::is_some).unwrap();
        self.records_of(server, file)
    }

    pub fn records_of(&self, server: usize, file: &str) -> Vec<String> {
        let (_, out, _) = self.try_cli(server, &["files", "show", file]);
        out.lines().map(str::to_owned).collect()
    }

    /// What was decided, as a server knows it: one line for each decision, without time and reason.
    pub fn decisions(&self, server: usize) -> Vec<String> {
        let out = self.cli(server, &["decisions", "--json"]);
        let act = |line: &str| {
            let decision: serde_json::Value = serde_json::from_str(line).unwrap();
            decision["act"].as_str().unwrap().to_owned()
        };
        out.lines().map(act).collect()
    }

    // ---- what runs ----

    pub fn start(&mut self, server: usize) {
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{}.log", name(server))));
        let log = log.unwrap();
        let mut command = self.within(server, program().to_str().unwrap());
        let work = if server < self.servers { "daemon" } else { "witness" };
        command.arg(work).arg("--dir").arg(self.directory(server)).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons[server] = Some(command.spawn().unwrap());
        wait_until("the daemon answers", || self.try_cli(server, &["status"]).0 == Some(0));
    }

    pub fn start_service(&mut self, server: usize) {
        let pages = self.path(&format!("pages-{}", name(server)));
        std::fs::create_dir_all(&pages).unwrap();
        std::fs::write(pages.join("index.html"), format!("{} itself\n", name(server))).unwrap();
        let mut command = self.within(server, "python3");
        command.args(["-m", "http.server", "80"]).current_dir(pages).stdout(Stdio::null()).stderr(Stdio::null());
        self.services[server] = Some(command.spawn().unwrap());
    }

    pub fn kill_service(&mut self, server: usize) {
        end(self.services[server].take());
    }

    /// kill -9 of the daemon alone.
    pub fn kill_daemon(&mut self, server: usize) {
        end(self.daemons[server].take());
    }

    pub fn signal_daemon(&self, server: usize, signal: Signal) {
        let child = self.daemons[server].as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// The machine is dead at once: no link, no process.
    pub fn power_off(&mut self, server: usize) {
        self.network.plug(server, false);
        self.kill_daemon(server);
        self.kill_service(server);
        self.kill_agents(server);
    }

    /// The machine hangs: nothing on it runs, and yet its kernel answers at its address and goes on doing so.
    pub fn hang(&self, server: usize) {
        self.signal_daemon(server, Signal::STOP);
        let service = Pid::from_child(self.services[server].as_ref().unwrap());
        kill_process(service, Signal::STOP).unwrap();
        let agent = std::fs::read_to_string(self.directory(server).join("address.pid")).unwrap();
        let agent: ProcessIdentity = agent.parse().unwrap();
        kill_process(Pid::from_raw(agent.pid).unwrap(), Signal::STOP).unwrap();
        let (namespace, address) = (self.network.host(server), address(server));
        let for_ever = "valid_lft forever preferred_lft forever";
        run("ip", &format!("-n {namespace} address replace {address}/24 dev {INTERFACE} {for_ever}"));
    }

    /// It starts as after a power cut: no address of before, no guest.
    pub fn power_on(&mut self, server: usize) {
        let namespace = self.network.host(server);
        for other in 0..self.servers {
            let mut command = Command::new("ip");
            command.args(["-n", &namespace, "address", "delete", &format!("{}/24", address(other)), "dev", INTERFACE]);
            // Most are not there.
            let _ = command.stderr(Stdio::null()).status();
        }
        self.network.plug(server, true);
        self.start_service(server);
        self.start(server);
    }

    fn kill_agents(&self, server: usize) {
        let hidden = self.directory(server).to_string_lossy().into_owned();
        for item in std::fs::read_dir("/proc").unwrap() {
            let Ok(pid) = item.unwrap().file_name().to_string_lossy().parse() else { continue };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains("util\0agent") && line.contains(&*hidden) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
        // The host's own agent is named by its process id.
        let agent = std::fs::read_to_string(self.directory(server).join("address.pid"));
        if let Ok(identity) = agent.unwrap_or_default().parse::<ProcessIdentity>() {
            let _ = identity.kill(Duration::from_secs(2));
        }
    }

    // ---- what is seen from outside ----

    /// Waits until the client gets this server's page from who it says; how long that took.
    #[track_caller]
    pub fn wait_served(&self, server: usize, by: &str) -> Duration {
        let begin = Instant::now();
        let wanted = format!("{} {by}", name(server));
        let mut last = None;
        while last.as_ref() != Some(&wanted) {
            assert!(begin.elapsed() < LIMIT, "in vain: '{wanted}'; last '{last:?}'\n{}", self.told(server));
            last = self.network.fetch(&address(server)).and_then(|text| text.lines().last().map(str::to_owned));
        }
        begin.elapsed()
    }

    /// What the group says of a server, for a failure.
    fn told(&self, server: usize) -> String {
        let running: Vec<usize> = (0..self.daemons.len()).filter(|it| self.daemons[*it].is_some()).collect();
        let why = running.first().map(|first| self.try_cli(*first, &["why", &name(server)]).1).unwrap_or_default();
        let logs = running.iter().map(|it| {
            let text = std::fs::read_to_string(self.path(&format!("{}.log", name(*it)))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {}\n{}", name(*it), lines[lines.len().saturating_sub(12)..].join("\n"))
        });
        format!("{why}\n{}", logs.collect::<Vec<_>>().join("\n"))
    }

    /// The observer has seen each address answer, and never two machines at one.
    #[track_caller]
    pub fn assert_never_two(&mut self) {
        self.observer.take().unwrap().assert_never_two();
    }
}

/// Asks the network who answers, all the time; knows nothing of p2pdb.
pub struct Observer(Child);

impl Observer {
    pub fn start(network: &Network, addresses: impl Iterator<Item = String>) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recovery/observer.py");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", network.client())).args(["setpriv", "--pdeathsig", "KILL"]);
        command.arg("python3").arg(script).arg(format!("{INTERFACE},{FAR}")).args(addresses);
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    #[track_caller]
    pub fn assert_never_two(&mut self) {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "two answered at one address, or nobody: {said}");
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for server in 0..self.daemons.len() {
            end(self.daemons[server].take());
            end(self.services.get_mut(server).and_then(Option::take));
            self.kill_agents(server);
        }
    }
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub fn name(server: usize) -> String {
    format!("S{}", server + 1)
}

/// The service address of a server.
pub fn address(server: usize) -> String {
    format!("10.91.0.{}", server + 51)
}

/// Whether the tools are there that these tests drive.
pub fn possible(test: &str) -> bool {
    let tools = ["nsenter", "setpriv", "python3", "ip"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err());
    if let Some(tool) = tools {
        println!("**** SKIPPED {test}: {tool} is not installed");
    }
    let _ = run;
    tools.is_none() && super::network::possible(test)
}
