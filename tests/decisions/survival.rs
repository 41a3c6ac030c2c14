//! Which failures of six servers a group survives under each way to count votes. The table is in the record of the
//! decision; it is computed here, by the electorates that the daemon uses.

use std::collections::BTreeSet;

use p2pdb::core::decision::Incarnation;
use p2pdb::core::id::ServerName;
use p2pdb::core::quorum::{Elector, Electorate, Policy};

const SERVERS: usize = 6;

/// A way to count.
struct Method {
    name: &'static str,
    policy: Policy,
    /// Whether who has failed is decided out of the electorate.
    shrinks: bool,
    witness: bool,
}

const METHODS: [Method; 4] = [
    Method { name: "majority of all (Raft)", policy: Policy::Strict, shrinks: false, witness: false },
    Method { name: "shrinking majority (`strict`)", policy: Policy::Strict, shrinks: true, witness: false },
    Method { name: "dynamic-linear (`balanced`)", policy: Policy::Balanced, shrinks: true, witness: false },
    Method { name: "`balanced` and a witness", policy: Policy::Balanced, shrinks: true, witness: true },
];

fn name(number: usize) -> ServerName {
    ServerName::new(&format!("S{number}")).unwrap()
}

/// Servers are the bits of a number; a witness lives for ever.
fn decides(method: &Method, electors: u32, alive: u32) -> bool {
    let elector =
        |number: usize| Elector { name: name(number), incarnation: Incarnation(1), witness: number > SERVERS };
    let members = |bits: u32| (0..SERVERS).filter(move |bit| bits & (1 << bit) != 0).map(|bit| bit + 1);
    let witness = method.witness.then_some(SERVERS + 1);
    let electorate = Electorate::new(members(electors).chain(witness).map(elector));
    let votes: BTreeSet<ServerName> = members(alive).chain(witness).map(name).collect();
    alive != 0 && electorate.is_quorum(method.policy, &votes, &BTreeSet::new())
}

/// How many of the failures, one after the other, the group outlives.
fn outlives(method: &Method, failures: &[u32]) -> usize {
    let (mut electors, mut alive) = ((1 << SERVERS) - 1, (1 << SERVERS) - 1);
    for (survived, failure) in failures.iter().enumerate() {
        alive &= !failure;
        if !decides(method, electors, alive) {
            return survived;
        }
        electors = if method.shrinks { alive } else { electors };
    }
    failures.len()
}

/// All orders in which `rest` can fail, `at_once` at a time.
fn orders(rest: u32, at_once: u32) -> Vec<Vec<u32>> {
    let sets = (1..=rest).filter(|set| set & !rest == 0 && set.count_ones() == at_once);
    let mut all: Vec<Vec<u32>> = sets
        .flat_map(|set| orders(rest & !set, at_once).into_iter().map(move |tail| [vec![set], tail].concat()))
        .collect();
    if all.is_empty() {
        all.push(Vec::new());
    }
    all
}

fn row(method: &Method) -> String {
    let all = (1u32 << SERVERS) - 1;
    let mut cells = vec![method.name.to_owned()];
    for failed in 1..SERVERS as u32 {
        let sets: Vec<u32> = (1..=all).filter(|set| set.count_ones() == failed).collect();
        let survived = sets.iter().filter(|set| decides(method, all, all & !**set)).count();
        cells.push(format!("{survived}/{}", sets.len()));
    }
    for at_once in [1, 2] {
        let orders = orders(all, at_once);
        let survived: Vec<usize> = orders.iter().map(|order| outlives(method, order)).collect();
        let mean = survived.iter().sum::<usize>() as f64 / survived.len() as f64;
        cells.push(format!("{}–{} ({mean:.1})", survived.iter().min().unwrap(), survived.iter().max().unwrap()));
    }
    format!("| {} |", cells.join(" | "))
}

#[test]
fn the_table_of_what_survives_what_is_the_computed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/adr/0005-decision-chain.md");
    let record = std::fs::read_to_string(path).unwrap();
    let rows = METHODS.map(|method| row(&method));
    rows.iter().for_each(|row| println!("{row}"));
    assert!(rows.iter().all(|row| record.contains(row)), "the record lacks one of these rows");
}
