//! Adapters between the core and the world.

pub mod certificate;
pub mod frame;
pub mod hello;
pub mod tls;
