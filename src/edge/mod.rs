//! Adapters between the core and the world.

pub mod bundles;
pub mod checkpoint_transfer;
