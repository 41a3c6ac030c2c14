//! Adapters between the core and the world.

pub mod bundles;
pub mod certificate;
pub mod checkpoint_transfer;
pub mod clock;
pub mod config;
pub mod control;
pub mod decision_log;
mod endpoint;
pub mod frame;
pub mod hello;
pub mod join;
pub mod journal;
mod link;
pub mod lock;
pub mod log_reader;
pub mod plain_files;
pub mod quic;
pub mod tls;
pub mod token;
pub mod view;
