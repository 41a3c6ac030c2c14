//! `p2pdb why SERVER`: what happened to a server, step by step, and what it waits for now.
//!
//! From the log (what was done), `Decision.dat` (what was decided) and the daemon, if it runs (what is waited for).

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::decisions;
use super::error::{Answer, Failure, Outcome};
use super::log::{Log, Piece};
use super::output::{Output, Style, note, printable};
use super::time::format_ms;
use super::{DirectoryArgs, Session, server_name};
use crate::core::clock::Timestamp;
use crate::core::decision::{Act, Decision};
use crate::core::diff::{Change, Diff};
use crate::core::id::ServerName;
use crate::core::management::{ManagementReport, WorkReport};
use crate::core::schema::file;
use crate::edge::control::{Client, Request, Response};

#[derive(Debug, Args)]
pub struct WhyArgs {
    #[arg(value_parser = server_name)]
    server: ServerName,
    /// From the first record on, not only what happened since the last failure
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
}

/// Steps that are so close together may be written in any order.
const SAME_MOMENT_MS: u64 = 100;

/// One step of the story.
#[derive(Debug, Clone, Serialize)]
struct Step {
    time_ms: u64,
    /// Who wrote or proposed it.
    by: ServerName,
    /// In a few words.
    what: String,
    /// The reason, with the figures that were used; may be empty.
    detail: String,
    /// Whether a failure begins here.
    #[serde(skip)]
    begins: bool,
}

#[derive(Debug, Serialize)]
struct Story {
    server: ServerName,
    now: String,
    steps: Vec<Step>,
    waits: Vec<WorkReport>,
}

pub fn run(args: WhyArgs, session: &mut Session) -> Outcome {
    let chain = decisions::read(&args.directory)?;
    let mut steps = read_steps(&args, &chain)?;
    if !args.all {
        let begin = steps.iter().rposition(|step| step.begins).unwrap_or(0);
        steps.drain(..begin);
    }
    let report = live(&args.directory);
    let story = Story {
        now: state(&args.server, &chain, report.as_ref()),
        waits: report.map(|report| waits(&args.server, report)).unwrap_or_default(),
        steps,
        server: args.server,
    };
    if session.output.is_json() {
        session.output.json(&story)?;
    } else {
        show(&story, session)?;
    }
    Ok(if story.steps.is_empty() { Answer::No } else { Answer::Yes })
}

/// Every change of the files about the server, and every decision about it, in order.
fn read_steps(args: &WhyArgs, chain: &[std::sync::Arc<Decision>]) -> Result<Vec<Step>, Failure> {
    let mut found: BTreeMap<(u64, Timestamp, u32), Step> = BTreeMap::new();
    let mut log = Log::open(std::slice::from_ref(&args.directory.directory))?;
    let mut number = 0;
    while let Some(piece) = log.next_piece()? {
        let sealed = match piece {
            Piece::Entry(logged) => logged.sealed,
            Piece::Damage(damage) => {
                note(damage.text());
                continue;
            }
        };
        let entry = sealed.entry();
        for diff in &entry.diffs {
            let Some(mut step) = step_of(diff, &args.server) else { continue };
            number += 1;
            step.time_ms = entry.time.wall_ms();
            step.by = entry.id.stream.origin.clone();
            // What a decision has led to needs no second explanation.
            if step.detail.is_empty() && !entry.reason.starts_with("decision ") {
                step.detail = entry.reason.clone();
            }
            found.insert((step.time_ms, entry.time, number), step);
        }
    }
    for decision in chain.iter().filter(|decision| *decision.act.server() == args.server) {
        number += 1;
        let by = match decision.author.as_str() {
            "p2pdb" => String::new(),
            author => format!(" for {author}"),
        };
        let step = Step {
            time_ms: decision.wall_ms,
            by: decision.by.clone(),
            what: format!("decision {}{by}: {}", decision.slot, decision.act),
            detail: decision.reason.clone(),
            begins: matches!(&decision.act, Act::Recover { replaces: None, .. })
                && !was_detected(&found, decision.wall_ms + SAME_MOMENT_MS),
        };
        let mut key = (step.time_ms, Timestamp(u64::MAX), number);
        // The entry that tells of the failure and the wish are of the same moment; the failure comes first.
        let soon = found.range(key..=(step.time_ms + SAME_MOMENT_MS, Timestamp(u64::MAX), u32::MAX));
        if let Some((later, _)) = soon.rev().find(|(_, step)| step.begins).filter(|_| is_recovery(decision)) {
            key = (later.0, later.1, number);
        }
        found.insert(key, step);
    }
    Ok(found.into_values().collect())
}

fn is_recovery(decision: &Decision) -> bool {
    matches!(&decision.act, Act::Recover { .. })
}

/// Whether a failure was written down shortly before a decision.
fn was_detected(found: &BTreeMap<(u64, Timestamp, u32), Step>, decided_ms: u64) -> bool {
    let before = found.range(..=(decided_ms, Timestamp(u64::MAX), u32::MAX));
    before.rev().take_while(|((time_ms, ..), _)| decided_ms - time_ms < 60_000).any(|(_, step)| step.begins)
}

fn step_of(diff: &Diff, server: &ServerName) -> Option<Step> {
    let is_hook = diff.file.as_str() == file::HOOK && diff.key.starts_with(&format!("{server}, "));
    if diff.key != server.as_str() && !is_hook {
        return None;
    }
    let after = diff.change.value();
    let field = |index: usize| after.map(|record| record.field(index).to_owned()).unwrap_or_default();
    let (what, detail, begins) = match (diff.file.as_str(), &diff.change) {
        (file::RECOVERY, Change::Del(_)) => (format!("{server} is in order"), String::new(), false),
        // The decision itself says it.
        (file::RECOVERY, _) if field(1) == "decided" => return None,
        (file::RECOVERY, _) => {
            let what = match field(1).as_str() {
                "detected" => "the failure is certain".to_owned(),
                "resumed" => "an original server is resumed".to_owned(),
                "installed" => "the installation procedure is done".to_owned(),
                "waiting" => "the stand-in waits".to_owned(),
                "serving" => "the stand-in serves".to_owned(),
                "failed" => "the stand-in failed".to_owned(),
                "returning" => return None,
                "back" => format!("{server} has its address again"),
                other => other.to_owned(),
            };
            (what, field(5), field(1) == "detected")
        }
        (file::GROUP, Change::Del(_)) => ("it is out of the file Group".to_owned(), String::new(), false),
        (file::GROUP, Change::Add(_)) => ("it is in the file Group".to_owned(), String::new(), false),
        (file::FLAG, Change::Add(_)) => ("it has the flag".to_owned(), String::new(), false),
        (file::FENCE, Change::Add(_) | Change::Mod { .. }) => {
            (format!("it does not serve: {}", field(2)), String::new(), false)
        }
        (file::HOOK, Change::Add(_) | Change::Mod { .. }) => {
            (format!("the hook {} is {}", field(1), field(2)), field(3), false)
        }
        (file::MAINTENANCE, Change::Del(_)) => ("its maintenance is over".to_owned(), String::new(), false),
        (file::MAINTENANCE, _) => ("it is in maintenance".to_owned(), field(1), false),
        _ => return None,
    };
    Some(Step { time_ms: 0, by: server.clone(), what, detail, begins })
}

/// The daemon's own view; `None` if it does not run.
fn live(directory: &DirectoryArgs) -> Option<ManagementReport> {
    let mut client = Client::connect(&directory.directory).ok()?;
    client.set_timeout(Some(super::ANSWER_TIMEOUT)).ok()?;
    match client.call(&Request::Management).ok()? {
        Response::Management(report) => Some(*report),
        _ => None,
    }
}

fn state(server: &ServerName, chain: &[std::sync::Arc<Decision>], report: Option<&ManagementReport>) -> String {
    let last = chain.iter().rev().find(|decision| decision.act.server() == server);
    let phase = report.and_then(|report| report.recovered.iter().find(|it| it.target == *server));
    match (last.map(|decision| (&decision.act, decision.slot)), phase) {
        (None, _) => format!("no decision was ever made about {server}"),
        (Some((Act::Recover { place: Some(place), .. }, slot)), phase) => {
            let phase = phase.map_or(String::new(), |it| format!(", {}", it.phase));
            format!(
                "{server} is out of the group and played by {} on {} (decision {slot}{phase})",
                place.original, place.host
            )
        }
        (Some((Act::Recover { place: None, .. }, slot)), _) => {
            format!("{server} is out of the group and nobody plays it (decision {slot})")
        }
        (Some((Act::Remove { .. }, slot)), _) => format!("{server} was removed for good (decision {slot})"),
        (Some((_, slot)), _) => format!("{server} is in the group and plays itself (decision {slot})"),
    }
}

fn waits(server: &ServerName, report: ManagementReport) -> Vec<WorkReport> {
    let mut waits: Vec<WorkReport> = report.work.into_iter().filter(|work| work.server == *server).collect();
    for target in report.targets.into_iter().filter(|target| target.target == *server) {
        let Some(waiting) = target.waits_for else { continue };
        let work = format!("is watched on {}: {}", target.host, target.health);
        waits.push(WorkReport { server: server.clone(), work, waits_for: Some(waiting.to_string()), unblock: None });
    }
    waits
}

fn show(story: &Story, session: &mut Session) -> Result<(), Failure> {
    let zone = session.zone.clone();
    let output = &mut session.output;
    output.line(output.paint(Style::Heading, printable(&story.now)))?;
    let mut before: Option<&Step> = None;
    for step in &story.steps {
        let moment = format_ms(step.time_ms, &zone);
        // The day once; then the time of day.
        let day = moment.get(..10).unwrap_or_default();
        let is_new_day = before.is_none_or(|before| format_ms(before.time_ms, &zone).get(..10) != Some(day));
        if is_new_day {
            output.line("")?;
            output.line(output.paint(Style::Dim, day))?;
        }
        let time = moment.get(11..23).unwrap_or(&moment);
        let after = before.map_or(String::new(), |before| gap(step.time_ms.saturating_sub(before.time_ms)));
        let style = if step.begins { Style::Bad } else { Style::Modified };
        let what = output.paint(style, printable(&step.what));
        output.line(format_args!("  {time}  {after:>10}  {:<8} {what}", step.by))?;
        // A decision gives the reason again, and then its figures.
        let told = before.map_or("", |before| before.detail.as_str());
        detail(output, step.detail.strip_prefix(told).filter(|_| !told.is_empty()).unwrap_or(&step.detail))?;
        before = Some(step);
    }
    for work in &story.waits {
        output.line("")?;
        let waits = work.waits_for.as_ref().map_or(String::new(), |waits| format!(", and waits {waits}"));
        output.line(output.paint(Style::Warning, printable(&format!("now: {} {}{waits}", work.server, work.work))))?;
        if let Some(unblock) = &work.unblock {
            output.line(format_args!("     to end the waiting: {}", printable(unblock)))?;
        }
    }
    if story.steps.is_empty() {
        note(format_args!("nothing has happened to {}, as far as this log goes", story.server));
    }
    Ok(())
}

/// A reason may be long: one clause a line.
fn detail(output: &mut Output, text: &str) -> Result<(), Failure> {
    for clause in text.split("; ").filter(|clause| !clause.is_empty()) {
        let line = format!("{:36}{}", "", printable(clause));
        output.line(output.paint(Style::Dim, line))?;
    }
    Ok(())
}

fn gap(ms: u64) -> String {
    match ms {
        0..1_000 => format!("+{ms} ms"),
        1_000..120_000 => format!("+{}.{:03} s", ms / 1000, ms % 1000),
        _ => format!("+{}", super::time::format_age(ms)),
    }
}
