//! What is decided: the acts of the decision chain, and the group as they leave it.
//!
//! A decision fills one slot of the chain; its slot is the fencing token of everything that is done because of it.
//! Slot n+1 is decided by the electorate as of slot n, so the electorate changes by decision only.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::id::ServerName;

/// The slot of a decision, from 1; also the fencing token of what it orders.
pub type Slot = u64;

/// One decided step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub slot: Slot,
    /// Who proposed it, and when by its wall clock, in ms since 1970.
    pub by: ServerName,
    pub wall_ms: u64,
    /// Who wanted it: the daemon itself (`p2pdb`) or an operator; and why, with the figures that were used.
    pub author: String,
    pub reason: String,
    pub act: Act,
}

/// What a decision does. Variants are only ever appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Slot 1: the electorate begins with its founder.
    Found { founder: ServerName },
    /// A server that operates becomes an elector and a member of the group.
    Admit { server: ServerName },
    /// An operator has removed a server for good: neither elector nor target any more.
    Remove { server: ServerName },
    /// An elector that manages nothing joins or leaves.
    Witness { name: ServerName, joins: bool },
    /// A failed server leaves the group; whoever is named plays it from now on. Also decided again, with another
    /// place, when a stand-in fails.
    Recover { target: ServerName, place: Option<Place>, manager: ServerName },
    /// The server plays itself again: its stand-in has to let go of the address first.
    Return { target: ServerName },
}

/// Where a stand-in runs: an original server of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    pub host: ServerName,
    pub original: String,
}

/// The address under which a server's service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceAddress {
    pub ip: IpAddr,
    /// Length of the network part, in bits.
    pub prefix: u8,
}
