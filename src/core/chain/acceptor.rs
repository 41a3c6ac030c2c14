//! The acceptor of single-decree Paxos (Lamport, "Paxos Made Simple", 2001), for the one slot that is open, and the memory
//! that a server has of the chain.
//!
//! Invariants: only the first undecided slot is voted in, so everything about the slots before it is known, the
//! electorate too. `promised` never falls, and is at least the ballot of `accepted`.

use std::sync::Arc;

use thiserror::Error;

use super::message::{Ballot, ChainRecord, Vote};
use crate::core::decision::{Decision, Slot};

/// Votes in one slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Acceptor {
    promised: Option<Ballot>,
    accepted: Option<Vote>,
}

impl Acceptor {
    pub fn promised(&self) -> Option<&Ballot> {
        self.promised.as_ref()
    }

    pub fn accepted(&self) -> Option<&Vote> {
        self.accepted.as_ref()
    }

    /// Phase 1: the record to keep, `None` if the promise was made before; or the higher ballot that was promised.
    pub fn prepare(&mut self, slot: Slot, ballot: &Ballot) -> Result<Option<ChainRecord>, Ballot> {
        match &self.promised {
            Some(promised) if promised > ballot => Err(promised.clone()),
            Some(promised) if promised == ballot => Ok(None),
            _ => {
                self.promised = Some(ballot.clone());
                Ok(Some(ChainRecord::Promised { slot, ballot: ballot.clone() }))
            }
        }
    }

    /// Phase 2, likewise.
    pub fn accept(&mut self, ballot: &Ballot, decision: &Arc<Decision>) -> Result<Option<ChainRecord>, Ballot> {
        match &self.promised {
            Some(promised) if promised > ballot => return Err(promised.clone()),
            _ => self.promised = Some(ballot.clone()),
        }
        if self.accepted.as_ref().is_some_and(|(accepted, _)| accepted == ballot) {
            return Ok(None);
        }
        self.accepted = Some((ballot.clone(), decision.clone()));
        Ok(Some(ChainRecord::Accepted { ballot: ballot.clone(), decision: decision.clone() }))
    }
}

/// What a server knows and has promised: the sum of its records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Memory {
    /// Slot n is at n - 1.
    pub decisions: Vec<Arc<Decision>>,
    pub acceptor: Acceptor,
}

/// Records that no server has written in this order.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a record is of slot {found}, but slot {open} is the open one")]
pub struct OutOfOrder {
    pub found: Slot,
    pub open: Slot,
}

impl Memory {
    /// The slot that is to be decided next.
    pub fn open_slot(&self) -> Slot {
        self.decisions.len() as Slot + 1
    }

    pub fn decide(&mut self, decision: Arc<Decision>) {
        self.decisions.push(decision);
        self.acceptor = Acceptor::default();
    }

    /// Takes in the next record of the file.
    pub fn replay(&mut self, record: ChainRecord) -> Result<(), OutOfOrder> {
        let found = match &record {
            ChainRecord::Promised { slot, .. } => *slot,
            ChainRecord::Accepted { decision, .. } | ChainRecord::Decided(decision) => decision.slot,
        };
        let open = self.open_slot();
        if found != open {
            return Err(OutOfOrder { found, open });
        }
        match record {
            ChainRecord::Promised { ballot, .. } => self.acceptor.promised = Some(ballot),
            ChainRecord::Accepted { ballot, decision } => {
                self.acceptor = Acceptor { promised: Some(ballot.clone()), accepted: Some((ballot, decision)) };
            }
            ChainRecord::Decided(decision) => self.decide(decision),
        }
        Ok(())
    }

    /// The fewest records that make this memory.
    pub fn records(&self) -> Vec<ChainRecord> {
        let mut records: Vec<ChainRecord> = self.decisions.iter().cloned().map(ChainRecord::Decided).collect();
        if let Some((ballot, decision)) = &self.acceptor.accepted {
            records.push(ChainRecord::Accepted { ballot: ballot.clone(), decision: decision.clone() });
        }
        let implied = self.acceptor.accepted.as_ref().map(|(ballot, _)| ballot);
        if let Some(ballot) = self.acceptor.promised.as_ref().filter(|ballot| Some(*ballot) != implied) {
            records.push(ChainRecord::Promised { slot: self.open_slot(), ballot: ballot.clone() });
        }
        records
    }
}
