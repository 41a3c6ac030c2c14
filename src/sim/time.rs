//! The clocks of a simulated host: offset, drift and steps of the wall clock, and a monotonic clock that only drifts.
//!
//! True time is the microseconds since the simulation began; only the simulator knows it.

use crate::core::clock::Now;

/// What the wall clocks show when the simulation begins, Unix milliseconds.
const EPOCH_MS: u64 = 1_780_000_000_000;
pub const MILLISECOND_US: u64 = 1_000;
pub const SECOND_US: u64 = 1_000_000;

/// The clocks of one host. Invariant: the monotonic reading never goes back, whatever happens to the offset.
#[derive(Debug, Clone, Default)]
pub struct HostClock {
    pub offset_ms: i64,
    /// How much faster than true time both clocks run, in parts per million; fixed for a run.
    pub drift_ppm: i64,
    /// What the monotonic clock showed when the simulation began.
    pub monotonic_start_us: u64,
}

impl HostClock {
    pub fn now(&self, true_us: u64) -> Now {
        let elapsed_us = true_us as i64 + true_us as i64 * self.drift_ppm / 1_000_000;
        Now {
            wall_ms: (EPOCH_MS as i64 + elapsed_us / 1000 + self.offset_ms) as u64,
            monotonic_us: self.monotonic_start_us + elapsed_us as u64,
        }
    }

    /// The second by the wall clock, from which the run of a starting daemon is made.
    pub fn wall_s(&self, true_us: u64) -> u32 {
        (self.now(true_us).wall_ms / 1000) as u32
    }
}
