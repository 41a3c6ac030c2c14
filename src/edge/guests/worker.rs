//! The worker of one original server.
//!
//! Every order that is carried out writes its goal to disk, marked unfinished, then acts, then writes how it ended. So after a
//! crash the goal says what to do: towards suspended: finish it. Towards running or installed: undo it. Towards
//! serving: ask the guest, whose lease ends by itself.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tracing::{info, warn};

use super::Report;
use super::drivers::{Made, MadeWith};
use super::machine::{Failed, Machine, Seen};
use crate::core::decision::{ServiceAddress, Slot};
use crate::core::guest::{
    Guest, GuestAction, GuestOrder, GuestOutcome, GuestRecord, GuestReport, GuestState, Judgement,
};
use crate::core::id::{Digest, ServerName};
use crate::edge::bundles::BundleStore;
use crate::edge::caught;
use crate::edge::certificate::write_atomically;
use crate::edge::procedure::Procedure;
use crate::format::guest::{decode_guest, encode_guest};

/// How often an original that has nothing to do is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it is tried to remove one that is not wanted any more.
const RETIRE_EVERY: Duration = Duration::from_secs(60);
/// Most of what a procedure printed that goes into a note, in characters.
const NOTE_CHARS_MAX: usize = 1000;

pub enum Job {
    Order {
        order: GuestOrder,
        /// When it was decided upon, on `CLOCK_MONOTONIC`.
        given_ns: u64,
    },
    Prepare,
}

pub struct Worker {
    name: String,
    folder: PathBuf,
    /// Whether the settings still ask for this original.
    wanted: bool,
    with: MadeWith,
    machine: Box<dyn Machine>,
    /// What the settings name, where that is something else: its turn comes when the original is made anew.
    successor: Option<Made>,
    bundles: BundleStore,
    report: Report,
    record: GuestRecord,
    told: Option<Guest>,
}

impl Worker {
    pub fn new(
        name: String,
        folder: PathBuf,
        wanted: bool,
        made: Made,
        successor: Option<Made>,
        bundles: BundleStore,
        report: Report,
    ) -> Self {
        let Made { with, machine } = made;
        let record = GuestRecord::absent();
        Self { name, folder, wanted, with, machine, successor, bundles, report, record, told: None }
    }

    /// Works until nobody sends jobs any more.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        self.load();
        if let Err(why) = self.remember_driver() {
            // Before something is made it has to succeed.
            warn!("{}: {why}", self.name);
        }
        if !self.record.instance.is_empty() {
            let adopted = self.attempt(|worker| worker.machine.adopt(&worker.record.instance));
            if let Ok(Err(why)) = adopted {
                warn!("{}: {why}", self.name);
            }
        }
        let _ = self.attempt(Self::recover);
        loop {
            let mut pause = LOOK_EVERY;
            if !self.wanted && self.record.token == 0 {
                if self.attempt(Self::retire) == Ok(true) {
                    // Whoever has heard that it is broken would wait for ever for it to be made anew.
                    if self.told.is_some() {
                        self.record.state = GuestState::Suspended;
                        self.record.note.clear();
                        self.tell();
                    }
                    return;
                }
                pause = RETIRE_EVERY;
            }
            self.tell();
            match jobs.recv_timeout(pause) {
                Ok(Job::Order { order, given_ns }) => {
                    let id = order.id;
                    let done = self.attempt(|worker| worker.carry_out(order, given_ns));
                    let outcome = done.unwrap_or_else(GuestOutcome::Failed);
                    self.tell();
                    (self.report)(GuestReport::Outcome { id, outcome });
                }
                Ok(Job::Prepare) => {
                    self.told = None;
                    let _ = self.attempt(|worker| {
                        worker.look_after();
                        worker.remake_if_free();
                    });
                }
                Err(RecvTimeoutError::Timeout) => drop(self.attempt(Self::look_after)),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whoever waits for the outcome must get one, and those after it theirs, also where the driver has a bug.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Result<T, Failed> {
        caught("the driver", || work(self)).inspect_err(|why| {
            // If this fails as well, the goal stays unfinished on disk, which a restart sorts out.
            let _ = caught("the driver", || self.break_down(why));
        })
    }

    // ---- what is remembered ----

    fn state_path(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn load(&mut self) {
        let path = self.state_path();
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            other => other,
        };
        match bytes.map_err(|error| error.to_string()).and_then(|held| decode_guest(&held).map_err(|e| e.to_string())) {
            Ok(record) => self.record = record,
            Err(why) => {
                // It does not say any more which tokens were seen; the next order begins anew.
                warn!("{}: {why}; it is kept as state.damaged", path.display());
                let _ = fs::rename(&path, path.with_extension("damaged"));
            }
        }
    }

    fn store(&self) -> Result<(), Failed> {
        let path = self.state_path();
        write_atomically(&path, &encode_guest(&self.record), 0o600)
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    fn remember_driver(&self) -> Result<(), Failed> {
        if MadeWith::read(&self.folder)?.as_ref() == Some(&self.with) {
            return Ok(());
        }
        self.with.write(&self.folder).map_err(|error| format!("{}: {error}", self.folder.display()))
    }

    /// Puts a goal on disk, before anything is done for it.
    fn begin(&mut self, token: Slot, goal: GuestState) -> Result<(), Failed> {
        self.begin_as(token, goal, self.record.target.clone(), self.record.procedure)
    }

    fn begin_as(
        &mut self,
        token: Slot,
        goal: GuestState,
        target: Option<ServerName>,
        procedure: Option<Digest>,
    ) -> Result<(), Failed> {
        let highest = self.record.highest.max(token);
        let begun =
            GuestRecord { state: goal, highest, token, target, procedure, unfinished: true, ..self.record.clone() };
        let before = std::mem::replace(&mut self.record, begun);
        self.store().inspect_err(|_| self.record = before)
    }

    fn end(&mut self, state: GuestState, note: impl Into<String>) {
        self.record.state = state;
        self.record.unfinished = false;
        self.record.note = note.into();
        if let Err(why) = self.store() {
            // What is on disk says unfinished, which a restart sorts out.
            warn!("{}: {why}", self.name);
        }
    }

    fn tell(&mut self) {
        let guest = self.record.guest(&self.name);
        if self.told.as_ref() != Some(&guest) {
            self.told = Some(guest.clone());
            (self.report)(GuestReport::Changed(guest));
        }
    }

    // ---- orders ----

    fn carry_out(&mut self, order: GuestOrder, given_ns: u64) -> GuestOutcome {
        // What has happened to it since the last look decides, too.
        self.look_after();
        let GuestOrder { token, action, .. } = order;
        match self.record.judge(token, &action) {
            Judgement::Stale { highest } => return GuestOutcome::Stale { highest },
            Judgement::Refused(why) => return GuestOutcome::Failed(why),
            Judgement::Done => {
                return match self.raise(token) {
                    Ok(()) => GuestOutcome::Done(self.record.guest(&self.name)),
                    Err(why) => GuestOutcome::Failed(why),
                };
            }
            Judgement::Do => {}
        }
        let until_ns = |lease_ms: u64| given_ns + lease_ms * 1_000_000;
        let done = match action {
            GuestAction::Resume { target } => self.resume(token, target),
            GuestAction::Install { target, procedure, address } => self.install(token, &target, procedure, address),
            GuestAction::TakeAddress { address, lease_ms } => self.begin(token, GuestState::Serving).and_then(|()| {
                let taken = self.machine.take_address(&self.record.instance, address, until_ns(lease_ms));
                self.after_address(address, taken)
            }),
            GuestAction::HoldAddress { address, lease_ms } => self.raise(token).and_then(|()| {
                let held = self.machine.hold_address(&self.record.instance, address, until_ns(lease_ms));
                if held.is_err() { self.after_address(address, held) } else { held }
            }),
            GuestAction::ReleaseAddress { .. } => self.release(token),
            GuestAction::Reset => self.make_anew(token),
            GuestAction::Check => self.check(token),
        };
        match done {
            Ok(()) => GuestOutcome::Done(self.record.guest(&self.name)),
            Err(why) => GuestOutcome::Failed(why),
        }
    }

    /// Remembers a newer token of the present use.
    fn raise(&mut self, token: Slot) -> Result<(), Failed> {
        if token <= self.record.token {
            return Ok(());
        }
        self.begin(token, self.record.state)?;
        self.end(self.record.state, self.record.note.clone());
        Ok(())
    }

    fn resume(&mut self, token: Slot, target: ServerName) -> Result<(), Failed> {
        self.begin_as(token, GuestState::Running, Some(target), None)?;
        let resumed = self.machine.resume(&self.record.instance);
        self.ended_in(GuestState::Running, resumed.map(|()| String::new()))
    }

    fn install(
        &mut self,
        token: Slot,
        target: &ServerName,
        digest: Digest,
        address: Option<ServiceAddress>,
    ) -> Result<(), Failed> {
        let bundle = self.bundles.whole(&digest).map_err(|error| error.to_string())?;
        let procedure = Procedure::of_bundle(&bundle).map_err(|error| error.to_string())?;
        if let Some(meant) = procedure.manifest.target.as_ref().filter(|meant| *meant != target) {
            return Err(format!("the procedure is for {meant}, not for {target}"));
        }
        self.begin_as(token, GuestState::Installed, Some(target.clone()), Some(digest))?;
        let installed = self.machine.install(&self.record.instance, target, &procedure, address);
        self.ended_in(GuestState::Installed, installed)
    }

    /// Where something went wrong on the way, nothing is left of it.
    fn ended_in(&mut self, goal: GuestState, done: Result<String, Failed>) -> Result<(), Failed> {
        match done {
            Ok(output) => self.end(goal, last_words(&output)),
            Err(why) => {
                self.break_down(&why);
                return Err(why);
            }
        }
        Ok(())
    }

    fn after_address(&mut self, address: ServiceAddress, done: Result<(), Failed>) -> Result<(), Failed> {
        let seen = match (&done, self.machine.look(&self.record.instance)) {
            // Its server has another address now: it is still good for that one.
            (Err(_), Seen::Running(Some(held))) if held != address => {
                let released = self.machine.release_address(&self.record.instance);
                released.map_or_else(Seen::Unknown, |()| Seen::Running(None))
            }
            (_, seen) => seen,
        };
        match (&done, seen) {
            (Ok(()), _) => self.end(GuestState::Serving, ""),
            (Err(why), Seen::Running(None)) => self.end(GuestState::Installed, why.clone()),
            (Err(why), _) => self.break_down(&why.clone()),
        }
        done
    }

    fn release(&mut self, token: Slot) -> Result<(), Failed> {
        self.begin(token, GuestState::Serving)?;
        let released = self.machine.release_address(&self.record.instance);
        match &released {
            Ok(()) => self.end(GuestState::Installed, ""),
            // Whoever waits for the address must not wait for a guest that does not answer.
            Err(why) => self.break_down(&why.clone()),
        }
        released
    }

    fn check(&mut self, token: Slot) -> Result<(), Failed> {
        self.begin(token, GuestState::Suspended)?;
        let resumed = self.machine.resume(&self.record.instance);
        let anew = self.make_anew(token);
        resumed.and(anew)
    }

    fn make_anew(&mut self, token: Slot) -> Result<(), Failed> {
        let served = self.record.state == GuestState::Serving;
        self.begin(token, GuestState::Suspended)?;
        let ended = self.destroy().map_err(|why| self.left_behind(why));
        if let Err(why) = &ended
            && served
            && self.may_answer()
        {
            self.end(GuestState::Serving, last_words(&format!("it does not end: {why}")));
            return ended;
        }
        // One that is not wanted any more need not be made to be removed.
        let made = ended.and_then(|()| if self.wanted { self.prepare() } else { Ok(()) });
        self.record.token = 0;
        self.record.target = None;
        self.record.procedure = None;
        match &made {
            Ok(()) => self.end(GuestState::Suspended, self.machine.note()),
            Err(why) => self.break_down(&why.clone()),
        }
        made
    }

    fn prepare(&mut self) -> Result<(), Failed> {
        self.change_driver()?;
        self.remember_driver()?;
        let Self { machine, record, folder, name, .. } = self;
        machine.prepare(&mut |instance| {
            record.instance = instance.to_owned();
            let path = folder.join("state");
            write_atomically(&path, &encode_guest(record), 0o600)
                .map_err(|error| format!("{name}: {}: {error}", path.display()))
        })
    }

    /// Lets what the settings name take over, after nothing is left of what was made with others.
    fn change_driver(&mut self) -> Result<(), Failed> {
        if self.successor.is_none() {
            return Ok(());
        }
        self.machine.remove().map_err(|why| self.left_behind(why))?;
        if let Some(Made { with, machine }) = self.successor.take() {
            info!(
                "{}: p2pdb.toml has changed: what {} made is removed, now it is made by {with}",
                self.name, self.with
            );
            (self.with, self.machine) = (with, machine);
        }
        // The new one must not find an instance of the former on disk.
        self.store()
    }

    /// Why something is in the way; where it was made with other settings, that is said.
    fn left_behind(&self, why: Failed) -> Failed {
        match self.successor {
            None => why,
            Some(_) => format!(
                "made by {} before p2pdb.toml was changed, and cannot be removed there, see 'Other settings' in originals.md: {why}",
                self.with
            ),
        }
    }

    fn destroy(&mut self) -> Result<(), Failed> {
        if !self.record.instance.is_empty() {
            self.machine.destroy(&self.record.instance)?;
            self.record.instance.clear();
        }
        Ok(())
    }

    /// Whether it may still answer at an address that it had. Then it is not said to be broken: whoever waits for the address would
    /// take it.
    fn may_answer(&mut self) -> bool {
        !matches!(self.machine.look(&self.record.instance), Seen::Running(None) | Seen::Suspended | Seen::Gone)
    }

    fn break_down(&mut self, why: &str) {
        warn!("{}: {why}", self.name);
        match self.destroy() {
            Ok(()) => self.end(GuestState::Broken, last_words(why)),
            Err(also) => {
                let serves = self.record.state == GuestState::Serving && self.may_answer();
                let state = if serves { GuestState::Serving } else { GuestState::Broken };
                self.end(state, last_words(&format!("{why}; and it does not end: {also}")));
            }
        }
    }

    // ---- what happens without an order ----

    /// What an earlier daemon has left.
    fn recover(&mut self) {
        if self.successor.is_some() && self.record.token == 0 {
            // What fails is told by the state.
            return drop(self.make_anew(0));
        }
        if self.record.unfinished {
            info!("{}: an order was cut off on its way to {}", self.name, self.record.state.word());
            match self.record.state {
                GuestState::Serving => {
                    self.record.unfinished = false;
                    return self.look_after();
                }
                GuestState::Suspended => return drop(self.make_anew(self.record.token)),
                _ => self.break_down("the daemon ended while this was being done; it was undone"),
            }
        } else {
            self.look_after();
        }
        if self.wanted {
            self.remake_if_free();
        }
    }

    /// Makes a broken one anew if no decision has to do with it. What fails is told by the state.
    fn remake_if_free(&mut self) {
        if self.record.state == GuestState::Broken && self.record.token == 0 {
            let _ = self.make_anew(0);
        }
    }

    /// Compares what is remembered with what is there.
    fn look_after(&mut self) {
        if self.record.state == GuestState::Broken || self.record.instance.is_empty() {
            return;
        }
        let seen = self.machine.look(&self.record.instance);
        match (self.record.state, seen) {
            (GuestState::Suspended, Seen::Suspended) => {}
            (GuestState::Suspended, Seen::Unknown(why)) => self.break_down(&why),
            (GuestState::Suspended, _) => {
                info!("{}: it is not suspended any more and is made anew", self.name);
                // What fails is told by the state.
                let _ = self.make_anew(0);
                return;
            }
            (GuestState::Serving, Seen::Running(None)) => {
                self.end(GuestState::Installed, "its address has lapsed: the lease was not renewed in time");
            }
            // One that is silent for a while keeps its address at most as long as the lease lasts.
            (_, Seen::Running(_) | Seen::Silent | Seen::Unknown(_)) => {}
            (_, Seen::Gone) => self.break_down("it has ended"),
            (_, Seen::Stuck(why)) => self.break_down(&why),
            (_, Seen::Suspended) => self.break_down("it was suspended by somebody else"),
        }
        self.remake_if_free();
    }

    /// Ends an original that nobody wants; whether it is gone.
    fn retire(&mut self) -> bool {
        let ended = self.destroy().and_then(|()| self.machine.remove());
        let gone = ended.and_then(|()| fs::remove_dir_all(&self.folder).map_err(|error| error.to_string()));
        match gone {
            Ok(()) => true,
            Err(why) => {
                warn!("{}: it is not wanted any more and cannot be removed: {why}", self.name);
                false
            }
        }
    }
}

/// The end of a text, in one line.
fn last_words(text: &str) -> String {
    let text = text.trim();
    let skipped = text.chars().count().saturating_sub(NOTE_CHARS_MAX);
    text.chars().skip(skipped).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::sync_channel;
    use std::sync::{Arc, Mutex};

    use super::*;

    const ADDRESS: ServiceAddress =
        ServiceAddress { ip: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), prefix: 24 };

    const OTHER: ServiceAddress =
        ServiceAddress { ip: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3)), prefix: 24 };

    /// A machine that runs and holds an address, does not let go if it is `mute`, and does not end if it is `stuck`; whose driver
    /// has a bug, if it `panics`.
    struct Stubborn {
        mute: bool,
        stuck: bool,
        panics: bool,
        seen: Seen,
    }

    impl Machine for Stubborn {
        fn note(&self) -> String {
            String::new()
        }
        fn prepare(&mut self, register: &mut dyn FnMut(&str) -> Result<(), Failed>) -> Result<(), Failed> {
            self.seen = Seen::Suspended;
            register("anew")
        }
        fn look(&mut self, _: &str) -> Seen {
            self.seen.clone()
        }
        fn resume(&mut self, _: &str) -> Result<(), Failed> {
            assert!(!self.panics, "what never happens");
            Ok(())
        }
        fn install(
            &mut self,
            _: &str,
            _: &ServerName,
            _: &Procedure,
            _: Option<ServiceAddress>,
        ) -> Result<String, Failed> {
            Ok(String::new())
        }
        fn take_address(&mut self, _: &str, _: ServiceAddress, _: u64) -> Result<(), Failed> {
            Ok(())
        }
        fn hold_address(&mut self, _: &str, address: ServiceAddress, _: u64) -> Result<(), Failed> {
            if self.seen == Seen::Running(Some(address)) { Ok(()) } else { Err("it does not hold that".into()) }
        }
        fn release_address(&mut self, _: &str) -> Result<(), Failed> {
            if self.mute {
                return Err("it does not answer".into());
            }
            self.seen = Seen::Running(None);
            Ok(())
        }
        fn destroy(&mut self, _: &str) -> Result<(), Failed> {
            if self.stuck { Err("the hypervisor does not answer".into()) } else { Ok(()) }
        }
        fn remove(&mut self) -> Result<(), Failed> {
            if self.seen == Seen::Suspended { Err("it was made anew".into()) } else { Ok(()) }
        }
    }

    fn serving() -> GuestRecord {
        GuestRecord {
            state: GuestState::Serving,
            highest: 7,
            token: 7,
            target: ServerName::new("S2").ok(),
            instance: "before".into(),
            ..GuestRecord::absent()
        }
    }

    /// Lets a worker begin with what is on disk and carry out orders; the last that it told, and the outcomes.
    fn told(folder: &Path, machine: Stubborn, orders: Vec<GuestOrder>) -> (Guest, Vec<GuestOutcome>) {
        told_if(true, folder, made(MadeWith::Process, machine), None, orders)
    }

    fn made(with: MadeWith, machine: Stubborn) -> Made {
        Made { with, machine: Box::new(machine) }
    }

    /// The same where the settings may not ask for the original any more, or name another driver.
    fn told_if(
        wanted: bool,
        folder: &Path,
        made: Made,
        successor: Option<Made>,
        orders: Vec<GuestOrder>,
    ) -> (Guest, Vec<GuestOutcome>) {
        let bundles = BundleStore::open(folder.join("bundles"), 1 << 20, 1 << 30).unwrap();
        let all = Arc::new(Mutex::new((None, Vec::new())));
        let kept = all.clone();
        let report: Report = Arc::new(move |report| match report {
            GuestReport::Changed(guest) => kept.lock().unwrap().0 = Some(guest),
            GuestReport::Outcome { outcome, .. } => kept.lock().unwrap().1.push(outcome),
        });
        let (jobs, inbox) = sync_channel(8);
        for order in orders {
            jobs.send(Job::Order { order, given_ns: 0 }).unwrap();
        }
        drop(jobs);
        let original = folder.join(crate::edge::guests::FOLDER).join("original-1");
        Worker::new("original-1".into(), original, wanted, made, successor, bundles, report).run(&inbox);
        let (last, outcomes) = std::mem::take(&mut *all.lock().unwrap());
        (last.unwrap(), outcomes)
    }

    fn kept(folder: &Path, record: &GuestRecord) {
        let original = folder.join(crate::edge::guests::FOLDER).join("original-1");
        fs::create_dir_all(&original).unwrap();
        fs::write(original.join("state"), encode_guest(record)).unwrap();
    }

    #[test]
    fn a_stand_in_that_does_not_end_is_not_said_to_have_let_go() {
        use GuestState::{Broken, Serving, Suspended};
        let release = GuestAction::ReleaseAddress { address: ADDRESS };
        let outcomes = [
            (release.clone(), true, Serving),
            (release, false, Broken),
            (GuestAction::Reset, true, Serving),
            (GuestAction::Reset, false, Suspended),
        ];
        for (action, stuck, state) in outcomes {
            let folder = tempfile::tempdir().unwrap();
            kept(folder.path(), &serving());
            let machine = Stubborn { mute: true, stuck, panics: false, seen: Seen::Running(Some(ADDRESS)) };
            let order = GuestOrder { id: 1, original: "original-1".into(), token: 8, action };
            let (guest, _) = told(folder.path(), machine, vec![order]);
            assert_eq!(guest.state, state, "{}", guest.note);
        }
    }

    #[test]
    fn a_host_that_knows_no_decision_obeys_a_chain_that_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        kept(folder.path(), &serving());
        let resume = GuestOrder {
            id: 1,
            original: "original-1".into(),
            token: 5,
            action: GuestAction::Resume { target: ServerName::new("S3").unwrap() },
        };
        crate::edge::guests::forget_decisions(folder.path()).unwrap();
        let machine = Stubborn { mute: true, stuck: false, panics: false, seen: Seen::Running(Some(ADDRESS)) };
        let (guest, _) = told(folder.path(), machine, vec![resume]);
        assert_eq!((guest.state, guest.token), (GuestState::Running, 5), "{}", guest.note);
    }

    #[test]
    fn one_that_is_not_wanted_any_more_stays_at_work_and_is_removed_once_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let original = folder.path().join(crate::edge::guests::FOLDER).join("original-1");
        kept(folder.path(), &serving());
        let seen = Seen::Running(Some(ADDRESS));
        let machine = || {
            let machine = Stubborn { mute: false, stuck: false, panics: false, seen: seen.clone() };
            made(MadeWith::Process, machine)
        };
        let (guest, _) = told_if(false, folder.path(), machine(), None, Vec::new());
        assert_eq!((guest.state, original.exists()), (GuestState::Serving, true));
        let reset = GuestOrder { id: 1, original: "original-1".into(), token: 8, action: GuestAction::Reset };
        let (_, outcomes) = told_if(false, folder.path(), machine(), None, vec![reset]);
        assert!(matches!(&outcomes[..], [GuestOutcome::Done(_)]), "{outcomes:?}");
        assert!(!original.exists(), "it is removed, and was not made anew for that");
    }

    #[test]
    fn what_other_settings_made_is_at_work_until_it_is_free_and_is_removed_before_it_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let original = folder.path().join(crate::edge::guests::FOLDER).join("original-1");
        let former = MadeWith::Libvirt { uri: "qemu:///former".into(), folder: None };
        let begun = |stuck: bool, seen: Seen| {
            let before = made(former.clone(), Stubborn { mute: false, stuck, panics: false, seen });
            let now = Stubborn { mute: false, stuck: true, panics: false, seen: Seen::Gone };
            let (guest, _) = told_if(true, folder.path(), before, Some(made(MadeWith::Process, now)), Vec::new());
            (guest.state, guest.note, MadeWith::read(&original).unwrap().unwrap())
        };

        kept(folder.path(), &serving());
        let (state, _, with) = begun(false, Seen::Running(Some(ADDRESS)));
        assert_eq!((state, &with), (GuestState::Serving, &former));

        kept(folder.path(), &GuestRecord { state: GuestState::Suspended, token: 0, target: None, ..serving() });
        let (state, note, with) = begun(true, Seen::Gone);
        assert_eq!((state, &with), (GuestState::Broken, &former));
        assert!(note.starts_with("made by libvirt at qemu:///former before p2pdb.toml was changed"), "{note}");

        let (state, note, with) = begun(false, Seen::Gone);
        assert_eq!((state, &with), (GuestState::Suspended, &MadeWith::Process), "{note}");
    }

    #[test]
    fn an_order_at_which_the_driver_panics_fails_and_those_after_it_are_carried_out() {
        let folder = tempfile::tempdir().unwrap();
        kept(folder.path(), &GuestRecord { state: GuestState::Suspended, token: 0, target: None, ..serving() });
        let actions = [GuestAction::Resume { target: ServerName::new("S3").unwrap() }, GuestAction::Reset];
        let orders = (8..).zip(actions);
        let orders =
            orders.map(|(token, action)| GuestOrder { id: token, original: "original-1".into(), token, action });
        let machine = Stubborn { mute: true, stuck: false, panics: true, seen: Seen::Suspended };
        let (guest, outcomes) = told(folder.path(), machine, orders.collect());
        assert_eq!(guest.state, GuestState::Suspended, "{}", guest.note);
        assert!(
            matches!(&outcomes[..], [GuestOutcome::Failed(why), GuestOutcome::Done(_)] if why.contains("what never happens")),
            "{outcomes:?}"
        );
    }

    #[test]
    fn a_stand_in_whose_server_got_another_address_lets_go_of_the_old_one_and_stays() {
        let hold = GuestAction::HoldAddress { address: OTHER, lease_ms: 2_000 };
        for (mute, state) in [(false, GuestState::Installed), (true, GuestState::Broken)] {
            let folder = tempfile::tempdir().unwrap();
            kept(folder.path(), &serving());
            let machine = Stubborn { mute, stuck: false, panics: false, seen: Seen::Running(Some(ADDRESS)) };
            let order = GuestOrder { id: 1, original: "original-1".into(), token: 7, action: hold.clone() };
            let (guest, _) = told(folder.path(), machine, vec![order]);
            assert_eq!(guest.state, state, "{}", guest.note);
        }
    }
}
