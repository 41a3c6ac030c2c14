//! The whole story on real daemons: servers fail while a client uses them, others play them, they come back. An observer on the
//! network sees to it that never two machines answer at one address.
//!
//! Each server is a network namespace with a bridge of its own; original servers are guests of the driver `process`. Needs root.

#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod group;
mod hooks;
#[path = "../guests/rig.rs"]
#[allow(dead_code, reason = "only the network of it is used here")]
mod network;
mod split;

use group::{Group, address, possible};
use network::{answers_from, wait_until};
use rustix::process::Signal;

#[test]
fn a_dead_machine_is_played_and_takes_its_place_again() {
    if !possible("a_dead_machine_is_played_and_takes_its_place_again") {
        return;
    }
    let mut group = Group::of(4);
    group.power_off(1);
    group.wait_served(1, "played");
    wait_until("the files say who plays it", || {
        let problem = group.records("Problem");
        problem.len() == 1 && problem[0].starts_with("S2b, S2, S")
    });
    assert_eq!(group.records("Group"), ["S1", "S3", "S4"]);
    let why = group.cli(0, &["why", "S2"]);
    for words in
        ["S2 is out of the group and played by original-1", "the failure is certain", ": S2 is played by original-1 on"]
    {
        assert!(why.contains(words), "{words:?} is not in:\n{why}");
    }
    group.power_on(1);
    group.wait_served(1, "itself");
    wait_until("the story ends", || group.records("Problem").is_empty() && group.records("Recovery").is_empty());
    assert_eq!(group.records("Group").len(), 4);
    wait_until("the original is pristine", || {
        group.records("Original").iter().all(|row| row.contains(", suspended, "))
    });
    assert!(group.cli(0, &["why", "S2"]).contains("S2 takes its place again"));
    group.assert_never_two();
}

#[test]
fn a_service_that_fails_is_played_until_it_is_restarted() {
    if !possible("a_service_that_fails_is_played_until_it_is_restarted") {
        return;
    }
    let mut group = Group::of(3);
    group.kill_service(2);
    group.wait_served(2, "played");
    group.start_service(2);
    group.wait_served(2, "itself");
    group.assert_never_two();
}

#[test]
fn neighbours_that_die_together_are_played_by_different_hosts() {
    if !possible("neighbours_that_die_together_are_played_by_different_hosts") {
        return;
    }
    let mut group = Group::of(5);
    group.power_off(1);
    group.power_off(2);
    group.wait_served(1, "played");
    group.wait_served(2, "played");
    wait_until("the files say who plays them", || group.records("Problem").iter().all(|row| !row.starts_with("---")));
    let hosts: Vec<String> =
        group.records("Problem").iter().map(|row| row.rsplit(", ").next().unwrap().to_owned()).collect();
    assert!(hosts.len() == 2 && hosts[0] != hosts[1], "{hosts:?}");
    group.assert_never_two();
}

#[test]
fn a_frozen_daemon_loses_its_address_in_time() {
    if !possible("a_frozen_daemon_loses_its_address_in_time") {
        return;
    }
    let mut group = Group::of(4);
    group.signal_daemon(3, Signal::STOP);
    group.wait_served(3, "played");
    group.signal_daemon(3, Signal::CONT);
    group.wait_served(3, "itself");
    group.assert_never_two();
}

#[test]
fn a_server_that_was_cut_off_comes_back_with_the_edits_that_it_made() {
    if !possible("a_server_that_was_cut_off_comes_back_with_the_edits_that_it_made") {
        return;
    }
    let mut group = Group::of(4);
    group.network.plug(2, false);
    group.wait_served(2, "played");
    group.cli(2, &["files", "add", "Notes", "written, alone"]);
    group.network.plug(2, true);
    group.wait_served(2, "itself");
    wait_until("the others have its edit", || group.records("Notes") == ["written, alone"]);
    group.assert_never_two();
}

#[test]
fn when_the_host_of_a_stand_in_dies_both_are_played() {
    if !possible("when_the_host_of_a_stand_in_dies_both_are_played") {
        return;
    }
    let mut group = Group::of(4);
    group.power_off(1);
    group.wait_served(1, "played");
    wait_until("the files say who plays it", || group.records("Problem").iter().any(|row| row.starts_with("S2b")));
    let row = group.records("Problem").remove(0);
    let host: usize = row.rsplit(", S").next().unwrap().parse::<usize>().unwrap() - 1;
    group.power_off(host);
    group.wait_served(1, "played");
    group.wait_served(host, "played");
    group.assert_never_two();
}

#[test]
fn when_the_manager_dies_in_the_middle_others_go_on() {
    if !possible("when_the_manager_dies_in_the_middle_others_go_on") {
        return;
    }
    let mut group = Group::of(5);
    group.power_off(2);
    // S2 manages S3; it dies as soon as it has told of the failure.
    wait_until("the failure is told", || !group.records("Problem").is_empty());
    group.power_off(1);
    group.wait_served(2, "played");
    group.wait_served(1, "played");
    group.assert_never_two();
}

#[test]
fn a_daemon_that_is_killed_alone_loses_its_address_in_time() {
    if !possible("a_daemon_that_is_killed_alone_loses_its_address_in_time") {
        return;
    }
    let mut group = Group::of(4);
    group.kill_daemon(3);
    group.wait_served(3, "played");
    group.start(3);
    group.wait_served(3, "itself");
    group.assert_never_two();
}

#[test]
fn the_smaller_side_of_a_partition_lets_go_of_what_the_larger_takes() {
    if !possible("the_smaller_side_of_a_partition_lets_go_of_what_the_larger_takes") {
        return;
    }
    let mut group = Group::of(5);
    group.network.split(&[0, 1]);
    group.wait_served(0, "played");
    group.wait_served(1, "played");
    // The observer is on the larger side; on the smaller one nobody is left at these addresses.
    for (asker, server) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert!(!answers_from(&group.network.host(asker), &address(server)), "{server} answers {asker}");
    }
    group.network.join(&[0, 1]);
    group.wait_served(0, "itself");
    group.wait_served(1, "itself");
    wait_until("the story ends", || group.records("Problem").is_empty() && group.records("Recovery").is_empty());
    assert_eq!(group.records("Group").len(), 5);
    group.assert_never_two();
}

#[test]
fn hooks_tell_people_restart_services_and_say_when_a_server_is_ready() {
    if !possible("hooks_tell_people_restart_services_and_say_when_a_server_is_ready") {
        return;
    }
    let hooks = [
        ("notify", r#"echo "$P2PDB_SERVER, $P2PDB_REASON" >> "$P2PDB_DIR/../told""#),
        ("restart_service", r#"touch "$P2PDB_DIR/../restart-$P2PDB_SERVER""#),
        ("ready", r#"touch "$P2PDB_DIR/../asked"; test -e "$P2PDB_DIR/../ready""#),
    ];
    let mut group = Group::with_hooks(4, &hooks);
    group.power_off(1);
    group.wait_served(1, "played");
    let told = group.path("told");
    wait_until("people are told", || {
        std::fs::read_to_string(&told).is_ok_and(|text| text.lines().any(|line| line.starts_with("S2, decision")))
    });
    group.power_on(1);
    wait_until("the server asks whether it is ready", || group.path("asked").exists());
    assert!(group.records("Problem").iter().any(|row| row.starts_with("S2b, S2")), "it has not waited");
    group.wait_served(1, "played");
    std::fs::write(group.path("ready"), "").unwrap();
    group.wait_served(1, "itself");
    group.kill_service(2);
    wait_until("the service is to be restarted", || group.path("restart-S3").exists());
    group.start_service(2);
    group.wait_served(2, "itself");
    group.assert_never_two();
}
