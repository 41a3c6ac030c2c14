//! This server's own standing: founding, admission, the way back into the group; and members that were removed.
//!
//! The way back: out of the group ─► files ─► own service in order, or the `ready` hook says so ─► the service network carries
//! (the stand-in is seen) ─► wish `Return`. The stand-in lets go once that is decided.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::takeovers::first_out;
use super::{AUTHOR, Failback, Hook, LookId, Management, ManagementOutput, Turn};
use crate::core::chain::{ChainInput, Standing, Wish};
use crate::core::check::Check;
use crate::core::decision::{Act, Decision, Slot};
use crate::core::id::ServerName;
use crate::core::io::Ticket;
use crate::core::lifecycle::Lifecycle;
use crate::core::opinion::{Blindness, Health};
use crate::core::ring::Managers;
use crate::core::schema::file;
use crate::core::service::Service;
use crate::core::watch::{Role, Watched};

/// Between two wishes for the same thing, in microseconds.
const PAUSE_US: u64 = 500_000;
/// How long the own service must be in order before this server returns, in milliseconds.
const HEALTHY_MS: u64 = 1_000;
/// How often the ways that lead back are tried again, in microseconds.
const TRY_US: u64 = 1_000_000;
/// Returns are counted over so long, in milliseconds.
const FLAP_MS: u64 = 600_000;
/// How long after its failure a server waits that has returned once before in that time; doubled with each, in milliseconds.
const RETURN_PAUSE_MS: u64 = 5_000;
/// How long a member must be missing from the file `Server` before it is taken for removed, in microseconds.
const MISSING_US: u64 = 5_000_000;

#[derive(Default)]
pub(super) struct Membership {
    wish: Option<(Ticket, Act)>,
    next_wish_us: u64,
    missing_us: BTreeMap<ServerName, u64>,
    pub back: WayBack,
}

/// What is known of the conditions for the return because of which decision.
#[derive(Default)]
pub(super) struct WayBack {
    slot: Slot,
    /// An operator wants it now.
    asked_by: Option<String>,
    look: Option<LookId>,
    sees_stand_in: Option<Result<bool, String>>,
    hook: Option<u64>,
    ready: Option<Result<(), String>>,
    next_us: u64,
    /// Why this server does not return yet, in words.
    pub waits: Option<String>,
    /// Whether an operator who wants it back ends that wait, and nothing breaks by it.
    pub operator_ends: bool,
}

impl Membership {
    pub fn wish_done(&mut self, ticket: Ticket, now_us: u64) {
        if self.wish.take_if(|(wish, _)| *wish == ticket).is_some() {
            self.next_wish_us = now_us + PAUSE_US;
        }
    }
}

impl Management {
    pub(super) fn keep_standing(&mut self, turn: &mut Turn) {
        if turn.scene.lifecycle < Lifecycle::Ready {
            return;
        }
        let (server, incarnation) = (self.config.me.clone(), self.config.incarnation);
        let is_named = turn.record(file::SERVER, &server).is_some();
        let admission = match self.config.witness {
            true => Act::Witness { name: server.clone(), incarnation },
            false => Act::Admit { server: server.clone(), incarnation },
        };
        let operates = turn.scene.lifecycle == Lifecycle::Operating;
        match self.chain.standing() {
            Standing::NothingKnown => {
                let alone = turn.scene.files.records_of(file::SERVER).count() == 1;
                if is_named && operates && !self.config.witness && (self.config.founder || alone) {
                    self.wish_standing(turn, Act::Found { founder: server, incarnation }, "the group begins".into());
                }
            }
            Standing::Stranger if is_named && operates => {
                let reason = format!("{server} has the files and the flag");
                self.wish_standing(turn, admission, reason);
            }
            Standing::Forgotten if is_named => {
                let reason = format!("{server} has lost its Decision.dat");
                self.wish_standing(turn, admission, reason);
            }
            Standing::Recovered { slot } if is_named => self.come_back(turn, slot),
            _ => {}
        }
        if !matches!(self.chain.standing(), Standing::Recovered { .. }) {
            self.standing.back = WayBack::default();
        }
        self.wish_away_removed(turn);
    }

    fn wish_standing(&mut self, turn: &mut Turn, act: Act, reason: String) {
        if self.standing.wish.is_some() || turn.now_us() < self.standing.next_wish_us {
            return;
        }
        let author = self.standing.back.asked_by.clone().unwrap_or_else(|| AUTHOR.into());
        let ticket = self.number();
        self.standing.wish = Some((ticket, act.clone()));
        self.drive_chain(turn, ChainInput::Wish { ticket, wish: Wish { author, reason, act } });
    }

    /// Members that the file `Server` does not name any more were removed for good.
    fn wish_away_removed(&mut self, turn: &mut Turn) {
        let now_us = turn.now_us();
        let missing: Vec<ServerName> = self
            .chain
            .roster()
            .members()
            .iter()
            .map(|member| member.name.clone())
            .filter(|name| turn.record(file::SERVER, name).is_none())
            .collect();
        self.standing.missing_us.retain(|name, _| missing.contains(name));
        if !self.in_group() || missing.contains(&self.config.me) {
            return;
        }
        let electorate = self.chain.electorate();
        let first = electorate
            .names()
            .find(|name| (**name == self.config.me || turn.scene.linked.contains(*name)) && !missing.contains(name));
        if first != Some(&self.config.me) {
            return;
        }
        for name in missing {
            let since_us = *self.standing.missing_us.entry(name.clone()).or_insert(now_us);
            if now_us >= since_us + MISSING_US {
                let reason = format!("{name} is not in the file Server any more");
                self.wish_standing(turn, Act::Remove { server: name }, reason);
            }
        }
    }

    // ---- the way back ----

    /// While somebody plays this server, its own service is watched where it runs, for its address is elsewhere. A server that
    /// takes no address is asked at it all the same: where nobody answers there, it would fail again at once.
    pub(super) fn own_service_at_home(&self, turn: &Turn) -> Option<Watched> {
        let Standing::Recovered { .. } = self.chain.standing() else { return None };
        let me = self.config.me.clone();
        let (checks, _) = Check::of(turn.scene.files, &me, self.config.preset);
        let service = Service::of(turn.scene.files, &me).filter(|_| !self.config.service_network);
        Some(Watched {
            target: me.clone(),
            host: me,
            here: true,
            role: Role::Own,
            managers: Managers::default(),
            address: service.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |service| service.address.ip),
            checks,
        })
    }

    pub(super) fn failback(&mut self, author: String) {
        let is_out = matches!(self.chain.standing(), Standing::Recovered { .. });
        if is_out && self.standing.back.asked_by.is_none() {
            self.standing.back.asked_by = Some(author);
            self.standing.back.next_us = 0;
        }
    }

    fn come_back(&mut self, turn: &mut Turn, slot: Slot) {
        if self.standing.back.slot != slot {
            let asked_by = self.standing.back.asked_by.take();
            self.standing.back = WayBack { slot, asked_by, ..WayBack::default() };
        }
        let waits = self.way_back(turn, slot);
        if waits.is_none() {
            let (target, incarnation) = (self.config.me.clone(), self.config.incarnation);
            let reason = match &self.standing.back.asked_by {
                Some(_) => format!("{target} is back, and an operator wants it to take its place"),
                None => format!("{target} is back: it has the files and its service is in order"),
            };
            self.wish_standing(turn, Act::Return { target, incarnation }, reason);
        }
        self.standing.back.waits = waits;
    }

    /// What keeps this server from returning.
    fn way_back(&mut self, turn: &mut Turn, slot: Slot) -> Option<String> {
        let me = self.config.me.clone();
        let now_us = turn.now_us();
        let asked = self.standing.back.asked_by.is_some();
        self.standing.back.operator_ends = !asked;
        if !asked {
            if self.config.failback == Failback::Manual {
                return Some("for an operator: failback is manual".into());
            }
            if !self.config.act {
                return Some("for an operator: act is false".into());
            }
            if turn.record(file::MAINTENANCE, &me).is_some() {
                return Some("for the end of its maintenance".into());
            }
            if let Some(author) = self.out_by().filter(|author| author != AUTHOR) {
                return Some(format!("for an operator, as {author} had it recovered"));
            }
        }
        if let Some(left_ms) = self.return_pause_ms(turn).filter(|_| !asked) {
            return Some(format!("because it came back and failed again before, {} s more", left_ms.div_ceil(1000)));
        }
        self.standing.back.operator_ends = false;
        if self.own.may_hold() {
            return Some("for its own address to be released".into());
        }
        if let Some(why) = self.own_service_waits(turn) {
            return Some(why);
        }
        let recovery = self.chain.roster().member(&me).and_then(|member| member.recovery.as_ref());
        let place = recovery.filter(|recovery| recovery.slot == slot).and_then(|recovery| recovery.place.as_ref());
        // Rows may be older than the death of whoever wrote them; only a stand-in that must be there is looked for.
        let is_played = place.is_some_and(|place| {
            let plays = turn.record(file::PROBLEM, &me).is_some_and(|row| row.field(2) == place.host.as_str());
            let hosts = self.chain.roster().member(&place.host).is_some_and(|host| host.recovery.is_none());
            let was_out = self.came(&place.host).is_some_and(|came| came.slot > slot);
            plays && hosts && !was_out && turn.scene.linked.contains(&place.host)
        });
        let service = Service::of(turn.scene.files, &me);
        if let (false, false, Some(place), Some(service)) = (asked, self.config.service_network, place, service) {
            return Some(format!(
                "because it would not take {}, at which {} plays it: set service.interface in p2pdb.toml, and restart the \
                 daemon",
                service.address, place.host
            ));
        }
        if let (true, true, Some(service)) = (is_played, self.config.service_network, service) {
            if now_us >= self.standing.back.next_us && self.standing.back.look.is_none() {
                self.standing.back.next_us = now_us + TRY_US;
                let id = self.number();
                self.standing.back.look = Some(id);
                let patience_ms = self.config.look_ms;
                turn.out(ManagementOutput::Look { id, address: service.address, patience_ms });
            }
            return match &self.standing.back.sees_stand_in {
                Some(Ok(true)) => None,
                Some(Ok(false)) => Some("because it does not see its stand-in on the service network".into()),
                Some(Err(why)) => Some(format!("because it cannot look at the service network: {why}")),
                None => Some("for a look at the service network".into()),
            };
        }
        None
    }

    /// A server that fails again and again after its return comes back later each time.
    fn return_pause_ms(&self, turn: &Turn) -> Option<u64> {
        let recent = self.chain.decisions().iter().filter(|decision| self.age_ms(decision, turn.now) < FLAP_MS);
        let is_return = |decision: &&std::sync::Arc<Decision>| matches!(&decision.act, Act::Return { target, .. } if *target == self.config.me);
        let returns = recent.filter(is_return).count() as u32;
        let pause_ms = RETURN_PAUSE_MS.saturating_mul(1 << returns.min(6)) * u64::from(returns > 0);
        let out_for_ms = self.out_by_decision().map_or(u64::MAX, |decision| self.age_ms(decision, turn.now));
        let left_ms = pause_ms.saturating_sub(out_for_ms);
        (left_ms > 0).then_some(left_ms)
    }

    /// The decision by which this server left the group.
    fn out_by_decision(&self) -> Option<&Decision> {
        let slot = first_out(&self.chain, &self.config.me);
        let decision = slot.checked_sub(1).and_then(|at| self.chain.decisions().get(at as usize));
        decision.map(AsRef::as_ref)
    }

    fn out_by(&self) -> Option<String> {
        self.out_by_decision().map(|decision| decision.author.clone())
    }

    fn own_service_waits(&mut self, turn: &mut Turn) -> Option<String> {
        let me = self.config.me.clone();
        let now_us = turn.now_us();
        if self.config.hooks.contains(&Hook::Ready) {
            if self.standing.back.ready != Some(Ok(()))
                && self.standing.back.hook.is_none()
                && now_us >= self.standing.back.next_us
            {
                self.standing.back.next_us = now_us + TRY_US;
                let id = self.run_hook(turn, Hook::Ready, &me, "before its return".into());
                self.standing.back.hook = Some(id);
            }
            return match &self.standing.back.ready {
                Some(Ok(())) => None,
                Some(Err(why)) => Some(format!("for the ready hook to succeed: {why}")),
                None => Some("for the ready hook".into()),
            };
        }
        let report = self.watch.reports(now_us).into_iter().find(|report| report.target == me && report.host == me)?;
        let untaken = Service::of(turn.scene.files, &me).filter(|_| !self.config.service_network);
        match report.health {
            Health::Healthy if report.health_for_ms >= HEALTHY_MS => None,
            Health::Healthy => Some("for its own service to stay in order".into()),
            // Nothing is concluded from the usual question if it cannot be put. Where somebody said what to ask, its program may be gone
            // with the service.
            Health::Blind(Blindness::Unable) if untaken.is_none() && report.health_for_ms >= HEALTHY_MS => {
                let asked = self.standing.back.asked_by.is_some();
                let is_told_what_to_ask =
                    turn.scene.files.records_of(file::CHECK).any(|row| row.field(0) == me.as_str());
                self.standing.back.operator_ends = is_told_what_to_ask && !asked;
                (is_told_what_to_ask && !asked)
                    .then(|| "for an operator: its own service cannot be asked from here".into())
            }
            health => {
                let asked_at = untaken.map_or(String::new(), |service| {
                    format!(" at {}, which it does not take without a service.interface", service.address)
                });
                Some(format!("for its own service to be in order: it is {health}{asked_at}"))
            }
        }
    }

    pub(super) fn standing_looked(&mut self, id: LookId, outcome: Result<bool, String>) {
        if self.standing.back.look.take_if(|look| *look == id).is_some() {
            self.standing.back.sees_stand_in = Some(outcome);
        }
    }

    pub(super) fn ready_hook_done(&mut self, id: u64, outcome: &Result<String, String>) {
        if self.standing.back.hook.take_if(|hook| *hook == id).is_some() {
            self.standing.back.ready = Some(outcome.clone().map(drop));
        }
    }
}
