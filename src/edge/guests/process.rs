//! The driver `process`: an original server is a stopped process that is continued.
//!
//! With the rights of root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW) it has namespaces of its own for network, processes and
//! mounts (see `agent::isolation`) and an interface on the service network: one end of a veth pair where the configured interface is
//! a bridge, a macvlan on it otherwise. Behind a macvlan the host itself cannot reach its guest; on a bridge it can.
//! Without these rights it is a plain process that shares everything with the host and takes no address.
//!
//! The first process of the guest and its agent are one process group; SIGSTOP and SIGCONT to that suspend and resume it. With the
//! first process everything in the namespaces ends, interface and files included. An instance is named by that process.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};

use super::machine::{Failed, Machine, Seen};
use crate::core::decision::ServiceAddress;
use crate::core::id::ServerName;
use crate::edge::agent::{AgentArgs, Reply, Request, Stage, StartingAgent, call};
use crate::edge::iproute;
use crate::edge::procedure::Procedure;
use crate::edge::process_identity::ProcessIdentity;

/// The name of the guest's interface, as the guest sees it.
const GUEST_INTERFACE: &str = "eth0";
const PREPARE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(2);
const END: Duration = Duration::from_secs(5);
/// Beyond the deadline of a procedure itself.
const INSTALL_MARGIN: Duration = Duration::from_secs(3);

/// Where and with what the driver works.
#[derive(Debug, Clone)]
pub struct ProcessDriver {
    /// The p2pdb program itself, `/proc/self/exe` in the daemon.
    pub program: PathBuf,
    /// The daemon's folder, which guests must not see.
    pub directory: PathBuf,
    /// The interface of this host on the service network.
    pub interface: Option<String>,
    /// The router of the service network.
    pub gateway: Option<IpAddr>,
}

impl ProcessDriver {
    /// Whether guests get namespaces of their own here.
    pub fn isolates() -> bool {
        let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        capabilities(None).is_ok_and(|held| held.effective.contains(needed))
    }

    /// What an administrator should know of this driver on this host.
    pub fn note(&self) -> &'static str {
        match (Self::isolates(), &self.interface) {
            (true, Some(_)) => "a process in namespaces of its own",
            (true, None) => {
                "a process in namespaces of its own, without a service network (service.interface is not set)"
            }
            (false, _) => {
                "a plain process beside the daemon's: it shares files and network with the host, takes no address"
            }
        }
    }

    /// The machine for one original, whose folder exists.
    pub fn machine(&self, original: &str, folder: &Path) -> ProcessMachine {
        ProcessMachine {
            driver: self.clone(),
            directory: fs::canonicalize(&self.directory).unwrap_or_else(|_| self.directory.clone()),
            isolated: Self::isolates(),
            original: original.to_owned(),
            socket: folder.join("agent.sock"),
            root: folder.join("root"),
        }
    }
}

pub struct ProcessMachine {
    driver: ProcessDriver,
    /// The daemon's folder, as the guest would see it.
    directory: PathBuf,
    isolated: bool,
    original: String,
    socket: PathBuf,
    /// The place of files in a guest that is not isolated.
    root: PathBuf,
}

impl ProcessMachine {
    fn arguments(&self) -> AgentArgs {
        let networked = self.isolated && self.driver.interface.is_some();
        AgentArgs {
            stage: Stage::Outer,
            interface: networked.then(|| GUEST_INTERFACE.into()),
            gateway: self.driver.gateway.filter(|_| networked),
            name: self.original.clone(),
            hide: self.isolated.then(|| self.directory.clone()),
            root: (!self.isolated).then(|| self.root.clone()),
            ..AgentArgs::host(None)
        }
    }

    fn prepare_instance(&self, register: &mut dyn FnMut(&str) -> Result<(), Failed>) -> io::Result<()> {
        if !self.isolated {
            match fs::remove_dir_all(&self.root) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir_all(&self.root)?,
            }
        }
        let agent = StartingAgent::start(&self.driver.program, &self.socket, &self.arguments(), PREPARE)?;
        register(&agent.identity.to_string()).map_err(io::Error::other)?;
        if self.isolated
            && let Some(interface) = &self.driver.interface
        {
            connect(interface, agent.identity)?;
        }
        let identity = agent.release()?;
        identity.signal_group(Signal::STOP)?;
        identity.wait_stopped(ANSWER)
    }

    fn call(&self, request: Request, payload: &[u8], patience: Duration) -> Result<Reply, Failed> {
        call(&self.socket, request, payload, patience).map_err(|error| error.to_string())
    }

    fn destroy_instance(&self, identity: ProcessIdentity) -> io::Result<()> {
        if !identity.is_alive() {
            return Ok(());
        }
        // Not what this daemon would make, but what the one before it, with other rights perhaps, has made.
        if shares_network(identity)? {
            kill_descendants(identity)?;
        } else {
            // The network of a process that has ended may live on for a moment: the interface goes first.
            disconnect(identity)?;
        }
        identity.kill(END)
    }
}

impl Machine for ProcessMachine {
    fn note(&self) -> String {
        self.driver.note().into()
    }

    fn prepare(&mut self, register: &mut dyn FnMut(&str) -> Result<(), Failed>) -> Result<(), Failed> {
        self.prepare_instance(register).map_err(|error| error.to_string())
    }

    fn look(&mut self, instance: &str) -> Seen {
        let identity = instance.parse::<ProcessIdentity>().ok().filter(ProcessIdentity::is_alive);
        match identity {
            None => Seen::Gone,
            Some(identity) if identity.is_stopped() => Seen::Suspended,
            Some(_) => match self.call(Request::Report, &[], ANSWER) {
                Ok(Reply::Held(held)) => Seen::Running(held.map(|(address, _)| address)),
                _ => Seen::Silent,
            },
        }
    }

    fn resume(&mut self, instance: &str) -> Result<(), Failed> {
        let identity: ProcessIdentity = instance.parse()?;
        identity.signal_group(Signal::CONT).map_err(|error| error.to_string())?;
        self.call(Request::Report, &[], ANSWER).map(drop)
    }

    fn install(
        &mut self,
        _: &str,
        target: &ServerName,
        procedure: &Procedure,
        _: Option<ServiceAddress>,
    ) -> Result<String, Failed> {
        let request = Request::Install { target: target.clone(), original: self.original.clone() };
        let patience = procedure.manifest.deadline() + INSTALL_MARGIN;
        match self.call(request, &procedure.bundle(), patience)? {
            Reply::Installed { output } => Ok(output),
            other => Err(format!("the agent gave an answer to another question: {other:?}")),
        }
    }

    fn take_address(&mut self, _: &str, address: ServiceAddress, until_ns: u64) -> Result<(), Failed> {
        self.call(Request::Take { address, until_ns }, &[], ANSWER).map(drop)
    }

    fn hold_address(&mut self, _: &str, address: ServiceAddress, until_ns: u64) -> Result<(), Failed> {
        self.call(Request::Hold { address, until_ns }, &[], ANSWER).map(drop)
    }

    fn release_address(&mut self, _: &str) -> Result<(), Failed> {
        self.call(Request::Release, &[], ANSWER).map(drop)
    }

    fn destroy(&mut self, instance: &str) -> Result<(), Failed> {
        self.destroy_instance(instance.parse()?).map_err(|error| error.to_string())
    }

    fn remove(&mut self) -> Result<(), Failed> {
        let gone = |removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        };
        gone(fs::remove_file(&self.socket))?;
        gone(fs::remove_file(self.socket.with_extension("log")))?;
        gone(fs::remove_dir_all(&self.root))
    }
}

/// Gives the guest its interface on the service network.
fn connect(interface: &str, guest: ProcessIdentity) -> io::Result<()> {
    let pid = guest.pid.to_string();
    // Lists the interface if it is one.
    let bridge = iproute::ip(&["-oneline", "link", "show", "dev", interface, "type", "bridge"])?;
    if bridge.trim().is_empty() {
        let macvlan = ["link", "add", "link", interface, "name", GUEST_INTERFACE, "netns", &pid];
        return iproute::ip(&[&macvlan[..], &["type", "macvlan", "mode", "bridge"]].concat()).map(drop);
    }
    // Names of interfaces have at most 15 bytes; no two guests have one process id.
    let outer = format!("p2pdb{pid}");
    // A bridge has the lowest hardware address of its ports. One that comes and goes must not be the lowest: the neighbours would
    // lose the host for as long as they remember its address.
    let [a, b, c, d] = guest.pid.to_be_bytes();
    let high = format!("fe:70:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    let pair = ["link", "add", "name", &outer, "address", &high, "type", "veth"];
    iproute::ip(&[&pair[..], &["peer", "name", GUEST_INTERFACE, "netns", &pid]].concat())?;
    iproute::ip(&["link", "set", &outer, "master", interface, "up"]).map(drop)
}

/// Whether a guest is in the network of this process.
fn shares_network(guest: ProcessIdentity) -> io::Result<bool> {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    match network(&guest.pid.to_string()) {
        Ok(theirs) => Ok(theirs == network("self")?),
        // It is ending, and has left its network already.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the guest's interface away, whatever state its processes are in.
fn disconnect(guest: ProcessIdentity) -> io::Result<()> {
    let namespace = match fs::File::open(format!("/proc/{}/ns/net", guest.pid)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !guest.is_alive() {
        return Ok(());
    }
    let within = || -> io::Result<()> {
        use std::os::fd::AsFd;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        iproute::remove_interface(GUEST_INTERFACE)
    };
    // A thread that has moved to another network is good for nothing else.
    std::thread::scope(|scope| scope.spawn(within).join()).unwrap_or_else(|_| Err(io::Error::other("a thread broke")))
}

/// Kills what a guest that shares the processes of the host has started. Its first process, which collects all orphans, is stopped
/// for that, and left.
fn kill_descendants(guest: ProcessIdentity) -> io::Result<()> {
    guest.signal_group(Signal::STOP)?;
    guest.wait_stopped(ANSWER)?;
    loop {
        let mut of_guest = vec![guest.pid];
        let parents = parents()?;
        let is_new = |(pid, parent): &&(i32, i32), held: &[i32]| held.contains(parent) && !held.contains(pid);
        while let Some((pid, _)) = parents.iter().find(|pair| is_new(pair, &of_guest)) {
            of_guest.push(*pid);
        }
        let others: Vec<_> = of_guest[1..].iter().filter_map(|pid| ProcessIdentity::of(*pid)).collect();
        if others.is_empty() {
            return Ok(());
        }
        others.iter().try_for_each(|other| other.kill(END))?;
    }
}

/// All processes with their parents.
fn parents() -> io::Result<Vec<(i32, i32)>> {
    let mut found = Vec::new();
    for item in fs::read_dir("/proc")? {
        let Some(pid) = item?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        found.extend(parent.map(|parent| (pid, parent)));
    }
    Ok(found)
}
