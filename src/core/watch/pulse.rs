//! The answers to one question, counted: when it is put next, and whether it counts as up or down.
//!
//! ```text
//! Unknown --answer--> Up --`fall` failures in a row--> Down --`rise` answers in a row, and the hold is over--> Up
//!     '------------`fall` failures in a row--------------^
//! ```
//! Flap damping is an exponential hold-down: the second time that a check goes down without having been up for
//! [`FORGIVEN_US`], it must answer for [`HOLD_US`] before it counts as up, then for twice that, and so on up to [`HOLD_US_MAX`].
//! It never delays a failure, only the all-clear.

use crate::core::check::Pace;
use crate::core::probe::{ProbeId, ProbeOutcome};

pub const HOLD_US: u64 = 2_000_000;
pub const HOLD_US_MAX: u64 = 60_000_000;
/// Up for so long, and earlier failures are forgotten.
pub const FORGIVEN_US: u64 = 120_000_000;
/// A question whose outcome is so much later than its deadline was lost.
const LOST_US: u64 = 5_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Unknown,
    Up,
    Down,
}

/// The last outcome.
#[derive(Debug, Clone)]
pub struct Last {
    pub asked_us: u64,
    pub at_us: u64,
    pub outcome: ProbeOutcome,
}

#[derive(Debug, Clone)]
pub struct Pulse {
    pub state: State,
    pub since_us: u64,
    pub last: Option<Last>,
    pub in_flight: Option<(ProbeId, u64)>,
    due_us: u64,
    /// Outcomes in a row that speak against the state, and when the first of them was asked for.
    against: u32,
    against_since_us: u64,
    flaps: u32,
}

impl Pulse {
    pub fn new(now_us: u64) -> Self {
        Self {
            state: State::Unknown,
            since_us: now_us,
            last: None,
            in_flight: None,
            due_us: now_us,
            against: 0,
            against_since_us: now_us,
            flaps: 0,
        }
    }

    /// When the question is to be put; while it is under way, when it counts as lost and is put again.
    pub fn due_us(&self, pace: &Pace) -> u64 {
        match self.in_flight {
            Some((_, asked_us)) => asked_us + pace.timeout_ms * 1000 + LOST_US,
            None => self.due_us,
        }
    }

    /// The question is put as soon as possible; again, if it is under way.
    pub fn hurry(&mut self, now_us: u64) {
        self.due_us = self.due_us.min(now_us);
    }

    pub fn asked(&mut self, id: ProbeId, now_us: u64) {
        self.in_flight = Some((id, now_us));
        self.due_us = u64::MAX;
    }

    /// Whatever comes of the question under way does not count; it is put again.
    pub fn forget_question(&mut self, now_us: u64) {
        if self.in_flight.take().is_some() {
            self.due_us = now_us;
        }
    }

    /// When the run of failures began that is not over: the time of its first question.
    pub fn failing_since_us(&self) -> Option<u64> {
        match self.state {
            State::Down => Some(self.since_us),
            State::Unknown | State::Up => (self.against > 0).then_some(self.against_since_us),
        }
    }

    /// How many more outcomes of the same kind change the state.
    pub fn missing(&self, pace: &Pace) -> u32 {
        let wanted = if self.state == State::Down { pace.rise } else { pace.fall };
        wanted.saturating_sub(self.against)
    }

    /// How long it must answer before it counts as up, in microseconds.
    pub fn hold_us(&self) -> u64 {
        match self.flaps {
            0 | 1 => 0,
            flaps => HOLD_US.saturating_mul(1 << (flaps - 2).min(16)).min(HOLD_US_MAX),
        }
    }

    pub fn outcome(&mut self, pace: &Pace, outcome: ProbeOutcome, now_us: u64) {
        let asked_us = self.in_flight.take().map_or(now_us, |(_, asked_us)| asked_us);
        let answered = match outcome {
            ProbeOutcome::Answered { .. } => Some(true),
            ProbeOutcome::Refused(_) | ProbeOutcome::Failed(_) => Some(false),
            ProbeOutcome::Unable(_) => None,
        };
        self.last = Some(Last { asked_us, at_us: now_us, outcome });
        if let Some(answered) = answered {
            self.count(pace, answered, asked_us, now_us);
        }
        let turning = self.against > 0 && self.missing(pace) > 0;
        let wait_ms = if turning { pace.retry_ms } else { pace.interval_ms };
        let from_us = if turning { now_us } else { asked_us };
        self.due_us = self.due_us.min(from_us + wait_ms * 1000).max(now_us);
    }

    fn count(&mut self, pace: &Pace, answered: bool, asked_us: u64, now_us: u64) {
        let speaks_for = match self.state {
            State::Unknown if answered => return self.enter(State::Up, now_us),
            State::Unknown | State::Up => answered,
            State::Down => !answered,
        };
        if speaks_for {
            self.against = 0;
            if self.state == State::Up && now_us - self.since_us >= FORGIVEN_US {
                self.flaps = 0;
            }
            return;
        }
        if self.against == 0 {
            self.against_since_us = asked_us;
        }
        self.against = self.against.saturating_add(1);
        if self.missing(pace) > 0 {
            return;
        }
        match self.state {
            State::Down if now_us - self.against_since_us >= self.hold_us() => self.enter(State::Up, now_us),
            State::Down => {}
            State::Unknown | State::Up => {
                self.flaps = self.flaps.saturating_add(1);
                self.enter(State::Down, self.against_since_us);
            }
        }
    }

    fn enter(&mut self, state: State, since_us: u64) {
        self.state = state;
        self.since_us = since_us;
        self.against = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { interval_ms: 1000, timeout_ms: 400, retry_ms: 50, rise: 2, fall: 2 };
    const SECOND: u64 = 1_000_000;

    /// Puts the question whenever it is due and answers at once, until `until_us`.
    fn run(pulse: &mut Pulse, until_us: u64, answers: impl Fn(u64) -> bool) -> u64 {
        let mut asked = 0;
        while pulse.due_us(&PACE) < until_us {
            let now_us = pulse.due_us(&PACE);
            pulse.asked(asked, now_us);
            let outcome = match answers(now_us) {
                true => ProbeOutcome::Answered { took_us: 0 },
                false => ProbeOutcome::Failed(String::new()),
            };
            pulse.outcome(&PACE, outcome, now_us);
            asked += 1;
        }
        asked
    }

    #[test]
    fn failures_in_a_row_make_it_down_and_answers_in_a_row_up() {
        let mut pulse = Pulse::new(0);
        assert_eq!(run(&mut pulse, 10 * SECOND, |_| true), 10);
        assert_eq!(pulse.state, State::Up);
        run(&mut pulse, 10 * SECOND + 1, |_| false);
        assert_eq!((pulse.state, pulse.failing_since_us()), (State::Up, Some(10 * SECOND)));
        run(&mut pulse, 10 * SECOND + 50_001, |_| false);
        assert_eq!((pulse.state, pulse.since_us), (State::Down, 10 * SECOND));
        run(&mut pulse, 20 * SECOND, |_| true);
        assert_eq!(pulse.state, State::Up);
    }

    #[test]
    fn one_failure_between_answers_counts_for_nothing() {
        let mut pulse = Pulse::new(0);
        run(&mut pulse, 60 * SECOND, |now_us| now_us % (3 * SECOND) != 0 || now_us == 0);
        assert_eq!(pulse.state, State::Up);
    }

    #[test]
    fn a_question_that_cannot_be_put_changes_nothing() {
        let mut pulse = Pulse::new(0);
        run(&mut pulse, SECOND, |_| true);
        for id in 0..5 {
            pulse.asked(id, SECOND);
            pulse.outcome(&PACE, ProbeOutcome::Unable(String::new()), SECOND);
        }
        assert_eq!(pulse.state, State::Up);
    }

    #[test]
    fn the_all_clear_of_a_flapping_check_is_held_longer_and_longer() {
        let mut pulse = Pulse::new(0);
        let mut now_us = 0;
        let mut holds = Vec::new();
        for _ in 0..9 {
            while pulse.state != State::Down {
                now_us += 10_000;
                run(&mut pulse, now_us, |_| false);
            }
            let from_us = now_us;
            while pulse.state != State::Up {
                now_us += 10_000;
                run(&mut pulse, now_us, |_| true);
            }
            holds.push((now_us - from_us) / SECOND);
        }
        assert!(holds[0] <= 1 && holds.windows(2).all(|pair| pair[0] <= pair[1]), "{holds:?}");
        assert!((2..=4).contains(&holds[1]) && (60..=62).contains(&holds[8]), "{holds:?}");
        run(&mut pulse, now_us + FORGIVEN_US + 2 * SECOND, |_| true);
        assert_eq!(pulse.hold_us(), 0);
    }
}
