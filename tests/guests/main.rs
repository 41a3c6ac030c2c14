//! Original servers of the driver `process` and service addresses, for real: root, network namespaces, and processes that are frozen and
//! killed.
#![cfg(feature = "daemon")]
#![allow(clippy::disallowed_methods)]

mod addresses;
mod life;
mod owner;
mod restarts;
mod rig;
