//! Reading logs beside a writer, damaged ones, and those of others; and what opening and reading cost.

#![allow(clippy::disallowed_methods)] // tests live in real time
#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::rig::{Rig, read_all, some};
use common::{CLUSTER, Origin, TestCertifier};
use p2pdb::core::entry::Sealed;
use p2pdb::core::id::{ClusterId, Lane};
use p2pdb::core::merge::Files;
use p2pdb::edge::journal::{self, Replayed};
use p2pdb::edge::log_reader::{LogError, LogItem, LogReader, Standing};

#[test]
fn a_reader_follows_a_log_that_is_being_written() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let all = some(&mut mail, 400);
    let open = rig.open();
    open.append(all[..5].to_vec());
    let path = rig.directory.path().to_owned();
    let follower = std::thread::spawn(move || {
        let mut reader = LogReader::open(&[path]).unwrap();
        let mut found = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while found.len() < 400 && Instant::now() < deadline {
            match reader.next_item().unwrap() {
                Some(LogItem::Entry { sealed, standing, .. }) => {
                    assert!(matches!(standing, Standing::First | Standing::Next));
                    found.push(sealed);
                }
                Some(damage) => panic!("{damage:?}"),
                None => reader.wait(Duration::from_millis(200)),
            }
        }
        found
    });
    for batch in all[5..].chunks(3) {
        open.append(batch.to_vec());
    }
    assert_eq!(follower.join().unwrap(), all);
}

/// A log that has been closed, with its entries and its only segment.
fn one_segment(entries: usize) -> (Rig, Vec<Arc<Sealed>>, PathBuf) {
    let rig = Rig::new();
    let all = some(&mut Origin::new("mail", 1, Lane::Audit), entries);
    let open = rig.open();
    open.append(all.clone());
    open.journal.close();
    let path = rig.path("00000001.seg");
    (rig, all, path)
}

#[test]
fn a_frame_that_was_there_in_part_is_read_when_it_is_whole() {
    let (rig, all, path) = one_segment(3);
    let (offset, length) = rig.frames(&path)[2];
    let whole = fs::read(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let half = (offset + length / 2) as usize;
    file.write_all_at(&vec![0; whole.len() - half], half as u64).unwrap();
    let mut reader = LogReader::open(&[rig.directory.path().to_owned()]).unwrap();
    let mut found = || std::iter::from_fn(|| reader.next_item().unwrap()).collect::<Vec<_>>();
    assert_eq!(found().len(), 2);
    assert_eq!(found().len(), 0, "nothing new");
    file.write_all_at(&whole[half..], half as u64).unwrap();
    let last = found();
    assert!(matches!(&last[..], [LogItem::Entry { sealed, .. }] if *sealed == all[2]), "{last:?}");
}

#[test]
fn a_reader_tells_damage_and_foreign_inputs() {
    let (rig, all, path) = one_segment(10);
    let frames = rig.frames(&path);
    rig.flip(&path, frames[4].0 + 30);
    for input in [path.clone(), rig.path(""), rig.directory.path().to_owned()] {
        let items = read_all(&[input]);
        assert_eq!(items.len(), 10);
        match &items[4] {
            LogItem::Damage { position, bytes, .. } => {
                assert_eq!((position.offset, *bytes), frames[4]);
                assert!(position.path.ends_with("00000001.seg"));
            }
            other => panic!("{other:?}"),
        }
        let jump = Standing::Jump { held: 4 };
        assert!(matches!(&items[5], LogItem::Entry { standing, .. } if *standing == jump));
    }
    let mut foreign = Rig::new();
    foreign.config.cluster = ClusterId([9; 16]);
    let open = foreign.open();
    open.append(all[..1].to_vec());
    open.journal.close();
    let both = [rig.directory.path().to_owned(), foreign.directory.path().to_owned()];
    let error = LogReader::open(&both).err().unwrap();
    assert!(matches!(error, LogError::Clusters { first: CLUSTER, .. }), "{error}");
    let nothing = tempfile::tempdir().unwrap();
    assert!(matches!(LogReader::open(&[nothing.path().to_owned()]), Err(LogError::NotALog(_))));
    assert!(matches!(LogReader::open(&[nothing.path().join("none")]), Err(LogError::Io { .. })));
}

/// Processor time that this process has used: on a busy machine the wall clock tells little.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

#[test]
fn figures_are_printed() {
    let mut rig = Rig::on_disk();
    rig.config.segment_bytes = 8 << 20;
    let open = rig.open();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    open.append(some(&mut mail, 1));
    let mut times: Vec<u128> = Vec::new();
    for _ in 0..300 {
        let batch = some(&mut mail, 1);
        let started = Instant::now();
        open.append(batch);
        times.push(started.elapsed().as_micros());
    }
    times.sort_unstable();
    println!("append of one entry, durable: median {} us, p99 {} us", times[150], times[297]);
    let count: usize =
        std::env::var("P2PDB_FIGURES_ENTRIES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let started = Instant::now();
    let mut left = count;
    while left > 0 {
        let size = left.min(500);
        let mut batch: Vec<_> = (1..size).map(|_| mail.small_unsigned()).collect();
        batch.push(mail.small());
        open.append(batch);
        left -= size;
    }
    println!("{count} entries sealed and appended in {:?}", started.elapsed());
    let usage = open.journal.usage();
    println!("{usage:?}");
    open.journal.close();
    for apply in [false, true] {
        let mut files = Files::default();
        let (started, cpu_before_s) = (Instant::now(), cpu_seconds());
        let on_item = |item| match item {
            Replayed::Entry(sealed) if apply => files.apply(sealed.entry()),
            _ => {}
        };
        let opened = journal::open(rig.config.clone(), &TestCertifier, Arc::new(|| 0), Arc::new(|_| ()), on_item);
        let (journal, recovered) = opened.unwrap();
        let entries = recovered.replayed;
        let cpu_s = cpu_seconds() - cpu_before_s;
        println!("{entries} entries opened in {:?} ({cpu_s:.2} s of cpu), applied: {apply}", started.elapsed());
        journal.close();
    }
    let started = Instant::now();
    let mut reader = LogReader::open(&[rig.directory.path().to_owned()]).unwrap();
    let mut read = 0;
    while reader.next_item().unwrap().is_some() {
        read += 1;
    }
    println!("{read} entries read by the log reader in {:?}", started.elapsed());
}
