//! `p2pdb simulate`: plays a scenario, or many runs with faults, on a simulated group.
//!
//! The group is made of the very state machine that the daemon runs; disks, links and clocks are simulated. A scenario
//! is a text of commands; what is printed is the same text with what happened written behind them. `--from` takes a real group.

use std::fmt::Display;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::{Answer, Failure, Outcome};
use super::output::{Style, note, progress};
use super::replay::files_at_end;
use super::{Session, server_name};
use crate::core::id::ServerName;
use crate::core::quorum::Policy;
use crate::sim::{Kind, Options, Report, run as run_seeds, scenario};

/// Seeds between two looks at the progress.
const SEEDS_AT_ONCE: u64 = 200;

#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// A scenario file, such as those in tests/scenarios; without one, runs with random faults
    #[arg(conflicts_with = "runs")]
    scenario: Option<PathBuf>,
    /// Take the group of this log as it is (a server's directory, or a log folder) and show what would happen
    #[arg(long, value_name = "PATH", requires = "fail", conflicts_with_all = ["scenario", "runs", "management"])]
    from: Option<PathBuf>,
    /// The servers that fail at once, with --from
    #[arg(long, value_name = "SERVER,...", value_delimiter = ',', value_parser = server_name, requires = "from")]
    fail: Vec<ServerName>,
    /// The policy of the group, with --from
    #[arg(long, value_name = "POLICY", default_value = "balanced", value_parser = policy, requires = "from")]
    policy: Policy,
    /// Runs of a group that looks after itself: failures, decisions, stand-ins, returns
    #[arg(long, conflicts_with = "scenario")]
    management: bool,
    /// The first seed; the same seed is the same run everywhere
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How many seeds, counted up from the first
    #[arg(long, default_value_t = 1, value_name = "N")]
    runs: u64,
}

pub fn run(args: SimulateArgs, session: &mut Session) -> Outcome {
    match (&args.scenario, &args.from) {
        (Some(path), _) => play(path, args.seed, session),
        (None, Some(path)) => what_if(path, &args, session),
        (None, None) => runs(&args, session),
    }
}

fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "strict" => Ok(Policy::Strict),
        "balanced" => Ok(Policy::Balanced),
        "paper" => Ok(Policy::Paper),
        _ => Err("strict, balanced or paper".into()),
    }
}

fn what_if(path: &PathBuf, args: &SimulateArgs, session: &mut Session) -> Outcome {
    let files = files_at_end(std::slice::from_ref(path))?;
    let happenings = crate::sim::what_if::what_if(&files, &args.fail, args.policy, args.seed)
        .map_err(|why| Failure::input(why, "give the directory of a server of the group"))?;
    for it in &happenings {
        if session.output.is_json() {
            session.output.json(&serde_json::json!({ "after_ms": it.after_ms, "what": it.what }))?;
            continue;
        }
        let (what, reason) = it.what.split_once(": ").unwrap_or((&it.what, ""));
        let (act, reason) = match what.starts_with("decision ") {
            true => reason.split_once(": ").unwrap_or((reason, "")),
            false => ("", reason),
        };
        let act = if act.is_empty() { what.to_owned() } else { format!("{what}: {act}") };
        session.output.line(format_args!("{:>9.3} s  {act}", it.after_ms as f64 / 1000.0))?;
        for clause in reason.split("; ").filter(|clause| !clause.is_empty()) {
            let line = session.output.paint(Style::Dim, format_args!("             {clause}"));
            session.output.line(line)?;
        }
    }
    let unserved: Vec<&str> = args
        .fail
        .iter()
        .map(ServerName::as_str)
        .filter(|name| !happenings.iter().any(|it| it.what.starts_with(&format!("{name} is served by its stand-in"))))
        .collect();
    if !unserved.is_empty() {
        note(format_args!("nobody would serve for {}: p2pdb doctor says what is missing", unserved.join(", ")));
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

fn play(path: &PathBuf, seed: u64, session: &mut Session) -> Outcome {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::input(format!("{}: {error}", path.display()), "give the path of a scenario file"))?;
    let played = scenario::play(&text, seed);
    let as_written = played.trim_end() == text.trim_end();
    if session.output.is_json() {
        #[derive(Serialize)]
        struct Played<'a> {
            as_written: bool,
            played: Vec<&'a str>,
        }
        session.output.json(&Played { as_written, played: played.lines().collect() })?;
    } else {
        session.output.line(played.trim_end())?;
    }
    Ok(if as_written { Answer::Yes } else { Answer::No })
}

fn runs(args: &SimulateArgs, session: &mut Session) -> Outcome {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut total = Report::default();
    let bar = progress(args.runs, "runs");
    let mut done = 0;
    while done < args.runs {
        let runs = SEEDS_AT_ONCE.min(args.runs - done);
        let kind = if args.management { Kind::Management } else { Kind::Files };
        let options = Options { threads, kind, ..Options::new(args.seed + done, runs) };
        let Report { runs, simulated_us, steps, entries, failures } = run_seeds(options);
        total.runs += runs;
        total.simulated_us += simulated_us;
        total.steps += steps;
        total.entries += entries;
        total.failures.extend(failures);
        done += runs;
        bar.set_position(done);
    }
    bar.finish_and_clear();
    tell(&total, session)?;
    Ok(if total.failures.is_empty() { Answer::Yes } else { Answer::No })
}

fn tell(total: &Report, session: &mut Session) -> Result<(), Failure> {
    let Report { runs, simulated_us, steps, entries, failures } = total;
    let simulated_s = *simulated_us as f64 / 1e6;
    if session.output.is_json() {
        #[derive(Serialize)]
        struct View {
            runs: u64,
            simulated_s: f64,
            steps: u64,
            entries: u64,
            failures: Vec<String>,
        }
        let failures = failures.iter().map(ToString::to_string).collect();
        let view = View { runs: *runs, simulated_s, steps: *steps, entries: *entries, failures };
        return session.output.json(&view);
    }
    let mut line = |text: &dyn Display| session.output.line(text);
    for failure in failures {
        line(failure)?;
        line(&"")?;
    }
    line(&format_args!(
        "{runs} runs, {simulated_s:.0} s of simulated time, {steps} events, {entries} entries: {}",
        match failures.len() {
            0 => "every promise held".to_owned(),
            broken => format!("a promise was broken in {broken} of them"),
        }
    ))
}
