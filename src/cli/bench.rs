//! `p2pdb bench`: measures edits through a running daemon, and fills a log.
//!
//! Times are CLOCK_MONOTONIC in nanoseconds, the same for all processes of a machine.

mod fill;
mod plain;

use std::collections::HashMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::edits::{Level, edit_of, word};
use super::error::{Answer, Failure, Outcome, Report};
use super::output::Output;
use super::{DirectoryArgs, Session, wall_clock_ms};
use crate::core::diff::Change;
use crate::core::id::FileName;
use crate::core::io::Wait;
use crate::core::record::Record;
use crate::edge::control::{Client, ClientError, FileEdit, IN_FLIGHT_MAX, Request, Response};

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Make edits and tell how long each took: {"start_ns","done_ns","entry"}, then a summary
    Edit(EditBenchArgs),
    /// Tell when changes became readable here: {"entry","files","readable_ns"}
    Watch(WatchArgs),
    /// Tell when plain files were saved: {"folder","file","saved_ns"}
    Plain(plain::PlainArgs),
    /// Write entries to the log of a stopped server
    Fill(fill::FillArgs),
}

#[derive(Debug, Args)]
pub struct EditBenchArgs {
    /// How many edits
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// How many edits are under way at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX as i64))]
    writers: u32,
    /// How long a writer rests between the end of an edit and the next one
    #[arg(long, value_name = "MS", default_value_t = 0)]
    interval_ms: u64,
    /// What each edit waits for
    #[arg(long, value_enum, default_value_t = Level::Local)]
    wait: Level,
    /// Let the last edit wait for all servers, whatever the others wait for: when it is done, all edits are on all servers
    #[arg(long)]
    until_all: bool,
    /// How long an edit may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// The file to edit
    #[arg(long, default_value = "Bench")]
    file: FileName,
    /// Records that each writer changes in turn
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    records: u64,
    /// Text in each record, in bytes
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(0..=3000))]
    bytes: u64,
    /// Only the summary
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only changes of this file
    #[arg(long)]
    file: Option<FileName>,
    /// End after so many changes
    #[arg(long)]
    count: Option<u64>,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub fn run(command: BenchCommand, session: &mut Session) -> Outcome {
    match command {
        BenchCommand::Edit(args) => EditBench::new(&args)?.run(&mut session.output),
        BenchCommand::Watch(args) => watch(&args, &mut session.output),
        BenchCommand::Plain(args) => plain::run(&args, &mut session.output),
        BenchCommand::Fill(args) => fill::run(&args, session),
    }
}

/// CLOCK_MONOTONIC.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// One connection with as many edits under way as there are writers.
struct EditBench<'a> {
    args: &'a EditBenchArgs,
    client: Client,
    /// Tells the records of this run from those of another.
    tag: String,
    filler: String,
    started: u64,
    /// Edits under way by request id: writer and start.
    under_way: HashMap<u64, (u32, u64)>,
    /// Edits that each writer has begun.
    turns: Vec<u64>,
    /// Writers that rest, and until when.
    resting: Vec<(u64, u32)>,
    durations_ns: Vec<u64>,
    short: u64,
}

#[derive(Debug, Serialize)]
struct EditLine<'a> {
    start_ns: u64,
    done_ns: u64,
    entry: &'a str,
}

impl<'a> EditBench<'a> {
    fn new(args: &'a EditBenchArgs) -> Result<Self, Failure> {
        Ok(Self {
            args,
            client: args.directory.connect()?,
            tag: format!("{:x}-{:x}", wall_clock_ms(), std::process::id()),
            filler: "x".repeat(usize::try_from(args.bytes).unwrap_or(0)),
            started: 0,
            under_way: HashMap::new(),
            turns: vec![0; args.writers as usize],
            resting: Vec::new(),
            durations_ns: Vec::new(),
            short: 0,
        })
    }

    fn run(mut self, output: &mut Output) -> Outcome {
        let begin_ns = monotonic_ns();
        let mut free: Vec<u32> = (0..self.args.writers).rev().collect();
        while (self.durations_ns.len() as u64) < self.args.count {
            let now_ns = monotonic_ns();
            let (rested, resting): (Vec<_>, Vec<_>) = self.resting.iter().partition(|(until, _)| *until <= now_ns);
            self.resting = resting;
            free.extend(rested.into_iter().map(|(_, writer)| writer));
            while self.started < self.args.count
                && let Some(writer) = free.pop()
            {
                self.start(writer)?;
            }
            self.client.flush()?;
            self.wait_for_replies(&mut free, output)?;
        }
        self.summary(monotonic_ns() - begin_ns, output)
    }

    fn start(&mut self, writer: u32) -> Result<(), Failure> {
        let turn = self.turns[writer as usize];
        self.turns[writer as usize] += 1;
        self.started += 1;
        let is_last = self.args.until_all && self.started == self.args.count;
        let record = |round: u64| {
            let key = format!("{}-{writer}-{}", self.tag, turn % self.args.records);
            Record::new([key.as_str(), &round.to_string(), &self.filler])
                .map_err(|error| Failure::input(format!("the benchmark's record: {error}"), "use smaller --bytes"))
        };
        let round = turn / self.args.records;
        let change = match round {
            0 => Change::Add(record(0)?),
            _ => Change::Mod { before: record(round - 1)?, after: record(round)? },
        };
        let request = Request::FileEdit(FileEdit {
            edits: vec![edit_of(self.args.file.clone(), change)],
            on_behalf_of: None,
            reason: String::new(),
            wait: if is_last { Wait::All } else { self.args.wait.into() },
            timeout_ms: self.args.timeout * 1000,
        });
        let start_ns = monotonic_ns();
        let id = self.client.queue(&request)?;
        self.under_way.insert(id, (writer, start_ns));
        Ok(())
    }

    fn wait_for_replies(&mut self, free: &mut Vec<u32>, output: &mut Output) -> Result<(), Failure> {
        let wake_ns = self.resting.iter().map(|(until, _)| *until).min().filter(|_| self.started < self.args.count);
        if self.under_way.is_empty() {
            let rest_ns = wake_ns.map_or(0, |wake| wake.saturating_sub(monotonic_ns()));
            std::thread::sleep(Duration::from_nanos(rest_ns));
            return Ok(());
        }
        let patience = Duration::from_secs(self.args.timeout) + super::ANSWER_TIMEOUT;
        let timeout = wake_ns.map_or(patience, |wake| Duration::from_nanos(wake.saturating_sub(monotonic_ns())));
        self.client.set_timeout(Some(timeout))?;
        loop {
            let reply = match self.client.receive() {
                Ok(reply) => reply,
                // A writer has rested.
                Err(ClientError::Silent { .. }) if wake_ns.is_some() => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let done_ns = monotonic_ns();
            let Some((writer, start_ns)) = self.under_way.remove(&reply.id) else {
                return Err(Failure::of_response(reply.response));
            };
            let edited = match reply.response {
                Response::Edited(edited) => edited,
                other => return Err(Failure::of_response(other)),
            };
            self.short += u64::from(edited.reached < edited.asked);
            self.durations_ns.push(done_ns - start_ns);
            if !self.args.quiet {
                output.json(&EditLine { start_ns, done_ns, entry: &edited.entry.to_string() })?;
            }
            match self.args.interval_ms {
                0 => free.push(writer),
                interval_ms => self.resting.push((done_ns + interval_ms * 1_000_000, writer)),
            }
            if !self.client.has_reply() {
                return Ok(());
            }
        }
    }

    fn summary(mut self, took_ns: u64, output: &mut Output) -> Outcome {
        #[derive(Serialize)]
        struct Summary {
            count: usize,
            writers: u32,
            wait: &'static str,
            seconds: f64,
            per_second: f64,
            median_us: f64,
            p90_us: f64,
            p99_us: f64,
            max_us: f64,
            /// Edits that did not reach their level in time.
            short: u64,
        }
        self.durations_ns.sort_unstable();
        let at = |part: f64| {
            let last = self.durations_ns.len().saturating_sub(1);
            let index = (last as f64 * part).round() as usize;
            self.durations_ns.get(index).map_or(0.0, |ns| *ns as f64 / 1000.0)
        };
        let seconds = took_ns as f64 / 1e9;
        let count = self.durations_ns.len();
        let summary = Summary {
            count,
            writers: self.args.writers,
            wait: word(Wait::from(self.args.wait)),
            seconds,
            per_second: count as f64 / seconds.max(1e-9),
            median_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: at(1.0),
            short: self.short,
        };
        if output.is_json() || !self.args.quiet {
            output.json(&serde_json::json!({ "summary": summary }))?;
        } else {
            output.line(format_args!(
                "{} edits, {} at a time, each waited for on {}: median {}, 99 % {}, longest {}; {:.0} a second",
                summary.count,
                summary.writers,
                match Wait::from(self.args.wait) {
                    Wait::Local => "this server's disk",
                    Wait::Majority => "the disks of a majority",
                    Wait::All => "all disks",
                },
                in_ms(summary.median_us),
                in_ms(summary.p99_us),
                in_ms(summary.max_us),
                summary.per_second,
            ))?;
        }
        Ok(if self.short == 0 { Answer::Yes } else { Answer::No })
    }
}

fn in_ms(us: f64) -> String {
    format!("{:.2} ms", us / 1000.0)
}

fn watch(args: &WatchArgs, output: &mut Output) -> Outcome {
    let mut client = args.directory.connect()?;
    client.set_timeout(None)?;
    client.send(&Request::Watch { files: args.file.iter().cloned().collect() })?;
    let mut seen = 0;
    while args.count.is_none_or(|count| seen < count) {
        let reply = client.receive()?;
        match reply.response {
            // Whoever waits for the watch to be in place reads this line.
            Response::Watching => output.json(&serde_json::json!({ "watching": true }))?,
            Response::Change(change) => {
                output.json(&change)?;
                seen += 1;
            }
            Response::Stopping => {
                return Err(Failure::Daemon(Report::new("the daemon has stopped", "start it and watch again")));
            }
            other => return Err(Failure::of_response(other)),
        }
        if !client.has_reply() {
            output.flush()?;
        }
    }
    Ok(Answer::Yes)
}
