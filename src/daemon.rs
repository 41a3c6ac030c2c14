//! The daemon of one server: the only event loop, and the only place that spawns.
//!
//! Everything that happens becomes an input of the node; everything the node wants is carried out by [`world`]. One
//! thread runs the loop, the links and the control socket; the journal and the view have threads of their own, because
//! disks block. What has to do with neither entries nor files (bundles, checkpoints in transit, certificates, joining) is
//! kept by the modules below and never changes a file but by a transaction.

mod bundles;
mod condition;
mod control;
mod management;
mod membership;
mod originals;
mod requests;
mod stages;
mod start;
mod status;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::core::entry::Sealed;
use crate::core::id::{Digest, FileName, ServerName};
use crate::core::io::{Committed, Event, Input, Message, Refusal, Ticket, Transaction, Wait};
use crate::core::node::{Node, TICK_MS};
use crate::core::schema::file;
use crate::core::text::ShownFile;
use crate::edge::bundles::{BundleFetcher, BundleStore};
use crate::edge::certificate::{AuthorityCertificate, CertificateDirectory, CertificateError};
use crate::edge::checkpoint_transfer::{CheckpointCollector, Collected, parts};
use crate::edge::clock::{SystemClock, monotonic_ns, wall_ms};
use crate::edge::config::Config;
use crate::edge::control::{Conflict, ControlError, ControlSocket, FileChange, FileSnapshot, Peer, Request, Response};
use crate::edge::journal::JournalError;
use crate::edge::lock::{DirectoryLock, LockError};
use crate::edge::plain_files::{PlainEvent, PlainFiles, SaveId};
use crate::edge::quic::{Channel, MeshError, MeshEvent, WE_ARE_REVOKED};
use crate::edge::tls::TlsIdentity;
use crate::edge::vector_parts::VectorCollector;
use crate::edge::view::ViewError;
use crate::format;
use crate::ports::{Peers, carry_out};
use control::ControlHandler;
use stages::Stage;
use world::World;

pub use membership::FOUNDING_FILE;

/// How often what is due now and then is looked at: bundles, changed settings of the mesh.
const HOUSEKEEPING_US: u64 = 1_000_000;
const REMOVED_ALARM: &str = "removed";
/// Least and longest time between two states of the plain-file view. Nobody reads faster than the one; in a flood of edits, which
/// makes whole texts for changes of one line, the time grows with it up to the other.
const SHOW_REST_US_MIN: u64 = 12_000;
const SHOW_REST_US_MAX: u64 = 100_000;
/// Longest wait for a member to be admitted or a certificate to be made.
const OWN_TRANSACTION_MS: u64 = 5_000;

/// Why a daemon does not start, or ends.
#[derive(Debug, Error)]
pub enum DaemonError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Bundle(#[from] crate::edge::bundles::BundleError),
    #[error(transparent)]
    Decisions(#[from] crate::edge::decision_log::DecisionLogError),
    #[error(transparent)]
    Originals(#[from] crate::edge::guests::OriginalsError),
    #[error(
        "originals.driver is \"libvirt\" in p2pdb.toml, and this program was built without it; write \"process\", or build it with the feature libvirt"
    )]
    Driver,
    #[error(transparent)]
    View(#[from] ViewError),
    #[error(
        "{certificate} is for the server '{found}', and p2pdb.toml says name = '{wanted}'; one of the two is in the wrong directory"
    )]
    Name { certificate: PathBuf, found: ServerName, wanted: ServerName },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the log cannot be written any more: {0}; the daemon stops rather than promise what it cannot keep")]
    LogLost(String),
}

/// What is asked of the loop by the tasks around it.
enum Command {
    Control { peer: Peer, request: Request, reply: oneshot::Sender<Response> },
    Read { file: FileName, reply: oneshot::Sender<FileSnapshot> },
    Conflicts { file: Option<FileName>, reply: oneshot::Sender<Vec<Conflict>> },
    Watch { files: BTreeSet<FileName>, changes: mpsc::Sender<FileChange> },
    Admit(membership::AdmitCommand),
}

type Continuation = Box<dyn FnOnce(&mut Daemon, Result<Committed, Refusal>) + Send>;

/// The state of the loop.
pub struct Daemon {
    config: Config,
    clock: SystemClock,
    started_ms: u64,
    node: Node,
    world: World,
    certificates: CertificateDirectory,
    ca: AuthorityCertificate,
    identity: TlsIdentity,
    bundles: BundleStore,
    fetcher: BundleFetcher,
    /// Bundles that are being put, by digest.
    uploads: BTreeMap<Digest, Vec<u8>>,
    bundles_stored: mpsc::UnboundedSender<bundles::StoredBundle>,
    /// Some bundle that a record names has no room here.
    bundle_has_no_room: bool,
    checkpoints: CheckpointCollector,
    vectors: VectorCollector,
    /// Checkpoints on their way to peers.
    checkpoints_out: BTreeMap<ServerName, tokio::task::JoinHandle<()>>,
    plain: PlainFiles,
    hosted: originals::Hosted,
    managed: management::Managed,
    gauge: Option<condition::Gauge>,
    /// Files whose plain text is out of date, when it may be made again, and since when there has always been one.
    stale: BTreeSet<FileName>,
    next_show_us: u64,
    flood_since_us: u64,
    watchers: Vec<(BTreeSet<FileName>, mpsc::Sender<FileChange>)>,
    continuations: BTreeMap<Ticket, Continuation>,
    tickets: Ticket,
    links: BTreeMap<ServerName, status::LinkHistory>,
    rotation: Option<membership::Rotation>,
    next_renewal_us: u64,
    /// To tell the others of a new address was refused; it is tried again.
    own_record_untold: bool,
    early_joins: Vec<membership::EarlyJoin>,
    alarms_since_ms: BTreeMap<String, u64>,
    lifecycle_since_ms: u64,
    next_housekeeping_us: u64,
    process: status::ProcessMeter,
    stopping: bool,
    /// Held until the end: one daemon per directory.
    _lock: DirectoryLock,
}

/// Runs the daemon of `config.directory` until it is told to stop. `ready` is called once it serves.
///
/// # Errors
/// Whatever keeps it from starting, and the loss of the log; nothing has been changed on disk in the first case.
pub async fn run(config: Config, ready: impl FnOnce()) -> Result<(), DaemonError> {
    let (command_sender, mut commands) = mpsc::channel(1024);
    let (read_sender, mut reads) = mpsc::channel(64);
    let start::Started {
        mut daemon,
        mut completions,
        mut mesh_events,
        mut plain_events,
        mut guest_reports,
        mut management_events,
        mut bundles_stored,
    } = start::start(config, command_sender.clone()).await?;
    let socket = ControlSocket::bind(&daemon.config.directory, &daemon.config.control)?;
    let control = tokio::spawn(socket.serve(ControlHandler::new(command_sender, read_sender)));
    let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    daemon.begin();
    ready();
    let mut lost = None;
    while !daemon.stopping && lost.is_none() {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(completion) = completions.recv() => match completion {
                Ok(input) => daemon.input(input),
                Err(reason) => lost = Some(reason),
            },
            _ = ticks.tick() => daemon.tick(),
            Some(event) = management_events.recv() => lost = daemon.management_event(event),
            () = daemon.wake_due() => daemon.input(Input::Tick),
            Some(command) = commands.recv() => daemon.command(command),
            Some(event) = plain_events.recv() => daemon.plain_event(event),
            Some(report) = guest_reports.recv() => daemon.guest_report(report),
            Some(stored) = bundles_stored.recv() => daemon.bundle_stored(stored),
            Some(event) = mesh_events.recv(), if daemon.node.takes_entries() => daemon.mesh_event(event),
            // Who is ready goes into the same commit: one signature and one sync for all.
            () = tokio::task::yield_now(), if daemon.node.wants_commit() => daemon.commit(),
            // What those ask who may only read waits for all that the group needs.
            Some(command) = reads.recv(), if !daemon.node.wants_commit() => daemon.command(command),
            // Texts come last: frames and replies are on their way before the first is made.
            () = daemon.show_due(), if !daemon.stale.is_empty() => daemon.show_stale(),
            else => break,
        }
    }
    info!("stopping");
    control.abort();
    // The thread of the plain files may wait for a place in it, and is waited for.
    drop(plain_events);
    daemon.stop().await;
    match lost {
        Some(reason) => Err(DaemonError::LogLost(reason)),
        None => Ok(()),
    }
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, DaemonError> {
    tokio::signal::unix::signal(kind).map_err(|source| DaemonError::Io { path: "signals".into(), source })
}

impl Daemon {
    /// Feeds the node, carries out what it wants, and tells whoever watches.
    fn input(&mut self, input: Input) {
        let appended = matches!(input, Input::Appended).then(|| std::mem::take(&mut self.world.appending));
        if let Some(entries) = &appended {
            let own = |sealed: &&Arc<Sealed>| sealed.id().stream.origin == self.config.name;
            stages::pass(Stage::Durable, entries.iter().filter(own).map(|sealed| sealed.id()));
            stages::pass(Stage::Replicated, entries.iter().filter(|sealed| !own(sealed)).map(|sealed| sealed.id()));
        }
        let now = self.clock.now();
        let outputs = self.node.handle(now, input);
        carry_out(&mut self.world, outputs);
        for output in std::mem::take(&mut self.world.management) {
            self.manage(now, output);
        }
        if let Some(entries) = appended {
            self.tell_watchers(&entries);
        }
        for event in std::mem::take(&mut self.world.events) {
            self.event(event);
        }
        for peer in std::mem::take(&mut self.world.checkpoints_wanted) {
            self.send_checkpoint(peer);
        }
        for (ticket, result) in std::mem::take(&mut self.world.replies) {
            stages::pass(Stage::Replied, result.iter().map(|committed| &committed.entry));
            if let Some(continuation) = self.continuations.remove(&ticket) {
                continuation(self, result);
            }
        }
    }

    fn commit(&mut self) {
        let room_bytes = self.world.journal.room_bytes();
        self.input(Input::Commit { room_bytes });
    }

    /// Submits a transaction; `then` is called with its outcome.
    fn submit(
        &mut self,
        transaction: Transaction,
        wait: Wait,
        deadline_ms: u64,
        then: impl FnOnce(&mut Daemon, Result<Committed, Refusal>) + Send + 'static,
    ) {
        if self.world.alarms.contains_key(REMOVED_ALARM) {
            return then(self, Err(Refusal::Removed));
        }
        self.tickets += 1;
        self.continuations.insert(self.tickets, Box::new(then));
        self.input(Input::Submit { ticket: self.tickets, transaction, wait, deadline_ms });
    }

    fn begin(&mut self) {
        let names: Vec<FileName> = self.node.files().iter().map(|(name, _)| name.clone()).collect();
        self.files_changed(names);
        self.input(Input::Tick);
        self.found_or_update_own_record();
    }

    fn tick(&mut self) {
        self.input(Input::Tick);
        self.admit_early_joins();
        let now_us = self.clock.now().monotonic_us;
        // Whoever always has something else to do here does not keep what waits from being written and shown.
        if self.node.wants_commit() {
            self.commit();
        }
        if !self.stale.is_empty() && now_us >= self.next_show_us {
            self.show_stale();
        }
        if now_us < self.next_housekeeping_us {
            return;
        }
        self.next_housekeeping_us = now_us + HOUSEKEEPING_US;
        self.fetch_bundles();
        self.sweep_uploads();
        self.sweep_tokens();
        self.renew_in_time();
        self.continue_rotation();
        self.keep_original_rows();
        if std::mem::take(&mut self.own_record_untold) {
            self.found_or_update_own_record();
        }
        self.sample_load();
        self.watchers.retain(|(_, changes)| !changes.is_closed());
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::FilesChanged(names) => self.files_changed(names),
            Event::Lifecycle(lifecycle) => {
                info!(%lifecycle, "life cycle");
                self.lifecycle_since_ms = wall_ms();
                self.found_or_update_own_record();
            }
            Event::Alarm { name, text } => {
                warn!(alarm = name, "{text}");
                self.alarms_since_ms.insert(name, wall_ms());
            }
            Event::AlarmCleared { name } => {
                info!(alarm = name, "cleared");
                self.alarms_since_ms.remove(&name);
            }
        }
    }

    fn files_changed(&mut self, names: Vec<FileName>) {
        let has = |wanted: &str| names.iter().any(|name| name.as_str() == wanted);
        if has(file::SERVER) || has(file::REVOKED) {
            self.update_mesh();
        }
        if has(file::BUNDLE) {
            self.fetch_bundles();
        }
        let now_us = self.clock.now().monotonic_us;
        if self.stale.is_empty() && now_us >= self.next_show_us {
            self.flood_since_us = now_us;
        }
        self.stale.extend(names);
    }

    /// Resolves when texts may be made again, and not before everything else that is ready has had its turn.
    fn show_due(&self) -> impl Future<Output = ()> + use<> {
        let wait_us = self.next_show_us.saturating_sub(self.clock.now().monotonic_us);
        async move {
            match wait_us {
                0 => tokio::task::yield_now().await,
                _ => tokio::time::sleep(Duration::from_micros(wait_us)).await,
            }
        }
    }

    /// Brings the plain-file view up to date: at once after a quiet time, now and then in a flood of edits.
    fn show_stale(&mut self) {
        for name in std::mem::take(&mut self.stale) {
            let Some(held) = self.node.files().file(&name) else { continue };
            self.plain.show(name, Arc::new(ShownFile::of(held)));
        }
        let now_us = self.clock.now().monotonic_us;
        let flood_us = now_us.saturating_sub(self.flood_since_us);
        self.next_show_us = now_us + (flood_us / 8).clamp(SHOW_REST_US_MIN, SHOW_REST_US_MAX);
    }

    fn raise_alarm(&mut self, name: String, text: String) {
        if self.world.alarms.insert(name.clone(), text.clone()).is_none() {
            warn!(alarm = name, "{text}");
            self.alarms_since_ms.insert(name, wall_ms());
        }
    }

    fn clear_alarm(&mut self, name: &str) {
        if self.world.alarms.remove(name).is_some() {
            info!(alarm = name, "cleared");
            self.alarms_since_ms.remove(name);
        }
    }

    fn tell_watchers(&mut self, entries: &[Arc<Sealed>]) {
        if self.watchers.is_empty() {
            return;
        }
        let readable_ns = monotonic_ns();
        for sealed in entries {
            let files: BTreeSet<&FileName> = sealed.entry().diffs.iter().map(|diff| &diff.file).collect();
            for (wanted, changes) in &self.watchers {
                if wanted.is_empty() || files.iter().any(|file| wanted.contains(*file)) {
                    let files = files.iter().map(|file| (*file).clone()).collect();
                    // A watcher that does not keep up misses changes; it can tell by the sequence numbers.
                    let _ = changes.try_send(FileChange { entry: sealed.id().clone(), files, readable_ns });
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Control { peer, request, reply } => self.request(peer, request, reply),
            // Whoever asked may have gone; then nobody needs the answer.
            Command::Read { file, reply } => drop(reply.send(FileSnapshot::of(self.node.files(), &file))),
            Command::Conflicts { file, reply } => drop(reply.send(self.conflicts(file.as_ref()))),
            Command::Watch { files, changes } => {
                // Who goes and comes again is not to be told of twice.
                self.watchers.retain(|(_, changes)| !changes.is_closed());
                self.watchers.push((files, changes));
            }
            Command::Admit(admit) => self.admit(admit),
        }
    }

    fn plain_event(&mut self, event: PlainEvent) {
        match event {
            PlainEvent::Save { id, file, transaction } => self.saved(id, file, transaction),
            PlainEvent::Alarm { name, text } => self.raise_alarm(name, text),
            PlainEvent::AlarmCleared { name } => self.clear_alarm(&name),
        }
    }

    fn saved(&mut self, id: SaveId, file: FileName, transaction: Transaction) {
        self.submit(transaction, Wait::Local, OWN_TRANSACTION_MS, move |daemon, outcome| {
            let held = daemon.node.files().file(&file);
            let shown = Arc::new(held.map(ShownFile::of).unwrap_or_default());
            daemon.plain.outcome(id, outcome.map(|committed| (committed, shown)));
        });
    }

    // ---- links ----

    fn mesh_event(&mut self, event: MeshEvent) {
        match event {
            MeshEvent::LinkUp { peer, address, version, certificate_issued_ms, .. } => {
                info!(%peer, %address, version, "link up");
                let history = self.links.entry(peer.clone()).or_default();
                history.up(wall_ms());
                history.certificate_ms = history.certificate_ms.max(certificate_issued_ms);
                self.clear_alarm(REMOVED_ALARM);
                self.input(Input::LinkUp { peer });
                self.fetch_bundles();
            }
            MeshEvent::LinkDown { peer, reason, .. } => {
                info!(%peer, reason, "link down");
                self.links.entry(peer.clone()).or_default().down(wall_ms(), &reason);
                self.checkpoints.forget(&peer);
                self.vectors.forget(&peer);
                self.world.stop_vector(&peer);
                if let Some(sending) = self.checkpoints_out.remove(&peer) {
                    sending.abort();
                }
                self.input(Input::LinkDown { peer });
            }
            MeshEvent::Refused { peer, address, reason, proven } => {
                debug!(?peer, %address, reason, "connection refused");
                if proven && reason == WE_ARE_REVOKED && self.world.mesh.links().is_empty() {
                    self.raise_removed("the others refuse its certificate");
                }
                if let Some(peer) = peer {
                    self.links.entry(peer).or_default().refused(&reason);
                }
            }
            MeshEvent::Frame { peer, bytes, .. } => {
                self.links.entry(peer.clone()).or_default().received(bytes.len());
                match format::decode_message(&bytes) {
                    Ok(message) => self.message(peer, message),
                    Err(error) => {
                        let reason = format!("it sent a frame that cannot be read: {error}");
                        warn!(%peer, "{reason}");
                        self.world.mesh.disconnect(&peer, &reason);
                    }
                }
            }
        }
    }

    fn message(&mut self, peer: ServerName, message: Message) {
        match message {
            // What nobody asked for is not collected.
            Message::CheckpointPart { .. } if !self.node.sync().wants_checkpoint_of(&peer) => {}
            Message::CheckpointPart { digest, total, offset, bytes } => {
                let encoded = match self.checkpoints.part(&peer, digest, total, offset, &bytes) {
                    Collected::Nothing => return,
                    Collected::Part { collected_bytes } => {
                        return self.input(Input::CheckpointProgress { peer, collected_bytes });
                    }
                    Collected::Whole(encoded) => encoded,
                };
                match format::decode_checkpoint(&encoded, self.ca.cluster()) {
                    Ok(checkpoint) => {
                        let checkpoint = Box::new(checkpoint);
                        self.input(Input::CheckpointReceived { peer, checkpoint });
                    }
                    Err(error) => self.world.mesh.disconnect(&peer, &format!("its checkpoint: {error}")),
                }
            }
            Message::VectorPart { held, floor } => {
                if let Err(error) = self.vectors.part(&peer, &held, &floor) {
                    self.world.disconnect(&peer, &error.to_string());
                }
            }
            Message::Vector { held, floor } => match self.vectors.whole(&peer, held, floor) {
                Ok((held, floor)) => self.input(Input::Frame { peer, message: Message::Vector { held, floor } }),
                Err(error) => self.world.disconnect(&peer, &error.to_string()),
            },
            Message::WantBundle { digest, offset } => self.send_bundle_part(peer, digest, offset),
            Message::BundlePart { digest, total, offset, bytes } => {
                self.bundle_part_arrived(peer, digest, (total, offset, &bytes));
            }
            Message::NoBundle { digest } => self.fetcher.refused(&peer, digest),
            Message::WantCertificate { request } => self.issue_for_peer(peer, &request),
            Message::Certificate { result } => self.certificate_arrived(peer, result),
            message => {
                if let Message::Entries(entries) = &message {
                    stages::pass(Stage::Received, entries.iter().map(|sealed| sealed.id()));
                }
                self.input(Input::Frame { peer, message });
            }
        }
    }

    /// One at a time to each peer, whatever it asks for.
    fn send_checkpoint(&mut self, peer: ServerName) {
        if self.checkpoints_out.get(&peer).is_some_and(|sending| !sending.is_finished()) {
            return;
        }
        let receiver = peer.clone();
        let checkpoint = self.node.checkpoint();
        let cluster = self.ca.cluster();
        let mesh = self.world.mesh.clone();
        info!(%peer, "sending a checkpoint");
        let sending = tokio::spawn(async move {
            let encode = move || bytes::Bytes::from(format::encode_checkpoint(&checkpoint, cluster));
            let Ok(encoded) = tokio::task::spawn_blocking(encode).await else { return };
            let frames = parts(&encoded).map(|part| bytes::Bytes::from(format::encode_message(&part)));
            mesh.send_in_turn(&peer, Channel::Bulk, frames).await;
        });
        self.checkpoints_out.insert(receiver, sending);
    }

    async fn stop(mut self) {
        let waiting: Vec<_> = std::mem::take(&mut self.continuations).into_values().collect();
        for continuation in waiting {
            continuation(&mut self, Err(Refusal::Stopping));
        }
        drop(self.plain);
        self.world.close().await;
    }
}
