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

use super::clock::{HybridClock, Now, Timestamp};
use super::entry::Sealed;
use super::flaw::Flaw;
use super::id::{ClusterId, Digest, EntryId, ServerName, Stream};
use super::io::{Event, Input, Output, Refusal, Ticket, Transaction, Wait};
use super::lifecycle::Lifecycle;
use super::management::{Act, Cause, Management, ManagementReport, Scene};
use super::merge::{Files, Written};
use super::oplog::{Certifier, Chains, Checkpoint, Head};
use super::priority::{Class, ClassStatus, PriorityConfig, PriorityQueue};
use super::sync::{Holding, Sync};
use super::version::Vector;
use super::waits::Waits;

mod checkpoints;
mod edits;
mod members;
mod reception;
mod time;

#[cfg(test)]
mod tests;

/// How often the node wants a `Tick`, in milliseconds.
pub const TICK_MS: u64 = 50;
/// Tickets from here on are the node's own: nobody waits for their replies.
const FIRST_INTERNAL_TICKET: Ticket = Ticket::MAX / 2;

/// How much is written, read, sent and kept waiting at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A commit takes no further work once it has reached this.
    pub commit_bytes: usize,
    pub commit_entries: usize,
    /// Unacknowledged bytes in flight to one peer before the flow to it pauses.
    pub window_bytes: usize,
    /// What one read from the log asks for; a group of entries under one signature is no larger, or is one entry.
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
    /// Of the entries in the log that the newest checkpoint does not hold.
    pub bytes_since_checkpoint: u64,
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
    /// Whether the last of them did not fit, and nobody has said that there is room since.
    checkpoint_lacks_room: bool,
    /// A received checkpoint that waits for the writer.
    incoming: Option<(ServerName, Box<Checkpoint>)>,
    internal_tickets: Ticket,
    management: Option<Management>,
    /// Whether files have changed since management looked at them.
    files_changed: bool,
}

impl Node {
    pub fn new(config: NodeConfig, certifier: Arc<dyn Certifier>, identity: Identity, recovered: Recovered) -> Self {
        let Recovered { files, heads, floor, bytes_since_checkpoint } = recovered;
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
            bytes_since_checkpoint,
            checkpoints_unanswered: 0,
            checkpoint_lacks_room: false,
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
