//! What management wants, on the simulated machines: votes on disk, questions, looks, orders, addresses, hooks; and the promises
//! about addresses and decisions, checked at every step from outside.

use std::net::IpAddr;
use std::sync::Arc;

use super::cluster::{Cluster, Event};
use super::doors::Desk;
use super::time::MILLISECOND_US;
use super::workload::server_record;
use crate::core::decision::{Act, Decision, ServiceAddress};
use crate::core::diff::Change;
use crate::core::guest::{GuestAction, GuestOrder, GuestOutcome, GuestReport, GuestState};
use crate::core::id::{FileName, ServerName};
use crate::core::io::{Edit, Input, Transaction, Wait};
use crate::core::lifecycle::Lifecycle;
use crate::core::management::{AddressAction, AddressOrder, ManagementInput, ManagementOutput};
use crate::core::merge::Files;
use crate::core::priority::Class;
use crate::core::probe::{Probe, ProbeKind, ProbeOutcome};
use crate::core::record::Record;
use crate::core::schema::file;
use crate::ports::Manager;

/// How long a question takes that is answered.
const ANSWER_US: u64 = MILLISECOND_US;

impl Manager for Desk<'_> {
    fn manage(&mut self, output: ManagementOutput) {
        let host = self.host;
        let cluster = &mut *self.cluster;
        match output {
            ManagementOutput::Persist(records) => {
                cluster.hosts[host].machine.decisions.write(records);
                self.after_disk(1, |life| Event::Persisted { host, life });
            }
            ManagementOutput::Ask(probe) => cluster.ask(host, probe),
            ManagementOutput::Guest(order) => cluster.order(host, order),
            ManagementOutput::Address(order) => {
                let begun_us = cluster.monotonic_us(host);
                let after_us = cluster.random.between(500, 4_000);
                cluster.plan_for(host, after_us, |life| Event::Address { host, life, order, begun_us });
            }
            ManagementOutput::Look { id, address, patience_ms } => {
                let seen = cluster.sees(host, address);
                let after_us = patience_ms * MILLISECOND_US;
                cluster.plan_for(host, after_us, |life| Event::Looked { host, life, id, address, seen });
            }
            ManagementOutput::Run(run) => {
                let input = ManagementInput::HookDone { id: run.id, outcome: Ok(String::new()) };
                cluster.tell(host, 20 * MILLISECOND_US, input);
            }
            ManagementOutput::Answer { result, .. } => cluster.operated.push(result),
            ManagementOutput::Decided(decision) => cluster.decided(host, &decision),
        }
    }
}

impl Cluster {
    fn monotonic_us(&self, host: usize) -> u64 {
        self.hosts[host].clock.now(self.now_us).monotonic_us
    }

    fn plan_for(&mut self, host: usize, after_us: u64, event: impl FnOnce(u32) -> Event) {
        let life = self.hosts[host].life;
        self.plan(after_us, event(life));
    }

    fn tell(&mut self, host: usize, after_us: u64, input: ManagementInput) {
        self.plan_for(host, after_us, |life| Event::Managed { host, life, input: Box::new(input) });
    }

    // ---- the service network ----

    /// Whether two machines reach each other on the service network.
    fn serves_to(&self, one: usize, other: usize) -> bool {
        let open = |host: usize| self.hosts[host].machine.on && !self.hosts[host].machine.cut_off;
        let blocked = self.network.is_blocked(one, other) || self.network.is_blocked(other, one);
        one == other && self.hosts[one].machine.on || open(one) && open(other) && !blocked
    }

    /// The machines on which somebody holds an address.
    pub(super) fn holders(&self, address: IpAddr) -> Vec<usize> {
        let holds = |host: &usize| {
            let host = &self.hosts[*host];
            host.machine.holds(address, self.now_us, &host.clock)
        };
        (0..self.hosts.len()).filter(holds).collect()
    }

    /// The machine whose daemon listens at an address, as the file `Server` says.
    fn daemon_at(&self, address: IpAddr) -> Option<usize> {
        (0..self.hosts.len())
            .find(|host| server_record(&self.hosts[*host], host + 1).field(2).starts_with(&format!("{address}:")))
    }

    /// Whether somebody answers at an address, as a host sees it.
    fn sees(&self, host: usize, address: ServiceAddress) -> bool {
        self.holders(address.ip).into_iter().any(|holder| self.serves_to(host, holder))
    }

    fn ask(&mut self, host: usize, probe: Probe) {
        let Probe { id, address, kind, timeout_ms } = probe;
        let answer = if address.is_loopback() {
            Some(self.hosts[host].machine.serves || kind == ProbeKind::Icmp)
        } else if let Some(there) = self.daemon_at(address) {
            self.serves_to(host, there).then_some(true)
        } else {
            let holder = self.holders(address).into_iter().find(|holder| self.serves_to(host, *holder));
            holder.map(|holder| {
                let there = &self.hosts[holder];
                kind == ProbeKind::Icmp || there.machine.answers_at(address, self.now_us, &there.clock)
            })
        };
        let (after_us, outcome) = match answer {
            Some(true) => (ANSWER_US, ProbeOutcome::Answered { took_us: ANSWER_US }),
            Some(false) => (ANSWER_US, ProbeOutcome::Refused("connection refused".into())),
            None => (timeout_ms * MILLISECOND_US, ProbeOutcome::Failed(format!("no answer within {timeout_ms} ms"))),
        };
        self.tell(host, after_us, ManagementInput::Outcome { id, outcome });
    }

    // ---- originals and addresses ----

    fn order(&mut self, host: usize, order: GuestOrder) {
        let (shortest_ms, longest_ms) = match order.action {
            GuestAction::Resume { .. } => (10, 60),
            GuestAction::Install { .. } if self.hosts[host].machine.installs_slowly => (1_000, 40_000),
            GuestAction::Install { .. } => (50, 400),
            GuestAction::Reset | GuestAction::Check => (10, 80),
            GuestAction::TakeAddress { .. } | GuestAction::HoldAddress { .. } | GuestAction::ReleaseAddress { .. } => {
                (1, 6)
            }
        };
        let begun_us = self.monotonic_us(host);
        let after_us = self.random.between(shortest_ms, longest_ms) * MILLISECOND_US;
        self.plan_for(host, after_us, |life| Event::Guest { host, life, order, begun_us });
    }

    pub(super) fn guest_done(&mut self, host: usize, order: GuestOrder, begun_us: u64) {
        let outcome = self.hosts[host].machine.carry_out(&order, begun_us);
        if !matches!((&order.action, &outcome), (GuestAction::HoldAddress { .. }, GuestOutcome::Done(_))) {
            let what = || format!("{} {:?} token {}: {outcome:?}", order.original, order.action, order.token);
            self.note(host, what);
        }
        if let GuestAction::TakeAddress { address, .. } | GuestAction::HoldAddress { address, .. } = order.action {
            self.check_exclusive(address);
        }
        let guest = self.hosts[host].machine.originals.get(&order.original).map(|it| it.record.guest(&order.original));
        if let Some(guest) = guest {
            self.tell(host, 0, ManagementInput::Guest(GuestReport::Changed(guest)));
        }
        self.tell(host, 0, ManagementInput::Guest(GuestReport::Outcome { id: order.id, outcome }));
    }

    pub(super) fn address_done(&mut self, host: usize, order: AddressOrder, begun_us: u64) {
        let now_us = self.now_us;
        let monotonic_us = self.monotonic_us(host);
        let one = &mut self.hosts[host];
        let held = one.machine.own_address(now_us, &one.clock);
        let until_us = |lease_ms: u64| begun_us + lease_ms * 1000;
        let outcome = match order.action {
            AddressAction::Report => Ok(held),
            AddressAction::Hold { address, .. } if held != Some(address) => Err("the address has lapsed".to_owned()),
            AddressAction::Take { address, lease_ms } | AddressAction::Hold { address, lease_ms } => {
                one.machine.hold_own(address, until_us(lease_ms));
                Ok((monotonic_us < until_us(lease_ms)).then_some(address))
            }
            AddressAction::Release { .. } => {
                one.machine.release_own();
                Ok(None)
            }
        };
        if !matches!((order.action, &outcome), (AddressAction::Hold { .. }, Ok(_))) {
            self.note(host, || format!("own address {:?}: {outcome:?}", order.action));
        }
        if let AddressAction::Take { address, .. } | AddressAction::Hold { address, .. } = order.action {
            self.check_exclusive(address);
        }
        self.tell(host, 0, ManagementInput::Address { id: order.id, outcome });
    }

    pub(super) fn looked(&mut self, host: usize, id: u64, address: ServiceAddress, seen: bool) {
        let outcome = match self.hosts[host].machine.cut_off {
            true => Ok(false),
            false => Ok(seen || self.sees(host, address)),
        };
        self.managed(host, ManagementInput::Looked { id, outcome });
    }

    pub(super) fn managed(&mut self, host: usize, input: ManagementInput) {
        self.feed(host, Input::Management(input));
    }

    /// Addresses that have lapsed are noticed, and the file `Original` is brought up to date.
    pub(super) fn look_after_originals(&mut self, host: usize) {
        let (now_us, one) = (self.now_us, &mut self.hosts[host]);
        for guest in one.machine.lapse(now_us, &one.clock) {
            self.managed(host, ManagementInput::Guest(GuestReport::Changed(guest)));
        }
        self.tell_originals(host);
    }

    /// As the daemon does: one row for each original, one transaction at a time.
    fn tell_originals(&mut self, host: usize) {
        let Some(node) = &self.hosts[host].node else { return };
        let is_telling = self.hosts[host].machine.telling.is_some_and(|ticket| self.asked.contains_key(&ticket));
        if node.management().is_none() || node.lifecycle() < Lifecycle::Ready || is_telling {
            return;
        }
        let edits = original_edits(node.files(), &self.hosts[host].name, |original| {
            self.hosts[host].machine.originals.get(original).map(|it| it.record.state)
        });
        if edits.is_empty() {
            return;
        }
        let transaction = Transaction {
            class: Class::Management,
            author: "p2pdb".into(),
            reason: "the original servers of this host".into(),
            edits,
        };
        let ticket = self.submit(host, transaction, Wait::Local, 2_000);
        self.hosts[host].machine.telling = Some(ticket);
    }

    // ---- the promises ----

    /// P4: whoever looks from outside sees one holder at most. Unsafe policies are not judged.
    fn check_exclusive(&mut self, address: ServiceAddress) {
        let holders = self.holders(address.ip);
        if holders.len() > 1 {
            let names: Vec<String> = holders.iter().map(|host| self.hosts[*host].name.to_string()).collect();
            self.oracle.report("P4 one holder", || format!("{address} is held by {}", names.join(" and by ")));
        }
    }

    /// A slot means the same to everybody.
    fn decided(&mut self, host: usize, decision: &Arc<Decision>) {
        self.note(host, || format!("knows decision {}: {}", decision.slot, decision.act));
        self.hosts[host].machine.founding = false;
        let known = self.chain.entry(decision.slot).or_insert_with(|| decision.clone());
        if known != decision {
            let (known, other) = (known.act.to_string(), decision.act.to_string());
            let slot = decision.slot;
            self.oracle.report("decisions", || format!("slot {slot} is '{known}' to some and '{other}' to others"));
        }
        if let Act::Recover { target, place: Some(place), .. } = &decision.act
            && place.host == *target
        {
            self.oracle.report("P5 places", || format!("{target} is to be played by itself"));
        }
    }
}

/// What brings the rows of a host up to date.
fn original_edits(files: &Files, host: &ServerName, state: impl Fn(&str) -> Option<GuestState>) -> Vec<Edit> {
    let file = FileName::new(file::ORIGINAL).expect("built-in file names are well formed");
    let rows = files.records_of(file::ORIGINAL).filter(|row| row.field(0) == host.as_str());
    rows.filter_map(|before| {
        let after = Record::of([host.as_str(), before.field(1), state(before.field(1))?.word(), "simulated"]);
        let change = Change::Mod { before: before.clone(), after: after.clone() };
        (after != *before).then(|| Edit { file: file.clone(), change, bases: None })
    })
    .collect()
}

/// The records with which a group that looks after itself begins, beside those of its members.
pub fn service_edits(hosts: usize, originals: usize) -> Vec<Edit> {
    let mut edits = Vec::new();
    let mut add = |name: &str, text: String| {
        let file = FileName::new(name).expect("built-in file names are well formed");
        let record = Record::parse(&text).expect("the simulator's own records are well formed");
        edits.push(Edit { file, change: Change::Add(record), bases: None });
    };
    for number in 1..=hosts {
        let name = format!("S{number}");
        add(file::SERVICE, format!("{name}, 10.1.0.{number}/24, exclusive"));
        add(file::CHECK, format!("{name}, web, tcp 80"));
        add(file::CONDITION, format!("{name}, 0.{number}, 0.1, 0, 0, 4, 8192, 1000"));
        add(file::BUNDLE, format!("procedure.{name}, 10, {}", "ab".repeat(32)));
        (1..=originals).for_each(|original| {
            add(file::ORIGINAL, format!("{name}, original-{original}, suspended, simulated"));
        });
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::super::cluster::{Managed, Settings};
    use super::super::time::SECOND_US;
    use super::*;
    use crate::core::id::ClusterId;
    use crate::core::node::NodeConfig;
    use crate::core::quorum::Policy;

    fn lonely() -> Cluster {
        let name = ServerName::new("S1").unwrap();
        Cluster::new(Settings {
            seed: 1,
            hosts: 1,
            names: Vec::new(),
            node: NodeConfig::new(name, ClusterId([0; 16])),
            segment_bytes: 64 * 1024,
            keep_segments: None,
            delay_us: (50, 2_000),
            sync_us: (100, 2_000),
            clocks_differ: false,
            timeline: false,
            management: Some(Managed { originals: 1, policy: Policy::Balanced, witness: false }),
        })
    }

    #[test]
    fn a_row_of_an_original_that_was_refused_is_told_later() {
        let mut cluster = lonely();
        let told = |cluster: &Cluster| {
            let row = cluster.node(0).unwrap().files().records_of(file::ORIGINAL).next().cloned();
            row.unwrap().field(2).to_owned()
        };
        cluster.start(0);
        cluster.found(1);
        cluster.run_until(10 * SECOND_US);
        assert_eq!(told(&cluster), "suspended");
        cluster.set_disk_full(0, true);
        cluster.hosts[0].machine.originals.get_mut("original-1").unwrap().record.state = GuestState::Running;
        cluster.run_until(12 * SECOND_US);
        assert_eq!(told(&cluster), "suspended");
        cluster.set_disk_full(0, false);
        cluster.run_until(20 * SECOND_US);
        assert_eq!(told(&cluster), "running");
    }
}
