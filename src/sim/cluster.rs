//! The hosts of one simulated cluster, the network between them, and the queue of what happens next.
//!
//! Everything happens in the order of (time, sequence), and all chance comes from one seeded generator, so a
//! seed is a run. The cluster carries out what the nodes want (`doors`) and lets the oracle look at every step;
//! what goes wrong in it is decided by whoever drives it: the fault plan or a scenario.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::certifier::Authority;
use super::disk::Disk;
use super::doors::Desk;
use super::host::{Host, Started};
use super::machine::Machine;
use super::network::{Frame, Network, Silence};
use super::oracle::Oracle;
use super::random::Random;
use super::time::{HostClock, MILLISECOND_US, SECOND_US};
use crate::core::decision::{Decision, ServiceAddress, Slot};
use crate::core::guest::{GuestOrder, GuestReport};
use crate::core::id::{ClusterId, ServerName};
use crate::core::io::{Committed, Edit, Input, Output, Refusal, Ticket, Transaction, Wait};
use crate::core::management::{AddressOrder, LookId, Management, ManagementConfig, ManagementInput};
use crate::core::node::{Node, NodeConfig};
use crate::core::oplog::Certifier;
use crate::core::priority::Class;
use crate::core::quorum::Policy;
use crate::core::version::Vector;
use crate::ports::{LogRead, carry_out};

/// Events that a timeline holds before the oldest are dropped.
const TIMELINE_EVENTS: usize = 120;
/// How often a journal that had no room looks again.
pub(super) const ROOM_LOOK_US: u64 = 300 * MILLISECOND_US;

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Settings {
    pub seed: u64,
    pub hosts: usize,
    /// What they are called; S1, S2 and so on if this is empty.
    pub names: Vec<ServerName>,
    /// What every node is configured with, but for its name.
    pub node: NodeConfig,
    pub segment_bytes: usize,
    /// Segments that are kept when older ones are archived; `None`: nothing is archived.
    pub keep_segments: Option<usize>,
    pub delay_us: (u64, u64),
    pub sync_us: (u64, u64),
    /// Whether the hosts' clocks differ and drift.
    pub clocks_differ: bool,
    /// Whether a timeline is kept.
    pub timeline: bool,
    /// How the group looks after itself; `None`: it only shares files.
    pub management: Option<Managed>,
}

/// How a simulated group looks after itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Managed {
    /// Original servers of each host.
    pub originals: usize,
    pub policy: Policy,
    /// The last host is a witness.
    pub witness: bool,
}

/// What happens at a moment.
pub enum Event {
    Tick {
        host: usize,
        life: u32,
    },
    Synced {
        host: usize,
        life: u32,
        room: bool,
    },
    ReadDone {
        host: usize,
        life: u32,
        request: LogRead,
    },
    CheckpointDone {
        host: usize,
        life: u32,
        bytes: Option<Vec<u8>>,
        seen: Box<Vector>,
    },
    ViewFlush {
        host: usize,
        life: u32,
    },
    RoomLook {
        host: usize,
        life: u32,
    },
    Arrive(Frame),
    /// The other end has closed the link.
    Closed {
        host: usize,
        peer: usize,
        epoch: u32,
    },
    Idle {
        host: usize,
        peer: usize,
        epoch: u32,
        silence: Silence,
    },
    Dial {
        one: usize,
        other: usize,
    },
    /// Votes are on disk.
    Persisted {
        host: usize,
        life: u32,
    },
    Managed {
        host: usize,
        life: u32,
        input: Box<ManagementInput>,
    },
    Guest {
        host: usize,
        life: u32,
        order: GuestOrder,
        begun_us: u64,
    },
    Address {
        host: usize,
        life: u32,
        order: AddressOrder,
        begun_us: u64,
    },
    Looked {
        host: usize,
        life: u32,
        id: LookId,
        address: ServiceAddress,
        seen: bool,
    },
}

/// Orders events by time, then by the order in which they were planned.
struct Planned {
    at_us: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.sequence).cmp(&(other.at_us, other.sequence))
    }
}

/// A transaction that has not been answered.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub host: usize,
    pub life: u32,
    pub deadline_us: u64,
}

/// A cluster under simulation.
pub struct Cluster {
    pub(super) settings: Settings,
    pub(super) now_us: u64,
    pub(super) hosts: Vec<Host>,
    pub(super) network: Network,
    pub(super) random: Random,
    pub(super) oracle: Oracle,
    pub(super) certifier: Arc<dyn Certifier>,
    pub(super) authority: Authority,
    pub(super) asked: BTreeMap<Ticket, Asked>,
    pub(super) answers: BTreeMap<Ticket, Result<Committed, Refusal>>,
    /// Links that were broken because of what a peer sent: who broke it, with whom, why.
    pub(super) disconnected: Vec<(usize, usize, String)>,
    pub(super) cluster: ClusterId,
    /// What was decided, as whoever learned of it first knows it.
    pub(super) chain: BTreeMap<Slot, Arc<Decision>>,
    /// What operators were answered.
    pub(super) operated: Vec<Result<String, String>>,
    /// Entries frames that arrive with a flipped bit, in a thousand.
    pub(super) corrupt_permille: u64,
    planned: BinaryHeap<Reverse<Planned>>,
    sequence: u64,
    tickets: Ticket,
    timeline: VecDeque<String>,
    /// What this run has been through.
    pub(super) steps: u64,
}

impl Cluster {
    /// A cluster of hosts that have not been started.
    pub fn new(settings: Settings) -> Self {
        let mut random = Random::new(settings.seed);
        let authority = Authority::new(random.bytes());
        // Of its own, so that the seeds of the files plane stay what they were.
        let mut machine_random = Random::new(settings.seed ^ 0x3ac);
        let hosts = (0..settings.hosts).map(|index| {
            let given = settings.names.get(index).cloned();
            let made = || ServerName::new(&format!("S{}", index + 1)).expect("a letter and a number are a name");
            let name = given.unwrap_or_else(made);
            let key = SigningKey::from_bytes(&random.bytes());
            let certificate = authority.issue(&name, &key.verifying_key());
            let mut clock = HostClock { monotonic_start_us: random.below(1000 * SECOND_US), ..HostClock::default() };
            if settings.clocks_differ {
                clock.offset_ms = random.below(400) as i64 - 200;
                clock.drift_ppm = random.below(400) as i64 - 200;
            }
            let disk = Disk { sync_us: settings.sync_us, ..Disk::default() };
            let originals = settings.management.map_or(0, |managed| managed.originals);
            let machine = Machine::new(originals, &mut machine_random);
            Host::new(name, key, certificate, clock, disk, machine)
        });
        let hosts: Vec<_> = hosts.collect();
        let mut cluster = Self {
            now_us: 0,
            network: Network::new(hosts.len(), settings.delay_us),
            oracle: Oracle::new(hosts.len()),
            hosts,
            random,
            certifier: Arc::new(authority.certifier()),
            cluster: authority.cluster(),
            authority,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            disconnected: Vec::new(),
            chain: BTreeMap::new(),
            operated: Vec::new(),
            corrupt_permille: 0,
            planned: BinaryHeap::new(),
            sequence: 0,
            tickets: 0,
            timeline: VecDeque::new(),
            steps: 0,
            settings,
        };
        for one in 0..cluster.hosts.len() {
            for other in one + 1..cluster.hosts.len() {
                cluster.plan(MILLISECOND_US, Event::Dial { one, other });
            }
        }
        cluster
    }

    /// Lets everything happen that is due up to a time. Stops early when a promise is broken.
    pub fn run_until(&mut self, until_us: u64) {
        while let Some(Reverse(next)) = self.planned.peek() {
            if next.at_us > until_us || self.oracle.violation().is_some() {
                break;
            }
            let Some(Reverse(Planned { at_us, event, .. })) = self.planned.pop() else { break };
            self.now_us = at_us;
            self.steps += 1;
            self.happen(event);
        }
        if self.oracle.violation().is_none() {
            self.now_us = self.now_us.max(until_us);
        }
    }

    pub fn name(&self, host: usize) -> &ServerName {
        &self.hosts[host].name
    }

    pub fn node(&self, host: usize) -> Option<&Node> {
        self.hosts[host].node.as_ref()
    }

    /// The number of a host by its name.
    pub fn host_of(&self, name: &ServerName) -> Option<usize> {
        self.hosts.iter().position(|host| host.name == *name)
    }

    /// Hosts whose daemon runs and that belong to the cluster.
    pub fn running(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&host| self.hosts[host].runs() && !self.hosts[host].removed).collect()
    }

    /// What happened last, one line per event.
    pub fn timeline(&self) -> impl Iterator<Item = &String> {
        self.timeline.iter()
    }

    // ---- what the driver does ----

    /// Makes the first host found the cluster: the transaction that names all its servers.
    pub fn found(&mut self, members: usize) -> Ticket {
        let mut edits = super::workload::founding_edits(&self.hosts[..members]);
        if let Some(managed) = self.settings.management {
            let servers = members - usize::from(managed.witness);
            edits.extend(super::services::service_edits(servers, managed.originals));
        }
        self.found_with(edits)
    }

    /// Makes the first host found the cluster with these records.
    pub fn found_with(&mut self, edits: Vec<Edit>) -> Ticket {
        let transaction =
            Transaction { class: Class::Management, author: "init".into(), reason: "founding".into(), edits };
        self.submit(0, transaction, Wait::Local, 5_000)
    }

    /// Starts a daemon on what its disk holds.
    pub fn start(&mut self, host: usize) {
        if self.hosts[host].runs() {
            return;
        }
        let config =
            NodeConfig { me: self.hosts[host].name.clone(), cluster: self.cluster, ..self.settings.node.clone() };
        let segment_bytes = self.settings.segment_bytes;
        let Started { run, put_aside, view } =
            self.hosts[host].start(self.now_us, &config, segment_bytes, self.certifier.clone());
        self.note(host, || format!("starts with run {run:08x}; put aside: {put_aside:?}"));
        if let Err(why) = view {
            let name = self.hosts[host].name.clone();
            self.oracle.report("P2 replicas", || format!("{name} has started, {why}"));
        }
        let name = self.hosts[host].name.clone();
        let Some(node) = &self.hosts[host].node else { return };
        let survivors: Vec<_> = super::journal::scan(&self.hosts[host].disk, &mut Vec::new())
            .into_iter()
            .map(|(_, sealed)| sealed)
            .collect();
        self.oracle.recovered(host, name.as_str(), node.files());
        self.oracle.appending(name.as_str(), &survivors);
        self.oracle.written(host, &survivors);
        let life = self.hosts[host].life;
        self.plan(0, Event::Tick { host, life });
        self.join_management(host);
    }

    /// Lets a daemon that has just started look after the group.
    fn join_management(&mut self, host: usize) {
        let Some(managed) = self.settings.management else { return };
        let one = &mut self.hosts[host];
        one.machine.on = true;
        one.machine.serves = true;
        let seed = self.random.word();
        let mut config = ManagementConfig::new(one.name.clone(), one.machine.decisions.incarnation, seed);
        config.policy = managed.policy;
        config.founder = host == 0 && one.machine.founding;
        config.witness = managed.witness && host + 1 == self.settings.hosts;
        config.service_network = !config.witness;
        config.flaw = self.settings.node.flaw;
        config.originals = one.machine.originals.keys().cloned().collect();
        let management = Management::new(config, one.machine.decisions.memory());
        one.node = one.node.take().map(|node| node.with_management(management));
        let guests: Vec<_> = one.machine.originals.iter().map(|(name, it)| it.record.guest(name)).collect();
        let life = one.life;
        for guest in guests {
            let input = Box::new(ManagementInput::Guest(GuestReport::Changed(guest)));
            self.plan(MILLISECOND_US, Event::Managed { host, life, input });
        }
    }

    /// Ends a daemon at once.
    pub fn crash(&mut self, host: usize, power_cut: bool) {
        if !self.hosts[host].runs() {
            return;
        }
        self.note(host, || if power_cut { "loses power".to_owned() } else { "is killed".to_owned() });
        let random = power_cut.then_some(&mut self.random);
        self.hosts[host].crash(random);
        self.hosts[host].machine.on = !power_cut;
        let random = power_cut.then_some(&mut self.random);
        if self.settings.management.is_some() {
            self.hosts[host].machine.crash(random);
        }
        self.asked.retain(|_, asked| asked.host != host);
        for peer in 0..self.hosts.len() {
            self.network.give_up(host, peer);
            if let Some(epoch) = self.network.end(peer, host) {
                let idle_us = self.network.idle_us(&mut self.random);
                self.plan(idle_us, Event::Idle { host: peer, peer: host, epoch, silence: Silence::Dead });
            }
        }
    }

    /// Stops a daemon for a while, as a signal does.
    pub fn freeze(&mut self, host: usize, for_us: u64) {
        self.note(host, || format!("is frozen for {} ms", for_us / 1000));
        self.hosts[host].frozen_until_us = self.now_us + for_us;
        for peer in 0..self.hosts.len() {
            if let Some(epoch) = self.network.end(peer, host) {
                let idle_us = self.network.idle_us(&mut self.random);
                self.plan(idle_us, Event::Idle { host: peer, peer: host, epoch, silence: Silence::Frozen });
            }
        }
    }

    /// Blocks one way.
    pub fn block(&mut self, from: usize, to: usize) {
        if let Some((epoch, silence)) = self.network.block(from, to) {
            let idle_us = self.network.idle_us(&mut self.random);
            self.plan(idle_us, Event::Idle { host: to, peer: from, epoch, silence });
        }
    }

    /// Opens one way.
    pub fn open(&mut self, from: usize, to: usize) {
        for frame in self.network.open(from, to) {
            self.happen(Event::Arrive(frame));
        }
    }

    /// Breaks a link; both ends notice soon, if the ways are open.
    pub fn close(&mut self, host: usize, peer: usize) {
        let Some(epoch) = self.network.end(host, peer) else { return };
        // Planned, not done: a node is never given an input while its outputs are being carried out.
        self.plan(0, Event::Closed { host, peer, epoch });
        self.tell_closed(host, peer, epoch);
    }

    pub fn set_disk_full(&mut self, host: usize, full: bool) {
        self.note(host, || format!("disk full: {full}"));
        self.hosts[host].disk.full = full;
    }

    /// Hands a transaction to a host. Returns the ticket that the answer will carry.
    pub fn submit(&mut self, host: usize, transaction: Transaction, wait: Wait, deadline_ms: u64) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        if self.hosts[host].runs() {
            self.note(host, || format!("submit {ticket} {wait:?}: {}", super::workload::describe(&transaction)));
            let deadline_us = self.now_us + deadline_ms * 1000;
            self.asked.insert(ticket, Asked { host, life: self.hosts[host].life, deadline_us });
            self.feed(host, Input::Submit { ticket, transaction, wait, deadline_ms });
        }
        ticket
    }

    /// Hands an input to a node and carries out what it wants.
    pub fn feed(&mut self, host: usize, input: Input) {
        let now = self.hosts[host].clock.now(self.now_us);
        let room_bytes = if self.hosts[host].disk.full { 0 } else { u64::MAX };
        let Some(node) = &mut self.hosts[host].node else { return };
        let mut outputs: Vec<Output> = node.handle(now, input);
        if node.wants_commit() {
            outputs.extend(node.handle(now, Input::Commit { room_bytes }));
        }
        carry_out(&mut Desk { cluster: self, host }, outputs);
    }

    pub fn plan(&mut self, after_us: u64, event: Event) {
        self.sequence += 1;
        self.planned.push(Reverse(Planned { at_us: self.now_us + after_us, sequence: self.sequence, event }));
    }

    /// Adds a line to the timeline, if one is kept.
    pub(super) fn note(&mut self, host: usize, line: impl FnOnce() -> String) {
        if !self.settings.timeline {
            return;
        }
        if self.timeline.len() == TIMELINE_EVENTS {
            self.timeline.pop_front();
        }
        let line = format!("{:>10.4} s  {}  {}", self.now_us as f64 / 1e6, self.hosts[host].name, line());
        self.timeline.push_back(line);
    }
}
