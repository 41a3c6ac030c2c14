//! When an entry passes each stage of its way, for whoever wants to know where the time goes.
//!
//! With the log filter `p2pdb::stages=trace` every stage of every entry is one line with `CLOCK_MONOTONIC` in
//! nanoseconds, so the lines of all daemons of one machine can be put together. Otherwise it costs one comparison.

use crate::core::id::EntryId;
use crate::edge::clock::monotonic_ns;

/// The stages, in the order in which an entry passes them.
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    /// Sealed, signed and handed to the journal.
    Sealed,
    /// Durable at its origin and applied.
    Durable,
    /// Given to the links.
    Sent,
    /// Come out of a link at a replica, decoded.
    Received,
    /// Checked and handed to the replica's journal.
    Checked,
    /// Durable at the replica and applied; the acknowledgement leaves.
    Replicated,
    /// The reply goes to whoever made the edit.
    Replied,
}

/// Notes that entries pass a stage now.
pub fn pass<'a>(stage: Stage, entries: impl IntoIterator<Item = &'a EntryId>) {
    if tracing::enabled!(target: "p2pdb::stages", tracing::Level::TRACE) {
        let at_ns = monotonic_ns();
        for entry in entries {
            tracing::trace!(target: "p2pdb::stages", ?stage, %entry, at_ns);
        }
    }
}
