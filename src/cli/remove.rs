//! `p2pdb remove`: takes a server out of the cluster for good.

use clap::Args;

use super::edits::{EditArgs, tell};
use super::error::Outcome;
use super::{DirectoryArgs, Session, on_behalf_of, server_name};
use crate::core::id::ServerName;
use crate::edge::control::Request;

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The server; its certificates are revoked on every member at once
    #[arg(value_parser = server_name)]
    server: ServerName,
    /// Why, for those who read the log later
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub fn run(args: RemoveArgs, session: &mut Session) -> Outcome {
    let edit = EditArgs {
        wait: super::edits::Level::Local,
        timeout: std::time::Duration::from_secs(10),
        reason: args.reason.clone(),
    };
    let request = Request::MemberRemove { name: args.server, on_behalf_of: on_behalf_of(), reason: args.reason };
    let edited = edit.submit(&args.directory, &request)?;
    tell(&mut session.output, &edited, edit.timeout)
}
