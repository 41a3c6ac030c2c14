//! What operators want of management: `found`, `recover`, `failback`, `confirm-dead`, `drain`, `maintenance`.

use std::io::{IsTerminal, Write};

use clap::{Args, Subcommand};

use super::edits::{EditArgs, Level, tell};
use super::error::{Answer, Failure, Outcome};
use super::files::fetch;
use super::original::call_patiently;
use super::output::printable;
use super::{DirectoryArgs, Session, on_behalf_of, server_name};
use crate::core::diff::Change;
use crate::core::id::{FileName, ServerName};
use crate::core::io::Edit;
use crate::core::management::OperatorCommand;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::edge::control::{Edited, Request, Response};

/// How long a decision may take: without a quorum it takes until there is one.
const DECISION_PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct FoundArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The server that is to be played by a stand-in
    #[arg(value_parser = server_name)]
    server: ServerName,
    /// Where; the least busy host if left out
    #[arg(long, value_name = "HOST", value_parser = server_name)]
    on: Option<ServerName>,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct ServerArgs {
    #[arg(value_parser = server_name)]
    server: ServerName,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct ConfirmDeadArgs {
    /// The server that certainly does not serve any more
    #[arg(value_parser = server_name)]
    server: ServerName,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MaintenanceArgs {
    #[command(subcommand)]
    change: Option<MaintenanceChange>,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Subcommand)]
enum MaintenanceChange {
    /// From now on the server is not recovered, however it looks, and takes no stand-ins
    On {
        #[arg(value_parser = server_name)]
        server: ServerName,
        /// Why, for the others
        #[arg(long, value_name = "TEXT", default_value = "maintenance")]
        reason: String,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// The server is looked after again
    Off {
        #[arg(value_parser = server_name)]
        server: ServerName,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
}

pub fn found(args: &FoundArgs, session: &mut Session) -> Outcome {
    operate(&args.directory, OperatorCommand::Found, session)
}

pub fn recover(args: RecoverArgs, session: &mut Session) -> Outcome {
    operate(&args.directory, OperatorCommand::Recover { target: args.server, host: args.on }, session)
}

pub fn failback(args: ServerArgs, session: &mut Session) -> Outcome {
    operate(&args.directory, OperatorCommand::Failback { target: args.server }, session)
}

pub fn confirm_dead(args: ConfirmDeadArgs, session: &mut Session) -> Outcome {
    let target = args.server;
    if !args.yes && !is_confirmed(&target)? {
        return Err(Failure::input("nothing was done", "type the name of the server, or say --yes"));
    }
    operate(&args.directory, OperatorCommand::ConfirmDead { target }, session)
}

/// If it still serves, two will answer at its address: so its name has to be typed.
fn is_confirmed(target: &ServerName) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        let what = format!("{target} would be taken for dead without anybody's word");
        return Err(Failure::input(what, "say --yes where nobody can be asked"));
    }
    let prompt = format!(
        "If {target} still serves somewhere, two servers will answer at its address.\n\
         Type its name if you are certain that it does not: "
    );
    let mut line = String::new();
    std::io::stderr().write_all(prompt.as_bytes()).map_err(Failure::Output)?;
    std::io::stdin().read_line(&mut line).map_err(Failure::Output)?;
    Ok(line.trim() == target.as_str())
}

pub fn drain(args: ServerArgs, session: &mut Session) -> Outcome {
    let reason = "it is drained";
    let _ = set_maintenance(&args.directory, &args.server, Some(reason))?;
    operate(&args.directory, OperatorCommand::Drain { host: args.server }, session)
}

fn operate(directory: &DirectoryArgs, command: OperatorCommand, session: &mut Session) -> Outcome {
    let request = Request::Operator { command, on_behalf_of: on_behalf_of() };
    let what = match call_patiently(directory, &request, DECISION_PATIENCE) {
        Ok(Response::Operated { what }) => what,
        Ok(other) => return Err(Failure::of_response(other)),
        Err(failure) => return Err(failure),
    };
    if session.output.is_json() {
        session.output.json(&serde_json::json!({ "done": what }))?;
    } else {
        session.output.line(printable(&what))?;
    }
    Ok(Answer::Yes)
}

pub fn maintenance(args: MaintenanceArgs, session: &mut Session) -> Outcome {
    let (directory, server, reason) = match args.change {
        None => return list_maintenance(&args.directory, session),
        Some(MaintenanceChange::On { server, reason, directory }) => (directory, server, Some(reason)),
        Some(MaintenanceChange::Off { server, directory }) => (directory, server, None),
    };
    match set_maintenance(&directory, &server, reason.as_deref())? {
        Some(edited) => tell(&mut session.output, &edited, edit_args("").timeout),
        None => {
            super::output::note(format_args!("{server} is in that state already"));
            Ok(Answer::Yes)
        }
    }
}

fn edit_args(reason: &str) -> EditArgs {
    EditArgs { wait: Level::Local, timeout: std::time::Duration::from_secs(10), reason: reason.to_owned() }
}

/// Writes the record of a server in the file `Maintenance`, or takes it away. `None`: nothing had to be done.
fn set_maintenance(
    directory: &DirectoryArgs,
    server: &ServerName,
    reason: Option<&str>,
) -> Result<Option<Edited>, Failure> {
    let held = records(directory, file::MAINTENANCE)?;
    let is_known =
        reason.is_none() || records(directory, file::SERVER)?.iter().any(|row| row.field(0) == server.as_str());
    if !is_known {
        return Err(Failure::input(format!("there is no server {server}"), "p2pdb status shows the members"));
    }
    let before = held.into_iter().find(|row| row.field(0) == server.as_str());
    let after = match reason {
        Some(reason) => Some(
            Record::new([server.as_str(), reason])
                .map_err(|error| Failure::input(format!("--reason: {error}"), "give one short line"))?,
        ),
        None => None,
    };
    let change = match (before, after) {
        (None, None) => return Ok(None),
        (Some(before), Some(after)) if before == after => return Ok(None),
        (None, Some(after)) => Change::Add(after),
        (Some(before), Some(after)) => Change::Mod { before, after },
        (Some(before), None) => Change::Del(before),
    };
    let file = FileName::new(file::MAINTENANCE).expect("built-in file names are well formed");
    let edit = edit_args(reason.unwrap_or("the maintenance is over"));
    let request = edit.request(vec![Edit { file, change, bases: None }]);
    edit.submit(directory, &request).map(Some)
}

fn list_maintenance(directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let rows = records(directory, file::MAINTENANCE)?;
    for row in &rows {
        if session.output.is_json() {
            session.output.json(&serde_json::json!({ "server": row.field(0), "reason": row.field(1) }))?;
        } else {
            session.output.line(format_args!("{}: {}", row.field(0), printable(row.field(1))))?;
        }
    }
    Ok(Answer::Yes)
}

/// The records of a file, as the daemon holds them.
fn records(directory: &DirectoryArgs, name: &str) -> Result<Vec<Record>, Failure> {
    let file = FileName::new(name).expect("built-in file names are well formed");
    Ok(fetch(directory, &file)?.files.records_of(name).cloned().collect())
}
