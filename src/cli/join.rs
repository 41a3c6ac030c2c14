//! `p2pdb join`: makes this machine a member of a cluster.

use std::net::SocketAddr;
use std::path::Path;

use clap::Args;

use super::error::{Failure, Outcome, Report};
use super::init::{ServerArgs, become_owner, create_directory, told};
use super::{DirectoryArgs, Session, check_new_directory, is_unfinished};
use crate::daemon::FOUNDING_FILE;
use crate::edge::certificate::CertificateDirectory;
use crate::edge::config::{Config, Identity, check_listen};
use crate::edge::join::{JoinError, Joined, join};
use crate::edge::token::{Token, TokenError};

#[derive(Debug, Args)]
pub struct JoinArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
    /// The server where the token was made
    #[arg(long, value_name = "IP:PORT", value_parser = check_listen)]
    peer: SocketAddr,
    /// What `p2pdb token` printed there; also read from P2PDB_TOKEN, so that it need not be seen in `ps`
    #[arg(long, env = "P2PDB_TOKEN", hide_env_values = true)]
    token: String,
}

pub fn run(args: JoinArgs, session: &mut Session) -> Outcome {
    let directory = args.directory.directory;
    become_owner(&directory)?;
    let token: Token = args.token.trim().parse().map_err(|error: TokenError| Failure::Input(Report::of(error)))?;
    let certificates = CertificateDirectory::new(directory.join("certs"));
    if !may_be_repeated(&directory, &certificates, &token) {
        check_new_directory(&directory)?;
    }
    let mut identity = args.server.identity(&directory)?;
    // Made before anybody is asked: a token is not to be spent for a directory that cannot be.
    let is_new = !directory.exists();
    create_directory(&directory)?;
    let joined = ask_to_join(args.peer, &token, &identity);
    if joined.is_err() && is_new {
        // It is empty; if it cannot be removed, it stands in nobody's way.
        let _ = std::fs::remove_dir(&directory);
    }
    let Joined { cluster, ca, credentials, members } = joined?;
    certificates.store_authority(&ca, None)?;
    certificates.store_credentials(&credentials)?;
    identity.peers = members.into_iter().filter(|(name, _)| *name != identity.name).collect();
    // Last: a directory without settings is no server, whatever was interrupted.
    let config = Config::create(&directory, &identity)?;
    told(&config, &cluster.to_string(), session)
}

/// Whether all that is here is of a join to the same group that was cut off: another token brings another certificate.
fn may_be_repeated(directory: &Path, certificates: &CertificateDirectory, token: &Token) -> bool {
    let same_group = || match certificates.load_authority_certificate() {
        Ok(ca) => ca.cluster() == token.cluster,
        Err(_) => certificates.is_blank(),
    };
    let founds = directory.join(FOUNDING_FILE).exists() || certificates.holds_authority_key();
    is_unfinished(directory) && !founds && same_group()
}

fn ask_to_join(peer: SocketAddr, token: &Token, identity: &Identity) -> Result<Joined, Failure> {
    let failed = |what: String, hint: &str| Failure::Daemon(Report::new(what, hint));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("the network cannot be used: {error}"), ""))?;
    runtime.block_on(join(peer, token, &identity.name, identity.listen)).map_err(|error| {
        let hint = match &error {
            JoinError::Unreachable { reason, .. } if reason.contains("the join token to cluster") => {
                "take a token of the cluster that is at this address, or the address of the token's cluster"
            }
            JoinError::Unreachable { .. } => {
                "is its daemon running, and does its firewall let UDP through to that port?"
            }
            JoinError::Refused { reason, .. } if reason.contains("token") => {
                "a token is for one server and one time; make another with: p2pdb token"
            }
            JoinError::Refused { .. } => "nothing has changed, and the token is still good",
            JoinError::Answer { .. } => "nothing has changed here; take another token and try again",
            JoinError::Local(_) => "nothing has changed here; try again",
        };
        failed(error.to_string(), hint)
    })
}
