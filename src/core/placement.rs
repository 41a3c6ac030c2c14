//! Where a stand-in goes (the paper, section 2): to the host with the fewest stand-ins, then with the lowest predicted load, then
//! next in the ring after the target.
//!
//! The order is total and made of the files and the decided placements alone, so every server with the same of these chooses the
//! same host. Counting stand-ins first keeps them on hosts of their own while one is free. A host qualifies when it is a
//! member, linked, not in maintenance, and has an original server ready.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::decision::Place;
use super::id::ServerName;
use super::load::Condition;
use super::merge::Files;
use super::ring::Ring;
use super::schema::file;

/// The state in the file `Original` of an original server that can be used.
pub const READY: &str = "suspended";
/// The state of one that is suspended and could take no address: procedures can be tried in it, and it stands in for nobody.
pub const LIMITED: &str = "limited";

/// A server that might take a stand-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub server: ServerName,
    /// Its original servers that are ready, in order.
    pub originals: Vec<String>,
    pub condition: Option<Condition>,
    /// Whom its stand-ins play, the most recent decision last.
    pub stand_ins: Vec<ServerName>,
    pub linked: bool,
    pub maintenance: bool,
}

/// Why a server takes no stand-in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    IsTheTarget,
    NotLinked,
    Maintenance,
    NoOriginal,
}

/// What was known of one candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    pub server: ServerName,
    pub stand_ins: usize,
    /// The predicted load: the largest share of processors, memory and network, in thousandths. `None`: it has no row in `Condition`,
    /// and comes last among those with as many stand-ins.
    pub load: Option<u32>,
    pub refused: Option<Refused>,
}

/// The choice, and all that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub target: ServerName,
    /// `None`: nobody qualifies.
    pub place: Option<Place>,
    /// The best first, those that were refused last.
    pub figures: Vec<Figure>,
}

/// What the group could bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Whichever so many servers fail, there is a place for all that they do. The quorum may set a narrower limit.
    pub can_lose: usize,
    /// Where each member's stand-in would go if it failed alone now.
    pub takers: Vec<Placement>,
}

/// All members as candidates. `linked` has this server itself; `placed` the stand-ins that are decided, oldest first.
pub fn candidates(
    files: &Files,
    ring: &Ring,
    linked: &BTreeSet<ServerName>,
    placed: &[(ServerName, Place)],
) -> Vec<Candidate> {
    let taken: BTreeSet<&Place> = placed.iter().map(|(_, place)| place).collect();
    let mut originals: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in files.records_of(file::ORIGINAL).filter(|row| row.field(2) == READY) {
        originals.entry(row.field(0)).or_default().push(row.field(1).to_owned());
    }
    let maintenance: BTreeSet<&str> = files.records_of(file::MAINTENANCE).map(|row| row.field(0)).collect();
    let candidate = |server: &ServerName| {
        let free = |original: &String| !taken.contains(&Place { host: server.clone(), original: original.clone() });
        Candidate {
            originals: originals.remove(server.as_str()).unwrap_or_default().into_iter().filter(free).collect(),
            condition: Condition::of(files, server),
            stand_ins: placed
                .iter()
                .filter(|(_, place)| place.host == *server)
                .map(|(target, _)| target.clone())
                .collect(),
            linked: linked.contains(server),
            maintenance: maintenance.contains(server.as_str()),
            server: server.clone(),
        }
    };
    ring.members().map(candidate).collect()
}

/// Chooses the host of a stand-in for `target`. `conditions` tells the expected load of servers, members or not: the last row
/// that each of them wrote; a server without a row is expected to need nothing.
pub fn place(
    target: &ServerName,
    ring: &Ring,
    candidates: &[Candidate],
    conditions: impl Fn(&ServerName) -> Option<Condition>,
) -> Placement {
    let mut ranked: Vec<(Figure, &Candidate)> =
        candidates.iter().map(|candidate| (figure(target, candidate, &conditions), candidate)).collect();
    ranked.sort_by_key(|(figure, candidate)| {
        let load = figure.load.unwrap_or(u32::MAX);
        (figure.refused.is_some(), figure.stand_ins, load, ring.distance(target, &candidate.server))
    });
    let place = ranked.first().filter(|(figure, _)| figure.refused.is_none()).and_then(|(_, candidate)| {
        Some(Place { host: candidate.server.clone(), original: candidate.originals.first()?.clone() })
    });
    Placement { target: target.clone(), place, figures: ranked.into_iter().map(|(figure, _)| figure).collect() }
}

fn figure(target: &ServerName, candidate: &Candidate, conditions: impl Fn(&ServerName) -> Option<Condition>) -> Figure {
    let refused = match candidate {
        Candidate { server, .. } if server == target => Some(Refused::IsTheTarget),
        Candidate { linked: false, .. } => Some(Refused::NotLinked),
        Candidate { maintenance: true, .. } => Some(Refused::Maintenance),
        Candidate { originals, .. } if originals.is_empty() => Some(Refused::NoOriginal),
        _ => None,
    };
    let load = candidate.condition.as_ref().map(|condition| {
        // Stand-ins that have come since the row was written are not in its shares.
        let counted = (condition.stand_ins as usize).min(candidate.stand_ins.len());
        let added: Vec<Condition> =
            candidate.stand_ins[counted..].iter().chain([target]).filter_map(conditions).collect();
        condition.with(&added).largest()
    });
    Figure { server: candidate.server.clone(), stand_ins: candidate.stand_ins.len(), load, refused }
}

/// What the group could bear now.
pub fn capacity(
    ring: &Ring,
    candidates: &[Candidate],
    conditions: impl Fn(&ServerName) -> Option<Condition>,
) -> Capacity {
    let takers = candidates.iter().map(|candidate| place(&candidate.server, ring, candidates, &conditions)).collect();
    Capacity { can_lose: can_lose(candidates), takers }
}

/// A server that is lost needs a place for itself and for each of its stand-ins, and takes its own ready original servers with
/// it. The worst servers to lose are those where the sum of both is largest, so looking at these is looking at all.
fn can_lose(candidates: &[Candidate]) -> usize {
    let places = |candidate: &Candidate| match candidate.linked && !candidate.maintenance {
        true => candidate.originals.len(),
        false => 0,
    };
    let available: usize = candidates.iter().map(places).sum();
    let mut costs: Vec<usize> =
        candidates.iter().map(|candidate| 1 + candidate.stand_ins.len() + places(candidate)).collect();
    costs.sort_by_key(|cost| Reverse(*cost));
    let mut needed = 0;
    let bearable = costs.iter().take_while(|cost| {
        needed += *cost;
        needed <= available
    });
    bearable.count().min(candidates.len().saturating_sub(1))
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = match self.refused {
            Some(Refused::IsTheTarget) => "is the target",
            Some(Refused::NotLinked) => "not linked",
            Some(Refused::Maintenance) => "in maintenance",
            Some(Refused::NoOriginal) => "no original server ready",
            None => {
                let load = self
                    .load
                    .map_or("load unknown".to_owned(), |load| format!("load {}.{:03}", load / 1000, load % 1000));
                return write!(out, "{}: {} stand-ins, {load}", self.server, self.stand_ins);
            }
        };
        write!(out, "{}: {refused}", self.server)
    }
}

impl fmt::Display for Placement {
    /// One line for the reason of a decision.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(out, "{} on {}", place.original, place.host)?,
            None => out.write_str("no host qualifies")?,
        }
        let figures: Vec<String> = self.figures.iter().map(ToString::to_string).collect();
        write!(out, " ({})", figures.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixture::{files, server};
    use crate::core::load::{Shares, Size};
    use proptest::prelude::*;

    fn condition(name: &ServerName, cpu: u32) -> Condition {
        let size = Size { processors: 2, memory_mib: 8192, network_mbit: 1000 };
        let shares = Shares { cpu, memory: 100, network: 0 };
        Condition { server: name.clone(), shares, stand_ins: 0, size }
    }

    /// S1 to S6 with two original servers each, the higher number the less busy.
    fn six() -> (Ring, Vec<Candidate>) {
        let names: Vec<ServerName> = (1..=6).map(|index| server(&format!("S{index}"))).collect();
        let candidate = |(index, name): (usize, &ServerName)| Candidate {
            server: name.clone(),
            originals: vec!["a".into(), "b".into()],
            condition: Some(condition(name, 700 - 100 * index as u32)),
            stand_ins: vec![],
            linked: true,
            maintenance: false,
        };
        let candidates = names.iter().enumerate().map(candidate).collect();
        (Ring::new(names.clone(), names.into_iter().collect()), candidates)
    }

    fn expected(name: &ServerName) -> Option<Condition> {
        Some(condition(name, 100))
    }

    /// Decides one placement after the other, as the chain does: for the target, and for the stand-ins that it had.
    fn lose(ring: &Ring, candidates: &mut Vec<Candidate>, target: &str) -> Option<String> {
        let at = candidates.iter().position(|candidate| candidate.server == server(target))?;
        let lost = candidates.remove(at);
        let mut host = None;
        for player in lost.stand_ins.into_iter().chain([lost.server]) {
            let place = place(&player, ring, candidates, expected).place?;
            let taker = candidates.iter_mut().find(|candidate| candidate.server == place.host).unwrap();
            taker.originals.retain(|original| *original != place.original);
            taker.stand_ins.push(player);
            host = Some(place.host.to_string());
        }
        host
    }

    #[test]
    fn the_least_busy_host_is_chosen_and_the_figures_are_told() {
        let (ring, mut candidates) = six();
        candidates[2].linked = false;
        candidates[3].maintenance = true;
        candidates[4].originals.clear();
        let placement = place(&server("S2"), &ring, &candidates, expected);
        assert_eq!(
            placement.to_string(),
            "a on S6 (S6: 0 stand-ins, load 0.300; S1: 0 stand-ins, load 0.800; S5: no original server ready; \
             S4: in maintenance; S3: not linked; S2: is the target)"
        );
    }

    #[test]
    fn candidates_are_what_the_files_and_the_decisions_say() {
        let files = files(
            "Server: S1, 1, 10.9.0.1:7400
             Server: S2, 2, 10.9.0.2:7400
             Server: S3, 3, 10.9.0.3:7400
             Group: S1
             Group: S3
             Original: S1, a, suspended, x
             Original: S1, b, suspended, x
             Original: S1, c, broken, x
             Original: S2, a, suspended, x
             Maintenance: S3, disk
             Condition: S1, 0.1, 0.2, 0.3, 0, 2, 2048, 1000",
        );
        let place = Place { host: server("S1"), original: "a".into() };
        let linked = BTreeSet::from([server("S1"), server("S3")]);
        let found = candidates(&files, &Ring::of(&files), &linked, &[(server("S2"), place)]);
        let s1 = Candidate {
            server: server("S1"),
            originals: vec!["b".into()],
            condition: Condition::of(&files, &server("S1")),
            stand_ins: vec![server("S2")],
            linked: true,
            maintenance: false,
        };
        assert!(s1.condition.is_some());
        let s3 = Candidate {
            server: server("S3"),
            originals: vec![],
            condition: None,
            stand_ins: vec![],
            linked: true,
            maintenance: true,
        };
        assert_eq!(found, [s1, s3]);
    }

    #[test]
    fn equal_hosts_are_taken_in_the_order_of_the_ring_after_the_target() {
        let (ring, mut candidates) = six();
        for candidate in &mut candidates {
            candidate.condition = Some(condition(&candidate.server, 300));
        }
        assert_eq!(place(&server("S2"), &ring, &candidates, expected).place.unwrap().host, server("S3"));
        assert_eq!(place(&server("S6"), &ring, &candidates, expected).place.unwrap().host, server("S1"));
        candidates[0].condition = None;
        assert_eq!(place(&server("S6"), &ring, &candidates, expected).place.unwrap().host, server("S2"));
    }

    #[test]
    fn half_of_six_fail_and_each_of_the_rest_takes_one() {
        let (ring, mut candidates) = six();
        let hosts: BTreeSet<Option<String>> =
            ["S1", "S2", "S3"].iter().map(|target| lose(&ring, &mut candidates, target)).collect();
        assert_eq!(hosts.len(), 3);
    }

    #[test]
    fn what_came_after_the_row_counts_as_if_it_were_in_it() {
        let (ring, mut candidates) = six();
        let hosts: Vec<_> = ["S1", "S2", "S3"].iter().map(|target| lose(&ring, &mut candidates, target)).collect();
        assert_eq!(hosts, [Some("S6".to_owned()), Some("S5".to_owned()), Some("S4".to_owned())]);
        let placement = place(&server("S9"), &ring, &candidates, expected);
        assert_eq!(placement.figures[0].to_string(), "S6: 1 stand-ins, load 0.400");
    }

    #[test]
    fn without_a_place_nobody_is_chosen() {
        let (ring, mut candidates) = six();
        candidates.iter_mut().for_each(|candidate| candidate.originals.clear());
        let placement = place(&server("S2"), &ring, &candidates, expected);
        assert_eq!(placement.place, None);
        assert!(placement.to_string().starts_with("no host qualifies ("));
        assert_eq!(capacity(&ring, &candidates, expected).can_lose, 0);
    }

    #[test]
    fn capacity_shrinks_with_every_loss() {
        let (ring, mut candidates) = six();
        let mut seen = vec![capacity(&ring, &candidates, expected).can_lose];
        for target in ["S6", "S5", "S4", "S3"] {
            lose(&ring, &mut candidates, target).unwrap();
            seen.push(capacity(&ring, &candidates, expected).can_lose);
        }
        assert_eq!(seen, [4, 3, 2, 1, 0]);
    }

    proptest! {
        /// The shortcut against trying every set of servers.
        #[test]
        fn whichever_servers_are_lost_there_is_a_place_for_all(
            hosts in proptest::collection::vec((0usize..3, 0usize..3, any::<bool>()), 1..7),
        ) {
            let candidate = |(index, (ready, playing, linked)): (usize, &(usize, usize, bool))| Candidate {
                server: server(&format!("S{index}")),
                originals: (0..*ready).map(|original| original.to_string()).collect(),
                condition: None,
                stand_ins: (0..*playing).map(|other| server(&format!("T{index}{other}"))).collect(),
                linked: *linked,
                maintenance: false,
            };
            let candidates: Vec<Candidate> = hosts.iter().enumerate().map(candidate).collect();
            let bears = |lost: u32| {
                let is_lost = |index: usize| lost & (1 << index) != 0;
                let needed: usize = (0..hosts.len()).filter(|at| is_lost(*at)).map(|at| 1 + hosts[at].1).sum();
                let left = (0..hosts.len()).filter(|at| !is_lost(*at) && hosts[*at].2);
                needed <= left.map(|at| hosts[at].0).sum()
            };
            let all_bear = |count: usize| {
                (0..1u32 << hosts.len()).filter(|lost| lost.count_ones() as usize == count).all(bears)
            };
            let wanted = (1..hosts.len()).take_while(|count| all_bear(*count)).count();
            prop_assert_eq!(can_lose(&candidates), wanted);
        }
    }
}
