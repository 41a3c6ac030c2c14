//! Mutual TLS 1.3 between servers of one cluster: who we are, whom we believe, who was revoked.
//!
//! Our identity and the revocations sit behind locks that every handshake reads, so that both change without a
//! restart. Resumption and early data are off on both sides: a resumed session would keep the identity from before a
//! rotation, or one that was revoked since.
//!
//! A server name is compared byte by byte with the certificate's only SAN, never by DNS rules: names differ by case,
//! and `10.0.0.1` may be a name. So what TLS calls the server name is a constant and says nothing.
//!
//! Two protocols are spoken (ALPN). In the mesh both sides show a certificate. A client that joins has none yet:
//! client certificates are therefore optional in the handshake, and the mesh refuses a connection without one right
//! after it. To a joining client the server shows the CA's certificate too, which the client checks against its token.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WantsClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError as TlsCertificateError, DigitallySignedStruct, OtherError, RootCertStore};
use rustls::{ConfigBuilder, DistinguishedName, SignatureScheme};
use thiserror::Error;
use tracing::info;

use super::certificate::{
    AuthorityCertificate, CertificateError, CertificateInfo, Credentials, verify_server_certificate,
};
use crate::core::id::{ClusterId, ServerName};

/// The protocol between members.
pub const ALPN_MESH: &[u8] = b"p2pdb/1";
/// The protocol of a server that has no certificate yet.
pub const ALPN_JOIN: &[u8] = b"p2pdb-join/1";
/// What every dialler calls the server it dials, as far as TLS is concerned.
pub const TLS_SERVER_NAME: &str = "p2pdb";

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("TLS cannot use this certificate and key: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// Why a peer's certificate is refused in a handshake.
#[derive(Debug, Error)]
pub enum PeerRefused {
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    #[error("the peer is '{found}', not '{expected}'")]
    WrongName { expected: ServerName, found: ServerName },
    #[error("the certificate of '{0}' is revoked")]
    Revoked(ServerName),
    #[error("the server belongs to cluster {found}, the join token to cluster {expected}")]
    WrongCluster { expected: ClusterId, found: ClusterId },
    #[error("the server shows no cluster CA certificate")]
    NoAuthority,
}

/// Who this server is, shared by all its connections; clones are the same identity.
#[derive(Clone)]
pub struct TlsIdentity(Arc<RwLock<Identity>>);

struct Identity {
    info: CertificateInfo,
    mesh: Arc<CertifiedKey>,
    /// The same with the CA's certificate behind it.
    join: Arc<CertifiedKey>,
    reset_key: [u8; 32],
}

impl TlsIdentity {
    /// An identity from a server's certificate and key; `ca` is shown to joining servers.
    pub fn new(credentials: &Credentials, ca: &AuthorityCertificate) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Identity::new(credentials, ca)?))))
    }

    /// Changes to a new certificate and key. Handshakes from now on use them; live connections are not touched.
    pub fn rotate(&self, credentials: &Credentials, ca: &AuthorityCertificate) -> Result<(), TlsError> {
        let identity = Identity::new(credentials, ca)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }

    /// What our certificate says.
    pub fn info(&self) -> CertificateInfo {
        self.0.read().unwrap_or_else(PoisonError::into_inner).info.clone()
    }

    /// A secret that stays the same over restarts. With it a restarted server can tell its peers at once that it no
    /// longer knows their connections (stateless reset), instead of leaving them to their idle timeout.
    pub(crate) fn reset_key(&self) -> [u8; 32] {
        self.0.read().unwrap_or_else(PoisonError::into_inner).reset_key
    }

    fn key(&self, join: bool) -> Arc<CertifiedKey> {
        let identity = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if join { identity.join.clone() } else { identity.mesh.clone() }
    }
}

impl Identity {
    fn new(credentials: &Credentials, ca: &AuthorityCertificate) -> Result<Self, TlsError> {
        let key = provider().key_provider.load_private_key(PrivateKeyDer::Pkcs8(credentials.key_der()))?;
        let certificate = credentials.certificate.clone();
        let mesh = CertifiedKey::new(vec![certificate.clone()], key.clone());
        mesh.keys_match()?;
        let join = CertifiedKey::new(vec![certificate, ca.der().clone()], key);
        let reset_key = blake3::derive_key("p2pdb QUIC stateless reset v1", credentials.key.as_bytes());
        Ok(Self { info: credentials.info.clone(), mesh: Arc::new(mesh), join: Arc::new(join), reset_key })
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "TlsIdentity({})", self.info().name)
    }
}

/// Revoked servers: of each, the certificates issued at or before a time (ms since the Unix epoch) are refused.
#[derive(Debug, Clone, Default)]
pub struct Revocations(Arc<RwLock<BTreeMap<ServerName, u64>>>);

impl Revocations {
    /// Replaces the whole list; handshakes from now on see the new one.
    pub fn set(&self, revoked: BTreeMap<ServerName, u64>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = revoked;
    }

    /// Whether a certificate of `name` that was issued at `issued_ms` is revoked.
    pub fn covers(&self, name: &ServerName, issued_ms: u64) -> bool {
        let revoked = self.0.read().unwrap_or_else(PoisonError::into_inner);
        revoked.get(name).is_some_and(|until_ms| issued_ms <= *until_ms)
    }
}

/// The accepting side: both protocols, client certificate optional, always checked when there is one.
pub fn server_config(
    identity: &TlsIdentity,
    ca: &AuthorityCertificate,
    revocations: &Revocations,
) -> Result<QuicServerConfig, TlsError> {
    let provider = provider();
    let trust = Trust::new(ca, revocations, &provider)?;
    let chain = WebPkiClientVerifier::builder_with_provider(trust.roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Setup(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(MemberVerifier { trust, chain }))
        .with_cert_resolver(Arc::new(Resolver(identity.clone())));
    config.alpn_protocols = vec![ALPN_MESH.to_vec(), ALPN_JOIN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|error| TlsError::Setup(error.to_string()))
}

/// The dialling side of the mesh: the peer must be `expected`.
pub fn client_config(
    identity: &TlsIdentity,
    ca: &AuthorityCertificate,
    revocations: &Revocations,
    expected: &ServerName,
) -> Result<QuicClientConfig, TlsError> {
    let provider = provider();
    let trust = Trust::new(ca, revocations, &provider)?;
    let config = dialling(provider, OneMember { trust, expected: expected.clone() })?
        .with_client_cert_resolver(Arc::new(Resolver(identity.clone())));
    quic_client_config(config, ALPN_MESH)
}

/// The dialling side of a join: no certificate of our own; the peer must hold one of the cluster `expected`.
pub fn join_client_config(expected: ClusterId) -> Result<QuicClientConfig, TlsError> {
    quic_client_config(dialling(provider(), AnyMember { expected })?.with_no_client_auth(), ALPN_JOIN)
}

fn dialling<B: Belief + 'static>(
    provider: Arc<CryptoProvider>,
    belief: B,
) -> Result<ConfigBuilder<rustls::ClientConfig, WantsClientCert>, TlsError> {
    let algorithms = provider.signature_verification_algorithms;
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(ServerVerifier { belief, algorithms })))
}

/// The wall clock, in ms since the Unix epoch.
pub(crate) fn wall_clock_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

fn quic_client_config(mut config: rustls::ClientConfig, alpn: &[u8]) -> Result<QuicClientConfig, TlsError> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    QuicClientConfig::try_from(config).map_err(|error| TlsError::Setup(error.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn refused(reason: impl Into<PeerRefused>) -> rustls::Error {
    match reason.into() {
        // The one reason that TLS has an alert for: so the revoked server hears what happened to it.
        PeerRefused::Revoked(name) => {
            info!(peer = %name, "the peer's certificate is revoked");
            TlsCertificateError::Revoked.into()
        }
        reason => rustls::Error::Other(OtherError(Arc::new(reason))),
    }
}

/// What both sides of the mesh check: webpki looks at signature, validity and purpose; the rest is our own.
#[derive(Debug)]
struct Trust {
    ca: AuthorityCertificate,
    roots: Arc<RootCertStore>,
    revocations: Revocations,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    fn new(ca: &AuthorityCertificate, revocations: &Revocations, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        Ok(Self {
            ca: ca.clone(),
            roots: Arc::new(roots),
            revocations: revocations.clone(),
            algorithms: provider.signature_verification_algorithms,
        })
    }

    fn member(&self, certificate: &CertificateDer<'_>) -> Result<CertificateInfo, rustls::Error> {
        let info = verify_server_certificate(certificate, &self.ca).map_err(refused)?;
        if self.revocations.covers(&info.name, info.issued_ms) {
            return Err(refused(PeerRefused::Revoked(info.name)));
        }
        Ok(info)
    }
}

#[derive(Debug)]
struct MemberVerifier {
    trust: Trust,
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for MemberVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust.member(end_entity)?;
        self.chain.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Whom the dialling side believes; the rest of checking a server is the same for all.
trait Belief: std::fmt::Debug + Send + Sync {
    /// What the certificate must be signed by, if it is one of those.
    fn roots(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Arc<RootCertStore>, rustls::Error>;
}

/// One member of the mesh.
#[derive(Debug)]
struct OneMember {
    trust: Trust,
    expected: ServerName,
}

impl Belief for OneMember {
    fn roots(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
    ) -> Result<Arc<RootCertStore>, rustls::Error> {
        let info = self.trust.member(end_entity)?;
        if info.name != self.expected {
            return Err(refused(PeerRefused::WrongName { expected: self.expected.clone(), found: info.name }));
        }
        Ok(self.trust.roots.clone())
    }
}

/// Any member of one cluster, of which only the id is known: the token's side of the promise.
#[derive(Debug)]
struct AnyMember {
    expected: ClusterId,
}

impl Belief for AnyMember {
    fn roots(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Arc<RootCertStore>, rustls::Error> {
        let ca = intermediates.first().ok_or_else(|| refused(PeerRefused::NoAuthority))?;
        let ca = AuthorityCertificate::from_der(ca).map_err(refused)?;
        if ca.cluster() != self.expected {
            return Err(refused(PeerRefused::WrongCluster { expected: self.expected, found: ca.cluster() }));
        }
        verify_server_certificate(end_entity, &ca).map_err(refused)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        Ok(Arc::new(roots))
    }
}

#[derive(Debug)]
struct ServerVerifier<B> {
    belief: B,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<B: Belief> ServerCertVerifier for ServerVerifier<B> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = self.belief.roots(end_entity, intermediates)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn only_tls13() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken here".into())
}

#[derive(Debug)]
struct Resolver(TlsIdentity);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let join = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN_JOIN));
        Some(self.0.key(join))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.key(false))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
