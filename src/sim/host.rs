//! One simulated host: the real node, with its simulated journal, view, disk and clocks.
//!
//! A host lives several *lives*: each start of its daemon is one. What was under way in an earlier life never
//! reaches a later one; what was on the disk does.

use std::collections::BTreeMap;
use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::disk::Disk;
use super::journal::{Journal, Opened};
use super::machine::Machine;
use super::random::Random;
use super::time::HostClock;
use super::view::View;
use crate::core::flaw::Flaw;
use crate::core::id::{Digest, ServerName};
use crate::core::merge::Files;
use crate::core::node::{Identity, Node, NodeConfig};
use crate::core::oplog::{Certifier, Chains};

/// A simulated host.
pub struct Host {
    pub name: ServerName,
    pub key: SigningKey,
    pub certificate: Arc<[u8]>,
    pub clock: HostClock,
    pub disk: Disk,
    pub machine: Machine,
    pub view: View,
    /// The daemon, while it runs.
    pub node: Option<Node>,
    pub journal: Journal,
    /// Counts the starts of the daemon.
    pub life: u32,
    /// Checkpoints that are on their way to the disk.
    pub checkpoints_writing: usize,
    /// When the disk has done what it was asked for last.
    pub disk_busy_us: u64,
    /// Until when the daemon is stopped by a signal.
    pub frozen_until_us: u64,
    /// It has been removed from the cluster and does not come back.
    pub removed: bool,
    /// Checkpoints that arrive in parts, by sender.
    pub collecting: BTreeMap<usize, (Digest, Vec<u8>)>,
}

/// What a start of the daemon found.
pub struct Started {
    pub run: u32,
    pub put_aside: Vec<String>,
    /// Whether the view agreed with the log, was behind it, or had to be rebuilt.
    pub view: Result<(), String>,
}

impl Host {
    pub fn new(
        name: ServerName,
        key: SigningKey,
        certificate: Arc<[u8]>,
        clock: HostClock,
        disk: Disk,
        machine: Machine,
    ) -> Self {
        Self {
            name,
            key,
            certificate,
            clock,
            disk,
            machine,
            view: View::default(),
            node: None,
            journal: Journal::default(),
            life: 0,
            checkpoints_writing: 0,
            disk_busy_us: 0,
            frozen_until_us: 0,
            removed: false,
            collecting: BTreeMap::new(),
        }
    }

    pub fn runs(&self) -> bool {
        self.node.is_some()
    }

    /// Starts the daemon on what the disk holds.
    pub fn start(
        &mut self,
        now_us: u64,
        config: &NodeConfig,
        segment_bytes: usize,
        certifier: Arc<dyn Certifier>,
    ) -> Started {
        let Opened { journal, mut recovered, checkpoint, put_aside } =
            Journal::open(&mut self.disk, segment_bytes, config.cluster, certifier.as_ref());
        // What was read is relied upon from now on, so it must not be lost by a later power cut.
        self.disk.sync();
        let view = self.compare_view(&checkpoint.files, &recovered.files).map(|caught_up| {
            // The daemon goes on from the view, so the simulated one does as well.
            if let Some(caught_up) = caught_up {
                recovered.files = caught_up;
            }
        });
        if self.view.seen() != recovered.files.seen() {
            self.view.rebuild(&recovered.files);
        }
        let known = Chains::new(recovered.heads.clone()).last_run(&self.name);
        let mut run = self.clock.wall_s(now_us).max(known + 1).max(self.disk.run + 1);
        if config.flaw == Some(Flaw::ReuseSequence) && known > 0 {
            run = known;
        }
        self.disk.run = run.max(self.disk.run);
        let identity = Identity { certificate: self.certificate.clone(), key: self.key.clone(), run };
        self.journal = journal;
        self.life += 1;
        self.checkpoints_writing = 0;
        self.disk_busy_us = now_us;
        self.node = Some(Node::new(config.clone(), certifier, identity, recovered));
        Started { run, put_aside, view }
    }

    /// Ends the daemon. What was written and not synced stays only if the power stays on.
    pub fn crash(&mut self, power_cut: Option<&mut Random>) {
        self.node = None;
        self.collecting.clear();
        self.view.crash();
        match power_cut {
            Some(random) => self.disk.power_cut(random),
            None => self.disk.sync(),
        }
    }

    /// The view, brought up to the log, must be what the log alone makes. `None`: it is of no use and is rebuilt.
    fn compare_view(&self, checkpoint: &Files, rebuilt: &Files) -> Result<Option<Files>, String> {
        if !rebuilt.seen().covers(self.view.seen()) || !self.view.seen().covers(checkpoint.seen()) {
            return Ok(None);
        }
        let caught_up = self.caught_up_view();
        if caught_up.seen() != rebuilt.seen() {
            return Err(format!("the view came up to {:?}, the log to {:?}", caught_up.seen(), rebuilt.seen()));
        }
        let same = caught_up.digest() == rebuilt.digest();
        if same { Ok(Some(caught_up)) } else { Err("the view and the log make different files".to_owned()) }
    }

    fn caught_up_view(&self) -> Files {
        let mut files = self.view.files();
        for (_, sealed) in super::journal::scan(&self.disk, &mut Vec::new()) {
            if files.seen().seq(&sealed.id().stream) + 1 == sealed.id().seq {
                files.apply(sealed.entry());
            }
        }
        files
    }
}
