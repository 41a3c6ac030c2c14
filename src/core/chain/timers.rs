//! When the chain does something unasked: only for what was lost, never for what is on its way.

use std::hash::{Hash, Hasher};

/// How long an unanswered question waits before it is asked again; doubled each time up to the second figure.
const RESEND_US: (u64, u64) = (150_000, 1_200_000);
/// The shortest pause after a lost duel; drawn up to twice that, doubled each time up to the second figure. Longer than a decision
/// takes: in the common case the winner's decision ends the pause.
const PAUSE_US: (u64, u64) = (20_000, 320_000);
/// How long a value that was accepted may stay undecided before whoever holds it settles it; drawn up to twice that.
const SETTLE_US: u64 = 500_000;

/// Moments of monotonic time, in microseconds.
#[derive(Debug, Clone)]
pub struct Timers {
    random: u64,
    resends: u32,
    duels_lost: u32,
    pub resend_at: Option<u64>,
    pub pause_until: Option<u64>,
    pub settle_at: Option<u64>,
    pub ask_at: Option<u64>,
}

impl Timers {
    pub fn new(seed: u64) -> Self {
        Self {
            random: seed,
            resends: 0,
            duels_lost: 0,
            resend_at: None,
            pause_until: None,
            settle_at: None,
            ask_at: None,
        }
    }

    pub fn asked(&mut self, now_us: u64) {
        self.resends = 0;
        self.resend_at = Some(now_us + RESEND_US.0);
    }

    pub fn asked_again(&mut self, now_us: u64) {
        self.resends += 1;
        self.resend_at = Some(now_us + (RESEND_US.0 << self.resends.min(8)).min(RESEND_US.1));
    }

    pub fn duel_lost(&mut self, now_us: u64) {
        let least = (PAUSE_US.0 << self.duels_lost.min(8)).min(PAUSE_US.1);
        self.duels_lost += 1;
        self.resend_at = None;
        self.pause_until = Some(now_us + least + self.below(least));
    }

    /// Somebody else is at work on the open slot: leave it the time to finish.
    pub fn others_work(&mut self, now_us: u64) {
        self.settle_at = Some(now_us + SETTLE_US + self.below(SETTLE_US));
    }

    /// A slot was decided: whatever was waited for in it is over.
    pub fn decided(&mut self) {
        (self.duels_lost, self.resend_at, self.pause_until, self.settle_at) = (0, None, None, None);
    }

    pub fn next(&self) -> Option<u64> {
        [self.resend_at, self.pause_until, self.settle_at, self.ask_at].into_iter().flatten().min()
    }

    /// splitmix64 (Steele, Lea & Flood, 2014).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound.max(1)
    }
}

/// Whether the timer has run out; takes it off if so.
pub fn due(timer: &mut Option<u64>, now_us: u64) -> bool {
    timer.take_if(|at| *at <= now_us).is_some()
}

// Time never decides what is decided: two chains that differ in their timers alone are the same state to the model checker.
impl PartialEq for Timers {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Timers {}

impl Hash for Timers {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
