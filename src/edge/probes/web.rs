//! HTTP, HTTPS and forward proxies: one GET (RFC 9112), of whose answer only the status line is read.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::greeting::line;
use super::{Answer, outcome_of, wrong};
use crate::core::probe::ProbeOutcome;

pub(super) struct Request<'a> {
    /// A path, or the whole URL for a proxy.
    pub target: &'a str,
    pub authority: &'a str,
    /// The status that is wanted; `None`: any below 400.
    pub status: Option<u16>,
}

pub(super) async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &Request<'_>) -> Answer {
    let Request { target, authority, .. } = request;
    let text = format!(
        "GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: p2pdb-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.map_err(|error| outcome_of(&error))?;
    stream.flush().await.map_err(|error| outcome_of(&error))?;
    let line = line(&mut stream).await?;
    let status = status_of(&line).ok_or_else(|| wrong("an HTTP status", &line))?;
    match request.status {
        Some(wanted) if wanted != status => Err(ProbeOutcome::Refused(format!("its status is {status}, not {wanted}"))),
        None if status >= 400 => Err(ProbeOutcome::Refused(format!("its status is {status}"))),
        _ => Ok(()),
    }
}

pub(super) async fn ask_tls(
    tls: &TlsConnector,
    stream: TcpStream,
    request: &Request<'_>,
    address: IpAddr,
    host: Option<&str>,
) -> Answer {
    let name = host.map(|host| host.split(':').next().unwrap_or(host).to_owned());
    let name = match name {
        Some(name) => ServerName::try_from(name).map_err(|error| ProbeOutcome::Unable(format!("host= is {error}")))?,
        None => ServerName::IpAddress(address.into()),
    };
    let stream = tls.connect(name, stream).await.map_err(|error| match error.get_ref() {
        Some(_) => ProbeOutcome::Refused(format!("no TLS: {error}")),
        None => outcome_of(&error),
    })?;
    ask(stream, request).await
}

/// Of `HTTP/1.1 200 OK`, the 200.
fn status_of(line: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(line).ok()?;
    let status = text.strip_prefix("HTTP/1.")?.split_ascii_whitespace().nth(1)?;
    status.parse().ok().filter(|status| (100..600).contains(status))
}

pub(super) fn connector() -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("the provider has the usual cipher suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Takes any certificate whose key the service has: expired, self-signed and foreign ones serve, too.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
