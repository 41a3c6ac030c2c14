//! Seeded runs of whole clusters.

use p2pdb::sim::{Options, run};

#[test]
fn probe() {
    let number =
        |name: &str, otherwise: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let mut options = Options::new(number("SEED", 1), number("RUNS", 20));
    options.threads = 2;
    options.stop_early = true;
    let started = std::time::Instant::now();
    let report = run(options);
    println!(
        "{} runs {} steps {} entries, {} s simulated in {:?}",
        report.runs,
        report.steps,
        report.entries,
        report.simulated_us / 1_000_000,
        started.elapsed()
    );
    for failure in &report.failures {
        println!("{failure}");
    }
}
