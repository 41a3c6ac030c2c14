//! Certificates: the cluster CA, one Ed25519 certificate per server, and the files that hold them.
//!
//! A cluster is its CA: `ClusterId` is a digest of the CA's public key. The CA issues every server certificate
//! directly, so a chain has two links and is checked here without any trust store. The directory holds, as PEM,
//! `ca.crt`, `ca.key` (only on servers that issue), `server.crt` and `server.key`.
//!
//! Invariants: a key file is never readable by others, from its first byte on; a file is replaced whole or not at
//! all (temporary file, fsync, rename, fsync of the directory); after a crash between the two renames of a rotation,
//! the next load finishes it, so `server.key` and `server.crt` always belong together.
//!
//! The serial of a certificate is `01`, the issue time in milliseconds (8 bytes, big-endian), 7 random bytes: X.509
//! times have whole seconds only, and revocation compares issue times.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::core::id::{ClusterId, Digest, ServerName};

/// How long a server certificate is valid unless the operator says otherwise, in ms: one year.
pub const SERVER_VALIDITY_MS: u64 = 365 * DAY_MS;
/// How long the cluster CA is valid, in ms: twenty years.
pub const AUTHORITY_VALIDITY_MS: u64 = 20 * 365 * DAY_MS;
/// Largest certificate that is looked at, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 4096;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// A certificate is valid from this long before its issue, so that a peer whose clock is behind accepts it at once.
const BACKDATE_MS: u64 = DAY_MS;
const SERIAL_MARK: u8 = 1;
const ED25519_OID: &str = "1.3.101.112";
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What stands between the signed part of a certificate and an Ed25519 signature.
const SIGNATURE_PREFIX: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("{path}: not found; {hint}")]
    Missing { path: PathBuf, hint: &'static str },
    #[error("{path}: cannot be read: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be written: {source}")]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{path}: exists already; this directory belongs to a cluster, choose an empty one")]
    Exists { path: PathBuf },
    #[error("{path}: the private key is open to other users (mode {mode:04o}); run: chmod 600 {path}")]
    Permissions { path: PathBuf, mode: u32 },
    #[error("{path}: not a PEM file with {wanted}; restore it from a backup, or join the cluster again")]
    Garbage { path: PathBuf, wanted: &'static str },
    #[error("{path}: {source}")]
    In { path: PathBuf, source: Box<CertificateError> },
    #[error("{key} does not belong to {certificate}; restore both from the same backup, or join the cluster again")]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    #[error("the certificate is not signed by this cluster's CA ({0}): it belongs to another cluster")]
    ForeignAuthority(ClusterId),
    #[error("the certificate cannot be issued: {0}")]
    Issue(String),
    #[error("no randomness from the operating system")]
    Randomness,
}

/// What a verified server certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    pub name: ServerName,
    /// The Ed25519 public key, which also verifies the signatures of entries.
    pub public_key: [u8; 32],
    /// When it was issued, in ms since the Unix epoch.
    pub issued_ms: u64,
    /// When it begins to be accepted by TLS, in ms since the Unix epoch.
    pub valid_from_ms: u64,
    /// When it stops being accepted by TLS, in ms since the Unix epoch.
    pub expires_ms: u64,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// BLAKE3 of the DER form.
    pub fingerprint: Digest,
}

impl CertificateInfo {
    /// Whether TLS accepts it where the clock says `now_ms`, in ms since the Unix epoch.
    pub fn is_valid_at(&self, now_ms: u64) -> bool {
        (self.valid_from_ms..self.expires_ms).contains(&now_ms)
    }
}

/// The cluster CA's certificate: what everyone in the cluster trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityCertificate {
    der: CertificateDer<'static>,
    public_key: VerifyingKey,
    cluster: ClusterId,
}

impl AuthorityCertificate {
    /// Reads a CA certificate: Ed25519, self-signed, allowed to sign certificates. Its expiry is not looked at.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let public_key = public_key(&certificate)?;
        let may_sign = matches!(certificate.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign());
        if !certificate.is_ca() || !may_sign {
            return Err(CertificateError::Malformed("it is not a CA certificate".into()));
        }
        let cluster = ClusterId::of_public_key(certificate.public_key().raw);
        check_signature(&certificate, &public_key, cluster)?;
        Ok(Self { der: CertificateDer::from(der.to_vec()), public_key, cluster })
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }
}

/// The cluster CA with its key: what a server needs to issue certificates.
pub struct Authority {
    certificate: AuthorityCertificate,
    key: SigningKey,
}

impl Authority {
    /// Makes a new CA, and with it a new cluster. `now_ms` and `validity_ms` are wall-clock milliseconds.
    pub fn generate(now_ms: u64, validity_ms: u64) -> Result<Self, CertificateError> {
        let key = generate_key()?;
        let cluster = ClusterId::of_public_key(&public_key_info(&key.verifying_key().to_bytes()));
        let mut parameters = parameters(&format!("p2pdb cluster {cluster}"), now_ms, now_ms, validity_ms)?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = parameters.self_signed(&Ed25519Signer(&key)).map_err(issue_error)?;
        Ok(Self { certificate: AuthorityCertificate::from_der(certificate.der())?, key })
    }

    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }
}

/// A server's certificate and private key.
#[derive(Clone)]
pub struct Credentials {
    pub certificate: CertificateDer<'static>,
    pub info: CertificateInfo,
    /// Signs this server's entries and its side of every TLS handshake.
    pub key: SigningKey,
}

impl Credentials {
    /// Puts a certificate and its key together. Errors: foreign or malformed certificate, key of another certificate.
    pub fn new(certificate: &[u8], key: SigningKey, ca: &AuthorityCertificate) -> Result<Self, CertificateError> {
        let info = verify_server_certificate(certificate, ca)?;
        if info.public_key != key.verifying_key().to_bytes() {
            return Err(CertificateError::Malformed("it was issued for another key".into()));
        }
        Ok(Self { certificate: CertificateDer::from(certificate.to_vec()), info, key })
    }

    /// The private key as PKCS#8 DER.
    pub fn key_der(&self) -> PrivatePkcs8KeyDer<'static> {
        key_der(&self.key)
    }
}

/// A new Ed25519 key from the operating system's randomness.
pub fn generate_key() -> Result<SigningKey, CertificateError> {
    let mut seed = [0; 32];
    fill_random(&mut seed)?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Issues a certificate for `name` and its Ed25519 `public_key` and returns its DER form. The caller has made sure
/// that the asker holds the private key. `now_ms` and `validity_ms` are wall-clock milliseconds.
pub fn issue_certificate(
    authority: &Authority,
    name: &ServerName,
    public_key: &[u8; 32],
    now_ms: u64,
    validity_ms: u64,
) -> Result<CertificateDer<'static>, CertificateError> {
    issue_certificate_after(authority, name, public_key, now_ms, validity_ms, None)
}

/// As `issue_certificate`, for a name whose certificates issued at or before `revoked_ms` are refused. That time may be of a
/// clock that was ahead: the new one says that it was issued later, and is valid from now on all the same.
pub fn issue_certificate_after(
    authority: &Authority,
    name: &ServerName,
    public_key: &[u8; 32],
    now_ms: u64,
    validity_ms: u64,
    revoked_ms: Option<u64>,
) -> Result<CertificateDer<'static>, CertificateError> {
    if revoked_ms == Some(u64::MAX) {
        let why = "the file Revoked refuses every certificate of this name; correct its record";
        return Err(CertificateError::Issue(why.into()));
    }
    let issued_ms = now_ms.max(revoked_ms.map_or(0, |revoked_ms| revoked_ms.saturating_add(1)));
    VerifyingKey::from_bytes(public_key).map_err(|_| CertificateError::Issue("this is no Ed25519 key".into()))?;
    let mut parameters = parameters(name.as_str(), issued_ms, now_ms, validity_ms)?;
    let san = name.as_str().try_into().map_err(issue_error)?;
    parameters.subject_alt_names = vec![SanType::DnsName(san)];
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters.use_authority_key_identifier_extension = true;
    let issuer =
        Issuer::from_ca_cert_der(authority.certificate.der(), Ed25519Signer(&authority.key)).map_err(issue_error)?;
    let certificate = parameters.signed_by(&Ed25519Public(*public_key), &issuer).map_err(issue_error)?;
    verify_server_certificate(certificate.der(), &authority.certificate)?;
    Ok(certificate.der().clone())
}

/// Verifies a server certificate (DER) against the CA and reads it. The answer depends on the bytes alone, never on
/// the time: expiry is returned, and checked by TLS only, so that an old log stays verifiable for ever.
pub fn verify_server_certificate(der: &[u8], ca: &AuthorityCertificate) -> Result<CertificateInfo, CertificateError> {
    let malformed = |problem: &str| CertificateError::Malformed(problem.into());
    let certificate = parse(der)?;
    check_signature(&certificate, &ca.public_key, ca.cluster)?;
    if certificate.is_ca() {
        return Err(malformed("it is a CA certificate, not one of a server"));
    }
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if usage.value.server_auth && usage.value.client_auth => {}
        _ => return Err(malformed("it is not meant for a server of the mesh")),
    }
    let names = certificate.subject_alternative_name().map_err(|error| malformed(&error.to_string()))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let [GeneralName::DNSName(name)] = names else {
        return Err(malformed("it does not name exactly one server"));
    };
    let name = ServerName::new(name).map_err(|error| malformed(&error.to_string()))?;
    let serial = certificate.raw_serial();
    let [SERIAL_MARK, issued @ .., _, _, _, _, _, _, _] = serial else {
        return Err(malformed("its serial number holds no issue time"));
    };
    let issued: [u8; 8] = issued.try_into().map_err(|_| malformed("its serial number holds no issue time"))?;
    let issued_ms = u64::from_be_bytes(issued);
    let at = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let validity = certificate.validity();
    let (valid_from_ms, expires_ms) = (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
    Ok(CertificateInfo {
        name,
        public_key: public_key(&certificate)?.to_bytes(),
        issued_ms,
        valid_from_ms,
        expires_ms,
        serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        fingerprint: Digest(*blake3::hash(der).as_bytes()),
    })
}

/// The folder with a server's certificates: `DIR/certs`.
#[derive(Debug, Clone)]
pub struct CertificateDirectory {
    path: PathBuf,
}

impl CertificateDirectory {
    /// Names the folder; nothing is read or made yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `ca.crt` and, if this server shall issue certificates, `ca.key`. Refuses to replace another CA.
    pub fn store_authority(
        &self,
        certificate: &AuthorityCertificate,
        authority: Option<&Authority>,
    ) -> Result<(), CertificateError> {
        self.create()?;
        match self.load_authority_certificate() {
            Ok(present) if present == *certificate => {}
            Err(CertificateError::Missing { .. }) => {}
            Ok(_) | Err(_) => return Err(CertificateError::Exists { path: self.file("ca.crt") }),
        }
        if let Some(authority) = authority {
            self.write("ca.key", &key_pem(&authority.key), 0o600)?;
        }
        self.write("ca.crt", &certificate_pem(certificate.der()), 0o644)
    }

    /// Writes `server.crt` and `server.key`, also over older ones (rotation).
    pub fn store_credentials(&self, credentials: &Credentials) -> Result<(), CertificateError> {
        self.create()?;
        self.write("server.next.crt", &certificate_pem(&credentials.certificate), 0o644)?;
        self.write("server.key", &key_pem(&credentials.key), 0o600)?;
        self.rename("server.next.crt", "server.crt")
    }

    /// Reads `ca.crt`.
    pub fn load_authority_certificate(&self) -> Result<AuthorityCertificate, CertificateError> {
        let path = self.file("ca.crt");
        let der = read_certificate(&path, "make a cluster with `p2pdb init` or join one with `p2pdb join`")?;
        AuthorityCertificate::from_der(&der).map_err(|source| CertificateError::In { path, source: Box::new(source) })
    }

    /// Whether this server can issue certificates, as far as a file tells.
    pub fn holds_authority_key(&self) -> bool {
        self.path.join("ca.key").exists()
    }

    /// Whether there is no certificate and no key here.
    pub fn is_blank(&self) -> bool {
        ["ca.crt", "ca.key", "server.crt", "server.key"].iter().all(|name| !self.file(name).exists())
    }

    /// Reads the CA with its key; `None` on a server that does not hold `ca.key`.
    pub fn load_authority(&self) -> Result<Option<Authority>, CertificateError> {
        let path = self.file("ca.key");
        let key = match read_key(&path, "") {
            Err(CertificateError::Missing { .. }) => return Ok(None),
            read => read?,
        };
        let certificate = self.load_authority_certificate()?;
        if certificate.public_key != key.verifying_key() {
            return Err(CertificateError::KeyMismatch { key: path, certificate: self.file("ca.crt") });
        }
        Ok(Some(Authority { certificate, key }))
    }

    /// Reads the server's certificate and key, and finishes a rotation that a crash interrupted.
    pub fn load_credentials(&self, ca: &AuthorityCertificate) -> Result<Credentials, CertificateError> {
        let hint = "join the cluster with `p2pdb join`, or have a certificate issued with `p2pdb cert issue`";
        let key = read_key(&self.file("server.key"), hint)?;
        let next = self.file("server.next.crt");
        if let Ok(certificate) = read_certificate(&next, "")
            && let Ok(credentials) = Credentials::new(&certificate, key.clone(), ca)
        {
            self.rename("server.next.crt", "server.crt")?;
            return Ok(credentials);
        }
        let path = self.file("server.crt");
        let certificate = read_certificate(&path, hint)?;
        let info = verify_server_certificate(&certificate, ca)
            .map_err(|source| CertificateError::In { path: path.clone(), source: Box::new(source) })?;
        if info.public_key != key.verifying_key().to_bytes() {
            return Err(CertificateError::KeyMismatch { key: self.file("server.key"), certificate: path });
        }
        Ok(Credentials { certificate, info, key })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn create(&self) -> Result<(), CertificateError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|source| CertificateError::Unwritable { path: self.path.clone(), source })
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> Result<(), CertificateError> {
        let path = self.file(name);
        write_atomically(&path, content.as_bytes(), mode)
            .map_err(|source| CertificateError::Unwritable { path, source })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), CertificateError> {
        let path = self.file(to);
        fs::rename(self.file(from), &path)
            .and_then(|()| sync_directory(&self.path))
            .map_err(|source| CertificateError::Unwritable { path, source })
    }
}

/// Replaces a file whole: it is on disk under its name, with this mode, or it is as before.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    // One left over from a crash could have another mode, which opening it again would keep.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Fills `bytes` from the operating system's randomness.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), CertificateError> {
    rustls::crypto::ring::default_provider().secure_random.fill(bytes).map_err(|_| CertificateError::Randomness)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        let problem = format!("it has {} bytes; at most {CERTIFICATE_BYTES_MAX} are allowed", der.len());
        return Err(CertificateError::Malformed(problem));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertificateError::Malformed("bytes follow its end".into())),
        Err(error) => Err(CertificateError::Malformed(error.to_string())),
    }
}

fn public_key(certificate: &X509Certificate<'_>) -> Result<VerifyingKey, CertificateError> {
    let info = certificate.public_key();
    let key: Option<&[u8; 32]> = info.subject_public_key.data.as_ref().try_into().ok();
    key.filter(|_| info.algorithm.algorithm.to_id_string() == ED25519_OID)
        .and_then(|key| VerifyingKey::from_bytes(key).ok())
        .ok_or_else(|| CertificateError::Malformed("its key is not an Ed25519 key".into()))
}

fn check_signature(
    certificate: &X509Certificate<'_>,
    key: &VerifyingKey,
    cluster: ClusterId,
) -> Result<(), CertificateError> {
    let foreign = || CertificateError::ForeignAuthority(cluster);
    let body = certificate.tbs_certificate.as_ref();
    // The parser forgives what the signature does not cover. One certificate shall have one form of bytes.
    let (rest, signature) = certificate.as_raw().split_last_chunk::<64>().ok_or_else(foreign)?;
    let length = u16::try_from(body.len() + SIGNATURE_PREFIX.len() + 64).map_err(|_| foreign())?;
    if rest != [&[0x30, 0x82], &length.to_be_bytes()[..], body, &SIGNATURE_PREFIX].concat() {
        return Err(foreign());
    }
    let signature = Signature::from_bytes(signature);
    // Strict, so that every server gives the same answer about the same bytes.
    key.verify_strict(body, &signature).map_err(|_| foreign())
}

fn parameters(
    common_name: &str,
    issued_ms: u64,
    now_ms: u64,
    validity_ms: u64,
) -> Result<CertificateParams, CertificateError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // A generalized time ends with the year 9999.
    let last_ms = 253_000_000_000_000;
    let at = |time_ms: u64| epoch + Duration::from_millis(time_ms.min(last_ms));
    let mut serial = [0; 16];
    fill_random(&mut serial[9..])?;
    serial[0] = SERIAL_MARK;
    serial[1..9].copy_from_slice(&issued_ms.to_be_bytes());
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = name;
    parameters.not_before = at(now_ms.saturating_sub(BACKDATE_MS));
    parameters.not_after = at(now_ms.saturating_add(validity_ms));
    parameters.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(parameters)
}

fn issue_error(error: rcgen::Error) -> CertificateError {
    CertificateError::Issue(error.to_string())
}

struct Ed25519Public([u8; 32]);

impl PublicKeyData for Ed25519Public {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

struct Ed25519Signer<'a>(&'a SigningKey);

impl PublicKeyData for Ed25519Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.as_ref().as_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl rcgen::SigningKey for Ed25519Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

fn public_key_info(public_key: &[u8; 32]) -> Vec<u8> {
    [&SPKI_PREFIX[..], public_key].concat()
}

fn key_der(key: &SigningKey) -> PrivatePkcs8KeyDer<'static> {
    PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], key.as_bytes()].concat())
}

fn key_pem(key: &SigningKey) -> String {
    pem("PRIVATE KEY", key_der(key).secret_pkcs8_der())
}

fn certificate_pem(der: &[u8]) -> String {
    pem("CERTIFICATE", der)
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for index in 0..4 {
                let digit = ALPHABET[(bits >> (18 - 6 * index)) as usize & 63];
                text.push(if index <= group.len() { digit as char } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn read(path: &Path, hint: &'static str) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CertificateError::Missing { path: path.into(), hint },
        _ => CertificateError::Unreadable { path: path.into(), source },
    })
}

fn read_certificate(path: &Path, hint: &'static str) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(&read(path, hint)?)
        .map_err(|_| CertificateError::Garbage { path: path.into(), wanted: "a certificate" })
}

fn read_key(path: &Path, hint: &'static str) -> Result<SigningKey, CertificateError> {
    let content = read(path, hint)?;
    let mode = fs::metadata(path)
        .map_err(|source| CertificateError::Unreadable { path: path.into(), source })?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CertificateError::Permissions { path: path.into(), mode });
    }
    PrivatePkcs8KeyDer::from_pem_slice(&content)
        .ok()
        .and_then(|der| SigningKey::from_pkcs8_der(der.secret_pkcs8_der()).ok())
        .ok_or_else(|| CertificateError::Garbage { path: path.into(), wanted: "an Ed25519 private key" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_123;

    fn name(text: &str) -> ServerName {
        ServerName::new(text).unwrap()
    }

    fn credentials(authority: &Authority, text: &str, now_ms: u64) -> Credentials {
        let key = generate_key().unwrap();
        let public_key = key.verifying_key().to_bytes();
        let der = issue_certificate(authority, &name(text), &public_key, now_ms, SERVER_VALIDITY_MS).unwrap();
        Credentials::new(&der, key, authority.certificate()).unwrap()
    }

    #[test]
    fn a_certificate_reads_as_it_was_issued() {
        let authority = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        // Names that are legal here and awkward as DNS names.
        for text in ["mail", "S1", "10.0.0.1", "a..b", "web_1-", &"x".repeat(63)] {
            let made = credentials(&authority, text, NOW_MS);
            assert_eq!(made.info.name, name(text));
            assert_eq!(made.info.issued_ms, NOW_MS);
            assert_eq!(made.info.expires_ms, (NOW_MS + SERVER_VALIDITY_MS) / 1000 * 1000);
            assert_eq!(made.info.public_key, made.key.verifying_key().to_bytes());
        }
    }

    #[test]
    fn a_certificate_of_a_name_that_was_revoked_is_newer_and_valid_at_once() {
        let authority = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        let public_key = generate_key().unwrap().verifying_key().to_bytes();
        let issued = |revoked_ms| {
            let der =
                issue_certificate_after(&authority, &name("mail"), &public_key, NOW_MS, SERVER_VALIDITY_MS, revoked_ms);
            verify_server_certificate(&der.unwrap(), authority.certificate()).unwrap()
        };
        assert_eq!(issued(None).issued_ms, NOW_MS);
        assert_eq!(issued(Some(NOW_MS - 1)).issued_ms, NOW_MS);
        let ahead = issued(Some(NOW_MS + 2 * DAY_MS));
        assert_eq!(ahead.issued_ms, NOW_MS + 2 * DAY_MS + 1);
        assert_eq!(ahead.expires_ms, issued(None).expires_ms);
        assert!(ahead.is_valid_at(NOW_MS) && ahead.is_valid_at(NOW_MS - DAY_MS + 1000));
        assert!(!ahead.is_valid_at(NOW_MS - DAY_MS - 1000) && !ahead.is_valid_at(NOW_MS + SERVER_VALIDITY_MS));
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let authority = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        let made = credentials(&authority, "mail", NOW_MS);
        for index in 0..made.certificate.len() {
            let mut bytes = made.certificate.to_vec();
            bytes[index] ^= 1;
            assert!(verify_server_certificate(&bytes, authority.certificate()).is_err(), "byte {index}");
            assert!(verify_server_certificate(&bytes[..index], authority.certificate()).is_err());
        }
    }

    #[test]
    fn foreign_and_authority_certificates_are_refused() {
        let ours = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        let theirs = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        assert_ne!(ours.certificate().cluster(), theirs.certificate().cluster());
        let foreign = credentials(&theirs, "mail", NOW_MS);
        let refused = verify_server_certificate(&foreign.certificate, ours.certificate());
        assert!(matches!(refused, Err(CertificateError::ForeignAuthority(_))), "{refused:?}");
        assert!(verify_server_certificate(ours.certificate().der(), ours.certificate()).is_err());
        assert!(AuthorityCertificate::from_der(&foreign.certificate).is_err());
    }

    #[test]
    fn the_directory_keeps_what_it_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let directory = CertificateDirectory::new(folder.path().join("certs"));
        let authority = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        let made = credentials(&authority, "mail", NOW_MS);
        directory.store_authority(authority.certificate(), Some(&authority)).unwrap();
        directory.store_credentials(&made).unwrap();
        let ca = directory.load_authority_certificate().unwrap();
        assert_eq!(ca.cluster(), authority.certificate().cluster());
        assert!(directory.load_authority().unwrap().is_some());
        assert_eq!(directory.load_credentials(&ca).unwrap().info, made.info);
        for key in ["ca.key", "server.key"] {
            let mode = fs::metadata(directory.file(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        let other = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        let refused = directory.store_authority(other.certificate(), Some(&other));
        assert!(matches!(refused, Err(CertificateError::Exists { .. })));
    }

    #[test]
    fn a_crash_within_a_rotation_leaves_a_pair() {
        let folder = tempfile::tempdir().unwrap();
        let directory = CertificateDirectory::new(folder.path());
        let authority = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        let ca = authority.certificate();
        let (old, new) = (credentials(&authority, "mail", NOW_MS), credentials(&authority, "mail", NOW_MS + 1));
        directory.store_credentials(&old).unwrap();
        directory.write("server.next.crt", &certificate_pem(&new.certificate), 0o644).unwrap();
        assert_eq!(directory.load_credentials(ca).unwrap().info, old.info);
        directory.write("server.key", &key_pem(&new.key), 0o600).unwrap();
        assert_eq!(directory.load_credentials(ca).unwrap().info, new.info);
        assert_eq!(directory.load_credentials(ca).unwrap().info, new.info);
    }

    #[test]
    fn errors_name_the_file_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let directory = CertificateDirectory::new(folder.path());
        let authority = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        let ca = authority.certificate();
        let message = |directory: &CertificateDirectory| directory.load_credentials(ca).err().unwrap().to_string();

        let missing = message(&directory);
        assert!(missing.contains("server.key: not found; join the cluster"), "{missing}");
        directory.store_credentials(&credentials(&authority, "mail", NOW_MS)).unwrap();
        fs::set_permissions(directory.file("server.key"), fs::Permissions::from_mode(0o640)).unwrap();
        let open = message(&directory);
        assert!(open.contains("(mode 0640); run: chmod 600") && open.contains("server.key"), "{open}");
        fs::set_permissions(directory.file("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(directory.file("server.crt"), "junk").unwrap();
        let junk = message(&directory);
        assert!(junk.contains("server.crt: not a PEM file with a certificate"), "{junk}");

        let theirs = Authority::generate(NOW_MS, AUTHORITY_VALIDITY_MS).unwrap();
        directory.store_credentials(&credentials(&theirs, "mail", NOW_MS)).unwrap();
        let foreign = message(&directory);
        assert!(foreign.contains("server.crt") && foreign.contains("another cluster"), "{foreign}");
        fs::remove_file(directory.file("server.crt")).unwrap();
        fs::create_dir(directory.file("server.crt")).unwrap();
        let unreadable = message(&directory);
        assert!(unreadable.contains("server.crt: cannot be read"), "{unreadable}");
    }
}
