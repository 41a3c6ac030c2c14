//! One seeded run of a group that looks after itself: servers, services and networks fail and come back; then everything is
//! healed, but for machines that stay dead, and the group must have everybody served; then these come back too.
//!
//! ```text
//! founding ──► faults ──► all heals but dead machines ──► everybody is served? ──► all start ──► everybody serves itself?
//! ```
//! P4 and "a slot means the same to all" are checked at every step (`services`); here it is checked that nothing is left half done
//! (P6) and that whoever is left recovers whom it can (P8).

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::cluster::{Cluster, Managed, Settings};
use super::faults::Profile;
use super::random::Random;
use super::time::{MILLISECOND_US, SECOND_US};
use crate::core::chain::Chain;
use crate::core::guest::GuestState;
use crate::core::id::{ClusterId, ServerName};
use crate::core::lifecycle::Lifecycle;
use crate::core::management::Management;
use crate::core::node::NodeConfig;
use crate::core::quorum::Policy;
use crate::core::schema::file;

/// How long a group may take until everybody is served, once faults are over.
const SETTLE_US: u64 = 120 * SECOND_US;

/// What a fault's end undoes.
enum Undo {
    Start(usize),
    Open(Vec<(usize, usize)>),
    Service(usize),
    Network(usize),
    SlowDisk(usize),
    DiskFull(usize),
    Clock(usize, i64),
    Blessing(usize),
    Health(usize),
    Speed(usize),
}

/// A run in progress.
pub struct Outages {
    pub cluster: Cluster,
    random: Random,
    undo: Vec<(u64, Undo)>,
    faults_until_us: u64,
    fault_interval_us: u64,
    sync_us: (u64, u64),
    servers: usize,
    /// A decision log may be lost once.
    may_forget: bool,
}

impl Outages {
    /// The run that a seed stands for.
    pub fn new(seed: u64, profile: Profile) -> Self {
        let mut random = Random::new(seed ^ 0x0074_a6e5);
        let servers = random.between(3, 6) as usize;
        let witness = random.percent(20);
        let mut node =
            NodeConfig::new(ServerName::new("S1").expect("a letter and a number are a name"), ClusterId([0; 16]));
        node.flaw = profile.flaw;
        node.standby_ms = 2_000;
        let sync_us = if random.percent(70) { (100, 2_000) } else { (1_000, 30_000) };
        let policy = if random.percent(25) { Policy::Strict } else { Policy::Balanced };
        let settings = Settings {
            seed,
            hosts: servers + usize::from(witness),
            names: Vec::new(),
            node,
            segment_bytes: 64 * 1024,
            keep_segments: None,
            delay_us: if random.percent(70) { (50, 2_000) } else { (1_000, 40_000) },
            sync_us,
            clocks_differ: true,
            timeline: profile.timeline,
            management: Some(Managed { originals: random.between(1, 2) as usize, policy, witness }),
        };
        Self {
            cluster: Cluster::new(settings),
            undo: Vec::new(),
            faults_until_us: random.between(20, 60) * SECOND_US,
            fault_interval_us: random.between(500, 6_000) * MILLISECOND_US,
            sync_us,
            servers,
            may_forget: random.percent(20),
            random,
        }
    }

    /// Lives through the run; the oracle then knows what was wrong, if anything was.
    pub fn run(&mut self) {
        let hosts = self.cluster.hosts.len();
        (0..hosts).for_each(|host| self.cluster.start(host));
        self.cluster.found(hosts);
        self.until("the group has begun", |run| run.everybody_serves_itself());
        let begun_us = self.cluster.now_us;
        let mut fault_us = begun_us + self.random.below(SECOND_US);
        while self.cluster.now_us < begun_us + self.faults_until_us && self.holds() {
            let undo_us = self.undo.iter().map(|(at_us, _)| *at_us).min().unwrap_or(u64::MAX);
            let next_us = fault_us.min(undo_us);
            self.cluster.run_until(next_us);
            if next_us == undo_us {
                self.undo_due();
            } else {
                self.fault();
                fault_us = next_us + 1 + self.random.below(2 * self.fault_interval_us);
            }
        }
        self.heal_networks();
        if self.holds() && self.survivors_decide() {
            self.until("everybody is served", Self::everybody_is_served);
        }
        if self.holds() {
            (0..hosts)
                .filter(|host| !self.cluster.hosts[*host].runs())
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|host| self.cluster.start(host));
            self.until("everybody serves itself", Self::everybody_serves_itself);
        }
    }

    fn holds(&self) -> bool {
        self.cluster.oracle.violation().is_none()
    }

    /// Runs until there is nothing to complain about; if that takes too long, a promise is broken.
    fn until(&mut self, what: &str, complaint: impl Fn(&Self) -> Option<String>) {
        let until_us = self.cluster.now_us + SETTLE_US;
        loop {
            self.cluster.run_until(self.cluster.now_us + 200 * MILLISECOND_US);
            let Some(why) = complaint(self) else { return };
            if !self.holds() {
                return;
            }
            if self.cluster.now_us > until_us {
                let name = if what == "everybody is served" { "P8 recovered" } else { "P6 finished" };
                let text = format!(
                    "{what}: not within {} s: {why}
{}",
                    SETTLE_US / SECOND_US,
                    self.state()
                );
                return self.cluster.oracle.report(name, || text);
            }
        }
    }

    /// Where everybody stands, for people.
    fn state(&self) -> String {
        let mut lines = Vec::new();
        if let Some(chain) = self.chain() {
            let last = chain.decisions().iter().rev().take(12).rev();
            lines.extend(
                last.map(|decision| format!("  decision {} by {}: {}", decision.slot, decision.by, decision.act)),
            );
        }
        for host in 0..self.cluster.hosts.len() {
            let name = self.cluster.name(host);
            let Some(node) = self.cluster.node(host) else {
                lines.push(format!("  {name} is down"));
                continue;
            };
            let now = self.cluster.hosts[host].clock.now(self.cluster.now_us);
            let Some(report) = node.management_report(now) else { continue };
            let work: Vec<String> =
                report.work.iter().map(|it| format!("{} {}, waits {:?}", it.server, it.work, it.waits_for)).collect();
            let originals = self.cluster.hosts[host].machine.originals.iter().map(|(original, it)| {
                let record = &it.record;
                format!(
                    "{original} {:?} as {:?} token {} highest {}",
                    record.state, record.target, record.token, record.highest
                )
            });
            let originals: Vec<String> = originals.collect();
            lines.push(format!(
                "  {name}: {}, alarms {:?}, {} decisions, {}, lease {} ms, holds {:?}; {}; {}",
                node.lifecycle(),
                node.alarms(),
                report.decisions,
                report.standing,
                report.lease_left_ms,
                report.holds,
                originals.join("; "),
                work.join("; ")
            ));
        }
        if let Some(node) = self.cluster.running().into_iter().find_map(|host| self.cluster.node(host)) {
            for story in [file::GROUP, file::PROBLEM, file::RECOVERY, file::ORIGINAL, file::FENCE] {
                let rows: Vec<String> = node.files().records_of(story).map(ToString::to_string).collect();
                lines.push(format!("  {story}: {}", rows.join(" | ")));
            }
        }
        lines.join("\n")
    }

    // ---- faults ----

    fn undo_due(&mut self) {
        let now_us = self.cluster.now_us;
        let due: Vec<_> = self.undo.extract_if(.., |(at_us, _)| *at_us <= now_us).collect();
        due.into_iter().for_each(|(_, undo)| self.undo_one(undo));
    }

    fn undo_one(&mut self, undo: Undo) {
        match undo {
            Undo::Start(host) => self.cluster.start(host),
            Undo::Open(ways) => ways.into_iter().for_each(|(from, to)| self.cluster.open(from, to)),
            Undo::Service(host) => self.cluster.hosts[host].machine.serves = true,
            Undo::Network(host) => self.cluster.hosts[host].machine.cut_off = false,
            Undo::SlowDisk(host) => self.cluster.hosts[host].disk.sync_us = self.sync_us,
            Undo::DiskFull(host) => self.cluster.set_disk_full(host, false),
            Undo::Clock(host, step_ms) => self.cluster.hosts[host].clock.offset_ms -= step_ms,
            Undo::Blessing(host) => {
                self.cluster.hosts[host].machine.originals.values_mut().for_each(|original| original.cursed = false);
            }
            Undo::Health(host) => {
                self.cluster.hosts[host].machine.originals.values_mut().for_each(|original| original.ill = false);
            }
            Undo::Speed(host) => self.cluster.hosts[host].machine.installs_slowly = false,
        }
    }

    fn later(&mut self, shortest_ms: u64, longest_ms: u64, undo: Undo) {
        let after_us = self.random.between(shortest_ms, longest_ms) * MILLISECOND_US;
        self.undo.push((self.cluster.now_us + after_us, undo));
    }

    fn fault(&mut self) {
        let running = self.cluster.running();
        let Some(&host) = self.random.pick(&running) else { return };
        let hosts = self.cluster.hosts.len();
        match self.random.below(100) {
            0..25 => self.power_off(host),
            25..40 => {
                self.cluster.crash(host, false);
                self.later(100, 8_000, Undo::Start(host));
            }
            40..52 => {
                self.cluster.note(host, || "its service fails".into());
                self.cluster.hosts[host].machine.serves = false;
                self.later(500, 20_000, Undo::Service(host));
            }
            52..60 => {
                self.cluster.note(host, || "is cut off the service network".into());
                self.cluster.hosts[host].machine.cut_off = true;
                self.later(500, 20_000, Undo::Network(host));
            }
            60..72 => self.partition(),
            72..78 => {
                let other = self.random.index(hosts);
                if other != host && !self.cluster.network.is_blocked(host, other) {
                    self.cluster.block(host, other);
                    self.later(100, 15_000, Undo::Open(vec![(host, other)]));
                }
            }
            78..86 => {
                let for_us = self.random.between(200, 30_000) * MILLISECOND_US;
                self.cluster.freeze(host, for_us);
            }
            86..88 => {
                self.cluster.hosts[host].disk.sync_us = (30_000, 600_000);
                self.later(1_000, 10_000, Undo::SlowDisk(host));
            }
            88..90 => self.make_stand_ins_ill(&running),
            90..92 => {
                self.cluster.set_disk_full(host, true);
                self.later(500, 8_000, Undo::DiskFull(host));
            }
            92..94 => {
                // Now and then an hour: a clock that was set by hand, or that of a machine without a battery.
                let step_ms = self.random.below(8_000) as i64 - 4_000;
                let step_ms = if step_ms % 3 == 0 { step_ms * 1_000 } else { step_ms };
                self.cluster.hosts[host].clock.offset_ms += step_ms;
                self.later(500, 10_000, Undo::Clock(host, step_ms));
            }
            94..96 => {
                self.cluster.note(host, || "its original servers are cursed".into());
                self.cluster.hosts[host].machine.originals.values_mut().for_each(|original| original.cursed = true);
                self.later(2_000, 30_000, Undo::Blessing(host));
            }
            96..98 => {
                self.cluster.note(host, || "installs slowly".into());
                self.cluster.hosts[host].machine.installs_slowly = true;
                self.later(2_000, 30_000, Undo::Speed(host));
            }
            _ => {
                self.power_off(host);
                // Of two electors, one may be the only one that knows the last decision.
                let many = self.chain().is_some_and(|chain| chain.electorate().electors().len() > 3);
                if many && std::mem::take(&mut self.may_forget) {
                    self.cluster.note(host, || "has lost its Decision.dat".into());
                    let (one, random) = (&mut self.cluster.hosts[host], &mut self.random);
                    one.machine.forget_decisions(random);
                }
            }
        }
    }

    /// Those that serve on one of the hosts.
    fn make_stand_ins_ill(&mut self, running: &[usize]) {
        let serves = |host: &&usize| {
            let mut originals = self.cluster.hosts[**host].machine.originals.values();
            originals.any(|original| original.record.state == GuestState::Serving)
        };
        let hosts: Vec<usize> = running.iter().filter(serves).copied().collect();
        let Some(&host) = self.random.pick(&hosts) else { return };
        self.cluster.note(host, || "its stand-ins are ill".into());
        let originals = self.cluster.hosts[host].machine.originals.values_mut();
        originals.filter(|it| it.record.state == GuestState::Serving).for_each(|original| original.ill = true);
        self.later(500, 10_000, Undo::Health(host));
    }

    /// Now and then a machine stays dead until the very end.
    fn power_off(&mut self, host: usize) {
        self.cluster.crash(host, true);
        if self.random.percent(70) {
            self.later(1_000, 25_000, Undo::Start(host));
        }
    }

    fn partition(&mut self) {
        let hosts = self.cluster.hosts.len();
        let side: Vec<bool> = (0..hosts).map(|_| self.random.percent(50)).collect();
        let mut ways = Vec::new();
        for from in 0..hosts {
            for to in 0..hosts {
                if from != to && side[from] != side[to] && !self.cluster.network.is_blocked(from, to) {
                    self.cluster.block(from, to);
                    ways.push((from, to));
                }
            }
        }
        let sides = side.iter().map(|one| if *one { '|' } else { '.' }).collect::<String>();
        self.cluster.note(0, || format!("partition {sides}"));
        self.later(500, 20_000, Undo::Open(ways));
    }

    /// Everything but dead machines; daemons that were killed start again.
    fn heal_networks(&mut self) {
        let now_us = self.cluster.now_us;
        for (_, undo) in std::mem::take(&mut self.undo) {
            let machine_is_off = matches!(&undo, Undo::Start(host) if !self.cluster.hosts[*host].machine.on);
            if !machine_is_off {
                self.undo_one(undo);
            }
        }
        let hosts = self.cluster.hosts.len();
        for host in 0..hosts {
            self.cluster.note(host, || "all is healed but dead machines".into());
            self.cluster.hosts[host].frozen_until_us = self.cluster.hosts[host].frozen_until_us.min(now_us);
            for peer in 0..hosts {
                if self.cluster.network.is_blocked(host, peer) {
                    self.cluster.open(host, peer);
                }
            }
        }
    }

    // ---- what must be so ----

    fn management(&self, host: usize) -> Option<&Management> {
        self.cluster.node(host).and_then(|node| node.management())
    }

    /// The chain of whoever knows most.
    fn chain(&self) -> Option<&Chain> {
        let running = self.cluster.running().into_iter();
        running.filter_map(|host| self.management(host)).map(Management::chain).max_by_key(|it| it.decisions().len())
    }

    fn address(&self, server: usize) -> IpAddr {
        [10, 1, 0, server as u8 + 1].into()
    }

    /// Whether those that run are a quorum, now and with what they may decide next.
    fn survivors_decide(&self) -> bool {
        let alive: BTreeSet<ServerName> =
            self.cluster.running().into_iter().map(|host| self.cluster.name(host).clone()).collect();
        let policy = self.cluster.settings.management.map_or(Policy::Balanced, |managed| managed.policy);
        let Some(chain) = self.chain() else { return false };
        let admitted: BTreeSet<ServerName> = alive
            .iter()
            .filter(|name| {
                let host = self.cluster.host_of(name);
                let incarnation = host.map(|host| self.cluster.hosts[host].machine.decisions.incarnation);
                incarnation.is_some_and(|incarnation| chain.electorate().admits(name, incarnation))
            })
            .cloned()
            .collect();
        chain.electorate().is_quorum(policy, &admitted, &alive)
    }

    /// Every server is served by somebody, if there are places enough.
    fn everybody_is_served(&self) -> Option<String> {
        // A decision that was under way may have left an electorate in which the dead are missed.
        if !self.survivors_decide() {
            return None;
        }
        let alive: Vec<usize> = (0..self.servers).filter(|host| self.cluster.hosts[*host].runs()).collect();
        let dead = self.servers - alive.len();
        let originals = self.cluster.settings.management.map_or(0, |managed| managed.originals);
        for server in 0..self.servers {
            let holders = self.cluster.holders(self.address(server));
            let name = self.cluster.name(server);
            match holders.first() {
                Some(&holder) if alive.contains(&server) && holder != server => {
                    return Some(format!("{name} is well and still played on {}", self.cluster.name(holder)));
                }
                Some(_) => {}
                None if alive.contains(&server) || dead <= alive.len() * originals => {
                    return Some(format!("{name} is served by nobody"));
                }
                None => {}
            }
        }
        None
    }

    /// As in the beginning: all in the group, each with its own address, every original pristine, no story left open.
    fn everybody_serves_itself(&self) -> Option<String> {
        // Whoever has lost its Decision.dat does not vote; too few may be left, and then an operator is needed.
        if self.chain().is_some_and(|chain| !chain.decisions().is_empty()) && !self.survivors_decide() {
            return None;
        }
        for server in 0..self.servers {
            let name = self.cluster.name(server);
            if self.cluster.holders(self.address(server)) != [server] {
                return Some(format!("{name} does not hold its address"));
            }
            let Some(node) = self.cluster.node(server) else { return Some(format!("{name} does not run")) };
            if node.lifecycle() != Lifecycle::Operating {
                return Some(format!("{name} is {}", node.lifecycle()));
            }
            for (original, it) in &self.cluster.hosts[server].machine.originals {
                if it.record.state != GuestState::Suspended || it.record.token != 0 {
                    return Some(format!(
                        "{original} of {name} is {:?} for decision {}",
                        it.record.state, it.record.token
                    ));
                }
            }
            for story in [file::PROBLEM, file::RECOVERY, file::FENCE] {
                if let Some(row) = node.files().records_of(story).next() {
                    return Some(format!("{story} of {name} still says '{row}'"));
                }
            }
            let group = node.files().records_of(file::GROUP).count();
            if group != self.servers {
                return Some(format!("the file Group of {name} has {group} members"));
            }
        }
        let decisions: BTreeSet<usize> = self
            .cluster
            .running()
            .into_iter()
            .filter_map(|host| Some(self.management(host)?.chain().decisions().len()))
            .collect();
        (decisions.len() > 1).then(|| format!("the servers know {decisions:?} decisions"))
    }
}
