//! Adapters between the core and the world.

pub mod certificate;
pub mod config;
pub mod control;
pub mod tls;
