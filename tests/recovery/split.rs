//! A group of four that is split into halves: one half decides and plays the others, the other half lets go. The observer has an
//! eye on either side, so an address that is served by both halves shows.

use super::group::{Group, address, name, possible};
use super::network::{answers_from, wait_until};

/// The half `lost` is cut off from the rest, which plays it; then the network heals. What a quorum needs is said as `needs`.
fn one_half_plays_the_other(group: &mut Group, lost: [usize; 2], kept: [usize; 2], needs: &str) {
    let before = group.decisions(0);
    group.network.split(&lost);
    for server in lost {
        group.wait_served(server, "played");
    }
    for server in kept {
        group.wait_served(server, "itself");
    }
    // Nobody is left at any address on the side that cannot decide.
    for asker in lost {
        for server in 0..4 {
            assert!(!answers_from(&group.network.host(asker), &address(server)), "{} answers there", name(server));
        }
    }
    // Each half wants to recover the other, and only one gets it. S1 manages S2, S2 manages S3 and so on.
    let wanted = name((lost[1] + 1) % 4);
    wait_until("the lost half says whom it lacks", || {
        let why = group.cli(lost[1], &["why", &wanted]);
        why.contains("out of reach: ") && why.contains(&format!("a quorum needs {needs}"))
    });
    for server in lost {
        assert_eq!(group.decisions(server), before, "{} has decided", name(server));
    }

    group.network.join(&lost);
    for server in 0..4 {
        group.wait_served(server, "itself");
    }
    wait_until("the story ends", || group.records("Problem").is_empty() && group.records("Recovery").is_empty());
    assert_eq!(group.records("Group"), ["S1", "S2", "S3", "S4"]);
    let decided = group.decisions(0).split_off(before.len());
    for server in kept {
        assert!(!decided.iter().any(|act| act.starts_with(&name(server))), "{} was well: {decided:?}", name(server));
    }
    for server in 1..4 {
        wait_until("all know the same decisions", || group.decisions(server) == group.decisions(0));
    }
    wait_until("the originals are pristine", || {
        group.records("Original").iter().all(|row| row.contains(", suspended, "))
    });
    group.assert_never_two();
}

#[test]
fn the_half_with_the_witness_plays_the_half_with_the_first_server() {
    if !possible("the_half_with_the_witness_plays_the_half_with_the_first_server") {
        return;
    }
    let mut group = Group::with_witness(4);
    one_half_plays_the_other(&mut group, [0, 1], [2, 3], "3");
}

#[test]
fn without_a_witness_the_half_with_the_first_server_plays_the_other() {
    if !possible("without_a_witness_the_half_with_the_first_server_plays_the_other") {
        return;
    }
    let mut group = Group::of(4);
    one_half_plays_the_other(&mut group, [2, 3], [0, 1], "3, or 2 with S1");
}
