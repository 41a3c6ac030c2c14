//! The original servers of this host in the loop: the rows of the file `Original`, and what an operator wants of them.
//!
//! A host keeps originals when `originals.count` is not 0 and `service.interface` is set: without a service network no
//! stand-in could serve. What an earlier daemon has left is looked after in any case. Invariants: a row says what its
//! worker last told; orders of operators carry token 0, so they never touch what a decision has put to work.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
#[cfg(feature = "libvirt")]
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::management::FIRST_OWN_ORDER;
use super::{Daemon, DaemonError};
use crate::core::diff::Change;
use crate::core::guest::{Guest, GuestAction, GuestOrder, GuestOutcome, GuestReport, GuestState, OrderId};
use crate::core::id::{FileName, ServerName};
use crate::core::io::{Edit, Input};
use crate::core::lifecycle::Lifecycle;
use crate::core::management::ManagementInput;
use crate::core::placement::LIMITED;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::core::service::procedure_of;
use crate::edge::bundles::BundleStore;
use crate::edge::clock::SystemClock;
#[cfg(feature = "libvirt")]
use crate::edge::config::{AccelerationSetting, KeepSetting};
use crate::edge::config::{Config, Driver};
use crate::edge::control::{OriginalCheck, OriginalView, ProcedureTest, Response};
#[cfg(feature = "libvirt")]
use crate::edge::guests::{Acceleration, Keep, LibvirtDriver};
use crate::edge::guests::{Drivers, FOLDER, Originals, ProcessDriver, Report, original_name};
use crate::ports::Hypervisor;

/// The program itself, also after its file has been replaced.
const MYSELF: &str = "/proc/self/exe";
/// Most of a note that goes into a row, in characters.
const NOTE_CHARS_MAX: usize = 200;

type Then = Box<dyn FnOnce(&mut Daemon, GuestOutcome) + Send>;

/// What the loop knows of the originals of this host.
pub(super) struct Hosted {
    /// `None`: there are none, and there were none.
    pub(super) originals: Option<Originals>,
    count: usize,
    /// Whether they can take service addresses; else they are told to be limited.
    take_addresses: bool,
    guests: BTreeMap<String, Guest>,
    orders: BTreeMap<OrderId, Then>,
    last_order: OrderId,
    /// Those that an operator's test or check has in hand.
    busy: BTreeSet<String>,
    /// Whoever wanted them prepared, and those of which nothing has been told since.
    preparing: Vec<(BTreeSet<String>, oneshot::Sender<Response>)>,
    /// Rows are on their way into the file.
    writing: bool,
}

impl Hosted {
    /// Starts the workers, where there is something for them to do.
    ///
    /// # Errors
    /// A driver that is not there, or a folder that cannot be used.
    pub fn start(
        config: &Config,
        bundles: &BundleStore,
        clock: SystemClock,
        reports: mpsc::UnboundedSender<GuestReport>,
    ) -> Result<Self, DaemonError> {
        if config.originals.driver == Driver::Libvirt && !cfg!(feature = "libvirt") {
            return Err(DaemonError::Driver);
        }
        let count = if config.service.interface().is_some() { config.originals.count } else { 0 };
        let mut hosted = Self {
            originals: None,
            count,
            take_addresses: config.originals.driver != Driver::Process || ProcessDriver::isolates(),
            guests: BTreeMap::new(),
            orders: BTreeMap::new(),
            last_order: FIRST_OWN_ORDER,
            busy: BTreeSet::new(),
            preparing: Vec::new(),
            writing: false,
        };
        if count == 0 && !config.directory.join(FOLDER).exists() {
            return Ok(hosted);
        }
        // A loop that is gone needs no report.
        let report: Report = Arc::new(move |report| drop(reports.send(report)));
        let drivers = Drivers {
            used: config.originals.driver,
            process: ProcessDriver {
                program: PathBuf::from(MYSELF),
                directory: config.directory.clone(),
                interface: config.service.interface(),
                gateway: config.service.gateway(),
            },
            #[cfg(feature = "libvirt")]
            libvirt: libvirt_driver(config),
        };
        hosted.originals = Some(Originals::start(&config.directory, count, &drivers, bundles, clock, report)?);
        Ok(hosted)
    }

    /// Stand-ins that a decision has put to work here.
    pub fn stand_ins(&self) -> u32 {
        self.guests.values().filter(|guest| guest.token != 0).count() as u32
    }

    /// The state of an original as it is told.
    fn state(&self, guest: &Guest) -> &'static str {
        match guest.state {
            GuestState::Suspended if !self.take_addresses => LIMITED,
            state => state.word(),
        }
    }

    fn is_kept(&self, guest: &Guest) -> bool {
        guest.token != 0 || (1..=self.count).any(|number| original_name(number) == guest.original)
    }
}

impl Daemon {
    pub(super) fn guest_report(&mut self, report: GuestReport) {
        let is_own = matches!(&report, GuestReport::Outcome { id, .. } if *id >= FIRST_OWN_ORDER);
        if !is_own {
            self.input(Input::Management(ManagementInput::Guest(report.clone())));
        }
        match report {
            GuestReport::Changed(guest) => {
                for (untold, _) in &mut self.hosted.preparing {
                    untold.remove(&guest.original);
                }
                self.hosted.guests.insert(guest.original.clone(), guest);
                self.keep_original_rows();
                let ready = self.hosted.preparing.extract_if(.., |(untold, _)| untold.is_empty()).collect::<Vec<_>>();
                for (_, reply) in ready {
                    let _ = reply.send(Response::Originals(self.originals_here().collect()));
                }
            }
            GuestReport::Outcome { id, outcome } => {
                if let Some(then) = self.hosted.orders.remove(&id) {
                    then(self, outcome);
                }
            }
        }
    }

    fn order(
        &mut self,
        original: &str,
        action: GuestAction,
        then: impl FnOnce(&mut Daemon, GuestOutcome) + Send + 'static,
    ) {
        let now = self.clock.now();
        let hosted = &mut self.hosted;
        let Some(originals) = &mut hosted.originals else {
            return then(self, GuestOutcome::Failed("this host keeps no original servers".into()));
        };
        hosted.last_order += 1;
        hosted.orders.insert(hosted.last_order, Box::new(then));
        originals.order(GuestOrder { id: hosted.last_order, original: original.into(), token: 0, action }, now);
    }

    // ---- the file Original ----

    /// Brings the rows of this host up to date, one transaction at a time.
    pub(super) fn keep_original_rows(&mut self) {
        if self.hosted.writing || self.node.lifecycle() < Lifecycle::Ready {
            return;
        }
        let edits = self.original_edits();
        if edits.is_empty() {
            return;
        }
        self.hosted.writing = true;
        self.submit_management("the original servers of this host", edits, |daemon, outcome| {
            daemon.hosted.writing = false;
            match outcome {
                Ok(_) => daemon.keep_original_rows(),
                // It is tried again with the next look at what is due.
                Err(refusal) => warn!("the file Original could not be brought up to date: {refusal}"),
            }
        });
    }

    fn original_edits(&self) -> Vec<Edit> {
        let host = self.config.name.as_str();
        let kept = self.hosted.guests.values().filter(|guest| self.hosted.is_kept(guest));
        let mut wanted: BTreeMap<&str, Record> =
            kept.map(|guest| (guest.original.as_str(), row(host, guest, self.hosted.state(guest)))).collect();
        let mut changes = Vec::new();
        for before in self.node.files().records_of(file::ORIGINAL).filter(|record| record.field(0) == host) {
            match wanted.remove(before.field(1)) {
                Some(after) if after == *before => {}
                Some(after) => changes.push(Change::Mod { before: before.clone(), after }),
                None => changes.push(Change::Del(before.clone())),
            }
        }
        changes.extend(wanted.into_values().map(Change::Add));
        let file = FileName::new(file::ORIGINAL).expect("built-in file names are well formed");
        changes.into_iter().map(|change| Edit { file: file.clone(), change, bases: None }).collect()
    }

    // ---- what an operator wants ----

    fn originals_here(&self) -> impl Iterator<Item = OriginalView> {
        self.hosted.guests.values().filter(|guest| self.hosted.is_kept(guest)).map(|guest| OriginalView {
            host: self.config.name.as_str().to_owned(),
            original: guest.original.clone(),
            state: self.hosted.state(guest).to_owned(),
            target: guest.target.clone(),
            note: guest.note.clone(),
        })
    }

    pub(super) fn originals_view(&self) -> Response {
        let own = self.config.name.as_str();
        let elsewhere = self.node.files().records_of(file::ORIGINAL).filter(|record| record.field(0) != own);
        let elsewhere = elsewhere.map(|record| OriginalView {
            host: record.field(0).to_owned(),
            original: record.field(1).to_owned(),
            state: record.field(2).to_owned(),
            target: None,
            note: record.field(3).to_owned(),
        });
        Response::Originals(self.originals_here().chain(elsewhere).collect())
    }

    pub(super) fn prepare_originals(&mut self, reply: oneshot::Sender<Response>) {
        let Some(originals) = self.hosted.originals.as_mut().filter(|_| self.hosted.count > 0) else {
            let _ = reply.send(no_originals());
            return;
        };
        let untold = (1..=self.hosted.count).map(original_name).collect();
        self.hosted.preparing.retain(|(_, waiting)| !waiting.is_closed());
        self.hosted.preparing.push((untold, reply));
        originals.prepare();
    }

    /// Resumes every original that is free, sees that it answers, and puts it back.
    pub(super) fn check_originals(&mut self, reply: oneshot::Sender<Response>) {
        if self.hosted.count == 0 {
            let _ = reply.send(no_originals());
            return;
        }
        let names = self.originals_here().map(|view| view.original).collect();
        self.check_next(names, Vec::new(), reply);
    }

    fn check_next(&mut self, mut left: Vec<String>, mut done: Vec<OriginalCheck>, reply: oneshot::Sender<Response>) {
        let Some(original) = left.pop() else {
            done.reverse();
            let _ = reply.send(Response::OriginalsChecked(done));
            return;
        };
        if let Err(why) = self.take_in_hand(&original) {
            done.push(OriginalCheck { original, failure: Some(why) });
            return self.check_next(left, done, reply);
        }
        self.order(&original.clone(), GuestAction::Check, move |daemon, outcome| {
            daemon.hosted.busy.remove(&original);
            done.push(OriginalCheck { original, failure: failure(outcome) });
            daemon.check_next(left, done, reply);
        });
    }

    /// Lets a free original play a server, without the address, and puts it back.
    pub(super) fn test_procedure(&mut self, server: ServerName, reply: oneshot::Sender<Response>) {
        let Some(procedure) = procedure_of(self.node.files(), &server) else {
            let what = format!("there is no installation procedure for {server}");
            let _ = reply.send(Response::failed(what, "share one with p2pdb procedure put FOLDER"));
            return;
        };
        if self.hosted.count == 0 {
            let _ = reply.send(no_originals());
            return;
        }
        let names: Vec<String> = self.originals_here().map(|view| view.original).collect();
        let Some(original) = names.into_iter().find(|name| self.take_in_hand(name).is_ok()) else {
            let hint = "see p2pdb original list; make broken ones anew with p2pdb original prepare";
            let _ = reply.send(Response::failed("no original server of this host is suspended", hint));
            return;
        };
        let mut tested = ProcedureTest {
            server: server.clone(),
            original: original.clone(),
            resumed_ms: None,
            installed_ms: None,
            output: String::new(),
            failure: None,
        };
        let begun_us = self.clock.now().monotonic_us;
        let resume = GuestAction::Resume { target: server.clone() };
        self.order(&original.clone(), resume, move |daemon, outcome| match outcome {
            GuestOutcome::Done(_) => {
                let resumed_us = daemon.clock.now().monotonic_us;
                tested.resumed_ms = Some((resumed_us - begun_us) / 1000);
                let install = GuestAction::Install { target: server, procedure, address: None };
                daemon.order(&original, install, move |daemon, outcome| {
                    match outcome {
                        GuestOutcome::Done(guest) => {
                            let installed_us = daemon.clock.now().monotonic_us;
                            tested.installed_ms = Some((installed_us - resumed_us) / 1000);
                            tested.output = guest.note;
                        }
                        failed => tested.failure = failure(failed),
                    }
                    daemon.end_test(tested, reply);
                });
            }
            failed => {
                tested.failure = failure(failed);
                daemon.end_test(tested, reply);
            }
        });
    }

    fn end_test(&mut self, mut tested: ProcedureTest, reply: oneshot::Sender<Response>) {
        self.order(&tested.original.clone(), GuestAction::Reset, move |daemon, reset| {
            daemon.hosted.busy.remove(&tested.original);
            let not_put_back = || failure(reset).map(|why| format!("it was not put back: {why}"));
            tested.failure = tested.failure.or_else(not_put_back);
            let _ = reply.send(Response::ProcedureTested(tested));
        });
    }

    fn take_in_hand(&mut self, original: &str) -> Result<(), String> {
        let Some(guest) = self.hosted.guests.get(original) else { return Err("nothing is known of it yet".into()) };
        if guest.state != GuestState::Suspended {
            return Err(match guest.note.as_str() {
                "" => format!("it is {}", guest.state.word()),
                note => format!("it is {}: {note}", guest.state.word()),
            });
        }
        match self.hosted.busy.insert(original.to_owned()) {
            true => Ok(()),
            false => Err("another check or test has it in hand".into()),
        }
    }
}

#[cfg(feature = "libvirt")]
fn libvirt_driver(config: &Config) -> LibvirtDriver {
    let settings = &config.libvirt;
    LibvirtDriver {
        program: PathBuf::from(MYSELF),
        uri: settings.uri.clone(),
        image: PathBuf::from(&settings.image),
        domain: Some(settings.domain.clone()).filter(|name| !name.is_empty()),
        folder: Some(PathBuf::from(&settings.folder)).filter(|folder| !folder.as_os_str().is_empty()),
        memory_mib: settings.memory_mib,
        processors: settings.processors,
        acceleration: match settings.acceleration {
            AccelerationSetting::Auto => None,
            AccelerationSetting::Kvm => Some(Acceleration::Kvm),
            AccelerationSetting::Qemu => Some(Acceleration::Qemu),
        },
        keep: match settings.keep {
            KeepSetting::Paused => Keep::Paused,
            KeepSetting::Saved => Keep::Saved,
        },
        rehearsal: settings.rehearsal.clone(),
        boot: Duration::from_secs(settings.boot_s),
        bridge: config.service.interface(),
        gateway: config.service.gateway(),
    }
}

fn row(host: &str, guest: &Guest, state: &str) -> Record {
    let note: String = guest.note.chars().filter(|character| !character.is_control()).take(NOTE_CHARS_MAX).collect();
    Record::of([host, &guest.original, state, &note])
}

fn failure(outcome: GuestOutcome) -> Option<String> {
    match outcome {
        GuestOutcome::Done(_) => None,
        GuestOutcome::Failed(why) => Some(why),
        GuestOutcome::Stale { highest } => Some(format!("decision {highest} has put it to work meanwhile")),
    }
}

fn no_originals() -> Response {
    Response::failed(
        "this host keeps no original servers",
        "set service.interface, and originals.count above 0, in p2pdb.toml and start the daemon again",
    )
}
