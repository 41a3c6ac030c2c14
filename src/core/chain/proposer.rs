//! The proposer of single-decree Paxos: one attempt to have the open slot decided.
//!
//! ```text
//! Prepare ──quorum of promises──► Accept ──quorum of acceptances──► decided
//!    └──────────── refused: another ballot is higher ──┴──► given up, tried again after a pause
//! ```
//! Invariant: the value of the second phase is the one accepted under the highest ballot that the promises named, and
//! the proposer's own only if they named none.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Chain;
use super::io::ChainOutput;
use super::message::{Ballot, ChainMessage, Vote};
use crate::core::clock::Now;
use crate::core::decision::{Decision, Slot};
use crate::core::flaw::Flaw;
use crate::core::id::ServerName;
use crate::core::io::Ticket;
use crate::core::quorum::Electorate;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Prepare,
    Accept,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub slot: Slot,
    pub ballot: Ballot,
    pub phase: Phase,
    /// What to propose if the slot is free; `None` when the attempt is only to settle what others began.
    wished: Option<Arc<Decision>>,
    /// The latest value that a promise has named.
    found: Option<Vote>,
    /// Who has answered in this phase.
    pub votes: BTreeSet<ServerName>,
    pub abstained: BTreeSet<ServerName>,
}

impl Attempt {
    pub fn new(slot: Slot, ballot: Ballot, wished: Option<Arc<Decision>>) -> Self {
        let (votes, abstained) = (BTreeSet::new(), BTreeSet::new());
        Self { slot, ballot, phase: Phase::Prepare, wished, found: None, votes, abstained }
    }

    /// Whether an answer belongs to this attempt as it stands.
    pub fn awaits(&self, slot: Slot, ballot: &Ballot, phase: Phase) -> bool {
        self.slot == slot && self.ballot == *ballot && self.phase == phase
    }

    pub fn promised(&mut self, by: ServerName, accepted: Option<Vote>) {
        self.votes.insert(by);
        self.found = self.found.take().max(accepted);
    }

    pub fn value(&self) -> Option<&Arc<Decision>> {
        self.found.as_ref().map(|(_, decision)| decision).or(self.wished.as_ref())
    }

    /// What those who have not answered are asked.
    pub fn question(&self) -> Option<ChainMessage> {
        let ballot = self.ballot.clone();
        match self.phase {
            Phase::Prepare => Some(ChainMessage::Prepare { slot: self.slot, ballot }),
            Phase::Accept => Some(ChainMessage::Accept { ballot, decision: self.value()?.clone() }),
        }
    }

    /// Begins the second phase.
    pub fn promises_suffice(&mut self) {
        self.phase = Phase::Accept;
        self.votes.clear();
    }
}

/// An attempt, and the wish that it is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OwnAttempt {
    pub attempt: Attempt,
    pub ticket: Option<Ticket>,
}

impl Chain {
    pub(super) fn begin(&mut self, now: Now, wished: Option<Arc<Decision>>, ticket: Option<Ticket>) {
        self.round += 1;
        let ballot =
            Ballot { round: self.round, proposer: self.config.me.clone(), incarnation: self.config.incarnation };
        let slot = self.memory.open_slot();
        let promise = self.memory.acceptor.prepare(slot, &ballot).expect("the round is above all that were promised");
        self.records.extend(promise);
        let attempt = Attempt::new(slot, ballot.clone(), wished);
        self.attempt = Some(OwnAttempt { attempt, ticket });
        self.timers.asked(now.monotonic_us);
        // After a restart the round must be known to be used: the question too waits for the disk.
        self.ask(None, true);
        let accepted = self.memory.acceptor.accepted().cloned();
        self.answer(self.config.me.clone(), ChainMessage::Promise { slot, ballot, accepted });
    }

    /// Asks the electors that have not answered, or one of them. Not before the disk has followed, if it `depends` on it.
    pub(super) fn ask(&mut self, only: Option<&ServerName>, depends: bool) -> Option<ChainOutput> {
        let attempt = &self.attempt.as_ref()?.attempt;
        let electorate = self.electorate();
        let asked = |name: &&ServerName| {
            **name != self.config.me
                && self.reachable.contains(*name)
                && !attempt.votes.contains(*name)
                && only.is_none_or(|only| only == *name)
        };
        let peers: Vec<ServerName> = electorate.names().filter(asked).cloned().collect();
        let message = attempt.question().filter(|_| !peers.is_empty())?;
        if depends {
            self.hold(peers, message);
            return None;
        }
        Some(ChainOutput::Send { peers, message })
    }

    /// Takes the next step if the votes allow it.
    pub(super) fn count_votes(&mut self, now: Now, out: &mut Vec<ChainOutput>) {
        let Some(own) = &self.attempt else { return };
        let electorate = match self.config.flaw {
            Some(Flaw::ChangeElectorateWithoutQuorum) => self.electorate_after(own.attempt.value()),
            _ => self.electorate(),
        };
        let reachable = self.reachable.iter().chain([&self.config.me]).cloned().collect();
        if !electorate.is_quorum(self.config.policy, &own.attempt.votes, &reachable) {
            return;
        }
        match own.attempt.phase {
            Phase::Prepare => self.propose(now, out),
            Phase::Accept => {
                let value = own.attempt.value().expect("the second phase has a value").clone();
                self.learn(now, value.clone(), out);
                let peers: Vec<ServerName> = self.reachable.iter().cloned().collect();
                if !peers.is_empty() {
                    out.push(ChainOutput::Send { peers, message: ChainMessage::Decisions(vec![value]) });
                }
            }
        }
    }

    pub(super) fn electorate_after(&self, value: Option<&Arc<Decision>>) -> Electorate {
        let mut roster = self.roster.clone();
        value.into_iter().for_each(|decision| roster.apply(decision));
        roster.electorate()
    }

    /// The second phase.
    pub(super) fn propose(&mut self, now: Now, out: &mut Vec<ChainOutput>) {
        let Some(own) = &mut self.attempt else { return };
        let Some(value) = own.attempt.value().cloned() else {
            // There was nothing to settle after all.
            self.attempt = None;
            return;
        };
        own.attempt.promises_suffice();
        let (slot, ballot, ticket) = (own.attempt.slot, own.attempt.ballot.clone(), own.ticket);
        self.wishes.iter_mut().filter(|wish| Some(wish.ticket) == ticket).for_each(|wish| wish.shown = true);
        self.timers.asked(now.monotonic_us);
        out.extend(self.ask(None, false));
        match self.vote(|acceptor| acceptor.accept(&ballot, &value)) {
            Ok(()) => self.answer(self.config.me.clone(), ChainMessage::Accepted { slot, ballot }),
            Err(promised) => self.give_up(now, &promised),
        }
    }

    pub(super) fn give_up(&mut self, now: Now, promised: &Ballot) {
        self.round = self.round.max(promised.round);
        self.attempt = None;
        self.timers.duel_lost(now.monotonic_us);
        if self.memory.acceptor.accepted().is_some() {
            // While it is undecided this server grants no lease, and perhaps nobody else has a wish.
            self.timers.others_work(now.monotonic_us);
        }
    }
}
