//! From a directory to a daemon that can take its first input: lock, certificates, log, view, links.
//!
//! The log is the truth. The view only saves time: what it holds is checked against the log, and on any doubt it is
//! moved aside and made again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::condition::Gauge;
use super::management::{Managed, ManagementEvent};
use super::membership::next_run;
use super::originals::Hosted;
use super::requests::TOKENS_FOLDER;
use super::world::World;
use super::{Command, Daemon, DaemonError};
use crate::core::guest::GuestReport;
use crate::core::id::{FileName, ServerName};
use crate::core::io::Input;
use crate::core::merge::{File, Files, Touched};
use crate::core::node::{Identity, Node, NodeConfig, Recovered};
use crate::core::oplog::Certifier;
use crate::core::priority::PriorityConfig;
use crate::core::text::ShownFile;
use crate::core::version::Vector;
use crate::edge::bundles::{BundleFetcher, BundleStore};
use crate::edge::certificate::{
    AuthorityCertificate, CertificateDirectory, SERVER_VALIDITY_MS, verify_server_certificate,
};
use crate::edge::checkpoint_transfer::CheckpointCollector;
use crate::edge::clock::{SystemClock, wall_ms};
use crate::edge::config::{Archive, Config};
use crate::edge::guests::forget_decisions;
use crate::edge::join::JoinServer;
use crate::edge::journal::{self, ArchiveRetention, Journal, JournalConfig, JournalEvent, Notify, Replayed};
use crate::edge::lock::DirectoryLock;
use crate::edge::plain_files::{PlainEvent, PlainFiles};
use crate::edge::quic::{Mesh, MeshConfig, MeshEvent};
use crate::edge::tls::TlsIdentity;
use crate::edge::token::TokenStore;
use crate::edge::vector_parts::VectorCollector;
use crate::edge::view::{Opened, View};

type Completions = mpsc::UnboundedSender<Result<Input, String>>;

/// Registers handed to the view at a time while the log is read.
const PROJECTED_AT_ONCE: usize = 10_000;
/// Frames from all links that may wait for the loop.
const MESH_EVENTS: usize = 1024;

pub(super) struct Started {
    pub daemon: Daemon,
    pub completions: mpsc::UnboundedReceiver<Result<Input, String>>,
    pub mesh_events: mpsc::Receiver<MeshEvent>,
    pub plain_events: mpsc::Receiver<PlainEvent>,
    pub guest_reports: mpsc::UnboundedReceiver<GuestReport>,
    pub management_events: mpsc::UnboundedReceiver<ManagementEvent>,
    pub bundles_stored: mpsc::UnboundedReceiver<super::bundles::StoredBundle>,
}

/// The cluster CA as the core asks it.
pub struct AuthorityCertifier(pub AuthorityCertificate);

impl Certifier for AuthorityCertifier {
    fn certified(&self, certificate_der: &[u8]) -> Result<(ServerName, [u8; 32]), String> {
        let info = verify_server_certificate(certificate_der, &self.0).map_err(|error| error.to_string())?;
        Ok((info.name, info.public_key))
    }
}

pub(super) async fn start(config: Config, commands: mpsc::Sender<Command>) -> Result<Started, DaemonError> {
    let lock = DirectoryLock::acquire(&config.directory)?;
    let certificates = CertificateDirectory::new(config.directory.join("certs"));
    let ca = certificates.load_authority_certificate()?;
    let credentials = certificates.load_credentials(&ca)?;
    let identity = TlsIdentity::new(&credentials, &ca).map_err(crate::edge::quic::MeshError::from)?;
    let name = identity.info().name;
    if name != config.name {
        let certificate = certificates.path().join("server.crt");
        return Err(DaemonError::Name { certificate, found: name, wanted: config.name });
    }
    let certifier = Arc::new(AuthorityCertifier(ca.clone()));
    let (done, completions) = mpsc::unbounded_channel();
    let Stored { journal, view, recovered } = open_stored(&config, &ca, certifier.clone(), done)?;
    let bundles = BundleStore::open(
        config.directory.join("bundles"),
        config.bundles.bytes_max,
        config.bundles.total_mib * 1024 * 1024,
    )?;
    let (stored_sender, bundles_stored) = mpsc::unbounded_channel();
    let clock = SystemClock::new();
    let run = next_run(&config.directory, last_run(&recovered, &config.name))?;
    let signing = Identity { certificate: credentials.certificate.as_ref().into(), key: credentials.key.clone(), run };
    let mut node_config = NodeConfig::new(config.name.clone(), ca.cluster());
    node_config.priority = PriorityConfig { enabled: config.priority.enabled, ageing_ms: config.priority.ageing_ms };
    node_config.beat_ms = config.network.beat_ms;
    node_config.clock_offset_ms_max = config.clock.offset_ms_max;
    node_config.checkpoint_bytes = config.log.checkpoint_every_mib * 1024 * 1024;
    let (event_sender, management_events) = mpsc::unbounded_channel();
    let (managed, management) = Managed::start(&config, ca.cluster(), clock, event_sender)?;
    let node = Node::new(node_config, certifier, signing, recovered).with_management(management);

    let mut mesh_config = MeshConfig::new(config.name.clone(), ca.cluster(), config.listen);
    mesh_config.keep_alive_ms = config.network.keep_alive_ms;
    mesh_config.idle_timeout_ms = config.network.idle_timeout_ms;
    mesh_config.offload = config.network.offload;
    let (events, mesh_events) = mpsc::channel(MESH_EVENTS);
    let mesh = Mesh::start(mesh_config, identity.clone(), ca.clone(), events).await?;
    let join = join_server(&certificates, commands)?;
    mesh.set_join_handler(Some(join.into_handler()));

    let (plain_sender, plain_events) = mpsc::channel(256);
    let shown = |(name, held): (&FileName, &Arc<File>)| (name.clone(), Arc::new(ShownFile::of(held)));
    let current = node.files().iter().map(shown).collect();
    let plain = PlainFiles::start(&config.files, current, plain_sender)
        .map_err(|source| DaemonError::Io { path: config.files.clone(), source })?;
    let (report_sender, guest_reports) = mpsc::unbounded_channel();
    if node.management().is_none_or(|management| management.chain().decisions().is_empty()) {
        forget_decisions(&config.directory)
            .map_err(|source| DaemonError::Io { path: config.directory.clone(), source })?;
    }
    let hosted = Hosted::start(&config, &bundles, clock, report_sender)?;
    let world = World {
        me: config.name.clone(),
        journal,
        view,
        mesh: Arc::new(mesh),
        appending: Vec::new(),
        replies: Vec::new(),
        events: Vec::new(),
        management: Vec::new(),
        checkpoints_wanted: Vec::new(),
        vectors_out: BTreeMap::new(),
        sent: BTreeMap::new(),
        alarms: BTreeMap::new(),
    };
    let now_ms = wall_ms();
    let daemon = Daemon {
        clock,
        started_ms: now_ms,
        node,
        world,
        certificates,
        ca,
        identity,
        bundles,
        fetcher: BundleFetcher::default(),
        uploads: BTreeMap::new(),
        bundles_stored: stored_sender,
        bundle_has_no_room: false,
        checkpoints: CheckpointCollector::default(),
        vectors: VectorCollector::default(),
        checkpoints_out: BTreeMap::new(),
        plain,
        hosted,
        managed,
        gauge: Gauge::start(&config),
        stale: BTreeSet::new(),
        next_show_us: 0,
        flood_since_us: 0,
        watchers: Vec::new(),
        continuations: BTreeMap::new(),
        tickets: 0,
        links: BTreeMap::new(),
        rotation: None,
        early_joins: Vec::new(),
        next_renewal_us: super::membership::FIRST_RENEWAL_US,
        own_record_untold: false,
        alarms_since_ms: BTreeMap::new(),
        lifecycle_since_ms: now_ms,
        next_housekeeping_us: 0,
        process: super::status::ProcessMeter::default(),
        stopping: false,
        config,
        _lock: lock,
    };
    Ok(Started { daemon, completions, mesh_events, plain_events, guest_reports, management_events, bundles_stored })
}

struct Stored {
    journal: Journal,
    view: View,
    recovered: Recovered,
}

/// Opens log and view; a view that does not fit the log is made again from it.
fn open_stored(
    config: &Config,
    ca: &AuthorityCertificate,
    certifier: Arc<AuthorityCertifier>,
    done: Completions,
) -> Result<Stored, DaemonError> {
    let journal_config = || JournalConfig {
        segment_bytes: config.log.segment_mib * 1024 * 1024,
        keep_live_bytes: config.log.keep_live_mib * 1024 * 1024,
        keep_live_ms: config.log.keep_live_hours * 3_600_000,
        archives: match config.log.archive {
            Archive::Forever => ArchiveRetention::Forever,
            Archive::Days(days) => ArchiveRetention::Days(days),
        },
        ..JournalConfig::new(&config.directory, ca.cluster())
    };
    let folder = config.directory.join("view");
    let mut opened = open_view(&folder, None)?;
    let mut files = opened.state.take().unwrap_or_default();
    let (mut journal, mut found, mut replayed_bytes) =
        read_log(journal_config(), &certifier, &done, &opened.view, &mut files)?;
    // Now, for what was found is repaired: a second look finds nothing to tell.
    for warning in &found.warnings {
        warn!("{warning}");
    }
    let logged: Vector = found.heads.iter().map(|(stream, head)| (stream.clone(), head.seq)).collect();
    if *files.seen() != logged {
        // The log has lost what the view still has: it is the log that counts.
        journal.close();
        opened.view.close();
        opened = open_view(&folder, Some(&logged))?;
        files = Files::default();
        (journal, found, replayed_bytes) = read_log(journal_config(), &certifier, &done, &opened.view, &mut files)?;
    }
    info!(entries = found.entries, segments = found.segments, "log open");
    let recovered = Recovered { files, heads: found.heads, floor: found.floor, bytes_since_checkpoint: replayed_bytes };
    Ok(Stored { journal, view: opened.view, recovered })
}

fn open_view(folder: &Path, log: Option<&Vector>) -> Result<Opened, DaemonError> {
    let opened = View::open(folder, log)?;
    if let Some(reason) = &opened.reason_for_rebuild {
        warn!("the view is made again from the log: {reason}");
    }
    if let Some(why) = opened.view.failure() {
        warn!("{why}; this start goes on without a view, which only makes the next one slower");
    }
    Ok(opened)
}

/// Opens the log and brings files and view to where it is. The last part of the answer: bytes of entries that its newest checkpoint
/// does not hold.
fn read_log(
    config: JournalConfig,
    certifier: &AuthorityCertifier,
    done: &Completions,
    view: &View,
    files: &mut Files,
) -> Result<(Journal, journal::Recovered, u64), DaemonError> {
    let done = done.clone();
    let (mut written, mut touched) = (Vec::new(), Touched::new());
    let mut replayed_bytes = 0;
    let notify: Notify = Arc::new(move |event| {
        let completion = match event {
            JournalEvent::Input(input) => Ok(input),
            JournalEvent::Fatal(error) => Err(error.to_string()),
            JournalEvent::Warning(text) => return warn!("{text}"),
        };
        // A loop that is gone needs no answer.
        let _ = done.send(completion);
    });
    let opened = journal::open(config, certifier, Arc::new(wall_ms), notify, |item| match item {
        Replayed::Checkpoint(checkpoint) => written.extend(files.merge(&checkpoint.files)),
        Replayed::Entry(sealed) => {
            replayed_bytes += sealed.entry().weight_bytes() as u64;
            if sealed.id().seq == files.seen().seq(&sealed.id().stream) + 1 {
                files.apply(sealed.entry());
                touched.extend(sealed.entry().touched());
            }
            if written.len() + touched.len() >= PROJECTED_AT_ONCE {
                written.extend(files.written(std::mem::take(&mut touched)));
                view.project(std::mem::take(&mut written), files.seen().clone());
            }
        }
    })?;
    written.extend(files.written(touched));
    if !written.is_empty() {
        view.project(written, files.seen().clone());
    }
    let (journal, found) = opened;
    Ok((journal, found, replayed_bytes))
}

fn last_run(recovered: &Recovered, name: &ServerName) -> u32 {
    recovered.heads.keys().filter(|stream| stream.origin == *name).map(|stream| stream.run).max().unwrap_or(0)
}

fn join_server(
    certificates: &CertificateDirectory,
    commands: mpsc::Sender<Command>,
) -> Result<JoinServer, DaemonError> {
    Ok(JoinServer {
        authority: certificates.load_authority()?,
        tokens: TokenStore::new(certificates.path().join(TOKENS_FOLDER)),
        validity_ms: SERVER_VALIDITY_MS,
        admit: Box::new(move |request| {
            let commands = commands.clone();
            Box::pin(async move {
                let (reply, answer) = tokio::sync::oneshot::channel();
                let admit = Command::Admit(super::membership::AdmitCommand { request, reply });
                let stopping = || "the daemon is stopping".to_owned();
                commands.send(admit).await.map_err(|_| stopping())?;
                answer.await.map_err(|_| stopping())?
            })
        }),
    })
}
