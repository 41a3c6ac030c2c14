//! `p2pdb cert`: the cluster CA and the certificates of servers.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::error::{Answer, Failure, Outcome};
use super::files::fetch;
use super::time::{format_age, format_ms};
use super::{DirectoryArgs, Session, server_name, wall_clock_ms};
use crate::core::id::{FileName, ServerName};
use crate::core::schema::file;
use crate::edge::certificate::{
    Authority, CertificateDirectory, CertificateInfo, Credentials, SERVER_VALIDITY_MS, generate_key,
    issue_certificate_after,
};
use crate::edge::control::{CertificateView, Request, Response};

#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Print the cluster id and whether this server can issue certificates
    Ca {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Issue a certificate for a server by hand, on a server that holds the CA's key
    Issue {
        /// The name of that server
        #[arg(long, value_parser = server_name)]
        name: ServerName,
        /// The folder for ca.crt, server.crt and server.key; copy it to DIR/certs of that server
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// How long the certificate is good
        #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=7300))]
        days: u64,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Give this server a new key and certificate, without a restart
    Rotate {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Show this server's certificate
    Show {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
}

pub fn run(command: CertCommand, session: &mut Session) -> Outcome {
    match command {
        CertCommand::Ca { directory } => authority(&directory, session),
        CertCommand::Issue { name, out, days, directory } => {
            issue(&name, &out, days * 24 * 3600 * 1000, &directory, session)
        }
        CertCommand::Rotate { directory } => match directory.call(&Request::CertificateRotate)? {
            Response::Certificate(certificate) => show(&certificate, session),
            other => Err(Failure::of_response(other)),
        },
        CertCommand::Show { directory } => {
            let certificates = CertificateDirectory::new(directory.directory.join("certs"));
            let credentials = certificates.load_credentials(&certificates.load_authority_certificate()?)?;
            show(&view(credentials.info), session)
        }
    }
}

/// Makes a key and a certificate for it; `revoked_ms` as in `issue_certificate_after`.
pub fn new_credentials(
    authority: &Authority,
    name: &ServerName,
    validity_ms: u64,
    revoked_ms: Option<u64>,
) -> Result<Credentials, Failure> {
    let key = generate_key()?;
    let public_key = key.verifying_key().to_bytes();
    let certificate = issue_certificate_after(authority, name, &public_key, wall_clock_ms(), validity_ms, revoked_ms)?;
    Ok(Credentials::new(&certificate, key, authority.certificate())?)
}

/// How long a server's certificate is good for by default.
pub const VALIDITY_MS: u64 = SERVER_VALIDITY_MS;

fn authority(directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let certificates = CertificateDirectory::new(directory.directory.join("certs"));
    let certificate = certificates.load_authority_certificate()?;
    let issues = certificates.load_authority()?.is_some();
    if session.output.is_json() {
        #[derive(Serialize)]
        struct View {
            cluster: String,
            issues: bool,
            certificate: PathBuf,
        }
        let path = certificates.path().join("ca.crt");
        session.output.json(&View { cluster: certificate.cluster().to_string(), issues, certificate: path })?;
    } else {
        session.output.line(format_args!("cluster      {}", certificate.cluster()))?;
        session.output.line(format_args!("certificate  {}", certificates.path().join("ca.crt").display()))?;
        let can = if issues { "yes, its key is here" } else { "no, its key is on another server" };
        session.output.line(format_args!("issues       {can}"))?;
    }
    Ok(Answer::Yes)
}

fn issue(name: &ServerName, out: &Path, validity_ms: u64, directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let certificates = CertificateDirectory::new(directory.directory.join("certs"));
    let authority = certificates.load_authority()?.ok_or_else(|| {
        Failure::input(
            format!("{}/ca.key is not here, so this server cannot issue certificates", certificates.path().display()),
            "do it on the server where the cluster was made",
        )
    })?;
    super::check_new_directory(out)?;
    let credentials = new_credentials(&authority, name, validity_ms, revoked_ms(name, directory))?;
    let target = CertificateDirectory::new(out);
    target.store_authority(authority.certificate(), None)?;
    target.store_credentials(&credentials)?;
    show(&view(credentials.info), session)
}

/// When a server of this name was removed, as the daemon knows it. Without a daemon the clock alone has to do.
fn revoked_ms(name: &ServerName, directory: &DirectoryArgs) -> Option<u64> {
    let fetched = fetch(directory, &FileName::new(file::REVOKED).ok()?).ok()?;
    fetched.files.builtin(file::REVOKED)?.record(name.as_str())?.field(1).parse().ok()
}

fn view(info: CertificateInfo) -> CertificateView {
    let CertificateInfo { name, issued_ms, expires_ms, serial, fingerprint, .. } = info;
    CertificateView { name, issued_ms, expires_ms, serial, fingerprint }
}

fn show(certificate: &CertificateView, session: &mut Session) -> Outcome {
    if session.output.is_json() {
        session.output.json(certificate)?;
        return Ok(Answer::Yes);
    }
    let zone = &session.zone;
    let left_ms = certificate.expires_ms.saturating_sub(wall_clock_ms());
    let output = &mut session.output;
    output.line(format_args!("server       {}", certificate.name))?;
    output.line(format_args!("issued       {}", format_ms(certificate.issued_ms, zone)))?;
    output.line(format_args!(
        "expires      {} (in {})",
        format_ms(certificate.expires_ms, zone),
        format_age(left_ms)
    ))?;
    output.line(format_args!("serial       {}", certificate.serial))?;
    output.line(format_args!("fingerprint  {}", certificate.fingerprint))?;
    Ok(Answer::Yes)
}
