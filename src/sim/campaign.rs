//! Many seeds, on several threads; the result depends on the seeds alone.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::faults::{Kind, Plan, Profile};
use super::outages::Outages;
use crate::core::flaw::Flaw;

/// Which runs to make.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub first_seed: u64,
    pub runs: u64,
    pub threads: usize,
    pub kind: Kind,
    pub flaw: Option<Flaw>,
    /// Stop at the first failure instead of collecting all.
    pub stop_early: bool,
}

impl Options {
    pub fn new(first_seed: u64, runs: u64) -> Self {
        Self { first_seed, runs, threads: 1, kind: Kind::Files, flaw: None, stop_early: false }
    }
}

/// How much of the timeline is shown: events, and characters of each.
const SHOWN_EVENTS: usize = 40;
const SHOWN_CHARS: usize = 160;

/// A broken promise, and how to see it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub seed: u64,
    pub oracle: &'static str,
    pub text: String,
    pub at_us: u64,
    /// The last events before it.
    pub timeline: Vec<String>,
    pub flaw: Option<Flaw>,
    pub kind: Kind,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "seed {}: broken after {:.3} s: {}", self.seed, self.at_us as f64 / 1e6, self.oracle)?;
        writeln!(out, "  {}", self.text)?;
        if !self.timeline.is_empty() {
            writeln!(out, "the last events:")?;
        }
        for line in &self.timeline[self.timeline.len().saturating_sub(SHOWN_EVENTS)..] {
            let cut = line.char_indices().nth(SHOWN_CHARS).map_or(line.len(), |(at, _)| at);
            writeln!(out, "  {}", &line[..cut])?;
        }
        match self.flaw {
            Some(flaw) => write!(out, "deliberate fault: {flaw:?}"),
            None if self.kind == Kind::Management => {
                write!(out, "repeat it with: p2pdb simulate --management --seed {}", self.seed)
            }
            None => write!(out, "repeat it with: p2pdb simulate --seed {}", self.seed),
        }
    }
}

/// What became of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub failure: Option<Failure>,
    /// Simulated microseconds, events, and entries that became durable.
    pub simulated_us: u64,
    pub steps: u64,
    pub entries: usize,
}

/// What became of many seeds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub runs: u64,
    pub simulated_us: u64,
    pub steps: u64,
    pub entries: u64,
    /// In order of their seeds.
    pub failures: Vec<Failure>,
}

/// Makes one run. A run that fails is made once more with a timeline.
pub fn run_seed(seed: u64, profile: Profile) -> Outcome {
    let cluster = match profile.kind {
        Kind::Files => {
            let mut plan = Plan::new(seed, profile);
            plan.run();
            plan.cluster
        }
        Kind::Management => {
            let mut outages = Outages::new(seed, profile);
            outages.run();
            outages.cluster
        }
    };
    let failure = cluster.oracle.violation().map(|violation| Failure {
        seed,
        oracle: violation.oracle,
        text: violation.text.clone(),
        at_us: cluster.now_us,
        timeline: cluster.timeline().cloned().collect(),
        flaw: profile.flaw,
        kind: profile.kind,
    });
    if failure.is_some() && !profile.timeline {
        return run_seed(seed, Profile { timeline: true, ..profile });
    }
    Outcome { failure, simulated_us: cluster.now_us, steps: cluster.steps, entries: cluster.oracle.entry_count() }
}

/// Makes many runs.
pub fn run(options: Options) -> Report {
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    let outcomes = Mutex::new(Vec::new());
    let work = || {
        loop {
            let run = next.fetch_add(1, Ordering::Relaxed);
            // Seeds below the first failure are still run, so that the same one is found whatever the threads do.
            if run >= options.runs || (options.stop_early && run > failed.load(Ordering::Relaxed)) {
                return;
            }
            let outcome =
                run_seed(options.first_seed + run, Profile { kind: options.kind, flaw: options.flaw, timeline: false });
            if outcome.failure.is_some() {
                failed.fetch_min(run, Ordering::Relaxed);
            }
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((run, outcome));
        }
    };
    std::thread::scope(|scope| {
        (0..options.threads.max(1)).for_each(|_| {
            scope.spawn(work);
        });
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(run, _)| *run);
    let mut report = Report::default();
    for (run, outcome) in outcomes {
        if options.stop_early && run > failed.load(Ordering::Relaxed) {
            break;
        }
        report.runs += 1;
        report.simulated_us += outcome.simulated_us;
        report.steps += outcome.steps;
        report.entries += outcome.entries as u64;
        report.failures.extend(outcome.failure);
    }
    report
}
