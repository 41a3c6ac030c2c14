//! Original servers of the driver `process` and service addresses, for real: root, network namespaces, and processes that are frozen and
//! killed.
#![cfg(feature = "daemon")]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod addresses;
mod life;
mod owner;
mod restarts;
mod rig;
