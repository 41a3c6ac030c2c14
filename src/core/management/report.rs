//! What management knows and what it waits for, as data: for `status` and `why`.

use serde::{Deserialize, Serialize};

use crate::core::decision::{Place, Slot};
use crate::core::id::ServerName;
use crate::core::placement::Capacity;
use crate::core::quorum::Policy;
use crate::core::watch::TargetReport;

/// Management as one server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagementReport {
    /// What this server is to the chain, in words.
    pub standing: String,
    /// How many decisions it knows.
    pub decisions: Slot,
    pub policy: Policy,
    /// `false`: it only looks on.
    pub acts: bool,
    pub electors: Vec<ElectorReport>,
    /// What a quorum needs, in words.
    pub quorum_needs: String,
    /// For how long this server may hold exclusive addresses yet.
    pub lease_left_ms: u64,
    /// The service address that this server holds for its own service.
    pub holds: Option<String>,
    /// Servers that are out of the group, and who plays them.
    pub recovered: Vec<RecoveredReport>,
    /// The servers that this server watches.
    pub targets: Vec<TargetReport>,
    /// What this server does for others or for itself now, and what each waits for.
    pub work: Vec<WorkReport>,
    pub capacity: Capacity,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectorReport {
    pub name: ServerName,
    pub witness: bool,
    /// Whether this server reaches it.
    pub linked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredReport {
    pub target: ServerName,
    /// The decision.
    pub slot: Slot,
    /// `None`: no host was free.
    pub place: Option<Place>,
    pub manager: ServerName,
    /// As in the file `Recovery`.
    pub phase: String,
    pub note: String,
}

/// One thing that is under way on this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkReport {
    /// The server that it is about.
    pub server: ServerName,
    /// What is done, such as `takes the address 10.0.0.2/24`.
    pub work: String,
    /// What it waits for, if it waits.
    pub waits_for: Option<String>,
    /// The command that would end the waiting, if there is one.
    pub unblock: Option<String>,
}
