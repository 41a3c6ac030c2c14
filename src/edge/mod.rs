//! Adapters between the core and the world.

pub mod certificate;
pub mod config;
pub mod control;
mod endpoint;
pub mod frame;
pub mod hello;
pub mod join;
mod link;
pub mod quic;
pub mod tls;
pub mod token;
