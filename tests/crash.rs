//! Daemons that die, disks that lose their power, fill up or rot: what was acknowledged is there afterwards (P1).
//!
//! `P2PDB_TEST_SECONDS` makes the loops longer than the 10 s that each has by default.

#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::disk::Disk;
use harness::writer::{Promise, Writer};
use harness::{Cluster, Server, skip, wait_until};
use p2pdb::core::io::Wait;
use p2pdb::edge::control::LinkState;

fn duration() -> Duration {
    let seconds = std::env::var("P2PDB_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

fn assert_has_all<'a>(server: &Server, promises: impl IntoIterator<Item = &'a Promise>) {
    let held: BTreeSet<_> = server.show("Load").into_iter().collect();
    let lost: Vec<_> = promises.into_iter().filter(|promise| !held.contains(&promise.record)).collect();
    assert!(lost.is_empty(), "{} has lost {} edits: {lost:?}", server.name, lost.len());
}

#[test]
fn a_daemon_that_is_killed_again_and_again_keeps_what_it_acknowledged() {
    let cluster = Cluster::of(1);
    let server = cluster.server("S1");
    let writer = Writer::start(server, "Load", "n", "some text", Wait::Local);
    let start = Instant::now();
    let mut kills = 0;
    while start.elapsed() < duration() {
        // Each life a little longer than the one before, so that kills fall into all phases of one.
        writer.wait_for_more(1 + kills % 40);
        server.kill();
        server.start();
        kills += 1;
    }
    let promises = writer.finish();
    println!("{kills} kills, {} edits acknowledged", promises.len());
    assert_has_all(server, &promises);
    cluster.finish();
}

#[test]
fn what_a_majority_acknowledged_survives_kills_of_any_server() {
    let cluster = Cluster::of(3);
    let writers: Vec<_> = [Wait::Local, Wait::Majority, Wait::All]
        .into_iter()
        .zip(cluster.servers())
        .map(|(wait, server)| Writer::start(server, "Load", &server.name, "some text", wait))
        .collect();
    let start = Instant::now();
    let mut kills = 0;
    while start.elapsed() < duration() {
        let victim = &cluster.servers()[kills % 3];
        writers[kills % 3].wait_for_more(1 + kills % 7);
        victim.kill();
        // One more kill now and then while the first is still down: the last one standing goes on.
        let second = &cluster.servers()[(kills + 1) % 3];
        if kills % 4 == 3 {
            second.kill();
            second.start();
        }
        victim.start();
        kills += 1;
    }
    println!("{kills} rounds");
    cluster.wait_operating();
    let promises: Vec<_> = writers.into_iter().flat_map(Writer::finish).collect();
    cluster.wait_same();
    for server in cluster.servers() {
        assert_has_all(server, &promises);
    }
    cluster.finish();
}

#[test]
fn an_edit_of_a_majority_outlives_its_origin_for_good() {
    let cluster = Cluster::of(3);
    let origin = cluster.server("S1");
    let writer = Writer::start(origin, "Load", "n", "x", Wait::Majority);
    writer.wait_for_more(30);
    origin.kill();
    let promises = writer.finish();
    // The machine is gone with its disk.
    fs::remove_dir_all(&origin.dir).unwrap();
    let rest: Vec<_> = cluster.servers()[1..].iter().collect();
    cluster.wait_same_among(&rest);
    let safe = promises.iter().filter(|promise| promise.reached >= Wait::Majority);
    assert_has_all(rest[0], safe.clone());
    assert_has_all(rest[1], safe);
}

/// Makes S1 on a disk of its own.
fn first_on_disk(cluster: &mut Cluster, disk: Disk, configure: impl FnOnce(&Server)) {
    let server = cluster.add_on_disk("S1", disk);
    configure(server);
    server.start();
    cluster.wait_operating();
}

#[test]
fn a_power_cut_loses_no_acknowledged_edit() {
    let mut cluster = Cluster::empty();
    let disk = match Disk::ext4(&cluster.root, 192) {
        Ok(disk) => disk,
        Err(why) => return skip("power cut on ext4", why),
    };
    // Small segments, so that cuts also fall on a new segment, a checkpoint, an archive.
    first_on_disk(&mut cluster, disk, |server| {
        server.set("log", "segment_mib", "1");
        server.set("log", "keep_live_mib", "1");
        server.set("log", "keep_live_hours", "0");
        server.set("log", "checkpoint_every_mib", "1");
    });
    let long = "x".repeat(3000);
    let mut promises = Vec::new();
    let start = Instant::now();
    let mut cuts = 0;
    while start.elapsed() < duration() || cuts < 5 {
        let server = cluster.server("S1");
        let prefix = format!("cut{cuts}");
        let writer = Writer::start(server, "Load", &prefix, &long, Wait::Local);
        writer.wait_for_more(3 + cuts * 61 % 200);
        if let Err(why) = cluster.disk().cut_power() {
            return skip("power cut on ext4", why);
        }
        cluster.server("S1").kill();
        promises.extend(writer.finish());
        cluster.disk().restore_power();
        let server = cluster.server("S1");
        server.start();
        assert_has_all(server, &promises);
        cuts += 1;
    }
    println!("{cuts} cuts, {} edits acknowledged", promises.len());
    let runs: BTreeSet<_> = runs_of(cluster.server("S1"), "S1");
    assert!(runs.len() > cuts / 2, "a restart goes on under a new run: {runs:?}");
    // Another server can take it all over.
    cluster.add("S2").start();
    cluster.wait_operating();
    cluster.wait_same();
    assert_has_all(cluster.server("S2"), &promises);
    cluster.finish();
}

#[test]
fn a_power_cut_of_one_of_three_is_made_good_by_the_others() {
    let mut cluster = Cluster::empty();
    let disk = match Disk::ext4(&cluster.root, 192) {
        Ok(disk) => disk,
        Err(why) => return skip("power cut on ext4", why),
    };
    first_on_disk(&mut cluster, disk, |_| {});
    cluster.grow(3);
    let writer = Writer::start(cluster.server("S1"), "Load", "n", "x", Wait::All);
    let other = Writer::start(cluster.server("S2"), "Load", "m", "x", Wait::Local);
    for cut in 0..3 {
        writer.wait_for_more(5 + cut * 10);
        if let Err(why) = cluster.disk().cut_power() {
            return skip("power cut on ext4", why);
        }
        cluster.server("S1").kill();
        other.wait_for_more(10);
        cluster.disk().restore_power();
        cluster.server("S1").start();
        cluster.wait_operating();
    }
    let promises = [writer.finish(), other.finish()].concat();
    cluster.wait_same();
    for server in cluster.servers() {
        assert_has_all(server, &promises);
    }
    cluster.finish();
}

/// The runs of an origin that the log holds.
fn runs_of(server: &Server, origin: &str) -> BTreeSet<String> {
    let dump = server.cli(&["dump", "--live", "--json", "--origin", origin]).ok();
    let entries = dump.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    entries.map(|entry| entry["entry"].as_str().unwrap().split([':', '~']).nth(1).unwrap().to_owned()).collect()
}

/// A group of `count` whose first server has 12 MiB; `None`, with a line, where that cannot be made.
fn cluster_on_small_disk(count: usize, test: &str) -> Option<Cluster> {
    let mut cluster = Cluster::empty();
    let disk = Disk::tmpfs(&cluster.root, 12).map_err(|why| skip(test, why)).ok()?;
    first_on_disk(&mut cluster, disk, |server| server.set("log", "segment_mib", "1"));
    cluster.grow(count);
    Some(cluster)
}

#[test]
fn a_full_disk_refuses_edits_clearly_and_frees_itself() {
    let Some(cluster) = cluster_on_small_disk(3, "full disk") else { return };
    let (full, other) = (cluster.server("S1"), cluster.server("S2"));
    let ballast = cluster.root.join("disk/ballast");
    full.add("Notes", "before, 1");
    fill(&ballast);
    // What is preallocated is used up first; then it says so.
    let writer = Writer::start(full, "Load", "n", &"x".repeat(3500), Wait::Local);
    wait_until("an edit is refused", || writer.refusals().iter().any(|text| text.contains("disk is full")));
    let promises = writer.finish();
    let told = full.cli(&["files", "add", "Notes", "during, 2"]);
    told.fails_saying(&["disk is full", "make room", "by themselves"]);
    let status = full.status().expect("status works");
    assert!(status.disk.full && status.alarms.iter().any(|alarm| alarm.name == "disk full"), "{status:?}");
    assert!(full.cli(&["status"]).ok().contains("FULL"));
    assert!(full.show("Notes").contains(&"before, 1".to_owned()), "reading works");
    // The others go on, and know who lags.
    let elsewhere = other.cli(&["files", "add", "Notes", "elsewhere, 3", "--wait", "all", "--timeout", "3"]);
    assert!(elsewhere.negative().contains("S1"));
    other.cli(&["files", "add", "Notes", "majority, 4", "--wait", "majority"]).ok();
    fs::remove_file(&ballast).unwrap();
    wait_until("it takes edits again by itself", || full.cli(&["files", "add", "Notes", "after, 5"]).code == Some(0));
    wait_until("the alarm is gone", || {
        full.status().is_some_and(|status| !status.disk.full && status.alarms.is_empty())
    });
    cluster.wait_same();
    assert_eq!(full.show("Notes"), ["after, 5", "before, 1", "elsewhere, 3", "majority, 4"]);
    assert_has_all(full, &promises);
    cluster.finish();
}

#[test]
fn a_daemon_started_on_a_full_disk_serves_what_it_has() {
    let Some(cluster) = cluster_on_small_disk(2, "full disk") else { return };
    let full = cluster.server("S1");
    full.add("Notes", "before, 1");
    cluster.wait_same();
    full.kill();
    let ballast = cluster.root.join("disk/ballast");
    fill(&ballast);
    cluster.server("S2").add("Notes", "elsewhere, 2");
    full.start();
    assert!(full.show("Notes").contains(&"before, 1".to_owned()));
    fs::remove_file(&ballast).unwrap();
    cluster.wait_operating();
    wait_until("it has caught up", || full.has("Notes", "elsewhere, 2"));
    // That life had no room for a view; the next one has.
    full.stop();
    full.start();
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn a_new_address_that_could_not_be_told_is_told_later() {
    let Some(cluster) = cluster_on_small_disk(2, "new address on a full disk") else { return };
    let (full, other) = (cluster.server("S1"), cluster.server("S2"));
    let address = std::net::SocketAddr::new(full.address.ip(), full.address.port() + 50).to_string();
    // It holds from the next start on.
    full.set("", "listen", &format!("\"{address}\""));
    let ballast = cluster.root.join("disk/ballast");
    fill(&ballast);
    let writer = Writer::start(full, "Load", "n", &"x".repeat(200), Wait::Local);
    wait_until("an edit is refused", || writer.refusals().iter().any(|text| text.contains("disk is full")));
    writer.finish();
    full.kill();
    full.start();
    let is_told = || other.show("Server").iter().any(|row| row.contains(&address));
    wait_until("it is linked, and could not write", || {
        full.link("S2") == Some(LinkState::Up) && (is_told() || full.status().is_some_and(|status| status.disk.full))
    });
    if is_told() {
        return skip("new address on a full disk", "there was room after all");
    }
    fs::remove_file(&ballast).unwrap();
    wait_until("the other is told", is_told);
    // That life had no room for a view; the next one has.
    full.stop();
    full.start();
    cluster.wait_operating();
    cluster.finish();
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
}

/// Three servers with some dozens of entries in the log of S2, which is stopped.
fn with_log() -> (Cluster, PathBuf) {
    let cluster = Cluster::of(3);
    for number in 0..30 {
        for server in cluster.servers() {
            server.add("Notes", &format!("{}-{number}, some text to damage", server.name));
        }
    }
    cluster.wait_same();
    let victim = cluster.server("S2");
    victim.stop();
    let segment = victim.segments().into_iter().max_by_key(|path| end_of_frames(path)).expect("it has a log");
    (cluster, segment)
}

/// How far the frames of a segment go; zeros follow.
fn end_of_frames(segment: &Path) -> u64 {
    let bytes = fs::read(segment).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}

fn flip(segment: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(segment).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn quarantined(server: &Server) -> Vec<PathBuf> {
    harness::find_files(&server.dir.join("quarantine"), &|_| true)
}

#[test]
fn damage_in_the_middle_of_the_log_is_quarantined_and_fetched_back() {
    let (cluster, segment) = with_log();
    let victim = cluster.server("S2");
    let end = end_of_frames(&segment);
    for part in [3, 5, 7] {
        flip(&segment, end * part / 10);
    }
    // Before the repair, the log says itself that it is not whole.
    let told = victim.run_plain(&["verify", &victim.dir.to_string_lossy()]);
    assert_eq!(told.code, Some(1), "{told:?}");
    victim.start();
    assert!(victim.log_text().contains("damaged"), "{}", victim.log_text());
    assert!(!quarantined(victim).is_empty(), "what was damaged is kept for somebody to look at");
    cluster.wait_operating();
    cluster.wait_same();
    // Its own new edits do not clash with what it had forgotten.
    victim.cli(&["files", "add", "Notes", "after, 1", "--wait", "all"]).ok();
    cluster.finish();
}

#[test]
fn damage_with_the_view_gone_too_is_fetched_back() {
    let (cluster, segment) = with_log();
    let victim = cluster.server("S2");
    flip(&segment, end_of_frames(&segment) / 2);
    fs::remove_dir_all(victim.dir.join("view")).unwrap();
    victim.start();
    cluster.wait_operating();
    victim.cli(&["files", "add", "Notes", "after, 1", "--wait", "all"]).ok();
    cluster.finish();
}

#[test]
fn a_torn_tail_is_cut_off_with_a_warning() {
    let (cluster, segment) = with_log();
    let victim = cluster.server("S2");
    let end = end_of_frames(&segment);
    let file = fs::File::options().write(true).open(&segment).unwrap();
    // The last frame lost its end, as if the power had gone.
    file.write_all_at(&[0; 40], end - 40).unwrap();
    victim.start();
    assert!(victim.log_text().contains("cut off"), "{}", victim.log_text());
    cluster.wait_operating();
    victim.cli(&["files", "add", "Notes", "after, 1", "--wait", "all"]).ok();
    cluster.finish();
}

#[test]
fn a_log_that_lost_its_tail_never_gives_a_number_twice() {
    let (cluster, segment) = with_log();
    let victim = cluster.server("S2");
    let end = end_of_frames(&segment);
    // The disk said "done" and forgot: half of the log is gone, the view has all.
    let file = fs::File::options().write(true).open(&segment).unwrap();
    file.write_all_at(&vec![0; (end / 2) as usize], end - end / 2).unwrap();
    victim.start();
    victim.add("Notes", "after, 1");
    cluster.wait_operating();
    victim.cli(&["files", "add", "Notes", "again, 2", "--wait", "all"]).ok();
    for server in cluster.servers() {
        assert!(!server.has_alarm("fork"), "{:?}", server.status());
    }
    cluster.finish();
}

#[test]
fn a_truncated_segment_is_filled_up_from_the_others() {
    let (cluster, segment) = with_log();
    let victim = cluster.server("S2");
    let end = end_of_frames(&segment);
    fs::File::options().write(true).open(&segment).unwrap().set_len(end / 2).unwrap();
    fs::remove_dir_all(victim.dir.join("view")).unwrap();
    victim.start();
    cluster.wait_operating();
    victim.cli(&["files", "add", "Notes", "after, 1", "--wait", "all"]).ok();
    cluster.finish();
}
