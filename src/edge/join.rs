//! Joining: how a server without a certificate gets one, for a one-time token.
//!
//! Over QUIC with the ALPN of joins: the joiner believes a server whose CA has the token's cluster id, so nobody in
//! between learns the token. It sends one frame, gets one frame, and closes. The private key never leaves the joiner:
//! it sends its public key and a signature over the request and this TLS session.
//!
//! Layout, integers little-endian, texts as a length (u8 for names and addresses, u32 else) and UTF-8:
//! request = `P2PDBJRQ`, format u16 (1), secret (21), name, listen address, public key (32), signature (64);
//! answer = `P2PDBJAN`, format u16 (1), then 0, CA certificate, server certificate (u32 length and DER each), number
//! of members u32, name and address of each; or 1 and the reason of the refusal.
//!
//! Invariants: a token is taken before a certificate is issued, and given back only if the daemon refused, when no
//! certificate has left; each step has a deadline and each message a largest size.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use quinn::{Connection, Endpoint, TransportConfig};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::certificate::{
    Authority, AuthorityCertificate, CertificateError, Credentials, generate_key, issue_certificate_after,
};
use super::link::{CloseCode, FrameReader, Refusal, describe, within, write_frame};
use super::quic::JoinHandler;
use super::sources::{Sources, network_of};
use super::tls::{TLS_SERVER_NAME, TlsError, join_client_config, wall_clock_ms};
use super::token::{SECRET_BYTES, Token, TokenStore};
use crate::core::id::{ClusterId, ServerName};

const REQUEST_MAGIC: &[u8; 8] = b"P2PDBJRQ";
const ANSWER_MAGIC: &[u8; 8] = b"P2PDBJAN";
const FORMAT: u16 = 1;
const REQUEST_BYTES_MAX: usize = 1024;
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const REASON_BYTES_MAX: usize = 4096;
const EXPORTER_LABEL: &[u8] = b"EXPORTER-p2pdb-join-v1";
const STEP_LIMIT: Duration = Duration::from_secs(5);
/// The server reads, decides and answers, each within its limit.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
const JOINS_AT_ONCE: usize = 64;
const JOINS_OF_SOURCE_MAX: usize = 8;

/// Who asks to join, checked as far as this module can: the token is good and taken, the key is the asker's own.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    pub name: ServerName,
    /// Where it will listen for the mesh, by its own word.
    pub listen: SocketAddr,
    /// Where the request came from.
    pub from: SocketAddr,
}

/// What an admitted server is told.
#[derive(Debug, Clone, Default)]
pub struct JoinGrant {
    /// Whom to link with.
    pub members: Vec<(ServerName, SocketAddr)>,
    /// Certificates of this name issued at or before this time (ms since the Unix epoch) are refused: it was removed then.
    pub revoked_ms: Option<u64>,
}

/// Asks the daemon whether it admits a server; it has five seconds. `Err` is the reason shown to the operator of the
/// joiner, and leaves the token good.
pub type Admit =
    Box<dyn Fn(JoinRequest) -> Pin<Box<dyn Future<Output = Result<JoinGrant, String>> + Send>> + Send + Sync>;

/// The side of joins that answers.
pub struct JoinServer {
    /// `None` on a server that does not hold the CA key.
    pub authority: Option<Authority>,
    pub tokens: TokenStore,
    /// How long an issued certificate is valid, in ms.
    pub validity_ms: u64,
    pub admit: Admit,
}

impl JoinServer {
    /// What `Mesh::set_join_handler` takes.
    pub fn into_handler(self) -> JoinHandler {
        let server = Arc::new(self);
        let room = Arc::new(Semaphore::new(JOINS_AT_ONCE));
        let sources = Sources::default();
        Arc::new(move |connection| {
            let (server, room, sources) = (server.clone(), room.clone(), sources.clone());
            Box::pin(async move {
                let counted = sources.enter(network_of(connection.remote_address().ip()), JOINS_OF_SOURCE_MAX);
                match (room.try_acquire(), counted) {
                    (Ok(_held), Some(_counted)) => server.serve(connection).await,
                    _ => connection.close(CloseCode::Join.number(), b"too many servers join at once; try again"),
                }
            })
        })
    }

    async fn serve(&self, connection: Connection) {
        let from = connection.remote_address();
        if let Err(refusal) = self.converse(&connection).await {
            warn!(%from, reason = refusal.reason, "join failed");
            connection.close(refusal.code.number(), refusal.reason.as_bytes());
        }
    }

    async fn converse(&self, connection: &Connection) -> Result<(), Refusal> {
        let from = connection.remote_address();
        let (mut out, bytes) = within(STEP_LIMIT, from, async {
            let (out, input) = connection.accept_bi().await.map_err(|error| Refusal::of_connection(&error))?;
            let bytes = FrameReader::new(input, REQUEST_BYTES_MAX).next(connection).await?;
            Ok((out, bytes))
        })
        .await?;
        let answer = match self.decide(connection, &bytes).await {
            Ok(granted) => granted,
            Err(reason) => {
                warn!(%from, reason, "join refused");
                Answer::Refused(reason)
            }
        };
        within(STEP_LIMIT, from, async {
            write_frame(connection, &mut out, &answer.encode()).await?;
            // The joiner closes when it has read; closing first would throw the answer away.
            connection.closed().await;
            Ok(())
        })
        .await
    }

    async fn decide(&self, connection: &Connection, bytes: &[u8]) -> Result<Answer, String> {
        let Some(authority) = &self.authority else {
            let why = "this server does not hold the cluster CA key; join through a server that has certs/ca.key, usually the one \
                       that ran init";
            return Err(why.into());
        };
        let request =
            Request::decode(bytes).ok_or("the request is malformed; is the joining p2pdb newer than this?")?;
        request.verify(connection)?;
        let now_ms = wall_clock_ms();
        let token = self.tokens.take(&request.secret, now_ms).map_err(|error| error.to_string())?;
        let from = connection.remote_address();
        let asked = JoinRequest { name: request.name.clone(), listen: request.listen, from };
        match tokio::time::timeout(STEP_LIMIT, (self.admit)(asked)).await {
            Ok(Ok(JoinGrant { members, revoked_ms })) => {
                token.spend();
                let (name, public_key) = (&request.name, &request.public_key);
                let certificate =
                    issue_certificate_after(authority, name, public_key, now_ms, self.validity_ms, revoked_ms)
                        .map_err(|error| error.to_string())?;
                info!(%name, %from, "a server joins");
                Ok(Answer::Granted { ca: authority.certificate().der().clone(), certificate, members })
            }
            Ok(Err(reason)) => match token.give_back() {
                Ok(()) => Err(reason),
                Err(error) => Err(format!("{reason} (and the token is lost: {error})")),
            },
            // What was begun may still take effect, so the token stays taken.
            Err(_) => Err("the server did not decide in time; get a new token and try again".into()),
        }
    }
}

#[derive(Debug, Error)]
pub enum JoinError {
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable { peer: SocketAddr, reason: String },
    #[error("{peer} refused: {reason}")]
    Refused { peer: SocketAddr, reason: String },
    #[error("{peer} gave an answer that makes no sense: {reason}")]
    Answer { peer: SocketAddr, reason: String },
    #[error("the local side failed: {0}")]
    Local(String),
}

impl From<CertificateError> for JoinError {
    fn from(error: CertificateError) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<TlsError> for JoinError {
    fn from(error: TlsError) -> Self {
        Self::Local(error.to_string())
    }
}

/// What a joiner has in the end; nothing is written yet.
pub struct Joined {
    pub cluster: ClusterId,
    pub ca: AuthorityCertificate,
    pub credentials: Credentials,
    /// Whom to link with.
    pub members: Vec<(ServerName, SocketAddr)>,
}

/// Joins the token's cluster through the member at `peer`, under `name`; others will find this server at `listen`.
/// Makes a new key. Takes at most 25 seconds.
pub async fn join(peer: SocketAddr, token: &Token, name: &ServerName, listen: SocketAddr) -> Result<Joined, JoinError> {
    let local: SocketAddr =
        if peer.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let endpoint = Endpoint::client(local).map_err(|error| JoinError::Local(error.to_string()))?;
    let mut transport = TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(300)));
    let mut config = quinn::ClientConfig::new(Arc::new(join_client_config(token.cluster)?));
    config.transport_config(Arc::new(transport));
    let connecting = endpoint
        .connect_with(config, peer, TLS_SERVER_NAME)
        .map_err(|error| JoinError::Unreachable { peer, reason: error.to_string() })?;
    let connection = tokio::time::timeout(STEP_LIMIT, connecting)
        .await
        .map_err(|_| JoinError::Unreachable { peer, reason: "no answer within 5 s".into() })?
        .map_err(|error| JoinError::Unreachable { peer, reason: describe(&error) })?;
    let joined = ask(&connection, peer, token, name, listen).await;
    connection.close(CloseCode::Shutdown.number(), b"done");
    // Lets the close reach the server, which waits for it.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    joined
}

async fn ask(
    connection: &Connection,
    peer: SocketAddr,
    token: &Token,
    name: &ServerName,
    listen: SocketAddr,
) -> Result<Joined, JoinError> {
    let key = generate_key()?;
    let request = Request::sign(connection, token, name, listen, &key).map_err(JoinError::Local)?;
    let answer = within(ANSWER_LIMIT, peer, async {
        let (mut out, input) = connection.open_bi().await.map_err(|error| Refusal::of_connection(&error))?;
        write_frame(connection, &mut out, &request).await?;
        FrameReader::new(input, ANSWER_BYTES_MAX).next(connection).await
    })
    .await
    .map_err(|refusal| JoinError::Refused { peer, reason: refusal.reason })?;
    let nonsense = |reason: String| JoinError::Answer { peer, reason };
    match Answer::decode(&answer).ok_or_else(|| nonsense("it is malformed".into()))? {
        Answer::Refused(reason) => Err(JoinError::Refused { peer, reason }),
        Answer::Granted { ca, certificate, members } => {
            let ca = AuthorityCertificate::from_der(&ca).map_err(|error| nonsense(error.to_string()))?;
            if ca.cluster() != token.cluster {
                return Err(nonsense(format!("it is of cluster {}", ca.cluster())));
            }
            let credentials = Credentials::new(&certificate, key, &ca).map_err(|error| nonsense(error.to_string()))?;
            if credentials.info.name != *name {
                return Err(nonsense(format!("its certificate names '{}'", credentials.info.name)));
            }
            if !credentials.info.is_valid_at(wall_clock_ms()) {
                let why = "the time of its certificate has not come, or is over: a clock is wrong, here or there";
                return Err(nonsense(why.into()));
            }
            Ok(Joined { cluster: token.cluster, ca, credentials, members })
        }
    }
}

struct Request {
    secret: [u8; SECRET_BYTES],
    name: ServerName,
    listen: SocketAddr,
    public_key: [u8; 32],
    signature: [u8; 64],
}

impl Request {
    fn sign(
        connection: &Connection,
        token: &Token,
        name: &ServerName,
        listen: SocketAddr,
        key: &SigningKey,
    ) -> Result<Vec<u8>, String> {
        let public_key = key.verifying_key().to_bytes();
        let unsigned = Self { secret: *token.secret(), name: name.clone(), listen, public_key, signature: [0; 64] };
        let signature = key.sign(&unsigned.signed_bytes(connection)?).to_bytes();
        Ok(Self { signature, ..unsigned }.encode())
    }

    /// Proves that the asker holds the private key: the signature covers the request and this very TLS session.
    fn verify(&self, connection: &Connection) -> Result<(), String> {
        let signed = self.signed_bytes(connection)?;
        VerifyingKey::from_bytes(&self.public_key)
            .and_then(|key| key.verify_strict(&signed, &Signature::from_bytes(&self.signature)))
            .map_err(|_| "the request is not signed by the key it shows".to_owned())
    }

    fn signed_bytes(&self, connection: &Connection) -> Result<Vec<u8>, String> {
        let mut session = [0; 32];
        connection
            .export_keying_material(&mut session, EXPORTER_LABEL, b"")
            .map_err(|_| "TLS gives no session secret".to_owned())?;
        let encoded = self.encode();
        Ok([&session[..], &encoded[..encoded.len() - self.signature.len()]].concat())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = REQUEST_MAGIC.to_vec();
        out.put_u16_le(FORMAT);
        out.put_slice(&self.secret);
        put_short(&mut out, self.name.as_str());
        put_short(&mut out, &self.listen.to_string());
        out.put_slice(&self.public_key);
        out.put_slice(&self.signature);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(REQUEST_MAGIC)?;
        if rest.try_get_u16_le().ok()? != FORMAT {
            return None;
        }
        let request = Self {
            secret: array(&mut rest)?,
            name: short(&mut rest)?.parse().ok()?,
            listen: short(&mut rest)?.parse().ok()?,
            public_key: array(&mut rest)?,
            signature: array(&mut rest)?,
        };
        rest.is_empty().then_some(request)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Granted {
        ca: CertificateDer<'static>,
        certificate: CertificateDer<'static>,
        members: Vec<(ServerName, SocketAddr)>,
    },
    Refused(String),
}

impl Answer {
    fn encode(&self) -> Vec<u8> {
        let mut out = ANSWER_MAGIC.to_vec();
        out.put_u16_le(FORMAT);
        match self {
            Self::Granted { ca, certificate, members } => {
                out.put_u8(0);
                put_long(&mut out, ca);
                put_long(&mut out, certificate);
                out.put_u32_le(u32::try_from(members.len()).expect("a cluster has far fewer servers"));
                for (name, address) in members {
                    put_short(&mut out, name.as_str());
                    put_short(&mut out, &address.to_string());
                }
            }
            Self::Refused(reason) => {
                out.put_u8(1);
                put_long(&mut out, &reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES_MAX)]);
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(ANSWER_MAGIC)?;
        if rest.try_get_u16_le().ok()? != FORMAT {
            return None;
        }
        let answer = match rest.try_get_u8().ok()? {
            0 => {
                let ca = CertificateDer::from(long(&mut rest)?.to_vec());
                let certificate = CertificateDer::from(long(&mut rest)?.to_vec());
                let mut members = Vec::new();
                for _ in 0..rest.try_get_u32_le().ok()? {
                    members.push((short(&mut rest)?.parse().ok()?, short(&mut rest)?.parse().ok()?));
                }
                Self::Granted { ca, certificate, members }
            }
            1 => Self::Refused(std::str::from_utf8(long(&mut rest)?).ok()?.to_owned()),
            _ => return None,
        };
        rest.is_empty().then_some(answer)
    }
}

fn put_short(out: &mut Vec<u8>, text: &str) {
    out.put_u8(u8::try_from(text.len()).expect("names and addresses have less than 256 bytes"));
    out.put_slice(text.as_bytes());
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("certificates and reasons are bounded to kilobytes"));
    out.put_slice(bytes);
}

fn short<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::from(rest.try_get_u8().ok()?);
    std::str::from_utf8(rest.split_off(..length)?).ok()
}

fn long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
    rest.split_off(..length)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            secret: [1; SECRET_BYTES],
            name: "mail".parse().unwrap(),
            listen: "10.0.0.1:4747".parse().unwrap(),
            public_key: [2; 32],
            signature: [3; 64],
        }
    }

    #[test]
    fn golden_bytes_of_a_request() {
        let mut expected = b"P2PDBJRQ\x01\x00".to_vec();
        expected.extend([1; SECRET_BYTES]);
        expected.extend(b"\x04mail\x0d10.0.0.1:4747");
        expected.extend([2; 32]);
        expected.extend([3; 64]);
        assert_eq!(request().encode(), expected);
        assert_eq!(Request::decode(&expected).unwrap().encode(), expected);
    }

    proptest::proptest! {
        #[test]
        fn decoding_never_panics(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Request::decode(&[&REQUEST_MAGIC[..], &[1, 0], &tail].concat());
            let _ = Answer::decode(&[&ANSWER_MAGIC[..], &[1, 0, 0], &tail].concat());
            let _ = Answer::decode(&[&ANSWER_MAGIC[..], &[1, 0, 1], &tail].concat());
        }
    }

    #[test]
    fn messages_read_as_written_and_nothing_shorter_or_longer_does() {
        let certificate = |byte| CertificateDer::from(vec![byte; 10]);
        let members = vec![("a".parse().unwrap(), "[::1]:1".parse().unwrap())];
        let granted = Answer::Granted { ca: certificate(1), certificate: certificate(2), members };
        for answer in [granted, Answer::Refused("no".into())] {
            let bytes = answer.encode();
            assert_eq!(Answer::decode(&bytes).as_ref(), Some(&answer));
            for length in 0..bytes.len() {
                assert_eq!(Answer::decode(&bytes[..length]), None);
            }
            assert_eq!(Answer::decode(&[&bytes[..], b"x"].concat()), None);
        }
        let bytes = request().encode();
        for length in 0..bytes.len() {
            assert!(Request::decode(&bytes[..length]).is_none());
        }
    }
}
