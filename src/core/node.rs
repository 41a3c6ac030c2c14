//! The node: the one synchronous state machine of a server. `handle(now, input)` returns what is to be done.
//!
//! One direction only, for local and received entries alike:
//!
//! ```text
//! Submit ──► admission by priority ──► seal ─┐
//!                                            ├─► Append ─► (disk) ─► Appended ─► apply, project, acknowledge, push, reply
//! Frame(Entries) ──► queue ──► chain check ──┘
//! ```
//!
//! Invariants: `files` and `durable` describe exactly what the journal has confirmed. `tip` is `durable` plus the one
//! commit that is being written. What peers and readers see is durable. A commit that fails leaves no trace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::admission::{Overlay, admit};
use super::clock::{HybridClock, Now, Timestamp};
use super::diff::Change;
use super::entry::{Entry, Sealed};
use super::flaw::Flaw;
use super::id::{ClusterId, Digest, EntryId, FileName, Lane, ServerName, Stream};
use super::io::{Beat, Committed, Edit, Event, Input, Message, Output, Refusal, Ticket, Transaction, Wait};
use super::lifecycle::Lifecycle;
use super::management::{Act, Cause, Management, ManagementReport, Scene};
use super::merge::{Files, Touched, Written};
use super::oplog::{Admitted, Certifier, ChainError, Chains, Checkpoint, Head};
use super::priority::{Class, ClassStatus, PriorityConfig, PriorityQueue};
use super::record::Record;
use super::schema::{Schema, file};
use super::sync::{Holding, Sync};
use super::version::Vector;
use super::waits::Waits;

/// How often the node wants a `Tick`, in milliseconds.
pub const TICK_MS: u64 = 50;
/// Transactions that may wait before further ones are refused.
const SUBMITS_WAITING_MAX: usize = 20_000;
/// Tickets from here on are the node's own: nobody waits for their replies.
const FIRST_INTERNAL_TICKET: Ticket = Ticket::MAX / 2;
/// How long after giving a flag the node waits before it gives it again.
const FLAG_PATIENCE_US: u64 = 2_000_000;

/// Entries that are further ahead of this server's clock are not taken: they would carry the clocks of all away for good.
const FUTURE_MS_MAX: u64 = 24 * 3600 * 1000;

/// How much is written, read, sent and kept waiting at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A commit takes no further work once it has reached this.
    pub commit_bytes: usize,
    pub commit_entries: usize,
    /// Unacknowledged bytes in flight to one peer before the flow to it pauses.
    pub window_bytes: usize,
    /// What one read from the log asks for; at least the largest group of entries under one signature, which is
    /// `commit_bytes` and one entry.
    pub read_bytes: usize,
    /// Received bytes that wait for the writer before no more are read from the links.
    pub reception_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            commit_bytes: 256 * 1024,
            commit_entries: 1024,
            window_bytes: 2 * 1024 * 1024,
            read_bytes: 768 * 1024,
            reception_bytes: 8 * 1024 * 1024,
        }
    }
}

#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub me: ServerName,
    pub cluster: ClusterId,
    pub priority: PriorityConfig,
    /// How often peers are told how this server is.
    pub beat_ms: u64,
    /// Beyond this offset from the peers' clocks, edits are refused here.
    pub clock_offset_ms_max: u64,
    /// A server that holds files goes on alone after this time without a peer.
    pub standby_ms: u64,
    /// Log bytes between two checkpoints.
    pub checkpoint_bytes: u64,
    pub limits: Limits,
    pub flaw: Option<Flaw>,
}

impl NodeConfig {
    pub fn new(me: ServerName, cluster: ClusterId) -> Self {
        Self {
            me,
            cluster,
            priority: PriorityConfig::default(),
            beat_ms: 300,
            clock_offset_ms_max: 10_000,
            standby_ms: 3_000,
            checkpoint_bytes: 16 * 1024 * 1024,
            limits: Limits::default(),
            flaw: None,
        }
    }
}

/// What this server signs with. A new identity opens new streams.
#[derive(Clone)]
pub struct Identity {
    /// DER.
    pub certificate: Arc<[u8]>,
    pub key: SigningKey,
    /// Larger than every run of this server before.
    pub run: u32,
}

/// What the journal and the view remember from before.
#[derive(Default)]
pub struct Recovered {
    pub files: Files,
    pub heads: BTreeMap<Stream, Head>,
    pub floor: Vector,
}

enum Work {
    Local { ticket: Ticket, transaction: Transaction, wait: Wait, deadline_us: u64 },
    Received { peer: ServerName, entries: Vec<Arc<Sealed>> },
}

/// What is being made durable.
enum Writing {
    Commit(Commit),
    /// A received checkpoint, merged with what was here. Its answer comes after those of the checkpoints asked for before.
    Checkpoint {
        peer: ServerName,
        merged: Box<Files>,
        written: Vec<Written>,
        heads: BTreeMap<Stream, Head>,
    },
}

#[derive(Default)]
struct Commit {
    entries: Vec<Arc<Sealed>>,
    tickets: Vec<(Ticket, EntryId, Wait, u64)>,
    /// Who sent received entries, and up to where they go.
    sources: Vec<(ServerName, Stream, u64)>,
    bytes: usize,
    /// Whether the peers got the own entries before they were on this server's disk.
    pushed: bool,
}

/// The clocks' agreement: a pair of readings that was right.
#[derive(Clone, Copy)]
struct ClockAnchor {
    wall_ms: u64,
    monotonic_us: u64,
}

pub struct Node {
    config: NodeConfig,
    certifier: Arc<dyn Certifier>,
    identity: Identity,
    /// Whether an entry of this identity's run has been sealed.
    run_is_open: bool,
    clock: HybridClock,
    files: Files,
    durable: Chains,
    tip: Chains,
    floor: Vector,
    queue: PriorityQueue<Work>,
    writing: Option<Writing>,
    has_room: bool,
    waits: Waits,
    sync: Sync,
    lifecycle: Lifecycle,
    started_us: Option<u64>,
    next_beat_us: u64,
    anchor: Option<ClockAnchor>,
    jumped_ms: i64,
    alarms: BTreeMap<String, String>,
    /// The latest entry of each origin whose entries are ahead of this server's clock.
    ahead: BTreeMap<ServerName, Timestamp>,
    flags_given: BTreeMap<ServerName, u64>,
    others: BTreeSet<ServerName>,
    /// Whether the `Server` file names, or has named, the origin of every entry held; and of how many streams that was said.
    origins_known: bool,
    streams_known: usize,
    digests: Option<(Digest, Digest)>,
    bytes_since_checkpoint: u64,
    /// Checkpoints of the node's own state that the journal has not answered yet.
    checkpoints_unanswered: usize,
    /// A received checkpoint that waits for the writer.
    incoming: Option<(ServerName, Box<Checkpoint>)>,
    internal_tickets: Ticket,
    management: Option<Management>,
    /// Whether files have changed since management looked at them.
    files_changed: bool,
}

impl Node {
    pub fn new(config: NodeConfig, certifier: Arc<dyn Certifier>, identity: Identity, recovered: Recovered) -> Self {
        let Recovered { files, heads, floor } = recovered;
        let mut clock = HybridClock::default();
        heads.values().for_each(|head| clock.observe(head.time));
        let durable = Chains::new(heads);
        let mut node = Self {
            certifier,
            identity,
            run_is_open: false,
            clock,
            tip: durable.clone(),
            durable,
            floor,
            queue: PriorityQueue::new(config.priority),
            writing: None,
            has_room: true,
            waits: Waits::default(),
            sync: Sync::new(config.me.clone(), config.limits),
            lifecycle: Lifecycle::Standby,
            started_us: None,
            next_beat_us: 0,
            anchor: None,
            jumped_ms: 0,
            alarms: BTreeMap::new(),
            ahead: BTreeMap::new(),
            flags_given: BTreeMap::new(),
            others: BTreeSet::new(),
            origins_known: false,
            streams_known: 0,
            digests: None,
            bytes_since_checkpoint: 0,
            checkpoints_unanswered: 0,
            incoming: None,
            internal_tickets: FIRST_INTERNAL_TICKET,
            management: None,
            files_changed: true,
            files,
            config,
        };
        node.learn_members();
        node
    }

    /// Handles one input. The outputs are to be carried out in order.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.started_us.get_or_insert(now.monotonic_us);
        self.watch_clock(now, &mut out);
        match input {
            Input::Tick => {
                self.tick(now, &mut out);
                self.manage(now, Cause::Tick, &mut out);
            }
            Input::Commit { room_bytes } => self.commit(now, room_bytes, &mut out),
            Input::Submit { ticket, transaction, wait, deadline_ms } => {
                let deadline_us = now.monotonic_us.saturating_add(deadline_ms.saturating_mul(1000));
                self.submit(now, ticket, transaction, wait, deadline_us, &mut out);
            }
            Input::Cancel { ticket } => self.waits.cancel(ticket),
            Input::LinkUp { peer } => {
                self.with_holding(now, |sync, holding| sync.link_up(peer.clone(), holding, &mut out));
                self.manage(now, Cause::LinkUp { peer }, &mut out);
            }
            Input::LinkDown { peer } => {
                self.queue.retain(
                    Class::Reception,
                    |work| !matches!(work, Work::Received { peer: from, .. } if *from == peer),
                );
                self.with_holding(now, |sync, holding| sync.link_down(&peer, holding, &mut out));
                self.clear_alarm(&format!("divergence {peer}"), &mut out);
                self.manage(now, Cause::LinkDown { peer }, &mut out);
            }
            Input::Frame { peer, message } => self.frame(now, peer, message, &mut out),
            Input::Appended => self.appended(now, &mut out),
            Input::AppendFailed => self.append_failed(&mut out),
            Input::Room { available } => self.room(available, &mut out),
            Input::Read { peer, stream, from, entries } => self.with_holding(now, |sync, holding| {
                sync.read(&peer, stream, from, entries, holding, &mut out);
            }),
            Input::CheckpointStored { floor } => self.checkpoint_stored(now, floor, &mut out),
            Input::CheckpointFailed => self.checkpoint_failed(&mut out),
            Input::Archived { floor } => self.floor = floor,
            Input::CheckpointProgress { peer, collected_bytes } => {
                self.sync.checkpoint_progress(&peer, collected_bytes, now.monotonic_us);
            }
            Input::CheckpointReceived { peer, checkpoint } => {
                if self.sync.wants_checkpoint_of(&peer) {
                    self.incoming = Some((peer, checkpoint));
                }
            }
            Input::Identity { certificate, key, run } => {
                self.identity = Identity { certificate, key: SigningKey::from_bytes(&key), run };
                self.run_is_open = false;
            }
            Input::Management(input) => self.manage(now, Cause::Input(input), &mut out),
        }
        if std::mem::take(&mut self.files_changed) {
            self.manage(now, Cause::Files, &mut out);
        }
        out
    }

    /// Whether an `Input::Commit` would write something.
    pub fn wants_commit(&self) -> bool {
        self.writing.is_none() && self.has_room && (self.incoming.is_some() || !self.queue.is_empty())
    }

    /// Joins the part that watches, decides and recovers; without it, the node shares files only.
    pub fn with_management(mut self, management: Management) -> Self {
        self.management = Some(management);
        self
    }

    pub fn management(&self) -> Option<&Management> {
        self.management.as_ref()
    }

    /// What management knows and waits for.
    pub fn management_report(&self, now: Now) -> Option<ManagementReport> {
        let scene = self.scene();
        self.management.as_ref().map(|management| management.report(now, &scene))
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            files: &self.files,
            lifecycle: self.lifecycle,
            linked: self.sync.names(),
            latest_ms: self.clock.last().wall_ms(),
        }
    }

    /// When management wants a `Tick`, in microseconds of monotonic time; besides those that come every `TICK_MS`.
    pub fn next_wake_us(&self) -> Option<u64> {
        self.management.as_ref().and_then(Management::next_wake_us)
    }

    pub fn name(&self) -> &ServerName {
        &self.config.me
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    pub fn lifecycle(&self) -> Lifecycle {
        self.lifecycle
    }

    pub fn alarms(&self) -> &BTreeMap<String, String> {
        &self.alarms
    }

    pub fn sync(&self) -> &Sync {
        &self.sync
    }

    pub fn waits(&self) -> &Waits {
        &self.waits
    }

    pub fn durable(&self) -> &Chains {
        &self.durable
    }

    pub fn floor(&self) -> &Vector {
        &self.floor
    }

    pub fn has_room(&self) -> bool {
        self.has_room
    }

    pub fn queue_status(&self, class: Class) -> ClassStatus {
        self.queue.status(class)
    }

    /// Whether more entries from peers can be taken now; while not, none should be read from the links.
    pub fn takes_entries(&self) -> bool {
        self.queue.status(Class::Reception).waiting_bytes < self.config.limits.reception_bytes
    }

    /// The state and the heads that a checkpoint of this moment holds.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { files: self.files.clone(), heads: self.durable.heads().clone() }
    }

    /// The other members of the group, by the `Server` file.
    pub fn others(&self) -> &BTreeSet<ServerName> {
        &self.others
    }

    /// Lets management handle what has happened, and does what it wants.
    fn manage(&mut self, now: Now, cause: Cause, out: &mut Vec<Output>) {
        let Some(mut management) = self.management.take() else { return };
        let scene = self.scene();
        let acts = management.handle(now, &scene, cause);
        self.management = Some(management);
        for act in acts {
            match act {
                Act::Out(output) => out.push(Output::Management(output)),
                Act::Send { peers, message } => out.push(Output::Send { peers, message }),
                Act::Submit { reason, edits } => self.submit_own(now, &reason, edits),
                Act::Alarm { name, text: Some(text) } => self.raise_alarm(&name, text, out),
                Act::Alarm { name, text: None } => self.clear_alarm(&name, out),
            }
        }
    }

    fn with_holding<T>(&mut self, now: Now, act: impl FnOnce(&mut Sync, &Holding) -> T) -> T {
        let Self { sync, tip, floor, files, .. } = self;
        let holding =
            Holding { durable: files.seen(), tip: &|stream| tip.seq(stream), floor, now_us: now.monotonic_us };
        act(sync, &holding)
    }

    // ---- edits ----

    fn submit(
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
    fn is_member(&self) -> bool {
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

    /// Submits a transaction of the node's own; nobody waits for the reply.
    fn submit_own(&mut self, now: Now, reason: &str, edits: Vec<Edit>) {
        let transaction =
            Transaction { class: Class::Management, author: "p2pdb".into(), reason: reason.into(), edits };
        self.internal_tickets += 1;
        let work = Work::Local { ticket: self.internal_tickets, transaction, wait: Wait::Local, deadline_us: u64::MAX };
        self.queue.push(Class::Management, work, 0, now.monotonic_us);
    }

    /// Starts the next commit if none is under way.
    fn commit(&mut self, now: Now, room_bytes: u64, out: &mut Vec<Output>) {
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
        let mut signers: BTreeMap<Stream, usize> = BTreeMap::new();
        while commit.bytes < limits.commit_bytes && commit.entries.len() < limits.commit_entries {
            let Some((_, work)) = self.queue.pop(now.monotonic_us) else { break };
            match work {
                Work::Local { ticket, transaction, wait, deadline_us } => match self.seal(now, &overlay, transaction) {
                    Err(refusal) => refuse(ticket, refusal, out),
                    Ok(sealed) => {
                        overlay.note(&self.files, sealed.entry());
                        commit.bytes += sealed.entry().weight_bytes();
                        commit.tickets.push((ticket, sealed.id().clone(), wait, deadline_us));
                        signers.insert(sealed.id().stream.clone(), commit.entries.len());
                        commit.entries.push(Arc::new(sealed));
                    }
                },
                Work::Received { peer, entries } => self.receive(now, peer, &entries, &mut commit, out),
            }
        }
        for &at in signers.values() {
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

    fn appended(&mut self, now: Now, out: &mut Vec<Output>) {
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
        for sealed in &entries {
            let stream = &sealed.id().stream;
            self.durable.set(stream.clone(), Some(self.head_of(sealed)));
            self.files.apply(sealed.entry());
            touched.extend(sealed.entry().touched());
            match self.config.flaw {
                Some(Flaw::DropTombstone) => self.files.forget_deletions(&touched),
                Some(Flaw::DropConflict) => self.files.forget_conflicts(&touched),
                Some(Flaw::ForgetEarly) => self.files.forget_early(&touched),
                _ => {}
            }
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
        if self.bytes_since_checkpoint >= self.config.checkpoint_bytes {
            self.bytes_since_checkpoint = 0;
            self.checkpoints_unanswered += 1;
            out.push(Output::StoreCheckpoint(Box::new(self.checkpoint())));
        }
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

    fn files_written(&mut self, written: Vec<Written>, out: &mut Vec<Output>) {
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

    fn append_failed(&mut self, out: &mut Vec<Output>) {
        let Some(Writing::Commit(commit)) = self.writing.take() else { return };
        self.tip = self.durable.clone();
        commit.tickets.into_iter().for_each(|(ticket, ..)| refuse(ticket, Refusal::DiskFull, out));
        self.room(false, out);
    }

    fn room(&mut self, available: bool, out: &mut Vec<Output>) {
        self.has_room = available;
        if available {
            self.clear_alarm("disk full", out);
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

    // ---- entries of others ----

    fn frame(&mut self, now: Now, peer: ServerName, message: Message, out: &mut Vec<Output>) {
        if !self.sync.is_linked(&peer) {
            return;
        }
        match message {
            Message::Entries(entries) => {
                if self.has_room && !entries.is_empty() {
                    let bytes = entries.iter().map(|sealed| sealed.entry().weight_bytes()).sum();
                    let work = Work::Received { peer, entries };
                    self.queue.push(Class::Reception, work, bytes, now.monotonic_us);
                }
            }
            Message::Ack(acks) => {
                for (stream, seq) in acks {
                    self.sync.acknowledged(&peer, &stream, seq);
                    self.acknowledged(&peer, &stream, seq, out);
                }
                self.with_holding(now, |sync, holding| sync.pump(&peer, holding, out));
            }
            Message::Beat(beat) => self.beat(now, peer, beat, out),
            Message::Vector { held, floor } => {
                let mine: Vec<_> = held
                    .iter()
                    .filter(|(stream, _)| stream.origin == self.config.me)
                    .map(|(stream, seq)| (stream.clone(), seq))
                    .collect();
                self.with_holding(now, |sync, holding| {
                    sync.vector(&peer, held, floor, holding, out);
                });
                for (stream, seq) in mine {
                    self.acknowledged(&peer, &stream, seq.min(self.durable.seq(&stream)), out);
                }
                self.update_lifecycle(now, out);
            }
            Message::Want(ranges) => {
                self.with_holding(now, |sync, holding| sync.wanted_by(&peer, ranges, holding, out));
            }
            Message::WantCheckpoint => out.push(Output::SendCheckpoint { peer }),
            // Content and certificates are not the node's business.
            Message::CheckpointPart { .. }
            | Message::WantBundle { .. }
            | Message::BundlePart { .. }
            | Message::NoBundle { .. }
            | Message::WantCertificate { .. }
            | Message::Certificate { .. } => {}
            message @ (Message::Chain(_) | Message::Opinion(_) | Message::Lease(_) | Message::Management(_)) => {
                self.manage(now, Cause::Message { peer, message }, out);
            }
        }
    }

    /// Adds received entries to the commit, if they continue their streams.
    fn receive(
        &mut self,
        now: Now,
        peer: ServerName,
        entries: &[Arc<Sealed>],
        commit: &mut Commit,
        out: &mut Vec<Output>,
    ) {
        let admitted = match self.config.flaw {
            Some(Flaw::SkipVerify) => Ok(self.tip.admit_unverified(entries)),
            _ => self.tip.admit(self.config.cluster, self.certifier.as_ref(), entries),
        };
        match admitted {
            Ok(Some(Admitted { stream, head, entries })) => {
                if self.is_far_future(now, &stream, head.time, out) {
                    return;
                }
                self.watch_future(now, &stream, &head, out);
                self.clock.observe(head.time);
                commit.bytes += entries.iter().map(|sealed| sealed.entry().weight_bytes()).sum::<usize>();
                commit.sources.push((peer.clone(), stream.clone(), head.seq));
                self.sync.received(&peer, &stream, head.seq);
                if self.config.flaw == Some(Flaw::AcknowledgeEarly) {
                    let acks = vec![(stream.clone(), head.seq)];
                    out.push(Output::Send { peers: vec![peer], message: Message::Ack(acks) });
                }
                self.tip.set(stream, Some(head));
                commit.entries.extend(entries);
            }
            // Held already: the sender may not know, so it is told.
            Ok(None) => {
                let stream = entries[0].id().stream.clone();
                let seq = self.durable.seq(&stream);
                out.push(Output::Send { peers: vec![peer], message: Message::Ack(vec![(stream, seq)]) });
            }
            // Entries were lost between the sender and here; the next exchange of vectors brings them.
            Err(ChainError::Gap { .. }) => {}
            Err(ChainError::Fork(id)) => {
                let text = format!("{peer} sent another entry under the id {id} than the one held here");
                self.raise_alarm(&format!("fork {}", id.stream.origin), text, out);
            }
            Err(error) => out.push(Output::Disconnect { peer, reason: error.to_string() }),
        }
    }

    fn acknowledge_received(&mut self, sources: Vec<(ServerName, Stream, u64)>, out: &mut Vec<Output>) {
        let mut acks: BTreeMap<ServerName, BTreeMap<Stream, u64>> = BTreeMap::new();
        for (source, stream, seq) in sources {
            let origin = stream.origin.clone();
            for receiver in BTreeSet::from([source, origin]) {
                if self.sync.is_linked(&receiver) {
                    acks.entry(receiver).or_default().insert(stream.clone(), seq);
                }
            }
        }
        for (peer, acks) in acks {
            out.push(Output::Send { peers: vec![peer], message: Message::Ack(acks.into_iter().collect()) });
        }
    }

    fn acknowledged(&mut self, peer: &ServerName, stream: &Stream, seq: u64, out: &mut Vec<Output>) {
        if stream.origin != self.config.me {
            return;
        }
        for (ticket, committed) in self.waits.acknowledge(peer, stream, seq, &self.others) {
            self.reply(ticket, committed, out);
        }
    }

    fn reply(&self, ticket: Ticket, committed: Committed, out: &mut Vec<Output>) {
        if ticket < FIRST_INTERNAL_TICKET {
            out.push(Output::Reply { ticket, result: Ok(committed) });
        }
    }

    // ---- checkpoints ----

    fn install(&mut self, now: Now, peer: ServerName, checkpoint: Checkpoint, out: &mut Vec<Output>) {
        if checkpoint.heads.iter().any(|(stream, head)| self.is_far_future(now, stream, head.time, out)) {
            return;
        }
        if let Some((stream, _)) = checkpoint.heads.iter().find(|(stream, head)| !self.is_proven(stream, head)) {
            let reason = format!("its checkpoint has a key of {stream} that no certificate of this cluster proves");
            out.push(Output::Disconnect { peer, reason });
            return;
        }
        let mut merged = Box::new(self.files.clone());
        let written = merged.merge(&checkpoint.files);
        let mut chains = self.durable.clone();
        chains.join(&checkpoint.heads);
        checkpoint.heads.values().for_each(|head| self.clock.observe(head.time));
        let heads = chains.heads().clone();
        out.push(Output::StoreCheckpoint(Box::new(Checkpoint { files: (*merged).clone(), heads: heads.clone() })));
        self.writing = Some(Writing::Checkpoint { peer, merged, written, heads });
    }

    /// Whether a head of a received checkpoint has the key of its origin. What is held here was proven when it came.
    fn is_proven(&self, stream: &Stream, head: &Head) -> bool {
        self.durable.head(stream).is_some_and(|held| held.public_key == head.public_key)
            || head.is_certified(stream, self.certifier.as_ref())
    }

    fn checkpoint_stored(&mut self, now: Now, floor: Vector, out: &mut Vec<Output>) {
        self.floor = floor;
        if self.checkpoints_unanswered > 0 {
            self.checkpoints_unanswered -= 1;
            return;
        }
        match self.writing.take() {
            Some(Writing::Checkpoint { peer, merged, written, heads }) => {
                self.files = *merged;
                self.durable = Chains::new(heads);
                self.tip = self.durable.clone();
                self.files_written(written, out);
                let reached = self.files.seen().clone();
                reached.iter().for_each(|(stream, seq)| self.sync.received(&peer, stream, seq));
                self.with_holding(now, |sync, holding| sync.checkpoint_installed(holding, out));
                self.update_lifecycle(now, out);
            }
            other => self.writing = other,
        }
    }

    fn checkpoint_failed(&mut self, out: &mut Vec<Output>) {
        if self.checkpoints_unanswered > 0 {
            self.checkpoints_unanswered -= 1;
        } else if matches!(self.writing, Some(Writing::Checkpoint { .. })) {
            self.writing = None;
            self.room(false, out);
        }
    }

    // ---- time ----

    fn tick(&mut self, now: Now, out: &mut Vec<Output>) {
        for (ticket, committed) in self.waits.expire(now.monotonic_us, &self.others) {
            self.reply(ticket, committed, out);
        }
        if now.monotonic_us >= self.next_beat_us {
            self.next_beat_us = now.monotonic_us + self.config.beat_ms * 1000;
            let (vector, files) = self.digests();
            let beat = Beat { wall_ms: now.wall_ms, vector, files, lifecycle: self.lifecycle };
            let peers: Vec<_> = self.sync.names().into_iter().collect();
            if !peers.is_empty() {
                out.push(Output::Send { peers: peers.clone(), message: Message::Beat(beat) });
            }
            for peer in peers {
                self.with_holding(now, |sync, holding| {
                    sync.want(&peer, holding, out);
                    sync.pump(&peer, holding, out);
                });
            }
            self.give_flags(now);
            self.forget_future(now, out);
        }
        self.update_lifecycle(now, out);
    }

    fn digests(&mut self) -> (Digest, Digest) {
        *self.digests.get_or_insert_with(|| (self.files.seen().digest(), self.files.digest()))
    }

    fn beat(&mut self, now: Now, peer: ServerName, beat: Beat, out: &mut Vec<Output>) {
        let (vector, files) = self.digests();
        let same_vector = beat.vector == vector;
        let name = format!("divergence {peer}");
        if same_vector && beat.files != files {
            let text = format!(
                "{peer} holds the same entries and other files (digest {} there, {} here); \
                 run 'p2pdb replay --check' on both, the one that differs from its log is damaged",
                beat.files.short(),
                files.short()
            );
            self.raise_alarm(&name, text, out);
        } else if same_vector {
            self.clear_alarm(&name, out);
        }
        let offset_ms = beat.wall_ms as i64 - now.wall_ms as i64;
        if let Some(held) = self.sync.peer_mut(&peer) {
            held.clock_offset_ms = Some(offset_ms);
        }
        self.with_holding(now, |sync, holding| {
            sync.beat(&peer, beat, same_vector, holding, out);
        });
        self.judge_clock(out);
        self.update_lifecycle(now, out);
    }

    /// Notices that the wall clock has jumped: what peers said of it before does not count any more.
    fn watch_clock(&mut self, now: Now, out: &mut Vec<Output>) {
        let reading = ClockAnchor { wall_ms: now.wall_ms, monotonic_us: now.monotonic_us };
        let anchor = *self.anchor.get_or_insert(reading);
        let elapsed_ms = now.monotonic_us.saturating_sub(anchor.monotonic_us) / 1000;
        let jump_ms = now.wall_ms as i64 - (anchor.wall_ms + elapsed_ms) as i64;
        // From one reading to the next: a clock that merely drifts has not jumped.
        self.anchor = Some(reading);
        if jump_ms.unsigned_abs() <= self.config.clock_offset_ms_max {
            return;
        }
        self.jumped_ms = jump_ms;
        for peer in self.sync.names() {
            if let Some(peer) = self.sync.peer_mut(&peer) {
                peer.clock_offset_ms = None;
            }
        }
        let text = format!("the wall clock of this server has jumped by {jump_ms} ms");
        self.raise_alarm("clock jump", text, out);
    }

    /// How far this server's clock is off, if it is too far for edits. With fewer than two peers nobody can tell
    /// whose clock is wrong, and edits go on.
    fn clock_off(&self) -> Option<i64> {
        let linked = self.sync.peers().count();
        if linked < 2 {
            return None;
        }
        let mut offsets: Vec<i64> = self.sync.peers().filter_map(|(_, peer)| peer.clock_offset_ms).collect();
        if offsets.len() < 2 {
            return (self.jumped_ms != 0).then_some(self.jumped_ms);
        }
        // This server has a vote too, and in doubt it is right: one wrong clock must not stop the others.
        offsets.push(0);
        offsets.sort_unstable();
        let middle = [offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]];
        let median = middle.into_iter().min_by_key(|offset| offset.unsigned_abs()).unwrap_or(0);
        (median.unsigned_abs() > self.config.clock_offset_ms_max).then_some(-median)
    }

    fn judge_clock(&mut self, out: &mut Vec<Output>) {
        match self.clock_off() {
            Some(offset_ms) => {
                let text = format!(
                    "this server's clock is {offset_ms} ms off from the other servers' clocks; edits are refused here until it is set right"
                );
                self.raise_alarm("clock", text, out);
            }
            None => {
                self.jumped_ms = 0;
                self.clear_alarm("clock", out);
                self.clear_alarm("clock jump", out);
            }
        }
    }

    /// An entry from the future is taken, for others may hold it already, but not in silence. Whoever has seen it
    /// makes entries that are ahead as well, for time goes on from there; only the first one is to blame.
    fn watch_future(&mut self, now: Now, stream: &Stream, head: &Head, out: &mut Vec<Output>) {
        let ahead_ms = head.time.wall_ms().saturating_sub(now.wall_ms);
        if ahead_ms <= self.config.clock_offset_ms_max || head.time.wall_ms() <= self.clock.last().wall_ms() {
            return;
        }
        let text = format!("entries of {} are {ahead_ms} ms ahead of this server's clock", stream.origin);
        self.raise_alarm(&future_alarm(&stream.origin), text, out);
        self.ahead.insert(stream.origin.clone(), head.time);
    }

    /// An entry from far in the future is not taken before its time, and not in silence.
    fn is_far_future(&mut self, now: Now, stream: &Stream, time: Timestamp, out: &mut Vec<Output>) -> bool {
        let ahead_ms = time.wall_ms().saturating_sub(now.wall_ms);
        if ahead_ms <= FUTURE_MS_MAX {
            return false;
        }
        let text =
            format!("entries of {} are {ahead_ms} ms ahead of this server's clock; they are not taken", stream.origin);
        self.raise_alarm(&future_alarm(&stream.origin), text, out);
        self.ahead.insert(stream.origin.clone(), time);
        true
    }

    /// Takes back what was said of entries from the future that time has caught up with.
    fn forget_future(&mut self, now: Now, out: &mut Vec<Output>) {
        let limit_ms = now.wall_ms + self.config.clock_offset_ms_max;
        let caught_up: Vec<_> = self.ahead.extract_if(.., |_, time| time.wall_ms() <= limit_ms).collect();
        caught_up.iter().for_each(|(origin, _)| self.clear_alarm(&future_alarm(origin), out));
    }

    // ---- life cycle and members ----

    fn update_lifecycle(&mut self, now: Now, out: &mut Vec<Output>) {
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
    fn give_flags(&mut self, now: Now) {
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

    fn builtin_has(&self, file: &str, name: &ServerName) -> bool {
        self.files.builtin(file).is_some_and(|held| held.record(name.as_str()).is_some())
    }

    fn learn_members(&mut self) {
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

    // ---- alarms ----

    fn raise_alarm(&mut self, name: &str, text: String, out: &mut Vec<Output>) {
        let before = self.alarms.insert(name.to_owned(), text.clone());
        if before.is_none() {
            out.push(Output::Event(Event::Alarm { name: name.to_owned(), text }));
        }
    }

    fn clear_alarm(&mut self, name: &str, out: &mut Vec<Output>) {
        if self.alarms.remove(name).is_some() {
            out.push(Output::Event(Event::AlarmCleared { name: name.to_owned() }));
        }
    }
}

fn refuse(ticket: Ticket, refusal: Refusal, out: &mut Vec<Output>) {
    if ticket < FIRST_INTERNAL_TICKET {
        out.push(Output::Reply { ticket, result: Err(refusal) });
    }
}

fn future_alarm(origin: &ServerName) -> String {
    format!("clock of {origin}")
}
