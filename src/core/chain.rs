//! The decision chain: single-decree Paxos (Lamport, "Paxos Made Simple", 2001), slot after slot, as one synchronous state
//! machine. `handle(now, input)` returns what is to be done, in order.
//!
//! ```text
//! Wish ─► Persist own promise ─► Prepare ─► Promise, each after its Persist ─► Accept ─► Accepted, likewise ─► Decided
//! ```
//! Invariants: only the first undecided slot is voted in, by the electorate that the slots before it make
//! ([`super::roster`]). No vote and no question leaves before everything it depends on is on disk: what depends on a
//! `Persist` is held until its `Persisted`. A server votes only in the incarnation that was admitted. An open attempt ends
//! with a decision in its slot; a wish ends with its decision, or when the decisions made meanwhile leave it no sense.

mod acceptor;
mod io;
mod learner;
mod message;
mod progress;
mod proposer;
mod timers;
mod wishes;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

pub use acceptor::{Acceptor, Memory, OutOfOrder};
pub use io::{ChainInput, ChainOutput, Wish, WishOutcome};
pub use message::{Ballot, ChainMessage, ChainRecord, DECISIONS_MAX, Vote};
pub use progress::{Progress, Voting};
pub use proposer::Phase;
use proposer::{Attempt, OwnAttempt};
use timers::{Timers, due};
use wishes::OpenWish;

use super::clock::Now;
use super::decision::{Decision, Incarnation, Slot};
use super::flaw::Flaw;
use super::id::ServerName;
use super::quorum::{Elector, Electorate, Policy};
use super::roster::Roster;

/// Rounds are counted. One that is this much above all that were heard of is nobody's, and would soon lead to where they end: nobody
/// could ask for more than was promised then.
const LEAP: u64 = 1 << 24;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChainConfig {
    pub me: ServerName,
    /// Of this server's `Decision.dat`.
    pub incarnation: Incarnation,
    pub policy: Policy,
    /// Any number: pauses after lost duels are drawn from it.
    pub seed: u64,
    /// How often a peer, another one each time, is asked for decisions that were missed; `None`: never.
    pub ask_ms: Option<u64>,
    pub flaw: Option<Flaw>,
}

impl ChainConfig {
    pub fn new(me: ServerName, incarnation: Incarnation, seed: u64) -> Self {
        Self { me, incarnation, policy: Policy::default(), seed, ask_ms: Some(1_000), flaw: None }
    }
}

/// What this server is to the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It knows no decision yet.
    NothingKnown,
    Elector,
    /// Somebody plays it: it has to return.
    Recovered {
        slot: Slot,
    },
    /// It is admitted with another file than the one it has: it has to be admitted again, or to return.
    Forgotten,
    /// It was never admitted, or was removed.
    Stranger,
}

/// What waits for a `Persist`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Held {
    /// How many more `Persisted` it waits for.
    persists: usize,
    peers: Vec<ServerName>,
    message: ChainMessage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    config: ChainConfig,
    memory: Memory,
    roster: Roster,
    /// Whether this server founds the group: it is the electorate of slot 1.
    founding: bool,
    reachable: BTreeSet<ServerName>,
    wishes: VecDeque<OpenWish>,
    attempt: Option<OwnAttempt>,
    /// The highest round heard of in the open slot.
    round: u64,
    forked: BTreeSet<ServerName>,
    /// Records of the input at hand.
    records: Vec<ChainRecord>,
    /// `Persist`s that have not been answered.
    persists: usize,
    held: VecDeque<Held>,
    timers: Timers,
}

impl Chain {
    pub fn new(config: ChainConfig, memory: Memory) -> Self {
        let roster = Roster::of(memory.decisions.iter().map(Arc::as_ref));
        let mut timers = Timers::new(config.seed);
        timers.ask_at = config.ask_ms.map(|_| 0);
        timers.settle_at = memory.acceptor.accepted().map(|_| 0);
        Self {
            round: memory.acceptor.promised().map_or(0, |ballot| ballot.round),
            roster,
            memory,
            founding: false,
            reachable: BTreeSet::new(),
            wishes: VecDeque::new(),
            attempt: None,
            forked: BTreeSet::new(),
            records: Vec::new(),
            persists: 0,
            held: VecDeque::new(),
            timers,
            config,
        }
    }

    /// Handles one input. The outputs are to be carried out in order.
    pub fn handle(&mut self, now: Now, input: ChainInput) -> Vec<ChainOutput> {
        let mut out = Vec::new();
        match input {
            ChainInput::Tick => self.tick(now, &mut out),
            ChainInput::Wish { ticket, wish } => self.wish(now, ticket, wish, &mut out),
            ChainInput::Cancel { ticket } => self.cancel(ticket, &mut out),
            ChainInput::LinkUp { peer } => self.link_up(peer, &mut out),
            ChainInput::LinkDown { peer } => {
                self.reachable.remove(&peer);
                self.count_votes(now, &mut out);
            }
            ChainInput::Message { peer, message } => self.message(now, peer, message, &mut out),
            ChainInput::Persisted => self.persisted(),
        }
        self.next_attempt(now, &mut out);
        while self.release(now, &mut out) {
            self.next_attempt(now, &mut out);
        }
        self.persist(&mut out);
        out
    }

    /// When the chain wants a `Tick`, in microseconds of monotonic time.
    pub fn next_wake_us(&self) -> Option<u64> {
        self.timers.next()
    }

    pub fn decisions(&self) -> &[Arc<Decision>] {
        &self.memory.decisions
    }

    /// What is on disk once every `Persist` is answered: what a new file has to hold.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Who decides the open slot.
    pub fn electorate(&self) -> Electorate {
        if self.founding && self.memory.decisions.is_empty() {
            let (name, incarnation) = (self.config.me.clone(), self.config.incarnation);
            return Electorate::new([Elector { name, incarnation, witness: false }]);
        }
        self.roster.electorate()
    }

    pub fn standing(&self) -> Standing {
        match self.roster.member(&self.config.me) {
            _ if self.memory.decisions.is_empty() => Standing::NothingKnown,
            None => Standing::Stranger,
            Some(member) => match &member.recovery {
                Some(recovery) => Standing::Recovered { slot: recovery.slot },
                None if member.incarnation != self.config.incarnation => Standing::Forgotten,
                None => Standing::Elector,
            },
        }
    }

    /// Whether this server's vote counts in the open slot.
    pub fn votes(&self) -> bool {
        let admitted = self.electorate().admits(&self.config.me, self.config.incarnation);
        admitted || self.config.flaw == Some(Flaw::VoteAfterAmnesia) && self.electorate().contains(&self.config.me)
    }

    // ---- messages ----

    fn message(&mut self, now: Now, peer: ServerName, message: ChainMessage, out: &mut Vec<ChainOutput>) {
        // Whoever is on another branch is told this one, so that it notices too.
        if self.forked.contains(&peer) && !matches!(message, ChainMessage::WantDecisions { .. }) {
            return;
        }
        match message {
            ChainMessage::Prepare { slot, ballot } if ballot.proposer == peer => {
                if self.is_open(&peer, slot, &ballot, out) {
                    self.prepare(now, peer, slot, ballot);
                }
            }
            ChainMessage::Accept { ballot, decision } if ballot.proposer == peer => {
                if self.is_open(&peer, decision.slot, &ballot, out) {
                    self.accept(now, peer, ballot, decision);
                }
            }
            // Nobody asks in somebody else's name.
            ChainMessage::Prepare { .. } | ChainMessage::Accept { .. } => {}
            // What is told as accepted must be of this slot and earlier than this attempt: else it is no promise.
            ChainMessage::Promise { slot, ballot, accepted }
                if accepted.as_ref().is_none_or(|(voted, decision)| decision.slot == slot && *voted < ballot) =>
            {
                if let Some(attempt) = self.awaits(slot, &ballot, Phase::Prepare) {
                    attempt.promised(peer, accepted);
                    self.count_votes(now, out);
                }
            }
            ChainMessage::Promise { .. } => {}
            ChainMessage::Accepted { slot, ballot } => {
                if let Some(attempt) = self.awaits(slot, &ballot, Phase::Accept) {
                    attempt.votes.insert(peer);
                    self.count_votes(now, out);
                }
            }
            ChainMessage::Refused { slot, ballot, promised } => {
                let is_mine = |own: &OwnAttempt| own.attempt.slot == slot && own.attempt.ballot == ballot;
                if self.attempt.as_ref().is_some_and(is_mine) && self.is_counted(&promised) {
                    self.give_up(now, &promised);
                }
            }
            ChainMessage::Abstained { slot, ballot } => {
                if let Some(attempt) = self.awaits(slot, &ballot, Phase::Prepare) {
                    attempt.abstained.insert(peer);
                }
            }
            ChainMessage::Decisions(decisions) => self.told(now, peer, decisions, out),
            ChainMessage::WantDecisions { from } => {
                if from > self.memory.open_slot() {
                    out.push(self.want(&peer, self.memory.open_slot()));
                } else {
                    out.extend(self.tell(&peer, from));
                    // It may have been behind the slot it was asked about.
                    out.extend(self.ask(Some(&peer), self.persists > 0));
                }
            }
        }
    }

    fn awaits(&mut self, slot: Slot, ballot: &Ballot, phase: Phase) -> Option<&mut Attempt> {
        let attempt = self.attempt.as_mut().map(|own| &mut own.attempt);
        attempt.filter(|attempt| attempt.awaits(slot, ballot, phase))
    }

    /// Whether this server may vote in the slot; helps whoever is behind, itself included.
    fn is_open(&mut self, peer: &ServerName, slot: Slot, ballot: &Ballot, out: &mut Vec<ChainOutput>) -> bool {
        let open = self.memory.open_slot();
        if slot < open {
            out.extend(self.tell(peer, slot));
        } else if slot > open {
            out.push(self.want(peer, open));
        } else if !self.votes() {
            let message = ChainMessage::Abstained { slot, ballot: ballot.clone() };
            out.push(ChainOutput::Send { peers: vec![peer.clone()], message });
        } else {
            return self.is_counted(ballot);
        }
        false
    }

    fn is_counted(&self, ballot: &Ballot) -> bool {
        ballot.round < self.round.saturating_add(LEAP)
    }

    fn prepare(&mut self, now: Now, peer: ServerName, slot: Slot, ballot: Ballot) {
        let answer = match self.vote(|acceptor| acceptor.prepare(slot, &ballot)) {
            Ok(()) => {
                let accepted = self.memory.acceptor.accepted().cloned();
                ChainMessage::Promise { slot, ballot, accepted }
            }
            Err(promised) => ChainMessage::Refused { slot, ballot, promised },
        };
        self.timers.others_work(now.monotonic_us);
        self.answer(peer, answer);
    }

    fn accept(&mut self, now: Now, peer: ServerName, ballot: Ballot, decision: Arc<Decision>) {
        let slot = decision.slot;
        let answer = match self.vote(|acceptor| acceptor.accept(&ballot, &decision)) {
            Ok(()) => ChainMessage::Accepted { slot, ballot },
            Err(promised) => ChainMessage::Refused { slot, ballot, promised },
        };
        self.timers.others_work(now.monotonic_us);
        self.answer(peer, answer);
    }

    fn vote(&mut self, act: impl FnOnce(&mut Acceptor) -> Result<Option<ChainRecord>, Ballot>) -> Result<(), Ballot> {
        let record = act(&mut self.memory.acceptor)?;
        let forgets = self.config.flaw == Some(Flaw::ForgetPromise);
        self.records.extend(record.filter(|record| !forgets || !matches!(record, ChainRecord::Promised { .. })));
        self.round = self.round.max(self.memory.acceptor.promised().map_or(0, |ballot| ballot.round));
        Ok(())
    }

    // ---- the disk ----

    /// Sends a vote, to this very server if it is its own, once everything up to now is on disk.
    fn answer(&mut self, peer: ServerName, message: ChainMessage) {
        self.hold(vec![peer], message);
    }

    fn hold(&mut self, peers: Vec<ServerName>, message: ChainMessage) {
        let persists = self.persists + usize::from(!self.records.is_empty());
        // While the disk is slow, the same question may come again and again.
        if !self.held.iter().any(|held| held.peers == peers && held.message == message) {
            self.held.push_back(Held { persists, peers, message });
        }
    }

    fn persisted(&mut self) {
        self.persists = self.persists.saturating_sub(1);
        self.held.iter_mut().for_each(|held| held.persists = held.persists.saturating_sub(1));
    }

    /// Lets go of what waits for nothing any more. Returns whether there was anything.
    fn release(&mut self, now: Now, out: &mut Vec<ChainOutput>) -> bool {
        let mut released = false;
        while let Some(Held { peers, message, .. }) = self.held.pop_front_if(|held| held.persists == 0) {
            released = true;
            if peers == [self.config.me.clone()] {
                // A server that is no elector proposes without a vote of its own.
                if self.votes() {
                    self.message(now, self.config.me.clone(), message, out);
                }
            } else {
                out.push(ChainOutput::Send { peers, message });
            }
        }
        released
    }

    /// Writes down what the input at hand has left.
    fn persist(&mut self, out: &mut Vec<ChainOutput>) {
        if !self.records.is_empty() {
            self.persists += 1;
            out.push(ChainOutput::Persist(std::mem::take(&mut self.records)));
        }
    }

    // ---- links and time ----

    fn link_up(&mut self, peer: ServerName, out: &mut Vec<ChainOutput>) {
        self.reachable.insert(peer.clone());
        // One slot more than is missing: both sides see whether their chains are the same one.
        out.push(self.want(&peer, (self.memory.open_slot() - 1).max(1)));
        out.extend(self.ask(Some(&peer), self.persists > 0));
    }

    fn tick(&mut self, now: Now, out: &mut Vec<ChainOutput>) {
        let now_us = now.monotonic_us;
        due(&mut self.timers.pause_until, now_us);
        if due(&mut self.timers.resend_at, now_us) && self.attempt.is_some() {
            self.timers.asked_again(now_us);
            out.extend(self.ask(None, self.persists > 0));
        }
        if due(&mut self.timers.settle_at, now_us) && self.memory.acceptor.accepted().is_some() && self.votes() {
            match self.attempt {
                Some(_) => self.timers.others_work(now_us),
                None => {
                    self.timers.pause_until = None;
                    self.begin(now, None, None);
                }
            }
        }
        if due(&mut self.timers.ask_at, now_us) {
            self.timers.ask_at = self.config.ask_ms.map(|ask_ms| now_us + ask_ms * 1000);
            let at = self.timers.below(self.reachable.len() as u64) as usize;
            let peer = self.reachable.iter().nth(at).cloned();
            out.extend(peer.map(|peer| self.want(&peer, self.memory.open_slot())));
        }
    }
}

#[cfg(test)]
mod tests;
