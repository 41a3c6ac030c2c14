//! The whole story on real daemons: servers fail while a client uses them, others play them, they come back. An observer on the
//! network sees to it that never two machines answer at one address.
//!
//! Each server is a network namespace with a bridge of its own; original servers are guests of the driver `process`. Needs root.

#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod group;
#[path = "../guests/rig.rs"]
#[allow(dead_code, reason = "only the network of it is used here")]
mod network;

use group::{Group, possible};
use network::wait_until;
use rustix::process::Signal;

#[test]
fn a_dead_machine_is_played_and_takes_its_place_again() {
    if !possible("a_dead_machine_is_played_and_takes_its_place_again") {
        return;
    }
    let mut group = Group::of("a", 4);
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
    let mut group = Group::of("b", 3);
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
    let mut group = Group::of("c", 5);
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
    let mut group = Group::of("d", 4);
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
    let mut group = Group::of("e", 4);
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
    let mut group = Group::of("f", 4);
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
    let mut group = Group::of("g", 5);
    group.power_off(2);
    // S2 manages S3; it dies as soon as it has told of the failure.
    wait_until("the failure is told", || !group.records("Problem").is_empty());
    group.power_off(1);
    group.wait_served(2, "played");
    group.wait_served(1, "played");
    group.assert_never_two();
}
