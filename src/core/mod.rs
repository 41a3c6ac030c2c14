//! The pure core: one synchronous state machine with no clock, no randomness and no input or output of its own.

pub mod clock;
pub mod id;
pub mod record;
