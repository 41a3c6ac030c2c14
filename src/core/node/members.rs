//! Who is in the group, and how far this server is: Standby, Acquiring, Ready, Operating (the paper, Section 4 and Fig. 12).

use super::Node;
use crate::core::clock::Now;
use crate::core::diff::Change;
use crate::core::id::{FileName, ServerName};
use crate::core::io::{Edit, Event, Output};
use crate::core::lifecycle::Lifecycle;
use crate::core::record::Record;
use crate::core::schema::file;

/// How long after giving a flag the node waits before it gives it again.
const FLAG_PATIENCE_US: u64 = 2_000_000;

impl Node {
    pub(super) fn update_lifecycle(&mut self, now: Now, out: &mut Vec<Output>) {
        let flagged = self.builtin_has(file::FLAG, &self.config.me);
        let waited_us = now.monotonic_us.saturating_sub(self.started_us.unwrap_or(now.monotonic_us));
        // A server that lost a part of its disk may hold entries and not the files that they belong to.
        let holds_files = self.is_member();
        let next = match self.lifecycle {
            Lifecycle::Standby | Lifecycle::Acquiring => {
                let alone = holds_files && self.others.is_empty();
                let patience =
                    holds_files && self.sync.names().is_empty() && waited_us >= self.config.standby_ms * 1000;
                let caught_up = holds_files
                    && self
                        .sync
                        .peers()
                        .any(|(_, peer)| peer.held().is_some_and(|held| self.files.seen().covers(held)));
                if alone || patience || caught_up {
                    Lifecycle::Ready
                } else if self.sync.names().is_empty() {
                    Lifecycle::Standby
                } else {
                    Lifecycle::Acquiring
                }
            }
            Lifecycle::Ready if flagged => Lifecycle::Operating,
            Lifecycle::Operating if !flagged => Lifecycle::Ready,
            same => same,
        };
        if next != self.lifecycle {
            self.lifecycle = next;
            out.push(Output::Event(Event::Lifecycle(next)));
            if next == Lifecycle::Ready {
                self.update_lifecycle(now, out);
            }
        }
    }

    /// A member that has the files and no flag gets it, from the first operating server in the ring's order.
    pub(super) fn give_flags(&mut self, now: Now) {
        if self.lifecycle != Lifecycle::Operating {
            return;
        }
        let mine = self.digests().0;
        let order = |name: &ServerName| self.order(name);
        let operating = self.sync.beats().filter(|(_, beat)| beat.lifecycle == Lifecycle::Operating);
        if operating.map(|(name, _)| order(name)).any(|other| other < order(&self.config.me)) {
            return;
        }
        let due: Vec<ServerName> = self
            .sync
            .beats()
            .filter(|(name, beat)| {
                let given_us = self.flags_given.get(name).copied();
                beat.lifecycle == Lifecycle::Ready
                    && beat.vector == mine
                    && self.others.contains(*name)
                    && self.lacks_flag(name)
                    && given_us.is_none_or(|at| now.monotonic_us.saturating_sub(at) > FLAG_PATIENCE_US)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.flags_given.insert(name.clone(), now.monotonic_us);
            let record = Record::of([name.as_str(), "operating"]);
            let flag = FileName::new(file::FLAG).expect("built-in file names are well formed");
            let edit = Edit { file: flag, change: Change::Add(record), bases: None };
            self.submit_own(now, &format!("{name} has the files"), vec![edit]);
        }
    }

    /// Place in the ring: the order field of the `Server` file, then the name.
    fn order(&self, name: &ServerName) -> (u64, ServerName) {
        let order = self.files.builtin(file::SERVER).and_then(|servers| servers.record(name.as_str()));
        (order.and_then(|record| record.field(1).parse().ok()).unwrap_or(u64::MAX), name.clone())
    }

    /// Whether a member has had no flag since it was admitted. One whose flag was taken away by somebody stays without.
    fn lacks_flag(&self, name: &ServerName) -> bool {
        let newest = |file: &str| {
            let register = self.files.builtin(file).and_then(|held| held.register(name.as_str()));
            register.and_then(|register| register.leaves.first()).map(|leaf| &leaf.version)
        };
        !self.builtin_has(file::FLAG, name) && newest(file::FLAG) < newest(file::SERVER)
    }

    pub(super) fn builtin_has(&self, file: &str, name: &ServerName) -> bool {
        self.files.builtin(file).is_some_and(|held| held.record(name.as_str()).is_some())
    }

    pub(super) fn learn_members(&mut self) {
        let names = self.files.records_of(file::SERVER).filter_map(|record| ServerName::new(record.field(0)).ok());
        self.others = names.filter(|name| *name != self.config.me).collect();
        let servers = self.files.builtin(file::SERVER);
        let is_named = |origin: &ServerName| {
            let register = servers.and_then(|servers| servers.register(origin.as_str()));
            register.is_some_and(|register| !register.leaves.is_empty())
        };
        self.origins_known = self.files.seen().iter().all(|(stream, _)| is_named(&stream.origin));
        self.streams_known = self.files.seen().len();
    }
}
