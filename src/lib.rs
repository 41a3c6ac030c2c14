//! p2pdb: a group of servers that looks after itself.
//!
//! ```text
//! core <- format <- ports <- { edge, sim } <- daemon <- cli <- main
//! ```
//! `core` is one synchronous state machine; `format` its bytes; `ports` the doors between it and the world; `edge` the real
//! world, `sim` a simulated one. Without the feature `daemon` only the pure part is built.

pub mod core;
pub mod format;
pub mod ports;
pub mod sim;

// Adapters live in real time; everything else takes its time from `edge::clock`.
#[cfg(feature = "daemon")]
#[allow(clippy::disallowed_methods)]
pub mod edge;

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
