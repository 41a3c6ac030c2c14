//! What the model checker walks through, whole, and that it finds what is broken on purpose.
//!
//! `P2PDB_MODEL=long cargo test --test decisions` adds the larger bounds, which take many minutes (nextest would end them).

use std::time::Instant;

use p2pdb::core::flaw::Flaw;
use p2pdb::core::quorum::Policy;
use stateright::{Checker, HasDiscoveries, Model};

use crate::group::{admit, recover};
use crate::model::{BROKEN, Scenario, broken};

const THREADS: usize = 2;

/// Two servers want each other, or a third, out of the group; nothing but the network goes wrong.
fn three() -> Scenario {
    Scenario {
        electors: 3,
        policy: Policy::Balanced,
        wishes: vec![(0, recover(2, 0)), (1, recover(0, 1))],
        crashes: 0,
        slow_disk: false,
        ticks: 0,
        loses_disk: None,
        flaw: None,
    }
}

/// Each of the two halves of a tie.
fn four() -> Scenario {
    Scenario { electors: 4, wishes: vec![(0, recover(1, 0)), (1, recover(0, 1))], ..three() }
}

fn one_wish(scenario: Scenario) -> Scenario {
    Scenario { wishes: vec![(0, recover(2, 0))], ..scenario }
}

/// An elector forgets all it has promised, between two that are at odds.
fn amnesia() -> Scenario {
    Scenario { loses_disk: Some(2), wishes: vec![(0, recover(1, 0)), (1, recover(0, 1))], ..three() }
}

/// Walks through all states; prints a row of the table in `decisions.md`.
fn holds(what: &str, scenario: Scenario) {
    let started = Instant::now();
    let slots = scenario.slots_to_decide();
    let checker = scenario.checker().threads(THREADS).spawn_bfs().join();
    println!("| {what} | {} | {} |", checker.state_count(), checker.unique_state_count());
    println!("{what}: depth {}, {:.1} s", checker.max_depth(), started.elapsed().as_secs_f64());
    if let Some(path) = checker.discovery(BROKEN) {
        let why = broken(path.last_state());
        panic!("{what}: {why}, after {:#?}", path.into_actions());
    }
    assert!(checker.is_done());
    // Whatever goes wrong, things can go well too: the model is not one in which nothing happens.
    (1..=slots).for_each(|slots| drop(checker.assert_any_discovery(Scenario::decides(slots))));
}

fn is_found(scenario: Scenario) {
    let flaw = scenario.flaw;
    let checker = scenario.checker().threads(THREADS).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.discovery(BROKEN).unwrap_or_else(|| panic!("{flaw:?} was not found"));
    let why = broken(path.last_state());
    println!("{flaw:?}: {why}, after {} steps; {} states", path.into_actions().len(), checker.state_count());
}

fn is_long() -> bool {
    std::env::var_os("P2PDB_MODEL").is_some_and(|value| value == "long")
}

#[test]
fn three_electors_never_decide_twice() {
    holds("3, two wishes", three());
    holds("3, two wishes, `strict`", Scenario { policy: Policy::Strict, ..three() });
    holds("3, two wishes, two crashes", Scenario { crashes: 2, ..three() });
    holds("3, one wish, a timeout and a crash", Scenario { ticks: 1, crashes: 1, ..one_wish(three()) });
    holds("3, one wish, a slow disk and two crashes", Scenario { slow_disk: true, crashes: 2, ..one_wish(three()) });
    if is_long() {
        holds("3, two wishes, a timeout", Scenario { ticks: 1, ..three() });
        holds("3, two wishes, a slow disk", Scenario { slow_disk: true, ..three() });
    }
}

#[test]
fn four_electors_never_decide_twice() {
    if is_long() {
        holds("4, two wishes, each the other's end", four());
        holds("4, two wishes, a crash", Scenario { crashes: 1, ..four() });
        holds("4, one wish, a timeout and a crash", Scenario { ticks: 1, crashes: 1, ..one_wish(four()) });
    }
    holds("4, two wishes in a row", Scenario { wishes: vec![(0, recover(2, 0)), (0, recover(3, 1))], ..four() });
    holds("4, two wishes", Scenario { wishes: vec![(0, recover(2, 0)), (1, recover(0, 1))], ..four() });
    holds("4, one wish, two crashes", Scenario { crashes: 2, ..one_wish(four()) });
}

#[test]
fn a_disk_that_is_lost_costs_a_vote_and_no_decision() {
    holds("3, two wishes, a lost disk and a crash", Scenario { crashes: 1, ..amnesia() });
    let admitted_again = vec![(0, recover(1, 0)), (1, admit(2, 2))];
    holds("3, a wish, a lost disk that is admitted again", Scenario { wishes: admitted_again, ..amnesia() });
}

#[test]
fn every_deliberate_fault_is_found() {
    for flaw in Flaw::OF_CHAIN {
        let scenario = match flaw {
            Flaw::ForgetPromise => Scenario { crashes: 1, ..three() },
            Flaw::VoteAfterAmnesia => amnesia(),
            _ => three(),
        };
        is_found(Scenario { flaw: Some(flaw), ..scenario });
    }
}
