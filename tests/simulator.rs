//! Seeded runs of whole clusters.

use p2pdb::sim::{Options, run};
use p2pdb::core::flaw::Flaw;

#[test]
fn probe() {
    let number = |name: &str, otherwise: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let mut options = Options::new(number("SEED", 1), number("RUNS", 20));
    options.threads = 2;
    let started = std::time::Instant::now();
    let report = run(options);
    if options.runs == 1 {
        for failure in &report.failures {
            println!("{failure}");
        }
    }
    println!("{} runs {} steps {} entries, {} s simulated in {:?}, {} failures", report.runs, report.steps, report.entries, report.simulated_us/1_000_000, started.elapsed(), report.failures.len());
    for failure in report.failures.iter().take(25) {
        println!("{} {} {} {}", failure.seed, failure.at_us, failure.oracle, failure.text.chars().take(260).collect::<String>());
    }
}

#[test]
fn flaws() {
    for flaw in [Flaw::SkipSync, Flaw::ApplyBeforeAppend, Flaw::ReuseSequence, Flaw::DropTombstone, Flaw::DropConflict, Flaw::SkipVerify] {
        let mut options = Options::new(1, 300);
        options.threads = 2;
        options.stop_early = true;
        options.flaw = Some(flaw);
        let report = run(options);
        match report.failures.first() {
            Some(failure) => println!("{flaw:?} {} {} {}", failure.seed, failure.oracle, failure.text.chars().take(200).collect::<String>()),
            None => println!("{flaw:?} NOT FOUND in {}", report.runs),
        }
    }
}
