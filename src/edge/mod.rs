//! Adapters between the core and the world.

pub mod bundles;
pub mod certificate;
pub mod checkpoint_transfer;
pub mod config;
pub mod control;
pub mod tls;
