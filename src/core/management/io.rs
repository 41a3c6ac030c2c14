//! The contract of management: what goes in, what comes out, and what it is configured with.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::core::chain::ChainRecord;
use crate::core::check::Preset;
use crate::core::decision::{Decision, Incarnation, ServiceAddress, Slot};
use crate::core::flaw::Flaw;
use crate::core::guest::{GuestOrder, GuestReport, OrderId};
use crate::core::id::ServerName;
use crate::core::io::{Edit, Message, Ticket};
use crate::core::probe::{Probe, ProbeId, ProbeOutcome};
use crate::core::quorum::Policy;

/// Names a look at an address until its outcome.
pub type LookId = u64;
/// Names a run of a hook until its outcome.
pub type HookId = u64;

/// How a server takes part in management.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagementConfig {
    pub me: ServerName,
    /// Of this server's `Decision.dat`.
    pub incarnation: Incarnation,
    pub policy: Policy,
    /// It votes, and manages nothing.
    pub witness: bool,
    /// It makes the first decision of the group if it knows none.
    pub founder: bool,
    /// `false`: failures are noticed and explained, and nothing is done about them.
    pub act: bool,
    /// Whether a server that is back takes its place by itself.
    pub failback: Failback,
    pub preset: Preset,
    /// How long an exclusive service address may be held after the last renewal, in milliseconds.
    pub lease_ms: u64,
    /// How long one look at an address takes, in milliseconds.
    pub look_ms: u64,
    /// Whether this host has a service network: it takes its own service address, and hosts stand-ins.
    pub service_network: bool,
    /// The original servers of this host: each tells how it is before this server says that it holds nothing, or lacks one.
    pub originals: Vec<String>,
    /// The hooks that are configured here.
    pub hooks: Vec<Hook>,
    /// Any number: pauses after lost duels are drawn from it.
    pub seed: u64,
    pub flaw: Option<Flaw>,
}

impl ManagementConfig {
    pub fn new(me: ServerName, incarnation: Incarnation, seed: u64) -> Self {
        Self {
            me,
            incarnation,
            policy: Policy::default(),
            witness: false,
            founder: false,
            act: true,
            failback: Failback::Auto,
            preset: Preset::Fast,
            lease_ms: 2_000,
            look_ms: 150,
            service_network: true,
            originals: Vec::new(),
            hooks: Vec::new(),
            seed,
            flaw: None,
        }
    }
}

/// When a server that is back takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failback {
    #[default]
    Auto,
    /// When an operator says so.
    Manual,
}

/// A program of the administrator that is run at a certain moment. It gets the server concerned and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// This server's own service does not answer: restart it.
    RestartService,
    /// A server has failed, and was recovered: try to restart it, from its manager.
    RestartServer,
    /// A server has failed, and was recovered: make sure that it does not serve any more, from its manager. Success counts as
    /// the end of its lease.
    Fence,
    /// Tell people: run by whoever decided.
    Notify,
    /// This server is back: succeeds when its services are ready for the address.
    Ready,
}

impl Hook {
    pub const ALL: [Hook; 5] = [Hook::RestartService, Hook::RestartServer, Hook::Fence, Hook::Notify, Hook::Ready];

    /// As it stands in `p2pdb.toml` and in the log.
    pub fn word(self) -> &'static str {
        match self {
            Hook::RestartService => "restart_service",
            Hook::RestartServer => "restart_server",
            Hook::Fence => "fence",
            Hook::Notify => "notify",
            Hook::Ready => "ready",
        }
    }
}

/// One run of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRun {
    pub id: HookId,
    pub hook: Hook,
    pub server: ServerName,
    /// Why, in words.
    pub reason: String,
}

/// What is to become of this server's own service address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressOrder {
    pub id: OrderId,
    pub action: AddressAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressAction {
    /// Tell what is held: an earlier daemon may have left it.
    Report,
    /// Take and announce it; it lapses by itself `lease_ms` after the `now` of the order.
    Take {
        address: ServiceAddress,
        lease_ms: u64,
    },
    /// It stays for `lease_ms` from the `now` of the order; fails when it has lapsed.
    Hold {
        address: ServiceAddress,
        lease_ms: u64,
    },
    Release {
        address: ServiceAddress,
    },
}

/// What an operator wants of management.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperatorCommand {
    /// Lets a group that has shared files only look after itself from now on: this server makes its first decision.
    Found,
    /// Recovers a server, whatever it looks like; on this host if one is named.
    Recover { target: ServerName, host: Option<ServerName> },
    /// Lets a server that is back take its place.
    Failback { target: ServerName },
    /// Vouches that a server does not serve any more.
    ConfirmDead { target: ServerName },
    /// Moves all stand-ins away from a host.
    Drain { host: ServerName },
}

impl OperatorCommand {
    /// What is wanted, for a message to a person.
    pub fn describe(&self) -> String {
        match self {
            Self::Found => "let the group look after itself".into(),
            Self::Recover { target, .. } => format!("recover {target}"),
            Self::Failback { target } => format!("let {target} take its place"),
            Self::ConfirmDead { target } => format!("vouch for the death of {target}"),
            Self::Drain { host } => format!("move the stand-ins away from {host}"),
        }
    }
}

/// What goes in.
#[derive(Debug)]
pub enum ManagementInput {
    /// The records of the oldest unanswered `Persist` are on disk.
    Persisted,
    /// The answer to `Ask`.
    Outcome { id: ProbeId, outcome: ProbeOutcome },
    /// How the original servers of this host are, and what became of orders.
    Guest(GuestReport),
    /// The answer to `Address`: what is held afterwards, or why it was not done.
    Address { id: OrderId, outcome: Result<Option<ServiceAddress>, String> },
    /// The answer to `Look`: whether somebody answers there, or why nobody could ask.
    Looked { id: LookId, outcome: Result<bool, String> },
    /// The answer to `Run`: the last line of its output, or why it failed.
    HookDone { id: HookId, outcome: Result<String, String> },
    /// Answered by `Answer`.
    Operator { ticket: Ticket, author: String, command: OperatorCommand },
}

/// What servers say to each other about stand-ins and addresses. Variants are only ever appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagementMessage {
    /// Look whether somebody answers at this address, on behalf of a takeover because of this decision.
    WantLook { slot: Slot, round: u64, address: ServiceAddress },
    /// What was seen; `None`: nobody could ask.
    Look { slot: Slot, round: u64, answers: Option<bool> },
    /// The sender knows the decision that gave this server's address to somebody else, does not hold the address, and
    /// will not take it because of an older decision.
    LetGo { target: ServerName, slot: Slot },
    /// The target is suspected: resume this original server of yours for it and install, without the address.
    WarmUp { target: ServerName, original: String },
    /// It is in order after all.
    CoolDown { target: ServerName, original: String },
    /// Have you let go of this server's address, as this decision wants? Answered by `LetGo` if so.
    WantLetGo { target: ServerName, slot: Slot },
    /// An operator wants you to take your place.
    Failback { author: String },
}

/// What comes out. Outputs are to be carried out in order; leases in them count from the `now` of the input.
#[derive(Debug)]
pub enum ManagementOutput {
    /// Append these records to `Decision.dat`, durably; answered by `Persisted`, in the order of asking.
    Persist(Vec<ChainRecord>),
    /// Put this question to a service.
    Ask(Probe),
    /// To an original server of this host.
    Guest(GuestOrder),
    /// To this server's own service address.
    Address(AddressOrder),
    /// Ask the service network who answers at the address, for `patience_ms` at most.
    Look {
        id: LookId,
        address: ServiceAddress,
        patience_ms: u64,
    },
    Run(HookRun),
    Answer {
        ticket: Ticket,
        result: Result<String, String>,
    },
    /// The next slot is decided; for the records of people.
    Decided(Arc<Decision>),
}

/// What management wants of the node that it is a part of.
#[derive(Debug)]
pub(in crate::core) enum Act {
    Out(ManagementOutput),
    Send { peers: Vec<ServerName>, message: Message },
    Submit { reason: String, edits: Vec<Edit> },
    Alarm { name: String, text: Option<String> },
}
