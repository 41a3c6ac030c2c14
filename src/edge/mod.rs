//! Adapters between the core and the world.

pub mod agent;
pub mod bundles;
pub mod certificate;
pub mod checkpoint_transfer;
pub mod clock;
pub mod config;
pub mod control;
mod endpoint;
pub mod frame;
pub mod guests;
pub mod hello;
mod iproute;
pub mod join;
pub mod journal;
mod link;
pub mod link_layer;
pub mod lock;
pub mod log_reader;
pub mod plain_files;
pub mod procedure;
pub mod process_identity;
pub mod quic;
pub mod service_address;
pub mod tls;
pub mod token;
pub mod view;
