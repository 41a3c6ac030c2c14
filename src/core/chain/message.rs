//! What electors say to each other, and what they write down.

use std::sync::Arc;

use crate::core::decision::{Decision, Incarnation, Slot};
use crate::core::id::ServerName;

/// Most decisions in one message.
pub const DECISIONS_MAX: usize = 100;

/// The number of an attempt; no two attempts share one, for the proposer keeps its own on disk before it uses it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// From 1.
    pub round: u64,
    pub proposer: ServerName,
    /// A proposer that has lost its file may come to the same round again, under another incarnation.
    pub incarnation: Incarnation,
}

/// A value that an acceptor has accepted, and under which ballot.
pub type Vote = (Ballot, Arc<Decision>);

/// What electors, and those who learn from them, say to each other. Variants are only ever appended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainMessage {
    /// Promise not to accept anything below this ballot in this slot.
    Prepare {
        slot: Slot,
        ballot: Ballot,
    },
    /// Promised; and what was accepted before.
    Promise {
        slot: Slot,
        ballot: Ballot,
        accepted: Option<Vote>,
    },
    /// Accept this value for its slot.
    Accept {
        ballot: Ballot,
        decision: Arc<Decision>,
    },
    Accepted {
        slot: Slot,
        ballot: Ballot,
    },
    /// A higher ballot was promised.
    Refused {
        slot: Slot,
        ballot: Ballot,
        promised: Ballot,
    },
    /// The sender knows that it is no elector, or that its file is not the one that was admitted.
    Abstained {
        slot: Slot,
        ballot: Ballot,
    },
    /// Consecutive decisions, at most [`DECISIONS_MAX`].
    Decisions(Vec<Arc<Decision>>),
    WantDecisions {
        from: Slot,
    },
}

/// What is kept on disk, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ChainRecord {
    Promised {
        slot: Slot,
        ballot: Ballot,
    },
    /// Implies the promise.
    Accepted {
        ballot: Ballot,
        decision: Arc<Decision>,
    },
    Decided(Arc<Decision>),
}
