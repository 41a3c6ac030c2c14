//! The contract of the chain: what goes in and what comes out.

use std::sync::Arc;

use super::message::{ChainMessage, ChainRecord};
use crate::core::decision::{Act, Decision, Slot, TooLong};
use crate::core::id::ServerName;
use crate::core::io::Ticket;
use crate::core::roster::Obstacle;

/// Something to be decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wish {
    pub author: String,
    pub reason: String,
    pub act: Act,
}

/// What goes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainInput {
    /// Expected at [`Chain::next_wake_us`], and harmless at any other time.
    Tick,
    /// Answered by `WishDone`.
    Wish {
        ticket: Ticket,
        wish: Wish,
    },
    /// Nobody waits for the wish any more; answered by `WishDone`, unless it had been before.
    Cancel {
        ticket: Ticket,
    },
    LinkUp {
        peer: ServerName,
    },
    LinkDown {
        peer: ServerName,
    },
    Message {
        peer: ServerName,
        message: ChainMessage,
    },
    /// The records of the oldest unanswered `Persist` are on disk.
    Persisted,
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainOutput {
    /// Append these records to `Decision.dat`, durably; answered by `Persisted`, in the order of asking.
    Persist(Vec<ChainRecord>),
    Send {
        peers: Vec<ServerName>,
        message: ChainMessage,
    },
    /// The next slot is decided; slots come in order, each once.
    Decided(Arc<Decision>),
    WishDone {
        ticket: Ticket,
        outcome: WishOutcome,
    },
    /// The peer has another decision in a slot than this server: the files of one of the two are not what they were, or
    /// both decided under [`Policy::Paper`] without each other. Nothing the peer says is taken any more. Told once per peer.
    Forked {
        peer: ServerName,
        held: Arc<Decision>,
        told: Arc<Decision>,
    },
}

/// How a wish ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WishOutcome {
    /// The fencing token.
    Decided(Slot),
    /// Other decisions have made it pointless.
    Overtaken(Obstacle),
    /// It was cancelled. If others may have seen it, they may still decide it.
    Withdrawn {
        may_be_decided: bool,
    },
    Refused(TooLong),
}
