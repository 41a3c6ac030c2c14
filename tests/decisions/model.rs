//! A small group as a model that `stateright` walks through in every order of events. The servers are the real
//! [`Chain`]; only disk, network and time are the model's.
//!
//! - Network: every message that was ever sent may arrive at any time, any number of times, or never. That is loss,
//!   duplication, delay and every order at once. Whoever knows a decision may tell everybody at any time, so questions for
//!   decisions need not be asked here.
//! - Disk: a `Persist` is done in the step that asks for it, or is lost in a crash with which that step ends. A slow disk does
//!   it at some later moment, and a crash loses any number of them, the last first.
//! - Crash: a server begins again with what is on its disk; its wishes are gone. A disk may also be lost as a whole.
//! - Time: a tick finds every timer run out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use p2pdb::core::chain::{Ballot, Chain, ChainInput, ChainMessage, ChainOutput, ChainRecord, Memory, Phase};
use p2pdb::core::clock::Now;
use p2pdb::core::decision::{Act, Decision, Incarnation, Slot};
use p2pdb::core::flaw::Flaw;
use p2pdb::core::id::ServerName;
use p2pdb::core::quorum::{Electorate, Policy};
use p2pdb::core::roster::Roster;
use stateright::{Model, Property};

use crate::group::{config, founded, index, server, wish};

/// A group, what is wanted of it, and how much goes wrong at most.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub electors: usize,
    pub policy: Policy,
    /// Who wishes what, once, at any time.
    pub wishes: Vec<(usize, Act)>,
    pub crashes: u8,
    pub slow_disk: bool,
    /// Timeouts of all servers together.
    pub ticks: u8,
    /// Whose disk may be lost, once.
    pub loses_disk: Option<usize>,
    pub flaw: Option<Flaw>,
}

/// A value with its hash, so that it is hashed once and not in every state that it is a part of.
#[derive(Debug, Clone)]
pub struct Hashed<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T: Hash> Hashed<T> {
    fn new(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self { hash: hasher.finish(), value: Arc::new(value) }
    }
}

impl<T> Hash for Hashed<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<T> PartialEq for Hashed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl<T> Eq for Hashed<T> {}

impl<T> PartialOrd for Hashed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Hashed<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.hash.cmp(&other.hash)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    chain: Chain,
    disk: Memory,
    /// `Persist`s on their way to the disk.
    writing: VecDeque<Vec<ChainRecord>>,
    incarnation: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Letter {
    to: usize,
    from: usize,
    message: ChainMessage,
}

/// What was accepted on a disk, by whom.
type Cast = (Slot, Ballot, ServerName, Arc<Decision>);

/// What an all-knowing observer has seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Seen {
    cast: BTreeSet<Cast>,
    decided: BTreeMap<Slot, Arc<Decision>>,
    electorates: BTreeMap<Slot, Electorate>,
    broken: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group {
    hosts: Vec<Hashed<Host>>,
    sent: Arc<BTreeSet<Hashed<Letter>>>,
    seen: Hashed<Seen>,
    wished: u8,
    crashes: u8,
    ticks: u8,
    disk_lost: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Event(Event),
    /// The server crashes before anything of what the event leaves is on its disk.
    CrashIn(Event),
    Persisted(usize),
    /// So many of the writes under way still reach the disk.
    Crash(usize, usize),
    LoseDisk(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Deliver(Hashed<Letter>),
    Wish(usize),
    Tick(usize),
}

impl Host {
    fn start(scenario: &Scenario, index: usize, incarnation: u64, disk: Memory) -> Self {
        let mut config = config(index, incarnation, scenario.policy);
        config.flaw = scenario.flaw;
        Self { chain: Chain::new(config, disk.clone()), disk, writing: VecDeque::new(), incarnation }
    }

    /// The links to all others come up.
    fn link(&mut self, electors: usize, me: usize) -> Vec<ChainOutput> {
        let others = (0..electors).filter(|other| *other != me);
        others.flat_map(|other| self.chain.handle(now(0), ChainInput::LinkUp { peer: server(other) })).collect()
    }
}

fn slot_of(message: &ChainMessage) -> Slot {
    match message {
        ChainMessage::Prepare { slot, .. }
        | ChainMessage::Promise { slot, .. }
        | ChainMessage::Accepted { slot, .. }
        | ChainMessage::Refused { slot, .. }
        | ChainMessage::Abstained { slot, .. }
        | ChainMessage::WantDecisions { from: slot } => *slot,
        ChainMessage::Accept { decision, .. } => decision.slot,
        ChainMessage::Decisions(decisions) => decisions[0].slot,
    }
}

/// Whether a message answers a ballot, or a phase, that is not under way: no ballot is ever used again.
fn answers_nothing(message: &ChainMessage, under_way: Option<(&Ballot, Phase)>) -> bool {
    let (answered, phase) = match message {
        ChainMessage::Promise { ballot, .. } | ChainMessage::Abstained { ballot, .. } => (ballot, Phase::Prepare),
        ChainMessage::Refused { ballot, .. } | ChainMessage::Accepted { ballot, .. } => (ballot, Phase::Accept),
        _ => return false,
    };
    under_way.is_none_or(|(ballot, reached)| ballot != answered || reached > phase)
}

/// Each tick finds all timers run out.
fn now(ticks: u8) -> Now {
    Now { wall_ms: 0, monotonic_us: u64::from(ticks) * 10_000_000 }
}

impl Seen {
    fn electorate(&mut self, slot: Slot, electorate: Electorate) {
        let first = self.electorates.entry(slot).or_insert_with(|| electorate.clone());
        if *first != electorate {
            self.broken = Some("two electorates in one slot");
        }
    }

    /// Whether a quorum has accepted the value under one ballot.
    fn is_chosen(&self, decision: &Arc<Decision>, policy: Policy) -> bool {
        let Some(electorate) = self.electorates.get(&decision.slot) else { return false };
        let for_it = || self.cast.iter().filter(|(.., value)| value == decision);
        for_it().any(|(_, ballot, ..)| {
            let votes =
                for_it().filter(|(_, other, ..)| other == ballot).map(|(_, _, voter, _)| voter.clone()).collect();
            electorate.is_quorum(policy, &votes, &BTreeSet::new())
        })
    }

    fn cast(&mut self, cast: Cast, policy: Policy) {
        let decision = cast.3.clone();
        self.cast.insert(cast);
        if self.is_chosen(&decision, policy) {
            self.decided(decision);
        }
    }

    fn decided(&mut self, decision: Arc<Decision>) {
        let first = self.decided.entry(decision.slot).or_insert_with(|| decision.clone());
        if *first != decision {
            self.broken = Some("two decisions in one slot");
        }
    }
}

impl Scenario {
    /// How many slots can be decided at least if all goes well. Where each of two wishes is the other's end, only one
    /// can come true.
    pub fn slots_to_decide(&self) -> usize {
        let ends = |act: &Act, by: usize| matches!(act, Act::Recover { target, .. } if *target == server(by));
        match self.wishes.as_slice() {
            [(first, one), (second, other)] if !(ends(one, *second) && ends(other, *first)) => 2,
            _ => 1,
        }
    }

    pub fn decides(slots: usize) -> &'static str {
        if slots == 1 { "a slot is decided" } else { "two slots are decided" }
    }

    fn change(&self, group: &mut Group, me: usize, change: impl FnOnce(&mut Host) -> Vec<ChainOutput>) {
        let mut host = (*group.hosts[me].value).clone();
        let outputs = change(&mut host);
        outputs.into_iter().for_each(|output| self.carry_out(group, me, &mut host, output));
        group.hosts[me] = Hashed::new(host);
    }

    fn carry_out(&self, group: &mut Group, me: usize, host: &mut Host, output: ChainOutput) {
        match output {
            ChainOutput::Persist(records) => host.writing.push_back(records),
            ChainOutput::Send { message: ChainMessage::WantDecisions { .. } | ChainMessage::Decisions(_), .. } => {}
            ChainOutput::Send { peers, message } => {
                peers.iter().for_each(|peer| group.send(index(peer), me, message.clone()));
            }
            // Known from the start, and learned again after a disk was lost.
            ChainOutput::Decided(decision) if decision.slot <= self.electors as Slot => {}
            ChainOutput::Decided(decision) => {
                let before = &host.chain.decisions()[..decision.slot as usize - 1];
                group.observe(|seen| {
                    seen.electorate(decision.slot, Roster::of(before.iter().map(Arc::as_ref)).electorate());
                    if !seen.is_chosen(&decision, self.policy) {
                        seen.broken = Some("a decision that no quorum has accepted");
                    }
                    seen.decided(decision.clone());
                });
                for to in 0..self.electors {
                    group.send(to, (to + 1) % self.electors, ChainMessage::Decisions(vec![decision.clone()]));
                }
            }
            ChainOutput::WishDone { .. } => {}
            ChainOutput::Forked { .. } => group.observe(|seen| seen.broken = Some("two chains")),
        }
    }

    /// The oldest write reaches the disk: a vote counts from then on.
    fn write(&self, group: &mut Group, me: usize) {
        let mut host = (*group.hosts[me].value).clone();
        for record in host.writing.pop_front().into_iter().flatten() {
            if let ChainRecord::Accepted { ballot, decision } = &record {
                let electorate = Roster::of(host.disk.decisions.iter().map(Arc::as_ref)).electorate();
                let votes = electorate.admits(&server(me), Incarnation(host.incarnation)) || self.flaw.is_some();
                if votes {
                    group.observe(|seen| {
                        seen.electorate(decision.slot, electorate);
                        seen.cast((decision.slot, ballot.clone(), server(me), decision.clone()), self.policy);
                    });
                }
            }
            host.disk.replay(record).unwrap();
        }
        group.hosts[me] = Hashed::new(host);
    }

    fn persisted(&self, group: &mut Group, me: usize) {
        self.write(group, me);
        let now = now(group.ticks);
        self.change(group, me, |host| host.chain.handle(now, ChainInput::Persisted));
    }

    fn restart(&self, group: &mut Group, me: usize, incarnation: u64, disk: Memory) {
        self.change(group, me, |host| {
            *host = Host::start(self, me, incarnation, disk);
            host.link(self.electors, me)
        });
    }

    fn crash(&self, group: &mut Group, me: usize) {
        group.crashes += 1;
        let (incarnation, disk) = (group.hosts[me].value.incarnation, group.hosts[me].value.disk.clone());
        self.restart(group, me, incarnation, disk);
    }

    /// Returns whose event it is.
    fn event(&self, group: &mut Group, event: Event) -> usize {
        let (me, input) = match event {
            Event::Deliver(letter) => {
                let Letter { to, from, message } = (*letter.value).clone();
                (to, ChainInput::Message { peer: server(from), message })
            }
            Event::Wish(number) => {
                group.wished |= 1 << number;
                let (me, act) = self.wishes[number].clone();
                (me, ChainInput::Wish { ticket: number as u64, wish: wish(act) })
            }
            Event::Tick(me) => (me, ChainInput::Tick),
        };
        let ticks = group.ticks + u8::from(input == ChainInput::Tick);
        let before = group.clone();
        self.change(group, me, |host| host.chain.handle(now(ticks), input));
        if before != *group {
            group.ticks = ticks;
        }
        me
    }
}

impl Group {
    fn send(&mut self, to: usize, from: usize, message: ChainMessage) {
        let letter = Hashed::new(Letter { to, from, message });
        if !self.sent.contains(&letter) {
            Arc::make_mut(&mut self.sent).insert(letter);
        }
    }

    /// Forgets what can make no difference any more, so that states differ only where the future does: letters about slots
    /// whose decision is on the receiver's disk, answers to ballots that are over, and votes in slots whose decision is on every disk.
    fn forget(&mut self, loses_disk: Option<usize>) {
        let mut open: Vec<Slot> = self.hosts.iter().map(|host| host.value.disk.open_slot()).collect();
        // A disk that may still be lost has nothing for good.
        loses_disk.into_iter().for_each(|me| open[me] = 1);
        let is_over = |letter: &Hashed<Letter>| {
            let Letter { to, message, .. } = letter.value.as_ref();
            slot_of(message) < open[*to] || answers_nothing(message, self.hosts[*to].value.chain.ballot())
        };
        if self.sent.iter().any(is_over) {
            Arc::make_mut(&mut self.sent).retain(|letter| !is_over(letter));
        }
        let all = open.iter().copied().min().unwrap_or(0);
        if self.seen.value.cast.iter().any(|(slot, ..)| *slot < all) {
            self.observe(|seen| seen.cast.retain(|(slot, ..)| *slot >= all));
        }
    }

    fn observe(&mut self, change: impl FnOnce(&mut Seen)) {
        let mut seen = (*self.seen.value).clone();
        change(&mut seen);
        self.seen = Hashed::new(seen);
    }
}

impl Model for Scenario {
    type State = Group;
    type Action = Step;

    fn init_states(&self) -> Vec<Group> {
        let host = |index| {
            let mut host = Host::start(self, index, 1, founded(self.electors));
            // Everybody knows the same: what the links say at first is of no interest.
            host.link(self.electors, index);
            Hashed::new(host)
        };
        vec![Group {
            hosts: (0..self.electors).map(host).collect(),
            sent: Arc::default(),
            seen: Hashed::new(Seen::default()),
            wished: 0,
            crashes: 0,
            ticks: 0,
            disk_lost: false,
        }]
    }

    fn actions(&self, group: &Group, steps: &mut Vec<Step>) {
        let mut events: Vec<Event> = group.sent.iter().cloned().map(Event::Deliver).collect();
        events.extend((0..self.wishes.len()).filter(|wish| group.wished & (1 << wish) == 0).map(Event::Wish));
        events.extend((0..self.electors).filter(|_| group.ticks < self.ticks).map(Event::Tick));
        if group.crashes < self.crashes {
            for (me, host) in group.hosts.iter().enumerate() {
                steps.extend((0..=host.value.writing.len()).map(|kept| Step::Crash(me, kept)));
            }
            steps.extend(events.iter().filter(|_| !self.slow_disk).cloned().map(Step::CrashIn));
        }
        steps.extend(events.into_iter().map(Step::Event));
        let writes = |me: &usize| !group.hosts[*me].value.writing.is_empty();
        steps.extend((0..self.electors).filter(writes).map(Step::Persisted));
        steps.extend(self.loses_disk.filter(|_| !group.disk_lost).map(Step::LoseDisk));
    }

    fn next_state(&self, last: &Group, step: Step) -> Option<Group> {
        let mut group = last.clone();
        match step {
            Step::Event(event) => {
                let me = self.event(&mut group, event);
                while !self.slow_disk && !group.hosts[me].value.writing.is_empty() {
                    self.persisted(&mut group, me);
                }
            }
            Step::CrashIn(event) => {
                let me = self.event(&mut group, event);
                if group.hosts[me].value.writing.is_empty() {
                    return None;
                }
                self.crash(&mut group, me);
            }
            Step::Persisted(me) => self.persisted(&mut group, me),
            Step::Crash(me, kept) => {
                (0..kept).for_each(|_| self.write(&mut group, me));
                self.crash(&mut group, me);
            }
            Step::LoseDisk(me) => {
                group.disk_lost = true;
                let incarnation = group.hosts[me].value.incarnation + 1;
                self.restart(&mut group, me, incarnation, Memory::default());
                let from = (me + 1) % self.electors;
                group.send(me, from, ChainMessage::Decisions(founded(self.electors).decisions));
            }
        }
        group.forget(self.loses_disk.filter(|_| !group.disk_lost));
        (group != *last).then_some(group)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let decides = (1..=self.slots_to_decide()).map(|slots| {
            let reached: fn(&Self, &Group) -> bool = match slots {
                1 => |_, group| !group.seen.value.decided.is_empty(),
                _ => |_, group| group.seen.value.decided.len() > 1,
            };
            Property::sometimes(Self::decides(slots), reached)
        });
        let holds = Property::always(BROKEN, |_, group: &Group| group.seen.value.broken.is_none());
        [holds].into_iter().chain(decides).collect()
    }
}

/// The property that must hold in every state.
pub const BROKEN: &str = "one decision and one electorate per slot, chosen by a quorum and never forgotten";

/// How the property was broken.
pub fn broken(group: &Group) -> &'static str {
    group.seen.value.broken.unwrap_or("nothing is broken")
}
