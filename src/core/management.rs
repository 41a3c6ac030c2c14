//! Management: this server's part in watching, deciding, recovering and taking back (the paper, sections 2 and 4).
//!
//! ```text
//! watch ─► verdict ─► wish ─► decision ─┬─► host: resume, install, take the address, hold it      (stand_ins)
//!                                       ├─► target: release the address, come back, return        (own_address, standing)
//!                                       └─► scribe: Group, Operation, Problem, Recovery, Flag     (scribe)
//! ```
//! Nothing is remembered of how far a recovery has come: on every input, what is (the decided chain, the files, the original
//! servers of this host, its lease) is compared with what should be, and the next step is taken. So whoever is left goes on where
//! somebody else stopped, this server after a crash included.
//!
//! Invariants: nothing is started but because of a decision, except warm-ups, which never touch an address. An exclusive
//! address is held only while the lease is valid. A server that knows that it is out of the group holds nothing.

mod io;
mod leases;
mod operator;
mod own_address;
mod report;
mod row;
mod scribe;
mod stand_ins;
mod standing;
mod takeovers;
#[cfg(test)]
mod tests;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};

pub(in crate::core) use io::Act;
pub use io::{
    AddressAction, AddressOrder, Failback, Hook, HookId, HookRun, LookId, ManagementConfig, ManagementInput,
    ManagementMessage, ManagementOutput, OperatorCommand,
};
pub use report::{ElectorReport, ManagementReport, RecoveredReport, WorkReport};
pub use row::{Phase, RecoveryRow};

use super::chain::{Chain, ChainConfig, ChainInput, ChainOutput, Memory, Standing, WishOutcome};
use super::clock::Now;
use super::decision::{Decision, Slot};
use super::diff::Change;
use super::flaw::Flaw;
use super::guest::GuestReport;
use super::id::{FileName, ServerName};
use super::io::{Edit, Message, Ticket};
use super::lease::{Grants, Lease};
use super::lifecycle::Lifecycle;
use super::merge::Files;
use super::quorum::Policy;
use super::record::Record;
use super::ring::Ring;
use super::schema::file;
use super::watch::{self, Assignment, Watch};

/// The author of what the daemon wants by itself.
const AUTHOR: &str = "p2pdb";
/// A change of a file that was submitted is not submitted again for so long, in microseconds.
const EDIT_PATIENCE_US: u64 = 1_000_000;

/// What management sees of the node that it is a part of.
pub(in crate::core) struct Scene<'a> {
    pub files: &'a Files,
    pub lifecycle: Lifecycle,
    pub linked: BTreeSet<ServerName>,
    /// The latest time of all entries, in ms since 1970: no clock of the group was behind it when it was seen.
    pub latest_ms: u64,
}

/// Why management is asked.
pub(in crate::core) enum Cause {
    Tick,
    /// Files that [`Management::reads`] have changed.
    Files,
    LinkUp {
        peer: ServerName,
    },
    LinkDown {
        peer: ServerName,
    },
    Message {
        peer: ServerName,
        message: Message,
    },
    Input(ManagementInput),
}

/// What one input leads to.
struct Turn<'a> {
    now: Now,
    scene: &'a Scene<'a>,
    acts: Vec<Act>,
    edits: BTreeMap<String, Vec<Edit>>,
}

impl Turn<'_> {
    fn out(&mut self, output: ManagementOutput) {
        self.acts.push(Act::Out(output));
    }

    fn send(&mut self, peers: Vec<ServerName>, message: Message) {
        if !peers.is_empty() {
            self.acts.push(Act::Send { peers, message });
        }
    }

    fn say(&mut self, peer: &ServerName, message: ManagementMessage) {
        self.send(vec![peer.clone()], Message::Management(message));
    }

    /// The record of a built-in file.
    fn record(&self, name: &str, key: &ServerName) -> Option<&Record> {
        self.scene.files.builtin(name)?.record(key.as_str())
    }

    fn now_us(&self) -> u64 {
        self.now.monotonic_us
    }
}

pub struct Management {
    config: ManagementConfig,
    chain: Chain,
    watch: Watch,
    assignment: Assignment,
    ring: Ring,
    /// Those of the ring who manage.
    managing: Ring,
    lease: Lease,
    grants: Grants,
    next_lease_us: u64,
    /// When this server began, and when it learned of each decision since.
    began_us: Option<u64>,
    /// In which life cycle it looked at the files last, and whether it was in the group.
    looked_as: Option<(Lifecycle, bool)>,
    learned_us: BTreeMap<Slot, u64>,
    /// Edits that are on their way, by file and key, and until when they are not repeated.
    edits: BTreeMap<(FileName, String), (Change, u64)>,
    /// Order, look, hook and wish numbers.
    numbers: u64,
    alarms: BTreeSet<String>,
    standing: standing::Membership,
    verdicts: verdicts::Verdicts,
    stand_ins: stand_ins::StandIns,
    own: own_address::OwnAddress,
    takeovers: takeovers::Takeovers,
    operator: operator::Operator,
}

impl Management {
    /// `memory` is what `Decision.dat` holds.
    pub fn new(config: ManagementConfig, memory: Memory) -> Self {
        let policy = match config.flaw {
            Some(Flaw::PlaceWithoutChain) => Policy::Paper,
            _ => config.policy,
        };
        let chain = ChainConfig {
            policy,
            flaw: config.flaw,
            ..ChainConfig::new(config.me.clone(), config.incarnation, config.seed)
        };
        Self {
            chain: Chain::new(chain, memory),
            watch: Watch::default(),
            assignment: Assignment::default(),
            ring: Ring::default(),
            managing: Ring::default(),
            lease: Lease::default(),
            grants: Grants::default(),
            next_lease_us: 0,
            began_us: None,
            looked_as: None,
            learned_us: BTreeMap::new(),
            edits: BTreeMap::new(),
            numbers: 0,
            alarms: BTreeSet::new(),
            standing: Default::default(),
            verdicts: Default::default(),
            stand_ins: Default::default(),
            own: Default::default(),
            takeovers: Default::default(),
            operator: Default::default(),
            config,
        }
    }

    /// Whether management has to know when this file changes.
    pub(in crate::core) fn reads(name: &FileName) -> bool {
        const READ: [&str; 12] = [
            file::SERVER,
            file::GROUP,
            file::OPERATION,
            file::PROBLEM,
            file::SERVICE,
            file::CHECK,
            file::ORIGINAL,
            file::RECOVERY,
            file::MAINTENANCE,
            file::FENCE,
            file::FLAG,
            file::BUNDLE,
        ];
        READ.contains(&name.as_str())
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The service address that this server holds for its own service.
    pub fn holds(&self) -> Option<super::decision::ServiceAddress> {
        self.own.held()
    }

    /// When it wants to be asked again, in microseconds of monotonic time.
    pub fn next_wake_us(&self) -> Option<u64> {
        self.chain.next_wake_us().into_iter().chain(self.watch.next_us()).min()
    }

    pub(in crate::core) fn handle(&mut self, now: Now, scene: &Scene, cause: Cause) -> Vec<Act> {
        // A clock that is behind, as that of a machine without a battery, dates nothing before what it follows.
        let now = Now { wall_ms: now.wall_ms.max(scene.latest_ms), ..now };
        let mut turn = Turn { now, scene, acts: Vec::new(), edits: BTreeMap::new() };
        self.began_us.get_or_insert(now.monotonic_us);
        let looks_as = Some((scene.lifecycle, self.in_group()));
        if looks_as != self.looked_as || matches!(cause, Cause::Files) {
            self.looked_as = looks_as;
            self.look_at_files(&mut turn);
        }
        match cause {
            Cause::Tick => {
                self.drive_chain(&mut turn, ChainInput::Tick);
                self.drive_watch(&mut turn, watch::Input::Tick);
            }
            Cause::Files => {}
            Cause::LinkUp { peer } => {
                self.drive_chain(&mut turn, ChainInput::LinkUp { peer: peer.clone() });
                self.drive_watch(&mut turn, watch::Input::LinkUp { peer });
            }
            Cause::LinkDown { peer } => {
                self.drive_chain(&mut turn, ChainInput::LinkDown { peer: peer.clone() });
                self.drive_watch(&mut turn, watch::Input::LinkDown { peer });
            }
            Cause::Message { peer, message } => self.message(&mut turn, peer, message),
            Cause::Input(input) => self.input(&mut turn, input),
        }
        self.keep_lease(&mut turn);
        self.keep_standing(&mut turn);
        self.keep_own_address(&mut turn);
        self.keep_stand_ins(&mut turn);
        self.keep_verdicts(&mut turn);
        self.keep_failbacks(&mut turn);
        self.keep_drains(&mut turn);
        self.keep_records(&mut turn);
        for (reason, edits) in std::mem::take(&mut turn.edits) {
            turn.acts.push(Act::Submit { reason, edits });
        }
        turn.acts
    }

    fn input(&mut self, turn: &mut Turn, input: ManagementInput) {
        match input {
            ManagementInput::Persisted => self.drive_chain(turn, ChainInput::Persisted),
            ManagementInput::Outcome { id, outcome } => self.drive_watch(turn, watch::Input::Outcome { id, outcome }),
            ManagementInput::Guest(GuestReport::Changed(guest)) => self.guest_changed(turn, guest),
            ManagementInput::Guest(GuestReport::Outcome { id, outcome }) => self.guest_outcome(turn, id, outcome),
            ManagementInput::Address { id, outcome } => self.address_outcome(turn, id, outcome),
            ManagementInput::Looked { id, outcome } => self.looked(turn, id, outcome),
            ManagementInput::HookDone { id, outcome } => self.hook_done(turn, id, outcome),
            ManagementInput::Operator { ticket, author, command } => self.command(turn, ticket, author, command),
        }
    }

    fn message(&mut self, turn: &mut Turn, peer: ServerName, message: Message) {
        match message {
            Message::Chain(message) => self.drive_chain(turn, ChainInput::Message { peer, message }),
            Message::Opinion(opinion) => self.drive_watch(turn, watch::Input::Opinion { from: peer, opinion }),
            Message::Lease(message) => self.lease_message(turn, peer, message),
            Message::Management(message) => self.management_message(turn, peer, message),
            _ => {}
        }
    }

    fn management_message(&mut self, turn: &mut Turn, peer: ServerName, message: ManagementMessage) {
        match message {
            ManagementMessage::WantLook { slot, round, address } => self.look_for(turn, peer, slot, round, address),
            ManagementMessage::Look { slot, round, answers } => {
                let outcome = answers.ok_or_else(|| format!("{peer} cannot look"));
                self.takeovers.looked(slot, round, &peer, outcome);
            }
            ManagementMessage::LetGo { target, slot } => self.takeovers.let_go(&target, slot, &peer),
            ManagementMessage::WantLetGo { target, slot } => self.tell_let_go(turn, &target, slot, vec![peer]),
            ManagementMessage::WarmUp { target, original } => self.warm_up(turn, target, original),
            ManagementMessage::CoolDown { target, original } => self.stand_ins.cool_down(&target, &original),
            ManagementMessage::Failback { author } => self.failback(author),
        }
    }

    // ---- the chain ----

    fn drive_chain(&mut self, turn: &mut Turn, input: ChainInput) {
        for output in self.chain.handle(turn.now, input) {
            match output {
                ChainOutput::Persist(records) => turn.out(ManagementOutput::Persist(records)),
                ChainOutput::Send { peers, message } => turn.send(peers, Message::Chain(message)),
                ChainOutput::Decided(decision) => self.decided(turn, &decision),
                ChainOutput::WishDone { ticket, outcome } => self.wish_done(turn, ticket, outcome),
                ChainOutput::Forked { peer, held, told } => {
                    let text = format!(
                        "{peer} has another decision {} than this server ({} against {}): the group was divided under the policy \
                         paper, or a Decision.dat is not what it was; move Decision.dat away on the side that is wrong",
                        held.slot, told.by, held.by
                    );
                    self.alarm(turn, format!("decisions of {peer}"), Some(text));
                }
            }
        }
    }

    fn decided(&mut self, turn: &mut Turn, decision: &std::sync::Arc<Decision>) {
        self.learned_us.insert(decision.slot, turn.now_us());
        // Grants of the electorate before do not count any more.
        self.next_lease_us = 0;
        self.run_hooks(turn, decision);
        self.warm_up_is_over(turn, decision);
        self.look_at_files(turn);
        turn.out(ManagementOutput::Decided(decision.clone()));
    }

    fn wish_done(&mut self, turn: &mut Turn, ticket: Ticket, outcome: WishOutcome) {
        self.operator_wish_done(turn, ticket, &outcome);
        self.standing.wish_done(ticket, turn.now.monotonic_us);
        self.verdicts.wish_done(ticket, &outcome, turn.now.monotonic_us);
    }

    /// When this server learned of a decision; that it began with counts as learned then.
    fn learned_us(&self, slot: Slot) -> u64 {
        self.learned_us.get(&slot).copied().or(self.began_us).unwrap_or(0)
    }

    /// How long ago a decision was made, in ms: since it was proposed, by the wall clocks, which may be wrong, and since this
    /// server learned of it at least.
    fn age_ms(&self, decision: &Decision, now: Now) -> u64 {
        let known_ms = now.monotonic_us.saturating_sub(self.learned_us(decision.slot)) / 1000;
        now.wall_ms.saturating_sub(decision.wall_ms).max(known_ms)
    }

    /// Whether it is in the group: admitted, and nobody plays it.
    fn in_group(&self) -> bool {
        self.chain.standing() == Standing::Elector && !self.config.witness
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    // ---- the watch ----

    fn drive_watch(&mut self, turn: &mut Turn, input: watch::Input) {
        for output in self.watch.handle(turn.now_us(), input) {
            match output {
                watch::Output::Ask(probe) => turn.out(ManagementOutput::Ask(probe)),
                watch::Output::Tell { to, opinion } => turn.send(vec![to], Message::Opinion(opinion)),
                watch::Output::Suspected { target, host } => self.suspected(turn, &target, &host),
                // What stands is looked at with every input.
                watch::Output::Verdict(_) => {}
                watch::Output::Cleared { target, .. } => self.cleared(turn, &target),
            }
        }
    }

    /// What the files and the decisions give this server to watch.
    fn look_at_files(&mut self, turn: &mut Turn) {
        let files = turn.scene.files;
        self.ring = Ring::of(files);
        self.managing = watch::managing(files, &self.ring);
        let witnesses = self.chain.roster().members().iter().filter(|member| member.witness).count();
        let operates = turn.scene.lifecycle == Lifecycle::Operating && !self.config.witness;
        let mut assignment = if operates && self.in_group() {
            Assignment::of(&self.config.me, files, &self.ring, witnesses, self.config.preset)
        } else {
            Assignment::default()
        };
        assignment.watched.extend(self.own_service_at_home(turn));
        if assignment != self.assignment {
            self.assignment = assignment.clone();
            self.tell_of_assignment(turn);
            self.drive_watch(turn, watch::Input::Assign(assignment));
        }
    }

    fn tell_of_assignment(&mut self, turn: &mut Turn) {
        let errors: Vec<String> = self.assignment.errors.iter().map(ToString::to_string).collect();
        let unreachable: Vec<&str> = self.assignment.unreachable.iter().map(ServerName::as_str).collect();
        let checks = (!errors.is_empty()).then(|| format!("checks that cannot be asked: {}", errors.join("; ")));
        let addresses = (!unreachable.is_empty()).then(|| {
            let names = unreachable.join(", ");
            format!("nobody can ask the stand-in of {names}: add its address to the file Service")
        });
        self.alarm(turn, "checks".into(), checks);
        self.alarm(turn, "service addresses".into(), addresses);
    }

    fn alarm(&mut self, turn: &mut Turn, name: String, text: Option<String>) {
        let raised = match text {
            Some(_) => self.alarms.insert(name.clone()),
            None => self.alarms.remove(&name),
        };
        if raised {
            turn.acts.push(Act::Alarm { name, text });
        }
    }

    // ---- the files ----

    /// Wants a record of a built-in file to be this, or to be gone.
    fn want_record(&mut self, turn: &mut Turn, name: &str, key: &str, wanted: Option<Record>, reason: &str) {
        let file = FileName::new(name).expect("built-in file names are well formed");
        let held = turn.scene.files.file(&file).and_then(|held| held.record(key)).cloned();
        if held == wanted {
            self.edits.remove(&(file, key.to_owned()));
            return;
        }
        let change = match (held, wanted) {
            (None, None) => return,
            (None, Some(after)) => Change::Add(after),
            (Some(before), Some(after)) => Change::Mod { before, after },
            (Some(before), None) => Change::Del(before),
        };
        let now_us = turn.now_us();
        let pending = self.edits.get(&(file.clone(), key.to_owned()));
        if pending.is_some_and(|(before, until_us)| *before == change && now_us < *until_us) {
            return;
        }
        self.edits.insert((file.clone(), key.to_owned()), (change.clone(), now_us + EDIT_PATIENCE_US));
        turn.edits.entry(reason.to_owned()).or_default().push(Edit { file, change, bases: None });
    }

    /// Writes how far the recovery of a server has come. The note is the reason too.
    fn want_recovery(&mut self, turn: &mut Turn, row: RecoveryRow) {
        let reason = format!("{}: {}", row.target, row.words());
        let record = row.record();
        self.want_record(turn, file::RECOVERY, row.target.as_str(), Some(record), &reason);
    }
}
