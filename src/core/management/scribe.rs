//! The scribe: writes what was decided into the files, so that they tell the whole story.
//!
//! Whoever proposed the last decision is the scribe; when it is gone, or does not get to it, the first elector that is linked. Its
//! work is to make the files agree with the chain, so it does not matter who begins and who ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Management, Phase, RecoveryRow, Turn};
use crate::core::decision::{Act, Decision};
use crate::core::id::ServerName;
use crate::core::lifecycle::Lifecycle;
use crate::core::record::Record;
use crate::core::ring::Ring;
use crate::core::schema::file;

/// After so long without agreement the first elector takes over, in microseconds.
const SCRIBE_PATIENCE_US: u64 = 2_000_000;

/// By how much the clocks of those who take flags away and of those who return may differ, in milliseconds.
const FLAG_SLACK_MS: u64 = 30_000;

impl Management {
    pub(super) fn keep_records(&mut self, turn: &mut Turn) {
        let Some(last) = self.chain.decisions().last().cloned() else { return };
        // Without a lease it may have missed the latest decisions.
        let is_current = self.in_group() && self.lease_left_ms(turn.now_us()) > 0;
        if turn.scene.lifecycle < Lifecycle::Ready || !is_current || !self.is_scribe(turn, &last) {
            return;
        }
        let reason = format!("decision {}: {}", last.slot, last.reason);
        self.keep_group(turn, &reason);
        let members: Vec<_> = self.chain.roster().members().iter().filter(|member| !member.witness).cloned().collect();
        self.forget_removed(turn);
        for member in members {
            let name = member.name.as_str().to_owned();
            let row = RecoveryRow::of(turn.scene.files, &member.name);
            match &member.recovery {
                Some(recovery) => {
                    let decision = self.chain.decisions()[recovery.slot as usize - 1].clone();
                    let reason = format!("decision {}: {}", decision.slot, decision.reason);
                    self.want_record(turn, file::FLAG, &name, None, &reason);
                    let place = recovery.place.as_ref();
                    let written = turn.record(file::PROBLEM, &member.name);
                    let plays = written.and_then(|record| ServerName::new(record.field(2)).ok());
                    let is_new = row.as_ref().is_none_or(|row| row.slot < recovery.slot);
                    // A new one may be on the host of the one before, and is watched from the beginning.
                    let is_other = plays.as_ref() != place.map(|place| &place.host);
                    if written.is_none() || plays.is_some() && (is_new || is_other) {
                        let open = Record::of(["---", &name, "---"]);
                        self.want_record(turn, file::PROBLEM, &name, Some(open), &reason);
                    }
                    if is_new {
                        let row = RecoveryRow {
                            target: member.name.clone(),
                            phase: Phase::Decided,
                            host: place.map(|place| place.host.clone()),
                            manager: Some(recovery.manager.clone()),
                            slot: recovery.slot,
                            note: decision.reason.clone(),
                        };
                        self.want_recovery(turn, row);
                    }
                }
                None => {
                    self.want_record(turn, file::FENCE, &name, None, "it is in the group again");
                    let Some(returned) = self.returned(&member.name).cloned() else { continue };
                    let reason = format!("decision {}: {}", returned.slot, returned.reason);
                    if lost_flag(turn, &member.name, &returned) {
                        let flag = Record::of([name.as_str(), "operating"]);
                        self.want_record(turn, file::FLAG, &name, Some(flag), &reason);
                    }
                    // A row without a decision is of a failure since then.
                    if let Some(row) = row.filter(|row| row.slot != 0 && row.slot < returned.slot) {
                        let phase = Phase::Returning;
                        let (slot, note) = (returned.slot, returned.reason.clone());
                        self.want_recovery(turn, RecoveryRow { phase, slot, note, ..row });
                    }
                }
            }
        }
    }

    /// Ends the story of whoever was removed for good.
    fn forget_removed(&mut self, turn: &mut Turn) {
        let removed: Vec<Arc<Decision>> = self
            .chain
            .decisions()
            .iter()
            .filter(|decision| matches!(&decision.act, Act::Remove { server } if self.chain.roster().member(server).is_none()))
            .cloned()
            .collect();
        for decision in removed {
            let server = decision.act.server();
            let reason = format!("decision {}: {}", decision.slot, decision.reason);
            for name in [file::PROBLEM, file::RECOVERY, file::FENCE] {
                self.want_record(turn, name, server.as_str(), None, &reason);
            }
            let is_its = |row: &&Record| row.field(0) == server.as_str();
            let hooks: Vec<Record> = turn.scene.files.records_of(file::HOOK).filter(is_its).cloned().collect();
            for row in hooks {
                let key = Record::of([row.field(0), row.field(1)]).to_string();
                self.want_record(turn, file::HOOK, &key, None, &reason);
            }
        }
    }

    fn is_scribe(&self, turn: &Turn, last: &Decision) -> bool {
        let is_there = |name: &ServerName| *name == self.config.me || turn.scene.linked.contains(name);
        let in_time = turn.now_us() < self.learned_us(last.slot) + SCRIBE_PATIENCE_US;
        let in_group = |name: &ServerName| {
            let member = self.chain.roster().member(name);
            member.is_some_and(|member| member.recovery.is_none() && !member.witness)
        };
        if in_time && is_there(&last.by) && in_group(&last.by) {
            return last.by == self.config.me;
        }
        let electorate = self.chain.electorate();
        let first = electorate.electors().iter().find(|elector| !elector.witness && is_there(&elector.name));
        first.is_some_and(|first| first.name == self.config.me)
    }

    /// The files `Group` and `Operation`. Members that were not admitted yet are left alone.
    fn keep_group(&mut self, turn: &mut Turn, reason: &str) {
        let files = turn.scene.files;
        let known: BTreeSet<ServerName> =
            files.records_of(file::SERVER).filter_map(|record| ServerName::new(record.field(0)).ok()).collect();
        let mut group: BTreeSet<ServerName> =
            files.records_of(file::GROUP).filter_map(|record| ServerName::new(record.field(0)).ok()).collect();
        for member in self.chain.roster().members() {
            if member.recovery.is_some() || member.witness || !known.contains(&member.name) {
                group.remove(&member.name);
            } else {
                group.insert(member.name.clone());
            }
        }
        let before: Vec<ServerName> =
            files.records_of(file::GROUP).filter_map(|record| ServerName::new(record.field(0)).ok()).collect();
        for name in before.iter().filter(|name| !group.contains(*name)) {
            self.want_record(turn, file::GROUP, name.as_str(), None, reason);
        }
        for name in &group {
            self.want_record(turn, file::GROUP, name.as_str(), Some(Record::of([name.as_str()])), reason);
        }
        let order: Vec<ServerName> = Ring::of(files).places().to_vec();
        let wanted = Ring::new(order, group).operation();
        let key = |row: &Record| format!("{}, {}", row.field(0), row.field(2));
        let gone: Vec<String> = files
            .records_of(file::OPERATION)
            .filter(|row| !wanted.iter().any(|other| key(other) == key(row)))
            .map(key)
            .collect();
        for key in gone {
            self.want_record(turn, file::OPERATION, &key, None, reason);
        }
        for row in wanted {
            self.want_record(turn, file::OPERATION, &key(&row), Some(row.clone()), reason);
        }
    }

    /// The decision by which a server has come back last, if that is the last that was decided about it.
    pub(super) fn returned(&self, target: &ServerName) -> Option<&Decision> {
        self.last_about(target).filter(|about| matches!(about.act, Act::Return { .. }))
    }

    /// The decision by which a server came into the group last, again or for the first time, if that is the last about it. What it
    /// did in the group before, it does no more.
    pub(super) fn came(&self, server: &ServerName) -> Option<&Decision> {
        self.last_about(server).filter(|about| matches!(about.act, Act::Return { .. } | Act::Admit { .. }))
    }

    fn last_about(&self, server: &ServerName) -> Option<&Decision> {
        let about = self.chain.decisions().iter().rev().find(|decision| match &decision.act {
            Act::Recover { target: it, .. } | Act::Return { target: it, .. } => it == server,
            Act::Admit { server: it, .. } | Act::Remove { server: it } => it == server,
            Act::Found { .. } | Act::Witness { .. } => false,
        });
        about.map(AsRef::as_ref)
    }
}

/// Whether a server has no flag since it was recovered. One whose flag somebody takes away afterwards stays without.
fn lost_flag(turn: &Turn, server: &ServerName, returned: &Decision) -> bool {
    let register = turn.scene.files.builtin(file::FLAG).and_then(|flags| flags.register(server.as_str()));
    let newest = register.and_then(|register| register.leaves.first());
    let limit_ms = returned.wall_ms.saturating_add(FLAG_SLACK_MS);
    newest.is_some_and(|leaf| leaf.value.is_none() && leaf.version.time.wall_ms() < limit_ms)
}
