//! The gate of an original server: the host's end of its network, and the agent that opens it for the time of a lease.
//!
//! ```text
//! absent --make--> shut --take--> open (agent holds the lease) --release, or the lease is over--> shut --remove--> absent
//! ```
//! A tap interface that is a port of the service network's bridge: down, nothing passes, whatever the guest does. The agent is a
//! process of its own (`edge::agent`): it shuts the gate on time when this daemon is frozen or gone. Invariant: a gate whose agent is gone is
//! shut by whoever notices first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::decision::ServiceAddress;
use crate::edge::agent::{self, AgentArgs, Reply, Request, call};
use crate::edge::iproute;

const ANSWER: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct Gate {
    /// The p2pdb program itself.
    pub program: PathBuf,
    /// `None`: there is no service network any more; what is left of one can still be shut and taken away.
    pub bridge: Option<String>,
    /// At most 15 bytes; no other interface of the host has it.
    pub tap: String,
    /// The guest's hardware address.
    pub mac: String,
    /// The agent's socket.
    pub socket: PathBuf,
}

impl Gate {
    /// Makes it anew, shut.
    ///
    /// # Errors
    /// The bridge is none, or would keep the gate shut for half a minute after it was opened; or `ip` says no.
    pub fn make(&self) -> io::Result<()> {
        let bridge = self.bridge()?;
        self.remove()?;
        let listed = iproute::ip(&["-oneline", "link", "show", "dev", bridge, "type", "bridge"])?;
        if listed.trim().is_empty() {
            return Err(io::Error::other(format!(
                "service.interface '{bridge}' is not a bridge; virtual machines need one: put the interface into a bridge and name that"
            )));
        }
        if let Some(words) = spanning_tree(bridge) {
            return Err(io::Error::other(format!("{words}; {SPANNING_TREE_REMEDY}")));
        }
        iproute::ip(&["tuntap", "add", "dev", &self.tap, "mode", "tap"])?;
        // A bridge has the lowest hardware address of its ports; one that comes and goes must not be the lowest. And the host
        // itself says nothing through it.
        let high = format!("fe:70{}", &self.mac[5..]);
        iproute::ip(&["link", "set", "dev", &self.tap, "address", &high, "addrgenmode", "none"])?;
        self.join()
    }

    fn join(&self) -> io::Result<()> {
        iproute::ip(&["link", "set", "dev", &self.tap, "master", self.bridge()?]).map(drop)
    }

    fn bridge(&self) -> io::Result<&str> {
        let missing = "there is no service network here; set service.interface in p2pdb.toml";
        self.bridge.as_deref().ok_or_else(|| io::Error::other(missing))
    }

    /// Shuts it and takes it away; one that is not there is fine.
    pub fn remove(&self) -> io::Result<()> {
        self.release()?;
        iproute::remove_interface(&self.tap)
    }

    /// Starts the agent if there is none that answers.
    pub fn attend(&self) -> io::Result<()> {
        if self.call(Request::Report).is_ok() {
            return Ok(());
        }
        self.shut_for_agent()?;
        let arguments = AgentArgs {
            gate: Some(self.tap.clone()),
            mac: Some(self.mac.clone()),
            name: self.tap.clone(),
            ..AgentArgs::host(Some(self.bridge()?.to_owned()))
        };
        agent::start_known(&self.program, &self.socket, &arguments)
    }

    /// Opens it until `until_ns` (`CLOCK_MONOTONIC`) and announces the address.
    pub fn take(&self, address: ServiceAddress, until_ns: u64) -> io::Result<()> {
        self.attend()?;
        let master = fs::read_link(format!("/sys/class/net/{}/master", self.tap));
        if !master.is_ok_and(|master| master.ends_with(self.bridge.as_deref().unwrap_or_default())) {
            // Somebody has made the bridge anew since.
            self.join()?;
        }
        self.call(Request::Take { address, until_ns }).map(drop)
    }

    /// Lengthens that time; fails when it is over.
    pub fn hold(&self, address: ServiceAddress, until_ns: u64) -> io::Result<()> {
        self.call(Request::Hold { address, until_ns }).map(drop)
    }

    pub fn release(&self) -> io::Result<()> {
        match self.call(Request::Release) {
            Ok(_) => Ok(()),
            Err(_) => self.shut_for_agent(),
        }
    }

    /// Shuts one that nobody holds, whoever has opened it.
    pub fn shut(&self) -> io::Result<()> {
        iproute::set_down(&self.tap)
    }

    /// For which address it is open. Without its agent it is shut.
    pub fn held(&self) -> io::Result<Option<ServiceAddress>> {
        match self.call(Request::Report) {
            Ok(Reply::Held(held)) => Ok(held.map(|(address, _)| address)),
            Ok(other) => Err(io::Error::other(format!("the agent gave an answer to another question: {other:?}"))),
            Err(_) => self.shut_for_agent().map(|()| None),
        }
    }

    /// There is no agent to shut it, or one that cannot, and goes on trying until somebody has. One that is frozen is ended: it would
    /// act when it thaws, on a gate that is open for another lease by then.
    fn shut_for_agent(&self) -> io::Result<()> {
        self.shut()?;
        agent::end_known(&self.socket)
    }

    fn call(&self, request: Request) -> io::Result<Reply> {
        call(&self.socket, request, &[], ANSWER)
    }
}

pub const SPANNING_TREE_REMEDY: &str =
    "switch that off: 'nmcli connection modify BRIDGE bridge.stp no', or 'stp: false' in netplan";

/// What is wrong with a bridge that looks for loops: a port of it that comes up passes nothing for twice the forward delay.
pub fn spanning_tree(bridge: &str) -> Option<String> {
    let shown = iproute::ip(&["-details", "-oneline", "link", "show", "dev", bridge, "type", "bridge"]).ok()?;
    let words = "runs the spanning tree protocol, so a stand-in would be reached half a minute after it is ready";
    let is_on = shown.contains(" stp_state ") && !shown.contains(" stp_state 0 ");
    is_on.then(|| format!("the bridge '{bridge}' {words}"))
}

/// The socket of the agent of an original with this folder.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("gate.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_service_network_a_gate_is_not_made_and_is_still_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let gate = Gate {
            program: "/nowhere".into(),
            bridge: None,
            tap: "p2pdb-nowhere".into(),
            mac: "52:54:00:00:00:01".into(),
            socket: socket(folder.path()),
        };
        assert!(gate.make().unwrap_err().to_string().contains("set service.interface"));
        gate.remove().unwrap();
    }
}
