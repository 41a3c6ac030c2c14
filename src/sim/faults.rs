//! One seeded run: faults and edits first, then everything is healed and must come together again.
//!
//! ```text
//! founding ──► faults + edits ──► heal (all start, all ways open, clocks right) ──► settled? ──► last checks
//! ```
//! At most a minority of the disks may lose what they called durable: what a majority acknowledged must outlive that.

use super::cluster::{Cluster, Settings};
use super::hostile::Attack;
use super::random::Random;
use super::time::{MILLISECOND_US, SECOND_US};
use super::workload::{Intensity, Workload, changes_member, membership_edits};
use crate::core::flaw::Flaw;
use crate::core::id::ServerName;
use crate::core::io::{Input, Transaction, Wait};
use crate::core::lifecycle::Lifecycle;
use crate::core::node::{Limits, NodeConfig};
use crate::core::priority::Class;

/// How long a cluster may take to come together once all is well.
const SETTLE_US: u64 = 40 * SECOND_US;

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Shared files, their log and their disks.
    #[default]
    Files,
    /// Failures, decisions, stand-ins, returns.
    Management,
}

/// Which kind of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Profile {
    pub kind: Kind,
    /// A bug put back on purpose.
    pub flaw: Option<Flaw>,
    /// Keep the last events for people to read.
    pub timeline: bool,
}

/// What a fault's end undoes.
enum Undo {
    Start(usize),
    Open(Vec<(usize, usize)>),
    DiskFull(usize),
    SlowDisk(usize),
    Clock(usize, i64),
}

/// A run in progress.
pub struct Plan {
    pub cluster: Cluster,
    workload: Workload,
    undo: Vec<(u64, Undo)>,
    faults_until_us: u64,
    fault_interval_us: u64,
    /// Hosts whose disks may lose what they called durable.
    liars: Vec<usize>,
    /// The host that is to be removed, if any, and the one that joins late.
    leaver: Option<usize>,
    joiner: Option<usize>,
    sync_us: (u64, u64),
}

impl Plan {
    /// The run that a seed stands for.
    pub fn new(seed: u64, profile: Profile) -> Self {
        // A generator of its own, so that the plan and the course of a run do not disturb each other.
        let mut random = Random::new(seed ^ 0x5eed);
        let most = if random.percent(20) { 7 } else { 5 };
        let hosts = random.between(3, most) as usize;
        let heavy = random.percent(15);
        let mut node = NodeConfig::new(
            ServerName::new("S1").expect("a letter and a number are a name"),
            crate::core::id::ClusterId([0; 16]),
        );
        node.flaw = profile.flaw;
        node.clock_offset_ms_max = 2_000;
        node.standby_ms = random.between(500, 3_000);
        node.checkpoint_bytes = [2_000, 8_000, 30_000, 1 << 24][random.index(4)];
        if random.percent(60) {
            node.limits = Limits {
                commit_bytes: 3_000,
                commit_entries: random.between(1, 20) as usize,
                window_bytes: random.between(2_000, 12_000) as usize,
                read_bytes: 8_000,
                reception_bytes: 16_000,
            };
        }
        let sync_us = if random.percent(70) { (100, 2_000) } else { (1_000, 20_000) };
        let settings = Settings {
            seed,
            hosts,
            names: Vec::new(),
            node,
            segment_bytes: random.between(1_000, 12_000) as usize,
            keep_segments: random.percent(60).then(|| random.between(1, 3) as usize),
            delay_us: if random.percent(60) { (50, 2_000) } else { (1_000, 60_000) },
            sync_us,
            clocks_differ: true,
            timeline: profile.timeline,
            management: None,
        };
        let interval_us = if heavy { 20 } else { random.between(60, 400) } * MILLISECOND_US;
        let filling = if heavy { 600 } else { 10 };
        let mut liars: Vec<usize> = (0..hosts).collect();
        while liars.len() > (hosts - 1) / 2 {
            liars.remove(random.index(liars.len()));
        }
        let leaver = (hosts > 3 && random.percent(15)).then(|| random.index(hosts - 1) + 1);
        let joiner = (hosts > 3 && random.percent(20)).then_some(hosts - 1);
        let mut cluster = Cluster::new(settings);
        cluster.corrupt_permille = if random.percent(25) { 10 } else { 0 };
        Self {
            cluster,
            workload: Workload::new(Intensity { interval_us, filling }),
            undo: Vec::new(),
            faults_until_us: if heavy { 8 } else { random.between(8, 22) } * SECOND_US,
            fault_interval_us: random.between(200, 1_500) * MILLISECOND_US,
            liars,
            // Who leaves might be the only one that knows who joins, so a run has one or the other.
            leaver: leaver.filter(|_| joiner.is_none()),
            joiner,
            sync_us,
        }
    }

    /// Lives through the run; the oracle then knows what was wrong, if anything was.
    pub fn run(&mut self) {
        self.begin();
        let mut fault_us = SECOND_US + self.cluster.random.below(2 * SECOND_US);
        let mut edit_us = 300 * MILLISECOND_US;
        while self.cluster.now_us < self.faults_until_us && self.holds() {
            let undo_us = self.undo.iter().map(|(at_us, _)| *at_us).min().unwrap_or(u64::MAX);
            let next_us = fault_us.min(edit_us).min(undo_us).min(self.faults_until_us);
            self.cluster.run_until(next_us);
            if !self.holds() {
                return;
            }
            if next_us == undo_us {
                self.undo_due();
            } else if next_us == fault_us {
                self.fault();
                fault_us = next_us + 1 + self.cluster.random.below(2 * self.fault_interval_us);
            } else if next_us == edit_us {
                self.workload.edit(&mut self.cluster);
                edit_us = next_us + 1 + self.cluster.random.below(2 * self.workload.intensity.interval_us);
            }
        }
        self.heal();
        self.settle();
        self.serve();
    }

    fn holds(&self) -> bool {
        self.cluster.oracle.violation().is_none()
    }

    fn begin(&mut self) {
        let hosts = self.cluster.hosts.len();
        let members = if self.joiner.is_some() { hosts - 1 } else { hosts };
        (0..members).for_each(|host| self.cluster.start(host));
        self.cluster.found(members);
        self.cluster.run_until(300 * MILLISECOND_US);
    }

    fn undo_due(&mut self) {
        let now_us = self.cluster.now_us;
        let due: Vec<_> = self.undo.extract_if(.., |(at_us, _)| *at_us <= now_us).collect();
        due.into_iter().for_each(|(_, undo)| self.undo_one(undo));
    }

    fn undo_one(&mut self, undo: Undo) {
        match undo {
            Undo::Start(host) if !self.cluster.hosts[host].removed => self.cluster.start(host),
            Undo::Start(_) => {}
            Undo::Open(ways) => ways.into_iter().for_each(|(from, to)| self.cluster.open(from, to)),
            Undo::DiskFull(host) => self.cluster.set_disk_full(host, false),
            Undo::SlowDisk(host) => self.cluster.hosts[host].disk.sync_us = self.sync_us,
            Undo::Clock(host, step_ms) => {
                self.cluster.hosts[host].clock.offset_ms -= step_ms;
                self.cluster.note(host, || "clock set right".to_owned());
            }
        }
    }

    fn later(&mut self, shortest_ms: u64, longest_ms: u64, undo: Undo) {
        let after_us = self.cluster.random.between(shortest_ms, longest_ms) * MILLISECOND_US;
        self.undo.push((self.cluster.now_us + after_us, undo));
    }

    fn fault(&mut self) {
        if let Some(&host) = self.cluster.random.pick(&self.cluster.running()) {
            self.cluster.check_model(host);
        }
        let running = self.cluster.running();
        let hosts = self.cluster.hosts.len();
        let Some(&host) = self.cluster.random.pick(&running) else { return };
        match self.cluster.random.below(100) {
            0..22 => self.crash(host),
            22..26 => running.into_iter().for_each(|host| self.crash_and_plan(host, true, (200, 3_000))),
            26..38 => self.partition(),
            38..46 => {
                let other = self.cluster.random.index(hosts);
                if other != host {
                    self.cluster.block(host, other);
                    self.later(100, 5_000, Undo::Open(vec![(host, other)]));
                }
            }
            46..52 => {
                let other = self.cluster.random.index(hosts);
                self.cluster.close(host, other);
            }
            52..58 => {
                self.cluster.hosts[host].disk.sync_us = (30_000, 400_000);
                self.later(500, 4_000, Undo::SlowDisk(host));
            }
            58..65 => {
                self.cluster.set_disk_full(host, true);
                self.later(300, 4_000, Undo::DiskFull(host));
            }
            65..70 => {
                let step_ms = self.cluster.random.below(12_000) as i64 - 6_000;
                self.cluster.hosts[host].clock.offset_ms += step_ms;
                self.cluster.note(host, || format!("clock steps by {step_ms} ms"));
                self.later(500, 5_000, Undo::Clock(host, step_ms));
            }
            70..76 => {
                let for_us = self.cluster.random.between(100, 3_000) * MILLISECOND_US;
                self.cluster.freeze(host, for_us);
            }
            76..79 => self.rotate(host),
            79..92 => {
                let victim = self.cluster.random.index(hosts);
                let attack = Attack::ALL[self.cluster.random.index(Attack::ALL.len())];
                if victim != host {
                    self.cluster.attack(attack, host, victim);
                }
            }
            _ => self.change_members(host),
        }
    }

    fn crash(&mut self, host: usize) {
        let power_cut = self.cluster.random.percent(60);
        self.crash_and_plan(host, power_cut, (100, 4_000));
    }

    /// Ends a host, does something to its disk, and plans its return.
    fn crash_and_plan(&mut self, host: usize, power_cut: bool, away_ms: (u64, u64)) {
        self.cluster.crash(host, power_cut);
        let mut away_ms = away_ms;
        if self.liars.contains(&host) && self.cluster.random.percent(30) {
            self.lose(host);
            // A machine that lost its disk's content is not back within the second.
            away_ms.0 = away_ms.0.max(1_000);
        }
        if self.cluster.random.percent(10) {
            self.cluster.hosts[host].view.lose();
        }
        self.later(away_ms.0, away_ms.1, Undo::Start(host));
    }

    fn lose(&mut self, host: usize) {
        let Cluster { hosts, random, .. } = &mut self.cluster;
        let disk = &mut hosts[host].disk;
        let (lost, what) = match random.below(10) {
            0 => {
                disk.wipe();
                hosts[host].view.lose();
                (true, "everything")
            }
            1..7 => (disk.lose_tail(random), "its tail"),
            _ => (disk.flip_bit(random), "one bit"),
        };
        if lost {
            let now_us = self.cluster.now_us;
            self.cluster.oracle.disk_lost(host, now_us);
            self.cluster.note(host, || format!("disk loses {what}"));
        }
    }

    fn partition(&mut self) {
        let hosts = self.cluster.hosts.len();
        let side: Vec<bool> = (0..hosts).map(|_| self.cluster.random.percent(50)).collect();
        let mut ways = Vec::new();
        for from in 0..hosts {
            for to in 0..hosts {
                if from != to && side[from] != side[to] && !self.cluster.network.is_blocked(from, to) {
                    self.cluster.block(from, to);
                    ways.push((from, to));
                }
            }
        }
        self.later(200, 6_000, Undo::Open(ways));
    }

    /// A new certificate and key, which open new streams.
    fn rotate(&mut self, host: usize) {
        let key: [u8; 32] = self.cluster.random.bytes();
        let signing = ed25519_dalek::SigningKey::from_bytes(&key);
        let now_us = self.cluster.now_us;
        let one = &mut self.cluster.hosts[host];
        let certificate = self.cluster.authority.issue(&one.name, &signing.verifying_key());
        one.disk.run = one.clock.wall_s(now_us).max(one.disk.run + 1);
        let run = one.disk.run;
        (one.key, one.certificate) = (signing, certificate.clone());
        self.cluster.note(host, || format!("rotates its certificate: run {run:08x}"));
        self.cluster.feed(host, Input::Identity { certificate, key, run });
    }

    /// Lets the late host join, or takes the one out that is to leave.
    fn change_members(&mut self, by: usize) {
        let ready = self.cluster.node(by).is_some_and(|node| node.lifecycle() == Lifecycle::Operating);
        if !ready {
            return;
        }
        let change =
            self.joiner.map(|host| (host, true)).or(self.leaver.filter(|&host| host != by).map(|host| (host, false)));
        let Some((host, member)) = change else { return };
        let Some(node) = self.cluster.node(by) else { return };
        let edits = membership_edits(node.files(), &self.cluster.hosts[host], host + 1, member);
        if edits.is_empty() {
            return;
        }
        let reason = if member { "joins" } else { "is removed" };
        let transaction = Transaction { class: Class::Management, author: "root".into(), reason: reason.into(), edits };
        // The change must not be undone by its only witness losing its disk.
        self.liars.retain(|&liar| liar != by);
        self.cluster.submit(by, transaction, Wait::Local, 1_000);
        self.cluster.run_until(self.cluster.now_us + 500 * MILLISECOND_US);
        self.follow_members();
    }

    /// Starts the late host once it is a member, and takes the one away for good that is not one any more.
    fn follow_members(&mut self) {
        if let Some(host) = self.joiner.take_if(|host| self.cluster.is_written(*host, true)) {
            self.cluster.start(host);
        }
        if let Some(host) = self.leaver.take_if(|host| self.cluster.is_written(*host, false)) {
            // What only the removed host holds goes with it.
            let now_us = self.cluster.now_us;
            self.cluster.crash(host, false);
            self.cluster.oracle.disk_lost(host, now_us);
            self.cluster.hosts[host].removed = true;
        }
    }

    fn heal(&mut self) {
        self.follow_members();
        let now_us = self.cluster.now_us;
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.undo_one(undo);
        }
        self.cluster.corrupt_permille = 0;
        let hosts = self.cluster.hosts.len();
        for host in 0..hosts {
            self.cluster.hosts[host].frozen_until_us = self.cluster.hosts[host].frozen_until_us.min(now_us);
            for peer in 0..hosts {
                if self.cluster.network.is_blocked(host, peer) {
                    self.cluster.open(host, peer);
                }
            }
            if self.cluster.hosts[host].disk.full {
                self.cluster.set_disk_full(host, false);
            }
            let stays_away = self.cluster.hosts[host].removed || self.joiner == Some(host);
            if !stays_away && !self.cluster.hosts[host].runs() {
                self.cluster.start(host);
            }
        }
    }

    /// Waits until all hosts agree and nothing is left to say.
    fn settle(&mut self) {
        let until_us = self.cluster.now_us + SETTLE_US;
        // What has just changed is noticed first.
        self.cluster.run_until(self.cluster.now_us + SECOND_US);
        self.follow_members();
        while self.holds() && self.cluster.unsettled().is_some() && self.cluster.now_us < until_us {
            self.cluster.run_until(self.cluster.now_us + 250 * MILLISECOND_US);
        }
        if let Some(why) = self.cluster.unsettled() {
            self.cluster
                .oracle
                .report("convergence", || format!("{} s after all was healed: {why}", SETTLE_US / SECOND_US));
        }
    }

    /// One more edit from every host must reach all; then the last checks.
    fn serve(&mut self) {
        if !self.holds() {
            return;
        }
        let running = self.cluster.running();
        let mut tickets = Vec::new();
        for &host in &running {
            let record = crate::core::record::Record::of([self.cluster.name(host).as_str(), "was here"]);
            let file = crate::core::id::FileName::new("Guests").expect("the name is well formed");
            let edit =
                crate::core::io::Edit { file, change: crate::core::diff::Change::Add(record), bases: Some(Vec::new()) };
            let transaction = Transaction {
                class: Class::Transmission,
                author: "guest".into(),
                reason: String::new(),
                edits: vec![edit],
            };
            tickets.push(self.cluster.submit(host, transaction, Wait::All, 5_000));
        }
        self.cluster.run_until(self.cluster.now_us + 6 * SECOND_US);
        for ticket in tickets {
            match self.cluster.answers.get(&ticket) {
                Some(Ok(committed)) if committed.reached == Wait::All => {}
                other => {
                    let text = format!("an edit after all was healed did not reach all: {other:?}");
                    self.cluster.oracle.report("convergence", || text);
                }
            }
        }
        if let Some(why) = self.cluster.unsettled() {
            self.cluster.oracle.report("convergence", || format!("after the last edits: {why}"));
        }
        self.cluster.last_checks();
    }
}

impl Cluster {
    /// Whether an entry that makes a host a member, or one that removes it, is on any disk.
    fn is_written(&self, host: usize, member: bool) -> bool {
        self.oracle.entries().any(|sealed| changes_member(sealed.entry(), self.name(host), member))
    }
}
