//! The mesh and the join protocol over real sockets on 127.0.0.1. Nothing here waits by sleeping for a time that
//! ought to be enough: every step waits for an event, with a generous limit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use p2pdb::core::id::{ClusterId, ServerName};
use p2pdb::edge::certificate::{
    AUTHORITY_VALIDITY_MS, Authority, CertificateDirectory, Credentials, SERVER_VALIDITY_MS, generate_key,
    issue_certificate,
};
use p2pdb::edge::frame::frame_header;
use p2pdb::edge::hello::{Hello, encode_ready};
use p2pdb::edge::join::{JoinGrant, JoinServer, join};
use p2pdb::edge::quic::{Channel, Mesh, MeshConfig, MeshEvent, SendError};
use p2pdb::edge::tls::{ALPN_MESH, Revocations, TLS_SERVER_NAME, TlsIdentity, client_config, join_client_config};
use p2pdb::edge::token::{TOKEN_LIFE_MS, Token, TokenStore};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(20);

fn name(text: &str) -> ServerName {
    ServerName::new(text).unwrap()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

struct Cluster(Authority);

impl Cluster {
    fn new() -> Self {
        Self(Authority::generate(now_ms(), AUTHORITY_VALIDITY_MS).unwrap())
    }

    fn id(&self) -> ClusterId {
        self.0.certificate().cluster()
    }

    fn credentials(&self, server: &str, issued_ms: u64) -> Credentials {
        let key = generate_key().unwrap();
        let public_key = key.verifying_key().to_bytes();
        let der = issue_certificate(&self.0, &name(server), &public_key, issued_ms, SERVER_VALIDITY_MS).unwrap();
        Credentials::new(&der, key, self.0.certificate()).unwrap()
    }

    fn identity(&self, server: &str) -> TlsIdentity {
        TlsIdentity::new(&self.credentials(server, now_ms()), self.0.certificate()).unwrap()
    }

    async fn start(&self, server: &str) -> Node {
        self.start_with(server, 1024, |_| {}).await
    }

    async fn start_with(&self, server: &str, room: usize, change: impl FnOnce(&mut MeshConfig)) -> Node {
        let mut config = MeshConfig::new(name(server), self.id(), anywhere());
        // A busy machine must not pass for a dead peer; the test of silence sets its own.
        config.idle_timeout_ms = 10_000;
        change(&mut config);
        self.start_as(config, self.identity(server), room).await
    }

    async fn start_as(&self, config: MeshConfig, identity: TlsIdentity, room: usize) -> Node {
        let (sender, events) = mpsc::channel(room);
        let me = config.me.clone();
        let mesh = Mesh::start(config, identity, self.0.certificate().clone(), sender).await.unwrap();
        Node { me, mesh, events }
    }

    /// A hand-made peer with a good certificate of this cluster.
    async fn raw(&self, server: &str, target: &Node) -> (Endpoint, Connection) {
        let revoked = Revocations::default();
        let config = client_config(&self.identity(server), self.0.certificate(), &revoked, &target.me).unwrap();
        dial(config, target).await
    }

    fn hello(&self, server: &str) -> Hello {
        let payload = Vec::new();
        Hello { cluster: self.id(), name: name(server), versions: (1, 1), instance: 1, wall_ms: now_ms(), payload }
    }
}

async fn dial(config: QuicClientConfig, target: &Node) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client(anywhere()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let connecting = endpoint.connect_with(config, target.address(), TLS_SERVER_NAME).unwrap();
    (endpoint.clone(), connecting.await.unwrap())
}

struct Node {
    me: ServerName,
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
}

impl Node {
    fn address(&self) -> SocketAddr {
        self.mesh.local_address()
    }

    async fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(MeshEvent) -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = wanted(self.events.recv().await.expect("the mesh runs")) {
                    return found;
                }
            }
        };
        let waited = tokio::time::timeout(LIMIT, waiting).await;
        waited.unwrap_or_else(|_| panic!("{} waited in vain for {what}", self.me))
    }

    async fn up(&mut self, wanted: &str) -> u64 {
        let wanted = name(wanted);
        self.wait("a link to come up", |event| match event {
            MeshEvent::LinkUp { peer, link, .. } if peer == wanted => Some(link),
            _ => None,
        })
        .await
    }

    async fn down(&mut self, wanted: &str) -> String {
        let wanted = name(wanted);
        self.wait("a link to go down", |event| match event {
            MeshEvent::LinkDown { peer, reason, .. } if peer == wanted => Some(reason),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self) -> String {
        self.wait("a refusal", |event| match event {
            MeshEvent::Refused { reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }

    async fn frame(&mut self) -> (ServerName, Channel, Bytes) {
        self.wait("a frame", |event| match event {
            MeshEvent::Frame { peer, channel, bytes, .. } => Some((peer, channel, bytes)),
            _ => None,
        })
        .await
    }

    fn send(&self, peer: &str, channel: Channel, frame: impl Into<Bytes>) -> Result<(), SendError> {
        self.mesh.send(&name(peer), channel, frame.into())
    }
}

fn introduce(nodes: &[&Node]) {
    let members: BTreeMap<_, _> = nodes.iter().map(|node| (node.me.clone(), node.address())).collect();
    nodes.iter().for_each(|node| node.mesh.set_members(members.clone()));
}

async fn pair(cluster: &Cluster) -> (Node, Node) {
    let (mut a, mut b) = (cluster.start("a").await, cluster.start("b").await);
    introduce(&[&a, &b]);
    a.up("b").await;
    b.up("a").await;
    (a, b)
}

async fn close_reason(connection: &Connection) -> String {
    match tokio::time::timeout(LIMIT, connection.closed()).await.expect("the peer closes") {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => other.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_link_up_and_frames_keep_their_order() {
    let cluster = Cluster::new();
    let mut nodes = [cluster.start("a").await, cluster.start("b").await, cluster.start("c").await];
    introduce(&nodes.iter().collect::<Vec<_>>());
    let names = ["a", "b", "c"];
    for (index, node) in nodes.iter_mut().enumerate() {
        let mut missing: BTreeSet<_> = (0..3).filter(|other| *other != index).map(|other| name(names[other])).collect();
        while !missing.is_empty() {
            let (peer, version, offset) = node
                .wait("a link", |event| match event {
                    MeshEvent::LinkUp { peer, version, clock_offset_ms, .. } => Some((peer, version, clock_offset_ms)),
                    _ => None,
                })
                .await;
            assert!(missing.remove(&peer), "{peer} came up twice");
            assert_eq!(version, 1);
            assert!(offset.abs() < 1000, "{offset}");
        }
        assert_eq!(node.mesh.links().len(), 2);
    }
    for number in 0..2000u32 {
        nodes[0].send("b", Channel::Live, number.to_le_bytes().to_vec()).unwrap();
        let size = 4 + (number as usize * 37) % 3000 + if number % 500 == 0 { 300_000 } else { 0 };
        let mut frame = vec![7; size];
        frame[..4].copy_from_slice(&number.to_le_bytes());
        nodes[0].send("b", Channel::Bulk, frame).unwrap();
    }
    let mut next = BTreeMap::from([(Channel::Live, 0), (Channel::Bulk, 0)]);
    while next.values().any(|next| *next < 2000) {
        let (peer, channel, bytes) = nodes[1].frame().await;
        assert_eq!(peer, name("a"));
        let expected = next.get_mut(&channel).unwrap();
        assert_eq!(bytes[..4], u32::to_le_bytes(*expected), "{channel:?}");
        *expected += 1;
    }
    let [a, mut b, _c] = nodes;
    a.mesh.close().await;
    assert!(b.down("a").await.contains("shuts down"));
}

#[test]
fn a_peer_that_falls_silent_is_noticed() {
    let ours = tokio::runtime::Runtime::new().unwrap();
    let theirs = tokio::runtime::Runtime::new().unwrap();
    let cluster = Cluster::new();
    let normal = |config: &mut MeshConfig| config.idle_timeout_ms = 1000;
    let mut a = ours.block_on(cluster.start_with("a", 1024, normal));
    let mut b = theirs.block_on(cluster.start_with("b", 1024, normal));
    {
        let _inside = ours.enter();
        a.mesh.set_members(BTreeMap::from([(name("b"), b.address())]));
    }
    theirs.block_on(b.up("a"));
    ours.block_on(a.up("b"));
    // Without its runtime the peer's socket stays open and says nothing more.
    theirs.shutdown_background();
    let begun = Instant::now();
    assert_eq!(ours.block_on(a.down("b")), "no sign of life");
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(600) && waited < Duration::from_millis(4000), "{waited:?}");
    assert_eq!(a.send("b", Channel::Live, "x"), Err(SendError::NotLinked));
    std::mem::forget(b);
}

#[test]
fn a_restarted_peer_is_noticed_before_the_idle_timeout() {
    let ours = tokio::runtime::Runtime::new().unwrap();
    let theirs = tokio::runtime::Runtime::new().unwrap();
    let cluster = Cluster::new();
    let slow = |config: &mut MeshConfig| config.idle_timeout_ms = 60_000;
    let mut a = ours.block_on(cluster.start_with("a", 1024, slow));
    let identity = cluster.identity("b");
    let mut config = MeshConfig::new(name("b"), cluster.id(), anywhere());
    slow(&mut config);
    let mut b = theirs.block_on(cluster.start_as(config.clone(), identity.clone(), 1024));
    config.listen = b.address();
    {
        let _inside = ours.enter();
        a.mesh.set_members(BTreeMap::from([(name("b"), b.address())]));
    }
    theirs.block_on(b.up("a"));
    ours.block_on(a.up("b"));
    // The whole runtime goes, and with it the socket: nothing is said to the peer.
    theirs.shutdown_timeout(LIMIT);
    drop(b);
    let mut b = ours.block_on(cluster.start_as(config, identity, 1024));
    assert_eq!(ours.block_on(a.down("b")), "the peer restarted");
    ours.block_on(a.up("b"));
    ours.block_on(b.up("a"));
}

#[derive(Debug)]
struct BelieveAll;

impl rustls::client::danger::ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!()
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

fn careless_client(identity: Option<&Credentials>) -> QuicClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelieveAll));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_auth_cert(vec![identity.certificate.clone()], identity.key_der().into()).unwrap()
        }
    };
    config.alpn_protocols = vec![ALPN_MESH.to_vec()];
    QuicClientConfig::try_from(config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_do_not_belong_here_cost_only_their_connection() {
    let cluster = Cluster::new();
    let (mut a, b) = pair(&cluster).await;

    let (_endpoint, anonymous) = dial(careless_client(None), &a).await;
    assert!(close_reason(&anonymous).await.contains("the mesh needs a certificate"));
    assert!(a.refused().await.contains("the mesh needs a certificate"));

    let foreign = Cluster::new().credentials("b", now_ms());
    let (_endpoint, stranger) = dial(careless_client(Some(&foreign)), &a).await;
    close_reason(&stranger).await;
    let reason = a.refused().await;
    assert!(reason.contains("not signed by this cluster's CA"), "{reason}");

    let expired = cluster.credentials("b", now_ms() - SERVER_VALIDITY_MS - 60_000);
    let (_endpoint, late) = dial(careless_client(Some(&expired)), &a).await;
    close_reason(&late).await;
    let reason = a.refused().await;
    assert!(reason.contains("expired"), "{reason}");

    // The dialler's side: the server at that address is another one.
    let b_elsewhere = BTreeMap::from([(name("b"), b.address()), (name("z"), b.address())]);
    a.mesh.set_members(b_elsewhere);
    let reason = a.refused().await;
    assert!(reason.contains("the peer is 'b', not 'z'"), "{reason}");

    assert_still_linked(a, b).await;
}

async fn assert_still_linked(a: Node, mut b: Node) {
    a.send("b", Channel::Live, "still here").unwrap();
    assert_eq!(b.frame().await.2, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_hellos_cost_only_their_connection() {
    let cluster = Cluster::new();
    let (mut a, b) = pair(&cluster).await;
    let good = cluster.hello("x");
    let framed = |hello: Hello| [&frame_header(&hello.encode())[..], &hello.encode()].concat();
    let garbage = b"this is no hello at all".to_vec();
    let cases = [
        (framed(Hello { name: name("y"), ..good.clone() }), "'y' shows the certificate of 'x'"),
        (framed(Hello { cluster: ClusterId([7; 16]), ..good.clone() }), "meets cluster"),
        (framed(Hello { versions: (2, 3), ..good.clone() }), "protocol versions 2 to 3 meet 1 to 1"),
        ([&frame_header(&garbage)[..], &garbage].concat(), "this is no hello of p2pdb"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "at most"),
        ([&9u32.to_le_bytes()[..], &[0; 4], b"123456789"].concat(), "a frame with a wrong checksum"),
    ];
    for (bytes, expected) in cases {
        let (_endpoint, connection) = cluster.raw("x", &a).await;
        let (mut out, _input) = connection.open_bi().await.unwrap();
        out.write_all(&bytes).await.unwrap();
        let told = close_reason(&connection).await;
        assert!(told.contains(expected), "{told}");
        let reported = a.refused().await;
        assert!(reported.contains(expected), "{reported}");
    }
    // One who shows our own name, with a certificate for it.
    let (_endpoint, connection) = cluster.raw("a", &a).await;
    let (mut out, _input) = connection.open_bi().await.unwrap();
    out.write_all(&framed(cluster.hello("a"))).await.unwrap();
    assert!(a.refused().await.contains("linked to itself"));
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_close_the_link_that_carried_them() {
    let cluster = Cluster::new();
    let (mut a, b) = pair(&cluster).await;
    let oversize = (2u32 << 20).to_le_bytes();
    let damaged = [&4u32.to_le_bytes()[..], &[1; 4], b"abcd"].concat();
    for (bytes, expected) in [
        ([&oversize[..], &[0; 4]].concat(), "a frame of 2097152 bytes; at most 1048576 are allowed"),
        (damaged, "a frame with a wrong checksum"),
    ] {
        for live in [true, false] {
            let (_endpoint, connection) = cluster.raw("x", &a).await;
            let (mut live_out, mut live_in) = connection.open_bi().await.unwrap();
            let hello = cluster.hello("x").encode();
            live_out.write_all(&[&frame_header(&hello)[..], &hello].concat()).await.unwrap();
            let mut header = [0; 8];
            live_in.read_exact(&mut header).await.unwrap();
            let ready = encode_ready(now_ms());
            live_out.write_all(&[&frame_header(&ready)[..], &ready].concat()).await.unwrap();
            let (mut bulk_out, _bulk_in) = connection.open_bi().await.unwrap();
            bulk_out.write_all(&frame_header(b"")).await.unwrap();
            a.up("x").await;
            let good = [&frame_header(b"good")[..], b"good"].concat();
            let out = if live { &mut live_out } else { &mut bulk_out };
            out.write_all(&good).await.unwrap();
            out.write_all(&bytes).await.unwrap();
            assert_eq!(a.frame().await.2, "good");
            let told = close_reason(&connection).await;
            assert_eq!(told, expected);
            assert_eq!(a.down("x").await, expected);
        }
    }
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_back_its_own_link_only() {
    let cluster = Cluster::new();
    let small = |config: &mut MeshConfig| {
        config.frame_bytes_max = 64 * 1024;
        config.queue_bytes_max = 1024 * 1024;
        config.window_bytes = 256 * 1024;
    };
    let mut a = cluster.start_with("a", 1024, small).await;
    let mut b = cluster.start_with("b", 8, small).await;
    let mut c = cluster.start_with("c", 1024, small).await;
    introduce(&[&a, &b, &c]);
    let mut missing = BTreeSet::from([name("b"), name("c")]);
    while !missing.is_empty() {
        let peer = a
            .wait("links", |event| match event {
                MeshEvent::LinkUp { peer, .. } => Some(peer),
                _ => None,
            })
            .await;
        missing.remove(&peer);
    }
    // b reads nothing from here on. A frame to c and its arrival mark the time between tries.
    let frame_bytes = 32 * 1024;
    let mut sent = 0u32;
    let mut full_in_a_row = 0;
    while full_in_a_row < 200 {
        let mut frame = vec![0; frame_bytes];
        frame[..4].copy_from_slice(&sent.to_le_bytes());
        match a.send("b", Channel::Bulk, frame) {
            Ok(()) => (sent, full_in_a_row) = (sent + 1, 0),
            Err(SendError::Full) => full_in_a_row += 1,
            Err(error) => panic!("{error}"),
        }
        a.send("c", Channel::Live, "tick").unwrap();
        assert_eq!(c.frame().await.2, "tick");
    }
    let bytes = sent as usize * frame_bytes;
    assert!(bytes < 1024 * 1024 + 256 * 1024 + 12 * frame_bytes, "{bytes} bytes were taken for a peer that reads none");
    for number in 0..sent {
        let (_, channel, frame) = b.frame().await;
        assert_eq!((channel, &frame[..4]), (Channel::Bulk, &number.to_le_bytes()[..]));
    }
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_closes_the_link_and_refuses_the_next() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    a.mesh.set_revoked(BTreeMap::from([(name("b"), now_ms())]));
    assert_eq!(a.down("b").await, "the certificate is revoked");
    assert!(b.down("a").await.contains("the certificate is revoked"));
    // Both dial again; each hears why it is in vain.
    let reason = a.refused().await;
    assert!(reason.contains("revoked"), "{reason}");
    let reason = b.refused().await;
    assert_eq!(reason, "the peer refused us: our certificate is revoked");
    assert!(a.mesh.links().is_empty());
    // A certificate issued later is good again.
    let fresh = cluster.credentials("b", now_ms() + 1);
    b.mesh.rotate(&fresh).unwrap();
    a.up("b").await;
    b.up("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_shows_the_new_certificate_to_all() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    for (step, rotated) in [("a", true), ("b", false), ("a", true)].into_iter().enumerate() {
        let (server, is_a) = rotated;
        let issued_ms = now_ms() + 1000 * (step as u64 + 1);
        let fresh = cluster.credentials(server, issued_ms);
        let begun = Instant::now();
        let (turning, watching) = if is_a { (&mut a, &mut b) } else { (&mut b, &mut a) };
        turning.mesh.rotate(&fresh).unwrap();
        assert!(watching.down(server).await.contains("rotated"));
        let seen = watching
            .wait("the new certificate", |event| match event {
                MeshEvent::LinkUp { certificate_issued_ms, .. } => Some(certificate_issued_ms),
                _ => None,
            })
            .await;
        assert_eq!(seen, issued_ms);
        turning.up(watching.me.as_str()).await;
        println!("rotation of {server}: linked again after {:?}", begun.elapsed());
    }
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_dialling_at_once_leaves_one_link() {
    let cluster = Cluster::new();
    for _ in 0..20 {
        let eager = |config: &mut MeshConfig| config.dial_delay_ms = 0;
        let mut a = cluster.start_with("a", 1024, eager).await;
        let mut b = cluster.start_with("b", 1024, eager).await;
        introduce(&[&a, &b]);
        // A link that loses may have carried frames before. In the end both sides name the same one.
        let agreed = |a: &Node, b: &Node| match (&a.mesh.links()[..], &b.mesh.links()[..]) {
            ([ours], [theirs]) => ours.dialled_by_us != theirs.dialled_by_us,
            _ => false,
        };
        let begun = Instant::now();
        let mut links = (None, None);
        let mut answered = None;
        while answered.is_none() || answered != links.0 || links.1.is_none() || !agreed(&a, &b) {
            assert!(begun.elapsed() < LIMIT, "{links:?} {answered:?}");
            tokio::select! {
                event = a.events.recv() => match event.unwrap() {
                    MeshEvent::LinkUp { link, .. } => {
                        assert_eq!(links.0.replace(link), None, "two links at once");
                        a.send("b", Channel::Live, "ping").unwrap_or_default();
                    }
                    MeshEvent::LinkDown { link, .. } => assert_eq!(links.0.take(), Some(link)),
                    MeshEvent::Frame { link, .. } => answered = Some(link),
                    MeshEvent::Refused { reason, .. } => panic!("{reason}"),
                },
                event = b.events.recv() => match event.unwrap() {
                    MeshEvent::LinkUp { link, .. } => assert_eq!(links.1.replace(link), None, "two links at once"),
                    MeshEvent::LinkDown { link, .. } => assert_eq!(links.1.take(), Some(link)),
                    MeshEvent::Frame { .. } => b.send("a", Channel::Live, "pong").unwrap_or_default(),
                    MeshEvent::Refused { reason, .. } => panic!("{reason}"),
                },
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_cut_off_until_it_is_a_member_again() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    a.mesh.set_members(BTreeMap::new());
    assert_eq!(a.down("b").await, "not a member any more");
    b.down("a").await;
    assert!(a.refused().await.contains("not a member any more"));
    a.mesh.set_members(BTreeMap::from([(name("b"), b.address())]));
    a.up("b").await;
    b.up("a").await;
}

struct JoinSide {
    node: Node,
    tokens: TokenStore,
    asked: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

/// A member that takes joins; it admits everyone but "taken".
async fn join_side(cluster: &Cluster, holds_key: bool) -> JoinSide {
    let folder = tempfile::tempdir().unwrap();
    let directory = CertificateDirectory::new(folder.path());
    directory.store_authority(cluster.0.certificate(), Some(&cluster.0)).unwrap();
    let node = cluster.start("a").await;
    let tokens = TokenStore::new(folder.path().join("tokens"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let members = vec![(name("a"), node.address())];
    let (seen, issuers) = (asked.clone(), members.clone());
    let server = JoinServer {
        authority: if holds_key { directory.load_authority().unwrap() } else { None },
        tokens: tokens.clone(),
        validity_ms: SERVER_VALIDITY_MS,
        admit: Box::new(move |request| {
            let members = members.clone();
            seen.lock().unwrap().push(format!("{} at {}", request.name, request.listen));
            Box::pin(async move {
                match request.name.as_str() {
                    "taken" => Err("the name 'taken' is taken".into()),
                    _ => Ok(JoinGrant { members }),
                }
            })
        }),
        issuers: Box::new(move || issuers.clone()),
    };
    node.mesh.set_join_handler(Some(server.into_handler()));
    JoinSide { node, tokens, asked, _folder: folder }
}

async fn join_error(side: &JoinSide, token: &Token, server: &str) -> String {
    let joined = join(side.node.address(), token, &name(server), anywhere()).await;
    joined.err().expect("the join is refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_joins_and_is_linked() {
    let cluster = Cluster::new();
    let mut side = join_side(&cluster, true).await;
    let token = side.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    let token: Token = token.to_string().parse().unwrap();
    let joined = join(side.node.address(), &token, &name("b"), anywhere()).await.unwrap();
    assert_eq!(joined.cluster, cluster.id());
    assert_eq!(joined.credentials.info.name, name("b"));
    assert_eq!(*side.asked.lock().unwrap(), [format!("b at {}", anywhere())]);

    let folder = tempfile::tempdir().unwrap();
    let directory = CertificateDirectory::new(folder.path().join("certs"));
    directory.store_authority(&joined.ca, None).unwrap();
    directory.store_credentials(&joined.credentials).unwrap();
    let ca = directory.load_authority_certificate().unwrap();
    assert!(directory.load_authority().unwrap().is_none());
    let identity = TlsIdentity::new(&directory.load_credentials(&ca).unwrap(), &ca).unwrap();
    let mut b = cluster.start_as(MeshConfig::new(name("b"), joined.cluster, anywhere()), identity, 1024).await;
    b.mesh.set_members(joined.members.into_iter().collect());
    b.up("a").await;
    side.node.up("b").await;

    let again = join_error(&side, &token, "c").await;
    assert!(again.contains("the join token is not known here: it was used already"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_are_refused_with_the_reason() {
    let cluster = Cluster::new();
    let side = join_side(&cluster, true).await;
    let token = side.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let unknown = TokenStore::new(elsewhere.path()).create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    assert!(join_error(&side, &unknown, "b").await.contains("is not known here"));
    let expired = side.tokens.create(cluster.id(), 1, now_ms() - 2).unwrap();
    assert!(join_error(&side, &expired, "b").await.contains("has expired"));
    let foreign = side.tokens.create(ClusterId([7; 16]), TOKEN_LIFE_MS, now_ms()).unwrap();
    let told = join_error(&side, &foreign, "b").await;
    assert!(told.contains("the server belongs to cluster"), "{told}");
    assert!(side.asked.lock().unwrap().is_empty());

    // A refusal by the daemon leaves the token good for a better name.
    assert!(join_error(&side, &token, "taken").await.ends_with("refused: the name 'taken' is taken"));
    join(side.node.address(), &token, &name("free"), anywhere()).await.unwrap();

    let keyless = join_side(&cluster, false).await;
    let token = keyless.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    let told = join_error(&keyless, &token, "b").await;
    let address = keyless.node.address();
    assert!(told.ends_with(&format!("does not hold the cluster CA key; join through one of: a ({address})")), "{told}");

    keyless.node.mesh.set_join_handler(None);
    assert!(join_error(&keyless, &token, "b").await.contains("takes no joining servers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_stolen_join_requests_are_refused() {
    let cluster = Cluster::new();
    let side = join_side(&cluster, true).await;
    let address = "10.0.0.1:4747";
    let key = generate_key().unwrap().verifying_key().to_bytes();
    let mut stolen = [b"P2PDBJRQ\x01\x00", &[0; 21][..], b"\x01b", &[address.len() as u8]].concat();
    stolen.extend([address.as_bytes(), &key, &[0; 64]].concat());
    for (request, expected) in [
        (stolen, "not signed by the key it shows"),
        (b"P2PDBJRQ junk".to_vec(), "the request is malformed"),
        (vec![0; 2000], "a frame of 2000 bytes; at most 1024"),
    ] {
        let (_endpoint, connection) = dial(join_client_config(cluster.id()).unwrap(), &side.node).await;
        let (mut out, mut input) = connection.open_bi().await.unwrap();
        out.write_all(&[&frame_header(&request)[..], &request].concat()).await.unwrap();
        let mut answer = vec![0; 8];
        let told = match input.read_exact(&mut answer).await {
            Ok(()) => {
                answer.resize(u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize, 0);
                input.read_exact(&mut answer).await.unwrap();
                String::from_utf8_lossy(&answer).into_owned()
            }
            Err(_) => close_reason(&connection).await,
        };
        assert!(told.contains(expected), "{told}");
    }
    assert!(side.asked.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_joins_one_of_many() {
    let cluster = Cluster::new();
    let side = join_side(&cluster, true).await;
    let token = side.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    let mut tries = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (peer, token) = (side.node.address(), token.clone());
        tries.spawn(async move { join(peer, &token, &name(&format!("s{number}")), anywhere()).await.is_ok() });
    }
    let joined = tries.join_all().await.into_iter().filter(|joined| *joined).count();
    assert_eq!((joined, side.asked.lock().unwrap().len()), (1, 1));
}

/// Figures, not a check: `cargo test --test transport -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_loopback() {
    // On a worker of the runtime, as in the daemon; the thread of a test is not one.
    tokio::spawn(measure()).await.unwrap();
}

async fn measure() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    let frame = Bytes::from(vec![7; 200]);
    let mut times: Vec<_> = Vec::new();
    for _ in 0..20_000 {
        let begun = Instant::now();
        a.send("b", Channel::Live, frame.clone()).unwrap();
        b.frame().await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("one way, 200 B: median {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    times.clear();
    let echo = tokio::spawn(async move {
        loop {
            let (_, _, bytes) = b.frame().await;
            if b.send("a", Channel::Live, bytes).is_err() {
                return b;
            }
        }
    });
    for _ in 0..20_000 {
        let begun = Instant::now();
        a.send("b", Channel::Live, frame.clone()).unwrap();
        a.frame().await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("there and back, 200 B: median {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    echo.abort();
    let _ = echo.await;

    for (size, count) in [(200, 500_000), (64 * 1024, 20_000)] {
        let (a, mut b) = pair(&cluster).await;
        let frame = Bytes::from(vec![7; size]);
        let begun = Instant::now();
        let sender = tokio::spawn(async move {
            for _ in 0..count {
                while a.send("b", Channel::Live, frame.clone()) == Err(SendError::Full) {
                    tokio::task::yield_now().await;
                }
            }
            a
        });
        for _ in 0..count {
            b.frame().await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let megabytes = (size * count) as f64 / 1e6;
        println!("{size} B frames: {:.0} per second, {:.0} MB/s", count as f64 / seconds, megabytes / seconds);
        drop(sender.await);
    }
}
