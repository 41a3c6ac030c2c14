//! What a manager holds of a target, and says to the target's other manager.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::ServerName;

/// What has failed, by what still answers (the paper, section 5). In order of gravity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failure {
    /// The host answers, the service does not.
    Service,
    /// Nothing answers at the service address, and the host's daemon is still linked.
    Network,
    /// Nothing answers at all.
    Host,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Failure::Service => "service failure",
            Failure::Network => "network failure",
            Failure::Host => "host failure",
        })
    }
}

/// Why a manager holds no opinion of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blindness {
    /// It reaches nobody at all, so it is likely to be cut off itself.
    Isolated,
    /// Every server that it watches is silent at its service address and linked, so its own service network is likely to be dead.
    ServiceNetwork,
    /// It cannot put any of the questions.
    Unable,
}

impl fmt::Display for Blindness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Blindness::Isolated => "it reaches nobody",
            Blindness::ServiceNetwork => "its own service network seems to be dead",
            Blindness::Unable => "it cannot ask",
        })
    }
}

/// How a target looks to one manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing is known yet.
    Unknown,
    Healthy,
    /// Something failed, and it is not certain yet.
    Suspect,
    Failed(Failure),
    Blind(Blindness),
}

impl fmt::Display for Health {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Unknown => out.write_str("not known yet"),
            Health::Healthy => out.write_str("healthy"),
            Health::Suspect => out.write_str("suspect"),
            Health::Failed(failure) => write!(out, "{failure}"),
            Health::Blind(blindness) => write!(out, "no opinion: {blindness}"),
        }
    }
}

/// What one manager says to the other about a target; said again when it changes and when their link comes up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    pub target: ServerName,
    /// Who runs the target: itself, or the host of its stand-in.
    pub host: ServerName,
    pub health: Health,
}
