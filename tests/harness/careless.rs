//! A client that believes any server, and shows whatever certificate it is given.

use std::sync::Arc;
use std::time::Duration;

use p2pdb::edge::certificate::Credentials;
use p2pdb::edge::tls::ALPN_MESH;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError};

const LIMIT: Duration = Duration::from_secs(20);

/// Believes everything but, if so, that a certificate is still good.
#[derive(Debug)]
struct Believer {
    says_revoked: bool,
}

impl rustls::client::danger::ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        match self.says_revoked {
            true => Err(rustls::CertificateError::Revoked.into()),
            false => Ok(rustls::client::danger::ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
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

pub fn careless_client(identity: Option<&Credentials>) -> QuicClientConfig {
    client(identity, false)
}

/// One without a certificate, that says of any server's that it is revoked.
#[allow(dead_code, reason = "the tests of the transport alone do without")]
pub fn slandering_client() -> QuicClientConfig {
    client(None, true)
}

fn client(identity: Option<&Credentials>, says_revoked: bool) -> QuicClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer { says_revoked }));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_auth_cert(vec![identity.certificate.clone()], identity.key_der().into()).unwrap()
        }
    };
    config.alpn_protocols = vec![ALPN_MESH.to_vec()];
    QuicClientConfig::try_from(config).unwrap()
}

/// Why the other side closed the connection.
pub async fn close_reason(connection: &Connection) -> String {
    match tokio::time::timeout(LIMIT, connection.closed()).await.expect("the other side closes the connection") {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => other.to_string(),
    }
}
