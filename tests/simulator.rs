//! Seeded runs of whole clusters: the seeds that once found something, fresh ones, and the deliberate faults.
//!
//! `P2PDB_SEED=N` sets the first fresh seed, `P2PDB_RUNS=N` their number; without, the clock says where to
//! begin and the test stops after a while. A failure prints how to repeat it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use p2pdb::core::flaw::Flaw;
use p2pdb::sim::{Kind, Options, Profile, Report, run, run_seed};

/// In how many seeds a deliberate fault must be found.
const FLAW_SEEDS: u64 = 60;
const FRESH_TIME: Duration = Duration::from_secs(15);

fn on_all_cores(first_seed: u64, runs: u64) -> Options {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Options { threads, ..Options::new(first_seed, runs) }
}

fn assert_kept(report: &Report) {
    let Some(first) = report.failures.first() else { return };
    let all =
        report.failures.iter().map(|failure| format!("seed {}: {}: {}\n", failure.seed, failure.oracle, failure.text));
    panic!("{} of {} runs failed\n{}\n{first}", report.failures.len(), report.runs, all.collect::<String>());
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is '{text}', not a number")))
}

#[test]
fn seeds_that_once_failed_hold() {
    for line in include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#')) {
        let seed = line.split_whitespace().next().expect("a line begins with a seed").parse().unwrap();
        if let Some(failure) = run_seed(seed, Profile::default()).failure {
            panic!("{failure}\nbefore, it found: {line}");
        }
    }
}

#[test]
fn fresh_seeds_hold() {
    fresh_seeds(Kind::Files);
}

#[test]
fn fresh_seeds_of_management_hold() {
    fresh_seeds(Kind::Management);
}

#[expect(clippy::disallowed_methods, reason = "fresh seeds come from the clock, and the runs stop by it")]
fn fresh_seeds(kind: Kind) {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let first_seed = number("P2PDB_SEED").unwrap_or_else(|| clock() * 10_000 % 1_000_000_000_000);
    let started = Instant::now();
    let mut total = Report::default();
    if let Some(runs) = number("P2PDB_RUNS") {
        total = run(Options { kind, ..on_all_cores(first_seed, runs) });
        assert_kept(&total);
    } else {
        while started.elapsed() < FRESH_TIME {
            let report = run(Options { kind, ..on_all_cores(first_seed + total.runs, 10) });
            assert_kept(&report);
            total.runs += report.runs;
            total.steps += report.steps;
            total.entries += report.entries;
            total.simulated_us += report.simulated_us;
        }
    }
    println!(
        "{} {kind:?} runs from seed {first_seed}: {} s simulated, {} steps, {} entries in {:.1} s",
        total.runs,
        total.simulated_us / 1_000_000,
        total.steps,
        total.entries,
        started.elapsed().as_secs_f64()
    );
}

#[test]
fn every_deliberate_fault_is_found() {
    for flaw in Flaw::ALL {
        let report = run(Options { flaw: Some(flaw), stop_early: true, ..on_all_cores(1, FLAW_SEEDS) });
        let failure = report.failures.first();
        let failure = failure.unwrap_or_else(|| panic!("{flaw:?} was not found in {FLAW_SEEDS} seeds"));
        println!("{flaw:?}: seed {}, {}: {}", failure.seed, failure.oracle, failure.text);
    }
}

#[test]
fn every_deliberate_fault_of_management_is_found() {
    for flaw in Flaw::OF_MANAGEMENT {
        let options = Options { flaw: Some(flaw), stop_early: true, ..on_all_cores(1, FLAW_SEEDS) };
        let report = run(Options { kind: Kind::Management, ..options });
        let failure = report.failures.first();
        let failure = failure.unwrap_or_else(|| panic!("{flaw:?} was not found in {FLAW_SEEDS} seeds"));
        println!("{flaw:?}: seed {}, {}: {}", failure.seed, failure.oracle, failure.text.lines().next().unwrap_or(""));
    }
}

#[test]
fn a_seed_is_a_run_whatever_the_threads_do() {
    let options = |threads| Options { threads, ..Options::new(7_000, 6) };
    assert_eq!(run(options(1)), run(options(3)));
    let with_timeline = Profile { timeline: true, ..Profile::default() };
    let (one, other) = (run_seed(7_001, Profile::default()), run_seed(7_001, with_timeline));
    assert_eq!((one.steps, one.simulated_us, one.entries), (other.steps, other.simulated_us, other.entries));
}
