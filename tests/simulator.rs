//! Seeded runs of whole clusters.

use p2pdb::sim::{Options, run};

#[test]
fn probe() {
    let number =
        |name: &str, otherwise: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let mut options = Options::new(number("SEED", 1), number("RUNS", 20));
    options.threads = 2;
    let started = std::time::Instant::now();
    let report = run(options);
    if options.runs == 1 {
        for failure in &report.failures {
            println!("{failure}");
        }
    }
    println!(
        "{} runs {} steps {} entries, {} s simulated in {:?}, {} failures",
        report.runs,
        report.steps,
        report.entries,
        report.simulated_us / 1_000_000,
        started.elapsed(),
        report.failures.len()
    );
    for failure in report.failures.iter().take(25) {
        println!(
            "{} {} {} {}",
            failure.seed,
            failure.at_us,
            failure.oracle,
            failure.text.chars().take(260).collect::<String>()
        );
    }
}
