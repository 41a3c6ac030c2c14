//! `p2pdb decisions`: the decision chain as this server knows it, read from `Decision.dat` without its daemon.

use clap::Args;
use serde::Serialize;

use super::error::{Answer, Failure, Outcome};
use super::output::{Style, printable};
use super::time::format_ms;
use super::{DirectoryArgs, Session};
use crate::core::decision::{Decision, Slot};
use crate::core::id::ServerName;
use crate::edge::decision_log;

#[derive(Debug, Args)]
pub struct DecisionsArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
}

/// A decision as JSON.
#[derive(Debug, Serialize)]
pub struct DecisionView<'a> {
    decision: Slot,
    time_ms: u64,
    by: &'a ServerName,
    author: &'a str,
    act: String,
    reason: &'a str,
}

impl<'a> DecisionView<'a> {
    pub fn of(decision: &'a Decision) -> Self {
        Self {
            decision: decision.slot,
            time_ms: decision.wall_ms,
            by: &decision.by,
            author: &decision.author,
            act: decision.act.to_string(),
            reason: &decision.reason,
        }
    }
}

pub fn run(args: DecisionsArgs, session: &mut Session) -> Outcome {
    let decisions = read(&args.directory)?;
    let zone = session.zone.clone();
    for decision in &decisions {
        if session.output.is_json() {
            session.output.json(&DecisionView::of(decision))?;
            continue;
        }
        let time = session.output.paint(Style::Dim, format_ms(decision.wall_ms, &zone));
        let by = match decision.author.as_str() {
            "p2pdb" => decision.by.to_string(),
            author => format!("{} for {}", decision.by, printable(author)),
        };
        session.output.line(format_args!("{:>4}  {time}  {}  ({by})", decision.slot, decision.act))?;
        let reason = session.output.paint(Style::Dim, format_args!("      {}", printable(&decision.reason)));
        session.output.line(reason)?;
    }
    if decisions.is_empty() {
        super::output::note("no decision has been made: the group only shares files, until p2pdb found");
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

/// The decisions that the server of a directory knows.
pub fn read(directory: &DirectoryArgs) -> Result<Vec<std::sync::Arc<Decision>>, Failure> {
    let path = directory.directory.join(decision_log::FILE_NAME);
    if directory.directory.is_dir() && !path.exists() {
        return Ok(Vec::new());
    }
    let file =
        decision_log::read(&directory.directory).map_err(|error| Failure::Storage(super::error::Report::of(error)))?;
    Ok(file.memory.decisions)
}
