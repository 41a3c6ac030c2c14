//! When a service address may be taken: by the host of a stand-in, or by a server that returns.
//!
//! ```text
//! decided ──► holder gone (its lease is over, it let go, it was fenced, an operator vouches) ─┐
//!         └─► looks from two servers, again and again: does the address still answer?  ───────┴─► take
//! ```
//! Invariants: an exclusive address is never taken before all that held it are gone. No address is taken while somebody answers
//! there, unless the holders themselves have said that they let go. The lease runs by this server's monotonic clock.

use std::collections::BTreeMap;

use super::decision::Slot;
use super::id::ServerName;

/// A look that is older than this says nothing any more, in microseconds.
const LOOK_FRESH_US: u64 = 1_000_000;
/// How often looks are repeated while the address cannot be taken yet.
const LOOK_EVERY_US: u64 = 300_000;

/// How a holder came to be gone before its lease was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It said so itself, and takes the address no more before another decision.
    LetGo,
    Fenced,
    /// An operator vouches for its death.
    Confirmed,
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
    /// Nobody could look, and why.
    Blind(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Let these servers look, under this number; the look ends after `look_ms` at most.
    Look {
        round: u64,
        lookers: Vec<ServerName>,
    },
    Wait(Obstacle),
    Take,
}

/// A server that held the address before.
#[derive(Debug, Clone)]
struct Holder {
    name: ServerName,
    /// The decision that took the address away from it.
    taken: Slot,
    /// When its lease is over at the latest.
    over_us: u64,
    gone: Option<Gone>,
}

impl Holder {
    fn left_us(&self, now_us: u64) -> u64 {
        if self.gone.is_some() { 0 } else { self.over_us.saturating_sub(now_us) }
    }
}

#[derive(Debug, Clone)]
struct Round {
    number: u64,
    started_us: u64,
    /// What each looker saw: whether somebody answers; `Some(Err)`: it could not look.
    seen: BTreeMap<ServerName, Option<Result<bool, String>>>,
}

/// One address on its way to another server.
#[derive(Debug, Clone)]
pub struct Takeover {
    pub slot: Slot,
    exclusive: bool,
    look_us: u64,
    holders: Vec<Holder>,
    round: Option<Round>,
    rounds: u64,
    must_look: bool,
}

impl Takeover {
    /// `rounds`: the number of the last look that there was, of whatever takeover.
    pub fn new(slot: Slot, exclusive: bool, look_ms: u64, rounds: u64) -> Self {
        let (holders, look_us) = (Vec::new(), look_ms * 1000);
        Self { slot, exclusive, look_us, holders, round: None, rounds, must_look: false }
    }

    /// The address was another one before: what its holders say of that does not count.
    pub fn must_look(&mut self) {
        self.must_look = true;
    }

    /// Names a server that held the address until a decision took it away, and when its lease is over at the latest, by this
    /// server's clock.
    pub fn held_by(&mut self, name: ServerName, taken: Slot, over_us: u64) {
        self.holders.push(Holder { name, taken, over_us, gone: None });
    }

    /// Whoever granted the leases knows better: the one that this decision ended is over sooner.
    pub fn lease_over(&mut self, holder: &ServerName, taken: Slot, over_us: u64) {
        for held in self.holders.iter_mut().filter(|held| held.name == *holder && held.taken == taken) {
            held.over_us = held.over_us.min(over_us);
        }
    }

    pub fn gone(&mut self, holder: &ServerName, gone: Gone) {
        for held in self.holders.iter_mut().filter(|held| held.name == *holder) {
            if held.gone != Some(Gone::LetGo) {
                held.gone = Some(gone);
            }
        }
    }

    /// The holders that are not known to be gone yet.
    pub fn waits_for(&self, now_us: u64) -> impl Iterator<Item = &ServerName> {
        let waits = move |held: &&Holder| held.left_us(now_us) > 0;
        self.holders.iter().filter(waits).map(|held| &held.name)
    }

    /// The holders that have not let go themselves.
    pub fn has_not_let_go(&self) -> impl Iterator<Item = &ServerName> {
        self.holders.iter().filter(|held| held.gone != Some(Gone::LetGo)).map(|held| &held.name)
    }

    /// What one looker saw.
    pub fn looked(&mut self, round: u64, looker: &ServerName, outcome: Result<bool, String>) {
        if let Some(held) = self.round.as_mut().filter(|held| held.number == round)
            && let Some(seen) = held.seen.get_mut(looker)
        {
            *seen = Some(outcome);
        }
    }

    /// What is to be done now. `second` is the server that looks beside `me`, if any is reachable.
    pub fn step(&mut self, me: &ServerName, second: Option<&ServerName>, now_us: u64) -> Step {
        // Who has let go is believed where it is about the decision of just now: later, anybody may have the address.
        let is_recent = self.holders.iter().any(|held| now_us < held.over_us);
        if is_recent && !self.must_look && self.holders.iter().all(|held| held.gone == Some(Gone::LetGo)) {
            return Step::Take;
        }
        let finished = self.finished(now_us);
        let age_us = self.round.as_ref().map_or(u64::MAX, |round| now_us.saturating_sub(round.started_us));
        let is_clear = matches!(&finished, Some(Ok(seen_by)) if seen_by.is_empty());
        if is_clear && age_us < LOOK_FRESH_US && self.longest(now_us).is_none() {
            return Step::Take;
        }
        if self.round.is_none() || finished.is_some() && age_us >= LOOK_EVERY_US.max(self.look_us) {
            let lookers: Vec<ServerName> = [Some(me), second].into_iter().flatten().cloned().collect();
            let seen = lookers.iter().map(|looker| (looker.clone(), None)).collect();
            self.rounds += 1;
            self.round = Some(Round { number: self.rounds, started_us: now_us, seen });
            return Step::Look { round: self.rounds, lookers };
        }
        match (finished, self.longest(now_us)) {
            (Some(Ok(seen_by)), _) if !seen_by.is_empty() => Step::Wait(Obstacle::StillAnswers { seen_by }),
            (_, Some(held)) => {
                let left_ms = held.left_us(now_us).div_ceil(1000);
                Step::Wait(Obstacle::Lease { holder: held.name.clone(), left_ms })
            }
            (Some(Err(why)), None) => Step::Wait(Obstacle::Blind(why)),
            _ => Step::Wait(Obstacle::Looking),
        }
    }

    /// The holder that is waited for longest.
    fn longest(&self, now_us: u64) -> Option<&Holder> {
        let held = self.holders.iter().filter(|_| self.exclusive).max_by_key(|held| held.left_us(now_us))?;
        (held.left_us(now_us) > 0).then_some(held)
    }

    /// Who saw the address answer, once the round is over: everybody has looked, or whoever has not is too late.
    fn finished(&self, now_us: u64) -> Option<Result<Vec<ServerName>, String>> {
        let round = self.round.as_ref()?;
        let late = now_us >= round.started_us + 2 * self.look_us;
        let complete = round.seen.values().all(Option::is_some);
        // Somebody must have looked: silence of all lookers is not an answer.
        let looked = round.seen.values().any(|seen| matches!(seen, Some(Ok(_))));
        let failure = round.seen.values().find_map(|seen| match seen {
            Some(Err(why)) => Some(why.clone()),
            _ => None,
        });
        match (looked, failure) {
            (true, _) if complete || late => {
                let seen_by = round.seen.iter().filter(|(_, seen)| **seen == Some(Ok(true)));
                Some(Ok(seen_by.map(|(name, _)| name.clone()).collect()))
            }
            (false, Some(why)) if complete || late => Some(Err(why)),
            _ => None,
        }
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
        let mut takeover = Takeover::new(7, exclusive, 250, 0);
        takeover.held_by(server("S2"), 5, 2000 * MS);
        takeover
    }

    #[test]
    fn an_exclusive_address_waits_for_the_lease_and_the_looks() {
        let (me, second) = (server("S6"), server("S1"));
        let mut it = takeover(true);
        assert_eq!(it.step(&me, Some(&second), 0), Step::Look { round: 1, lookers: vec![me.clone(), second.clone()] });
        it.looked(1, &me, Ok(false));
        it.looked(1, &second, Ok(false));
        let left = |ms| Step::Wait(Obstacle::Lease { holder: server("S2"), left_ms: ms });
        assert_eq!(it.step(&me, Some(&second), 250 * MS), left(1750));
        it.lease_over(&server("S2"), 5, 650 * MS);
        assert!(matches!(it.step(&me, Some(&second), 300 * MS), Step::Look { round: 2, .. }));
        it.looked(2, &me, Ok(false));
        it.looked(2, &second, Ok(false));
        assert_eq!(it.step(&me, Some(&second), 560 * MS), left(90));
        assert_eq!(it.step(&me, Some(&second), 650 * MS), Step::Take);
    }

    #[test]
    fn a_lease_that_is_over_says_nothing_of_the_one_that_the_same_server_got_when_it_was_back() {
        let me = server("S6");
        let mut it = takeover(true);
        it.held_by(server("S2"), 7, 2000 * MS);
        it.lease_over(&server("S2"), 5, 0);
        it.step(&me, None, 0);
        it.looked(1, &me, Ok(false));
        let left = |ms| Step::Wait(Obstacle::Lease { holder: server("S2"), left_ms: ms });
        assert_eq!(it.step(&me, None, 250 * MS), left(1750));
        it.lease_over(&server("S2"), 7, 0);
        assert_eq!(it.step(&me, None, 250 * MS), Step::Take);
    }

    #[test]
    fn nothing_is_taken_while_somebody_answers() {
        let (me, second) = (server("S6"), server("S1"));
        let mut it = takeover(false);
        it.step(&me, Some(&second), 0);
        it.looked(1, &me, Ok(false));
        it.looked(1, &second, Ok(true));
        let answers = Step::Wait(Obstacle::StillAnswers { seen_by: vec![second.clone()] });
        assert_eq!(it.step(&me, Some(&second), 10 * MS), answers);
        assert!(matches!(it.step(&me, Some(&second), 5000 * MS), Step::Look { round: 2, .. }));
    }

    #[test]
    fn holders_that_let_go_are_believed_at_once_if_all_of_them_do() {
        let mut it = takeover(true);
        it.held_by(server("S5"), 6, 3000 * MS);
        it.gone(&server("S5"), Gone::LetGo);
        let me = server("S6");
        it.step(&me, None, 0);
        it.looked(1, &me, Ok(false));
        assert!(matches!(it.step(&me, None, MS), Step::Wait(Obstacle::Lease { .. })), "S2 may still hold it");
        it.gone(&server("S2"), Gone::LetGo);
        assert_eq!(it.step(&me, None, 2 * MS), Step::Take);
    }

    #[test]
    fn holders_that_let_go_long_ago_or_of_another_address_are_not_believed() {
        let me = server("S6");
        let mut it = takeover(true);
        it.gone(&server("S2"), Gone::LetGo);
        assert!(matches!(it.step(&me, None, 2000 * MS), Step::Look { round: 1, .. }), "its lease is over anyway");
        it.looked(1, &me, Ok(true));
        assert!(matches!(it.step(&me, None, 2010 * MS), Step::Wait(Obstacle::StillAnswers { .. })));
        let mut it = takeover(true);
        it.gone(&server("S2"), Gone::LetGo);
        it.must_look();
        assert!(matches!(it.step(&me, None, 10 * MS), Step::Look { .. }));
    }

    #[test]
    fn an_operator_who_vouches_ends_the_lease_and_not_the_looks() {
        let me = server("S6");
        let mut it = takeover(true);
        it.gone(&server("S2"), Gone::Confirmed);
        assert_eq!(it.step(&me, None, 0), Step::Look { round: 1, lookers: vec![me.clone()] });
        assert_eq!(it.step(&me, None, MS), Step::Wait(Obstacle::Looking));
        it.looked(1, &me, Ok(false));
        assert_eq!(it.step(&me, None, 2 * MS), Step::Take);
    }

    #[test]
    fn a_second_looker_that_does_not_answer_holds_nobody_up_for_long() {
        let (me, second) = (server("S6"), server("S1"));
        let mut it = takeover(false);
        it.step(&me, Some(&second), 0);
        it.looked(1, &me, Ok(false));
        assert_eq!(it.step(&me, Some(&second), 400 * MS), Step::Wait(Obstacle::Looking));
        assert_eq!(it.step(&me, Some(&second), 500 * MS), Step::Take);
    }

    #[test]
    fn an_address_that_nobody_can_look_at_is_not_taken() {
        let me = server("S6");
        let mut it = takeover(false);
        it.step(&me, None, 0);
        it.looked(1, &me, Err("no interface".into()));
        assert_eq!(it.step(&me, None, 10 * MS), Step::Wait(Obstacle::Blind("no interface".into())));
        assert!(matches!(it.step(&me, None, 400 * MS), Step::Look { round: 2, .. }));
    }

    #[test]
    fn looks_that_are_old_are_repeated() {
        let me = server("S6");
        let mut it = takeover(true);
        it.step(&me, None, 0);
        it.looked(1, &me, Ok(false));
        assert!(matches!(it.step(&me, None, 2500 * MS), Step::Look { round: 2, .. }));
    }
}
