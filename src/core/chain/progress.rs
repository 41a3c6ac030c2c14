//! What an open wish waits for, in words: `status` and `why` print it as it is.

use std::fmt;

use super::Chain;
use super::message::Ballot;
use super::proposer::Phase;
use crate::core::decision::Slot;
use crate::core::id::ServerName;
use crate::core::io::Ticket;

/// How far a wish is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// This server knows no decision yet: it is to be admitted first, or its peers are to be reached.
    NothingKnown,
    /// Behind another wish of this server, or for the end of the pause after a lost duel.
    Waiting,
    Voting(Voting),
}

/// The votes in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voting {
    pub slot: Slot,
    pub phase: Phase,
    pub answered: Vec<ServerName>,
    /// Electors that are asked, and have not answered: they are linked; this server itself while its disk is at work.
    pub silent: Vec<ServerName>,
    pub unlinked: Vec<ServerName>,
    /// Electors that have lost their files: they vote again once they have been admitted again.
    pub abstaining: Vec<ServerName>,
    /// What a quorum needs.
    pub needs: String,
}

impl Chain {
    /// What each open wish waits for, in the order in which they are taken up.
    pub fn progress(&self) -> Vec<(Ticket, Progress)> {
        let of_attempt = self.attempt.as_ref().and_then(|attempt| attempt.ticket);
        let progress = |ticket| match self.voting() {
            _ if self.memory.decisions.is_empty() && !self.founding => Progress::NothingKnown,
            Some(voting) if of_attempt == Some(ticket) => Progress::Voting(voting),
            _ => Progress::Waiting,
        };
        self.wishes.iter().map(|wish| (wish.ticket, progress(wish.ticket))).collect()
    }

    /// The ballot that is under way, if one is, and how far.
    pub fn ballot(&self) -> Option<(&Ballot, Phase)> {
        self.attempt.as_ref().map(|own| (&own.attempt.ballot, own.attempt.phase))
    }

    /// The votes in the attempt that is under way, if one is.
    pub fn voting(&self) -> Option<Voting> {
        let attempt = &self.attempt.as_ref()?.attempt;
        let electorate = self.electorate();
        let (answered, rest): (Vec<_>, Vec<_>) =
            electorate.names().cloned().partition(|name| attempt.votes.contains(name));
        let (abstaining, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|name| attempt.abstained.contains(name));
        let is_linked = |name: &ServerName| self.reachable.contains(name) || *name == self.config.me;
        let (silent, unlinked) = rest.into_iter().partition(is_linked);
        let needs = electorate.needs(self.config.policy);
        Some(Voting { slot: attempt.slot, phase: attempt.phase, answered, silent, unlinked, abstaining, needs })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingKnown => out.write_str("this server knows no decision yet: none of its peers has told it any"),
            Self::Waiting => out.write_str("waits for another decision to be finished"),
            Self::Voting(voting) => voting.fmt(out),
        }
    }
}

impl fmt::Display for Voting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let electors = self.answered.len() + self.silent.len() + self.unlinked.len() + self.abstaining.len();
        write!(out, "decision {}: {} of {electors} electors answered", self.slot, self.answered.len())?;
        let kinds = [
            ("missing", &self.silent),
            ("out of reach", &self.unlinked),
            ("has lost its Decision.dat and must be admitted again", &self.abstaining),
        ];
        for (what, names) in kinds.into_iter().filter(|(_, names)| !names.is_empty()) {
            let names: Vec<&str> = names.iter().map(ServerName::as_str).collect();
            write!(out, "; {what}: {}", names.join(", "))?;
        }
        write!(out, "; a quorum needs {}", self.needs)
    }
}
