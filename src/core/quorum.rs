//! Who decides, and how many of them are enough.
//!
//! | policy | a quorum is | any two share an elector |
//! |---|---|---|
//! | `strict` | more than half of the electorate | yes |
//! | `balanced` | that, or exactly half with the first elector among it | yes |
//! | `paper` | every elector that can be reached, however few | **no**: two halves that cannot reach each other both decide |
//!
//! `balanced` is dynamic-linear voting (Jajodia & Mutchler, "Dynamic Voting Algorithms for Maintaining the Consistency of a
//! Replicated Database", 1990): the electorate shrinks by decision with every failure, and a tie is broken by a fixed order.
//! Witnesses come last in that order: they decide for any half of the servers, and no server depends on one.
//! Servers whose policies are `strict` and `balanced` may be mixed: each quorum of the one is a quorum of the other.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::decision::Incarnation;
use super::id::ServerName;

/// Which sets of electors may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    Strict,
    #[default]
    Balanced,
    /// Unsafe in a partition.
    Paper,
}

impl fmt::Display for Policy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Policy::Strict => "strict",
            Policy::Balanced => "balanced",
            Policy::Paper => "paper",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Elector {
    pub name: ServerName,
    pub incarnation: Incarnation,
    /// It manages nothing: it only votes.
    pub witness: bool,
}

/// The electors in their order; the first breaks ties.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Electorate {
    electors: Vec<Elector>,
}

impl Electorate {
    /// `electors` in the order in which they were admitted.
    pub fn new(electors: impl IntoIterator<Item = Elector>) -> Self {
        let mut electors: Vec<Elector> = electors.into_iter().collect();
        electors.sort_by_key(|elector| elector.witness);
        Self { electors }
    }

    pub fn electors(&self) -> &[Elector] {
        &self.electors
    }

    pub fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.electors.iter().map(|elector| &elector.name)
    }

    pub fn contains(&self, name: &ServerName) -> bool {
        self.names().any(|elector| elector == name)
    }

    /// Whether this life of the server's memory may vote.
    pub fn admits(&self, name: &ServerName, incarnation: Incarnation) -> bool {
        self.electors.iter().any(|elector| elector.name == *name && elector.incarnation == incarnation)
    }

    /// Whether those who have voted may decide. `reachable` counts for [`Policy::Paper`] alone; whoever asks is in it.
    pub fn is_quorum(&self, policy: Policy, votes: &BTreeSet<ServerName>, reachable: &BTreeSet<ServerName>) -> bool {
        let voted = self.names().filter(|name| votes.contains(*name)).count();
        let half = self.electors.len();
        match policy {
            Policy::Strict => 2 * voted > half,
            Policy::Balanced => {
                let first = self.names().next().is_some_and(|first| votes.contains(first));
                2 * voted > half || 2 * voted == half && first
            }
            Policy::Paper => voted > 0 && self.names().all(|name| votes.contains(name) || !reachable.contains(name)),
        }
    }

    /// What a quorum needs, in words that follow "a quorum needs".
    pub fn needs(&self, policy: Policy) -> String {
        let all = self.electors.len();
        let majority = all / 2 + 1;
        match (policy, self.names().next()) {
            (Policy::Paper, _) => "all that can be reached".into(),
            (Policy::Balanced, Some(first)) if all.is_multiple_of(2) => {
                format!("{majority}, or {} with {first}", all / 2)
            }
            _ => majority.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> ServerName {
        ServerName::new(&format!("S{number}")).unwrap()
    }

    fn electorate(servers: usize, witnesses: usize) -> Electorate {
        let elector = |number| Elector { name: name(number), incarnation: Incarnation(1), witness: number > servers };
        // A witness that was admitted first comes last all the same.
        Electorate::new((1..=servers + witnesses).rev().map(elector).rev())
    }

    fn set(bits: u32) -> BTreeSet<ServerName> {
        (0..32).filter(|bit| bits & (1 << bit) != 0).map(|bit| name(bit + 1)).collect()
    }

    #[test]
    fn any_two_quorums_of_the_safe_policies_share_an_elector() {
        for size in 1..=7 {
            let electorate = electorate(size, 0);
            let quorums: Vec<u32> = (0..1 << size)
                .filter(|bits| electorate.is_quorum(Policy::Balanced, &set(*bits), &BTreeSet::new()))
                .collect();
            assert!(quorums.iter().all(|a| quorums.iter().all(|b| a & b != 0)), "{size} electors");
            let strict = |bits: &u32| electorate.is_quorum(Policy::Strict, &set(*bits), &BTreeSet::new());
            assert!((0..1 << size).filter(strict).all(|bits| quorums.contains(&bits)));
        }
    }

    #[test]
    fn a_witness_lets_either_half_decide() {
        let alone = BTreeSet::new();
        let four = electorate(4, 0);
        assert!(four.is_quorum(Policy::Balanced, &set(0b0011), &alone));
        assert!(!four.is_quorum(Policy::Balanced, &set(0b1100), &alone));
        let witnessed = electorate(4, 1);
        for half in [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100] {
            assert!(witnessed.is_quorum(Policy::Strict, &set(half | 0b10000), &alone));
            assert!(!witnessed.is_quorum(Policy::Balanced, &set(half), &alone));
        }
    }

    #[test]
    fn a_witness_never_comes_first() {
        let elector = |number, witness| Elector { name: name(number), incarnation: Incarnation(1), witness };
        let electorate = Electorate::new([elector(1, true), elector(2, false)]);
        assert!(electorate.is_quorum(Policy::Balanced, &set(0b10), &BTreeSet::new()));
        assert!(!electorate.is_quorum(Policy::Balanced, &set(0b01), &BTreeSet::new()));
    }

    #[test]
    fn the_papers_policy_asks_whoever_is_there() {
        let four = electorate(4, 0);
        assert!(four.is_quorum(Policy::Paper, &set(0b1000), &set(0b1000)));
        assert!(!four.is_quorum(Policy::Paper, &set(0b1000), &set(0b1100)));
        assert!(!four.is_quorum(Policy::Paper, &set(0), &set(0)));
        assert_eq!(four.needs(Policy::Balanced), "3, or 2 with S1");
        assert_eq!(electorate(5, 0).needs(Policy::Balanced), "3");
    }
}
