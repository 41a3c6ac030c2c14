//! When a service address may be taken: by the host of a stand-in, or by a server that returns.
//!
//! ```text
//! decided ──► holder gone (its lease is over, it let go, it was fenced, an operator vouches) ─┐
//!         └─► looks from two servers, again and again: does the address still answer?  ───────┴─► take
//! ```
//! Invariants: an exclusive address is never taken before its holder is gone. No address is taken while somebody answers
//! there, unless the holder itself has said that it let go. The lease runs by this server's monotonic clock.

use std::collections::BTreeMap;

use super::decision::Slot;
use super::id::ServerName;

/// A look that is older than this says nothing any more, in microseconds.
const LOOK_FRESH_US: u64 = 1_000_000;
/// How often looks are repeated while the address cannot be taken yet.
const LOOK_EVERY_US: u64 = 300_000;

/// How the holder came to be gone before its lease was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It said so itself, and takes the address no more before another decision.
    LetGo,
    Fenced,
    /// An operator vouches for its death.
    Confirmed,
    /// Nobody held it.
    Nobody,
}

/// What is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The holder may still believe that it holds the address, for so long.
    Lease { holder: ServerName, left_ms: u64 },
    /// The looks are not back yet.
    Looking,
    /// The address answers, as these servers say.
    StillAnswers { seen_by: Vec<ServerName> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Let these servers look, under this number; the look ends after `Takeover::look_ms` at most.
    Look {
        round: u64,
        lookers: Vec<ServerName>,
    },
    Wait(Obstacle),
    Take,
}

#[derive(Debug, Clone)]
struct Round {
    number: u64,
    started_us: u64,
    /// What each looker saw: whether somebody answers.
    seen: BTreeMap<ServerName, Option<bool>>,
}

/// One address on its way from one server to another.
#[derive(Debug, Clone)]
pub struct Takeover {
    pub slot: Slot,
    holder: Option<ServerName>,
    exclusive: bool,
    lease_over_us: u64,
    gone: Option<Gone>,
    look_us: u64,
    round: Option<Round>,
    rounds: u64,
}

impl Takeover {
    /// `lease_ms` is the longest that the holder may go on after this moment; `holder` is the server whose lease counts.
    pub fn new(
        slot: Slot,
        holder: Option<ServerName>,
        exclusive: bool,
        lease_ms: u64,
        look_ms: u64,
        now_us: u64,
    ) -> Self {
        Self {
            slot,
            gone: holder.is_none().then_some(Gone::Nobody),
            holder,
            exclusive,
            lease_over_us: now_us + lease_ms * 1000,
            look_us: look_ms * 1000,
            round: None,
            rounds: 0,
        }
    }

    /// Whoever decided knows better: the lease is over after `wait_ms` from now.
    pub fn lease_ends_in(&mut self, wait_ms: u64, now_us: u64) {
        self.lease_over_us = self.lease_over_us.min(now_us + wait_ms * 1000);
    }

    pub fn holder(&self) -> Option<&ServerName> {
        self.holder.as_ref()
    }

    pub fn gone(&mut self, gone: Gone) {
        if self.gone != Some(Gone::LetGo) {
            self.gone = Some(gone);
        }
    }

    /// What one looker saw.
    pub fn looked(&mut self, round: u64, looker: &ServerName, answers: bool) {
        if let Some(held) = self.round.as_mut().filter(|held| held.number == round)
            && let Some(seen) = held.seen.get_mut(looker)
        {
            *seen = Some(answers);
        }
    }

    /// What is to be done now. `second` is the server that looks beside `me`, if any is reachable.
    pub fn step(&mut self, me: &ServerName, second: Option<&ServerName>, now_us: u64) -> Step {
        if self.gone == Some(Gone::LetGo) {
            return Step::Take;
        }
        let finished = self.finished(now_us);
        let age_us = self.round.as_ref().map_or(u64::MAX, |round| now_us.saturating_sub(round.started_us));
        if finished.as_ref().is_some_and(Vec::is_empty) && age_us < LOOK_FRESH_US && self.holder_is_gone(now_us) {
            return Step::Take;
        }
        if self.round.is_none() || finished.is_some() && age_us >= LOOK_EVERY_US.max(self.look_us) {
            let lookers: Vec<ServerName> = [Some(me), second].into_iter().flatten().cloned().collect();
            let seen = lookers.iter().map(|looker| (looker.clone(), None)).collect();
            self.rounds += 1;
            self.round = Some(Round { number: self.rounds, started_us: now_us, seen });
            return Step::Look { round: self.rounds, lookers };
        }
        match (finished, &self.holder) {
            (Some(seen_by), _) if !seen_by.is_empty() => Step::Wait(Obstacle::StillAnswers { seen_by }),
            (_, Some(holder)) if !self.holder_is_gone(now_us) => {
                let left_ms = self.lease_over_us.saturating_sub(now_us).div_ceil(1000);
                Step::Wait(Obstacle::Lease { holder: holder.clone(), left_ms })
            }
            _ => Step::Wait(Obstacle::Looking),
        }
    }

    fn holder_is_gone(&self, now_us: u64) -> bool {
        !self.exclusive || self.gone.is_some() || now_us >= self.lease_over_us
    }

    /// Who saw the address answer, once the round is over: everybody has looked, or whoever has not is too late.
    fn finished(&self, now_us: u64) -> Option<Vec<ServerName>> {
        let round = self.round.as_ref()?;
        let late = now_us >= round.started_us + 2 * self.look_us;
        let complete = round.seen.values().all(Option::is_some);
        // Somebody must have looked: silence of all lookers is not an answer.
        let looked = round.seen.values().any(Option::is_some);
        if !(complete || late && looked) {
            return None;
        }
        Some(round.seen.iter().filter(|(_, seen)| **seen == Some(true)).map(|(name, _)| name.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    fn server(name: &str) -> ServerName {
        ServerName::new(name).unwrap()
    }

    fn takeover(exclusive: bool) -> Takeover {
        Takeover::new(7, Some(server("S2")), exclusive, 2000, 250, 0)
    }

    #[test]
    fn an_exclusive_address_waits_for_the_lease_and_the_looks() {
        let (me, second) = (server("S6"), server("S1"));
        let mut it = takeover(true);
        assert_eq!(it.step(&me, Some(&second), 0), Step::Look { round: 1, lookers: vec![me.clone(), second.clone()] });
        it.looked(1, &me, false);
        it.looked(1, &second, false);
        let left = |ms| Step::Wait(Obstacle::Lease { holder: server("S2"), left_ms: ms });
        assert_eq!(it.step(&me, Some(&second), 250 * MS), left(1750));
        it.lease_ends_in(400, 250 * MS);
        assert!(matches!(it.step(&me, Some(&second), 300 * MS), Step::Look { round: 2, .. }));
        it.looked(2, &me, false);
        it.looked(2, &second, false);
        assert_eq!(it.step(&me, Some(&second), 560 * MS), left(90));
        assert_eq!(it.step(&me, Some(&second), 650 * MS), Step::Take);
    }

    #[test]
    fn nothing_is_taken_while_somebody_answers() {
        let (me, second) = (server("S6"), server("S1"));
        let mut it = takeover(false);
        it.step(&me, Some(&second), 0);
        it.looked(1, &me, false);
        it.looked(1, &second, true);
        let answers = Step::Wait(Obstacle::StillAnswers { seen_by: vec![second.clone()] });
        assert_eq!(it.step(&me, Some(&second), 10 * MS), answers);
        assert!(matches!(it.step(&me, Some(&second), 5000 * MS), Step::Look { round: 2, .. }));
    }

    #[test]
    fn a_holder_that_let_go_is_believed_at_once() {
        let mut it = takeover(true);
        it.gone(Gone::LetGo);
        assert_eq!(it.step(&server("S6"), None, 0), Step::Take);
    }

    #[test]
    fn an_operator_who_vouches_ends_the_lease_and_not_the_looks() {
        let me = server("S6");
        let mut it = takeover(true);
        it.gone(Gone::Confirmed);
        assert_eq!(it.step(&me, None, 0), Step::Look { round: 1, lookers: vec![me.clone()] });
        assert_eq!(it.step(&me, None, MS), Step::Wait(Obstacle::Looking));
        it.looked(1, &me, false);
        assert_eq!(it.step(&me, None, 2 * MS), Step::Take);
    }

    #[test]
    fn a_second_looker_that_does_not_answer_holds_nobody_up_for_long() {
        let (me, second) = (server("S6"), server("S1"));
        let mut it = takeover(false);
        it.step(&me, Some(&second), 0);
        it.looked(1, &me, false);
        assert_eq!(it.step(&me, Some(&second), 400 * MS), Step::Wait(Obstacle::Looking));
        assert_eq!(it.step(&me, Some(&second), 500 * MS), Step::Take);
    }

    #[test]
    fn looks_that_are_old_are_repeated() {
        let me = server("S6");
        let mut it = takeover(true);
        it.step(&me, None, 0);
        it.looked(1, &me, false);
        assert!(matches!(it.step(&me, None, 2500 * MS), Step::Look { round: 2, .. }));
    }
}
