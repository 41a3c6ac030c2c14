//! What is decided: the acts of the decision chain.
//!
//! A decision fills one slot of the chain; its slot is the fencing token of everything that is done because of it.
//! Slot n+1 is decided by the electorate as of slot n, so the electorate changes by decision only. What the decisions
//! make of the group is [`super::roster`].

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::id::ServerName;

/// Longest author of a decision, in bytes.
pub const AUTHOR_BYTES_MAX: usize = 256;
/// Longest reason of a decision, in bytes.
pub const REASON_BYTES_MAX: usize = 4096;
/// Longest name of an original server, in bytes.
pub const ORIGINAL_BYTES_MAX: usize = 256;

/// The slot of a decision, from 1; also the fencing token of what it orders.
pub type Slot = u64;

/// One life of a server's memory of decisions: drawn at random when its `Decision.dat` is made. Whoever has lost the
/// file has another one, and its vote counts again only once the new one has been decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// One decided step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Act {
    /// Slot 1: the electorate begins with its founder.
    Found { founder: ServerName, incarnation: Incarnation },
    /// A server that operates becomes an elector and a member of the group, or comes back after it has lost its file.
    Admit { server: ServerName, incarnation: Incarnation },
    /// An operator has removed a server or a witness for good: neither elector nor target any more.
    Remove { server: ServerName },
    /// An elector that manages nothing joins, or comes back after it has lost its file.
    Witness { name: ServerName, incarnation: Incarnation },
    /// A failed server leaves the group; whoever is named plays it from now on. Decided again, with another place, when
    /// a stand-in fails: `replaces` is the slot of the recovery that stands, `None` while the target is in the group.
    Recover { target: ServerName, place: Option<Place>, manager: ServerName, replaces: Option<Slot> },
    /// The server plays itself again: its stand-in has to let go of the address first.
    Return { target: ServerName, incarnation: Incarnation },
}

impl Act {
    /// The server that it is about.
    pub fn server(&self) -> &ServerName {
        match self {
            Act::Found { founder: server, .. }
            | Act::Admit { server, .. }
            | Act::Remove { server }
            | Act::Witness { name: server, .. }
            | Act::Recover { target: server, .. }
            | Act::Return { target: server, .. } => server,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Found { founder, .. } => write!(out, "{founder} begins the group"),
            Act::Admit { server, .. } => write!(out, "{server} is in the group"),
            Act::Remove { server } => write!(out, "{server} is removed for good"),
            Act::Witness { name, .. } => write!(out, "{name} votes as a witness"),
            Act::Recover { target, place: Some(place), replaces, .. } => {
                let again = if replaces.is_some() { "from now on " } else { "" };
                write!(out, "{target} is {again}played by {} on {}", place.original, place.host)
            }
            Act::Recover { target, place: None, .. } => {
                write!(out, "{target} is out of the group, and nobody can play it")
            }
            Act::Return { target, .. } => write!(out, "{target} takes its place again"),
        }
    }
}

/// Where a stand-in runs: an original server of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// A text of a decision is too long.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the {what} of a decision has {bytes} bytes; at most {limit} are allowed")]
pub struct TooLong {
    what: &'static str,
    bytes: usize,
    limit: usize,
}

/// Checks the bounds of a decision's texts.
pub fn check_texts(author: &str, reason: &str, act: &Act) -> Result<(), TooLong> {
    let original = match act {
        Act::Recover { place: Some(place), .. } => place.original.as_str(),
        _ => "",
    };
    let texts = [
        ("author", author, AUTHOR_BYTES_MAX),
        ("reason", reason, REASON_BYTES_MAX),
        ("original server", original, ORIGINAL_BYTES_MAX),
    ];
    match texts.into_iter().find(|(_, text, limit)| text.len() > *limit) {
        Some((what, text, limit)) => Err(TooLong { what, bytes: text.len(), limit }),
        None => Ok(()),
    }
}
