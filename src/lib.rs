//! p2pdb: a group of servers that looks after itself.

pub mod core;
#[cfg(feature = "daemon")]
pub mod edge;
pub mod format;
pub mod ports;
pub mod sim;
