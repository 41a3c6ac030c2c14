//! `p2pdb procedure`: the installation procedures, which all members share as bundles named `procedure.SERVER`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;

use super::bundle::{all, fetch, send};
use super::error::{Answer, Failure, Outcome};
use super::original::call_patiently;
use super::output::{Style, human_bytes, printable};
use super::{DirectoryArgs, Session, server_name};
use crate::core::id::ServerName;
use crate::core::service::PROCEDURE_PREFIX;
use crate::edge::control::{ProcedureTest, Request, Response};
use crate::edge::procedure::{DEADLINE_S_MAX, MANIFEST, Procedure, ProcedureError};

/// Beyond the deadline of a procedure: resuming the original and putting it back.
const TEST_MARGIN_S: u64 = 60;

#[derive(Debug, Subcommand)]
pub enum ProcedureCommand {
    /// Check a folder with a procedure and share it; the server's earlier procedure is replaced
    Put {
        /// The folder, with procedure.toml and install.sh
        folder: PathBuf,
        /// The server that an original server plays after it; left out, the manifest's target
        #[arg(long, value_parser = server_name)]
        server: Option<ServerName>,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// The procedures there are
    List {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// A server's procedure: its manifest and its files
    Show {
        #[arg(value_parser = server_name)]
        server: ServerName,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Run a server's procedure in an original server of this host, without the address, and put it back
    Test {
        #[arg(value_parser = server_name)]
        server: ServerName,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
}

pub fn run(command: ProcedureCommand, session: &mut Session) -> Outcome {
    match command {
        ProcedureCommand::Put { folder, server, directory } => put(&folder, server, &directory, session),
        ProcedureCommand::List { directory } => list(&directory, session),
        ProcedureCommand::Show { server, directory } => show(&server, &directory, session),
        ProcedureCommand::Test { server, directory } => test(server, &directory, session),
    }
}

fn put(folder: &Path, server: Option<ServerName>, directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let procedure = Procedure::of_folder(folder)?;
    let server = match (server, procedure.manifest.target.clone()) {
        (Some(server), Some(target)) if server != target => {
            return Err(Failure::input(
                format!("the procedure in {} is for {target}, not for {server}", folder.display()),
                format!("correct or remove target in {MANIFEST}"),
            ));
        }
        (Some(server), _) | (None, Some(server)) => server,
        (None, None) => {
            return Err(Failure::input(
                format!("it is not said for which server the procedure in {} is", folder.display()),
                format!("give --server, or set target in {MANIFEST}"),
            ));
        }
    };
    send(format!("{PROCEDURE_PREFIX}{server}"), &procedure.bundle(), directory, session)
}

fn list(directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let mut rows = Vec::new();
    for bundle in all(directory)? {
        let Some(server) = bundle.name.strip_prefix(PROCEDURE_PREFIX) else { continue };
        if session.output.is_json() {
            session.output.json(&serde_json::json!({
                "server": server, "size_bytes": bundle.size_bytes, "digest": bundle.digest.to_string(),
                "here": bundle.here,
            }))?;
            continue;
        }
        let here = if bundle.here { "yes" } else { "no" };
        rows.push(vec![server.into(), human_bytes(bundle.size_bytes), bundle.digest.to_string(), here.into()]);
    }
    if !session.output.is_json() {
        session.output.table(&["SERVER", "SIZE", "DIGEST", "HERE"], &[1], rows)?;
    }
    Ok(Answer::Yes)
}

fn show(server: &ServerName, directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let procedure = Procedure::of_bundle(&fetch(&format!("{PROCEDURE_PREFIX}{server}"), directory)?)?;
    let manifest = String::from_utf8_lossy(&procedure.files[MANIFEST]);
    if session.output.is_json() {
        let files: Vec<_> = procedure
            .files
            .iter()
            .map(|(name, content)| serde_json::json!({ "name": name, "size_bytes": content.len() }))
            .collect();
        session.output.json(&serde_json::json!({ "server": server, "manifest": manifest, "files": files }))?;
        return Ok(Answer::Yes);
    }
    for line in manifest.lines() {
        session.output.line(printable(line))?;
    }
    session.output.line("")?;
    let files = procedure.files.iter();
    let rows = files.map(|(name, content)| vec![printable(name), human_bytes(content.len() as u64)]).collect();
    session.output.table(&["FILE", "SIZE"], &[1], rows)?;
    Ok(Answer::Yes)
}

fn test(server: ServerName, directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let patience = Duration::from_secs(DEADLINE_S_MAX + TEST_MARGIN_S);
    let tested = match call_patiently(directory, &Request::ProcedureTest { server }, patience)? {
        Response::ProcedureTested(tested) => tested,
        other => return Err(Failure::of_response(other)),
    };
    let answer = if tested.failure.is_none() { Answer::Yes } else { Answer::No };
    if session.output.is_json() {
        session.output.json(&tested)?;
        return Ok(answer);
    }
    let ProcedureTest { server, original, resumed_ms, installed_ms, output, failure } = tested;
    let took = match (resumed_ms, installed_ms) {
        (Some(resumed), Some(installed)) => format!(" (resumed in {resumed} ms, installed in {installed} ms)"),
        _ => String::new(),
    };
    let line = match failure {
        None => session.output.paint(Style::Good, format_args!("{original} can play {server}{took}")),
        Some(why) => session.output.paint(Style::Bad, format_args!("{original}: {}", printable(&why))),
    };
    session.output.line(line)?;
    if !output.is_empty() {
        session.output.line(printable(&output))?;
    }
    Ok(answer)
}

impl From<ProcedureError> for Failure {
    fn from(error: ProcedureError) -> Self {
        Self::Input(super::error::Report::of(error))
    }
}
