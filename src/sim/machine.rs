//! What a simulated host has besides its daemon: power, a service, its own service address, original servers, a decision log.
//!
//! | fault | daemon | addresses | originals | decision log |
//! |---|---|---|---|---|
//! | daemon killed | gone | held until the lease ends | stay as they are; an order under way is undone | all that was written |
//! | daemon frozen | waits | held until the lease ends | stay | stays |
//! | machine off | gone | gone | pristine | what was synced |
//!
//! Leases run by the host's monotonic clock, whatever becomes of the daemon: the agents are processes of their own.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use super::random::Random;
use super::time::HostClock;
use crate::core::chain::{ChainRecord, Memory};
use crate::core::decision::{Incarnation, ServiceAddress};
use crate::core::guest::{Guest, GuestAction, GuestOrder, GuestOutcome, GuestRecord, GuestState, Judgement};
use crate::core::io::Ticket;

/// An address that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub address: ServiceAddress,
    /// By the host's monotonic clock.
    until_us: u64,
}

/// An original server.
#[derive(Debug, Clone)]
pub struct Original {
    pub record: GuestRecord,
    held: Option<Held>,
    /// Installations fail in it.
    pub cursed: bool,
    /// What it plays does not answer, until it is put back.
    pub ill: bool,
}

/// `Decision.dat` of one host.
#[derive(Debug, Clone)]
pub struct DecisionDisk {
    pub incarnation: Incarnation,
    synced: Vec<ChainRecord>,
    written: VecDeque<Vec<ChainRecord>>,
}

impl DecisionDisk {
    fn new(random: &mut Random) -> Self {
        Self { incarnation: Incarnation(random.word()), synced: Vec::new(), written: VecDeque::new() }
    }

    pub fn write(&mut self, records: Vec<ChainRecord>) {
        self.written.push_back(records);
    }

    /// What was written first is durable.
    pub fn sync_first(&mut self) {
        self.synced.extend(self.written.pop_front().unwrap_or_default());
    }

    fn crash(&mut self, power_cut: Option<&mut Random>) {
        let kept = power_cut.map_or(self.written.len(), |random| random.index(self.written.len() + 1));
        (0..kept).for_each(|_| self.sync_first());
        self.written.clear();
    }

    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        for record in self.synced.iter().cloned() {
            memory.replay(record).expect("records lie in the order in which they were written");
        }
        memory
    }
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub on: bool,
    /// It has not known a group yet: the first server may begin one then, and never again.
    pub founding: bool,
    /// Whether its own service runs.
    pub serves: bool,
    /// Whether it is cut off the service network alone.
    pub cut_off: bool,
    /// Whether installations take tens of seconds.
    pub installs_slowly: bool,
    pub originals: BTreeMap<String, Original>,
    pub decisions: DecisionDisk,
    held: Option<Held>,
    /// Rows of the file `Original` are on their way until this is answered.
    pub telling: Option<Ticket>,
}

impl Machine {
    pub fn new(originals: usize, random: &mut Random) -> Self {
        let original = |number: usize| (format!("original-{number}"), Original::pristine(0));
        Self {
            on: true,
            serves: true,
            cut_off: false,
            installs_slowly: false,
            originals: (1..=originals).map(original).collect(),
            decisions: DecisionDisk::new(random),
            founding: true,
            held: None,
            telling: None,
        }
    }

    /// The daemon ends; with it, at a power cut, all that the machine does.
    pub fn crash(&mut self, power_cut: Option<&mut Random>) {
        if power_cut.is_some() {
            self.power_off();
        }
        self.decisions.crash(power_cut);
    }

    fn power_off(&mut self) {
        self.held = None;
        for original in self.originals.values_mut() {
            *original = Original { cursed: original.cursed, ..Original::pristine(original.record.highest) };
        }
    }

    /// The disk is another one: what was decided is forgotten.
    pub fn forget_decisions(&mut self, random: &mut Random) {
        self.decisions = DecisionDisk::new(random);
    }

    pub fn hold_own(&mut self, address: ServiceAddress, until_us: u64) {
        self.held = Some(Held { address, until_us });
    }

    pub fn release_own(&mut self) {
        self.held = None;
    }

    /// What the host's own agent holds.
    pub fn own_address(&self, now_us: u64, clock: &HostClock) -> Option<ServiceAddress> {
        let monotonic_us = clock.now(now_us).monotonic_us;
        self.held.filter(|held| monotonic_us < held.until_us).map(|held| held.address)
    }

    /// Whether anybody on this machine holds the address.
    pub fn holds(&self, address: IpAddr, now_us: u64, clock: &HostClock) -> bool {
        let monotonic_us = clock.now(now_us).monotonic_us;
        let holds = |held: &Option<Held>| held.is_some_and(|it| it.address.ip == address && monotonic_us < it.until_us);
        self.on && (holds(&self.held) || self.originals.values().any(|original| holds(&original.held)))
    }

    /// Whether the service of what holds the address answers: the machine's own, or that of a stand-in.
    pub fn answers_at(&self, address: IpAddr, now_us: u64, clock: &HostClock) -> bool {
        let is_own = self.own_address(now_us, clock).is_some_and(|held| held.ip == address);
        let is_ill = |it: &Original| it.ill && it.held.is_some_and(|held| held.address.ip == address);
        self.on && if is_own { self.serves } else { !self.originals.values().any(is_ill) }
    }

    /// Stand-ins whose address has lapsed serve nothing any more; their names.
    pub fn lapse(&mut self, now_us: u64, clock: &HostClock) -> Vec<Guest> {
        let monotonic_us = clock.now(now_us).monotonic_us;
        let mut lapsed = Vec::new();
        for (name, original) in &mut self.originals {
            if original.record.state == GuestState::Serving
                && original.held.is_none_or(|held| monotonic_us >= held.until_us)
            {
                original.record.state = GuestState::Installed;
                original.held = None;
                lapsed.push(original.record.guest(name));
            }
        }
        lapsed
    }

    /// Carries out an order, as the driver does. `begun_us` is the `now` of the order.
    pub fn carry_out(&mut self, order: &GuestOrder, begun_us: u64) -> GuestOutcome {
        let Some(original) = self.originals.get_mut(&order.original) else {
            return GuestOutcome::Failed(format!("this host has no original server '{}'", order.original));
        };
        match original.record.judge(order.token, &order.action) {
            Judgement::Stale { highest } => return GuestOutcome::Stale { highest },
            Judgement::Refused(why) => return GuestOutcome::Failed(why),
            Judgement::Done => original.mark(order.token),
            Judgement::Do => {
                original.mark(order.token);
                if let Err(why) = original.change(&order.action, begun_us) {
                    original.record.state = GuestState::Broken;
                    original.record.note = why.clone();
                    original.held = None;
                    return GuestOutcome::Failed(why);
                }
            }
        }
        GuestOutcome::Done(original.record.guest(&order.original))
    }
}

impl Original {
    pub fn pristine(highest: u64) -> Self {
        let record =
            GuestRecord { state: GuestState::Suspended, highest, note: String::new(), ..GuestRecord::absent() };
        Self { record, held: None, cursed: false, ill: false }
    }

    fn mark(&mut self, token: u64) {
        self.record.highest = self.record.highest.max(token);
        self.record.token = self.record.token.max(token);
    }

    fn change(&mut self, action: &GuestAction, begun_us: u64) -> Result<(), String> {
        match action {
            GuestAction::Resume { target } => {
                self.record.state = GuestState::Running;
                self.record.target = Some(target.clone());
            }
            GuestAction::Install { .. } if self.cursed => return Err("the procedure ends with 1".into()),
            GuestAction::Install { procedure, .. } => {
                self.record.state = GuestState::Installed;
                self.record.procedure = Some(*procedure);
            }
            GuestAction::TakeAddress { address, lease_ms } | GuestAction::HoldAddress { address, lease_ms } => {
                self.record.state = GuestState::Serving;
                self.held = Some(Held { address: *address, until_us: begun_us + lease_ms * 1000 });
            }
            GuestAction::ReleaseAddress { .. } => {
                self.record.state = GuestState::Installed;
                self.held = None;
            }
            GuestAction::Reset => {
                let cursed = self.cursed;
                *self = Self { cursed, ..Self::pristine(self.record.highest) };
            }
            GuestAction::Check => {}
        }
        Ok(())
    }
}
