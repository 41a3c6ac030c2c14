//! p2pdb: a group of servers that looks after itself.

#[cfg(feature = "daemon")]
pub mod cli;
pub mod core;
#[cfg(feature = "daemon")]
pub mod edge;
pub mod ports;
pub mod format;
