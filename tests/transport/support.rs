//! Clusters, nodes and hand-made peers for these tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use p2pdb::core::id::{ClusterId, ServerName};
use p2pdb::edge::certificate::{
    AUTHORITY_VALIDITY_MS, Authority, Credentials, SERVER_VALIDITY_MS, generate_key, issue_certificate,
};
use p2pdb::edge::hello::Hello;
use p2pdb::edge::quic::{Channel, Mesh, MeshConfig, MeshEvent, SendError};
use p2pdb::edge::tls::{Revocations, TLS_SERVER_NAME, TlsIdentity, client_config};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use tokio::sync::mpsc;

pub const LIMIT: Duration = Duration::from_secs(20);

pub fn name(text: &str) -> ServerName {
    ServerName::new(text).unwrap()
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub struct Cluster(pub Authority);

impl Cluster {
    pub fn new() -> Self {
        Self(Authority::generate(now_ms(), AUTHORITY_VALIDITY_MS).unwrap())
    }

    pub fn id(&self) -> ClusterId {
        self.0.certificate().cluster()
    }

    pub fn credentials(&self, server: &str, issued_ms: u64) -> Credentials {
        let key = generate_key().unwrap();
        let public_key = key.verifying_key().to_bytes();
        let der = issue_certificate(&self.0, &name(server), &public_key, issued_ms, SERVER_VALIDITY_MS).unwrap();
        Credentials::new(&der, key, self.0.certificate()).unwrap()
    }

    pub fn identity(&self, server: &str) -> TlsIdentity {
        TlsIdentity::new(&self.credentials(server, now_ms()), self.0.certificate()).unwrap()
    }

    pub async fn start(&self, server: &str) -> Node {
        self.start_with(server, 1024, |_| {}).await
    }

    pub async fn start_with(&self, server: &str, room: usize, change: impl FnOnce(&mut MeshConfig)) -> Node {
        let mut config = MeshConfig::new(name(server), self.id(), anywhere());
        // A busy machine must not pass for a dead peer; the test of silence sets its own.
        config.idle_timeout_ms = 10_000;
        change(&mut config);
        self.start_as(config, self.identity(server), room).await
    }

    pub async fn start_as(&self, config: MeshConfig, identity: TlsIdentity, room: usize) -> Node {
        let (sender, events) = mpsc::channel(room);
        let me = config.me.clone();
        let mesh = Mesh::start(config, identity, self.0.certificate().clone(), sender).await.unwrap();
        Node { me, mesh, events }
    }

    /// A hand-made peer with a good certificate of this cluster.
    pub async fn raw(&self, server: &str, target: &Node) -> (Endpoint, Connection) {
        let revoked = Revocations::default();
        let config = client_config(&self.identity(server), self.0.certificate(), &revoked, &target.me).unwrap();
        dial(config, target).await
    }

    pub fn hello(&self, server: &str) -> Hello {
        let payload = Vec::new();
        Hello { cluster: self.id(), name: name(server), versions: (1, 1), instance: 1, wall_ms: now_ms(), payload }
    }
}

pub async fn dial(config: QuicClientConfig, target: &Node) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client(anywhere()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let connecting = endpoint.connect_with(config, target.address(), TLS_SERVER_NAME).unwrap();
    (endpoint.clone(), connecting.await.unwrap())
}

pub struct Node {
    pub me: ServerName,
    pub mesh: Mesh,
    pub events: mpsc::Receiver<MeshEvent>,
}

impl Node {
    pub fn address(&self) -> SocketAddr {
        self.mesh.local_address()
    }

    pub async fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(MeshEvent) -> Option<T>) -> T {
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

    pub async fn up(&mut self, wanted: &str) -> u64 {
        let wanted = name(wanted);
        self.wait("a link to come up", |event| match event {
            MeshEvent::LinkUp { peer, link, .. } if peer == wanted => Some(link),
            _ => None,
        })
        .await
    }

    pub async fn down(&mut self, wanted: &str) -> String {
        let wanted = name(wanted);
        self.wait("a link to go down", |event| match event {
            MeshEvent::LinkDown { peer, reason, .. } if peer == wanted => Some(reason),
            _ => None,
        })
        .await
    }

    pub async fn refused(&mut self) -> String {
        self.wait("a refusal", |event| match event {
            MeshEvent::Refused { reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }

    pub async fn frame(&mut self) -> (ServerName, Channel, Bytes) {
        self.wait("a frame", |event| match event {
            MeshEvent::Frame { peer, channel, bytes, .. } => Some((peer, channel, bytes)),
            _ => None,
        })
        .await
    }

    pub fn send(&self, peer: &str, channel: Channel, frame: impl Into<Bytes>) -> Result<(), SendError> {
        self.mesh.send(&name(peer), channel, frame.into())
    }
}

pub fn introduce(nodes: &[&Node]) {
    let members: BTreeMap<_, _> = nodes.iter().map(|node| (node.me.clone(), node.address())).collect();
    nodes.iter().for_each(|node| node.mesh.set_members(members.clone()));
}

pub async fn pair(cluster: &Cluster) -> (Node, Node) {
    let (mut a, mut b) = (cluster.start("a").await, cluster.start("b").await);
    introduce(&[&a, &b]);
    a.up("b").await;
    b.up("a").await;
    (a, b)
}

pub async fn assert_still_linked(a: Node, mut b: Node) {
    a.send("b", Channel::Live, "still here").unwrap();
    assert_eq!(b.frame().await.2, "still here");
}
