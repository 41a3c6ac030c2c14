//! Edits of this server: admitted or refused, sealed, made durable in commits, and only then applied, acknowledged and shown.
//! A commit takes received entries as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::time::FUTURE_MS_MAX;
use super::{Commit, Identity, Node, Work, Writing, refuse};
use crate::core::admission::{Overlay, admit};
use crate::core::clock::Now;
use crate::core::entry::{Entry, Sealed};
use crate::core::flaw::Flaw;
use crate::core::id::{Digest, EntryId, FileName, Lane, Stream};
use crate::core::io::{Edit, Event, Output, Refusal, Ticket, Transaction, Wait};
use crate::core::management::Management;
use crate::core::merge::{Touched, Written};
use crate::core::oplog::Head;
use crate::core::priority::Class;
use crate::core::schema::{Schema, file};

/// Transactions that may wait before further ones are refused.
const SUBMITS_WAITING_MAX: usize = 20_000;

impl Node {
    pub(super) fn submit(
        &mut self,
        now: Now,
        ticket: Ticket,
        transaction: Transaction,
        wait: Wait,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let refusal = if !self.has_room {
            Some(Refusal::DiskFull)
        } else if !self.is_member() && !self.founds(&transaction) {
            Some(Refusal::NotReady(self.lifecycle))
        } else if let Some(offset_ms) = self.clock_off() {
            Some(Refusal::ClockOff(offset_ms))
        } else if let Some(behind_ms) = self.clock_behind(now) {
            Some(Refusal::ClockBehind(behind_ms))
        } else if self.queue.status(transaction.class).waiting >= SUBMITS_WAITING_MAX {
            Some(Refusal::Busy)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            out.push(Output::Reply { ticket, result: Err(refusal) });
            return;
        }
        let class = transaction.class.min(Class::Transmission);
        let work = Work::Local { ticket, transaction, wait, deadline_us };
        self.queue.push(class, work, 0, now.monotonic_us);
    }

    /// Whether this server is in the group and knows the group: every origin of an entry that it holds is named in the
    /// `Server` file, or was. A server that has only a part of the files would call an edit safe that nobody else has.
    pub(super) fn is_member(&self) -> bool {
        self.builtin_has(file::SERVER, &self.config.me) && self.origins_known
    }

    /// Whether a transaction founds the group: it makes the first member of it on a server that has nothing yet.
    fn founds(&self, transaction: &Transaction) -> bool {
        let names_me = |edit: &Edit| {
            let value = edit.change.value();
            edit.file.as_str() == file::SERVER && value.is_some_and(|record| record.field(0) == self.config.me.as_str())
        };
        self.files.seen().is_empty() && self.sync.names().is_empty() && transaction.edits.iter().any(names_me)
    }

    /// Submits a transaction of the node's own; nobody waits for the reply. None is made while this server's clock is so far ahead of
    /// the others' that they would not take it, nor what follows it.
    pub(super) fn submit_own(&mut self, now: Now, reason: &str, edits: Vec<Edit>) {
        if self.clock_off().is_some_and(|offset_ms| offset_ms > 0 && offset_ms.unsigned_abs() > FUTURE_MS_MAX) {
            return;
        }
        let transaction =
            Transaction { class: Class::Management, author: "p2pdb".into(), reason: reason.into(), edits };
        self.internal_tickets += 1;
        let work = Work::Local { ticket: self.internal_tickets, transaction, wait: Wait::Local, deadline_us: u64::MAX };
        self.queue.push(Class::Management, work, 0, now.monotonic_us);
    }

    /// Starts the next commit if none is under way.
    pub(super) fn commit(&mut self, now: Now, room_bytes: u64, out: &mut Vec<Output>) {
        if self.writing.is_some() || !self.has_room {
            return;
        }
        if let Some((peer, checkpoint)) = self.incoming.take() {
            return self.install(now, peer, *checkpoint, out);
        }
        if self.queue.is_empty() {
            return;
        }
        let limits = self.config.limits;
        let mut commit = Commit::default();
        let mut overlay = Overlay::default();
        // Entries are signed in groups that are read whole: what each may take so far, and its last entry's place.
        let mut groups: BTreeMap<Stream, (usize, usize)> = BTreeMap::new();
        let mut signers = Vec::new();
        while commit.bytes < limits.commit_bytes && commit.entries.len() < limits.commit_entries {
            let Some((_, work)) = self.queue.pop(now.monotonic_us) else { break };
            match work {
                Work::Local { ticket, transaction, wait, deadline_us } => match self.seal(now, &overlay, transaction) {
                    Err(refusal) => refuse(ticket, refusal, out),
                    Ok(sealed) => {
                        overlay.note(&self.files, sealed.entry());
                        commit.bytes += sealed.entry().weight_bytes();
                        commit.tickets.push((ticket, sealed.id().clone(), wait, deadline_us));
                        let bytes = sealed.entry().frame_bytes_max();
                        let group = groups.entry(sealed.id().stream.clone()).or_default();
                        // An entry by itself is always read, whatever its size.
                        if group.0 > 0 && group.0 + bytes > limits.read_bytes {
                            signers.push(group.1);
                            group.0 = 0;
                        }
                        *group = (group.0 + bytes, commit.entries.len());
                        commit.entries.push(Arc::new(sealed));
                    }
                },
                Work::Received { peer, entries } => self.receive(now, peer, &entries, &mut commit, out),
            }
        }
        signers.extend(groups.into_values().map(|(_, last)| last));
        for at in signers {
            let sealed = Arc::get_mut(&mut commit.entries[at]).expect("nobody else has seen the entry yet");
            sealed.sign(self.config.cluster, &self.identity.key);
        }
        if commit.entries.is_empty() {
            return;
        }
        self.bytes_since_checkpoint += commit.bytes as u64;
        out.push(Output::Append(commit.entries.clone()));
        // The peers' disks work while this one does. Not if the commit could fail and leave its entries with the peers.
        let frames_bytes: u64 = commit.entries.iter().map(|sealed| sealed.entry().frame_bytes_max() as u64).sum();
        if frames_bytes <= room_bytes {
            self.push_own(&commit.entries, out);
            commit.pushed = true;
        }
        if self.config.flaw == Some(Flaw::ApplyBeforeAppend) {
            self.apply(now, commit, out);
            self.writing = Some(Writing::Commit(Commit::default()));
        } else {
            self.writing = Some(Writing::Commit(commit));
        }
    }

    fn seal(&mut self, now: Now, overlay: &Overlay, transaction: Transaction) -> Result<Sealed, Refusal> {
        let diffs = admit(&self.files, overlay, &transaction)?;
        self.open_run();
        let volatile = diffs.iter().all(|diff| Schema::is_volatile(&diff.file));
        let lane = if volatile { Lane::Volatile } else { Lane::Audit };
        let stream = Stream { origin: self.config.me.clone(), run: self.identity.run, lane };
        let head = self.tip.head(&stream);
        let (seq, previous) = match head {
            Some(head) => (head.seq + 1, head.hash),
            None => (1, self.last_hash_before(&stream)),
        };
        let entry = Entry {
            id: EntryId { stream, seq },
            time: self.clock.tick(now),
            class: transaction.class,
            author: transaction.author,
            reason: transaction.reason,
            previous,
            certificate: (seq == 1).then(|| self.identity.certificate.clone()),
            diffs,
        };
        entry.check().map_err(|error| Refusal::TooLarge(error.to_string()))?;
        let sealed = Sealed::new(entry, None);
        let Identity { certificate, key, .. } = &self.identity;
        self.tip.advance(&sealed, key.verifying_key().to_bytes(), certificate);
        Ok(sealed)
    }

    /// Before its first entry, a run is made larger than any that this server is known to have had: a server that lost
    /// its disk learns of those from its peers.
    fn open_run(&mut self) {
        if !self.run_is_open && self.config.flaw != Some(Flaw::ReuseSequence) {
            self.identity.run = self.identity.run.max(self.tip.last_run(&self.config.me) + 1);
        }
        self.run_is_open = true;
    }

    fn last_hash_before(&self, stream: &Stream) -> Digest {
        let mut earlier =
            self.tip.heads().iter().filter(|(other, _)| {
                other.origin == stream.origin && other.lane == stream.lane && other.run < stream.run
            });
        earlier.next_back().map_or(Digest::ZERO, |(_, head)| head.hash)
    }

    pub(super) fn appended(&mut self, now: Now, out: &mut Vec<Output>) {
        match self.writing.take() {
            Some(Writing::Commit(commit)) => self.apply(now, commit, out),
            other => self.writing = other,
        }
    }

    /// What is durable becomes visible.
    fn apply(&mut self, now: Now, commit: Commit, out: &mut Vec<Output>) {
        let Commit { entries, tickets, sources, pushed, .. } = commit;
        if entries.is_empty() {
            return;
        }
        let mut touched = Touched::new();
        let mut last: BTreeMap<&Stream, &Sealed> = BTreeMap::new();
        for sealed in &entries {
            last.insert(&sealed.id().stream, sealed);
            self.files.apply(sealed.entry());
            touched.extend(sealed.entry().touched());
            match self.config.flaw {
                Some(Flaw::DropTombstone) => self.files.forget_deletions(&touched),
                Some(Flaw::DropConflict) => self.files.forget_conflicts(&touched),
                Some(Flaw::ForgetEarly) => self.files.forget_early(&touched),
                _ => {}
            }
        }
        for (stream, sealed) in last {
            self.durable.set(stream.clone(), Some(self.head_of(sealed)));
        }
        self.files_written(self.files.written(touched), out);
        self.acknowledge_received(sources, out);
        for (ticket, entry, wait, deadline_us) in tickets {
            if let Some(committed) = self.waits.begin(ticket, entry, wait, deadline_us, &self.others) {
                self.reply(ticket, committed, out);
            }
        }
        if !pushed {
            self.push_own(&entries, out);
        }
        self.checkpoint_if_due(out);
        self.update_lifecycle(now, out);
    }

    /// Of each own stream all at once: its signature is under the last one, and received entries may lie between.
    fn push_own(&mut self, entries: &[Arc<Sealed>], out: &mut Vec<Output>) {
        let mut own: BTreeMap<&Stream, Vec<Arc<Sealed>>> = BTreeMap::new();
        for sealed in entries {
            let stream = &sealed.id().stream;
            if stream.origin == self.config.me && stream.run == self.identity.run {
                own.entry(stream).or_default().push(sealed.clone());
            }
        }
        own.values().for_each(|group| self.sync.push(group, out));
    }

    fn head_of(&self, sealed: &Sealed) -> Head {
        Head::after(self.tip.head(&sealed.id().stream), sealed)
    }

    pub(super) fn files_written(&mut self, written: Vec<Written>, out: &mut Vec<Output>) {
        self.digests = None;
        let names: BTreeSet<FileName> = written.iter().map(|one| one.file.clone()).collect();
        let members_changed = names.iter().any(|name| name.as_str() == file::SERVER);
        if members_changed || self.files.seen().len() != self.streams_known {
            self.learn_members();
        }
        if members_changed {
            for (ticket, committed) in self.waits.due_all(&self.others) {
                self.reply(ticket, committed, out);
            }
        }
        out.push(Output::Project { written, seen: self.files.seen().clone() });
        self.files_changed |= names.iter().any(Management::reads);
        if !names.is_empty() {
            out.push(Output::Event(Event::FilesChanged(names.into_iter().collect())));
        }
    }

    pub(super) fn append_failed(&mut self, out: &mut Vec<Output>) {
        let Some(Writing::Commit(commit)) = self.writing.take() else { return };
        self.tip = self.durable.clone();
        commit.tickets.into_iter().for_each(|(ticket, ..)| refuse(ticket, Refusal::DiskFull, out));
        self.room(false, out);
    }

    pub(super) fn room(&mut self, available: bool, out: &mut Vec<Output>) {
        self.has_room = available;
        if available {
            self.clear_alarm("disk full", out);
            // While a received checkpoint is unanswered none is asked for: its answer would be taken for that one's.
            let lacked = std::mem::take(&mut self.checkpoint_lacks_room);
            if lacked && !matches!(self.writing, Some(Writing::Checkpoint { .. })) {
                self.checkpoint_if_due(out);
            }
            return;
        }
        self.raise_alarm("disk full", "no room for the log: edits are refused and nothing is received".into(), out);
        for class in [Class::Management, Class::Transmission] {
            let mut refused = Vec::new();
            self.queue.retain(class, |work| {
                if let Work::Local { ticket, .. } = work {
                    refused.push(*ticket);
                }
                false
            });
            refused.into_iter().for_each(|ticket| refuse(ticket, Refusal::DiskFull, out));
        }
        // What peers sent is dropped: it is not acknowledged, so it comes again.
        self.queue.retain(Class::Reception, |_| false);
    }
}
