//! What a frame costs on loopback.

use std::time::Instant;

use bytes::Bytes;
use p2pdb::edge::quic::{Channel, SendError};

use crate::support::*;

/// Figures, not a check: `cargo test --test transport measure -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_loopback() {
    // On a worker of the runtime, as in the daemon; the thread of a test is not one.
    tokio::spawn(measure()).await.unwrap();
}

async fn measure() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    let frame = Bytes::from(vec![7; 200]);
    let mut times: Vec<_> = Vec::new();
    for _ in 0..20_000 {
        let begun = Instant::now();
        a.send("b", Channel::Live, frame.clone()).unwrap();
        b.frame().await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("one way, 200 B: median {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    times.clear();
    let echo = tokio::spawn(async move {
        loop {
            let (_, _, bytes) = b.frame().await;
            if b.send("a", Channel::Live, bytes).is_err() {
                return b;
            }
        }
    });
    for _ in 0..20_000 {
        let begun = Instant::now();
        a.send("b", Channel::Live, frame.clone()).unwrap();
        a.frame().await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("there and back, 200 B: median {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    echo.abort();
    let _ = echo.await;

    for (size, count) in [(200, 500_000), (64 * 1024, 20_000)] {
        let (a, mut b) = pair(&cluster).await;
        let frame = Bytes::from(vec![7; size]);
        let begun = Instant::now();
        let sender = tokio::spawn(async move {
            for _ in 0..count {
                while a.send("b", Channel::Live, frame.clone()) == Err(SendError::Full) {
                    tokio::task::yield_now().await;
                }
            }
            a
        });
        for _ in 0..count {
            b.frame().await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let megabytes = (size * count) as f64 / 1e6;
        println!("{size} B frames: {:.0} per second, {:.0} MB/s", count as f64 / seconds, megabytes / seconds);
        drop(sender.await);
    }
}
