//! Original servers and stand-ins as the core sees them: what a host is told to do with one, and what came of it.
//!
//! ```text
//! Suspended --Resume--> Running --Install--> Installed --TakeAddress--> Serving
//!     ^                    |                     |   ^--ReleaseAddress----|
//!     +-------Reset--------+---------------------+------------------------+
//! ```
//! `Running` and `Installed` without an address are the warm-up. Whatever goes wrong ends in `Broken` until a `Reset` succeeds.
//! Every order carries the fencing token of the decision behind it (0: warm-up, no decision yet); the driver remembers the highest
//! token per original across restarts and refuses older ones.

use serde::{Deserialize, Serialize};

use super::decision::{ServiceAddress, Slot};
use super::id::{Digest, ServerName};

/// Names an order until its outcome.
pub type OrderId = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    Suspended,
    Running,
    Installed,
    Serving,
    Broken,
}

/// What a driver knows of one original server of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub original: String,
    pub state: GuestState,
    /// Whom it plays or is being prepared to play.
    pub target: Option<ServerName>,
    pub token: Slot,
    /// Words for people, such as why it is broken.
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestOrder {
    pub id: OrderId,
    pub original: String,
    pub token: Slot,
    pub action: GuestAction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAction {
    Resume {
        target: ServerName,
    },
    /// Push the procedure (a bundle that this host holds) and run it; without the address.
    Install {
        target: ServerName,
        procedure: Digest,
    },
    /// Give the guest the service address and announce it (gratuitous ARP, unsolicited neighbour advertisement).
    /// It lapses by itself when it is not held again within `lease_ms`.
    TakeAddress {
        address: ServiceAddress,
        lease_ms: u64,
    },
    /// The address stays for another `lease_ms`.
    HoldAddress {
        address: ServiceAddress,
        lease_ms: u64,
    },
    ReleaseAddress {
        address: ServiceAddress,
    },
    /// Back to pristine and suspended, whatever state it is in.
    Reset,
}

/// What came of an order: the guest as it is afterwards, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestOutcome {
    Done(Guest),
    /// It was not done; the guest may be in any state and `Reset` is in order.
    Failed(String),
    /// The order's token is older than one the driver has seen.
    Stale {
        highest: Slot,
    },
}
