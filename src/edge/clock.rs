//! The only place that reads a clock for the core.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::core::clock::Now;

/// The clocks of this machine. Monotonic time counts from when it was made.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    #[expect(clippy::new_without_default, reason = "it reads the clock, which nobody expects of a default")]
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    pub fn now(&self) -> Now {
        Now { wall_ms: wall_ms(), monotonic_us: self.origin.elapsed().as_micros() as u64 }
    }
}

/// Milliseconds since the Unix epoch; 0 before it.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

/// `CLOCK_MONOTONIC` in nanoseconds: comparable between all processes of this machine.
pub fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The processor time that this thread has had.
pub fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
