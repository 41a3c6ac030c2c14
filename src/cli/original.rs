//! `p2pdb original`: the original servers that hosts keep ready.

use std::time::Duration;

use clap::Subcommand;

use super::error::{Answer, Failure, Outcome};
use super::output::{Style, printable};
use super::{DirectoryArgs, Session};
use crate::edge::control::{OriginalCheck, OriginalView, Request, Response};

/// How long making or trying all originals of a host may take.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Subcommand)]
pub enum OriginalCommand {
    /// The original servers of all hosts
    List {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Make those of this host anew that are broken and that no recovery uses
    Prepare {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Resume each of this host that is suspended, see that it answers, and put it back
    Check {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
}

pub fn run(command: OriginalCommand, session: &mut Session) -> Outcome {
    match command {
        OriginalCommand::List { directory } => list(&directory, session),
        OriginalCommand::Prepare { directory } => prepare(&directory, session),
        OriginalCommand::Check { directory } => check(&directory, session),
    }
}

fn list(directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    match directory.call(&Request::Originals)? {
        Response::Originals(originals) => show(originals, session).map(|()| Answer::Yes),
        other => Err(Failure::of_response(other)),
    }
}

fn prepare(directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    match call_patiently(directory, &Request::OriginalsPrepare, PATIENCE)? {
        Response::Originals(originals) => {
            let broken = originals.iter().any(|original| original.state == "broken");
            show(originals, session)?;
            Ok(if broken { Answer::No } else { Answer::Yes })
        }
        other => Err(Failure::of_response(other)),
    }
}

fn check(directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let checked = match call_patiently(directory, &Request::OriginalsCheck, PATIENCE)? {
        Response::OriginalsChecked(checked) => checked,
        other => return Err(Failure::of_response(other)),
    };
    let good = checked.iter().all(|check| check.failure.is_none());
    for OriginalCheck { original, failure } in checked {
        if session.output.is_json() {
            session.output.json(&serde_json::json!({ "original": original, "failure": failure }))?;
            continue;
        }
        let line = match failure {
            None => session.output.paint(Style::Good, format_args!("{original}: ready")),
            Some(why) => session.output.paint(Style::Bad, format_args!("{original}: {}", printable(&why))),
        };
        session.output.line(line)?;
    }
    Ok(if good { Answer::Yes } else { Answer::No })
}

/// A call that the daemon answers when the work is done.
pub(super) fn call_patiently(
    directory: &DirectoryArgs,
    request: &Request,
    patience: Duration,
) -> Result<Response, Failure> {
    let mut client = directory.connect()?;
    client.set_timeout(Some(patience))?;
    Ok(client.call(request)?)
}

fn show(originals: Vec<OriginalView>, session: &mut Session) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for original in originals {
        if session.output.is_json() {
            session.output.json(&original)?;
            continue;
        }
        let OriginalView { host, original, state, target, note } = original;
        let target = target.map_or_else(|| "-".into(), |target| target.to_string());
        rows.push(vec![printable(&host), printable(&original), printable(&state), target, printable(&note)]);
    }
    match session.output.is_json() {
        true => Ok(()),
        false => session.output.table(&["HOST", "ORIGINAL", "STATE", "PLAYS", "NOTE"], &[], rows),
    }
}
