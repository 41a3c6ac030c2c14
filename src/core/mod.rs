//! The pure core: one synchronous state machine with no clock, no randomness and no input or output of its own.

pub mod admission;
pub mod chain;
pub mod check;
pub mod clock;
pub mod decision;
pub mod diff;
pub mod entry;
#[cfg(test)]
mod fixture;
pub mod flaw;
pub mod guest;
pub mod id;
pub mod io;
pub mod lease;
pub mod lifecycle;
pub mod load;
pub mod management;
pub mod merge;
pub mod node;
pub mod opinion;
pub mod oplog;
pub mod placement;
pub mod plain;
pub mod priority;
pub mod probe;
pub mod quorum;
pub mod record;
pub mod ring;
pub mod roster;
pub mod schema;
pub mod service;
pub mod sync;
pub mod takeover;
pub mod text;
pub mod version;
pub mod waits;
pub mod watch;
