//! A peer made by hand: it has a member's certificate, or none, and says whatever a test wants.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use p2pdb::core::clock::Timestamp;
use p2pdb::core::diff::{Change, Diff};
use p2pdb::core::entry::{Entry, Sealed};
use p2pdb::core::id::{ClusterId, Digest, EntryId, FileName, Lane, ServerName, Stream};
use p2pdb::core::io::Message;
use p2pdb::core::priority::Class;
use p2pdb::core::record::Record;
use p2pdb::edge::certificate::{
    AUTHORITY_VALIDITY_MS, Authority, AuthorityCertificate, CertificateDirectory, Credentials, SERVER_VALIDITY_MS,
    generate_key, issue_certificate,
};
use p2pdb::edge::clock::wall_ms;
use p2pdb::edge::frame::{FrameDecoder, frame_header};
use p2pdb::edge::hello::{HELLO_BYTES_MAX, Hello, encode_ready};
use p2pdb::edge::tls::TLS_SERVER_NAME;
use p2pdb::format::{decode_message, encode_message};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig};
use tokio::time::timeout;

use super::Server;
use super::careless::{careless_client, close_reason, slandering_client};

const LIMIT: Duration = Duration::from_secs(20);

/// Who a hand-made peer says it is.
pub struct Identity {
    pub name: ServerName,
    pub cluster: ClusterId,
    pub credentials: Credentials,
}

impl Identity {
    /// A member whose daemon does not run: its key is used by the test.
    pub fn of(server: &Server) -> Self {
        let directory = CertificateDirectory::new(server.dir.join("certs"));
        let ca = directory.load_authority_certificate().unwrap();
        let credentials = directory.load_credentials(&ca).unwrap();
        Self { name: ServerName::new(&server.name).unwrap(), cluster: ca.cluster(), credentials }
    }

    /// One with the same name whose certificate is from a CA that nobody here knows, yet speaks of our cluster.
    pub fn of_foreign_authority(&self) -> Self {
        let authority = Authority::generate(wall_ms(), AUTHORITY_VALIDITY_MS).unwrap();
        let key = generate_key().unwrap();
        let public_key = key.verifying_key().to_bytes();
        let der = issue_certificate(&authority, &self.name, &public_key, wall_ms(), SERVER_VALIDITY_MS).unwrap();
        let ca: &AuthorityCertificate = authority.certificate();
        Self { name: self.name.clone(), cluster: self.cluster, credentials: Credentials::new(&der, key, ca).unwrap() }
    }

    pub fn hello(&self) -> Hello {
        let (cluster, name) = (self.cluster, self.name.clone());
        Hello { cluster, name, versions: (1, 1), instance: 1, wall_ms: wall_ms(), payload: Vec::new() }
    }

    pub fn stream(&self, run: u32) -> Stream {
        Stream { origin: self.name.clone(), run, lane: Lane::Audit }
    }

    /// The first entry of a stream, signed by this identity, with its certificate.
    pub fn first_entry(&self, stream: Stream, time: Timestamp, record: &str) -> Sealed {
        let certificate = Some(Arc::from(self.credentials.certificate.as_ref()));
        self.entry(stream, 1, time, Digest::ZERO, certificate, record)
    }

    pub fn entry(
        &self,
        stream: Stream,
        seq: u64,
        time: Timestamp,
        previous: Digest,
        certificate: Option<Arc<[u8]>>,
        record: &str,
    ) -> Sealed {
        let record = Record::parse(record).unwrap();
        let diff = Diff {
            file: FileName::new("Notes").unwrap(),
            key: record.field(0).to_owned(),
            change: Change::Add(record),
            bases: Vec::new(),
        };
        let entry = Entry {
            id: EntryId { stream, seq },
            time,
            class: Class::Transmission,
            author: "somebody".into(),
            reason: String::new(),
            previous,
            certificate,
            diffs: vec![diff],
        };
        let mut sealed = Sealed::new(entry, None);
        sealed.sign(self.cluster, &self.credentials.key);
        sealed
    }
}

/// Connects, with a certificate or without; the handshake itself may be what is refused.
pub async fn dial(identity: Option<&Identity>, target: SocketAddr) -> Result<(Endpoint, Connection), ConnectionError> {
    dial_with(identity, target, TransportConfig::default()).await
}

/// As a stranger who says that the server's certificate is revoked.
pub async fn slander(target: SocketAddr) {
    let refused = dial_as(slandering_client(), target, TransportConfig::default()).await;
    assert!(refused.is_err(), "the client itself ends it");
}

async fn dial_with(
    identity: Option<&Identity>,
    target: SocketAddr,
    transport: TransportConfig,
) -> Result<(Endpoint, Connection), ConnectionError> {
    dial_as(careless_client(identity.map(|identity| &identity.credentials)), target, transport).await
}

async fn dial_as(
    tls: QuicClientConfig,
    target: SocketAddr,
    mut transport: TransportConfig,
) -> Result<(Endpoint, Connection), ConnectionError> {
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    transport.keep_alive_interval(Some(Duration::from_millis(200)));
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connection = timeout(LIMIT, endpoint.connect_with(config, target, TLS_SERVER_NAME).unwrap())
        .await
        .expect("the handshake ends")?;
    Ok((endpoint, connection))
}

/// A link as a member has it.
pub struct Peer {
    _endpoint: Endpoint,
    pub connection: Connection,
    pub live: SendStream,
    pub bulk: SendStream,
    input: RecvStream,
    _bulk_input: RecvStream,
    decoder: FrameDecoder,
}

impl Peer {
    pub async fn link(identity: &Identity, target: &Server) -> Self {
        Self::link_with(identity, target, TransportConfig::default()).await
    }

    /// One that takes no more than a few kilobytes until somebody reads them.
    pub async fn link_narrow(identity: &Identity, target: &Server) -> Self {
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(4096u32.into());
        transport.receive_window(16384u32.into());
        Self::link_with(identity, target, transport).await
    }

    async fn link_with(identity: &Identity, target: &Server, transport: TransportConfig) -> Self {
        let (endpoint, connection) = dial_with(Some(identity), target.address, transport).await.unwrap();
        let (mut live, mut input) = connection.open_bi().await.unwrap();
        live.write_all(&framed(&identity.hello().encode())).await.unwrap();
        let mut decoder = FrameDecoder::new(HELLO_BYTES_MAX);
        let hello = next_frame(&mut input, &mut decoder).await.expect("the hello is answered");
        Hello::decode(&hello).expect("it is a hello");
        live.write_all(&framed(&encode_ready(wall_ms()))).await.unwrap();
        let (mut bulk, bulk_input) = connection.open_bi().await.unwrap();
        bulk.write_all(&framed(b"")).await.unwrap();
        Self { _endpoint: endpoint, connection, live, bulk, input, _bulk_input: bulk_input, decoder }
    }

    pub async fn send(&mut self, message: &Message) {
        // The other side may have closed meanwhile, which is what some tests want.
        let _ = self.live.write_all(&framed(&encode_message(message))).await;
    }

    /// The next message on the live stream; `None` when the connection is gone.
    pub async fn receive(&mut self) -> Option<Message> {
        let frame = next_frame(&mut self.input, &mut self.decoder).await?;
        Some(decode_message(&frame).expect("a daemon sends what can be read"))
    }

    pub async fn close_reason(&self) -> String {
        close_reason(&self.connection).await
    }

    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

pub fn framed(payload: &[u8]) -> Vec<u8> {
    [&frame_header(payload)[..], payload].concat()
}

async fn next_frame(input: &mut RecvStream, decoder: &mut FrameDecoder) -> Option<Vec<u8>> {
    loop {
        if let Some(frame) = decoder.next_frame().expect("a daemon sends good frames") {
            return Some(frame.to_vec());
        }
        let chunk = timeout(LIMIT, input.read_chunk(65536, true)).await.expect("something comes").ok()??;
        decoder.push(&chunk.bytes);
    }
}

/// A copy of a server's certificates, to keep an identity after its server has gone.
pub fn keep_certificates(server: &Server, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["ca.crt", "server.crt", "server.key"] {
        fs::copy(server.dir.join("certs").join(name), to.join(name)).unwrap();
    }
}
