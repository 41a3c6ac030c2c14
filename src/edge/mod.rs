//! Adapters between the core and the world.

pub mod journal;
pub mod lock;
pub mod log_reader;
pub mod view;
