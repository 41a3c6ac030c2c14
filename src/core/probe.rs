//! One look at one service: what to ask, and what came of it. The questions are asked at the edge.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Names a probe until its outcome.
pub type ProbeId = u64;

/// A question to an address, answered within `timeout_ms`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub id: ProbeId,
    pub address: IpAddr,
    pub kind: ProbeKind,
    pub timeout_ms: u64,
}

/// What counts as an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProbeKind {
    Icmp,
    /// A connection is accepted.
    Tcp {
        port: u16,
    },
    /// A response with a status below 400, or the one named.
    Http {
        port: u16,
        tls: bool,
        host: Option<String>,
        path: String,
        status: Option<u16>,
    },
    /// A 220 greeting, answered with QUIT.
    Smtp {
        port: u16,
    },
    /// A banner that begins with `SSH-`.
    Ssh {
        port: u16,
    },
    /// A 220 greeting, answered with QUIT.
    Ftp {
        port: u16,
    },
    /// An answer to a question for `name`, whatever it says but a server failure.
    Dns {
        port: u16,
        name: String,
    },
    /// A forward proxy fetches `url`.
    Proxy {
        port: u16,
        url: String,
    },
    /// A program on the asking server ends with 0; `{address}` in its arguments is replaced.
    Command {
        command: Vec<String>,
    },
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    Answered {
        took_us: u64,
    },
    /// In words, such as "connection refused" or "no answer within 500 ms".
    Failed(String),
    /// The prober could not ask (no permission, program missing): says nothing about the service.
    Unable(String),
}
