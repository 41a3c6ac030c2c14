//! One link: from a fresh QUIC connection to two checked hellos, then four tasks that move frames.
//!
//! States of a connection: handshake done -> hello sent by the dialler -> hello sent by the acceptor -> ready note
//! sent by the dialler -> up (`Link`) -> closed. Two bidirectional streams are opened once by the dialler: first
//! `Live`, which carries the hellos, then `Bulk`. Each has one reader, which hands frames straight to the event
//! channel, and one writer, which takes them from a queue bounded by bytes.
//!
//! Invariants: a reader that waits for room in the event channel stops reading, so that QUIC flow control holds the
//! peer back; the window of one channel is smaller than the connection's, so that Bulk cannot hold up Live; whatever
//! a peer sends wrong closes its own connection with a code and a reason, and nothing else.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};

use super::certificate::{AuthorityCertificate, CertificateInfo, verify_server_certificate};
use super::frame::{FrameDecoder, SendError, SendQueue, frame_header};
use super::hello::{HELLO_BYTES_MAX, Hello, decode_ready, encode_ready};
use super::quic::{Channel, LinkInfo, MeshConfig, MeshEvent};
use super::tls::wall_clock_ms;
use crate::core::id::ServerName;

/// The application close codes of QUIC, as the peer sees them. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    Shutdown = 0,
    NoCertificate = 1,
    BadHello = 2,
    ForeignCluster = 3,
    WrongName = 4,
    NoCommonVersion = 5,
    Ourselves = 6,
    Duplicate = 7,
    BadFrame = 8,
    Revoked = 9,
    NotAMember = 10,
    Rotated = 11,
    Deadline = 12,
    Join = 13,
    Handshake = 14,
    Unreachable = 15,
}

impl CloseCode {
    pub fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// Closes that belong to normal life and are no refusal worth showing.
    fn is_quiet(number: VarInt) -> bool {
        [Self::Shutdown, Self::Duplicate, Self::Rotated].iter().any(|code| code.number() == number)
    }
}

/// Why a connection did not become a link.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub code: CloseCode,
    pub reason: String,
    pub peer: Option<ServerName>,
    /// A peer that we have dialled had shown its certificate before: what it says is its word. Before that, anybody may have said it.
    pub proven: bool,
    /// Part of normal life: a duplicate, a shutdown, nobody there.
    pub quiet: bool,
}

impl Refusal {
    pub fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        let quiet = CloseCode::is_quiet(code.number());
        Self { code, reason: reason.into(), peer: None, proven: false, quiet }
    }

    pub fn of_connection(error: &ConnectionError) -> Self {
        let (code, quiet) = match error {
            ConnectionError::ApplicationClosed(close) => (CloseCode::Shutdown, CloseCode::is_quiet(close.error_code)),
            ConnectionError::TransportError(_) | ConnectionError::ConnectionClosed(_) => (CloseCode::Handshake, false),
            ConnectionError::VersionMismatch => (CloseCode::Handshake, false),
            _ => (CloseCode::Unreachable, true),
        };
        Self { code, reason: describe(error), peer: None, proven: false, quiet }
    }
}

/// The reason of a peer that refuses us because we have been removed from the group, if that is proven.
pub const WE_ARE_REVOKED: &str = "the peer refused us: our certificate is revoked";

/// A closed connection in words for an operator.
pub(crate) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            format!("the peer closed: {} (code {})", String::from_utf8_lossy(&close.reason), close.error_code)
        }
        ConnectionError::TransportError(error) => match error.reason.as_str() {
            "" => error.to_string(),
            "invalid peer certificate: Revoked" => "the peer's certificate is revoked".into(),
            // rustls marks errors that are not its own.
            reason => reason.strip_prefix("other error: ").unwrap_or(reason).to_owned(),
        },
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            // The TLS alerts 44 and 45, and any other.
            0x12c => WE_ARE_REVOKED.into(),
            0x12d => "the peer refused us: our certificate has expired".into(),
            0x100..0x200 => format!("the peer refused our certificate or protocol, its status says why: {close}"),
            _ => format!("the peer refused the handshake: {close}"),
        },
        ConnectionError::TimedOut => "no sign of life".into(),
        ConnectionError::Reset => "the peer restarted".into(),
        error => error.to_string(),
    }
}

/// What an established connection knows of its peer.
pub(crate) struct Established {
    pub certificate: CertificateInfo,
    pub hello: Hello,
    pub version: u16,
    /// The peer's wall clock minus ours, in ms, as well as one round trip tells.
    pub clock_offset_ms: i64,
    pub live: (SendStream, FrameReader),
    pub bulk: (SendStream, FrameReader),
}

/// The peer's certificate, verified; a refusal if it showed none.
pub(crate) fn peer_certificate(connection: &Connection, ca: &AuthorityCertificate) -> Result<CertificateInfo, Refusal> {
    let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(certificate) = chain.as_ref().and_then(|chain| chain.first()) else {
        let reason = "the mesh needs a certificate; join the cluster first";
        return Err(Refusal::new(CloseCode::NoCertificate, reason));
    };
    verify_server_certificate(certificate, ca)
        .map_err(|error| Refusal::new(CloseCode::NoCertificate, error.to_string()))
}

/// The dialler's half of the hellos.
pub(crate) async fn greet(
    connection: &Connection,
    certificate: CertificateInfo,
    config: &MeshConfig,
    ours: &Hello,
) -> Result<Established, Refusal> {
    let (mut live_out, live_in) = connection.open_bi().await.map_err(|error| Refusal::of_connection(&error))?;
    let mut live_in = FrameReader::new(live_in, HELLO_BYTES_MAX);
    let sent = Instant::now();
    let sent_ms = wall_clock_ms();
    write_frame(connection, &mut live_out, &Hello { wall_ms: sent_ms, ..ours.clone() }.encode()).await?;
    let hello = decode_hello(&live_in.next(connection).await?)?;
    let version = check(&hello, &certificate, config)?;
    let clock_offset_ms = offset_ms(hello.wall_ms, sent_ms, sent);
    write_frame(connection, &mut live_out, &encode_ready(wall_clock_ms())).await?;
    let (mut bulk_out, bulk_in) = connection.open_bi().await.map_err(|error| Refusal::of_connection(&error))?;
    // A stream is seen by the peer when something is on it.
    write_frame(connection, &mut bulk_out, b"").await?;
    let bulk_in = FrameReader::new(bulk_in, config.frame_bytes_max);
    Ok(finish(certificate, hello, version, clock_offset_ms, (live_out, live_in), (bulk_out, bulk_in), config))
}

/// The acceptor's half of the hellos. `admit` is asked between the peer's hello and our answer.
pub(crate) async fn welcome(
    connection: &Connection,
    certificate: CertificateInfo,
    config: &MeshConfig,
    ours: &Hello,
    admit: impl FnOnce(&Hello) -> Result<(), Refusal>,
) -> Result<Established, Refusal> {
    let (mut live_out, live_in) = connection.accept_bi().await.map_err(|error| Refusal::of_connection(&error))?;
    let mut live_in = FrameReader::new(live_in, HELLO_BYTES_MAX);
    let hello = decode_hello(&live_in.next(connection).await?)?;
    let version = check(&hello, &certificate, config)?;
    admit(&hello)?;
    let sent = Instant::now();
    let sent_ms = wall_clock_ms();
    write_frame(connection, &mut live_out, &Hello { wall_ms: sent_ms, ..ours.clone() }.encode()).await?;
    let ready_ms = decode_ready(&live_in.next(connection).await?)
        .map_err(|error| Refusal::new(CloseCode::BadHello, error.to_string()))?;
    let clock_offset_ms = offset_ms(ready_ms, sent_ms, sent);
    let (bulk_out, bulk_in) = connection.accept_bi().await.map_err(|error| Refusal::of_connection(&error))?;
    let mut bulk_in = FrameReader::new(bulk_in, config.frame_bytes_max);
    if !bulk_in.next(connection).await?.is_empty() {
        return Err(Refusal::new(CloseCode::BadHello, "the bulk stream does not begin with an empty frame"));
    }
    Ok(finish(certificate, hello, version, clock_offset_ms, (live_out, live_in), (bulk_out, bulk_in), config))
}

/// A link as the mesh keeps it. It counts as the peer's link until its `LinkDown` is in the event channel.
pub(crate) struct Link {
    /// Unique within this daemon's life.
    pub id: u64,
    pub peer: ServerName,
    pub connection: Connection,
    pub dialled_by_us: bool,
    pub instance: u64,
    pub version: u16,
    pub certificate_issued_ms: u64,
    pub since_ms: u64,
    live: SendQueue,
    bulk: SendQueue,
    closing: AtomicBool,
    close_reason: OnceLock<String>,
    pub down: watch::Sender<bool>,
}

impl Link {
    pub fn new(
        id: u64,
        connection: Connection,
        dialled_by_us: bool,
        established: &Established,
        queue_bytes: usize,
    ) -> Self {
        Self {
            id,
            peer: established.certificate.name.clone(),
            connection,
            dialled_by_us,
            instance: established.hello.instance,
            version: established.version,
            certificate_issued_ms: established.certificate.issued_ms,
            since_ms: wall_clock_ms(),
            live: SendQueue::new(queue_bytes),
            bulk: SendQueue::new(queue_bytes),
            closing: AtomicBool::new(false),
            close_reason: OnceLock::new(),
            down: watch::Sender::new(false),
        }
    }

    pub fn push(&self, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        self.queue(channel).push(frame)
    }

    /// Closes the connection and refuses frames from now on; the first reason given is the one that counts.
    pub fn close(&self, code: CloseCode, reason: &str) {
        let _ = self.close_reason.set(reason.to_owned());
        self.closing.store(true, Ordering::Release);
        self.live.close();
        self.bulk.close();
        self.connection.close(code.number(), reason.as_bytes());
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.connection.close_reason().is_some()
    }

    pub fn info(&self) -> LinkInfo {
        let stats = self.connection.stats();
        LinkInfo {
            peer: self.peer.clone(),
            link: self.id,
            address: self.connection.remote_address(),
            version: self.version,
            dialled_by_us: self.dialled_by_us,
            since_ms: self.since_ms,
            rtt_us: u64::try_from(self.connection.rtt().as_micros()).unwrap_or(u64::MAX),
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            bytes_queued: self.live.bytes() + self.bulk.bytes(),
        }
    }

    /// Moves frames until the connection ends, and returns why it ended. When it returns, no frame of this link will
    /// enter the event channel any more.
    pub async fn run(
        self: &std::sync::Arc<Self>,
        live: (SendStream, FrameReader),
        bulk: (SendStream, FrameReader),
        events: &mpsc::Sender<MeshEvent>,
    ) -> String {
        let mut tasks = tokio::task::JoinSet::new();
        for (channel, (out, input)) in [(Channel::Live, live), (Channel::Bulk, bulk)] {
            let link = self.clone();
            tasks.spawn(async move { link.write(channel, out).await });
            let (link, events) = (self.clone(), events.clone());
            tasks.spawn(async move { link.read(channel, input, events).await });
        }
        let error = self.connection.closed().await;
        let reason = self.close_reason.get_or_init(|| describe(&error)).clone();
        self.closing.store(true, Ordering::Release);
        self.live.close();
        self.bulk.close();
        while tasks.join_next().await.is_some() {}
        reason
    }

    fn queue(&self, channel: Channel) -> &SendQueue {
        match channel {
            Channel::Live => &self.live,
            Channel::Bulk => &self.bulk,
        }
    }

    async fn write(&self, channel: Channel, mut out: SendStream) {
        let queue = self.queue(channel);
        let mut chunks = Vec::new();
        while let Some(bytes) = queue.next_batch(&mut chunks).await {
            if out.write_all_chunks(&mut chunks).await.is_err() {
                if self.connection.close_reason().is_none() {
                    self.close(CloseCode::BadFrame, "the peer stopped a stream");
                }
                break;
            }
            queue.release(bytes);
        }
        // Dropping a stream finishes it, which the peer would take for an error of ours.
        self.connection.closed().await;
    }

    async fn read(&self, channel: Channel, mut input: FrameReader, events: mpsc::Sender<MeshEvent>) {
        loop {
            match input.next(&self.connection).await {
                Ok(bytes) => {
                    let frame = MeshEvent::Frame { peer: self.peer.clone(), link: self.id, channel, bytes };
                    if events.send(frame).await.is_err() {
                        return self.close(CloseCode::Shutdown, "this server shuts down");
                    }
                }
                Err(refusal) => {
                    if self.connection.close_reason().is_none() {
                        self.close(refusal.code, &refusal.reason);
                    }
                    return;
                }
            }
        }
    }
}

/// Reads frames from a QUIC stream.
pub(crate) struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
    chunks: [Bytes; 16],
}

impl FrameReader {
    pub fn new(stream: RecvStream, bytes_max: usize) -> Self {
        Self { stream, decoder: FrameDecoder::new(bytes_max), chunks: std::array::from_fn(|_| Bytes::new()) }
    }

    /// The next payload. `connection` is asked for the reason when the stream fails.
    pub async fn next(&mut self, connection: &Connection) -> Result<Bytes, Refusal> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(Refusal::new(CloseCode::BadFrame, error.to_string())),
            }
            match self.stream.read_chunks(&mut self.chunks).await {
                Ok(Some(count)) => {
                    for chunk in &mut self.chunks[..count] {
                        self.decoder.push(&std::mem::take(chunk));
                    }
                }
                Ok(None) => return Err(Refusal::new(CloseCode::BadFrame, "the peer ended a stream")),
                Err(ReadError::ConnectionLost(error)) => return Err(Refusal::of_connection(&error)),
                Err(error) => {
                    let closed = connection.close_reason().map(|error| Refusal::of_connection(&error));
                    return Err(closed.unwrap_or_else(|| Refusal::new(CloseCode::BadFrame, error.to_string())));
                }
            }
        }
    }
}

/// Writes one frame. A failure is told by what closed the connection, if it is closed.
pub(crate) async fn write_frame(
    connection: &Connection,
    stream: &mut SendStream,
    payload: &[u8],
) -> Result<(), Refusal> {
    let mut chunks = [Bytes::copy_from_slice(&frame_header(payload)), Bytes::copy_from_slice(payload)];
    stream.write_all_chunks(&mut chunks).await.map_err(|error| {
        let closed = connection.close_reason().map(|error| Refusal::of_connection(&error));
        closed.unwrap_or_else(|| Refusal::new(CloseCode::BadFrame, error.to_string()))
    })
}

/// Puts a deadline on a step with the peer.
pub(crate) async fn within<T>(
    limit: Duration,
    address: SocketAddr,
    step: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    tokio::time::timeout(limit, step).await.unwrap_or_else(|_| {
        Err(Refusal::new(CloseCode::Deadline, format!("{address} did not finish its part within {limit:?}")))
    })
}

fn decode_hello(bytes: &[u8]) -> Result<Hello, Refusal> {
    Hello::decode(bytes).map_err(|error| Refusal::new(CloseCode::BadHello, error.to_string()))
}

fn check(hello: &Hello, certificate: &CertificateInfo, config: &MeshConfig) -> Result<u16, Refusal> {
    if hello.cluster != config.cluster {
        let reason = format!("cluster {} meets cluster {}", hello.cluster, config.cluster);
        return Err(Refusal::new(CloseCode::ForeignCluster, reason));
    }
    if hello.name != certificate.name {
        let reason = format!("'{}' shows the certificate of '{}'", hello.name, certificate.name);
        return Err(Refusal::new(CloseCode::WrongName, reason));
    }
    if hello.name == config.me {
        return Err(Refusal::new(CloseCode::Ourselves, format!("'{}' would be linked to itself", config.me)));
    }
    Hello::common_version(config.versions, hello.versions).ok_or_else(|| {
        let ((low, high), (their_low, their_high)) = (config.versions, hello.versions);
        let reason =
            format!("protocol versions {their_low} to {their_high} meet {low} to {high}; upgrade the older server");
        Refusal::new(CloseCode::NoCommonVersion, reason)
    })
}

fn finish(
    certificate: CertificateInfo,
    hello: Hello,
    version: u16,
    clock_offset_ms: i64,
    mut live: (SendStream, FrameReader),
    bulk: (SendStream, FrameReader),
    config: &MeshConfig,
) -> Established {
    live.1.decoder.set_bytes_max(config.frame_bytes_max);
    // Fails only on a stream that is closed already, which its first use will tell.
    let _ = live.0.set_priority(1);
    Established { certificate, hello, version, clock_offset_ms, live, bulk }
}

fn offset_ms(their_ms: u64, sent_ms: u64, sent: Instant) -> i64 {
    let half_round_trip_ms = i64::try_from(sent.elapsed().as_millis() / 2).unwrap_or(i64::MAX);
    their_ms.wrapping_sub(sent_ms).cast_signed().saturating_sub(half_round_trip_ms)
}
