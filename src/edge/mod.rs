//! Adapters between the core and the world.
