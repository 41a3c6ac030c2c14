//! One look at one service: what to ask, and what came of it. The questions are asked at the edge.

use std::fmt;
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

impl fmt::Display for ProbeKind {
    /// As the file `Check` has it; options of http apart.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProbeKind::Icmp => out.write_str("icmp"),
            ProbeKind::Tcp { port } => write!(out, "tcp {port}"),
            ProbeKind::Http { port, tls, path, .. } => write!(out, "http{} {port} {path}", if *tls { "s" } else { "" }),
            ProbeKind::Smtp { port } => write!(out, "smtp {port}"),
            ProbeKind::Ssh { port } => write!(out, "ssh {port}"),
            ProbeKind::Ftp { port } => write!(out, "ftp {port}"),
            ProbeKind::Dns { port, name } => write!(out, "dns {port} {name}"),
            ProbeKind::Proxy { port, url } => write!(out, "proxy {port} {url}"),
            ProbeKind::Command { command } => write!(out, "command {}", command.join(" ")),
        }
    }
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    Answered {
        took_us: u64,
    },
    /// The host answers and the service does not: "connection refused", "it greets with '554 no'", silence behind an
    /// accepted connection.
    Refused(String),
    /// Nobody answers, in words such as "no answer within 400 ms".
    Failed(String),
    /// The prober could not ask (no permission, no route, program missing), and what to do: says nothing about the service.
    Unable(String),
}

impl ProbeOutcome {
    /// Whether there is somebody at the address, whatever the service does.
    pub fn host_answers(&self) -> bool {
        matches!(self, ProbeOutcome::Answered { .. } | ProbeOutcome::Refused(_))
    }
}

impl fmt::Display for ProbeOutcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProbeOutcome::Answered { took_us } => {
                write!(out, "answers in {}.{} ms", took_us / 1000, took_us / 100 % 10)
            }
            ProbeOutcome::Refused(why) | ProbeOutcome::Failed(why) => out.write_str(why),
            ProbeOutcome::Unable(why) => write!(out, "could not be asked: {why}"),
        }
    }
}
