//! Management in the loop: what the node wants of the decision log, the probes, the originals, the own address and the hooks,
//! and what comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::membership::FOUNDING_FILE;
use super::{Daemon, DaemonError};
use crate::core::chain::Memory;
use crate::core::clock::Now;
use crate::core::decision::{Act, Decision, Incarnation};
use crate::core::guest::OrderId;
use crate::core::id::ClusterId;
use crate::core::io::{Input, Ticket};
use crate::core::management::{
    AddressAction, AddressOrder, Hook, Management, ManagementConfig, ManagementInput, ManagementOutput,
    ManagementReport, OperatorCommand,
};
use crate::edge::certificate::fill_random;
use crate::edge::clock::{SystemClock, wall_ms};
use crate::edge::config::Config;
use crate::edge::control::Response;
use crate::edge::decision_log::{self, DecisionLog, DecisionLogEvent};
use crate::edge::guests::original_name;
use crate::edge::hooks::Hooks;
use crate::edge::probes::{CONCURRENCY, Probes};
use crate::edge::service_address::{AddressReport, AddressSettings, ServiceAddressKeeper};
use crate::ports::Hypervisor;

const NO_ROOM_ALARM: &str = "decisions";
/// The node is not woken more often than this for management's sake.
const WAKE_MS_MIN: u64 = 2;

/// What the parts tell the loop.
pub(super) enum ManagementEvent {
    Input(ManagementInput),
    /// Whether there is room for votes.
    Room(bool),
    /// Nothing can be decided here any more.
    Fatal(String),
}

/// The parts that carry out what management wants.
pub(super) struct Managed {
    log: DecisionLog,
    probes: Probes,
    address: Option<ServiceAddressKeeper>,
    hooks: Arc<Hooks>,
    events: mpsc::UnboundedSender<ManagementEvent>,
    /// Operators that wait for an answer.
    operators: BTreeMap<Ticket, oneshot::Sender<Response>>,
}

impl Managed {
    /// Opens the decision log and starts the parts.
    ///
    /// # Errors
    /// The log cannot be used, or a part does not start.
    pub fn start(
        config: &Config,
        cluster: ClusterId,
        clock: SystemClock,
        events: mpsc::UnboundedSender<ManagementEvent>,
    ) -> Result<(Self, Management), DaemonError> {
        let told = events.clone();
        let notify = Arc::new(move |event| {
            let event = match event {
                DecisionLogEvent::Persisted => ManagementEvent::Input(ManagementInput::Persisted),
                DecisionLogEvent::NoRoom => ManagementEvent::Room(false),
                DecisionLogEvent::Room => ManagementEvent::Room(true),
                DecisionLogEvent::Fatal(error) => ManagementEvent::Fatal(error.to_string()),
            };
            // A loop that is gone needs no answer.
            let _ = told.send(event);
        });
        let new = Incarnation(random()?);
        let opened = decision_log::open(&config.directory, cluster, new, wall_ms(), notify)?;
        opened.warnings.iter().for_each(|warning| warn!("{warning}"));
        let told = events.clone();
        let report = Arc::new(move |report| {
            let input = match report {
                AddressReport::Outcome { id, outcome } => ManagementInput::Address { id, outcome },
                AddressReport::Probed { id, outcome, .. } => {
                    ManagementInput::Looked { id, outcome: outcome.map(|answers| answers.is_some()) }
                }
            };
            let _ = told.send(ManagementEvent::Input(input));
        });
        let settings = AddressSettings {
            // Also after the program's file has been replaced.
            program: "/proc/self/exe".into(),
            directory: config.directory.clone(),
            interface: config.service.interface(),
        };
        let address = match config.service.interface() {
            Some(_) => Some(
                ServiceAddressKeeper::start(settings, clock, report)
                    .map_err(|source| DaemonError::Io { path: config.directory.clone(), source })?,
            ),
            None => None,
        };
        let hooks = Hooks {
            commands: config.hooks.commands(),
            deadline: Duration::from_millis(config.hooks.deadline_ms),
            name: config.name.clone(),
            directory: config.directory.clone(),
        };
        let management = management(config, opened.incarnation, opened.memory, &hooks)?;
        let (probes, hooks, log) = (Probes::new(CONCURRENCY), Arc::new(hooks), opened.log);
        Ok((Self { log, probes, address, hooks, events, operators: BTreeMap::new() }, management))
    }
}

fn management(
    config: &Config,
    incarnation: Incarnation,
    memory: Memory,
    hooks: &Hooks,
) -> Result<Management, DaemonError> {
    let mut wanted = ManagementConfig::new(config.name.clone(), incarnation, random()?);
    wanted.policy = config.recovery.policy;
    wanted.witness = config.recovery.witness;
    wanted.founder = config.directory.join(FOUNDING_FILE).exists();
    wanted.act = config.recovery.act;
    wanted.failback = config.recovery.failback;
    wanted.preset = config.recovery.preset;
    wanted.service_network = config.service.interface().is_some();
    if wanted.service_network {
        wanted.originals = (1..=config.originals.count).map(original_name).collect();
    }
    wanted.hooks = Hook::ALL.into_iter().filter(|hook| hooks.commands.contains_key(hook)).collect();
    Ok(Management::new(wanted, memory))
}

fn random() -> Result<u64, DaemonError> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl Daemon {
    /// Carries out what management wants because of an input of this `now`.
    pub(super) fn manage(&mut self, now: Now, output: ManagementOutput) {
        match output {
            ManagementOutput::Persist(records) => self.managed.log.persist(records),
            ManagementOutput::Ask(probe) => {
                let probes = self.managed.probes.clone();
                self.spawn_for_management(async move {
                    let outcome = probes.ask(&probe).await;
                    ManagementInput::Outcome { id: probe.id, outcome }
                });
            }
            ManagementOutput::Guest(order) => match &mut self.hosted.originals {
                Some(originals) => originals.order(order, now),
                None => warn!(original = order.original, "an order for an original server, and this host has none"),
            },
            ManagementOutput::Address(order) => self.address(now, order),
            ManagementOutput::Look { id, address, patience_ms } => match &self.managed.address {
                Some(keeper) => keeper.probe(id, address, Duration::from_millis(patience_ms)),
                None => self.tell_management(ManagementInput::Looked { id, outcome: Err(no_network()) }),
            },
            ManagementOutput::Run(run) => {
                info!(hook = run.hook.word(), server = %run.server, "hook: {}", run.reason);
                let hooks = self.managed.hooks.clone();
                self.spawn_for_management(async move {
                    let outcome = hooks.run(&run).await;
                    match &outcome {
                        Ok(line) => info!(hook = run.hook.word(), server = %run.server, "hook done: {line}"),
                        Err(why) => warn!(hook = run.hook.word(), server = %run.server, "hook failed: {why}"),
                    }
                    ManagementInput::HookDone { id: run.id, outcome }
                });
            }
            ManagementOutput::Answer { ticket, result } => {
                if let Some(reply) = self.managed.operators.remove(&ticket) {
                    // Whoever asked may have gone.
                    let _ = reply.send(match result {
                        Ok(what) => Response::Operated { what },
                        Err(why) => Response::failed(why, ""),
                    });
                }
            }
            ManagementOutput::Decided(decision) => self.decided(&decision),
        }
    }

    fn address(&mut self, now: Now, AddressOrder { id, action }: AddressOrder) {
        let Some(keeper) = &self.managed.address else {
            return self.tell_management(ManagementInput::Address { id, outcome: Err(no_network()) });
        };
        match action {
            AddressAction::Report => keeper.held(id),
            AddressAction::Take { address, lease_ms } => keeper.take(id, address, lease_ms, now),
            AddressAction::Hold { address, lease_ms } => keeper.hold(id, address, lease_ms, now),
            AddressAction::Release { address } => keeper.release(id, address),
        }
    }

    fn decided(&mut self, decision: &Decision) {
        info!(decision = decision.slot, by = %decision.by, "decided: {}", decision.act);
        if matches!(decision.act, Act::Found { .. }) {
            self.found_or_update_own_record();
        }
    }

    /// What comes back goes through the loop, never straight into the node: it may be handling an input.
    fn tell_management(&self, input: ManagementInput) {
        let _ = self.managed.events.send(ManagementEvent::Input(input));
    }

    fn spawn_for_management(&self, work: impl Future<Output = ManagementInput> + Send + 'static) {
        let events = self.managed.events.clone();
        tokio::spawn(async move { drop(events.send(ManagementEvent::Input(work.await))) });
    }

    /// Returns why the daemon must end, if it must.
    pub(super) fn management_event(&mut self, event: ManagementEvent) -> Option<String> {
        match event {
            ManagementEvent::Input(input) => self.input(Input::Management(input)),
            ManagementEvent::Room(true) => self.clear_alarm(NO_ROOM_ALARM),
            ManagementEvent::Room(false) => {
                let text = "the disk is full: this server cannot vote until there is room";
                self.raise_alarm(NO_ROOM_ALARM.into(), text.into());
            }
            ManagementEvent::Fatal(why) => return Some(why),
        }
        None
    }

    /// Resolves when management wants to be woken.
    pub(super) fn wake_due(&self) -> impl Future<Output = ()> + use<> {
        let now_us = self.clock.now().monotonic_us;
        let wait_us = self.node.next_wake_us().map(|at_us| at_us.saturating_sub(now_us).max(WAKE_MS_MIN * 1000));
        async move {
            match wait_us {
                Some(wait_us) => tokio::time::sleep(Duration::from_micros(wait_us)).await,
                None => std::future::pending().await,
            }
        }
    }

    // ---- what operators want ----

    pub(super) fn operator(&mut self, command: OperatorCommand, author: String, reply: oneshot::Sender<Response>) {
        self.tickets += 1;
        let ticket = self.tickets;
        self.managed.operators.retain(|_, waiting| !waiting.is_closed());
        self.managed.operators.insert(ticket, reply);
        self.input(Input::Management(ManagementInput::Operator { ticket, author, command }));
    }

    pub(super) fn management_report(&self) -> Option<ManagementReport> {
        self.node.management_report(self.clock.now())
    }
}

/// Ids of orders that are not management's.
pub(super) const FIRST_OWN_ORDER: OrderId = 1 << 63;

fn no_network() -> String {
    "this host has no service network; set service.interface in p2pdb.toml and restart the daemon".into()
}
