//! Adapters between the core and the world.

pub mod agent;
pub mod bundles;
pub mod certificate;
pub mod checkpoint_transfer;
pub mod child;
pub mod clock;
pub mod config;
pub mod control;
pub mod decision_log;
mod endpoint;
pub mod frame;
pub mod guests;
pub mod hello;
pub mod hooks;
mod iproute;
pub mod join;
pub mod journal;
mod link;
pub mod link_layer;
pub mod load;
pub mod lock;
pub mod log_reader;
pub mod plain_files;
pub mod probes;
pub mod procedure;
pub mod process_identity;
pub mod quic;
pub mod service_address;
mod sources;
pub mod tls;
pub mod token;
pub mod vector_parts;
pub mod view;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs what may panic where it should return an error.
fn caught<T>(whose: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("{whose} panicked: {}", text.unwrap_or("without a message"))
    })
}
