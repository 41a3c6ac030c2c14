//! Time as an argument, and the hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014).
//!
//! The core never reads a clock: each input carries one `Now`. A timestamp is 48 bits of wall-clock milliseconds
//! and a 16-bit counter, strictly increasing at one server and greater than every timestamp it has seen.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The time at which one input is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Milliseconds since the Unix epoch by the wall clock; it may jump either way.
    pub wall_ms: u64,
    /// Microseconds since some moment in the past; it never goes back.
    pub monotonic_us: u64,
}

/// A hybrid timestamp: `wall_ms << 16 | counter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub fn from_wall_ms(wall_ms: u64) -> Self {
        Self(wall_ms << 16)
    }

    pub fn wall_ms(self) -> u64 {
        self.0 >> 16
    }

    pub fn counter(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:03}+{}", self.wall_ms() / 1000, self.wall_ms() % 1000, self.counter())
    }
}

/// The clock of one server. Invariant: `tick` returns more than every earlier `tick` and `observe`.
#[derive(Debug, Clone, Default)]
pub struct HybridClock {
    last: Timestamp,
}

impl HybridClock {
    /// The timestamp of a new local event.
    pub fn tick(&mut self, now: Now) -> Timestamp {
        self.last = Timestamp(Timestamp::from_wall_ms(now.wall_ms).0.max(self.last.0 + 1));
        self.last
    }

    /// The latest timestamp made or seen.
    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// Takes note of a timestamp that came from elsewhere.
    pub fn observe(&mut self, seen: Timestamp) {
        self.last = self.last.max(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: u64) -> Now {
        Now { wall_ms, monotonic_us: 0 }
    }

    #[test]
    fn ticks_increase_when_the_wall_clock_stands_still_or_steps_back() {
        let mut clock = HybridClock::default();
        let first = clock.tick(at(1000));
        let second = clock.tick(at(1000));
        let third = clock.tick(at(10));
        assert!(first < second && second < third);
        assert_eq!(third.wall_ms(), 1000);
    }

    #[test]
    fn a_tick_follows_everything_that_was_seen() {
        let mut clock = HybridClock::default();
        clock.observe(Timestamp::from_wall_ms(5000));
        assert!(clock.tick(at(1)) > Timestamp::from_wall_ms(5000));
    }
}
