//! The life of a daemon (the paper, section 4, Fig. 12): it does not act before it has the files, nor without the flag.
//!
//! ```text
//! Standby --linked--> Acquiring --has what a peer has--> Ready --flag--> Operating
//!                         ^                                ^---flag removed---'
//! ```
//! A server that is alone in its group, or that holds files and finds nobody in time, goes on to Ready by itself: the files are
//! always writable.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// Started; no peer has been reached yet.
    Standby,
    /// Fetching the files from a peer.
    Acquiring,
    /// Holds the files; waits for the flag.
    Ready,
    /// Holds the files and the flag: manages and is managed.
    Operating,
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Lifecycle::Standby => "standby",
            Lifecycle::Acquiring => "acquiring",
            Lifecycle::Ready => "ready",
            Lifecycle::Operating => "operating",
        })
    }
}
