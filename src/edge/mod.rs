//! Adapters between the core and the world.

pub mod certificate;
mod endpoint;
pub mod frame;
pub mod hello;
mod link;
pub mod quic;
pub mod tls;
