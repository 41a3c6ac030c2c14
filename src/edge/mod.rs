//! Adapters between the core and the world.

pub mod plain_files;
