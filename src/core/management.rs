//! Management: this server's part in watching, deciding, recovering and taking back (the paper, sections 2 and 4).

mod io;
mod report;

use std::collections::BTreeSet;

pub(in crate::core) use io::Act;
pub use io::{
    AddressAction, AddressOrder, Failback, Hook, HookId, HookRun, LookId, ManagementConfig, ManagementInput,
    ManagementMessage, ManagementOutput, OperatorCommand,
};

pub use report::{ElectorReport, ManagementReport, RecoveredReport, WorkReport};

use super::chain::{Chain, ChainConfig, Memory};
use super::clock::Now;
use super::id::ServerName;
use super::io::Message;
use super::lifecycle::Lifecycle;
use super::merge::Files;

/// What management sees of the node that it is a part of.
pub(in crate::core) struct Scene<'a> {
    pub files: &'a Files,
    pub lifecycle: Lifecycle,
    pub linked: BTreeSet<ServerName>,
}

/// Why management is asked.
pub(in crate::core) enum Cause {
    Tick,
    /// The files have changed.
    Files,
    LinkUp {
        peer: ServerName,
    },
    LinkDown {
        peer: ServerName,
    },
    Message {
        peer: ServerName,
        message: Message,
    },
    Input(ManagementInput),
}

pub struct Management {
    chain: Chain,
}

impl Management {
    /// `memory` is what `Decision.dat` holds.
    pub fn new(config: ManagementConfig, memory: Memory) -> Self {
        let chain =
            ChainConfig { policy: config.policy, ..ChainConfig::new(config.me, config.incarnation, config.seed) };
        Self { chain: Chain::new(chain, memory) }
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// When it wants to be asked again, in microseconds of monotonic time.
    pub fn next_wake_us(&self) -> Option<u64> {
        self.chain.next_wake_us()
    }

    pub(in crate::core) fn report(&self, _now: Now, _scene: &Scene) -> ManagementReport {
        ManagementReport {
            standing: String::new(),
            decisions: self.chain.decisions().len() as u64,
            policy: Default::default(),
            acts: true,
            electors: vec![],
            quorum_needs: String::new(),
            lease_left_ms: 0,
            holds: None,
            recovered: vec![],
            targets: vec![],
            work: vec![],
            capacity: super::placement::Capacity { can_lose: 0, takers: vec![] },
        }
    }

    pub(in crate::core) fn handle(&mut self, _now: Now, _scene: &Scene, _cause: Cause) -> Vec<Act> {
        Vec::new()
    }
}
