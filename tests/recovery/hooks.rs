//! The hooks that deal with a server that has failed. The test is the management board that they ask: a hook tells what it wants in
//! one file and reads the answer from a named pipe, so it runs exactly as long as the test lets it.

use std::path::Path;

use p2pdb::edge::process_identity::ProcessIdentity;

use super::group::{Group, possible};
use super::network::{run, wait_until};

/// A hook that asks the board, and says what the board says.
const ASKS: &str = r#"echo "$P2PDB_SERVER" > "$P2PDB_DIR/../asked"; cat "$P2PDB_DIR/../board""#;

/// Waits until a hook asks about S2.
fn wait_asked(group: &Group) {
    let asked = group.path("asked");
    wait_until("the board is asked", || is_text(&asked, "S2\n"));
}

fn is_text(path: &Path, text: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|held| held == text)
}

/// Waits for the outcome of the hook that was run for S2, and until `why` tells it too.
fn wait_hook_ended(group: &Group, hook: &str, how: &str, said: &str) {
    let row = format!("S2, {hook}, {how}, {said}");
    wait_until("the file says how the hook ended", || group.records("Hook").contains(&row));
    let why = group.cli(0, &["why", "S2"]);
    for words in [format!("the hook {hook} is {how}"), said.to_owned()] {
        assert!(why.contains(&words), "{words:?} is not in:\n{why}");
    }
    let log = std::fs::read_to_string(group.path("S1.log")).unwrap();
    assert!(log.lines().any(|line| line.contains("hook ") && line.contains(said)), "{said:?} is not in:\n{log}");
}

#[test]
fn a_machine_that_hangs_is_fenced_before_its_address_is_taken() {
    if !possible("a_machine_that_hangs_is_fenced_before_its_address_is_taken") {
        return;
    }
    let starts = r#"touch "$P2PDB_DIR/../started""#;
    let mut group = Group::with_hooks(4, &[("fence", ASKS), ("restart_server", starts)]);
    run("mkfifo", group.path("board").to_str().unwrap());
    group.hang(1);
    wait_asked(&group);
    // All is ready, and its lease is over; but its kernel answers, and the board has not switched it off yet.
    wait_until("the stand-in waits for the address to fall silent", || {
        let rows = group.records("Recovery");
        rows.iter().any(|row| row.starts_with("S2, waiting, ") && row.contains("somebody still answers at the address"))
    });
    assert!(group.records("Fence").is_empty() && group.records("Hook").is_empty(), "the hook has not ended");
    assert!(!group.path("started").exists(), "it was started before it was switched off");
    group.network.plug(1, false);
    std::fs::write(group.path("board"), "the port of S2 is off\n").unwrap();
    group.wait_served(1, "played");
    wait_hook_ended(&group, "fence", "done", "the port of S2 is off");
    let fence = group.records("Fence");
    assert!(fence.len() == 1 && fence[0].starts_with("S2, ") && fence[0].contains(", fenced, S1"), "{fence:?}");
    assert!(group.cli(0, &["why", "S2"]).contains("it does not serve: fenced"));
    wait_until("it is to be started", || group.path("started").exists());
    group.power_off(1);
    group.power_on(1);
    group.wait_served(1, "itself");
    group.assert_never_two();
}

#[test]
fn a_server_that_its_manager_has_restarted_takes_its_place_again() {
    if !possible("a_server_that_its_manager_has_restarted_takes_its_place_again") {
        return;
    }
    let mut group = Group::with_hooks(4, &[("restart_server", ASKS)]);
    run("mkfifo", group.path("board").to_str().unwrap());
    group.power_off(1);
    wait_asked(&group);
    // Its stand-in may be on the way still, or serve already.
    group.power_on(1);
    std::fs::write(group.path("board"), "S2 is on\n").unwrap();
    group.wait_served(1, "itself");
    wait_hook_ended(&group, "restart_server", "done", "S2 is on");
    wait_until("the story ends", || group.records("Problem").is_empty() && group.records("Recovery").is_empty());
    assert_eq!(group.records("Group"), ["S1", "S2", "S3", "S4"]);
    assert!(group.cli(0, &["why", "S2"]).contains("S2 takes its place again"));
    group.assert_never_two();
}

#[test]
fn a_hook_that_hangs_is_ended_and_the_recovery_goes_on() {
    if !possible("a_hook_that_hangs_is_ended_and_the_recovery_goes_on") {
        return;
    }
    let hangs = r#"sleep 1000 & echo $! > "$P2PDB_DIR/../asked"; wait"#;
    let mut group = Group::with_hurried_hooks(4, &[("fence", hangs)], 1_000);
    group.power_off(1);
    group.wait_served(1, "played");
    wait_hook_ended(&group, "fence", "failed", "/bin/sh was killed after 1000 ms");
    let started: i32 = std::fs::read_to_string(group.path("asked")).unwrap().trim().parse().unwrap();
    wait_until("what the hook has started is gone", || ProcessIdentity::of(started).is_none());
    assert!(group.records("Fence").is_empty(), "nobody has fenced it");
    assert!(group.cli(0, &["status"]).contains("hook fence of S2"), "there is no alarm");
    group.power_on(1);
    group.wait_served(1, "itself");
    group.assert_never_two();
}
