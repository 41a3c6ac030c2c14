//! The mesh: one QUIC endpoint that keeps a link with every other member.
//!
//! One endpoint per daemon dials and accepts. For each member a dialler waits until there is no link, then dials; of
//! two servers the one with the lower name dials at once, the other after `dial_delay_ms`, so that both seldom dial
//! together. When they do, both keep the connection that the lower name dialled. `edge::link` has what happens on one
//! connection.
//!
//! Invariants: a peer has at most one link; events of a link come in the order `LinkUp`, frames, `LinkDown`, and the
//! `LinkUp` of the next link follows the `LinkDown` of the one before. Frames that were queued or on their way when a
//! link went down may be lost: whoever sends repairs that when told `LinkUp`. Nothing here waits for a peer without a
//! bound in time and in bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, TransportConfig};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use super::certificate::{AuthorityCertificate, CertificateError, Credentials, fill_random};
use super::endpoint::{bind, transport_config};
use super::frame::FRAME_HEADER_BYTES;
pub use super::frame::SendError;
use super::hello::{HELLO_PAYLOAD_BYTES_MAX, Hello};
pub use super::link::{CloseCode, WE_ARE_REVOKED};
use super::link::{Established, Link, Refusal, greet, peer_certificate, welcome, within};
use super::sources::{Sources, network_of};
use super::tls::{
    ALPN_JOIN, ALPN_MESH, Revocations, TLS_SERVER_NAME, TlsError, TlsIdentity, client_config, server_config,
};
use crate::core::id::{ClusterId, ServerName};

/// Connections that may be in their handshake before new addresses must prove themselves first.
const PENDING_BEFORE_RETRY: usize = 64;
/// Connections that may be in their handshake at all, and of those of proven addresses at one source.
const PENDING_MAX: usize = 512;
const PENDING_OF_SOURCE_MAX: usize = 64;
/// A link that lived this long ends a row of failures, in ms.
const STABLE_MS: u64 = 1000;
/// How often it is looked whether a queue has room again.
const ROOM_LOOK: Duration = Duration::from_millis(5);

/// Which of a link's two streams carries a frame. Frames of one channel arrive in order; `Live` goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    Live,
    Bulk,
}

#[derive(Debug, Clone)]
pub struct MeshConfig {
    pub me: ServerName,
    pub cluster: ClusterId,
    /// Port 0 lets the system choose; `Mesh::local_address` tells.
    pub listen: SocketAddr,
    /// A sign of life is sent after this much silence, in ms.
    pub keep_alive_ms: u64,
    /// A peer silent for this long is given up, in ms; at least twice `keep_alive_ms`.
    pub idle_timeout_ms: u64,
    /// What a round trip is taken for until one was measured, in ms.
    pub initial_rtt_ms: u64,
    /// Segmentation offload by the kernel; off helps in some containers.
    pub offload: bool,
    /// Largest frame, in bytes.
    pub frame_bytes_max: usize,
    /// Bytes that may wait for sending per link and channel; at least one largest frame.
    pub queue_bytes_max: usize,
    /// Bytes that a peer may have sent and we not yet read, per link and channel.
    pub window_bytes: u32,
    /// Lowest and highest protocol version spoken.
    pub versions: (u16, u16),
    /// Goes to every peer in the hello; at most 1 MiB.
    pub hello_payload: Vec<u8>,
    /// How long the higher of two names waits for the lower to dial, in ms.
    pub dial_delay_ms: u64,
    /// First and longest wait between two tries to dial, in ms. The very first retry comes at once.
    pub retry_ms: (u64, u64),
    /// Limit for the handshake and for the hellos, each, in ms.
    pub handshake_timeout_ms: u64,
}

impl MeshConfig {
    /// The defaults, which suit a local network.
    pub fn new(me: ServerName, cluster: ClusterId, listen: SocketAddr) -> Self {
        Self {
            me,
            cluster,
            listen,
            keep_alive_ms: 300,
            idle_timeout_ms: 1000,
            initial_rtt_ms: 10,
            offload: true,
            frame_bytes_max: 1024 * 1024,
            queue_bytes_max: 8 * 1024 * 1024,
            window_bytes: 1024 * 1024,
            versions: (1, 1),
            hello_payload: Vec::new(),
            dial_delay_ms: 500,
            retry_ms: (50, 1000),
            handshake_timeout_ms: 5000,
        }
    }

    fn check(&self) -> Result<(), MeshError> {
        let problem = if self.keep_alive_ms == 0 || self.idle_timeout_ms < 2 * self.keep_alive_ms {
            "the idle timeout must be at least twice the keep-alive interval"
        } else if self.queue_bytes_max < self.frame_bytes_max + FRAME_HEADER_BYTES {
            "the queue must have room for one largest frame"
        } else if self.frame_bytes_max > 256 * 1024 * 1024 || self.window_bytes < 16 * 1024 {
            "a frame has at most 256 MiB, a window at least 16 KiB"
        } else if self.hello_payload.len() > HELLO_PAYLOAD_BYTES_MAX {
            "the hello's payload has at most 1 MiB"
        } else if self.versions.0 > self.versions.1 {
            "the lowest protocol version is above the highest"
        } else {
            return Ok(());
        };
        Err(MeshError::Config(problem))
    }
}

#[derive(Debug)]
pub enum MeshEvent {
    LinkUp {
        peer: ServerName,
        /// Unique within this daemon's life.
        link: u64,
        address: SocketAddr,
        /// The protocol version both sides agreed on.
        version: u16,
        hello_payload: Vec<u8>,
        certificate_issued_ms: u64,
        /// The peer's wall clock minus ours, in ms, as one round trip tells.
        clock_offset_ms: i64,
    },
    LinkDown {
        peer: ServerName,
        link: u64,
        reason: String,
    },
    Frame {
        peer: ServerName,
        link: u64,
        channel: Channel,
        bytes: Bytes,
    },
    /// A connection that did not become a link, refused by either side. Dropped when the event channel is full.
    Refused {
        peer: Option<ServerName>,
        address: SocketAddr,
        reason: String,
        /// The peer was dialled by us and had shown its certificate.
        proven: bool,
    },
}

/// One link at one moment.
#[derive(Debug, Clone)]
pub struct LinkInfo {
    pub peer: ServerName,
    pub link: u64,
    pub address: SocketAddr,
    pub version: u16,
    pub dialled_by_us: bool,
    /// When it came up, by our wall clock, in ms.
    pub since_ms: u64,
    pub rtt_us: u64,
    /// UDP payload bytes, headers of QUIC included.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Bytes not yet handed to QUIC, both channels.
    pub bytes_queued: usize,
}

#[derive(Debug, Error)]
pub enum MeshError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the mesh is misconfigured: {0}")]
    Config(&'static str),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Serves one connection of a server that wants to join; see `edge::join`.
pub type JoinHandler = Arc<dyn Fn(Connection) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A running mesh. Dropping it closes everything at once; `close` also tells the peers.
pub struct Mesh {
    shared: Arc<Shared>,
}

impl Mesh {
    /// Listens and begins to accept. Must be called within a tokio runtime. A consumer that stops reading `events`
    /// holds back every link; a dropped receiver closes them. Errors: the address is taken, the configuration is
    /// contradictory, the certificate unusable.
    pub async fn start(
        config: MeshConfig,
        identity: TlsIdentity,
        ca: AuthorityCertificate,
        events: mpsc::Sender<MeshEvent>,
    ) -> Result<Self, MeshError> {
        config.check()?;
        if identity.info().name != config.me || ca.cluster() != config.cluster {
            return Err(MeshError::Config("the certificate names another server or cluster"));
        }
        let revocations = Revocations::default();
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server_config(&identity, &ca, &revocations)?));
        let transport = Arc::new(transport_config(&config));
        server.transport_config(transport.clone()).max_incoming(PENDING_MAX);
        let mut instance = [0; 8];
        fill_random(&mut instance)?;
        let endpoint = bind(config.listen, &identity, server)
            .map_err(|source| MeshError::Listen { address: config.listen, source })?;
        let shared = Arc::new(Shared {
            hello: Hello {
                cluster: config.cluster,
                name: config.me.clone(),
                versions: config.versions,
                instance: u64::from_le_bytes(instance),
                wall_ms: 0,
                payload: config.hello_payload.clone(),
            },
            runtime: tokio::runtime::Handle::current(),
            config,
            identity,
            ca,
            revocations,
            endpoint,
            transport,
            events,
            join: RwLock::default(),
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            next_id: AtomicU64::new(1),
            generation: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            sources: Sources::default(),
        });
        shared.runtime.spawn(shared.clone().accept());
        Ok(Self { shared })
    }

    /// Where the endpoint listens.
    pub fn local_address(&self) -> SocketAddr {
        // The socket is bound for as long as the endpoint lives; without an answer the configured address is right.
        self.shared.endpoint.local_addr().unwrap_or(self.shared.config.listen)
    }

    /// Says whom to keep linked with, ourselves ignored. Links to servers that are members no more are closed, and
    /// refused until they are members again; servers that were never members may link with us.
    pub fn set_members(&self, members: BTreeMap<ServerName, SocketAddr>) {
        self.shared.set_members(members);
    }

    /// Queues a frame, without waiting. Whether it arrives is known only from an answer; see the head of this file.
    pub fn send(&self, peer: &ServerName, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        if frame.len() > self.shared.config.frame_bytes_max {
            return Err(SendError::TooLong);
        }
        let link = self.shared.state().links.get(peer).cloned();
        link.ok_or(SendError::NotLinked)?.push(channel, frame)
    }

    /// Queues frames one after the other, waiting for room, until all are on their way or the link is gone.
    pub async fn send_in_turn(&self, peer: &ServerName, channel: Channel, frames: impl Iterator<Item = Bytes>) {
        for frame in frames {
            while let Err(error) = self.send(peer, channel, frame.clone()) {
                if error != SendError::Full {
                    return;
                }
                tokio::time::sleep(ROOM_LOOK).await;
            }
        }
    }

    /// Refuses each named server's certificates issued at or before a time (ms since the Unix epoch; `u64::MAX`: all of
    /// them) and closes the links that rest on one. Replaces the list given before.
    pub fn set_revoked(&self, revoked: BTreeMap<ServerName, u64>) {
        self.shared.revocations.set(revoked);
        self.shared.close_links(CloseCode::Revoked, "the certificate is revoked", |link| {
            self.shared.revocations.covers(&link.peer, link.certificate_issued_ms)
        });
    }

    /// Breaks the link with a peer that sent what it must not; it may dial again.
    pub fn disconnect(&self, peer: &ServerName, reason: &str) {
        self.shared.close_links(CloseCode::BadFrame, reason, |link| link.peer == *peer);
    }

    /// Changes to a new certificate and key and makes every link anew with them. Errors: it names another server, or
    /// TLS cannot use it.
    pub fn rotate(&self, credentials: &Credentials) -> Result<(), MeshError> {
        if credentials.info.name != self.shared.config.me {
            return Err(MeshError::Config("the new certificate names another server"));
        }
        self.shared.identity.rotate(credentials, &self.shared.ca)?;
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.shared.close_links(CloseCode::Rotated, "the certificate is rotated", |_| true);
        Ok(())
    }

    /// Takes joining servers, or turns them away (`None`, as at the start).
    pub fn set_join_handler(&self, handler: Option<JoinHandler>) {
        *self.shared.join.write().unwrap_or_else(PoisonError::into_inner) = handler;
    }

    /// The links that are up, by peer.
    pub fn links(&self) -> Vec<LinkInfo> {
        let links: Vec<_> = self.shared.state().links.values().cloned().collect();
        links.iter().filter(|link| !link.is_closing()).map(|link| link.info()).collect()
    }

    /// Closes every link and tells the peers so; takes at most a second.
    pub async fn close(self) {
        self.shared.shut_down();
        let _ = tokio::time::timeout(Duration::from_secs(1), self.shared.endpoint.wait_idle()).await;
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.shut_down();
    }
}

struct Shared {
    runtime: tokio::runtime::Handle,
    config: MeshConfig,
    identity: TlsIdentity,
    ca: AuthorityCertificate,
    revocations: Revocations,
    hello: Hello,
    endpoint: Endpoint,
    transport: Arc<TransportConfig>,
    events: mpsc::Sender<MeshEvent>,
    join: RwLock<Option<JoinHandler>>,
    state: Mutex<State>,
    /// Counts changes of `state`, to wake the diallers.
    changes: watch::Sender<u64>,
    next_id: AtomicU64,
    /// Counts rotations: a connection begun before one must not come up after it.
    generation: AtomicU64,
    pending: AtomicUsize,
    sources: Sources,
}

#[derive(Default)]
struct State {
    members: BTreeMap<ServerName, Member>,
    removed: BTreeSet<ServerName>,
    /// A link stays here until its `LinkDown` is in the event channel.
    links: BTreeMap<ServerName, Arc<Link>>,
    closing: bool,
}

struct Member {
    address: SocketAddr,
    /// The one dialler that serves this membership.
    dialler: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn set_members(self: &Arc<Self>, mut members: BTreeMap<ServerName, SocketAddr>) {
        members.remove(&self.config.me);
        let mut fresh = Vec::new();
        {
            let mut state = self.state();
            let gone: Vec<_> = state.members.keys().filter(|name| !members.contains_key(*name)).cloned().collect();
            state.removed.extend(gone);
            state.removed.retain(|name| !members.contains_key(name));
            let mut before = std::mem::take(&mut state.members);
            for (name, address) in members {
                let member = before.remove(&name).filter(|member| member.address == address).unwrap_or_else(|| {
                    let dialler = self.next_id.fetch_add(1, Ordering::Relaxed);
                    fresh.push((name.clone(), address, dialler));
                    Member { address, dialler }
                });
                state.members.insert(name, member);
            }
        }
        // Diallers of gone members and old addresses end when they see the change.
        self.changed();
        self.close_links(CloseCode::NotAMember, "not a member any more", |link| {
            self.state().removed.contains(&link.peer)
        });
        for (name, address, dialler) in fresh {
            self.runtime.spawn(self.clone().keep_linked(name, address, dialler));
        }
    }

    fn close_links(&self, code: CloseCode, reason: &str, which: impl Fn(&Link) -> bool) {
        let links: Vec<_> = self.state().links.values().cloned().collect();
        for link in links.iter().filter(|link| which(link)) {
            link.close(code, reason);
        }
    }

    fn shut_down(&self) {
        self.state().closing = true;
        self.changed();
        self.endpoint.close(CloseCode::Shutdown.number(), b"the server shuts down");
    }

    async fn accept(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let pending = self.pending.load(Ordering::Relaxed);
            let address = incoming.remote_address();
            if pending >= PENDING_BEFORE_RETRY && incoming.may_retry() {
                // Cannot fail for a connection that may be retried, and a lost one is dialled again.
                let _ = incoming.retry();
                continue;
            }
            // An address that is not proven may be anybody's, and is held against nobody. A member's own has room by itself.
            let is_proven = incoming.remote_address_validated();
            let of_member = is_proven && self.is_of_member(address.ip());
            if pending >= PENDING_MAX && !of_member {
                incoming.ignore();
                continue;
            }
            let source = if of_member { address.ip().to_canonical() } else { network_of(address.ip()) };
            let counted = is_proven.then(|| self.sources.enter(source, PENDING_OF_SOURCE_MAX));
            if matches!(counted, Some(None)) {
                incoming.refuse();
                continue;
            }
            let shared = self.clone();
            shared.pending.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let result = shared.serve(incoming).await;
                shared.pending.fetch_sub(1, Ordering::Relaxed);
                drop(counted);
                if let Err(refusal) = result {
                    shared.report(address, refusal);
                }
            });
        }
    }

    fn is_of_member(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.state().members.values().any(|member| member.address.ip().to_canonical() == address)
    }

    async fn serve(self: &Arc<Self>, incoming: quinn::Incoming) -> Result<(), Refusal> {
        let address = incoming.remote_address();
        let generation = self.generation.load(Ordering::Acquire);
        let connecting = incoming.accept().map_err(|error| Refusal::of_connection(&error))?;
        let connection = self.handshake(address, connecting).await?;
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        match protocol.as_deref() {
            Some(ALPN_MESH) => self.accept_link(connection, generation).await,
            Some(ALPN_JOIN) => {
                let handler = self.join.read().unwrap_or_else(PoisonError::into_inner).clone();
                match handler {
                    Some(handler) => handler(connection).await,
                    None => connection.close(CloseCode::Join.number(), b"this server takes no joining servers now"),
                }
                Ok(())
            }
            _ => Err(Refusal::new(CloseCode::Handshake, "the peer speaks another protocol")),
        }
    }

    async fn handshake(&self, address: SocketAddr, connecting: quinn::Connecting) -> Result<Connection, Refusal> {
        let connected = async { connecting.await.map_err(|error| Refusal::of_connection(&error)) };
        within(self.handshake_timeout(), address, connected).await
    }

    async fn accept_link(self: &Arc<Self>, connection: Connection, generation: u64) -> Result<(), Refusal> {
        let address = connection.remote_address();
        let refuse = |refusal| close_refused(&connection, refusal);
        let certificate = peer_certificate(&connection, &self.ca).map_err(refuse)?;
        let name = certificate.name.clone();
        let admit = |hello: &Hello| {
            let state = self.state();
            self.admission(&state, &name, certificate.issued_ms, generation)?;
            match state.links.get(&name) {
                Some(old) if !old.is_closing() && !self.wins(old, false, hello.instance) => Err(duplicate()),
                _ => Ok(()),
            }
        };
        let hellos = welcome(&connection, certificate.clone(), &self.config, &self.hello, admit);
        let established = within(self.handshake_timeout(), address, hellos)
            .await
            .map_err(|refusal| refuse(Refusal { peer: Some(name.clone()), ..refusal }))?;
        // A connection counts as pending until it is up or refused.
        self.start_link(connection, established, false, generation).await
    }

    /// Keeps a link with one member at one address, until it is no member or has another address.
    async fn keep_linked(self: Arc<Self>, peer: ServerName, address: SocketAddr, dialler: u64) {
        let mut changes = self.changes.subscribe();
        let mut failures = 0;
        loop {
            let seen = Instant::now();
            let mut linked = false;
            loop {
                changes.mark_unchanged();
                match self.wanted(&peer, dialler) {
                    None => return,
                    Some(true) => break,
                    Some(false) => linked = true,
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
            if linked && seen.elapsed() >= Duration::from_millis(STABLE_MS) {
                failures = 0;
            }
            let polite_ms = if failures == 0 && self.config.me > peer { self.config.dial_delay_ms } else { 0 };
            let wait = Duration::from_millis(polite_ms) + self.retry_delay(failures);
            let came_up =
                async { while self.wanted(&peer, dialler) == Some(true) && changes.changed().await.is_ok() {} };
            if !wait.is_zero() && tokio::time::timeout(wait, came_up).await.is_ok() {
                continue;
            }
            failures += 1;
            if let Err(refusal) = self.dial(&peer, address).await {
                self.report(address, Refusal { peer: Some(peer.clone()), ..refusal });
            }
        }
    }

    /// Whether this dialler shall dial now: `None` if its time is over.
    fn wanted(&self, peer: &ServerName, dialler: u64) -> Option<bool> {
        let state = self.state();
        let member = !state.closing && state.members.get(peer).is_some_and(|member| member.dialler == dialler);
        member.then(|| !state.links.contains_key(peer))
    }

    async fn dial(self: &Arc<Self>, peer: &ServerName, address: SocketAddr) -> Result<(), Refusal> {
        let failed = |error: String| Refusal::new(CloseCode::Unreachable, error);
        let generation = self.generation.load(Ordering::Acquire);
        let crypto = client_config(&self.identity, &self.ca, &self.revocations, peer)
            .map_err(|error| failed(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        let connecting = self
            .endpoint
            .connect_with(config, address, TLS_SERVER_NAME)
            .map_err(|error| failed(format!("cannot dial {address}: {error}")))?;
        let connection = self.handshake(address, connecting).await?;
        let refuse = |refusal| close_refused(&connection, refusal);
        let certificate = peer_certificate(&connection, &self.ca).map_err(refuse)?;
        let hellos = greet(&connection, certificate, &self.config, &self.hello);
        let established = within(self.handshake_timeout(), address, hellos)
            .await
            .map_err(|refusal| Refusal { proven: true, ..refuse(refusal) })?;
        self.start_link(connection, established, true, generation).await
    }

    /// Makes the link of an established connection; returns when it is up or refused.
    async fn start_link(
        self: &Arc<Self>,
        connection: Connection,
        established: Established,
        dialled_by_us: bool,
        generation: u64,
    ) -> Result<(), Refusal> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let link = Link::new(id, connection, dialled_by_us, &established, self.config.queue_bytes_max);
        let (decided, decision) = oneshot::channel();
        // In a task of its own: a dialler may end at any time, a link in the table must not be forgotten.
        tokio::spawn(self.clone().run_link(Arc::new(link), established, generation, decided));
        decision.await.unwrap_or_else(|_| Err(Refusal::new(CloseCode::Shutdown, "this server shuts down")))
    }

    async fn run_link(
        self: Arc<Self>,
        link: Arc<Link>,
        established: Established,
        generation: u64,
        decided: oneshot::Sender<Result<(), Refusal>>,
    ) {
        let entered = self.enter(&link, generation).await;
        let refused = entered.is_err();
        // The asker may be gone; nobody else needs the answer.
        let _ = decided.send(entered.map_err(|refusal| close_refused(&link.connection, refusal)));
        if refused {
            return;
        }
        let Established { certificate, hello, version, clock_offset_ms, live, bulk } = established;
        let up = MeshEvent::LinkUp {
            peer: link.peer.clone(),
            link: link.id,
            address: link.connection.remote_address(),
            version,
            hello_payload: hello.payload,
            certificate_issued_ms: certificate.issued_ms,
            clock_offset_ms,
        };
        if self.events.send(up).await.is_err() {
            link.close(CloseCode::Shutdown, "this server shuts down");
        }
        let reason = link.run(live, bulk, &self.events).await;
        debug!(peer = %link.peer, link = link.id, reason, "link down");
        // Without a receiver nobody waits for this.
        let _ = self.events.send(MeshEvent::LinkDown { peer: link.peer.clone(), link: link.id, reason }).await;
        self.state().links.remove(&link.peer);
        link.down.send_replace(true);
        self.changed();
    }

    /// Puts a link into the table, after the one that it replaces is down.
    async fn enter(&self, link: &Arc<Link>, generation: u64) -> Result<(), Refusal> {
        loop {
            let old = {
                let mut state = self.state();
                self.admission(&state, &link.peer, link.certificate_issued_ms, generation)?;
                match state.links.get(&link.peer) {
                    None => {
                        state.links.insert(link.peer.clone(), link.clone());
                        break;
                    }
                    Some(old) if old.is_closing() || self.wins(old, link.dialled_by_us, link.instance) => old.clone(),
                    Some(_) => return Err(duplicate()),
                }
            };
            old.close(CloseCode::Duplicate, "another connection takes its place");
            let mut down = old.down.subscribe();
            tokio::select! {
                // Fails only when the old link is gone, which is what is waited for.
                _ = down.wait_for(|down| *down) => {}
                error = link.connection.closed() => return Err(Refusal::of_connection(&error)),
            }
        }
        self.changed();
        Ok(())
    }

    fn admission(&self, state: &State, peer: &ServerName, issued_ms: u64, generation: u64) -> Result<(), Refusal> {
        if state.closing {
            return Err(Refusal::new(CloseCode::Shutdown, "the server shuts down"));
        }
        if generation != self.generation.load(Ordering::Acquire) {
            return Err(Refusal::new(CloseCode::Rotated, "the certificate was rotated meanwhile"));
        }
        if state.removed.contains(peer) {
            return Err(Refusal::new(CloseCode::NotAMember, format!("'{peer}' is not a member any more")));
        }
        if self.revocations.covers(peer, issued_ms) {
            return Err(Refusal::new(CloseCode::Revoked, format!("the certificate of '{peer}' is revoked")));
        }
        Ok(())
    }

    /// Whether a new connection takes the place of a live link. Both sides answer alike: the lower name's connection
    /// wins; of two from one side the newer, as nobody dials while its link is alive; and a restarted peer always.
    fn wins(&self, old: &Link, dialled_by_us: bool, instance: u64) -> bool {
        let we_are_lower = self.config.me < old.peer;
        old.instance != instance || old.dialled_by_us == dialled_by_us || dialled_by_us == we_are_lower
    }

    fn report(&self, address: SocketAddr, refusal: Refusal) {
        let Refusal { peer, reason, proven, quiet, .. } = refusal;
        if quiet {
            debug!(%address, peer = ?peer, reason, "no link");
            return;
        }
        warn!(%address, peer = ?peer, reason, "connection refused");
        // A flood of refusals must not stand in anyone's way, so they are dropped when there is no room.
        let _ = self.events.try_send(MeshEvent::Refused { peer, address, reason, proven });
    }

    fn retry_delay(&self, failures: u32) -> Duration {
        let (first_ms, longest_ms) = self.config.retry_ms;
        if failures < 2 {
            return Duration::ZERO;
        }
        let delay_ms = first_ms.saturating_mul(1 << (failures - 2).min(20)).min(longest_ms);
        let mut jitter = [0];
        // Without randomness all wait alike, which is no harm.
        let _ = fill_random(&mut jitter);
        Duration::from_millis(delay_ms * (192 + u64::from(jitter[0]) / 2) / 256)
    }

    fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.config.handshake_timeout_ms)
    }
}

fn duplicate() -> Refusal {
    Refusal::new(CloseCode::Duplicate, "there is a link already")
}

fn close_refused(connection: &Connection, refusal: Refusal) -> Refusal {
    connection.close(refusal.code.number(), refusal.reason.as_bytes());
    refusal
}
