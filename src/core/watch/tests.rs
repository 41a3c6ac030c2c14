//! A small world: a ring of servers that watch each other, on a network that can be cut. Time runs in steps of the node's tick.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::core::check::{Check, Preset};
use crate::core::probe::ProbeKind;
use crate::core::record::Record;
use crate::core::ring::Ring;

const TICK_US: u64 = 50_000;
const SECOND: u64 = 1_000_000;
/// How long a link survives the silence of its peer, and how long it takes to come back.
const LINK_US: u64 = SECOND;

fn server(index: usize) -> ServerName {
    ServerName::new(&format!("S{index}")).unwrap()
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    at_us: u64,
    by: usize,
    output: Output,
}

/// Servers are numbered from 1. Each has a service with one check, and its host answers echoes.
struct World {
    now_us: u64,
    watches: BTreeMap<usize, Watch>,
    size: usize,
    /// Hosts without power.
    dead: BTreeSet<usize>,
    /// Services that refuse.
    stopped: BTreeSet<usize>,
    /// Cut off from the service network, and from the management network.
    no_service_network: BTreeSet<usize>,
    no_management_network: BTreeSet<usize>,
    /// One asks the other in vain: one way only.
    deaf: BTreeSet<(usize, usize)>,
    links: BTreeMap<(usize, usize), u64>,
    under_way: Vec<(u64, usize, Input)>,
    said: Vec<Said>,
}

fn address(index: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, index as u8).into()
}

fn assignment(me: usize, members: &[usize], check: &str) -> Assignment {
    let ring =
        Ring::new(members.iter().map(|index| server(*index)), members.iter().map(|index| server(*index)).collect());
    let mut watched = Vec::new();
    for target in members {
        let managers = ring.managers(&server(*target), &server(*target));
        let role = match Some(server(me)) {
            _ if me == *target => Role::Own,
            name if name == managers.first => Role::First,
            name if name == managers.second => Role::Second,
            _ => continue,
        };
        let record = Record::parse(&format!("S{target}, it, {check}")).unwrap();
        watched.push(Watched {
            target: server(*target),
            host: server(*target),
            here: me == *target,
            role,
            managers,
            address: address(*target),
            checks: vec![Check::parse(&record, Preset::Fast).unwrap()],
        });
    }
    Assignment { watched, others: members.len() - 1, ..Assignment::default() }
}

impl World {
    fn new(size: usize, check: &str) -> Self {
        let mut world = Self {
            now_us: 0,
            watches: (1..=size).map(|index| (index, Watch::default())).collect(),
            size,
            dead: BTreeSet::new(),
            stopped: BTreeSet::new(),
            no_service_network: BTreeSet::new(),
            no_management_network: BTreeSet::new(),
            deaf: BTreeSet::new(),
            links: BTreeMap::new(),
            under_way: Vec::new(),
            said: Vec::new(),
        };
        let members: Vec<usize> = (1..=size).collect();
        for me in 1..=size {
            world.input(me, Input::Assign(assignment(me, &members, check)));
        }
        world.run(5 * SECOND);
        assert!(world.verdicts().is_empty());
        world
    }

    fn run(&mut self, for_us: u64) {
        let end_us = self.now_us + for_us;
        while self.now_us < end_us {
            self.now_us += TICK_US;
            self.turn_links();
            let (due, later) = std::mem::take(&mut self.under_way).into_iter().partition(|(at, ..)| *at <= self.now_us);
            self.under_way = later;
            let due: Vec<(u64, usize, Input)> = due;
            for (_, to, input) in due {
                self.input(to, input);
            }
            for me in 1..=self.size {
                self.input(me, Input::Tick);
            }
        }
    }

    fn turn_links(&mut self) {
        for a in 1..=self.size {
            for b in (1..=self.size).filter(|b| *b != a) {
                let up = [a, b].iter().all(|it| !self.dead.contains(it) && !self.no_management_network.contains(it));
                let linked = self.watches[&a].linked.contains_key(&server(b));
                let changed_us = *self.links.entry((a, b)).or_insert(self.now_us);
                if up == linked {
                    self.links.insert((a, b), self.now_us);
                } else if self.now_us >= changed_us + if linked { LINK_US } else { LINK_US / 2 } {
                    let peer = server(b);
                    self.input(a, if up { Input::LinkUp { peer } } else { Input::LinkDown { peer } });
                }
            }
        }
    }

    fn input(&mut self, me: usize, input: Input) {
        if self.dead.contains(&me) {
            return;
        }
        let outputs = self.watches.get_mut(&me).unwrap().handle(self.now_us, input);
        for output in outputs {
            match output {
                Output::Ask(probe) => self.answer(me, probe),
                Output::Tell { to, opinion } => {
                    let to = to.as_str()[1..].parse().unwrap();
                    self.under_way.push((self.now_us, to, Input::Opinion { from: server(me), opinion }));
                }
                output => self.said.push(Said { at_us: self.now_us, by: me, output }),
            }
        }
    }

    fn answer(&mut self, me: usize, probe: Probe) {
        let IpAddr::V4(address) = probe.address else { unreachable!() };
        let target = usize::from(address.octets()[3]);
        let cut = |it| self.no_service_network.contains(&it) && me != target;
        let silent = self.dead.contains(&target) || cut(me) || cut(target) || self.deaf.contains(&(me, target));
        let (after_ms, outcome) = match probe.kind {
            _ if silent => (probe.timeout_ms, ProbeOutcome::Failed("no answer".into())),
            ProbeKind::Icmp => (0, ProbeOutcome::Answered { took_us: 100 }),
            _ if self.stopped.contains(&target) => (0, ProbeOutcome::Refused("connection refused".into())),
            _ => (0, ProbeOutcome::Answered { took_us: 100 }),
        };
        self.under_way.push((self.now_us + after_ms * 1000, me, Input::Outcome { id: probe.id, outcome }));
    }

    /// By whom, of whom, what, and how long after `since_us`.
    fn verdicts_since(&self, since_us: u64) -> Vec<(usize, String, Failure, u64)> {
        let verdict = |said: &Said| match &said.output {
            Output::Verdict(verdict) if verdict.role != Role::Own => {
                Some((said.by, verdict.target.to_string(), verdict.failure, (said.at_us - since_us) / 1000))
            }
            _ => None,
        };
        self.said.iter().filter(|said| said.at_us > since_us).filter_map(verdict).collect()
    }

    fn verdicts(&self) -> Vec<(usize, String, Failure, u64)> {
        self.verdicts_since(0)
    }

    fn report(&self, by: usize, of: usize) -> TargetReport {
        let reports = self.watches[&by].reports(self.now_us);
        reports.into_iter().find(|report| report.target == server(of)).unwrap()
    }

    /// Who has put out `Cleared` of whom.
    fn cleared(&self, by: usize, of: usize) -> bool {
        let is = |said: &Said| {
            said.by == by && matches!(&said.output, Output::Cleared { target, .. } if *target == server(of))
        };
        self.said.iter().any(is)
    }
}

#[test]
fn a_stopped_service_is_judged_once_by_the_first_manager_within_two_seconds() {
    for phase in 0..10 {
        let mut world = World::new(6, "smtp 25");
        world.run(phase * 100_000);
        let at_us = world.now_us;
        world.stopped.insert(2);
        world.run(5 * SECOND);
        let verdicts = world.verdicts();
        assert_eq!(verdicts.len(), 1, "{verdicts:?}");
        let (by, target, failure, _) = &verdicts[0];
        assert_eq!((*by, target.as_str(), *failure), (1, "S2", Failure::Service));
        assert_eq!(world.watches[&1].standing(world.now_us).count(), 1);
        let after_ms = world.verdicts_since(at_us)[0].3;
        assert!(after_ms < 2000, "{after_ms} ms");
        world.stopped.clear();
        world.run(5 * SECOND);
        assert!(world.cleared(1, 2) && world.cleared(3, 2));
        assert_eq!(world.report(1, 2).health, Health::Healthy);
    }
}

#[test]
fn a_server_judges_its_own_service_for_itself() {
    let mut world = World::new(3, "smtp 25");
    world.stopped.insert(2);
    world.run(3 * SECOND);
    let own = |said: &&Said| matches!(&said.output, Output::Verdict(verdict) if verdict.role == Role::Own);
    let own: Vec<&Said> = world.said.iter().filter(own).collect();
    assert_eq!(own.iter().map(|said| said.by).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_dead_host_and_a_cut_cable_are_told_apart() {
    for phase in 0..10 {
        let mut dead = World::new(6, "smtp 25");
        dead.run(phase * 100_000);
        let at_us = dead.now_us;
        dead.dead.insert(2);
        dead.run(5 * SECOND);
        let verdicts = dead.verdicts_since(at_us);
        assert!(verdicts.iter().all(|(by, target, ..)| *by == 1 && target == "S2"), "{verdicts:?}");
        assert!(verdicts[0].3 < 2000, "{verdicts:?}");
        assert_eq!(verdicts.last().unwrap().2, Failure::Host);
    }
    let mut cut = World::new(6, "smtp 25");
    cut.no_service_network.insert(2);
    cut.run(5 * SECOND);
    let verdicts = cut.verdicts();
    assert_eq!(verdicts.len(), 1, "{verdicts:?}");
    assert_eq!((verdicts[0].0, verdicts[0].1.as_str(), verdicts[0].2), (1, "S2", Failure::Network));
    assert_eq!(cut.report(2, 1).health, Health::Blind(Blindness::ServiceNetwork));
}

#[test]
fn neighbours_that_die_together_are_all_judged() {
    for dead in [vec![1, 3], vec![2, 3], vec![1, 2, 3], vec![2, 4, 6]] {
        let mut world = World::new(6, "smtp 25");
        let at_us = world.now_us;
        world.dead.extend(dead.iter().copied());
        world.run(4 * SECOND);
        assert!(world.verdicts_since(at_us).iter().all(|(.., after_ms)| *after_ms < 2000), "{:?}", world.verdicts());
        // As the group does: who is judged leaves the ring, and the rest closes up.
        for _ in 0..3 {
            let judged: BTreeSet<String> = world.verdicts().into_iter().map(|(_, target, ..)| target).collect();
            let left: Vec<usize> = (1..=6).filter(|index| !judged.contains(&format!("S{index}"))).collect();
            for me in &left {
                world.input(*me, Input::Assign(assignment(*me, &left, "smtp 25")));
            }
            world.run(3 * SECOND);
        }
        let verdicts = world.verdicts();
        let judged: BTreeSet<&str> = verdicts.iter().map(|(_, target, ..)| target.as_str()).collect();
        let wanted: BTreeSet<String> = dead.iter().map(|index| format!("S{index}")).collect();
        assert_eq!(judged, wanted.iter().map(String::as_str).collect(), "{verdicts:?}");
    }
}

#[test]
fn the_second_manager_judges_when_the_first_is_dead() {
    let mut world = World::new(6, "smtp 25");
    world.dead.insert(1);
    world.stopped.insert(2);
    world.run(6 * SECOND);
    assert!(
        world
            .verdicts()
            .iter()
            .any(|(by, target, failure, _)| { (*by, target.as_str(), *failure) == (3, "S2", Failure::Service) })
    );
}

#[test]
fn a_manager_that_takes_the_place_of_a_dead_one_needs_one_failure_to_agree() {
    for phase in 0..10 {
        let mut world = World::new(6, "smtp 25");
        world.run(phase * 100_000);
        world.dead.extend([2, 3]);
        while world
            .verdicts()
            .iter()
            .all(|(_, target, failure, _)| (target.as_str(), *failure) != ("S2", Failure::Host))
        {
            world.run(TICK_US);
            assert!(world.now_us < 20 * SECOND);
        }
        // Until the other manager of S3 is certain, too.
        while world.report(4, 3).health != Health::Failed(Failure::Host) {
            world.run(TICK_US);
            assert!(world.now_us < 20 * SECOND);
        }
        let decided_us = world.now_us;
        for me in [1, 4, 5, 6] {
            world.input(me, Input::Assign(assignment(me, &[1, 3, 4, 5, 6], "smtp 25")));
        }
        world.run(2 * SECOND);
        let verdicts = world.verdicts_since(decided_us);
        let (by, target, failure, after_ms) = verdicts.iter().find(|(_, target, ..)| target == "S3").unwrap();
        assert_eq!((*by, target.as_str(), *failure), (1, "S3", Failure::Host));
        assert!(*after_ms <= 500, "one question of 400 ms: {after_ms}");
    }
}

#[test]
fn one_failure_is_not_enough_while_the_host_answers_or_has_answered() {
    // The first manager reaches nothing of S2, neither its service nor its daemon. The second loses one answer; or all of them for a moment.
    for is_silent in [false, true] {
        let mut world = World::new(6, "smtp 25");
        world.deaf.insert((1, 2));
        world.no_management_network.insert(2);
        world.run(5 * SECOND);
        assert_eq!(world.report(1, 2).health, Health::Failed(Failure::Host));
        assert_eq!(world.report(3, 2).health, Health::Healthy);
        if is_silent {
            world.deaf.insert((3, 2));
        } else {
            world.stopped.insert(2);
        }
        while world.report(3, 2).health == Health::Healthy {
            world.run(TICK_US);
            assert!(world.now_us < 20 * SECOND);
        }
        assert_eq!(world.report(3, 2).health, Health::Suspect);
        world.deaf.remove(&(3, 2));
        world.stopped.clear();
        world.run(3 * SECOND);
        assert!(world.verdicts().iter().all(|(_, target, ..)| target != "S2"), "{:?}", world.verdicts());
    }
}

#[test]
fn one_manager_alone_accuses_nobody_while_the_other_gets_answers() {
    let mut world = World::new(6, "smtp 25");
    world.deaf.insert((1, 2));
    world.run(20 * SECOND);
    assert_eq!(world.verdicts(), []);
    let report = world.report(1, 2);
    assert_eq!(report.health, Health::Failed(Failure::Network));
    let waits_for = Waiting::Agreement { of: server(3), says: Some(Health::Healthy) };
    assert_eq!(report.waits_for, Some(waits_for));
}

#[test]
fn a_server_that_is_cut_off_accuses_nobody_and_is_judged_itself() {
    let mut world = World::new(6, "smtp 25");
    world.run(10 * SECOND);
    world.no_service_network.insert(4);
    world.no_management_network.insert(4);
    world.run(20 * SECOND);
    assert_eq!(world.report(4, 5).health, Health::Blind(Blindness::Isolated));
    let suspects =
        |by: usize| world.said.iter().any(|said| said.by == by && matches!(said.output, Output::Suspected { .. }));
    assert!(suspects(3) && !suspects(4), "it would prepare for the failure of others");
    let verdicts = world.verdicts();
    assert!(verdicts.iter().all(|(by, target, ..)| *by == 3 && target == "S4"), "{verdicts:?}");
    world.no_service_network.clear();
    world.no_management_network.clear();
    let back_us = world.now_us;
    world.run(20 * SECOND);
    assert_eq!(world.verdicts_since(back_us), []);
    assert_eq!(world.report(4, 5).health, Health::Healthy);
}

#[test]
fn of_the_last_two_each_judges_the_other() {
    let mut world = World::new(2, "smtp 25");
    world.dead.insert(2);
    world.run(5 * SECOND);
    let (by, target, failure, _) = world.verdicts().pop().unwrap();
    assert_eq!((by, target.as_str(), failure), (1, "S2", Failure::Host));
}

#[test]
fn one_lost_answer_is_a_suspicion_and_no_more() {
    let mut world = World::new(6, "smtp 25");
    let mut suspicions = 0;
    for _ in 0..10 {
        world.stopped.insert(2);
        while !world.said.iter().skip(suspicions).any(|said| matches!(said.output, Output::Suspected { .. })) {
            world.run(TICK_US);
        }
        world.stopped.clear();
        world.run(3 * SECOND);
        suspicions = world.said.len();
    }
    assert_eq!(world.verdicts(), []);
    assert!(world.cleared(1, 2) || world.cleared(3, 2));
}

#[test]
fn with_the_paper_preset_a_host_is_judged_within_an_interval_and_an_examination() {
    let mut world = World::new(6, "smtp 25, preset=paper");
    world.run(20 * SECOND);
    let at_us = world.now_us;
    world.dead.insert(2);
    world.run(30 * SECOND);
    let verdicts = world.verdicts_since(at_us);
    assert_eq!(verdicts.len(), 1, "{verdicts:?}");
    assert_eq!(verdicts[0].2, Failure::Host);
    assert!(verdicts[0].3 <= 15_200, "{verdicts:?}");
    let suspected = |said: &&Said| said.at_us > at_us && matches!(said.output, Output::Suspected { .. });
    let suspected_ms = (world.said.iter().find(suspected).unwrap().at_us - at_us) / 1000;
    assert!(verdicts[0].3 - suspected_ms <= 2_100, "the echo has 2 s, as in the paper: {suspected_ms}, {verdicts:?}");
}

#[test]
fn a_manager_that_says_nothing_does_not_hold_up_the_other_for_ever() {
    let mut watch = Watch::default();
    let mut now_us = 0;
    let mut outputs = watch.handle(now_us, Input::Assign(assignment(1, &[1, 2, 3, 4], "smtp 25")));
    for peer in [3, 4] {
        outputs.extend(watch.handle(now_us, Input::LinkUp { peer: server(peer) }));
    }
    let verdict = loop {
        match outputs.pop() {
            Some(Output::Ask(probe)) => {
                let outcome = match probe.kind {
                    ProbeKind::Smtp { .. } if probe.address == address(2) => {
                        ProbeOutcome::Refused("connection refused".into())
                    }
                    _ => ProbeOutcome::Answered { took_us: 1234 },
                };
                outputs.extend(watch.handle(now_us, Input::Outcome { id: probe.id, outcome }));
            }
            Some(Output::Verdict(verdict)) => break verdict,
            Some(_) => {}
            None => {
                now_us += TICK_US;
                outputs = watch.handle(now_us, Input::Tick);
            }
        }
    };
    assert!((SILENT_US..SILENT_US + SECOND).contains(&now_us), "{now_us}");
    assert_eq!(
        verdict.to_string(),
        "service failure: it (smtp 25): connection refused; icmp (icmp): answers in 1.2 ms; S2 is not linked; \
         the other manager cannot be asked"
    );
}

#[test]
fn a_manager_that_was_frozen_does_not_count_what_it_missed() {
    let mut watch = Watch::default();
    let ids = |outputs: Vec<Output>| -> Vec<ProbeId> {
        let id = |output| match output {
            Output::Ask(probe) => Some(probe.id),
            Output::Suspected { .. } => panic!("it accuses"),
            _ => None,
        };
        outputs.into_iter().filter_map(id).collect()
    };
    let asked = ids(watch.handle(0, Input::Assign(assignment(1, &[1, 2], "smtp 25, fall=1"))));
    assert_eq!(asked.len(), 2);
    let mut again = Vec::new();
    for id in asked {
        let outcome = ProbeOutcome::Failed("no answer within 400 ms".into());
        again.extend(ids(watch.handle(30 * SECOND, Input::Outcome { id, outcome })));
    }
    assert_eq!(again.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whoever is cut off, in whatever way and however often: nobody else is ever accused.
    #[test]
    fn only_who_is_in_trouble_is_accused(
        victim in 1usize..=6,
        cuts in proptest::collection::vec((any::<bool>(), any::<bool>(), 1u64..80), 1..8),
    ) {
        let mut world = World::new(6, "smtp 25");
        for (service, management, steps) in cuts {
            world.no_service_network = service.then_some(victim).into_iter().collect();
            world.no_management_network = management.then_some(victim).into_iter().collect();
            world.run(steps * TICK_US);
        }
        let name = format!("S{victim}");
        let wrong: Vec<_> = world.verdicts().into_iter().filter(|(_, target, ..)| *target != name).collect();
        prop_assert!(wrong.is_empty(), "{wrong:?}");
    }
}
