//! The manager's side: from a verdict to the wish that a server be recovered; and everything that keeps a recovery going until
//! its stand-in serves, or its target is back.
//!
//! Responsible for a target is its first manager, or the second while the first is not linked, as long as they are in the group.
//! A placed recovery is wished anew when its host has left the group, has failed at it or does not get on, or when the stand-in
//! itself fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::takeovers::first_out;
use super::{AUTHOR, Hook, HookId, HookRun, Management, ManagementMessage, ManagementOutput, Phase, RecoveryRow, Turn};
use crate::core::chain::{ChainInput, Wish, WishOutcome};
use crate::core::decision::{Act, Decision, Place, REASON_BYTES_MAX, Slot};
use crate::core::guest::GuestState;
use crate::core::id::ServerName;
use crate::core::io::Ticket;
use crate::core::lifecycle::Lifecycle;
use crate::core::load::Condition;
use crate::core::opinion::{Failure, Health};
use crate::core::placement::{self, Placement};
use crate::core::record::Record;
use crate::core::roster::{Member, Recovery};
use crate::core::schema::file;
use crate::core::service::procedure_of;
use crate::core::watch::{Role, Verdict};

/// Between two wishes for the same target, in microseconds.
const PAUSE_US: u64 = 500_000;
/// How long a host may take for a step before another one is chosen, in microseconds.
const STUCK_US: u64 = 90_000_000;
/// The same for the installation, which ends by its own deadline: the longest that a procedure may have, and a minute.
const INSTALLING_US: u64 = 660_000_000;
/// How long a server has to take its address once it is in the group, in microseconds.
const SETTLE_US: u64 = 5_000_000;
/// How long the verdict on a stand-in's service must stand before it is given up, in microseconds: another one takes seconds, and
/// one that is only slow would be made anew again and again.
const PATIENCE_US: u64 = 3_000_000;
/// How long a manager that has a lease again leaves hosts the time to get theirs, and the address that they waited for, in
/// microseconds.
const REUNION_US: u64 = 3_000_000;
/// Between two restarts of the own service, in microseconds.
const RESTART_US: u64 = 10_000_000;

/// Placings of one target are counted over so long, in milliseconds; so many of them are made without a pause.
const FLAP_MS: u64 = 600_000;
const PLACINGS_FREE: usize = 3;
/// How long the only place there is rests after it has failed, in milliseconds; doubled with each placing, so many times.
const AGAIN_MS: u64 = 500;
const AGAIN_DOUBLINGS: usize = 13;

/// Most of the reason of a hook's run that goes into the log, in bytes.
const HOOK_REASON_BYTES_MAX: usize = 600;

/// What a recovery is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The target, or the host of its stand-in, is gone.
    Host,
    /// The stand-in could not be made; so may the next one.
    StandIn,
    /// The stand-in serves, and its service fails.
    Ill,
}

#[derive(Default)]
pub(super) struct Verdicts {
    wishes: BTreeMap<ServerName, Ticket>,
    next_wish_us: BTreeMap<ServerName, u64>,
    /// Where a stand-in was warmed up for a suspect.
    warm: BTreeMap<ServerName, Place>,
    /// The rows of recoveries that are under way, and since when they say the same.
    seen: BTreeMap<ServerName, (RecoveryRow, u64)>,
    /// Until when a stand-in is borne with that may only be slow.
    patience_us: BTreeMap<ServerName, u64>,
    /// Since when this server has had a lease without a break.
    current_us: Option<u64>,
    next_restart_us: u64,
    hooks: BTreeMap<HookId, HookRun>,
    /// For which decision each fence was run.
    fences: BTreeMap<HookId, Slot>,
}

impl Verdicts {
    pub fn wish_done(&mut self, ticket: Ticket, outcome: &WishOutcome, now_us: u64) {
        let Some(target) = self.wishes.iter().find(|(_, wish)| **wish == ticket).map(|(target, _)| target.clone())
        else {
            return;
        };
        self.wishes.remove(&target);
        // Whoever was overtaken looks at the loads again and places anew, at once.
        let pause_us = if matches!(outcome, WishOutcome::Overtaken(_)) { 0 } else { PAUSE_US };
        self.next_wish_us.insert(target, now_us + pause_us);
    }

    pub fn wished(&self) -> impl Iterator<Item = (&ServerName, Ticket)> {
        self.wishes.iter().map(|(target, ticket)| (target, *ticket))
    }

    pub fn borne_with(&self) -> impl Iterator<Item = (&ServerName, u64)> {
        self.patience_us.iter().map(|(target, until_us)| (target, *until_us))
    }
}

impl Management {
    pub(super) fn keep_verdicts(&mut self, turn: &mut Turn) {
        let verdicts: Vec<Verdict> = self.watch.standing(turn.now_us()).collect();
        self.verdicts.patience_us.clear();
        for verdict in &verdicts {
            if verdict.role == Role::Own {
                self.restart_own_service(turn, verdict);
            } else {
                self.judge(turn, verdict);
            }
        }
        // Without a lease it may have missed the latest decisions.
        let is_current = self.in_group() && self.lease_left_ms(turn.now_us()) > 0;
        self.verdicts.current_us = is_current.then(|| self.verdicts.current_us.unwrap_or(turn.now_us()));
        if turn.scene.lifecycle != Lifecycle::Operating || !is_current {
            return;
        }
        let members: Vec<Member> =
            self.chain.roster().members().iter().filter(|member| !member.witness).cloned().collect();
        self.verdicts.seen.retain(|target, _| members.iter().any(|member| member.name == *target));
        for member in members {
            match &member.recovery {
                Some(recovery) => self.look_after(turn, &member.name, recovery),
                None => self.close(turn, &member.name, &verdicts),
            }
        }
    }

    /// Acts on a verdict that stands.
    fn judge(&mut self, turn: &mut Turn, verdict: &Verdict) {
        let target = &verdict.target;
        let Some(member) = self.chain.roster().member(target).cloned() else { return };
        if turn.record(file::MAINTENANCE, target).is_some() || self.is_settling(target, verdict.asked_us) {
            return;
        }
        let replaces = match &member.recovery {
            None if verdict.host == *target => None,
            Some(recovery) if recovery.place.as_ref().is_some_and(|place| place.host == verdict.host) => {
                Some(recovery.slot)
            }
            // Of somebody who does not play the target any more.
            _ => return,
        };
        // Where nobody is at the address, nothing is to be waited for.
        let may_be_slow = replaces.is_some() && verdict.failure == Failure::Service;
        let patience_us = verdict.since_us + PATIENCE_US;
        if may_be_slow && turn.now_us() < patience_us {
            self.verdicts.patience_us.insert(target.clone(), patience_us);
            return;
        }
        let words = match may_be_slow {
            true => format!("for {} s, {verdict}", PATIENCE_US / 1_000_000),
            false => verdict.to_string(),
        };
        if replaces.is_none() {
            self.tell_detected(turn, target, &words);
        }
        if !self.config.act {
            return;
        }
        let not = replaces.and(member.recovery.and_then(|recovery| recovery.place));
        let cause = if replaces.is_some() { Cause::Ill } else { Cause::Host };
        self.wish_recovery(turn, target, replaces, not.as_ref(), &words, cause);
    }

    /// Whether a server had just come into the group when it was asked: it may not have had its address yet. What failed then stands
    /// until the next question, which may be seconds away.
    fn is_settling(&self, target: &ServerName, asked_us: u64) -> bool {
        let comes = |decision: &&std::sync::Arc<Decision>| match &decision.act {
            Act::Found { founder: server, .. } | Act::Admit { server, .. } => server == target,
            Act::Return { target: server, .. } => server == target,
            _ => false,
        };
        let came = self.chain.decisions().iter().rev().find(comes);
        let learned_us = came.and_then(|decision| self.learned_us.get(&decision.slot));
        learned_us.is_some_and(|learned_us| asked_us < learned_us + SETTLE_US)
    }

    fn tell_detected(&mut self, turn: &mut Turn, target: &ServerName, words: &str) {
        let name = target.as_str();
        let reason = format!("{name}: {words}");
        if turn.record(file::PROBLEM, target).is_none() {
            self.want_record(turn, file::PROBLEM, name, Some(Record::of(["---", name, "---"])), &reason);
        }
        let row = RecoveryRow::of(turn.scene.files, target);
        if row.is_none_or(|row| row.phase == Phase::Back) {
            let note =
                if self.config.act { words.to_owned() } else { format!("{words}; nothing is done: act = false") };
            let row = RecoveryRow {
                target: target.clone(),
                phase: Phase::Detected,
                host: None,
                manager: Some(self.config.me.clone()),
                slot: 0,
                note,
            };
            self.want_recovery(turn, row);
        }
    }

    /// Sees to it that a recovery goes on.
    fn look_after(&mut self, turn: &mut Turn, target: &ServerName, recovery: &Recovery) {
        let now_us = turn.now_us();
        let host = recovery.place.as_ref().map(|place| place.host.clone());
        if !self.is_responsible(turn, target, host.as_ref().unwrap_or(target)) {
            return;
        }
        let row = RecoveryRow::of(turn.scene.files, target);
        let stuck = match &row {
            Some(row) => {
                let seen = self.verdicts.seen.entry(target.clone()).or_insert_with(|| (row.clone(), now_us));
                if seen.0 != *row {
                    *seen = (row.clone(), now_us);
                }
                let patience_us = if row.phase == Phase::Resumed { INSTALLING_US } else { STUCK_US };
                let may_last = matches!(row.phase, Phase::Waiting | Phase::Serving | Phase::Installed);
                now_us > seen.1 + patience_us && !may_last
            }
            None => false,
        };
        let in_group = |name: &ServerName| {
            let member = self.chain.roster().member(name);
            member.is_some_and(|member| member.recovery.is_none())
        };
        let was_out = |name: &ServerName| self.came(name).is_some_and(|came| came.slot > recovery.slot);
        let is_reunited = self.verdicts.current_us.is_some_and(|since_us| now_us >= since_us + REUNION_US);
        let failed = row.filter(|row| row.phase == Phase::Failed && row.slot == recovery.slot);
        let not = recovery.place.as_ref();
        let (why, not, cause) = match (&host, failed) {
            (None, _) => ("a host is free now".to_owned(), None, Cause::Host),
            (Some(host), _) if !in_group(host) => (format!("{host} is out of the group"), not, Cause::Host),
            (Some(host), _) if was_out(host) => (format!("{host} was out of the group meanwhile"), None, Cause::Host),
            _ if !is_reunited => return,
            (Some(host), Some(row)) => (format!("{host} has failed at it: {}", row.note), not, Cause::StandIn),
            (Some(host), None) if stuck => (format!("{host} does not get on"), not, Cause::StandIn),
            _ => return,
        };
        if !self.config.act || turn.record(file::MAINTENANCE, target).is_some() {
            return;
        }
        self.wish_recovery(turn, target, Some(recovery.slot), not, &why, cause);
    }

    /// Ends the story of a server that is in the group and in order.
    fn close(&mut self, turn: &mut Turn, target: &ServerName, verdicts: &[Verdict]) {
        let has_rows = turn.record(file::PROBLEM, target).is_some() || turn.record(file::RECOVERY, target).is_some();
        if !has_rows || !self.is_responsible(turn, target, target) || verdicts.iter().any(|it| it.target == *target) {
            return;
        }
        let row = RecoveryRow::of(turn.scene.files, target);
        if row
            .as_ref()
            .is_some_and(|row| self.returned(target).is_some_and(|returned| row.slot < returned.slot) && row.slot != 0)
        {
            // The return is still to be written down.
            return;
        }
        let reports = self.watch.reports(turn.now_us());
        let is_healthy = reports
            .iter()
            .any(|report| report.target == *target && report.host == *target && report.health == Health::Healthy);
        if is_healthy {
            let reason = format!("{target} answers itself, as {} sees", self.config.me);
            self.want_record(turn, file::PROBLEM, target.as_str(), None, &reason);
            self.want_record(turn, file::RECOVERY, target.as_str(), None, &reason);
        }
    }

    fn is_responsible(&self, turn: &Turn, target: &ServerName, host: &ServerName) -> bool {
        let managers = self.managing.managers(target, host);
        let is_me = |name: &Option<ServerName>| name.as_ref() == Some(&self.config.me);
        let first_is_there = managers.first.as_ref().is_some_and(|first| turn.scene.linked.contains(first));
        is_me(&managers.first) || is_me(&managers.second) && !first_is_there
    }

    // ---- placing ----

    /// Chooses a place now. `not` is one that has failed.
    pub(super) fn place_for(&self, turn: &Turn, target: &ServerName, not: Option<&Place>) -> Placement {
        let files = turn.scene.files;
        let mut linked = turn.scene.linked.clone();
        linked.insert(self.config.me.clone());
        let mut placed: Vec<(Slot, ServerName, Place)> = self
            .chain
            .roster()
            .members()
            .iter()
            .filter_map(|member| {
                let recovery = member.recovery.as_ref().filter(|_| member.name != *target)?;
                Some((recovery.slot, member.name.clone(), recovery.place.clone()?))
            })
            .collect();
        placed.sort();
        let placed: Vec<(ServerName, Place)> = placed.into_iter().map(|(_, name, place)| (name, place)).collect();
        let mut candidates = placement::candidates(files, &self.ring, &linked, &placed);
        candidates.retain(|candidate| {
            let member = self.chain.roster().member(&candidate.server);
            member.is_some_and(|member| member.recovery.is_none() && !member.witness)
        });
        for candidate in &mut candidates {
            // What was warmed up for this very target is as good as suspended, and better.
            if let Some(warm) = self.verdicts.warm.get(target).filter(|warm| warm.host == candidate.server)
                && !placed.iter().any(|(_, place)| place == warm)
                && self.is_usable(turn, warm)
            {
                candidate.originals.retain(|original| *original != warm.original);
                candidate.originals.insert(0, warm.original.clone());
            }
            if let Some(not) = not.filter(|not| not.host == candidate.server) {
                candidate.originals.retain(|original| *original != not.original);
            }
        }
        placement::place(target, &self.ring, &candidates, |server| Condition::of(files, server))
    }

    /// Whether the file `Original` says that it is in use and in order, and not broken.
    fn is_usable(&self, turn: &Turn, place: &Place) -> bool {
        let is_it = |row: &&Record| row.field(0) == place.host.as_str() && row.field(1) == place.original;
        let row = turn.scene.files.records_of(file::ORIGINAL).find(is_it);
        row.is_some_and(|row| row.field(2) != GuestState::Broken.word() && row.field(2) != GuestState::Serving.word())
    }

    fn wish_recovery(
        &mut self,
        turn: &mut Turn,
        target: &ServerName,
        replaces: Option<Slot>,
        not: Option<&Place>,
        why: &str,
        cause: Cause,
    ) {
        let pause_us = self.verdicts.next_wish_us.get(target).copied().unwrap_or(0);
        if self.verdicts.wishes.contains_key(target) || turn.now_us() < pause_us {
            return;
        }
        if cause != Cause::Host && self.must_pause(turn, target) {
            return;
        }
        let (mut place, mut reason) = self.placed(turn, target, not, why);
        let again = place.is_none() && not.is_some() && !self.must_pause_longer(turn, target);
        if again {
            // There is no other: the same again, perhaps it was a matter of the moment.
            (place, reason) = self.placed(turn, target, None, why);
        }
        // One that serves has to be given up first, so that its original can be made anew. The target may return meanwhile.
        let gives_up = again && cause == Cause::Ill && procedure_of(turn.scene.files, target).is_some();
        if place.is_none() && replaces.is_some() && !gives_up {
            return;
        }
        let ticket = self.number();
        self.verdicts.wishes.insert(target.clone(), ticket);
        self.wish(turn, ticket, AUTHOR, target, place, replaces, reason);
    }

    /// A target whose stand-ins fail one after the other gets the next one later each time.
    fn must_pause(&self, turn: &Turn, target: &ServerName) -> bool {
        let is_placing = |decision: &&std::sync::Arc<Decision>| matches!(&decision.act, Act::Recover { target: it, .. } if it == target);
        let placed = self.chain.decisions().iter().rev().filter(is_placing);
        let ages_ms: Vec<u64> =
            placed.map(|decision| self.age_ms(decision, turn.now)).filter(|age_ms| *age_ms < FLAP_MS).collect();
        let over = ages_ms.len().saturating_sub(PLACINGS_FREE).min(7) as u32;
        let pause_ms = 1_000 * (1 << over) * u64::from(over > 0);
        ages_ms.first().is_some_and(|age_ms| *age_ms < pause_ms)
    }

    /// A place that has failed, and is the only one, is tried again later each time while the target is out.
    fn must_pause_longer(&self, turn: &Turn, target: &ServerName) -> bool {
        let since = first_out(&self.chain, target);
        let is_placing = |it: &&std::sync::Arc<Decision>| {
            it.slot >= since && matches!(&it.act, Act::Recover { target: it, .. } if it == target)
        };
        let placings: Vec<_> = self.chain.decisions().iter().filter(is_placing).collect();
        let pause_ms = AGAIN_MS << placings.len().min(AGAIN_DOUBLINGS);
        placings.last().is_some_and(|last| self.age_ms(last, turn.now) < pause_ms)
    }

    /// A place and the reason, with the figures; none for a server without an installation procedure.
    pub(super) fn placed(
        &self,
        turn: &Turn,
        target: &ServerName,
        not: Option<&Place>,
        why: &str,
    ) -> (Option<Place>, String) {
        let mut reason = why.to_owned();
        let place = if procedure_of(turn.scene.files, target).is_none() {
            let _ = write!(reason, "; no stand-in: {target} has no installation procedure (p2pdb procedure put)");
            None
        } else {
            let placement = self.place_for(turn, target, not);
            let _ = write!(reason, "; {placement}");
            placement.place
        };
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        (place, reason)
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of one decision")]
    pub(super) fn wish(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        author: &str,
        target: &ServerName,
        place: Option<Place>,
        replaces: Option<Slot>,
        reason: String,
    ) {
        let act = Act::Recover { target: target.clone(), place, manager: self.config.me.clone(), replaces };
        let wish = Wish { author: author.into(), reason, act };
        self.drive_chain(turn, ChainInput::Wish { ticket, wish });
    }

    // ---- warm-up ----

    /// The first failure of a target: what its stand-in will need is begun, where it is likely to be placed.
    pub(super) fn suspected(&mut self, turn: &mut Turn, target: &ServerName, host: &ServerName) {
        let in_charge = *target == *host && self.config.act && self.is_responsible(turn, target, host);
        if !in_charge || procedure_of(turn.scene.files, target).is_none() {
            return;
        }
        if turn.record(file::MAINTENANCE, target).is_some() {
            return;
        }
        let Some(place) = self.place_for(turn, target, None).place else { return };
        self.verdicts.warm.insert(target.clone(), place.clone());
        if place.host == self.config.me {
            self.warm_up(turn, target.clone(), place.original);
        } else {
            let message = ManagementMessage::WarmUp { target: target.clone(), original: place.original };
            turn.say(&place.host, message);
        }
    }

    pub(super) fn cleared(&mut self, turn: &mut Turn, target: &ServerName) {
        let Some(place) = self.verdicts.warm.remove(target) else { return };
        if place.host == self.config.me {
            self.stand_ins.cool_down(target, &place.original);
        } else {
            let message = ManagementMessage::CoolDown { target: target.clone(), original: place.original };
            turn.say(&place.host, message);
        }
    }

    /// What was warmed up is put to work, or was for nothing: it counts as ready no more.
    pub(super) fn warm_up_is_over(&mut self, turn: &mut Turn, decision: &Decision) {
        let Act::Recover { target, place, .. } = &decision.act else { return };
        match (self.verdicts.warm.get(target), place) {
            // Its host may not have heard of the decision yet, and must not put it back.
            (Some(warm), Some(place)) if warm == place => drop(self.verdicts.warm.remove(target)),
            _ => self.cleared(turn, target),
        }
    }

    // ---- hooks ----

    fn restart_own_service(&mut self, turn: &mut Turn, verdict: &Verdict) {
        let has_hook = self.config.hooks.contains(&Hook::RestartService) && self.config.act;
        if !has_hook || turn.now_us() < self.verdicts.next_restart_us {
            return;
        }
        if turn.record(file::MAINTENANCE, &verdict.target).is_some() {
            return;
        }
        self.verdicts.next_restart_us = turn.now_us() + RESTART_US;
        let me = self.config.me.clone();
        self.run_hook(turn, Hook::RestartService, &me, verdict.to_string());
    }

    /// Runs what a decision calls for here.
    pub(super) fn run_hooks(&mut self, turn: &mut Turn, decision: &Decision) {
        let me = self.config.me.clone();
        if let Act::Recover { target, manager, replaces: None, .. } = &decision.act
            && *manager == me
        {
            // Whoever fences may switch the server off: it is started again after that, see `hook_done`.
            let first = [Hook::Fence, Hook::RestartServer].into_iter().find(|hook| self.config.hooks.contains(hook));
            if let Some(hook) = first {
                let id = self.run_hook(turn, hook, target, decision.reason.clone());
                if hook == Hook::Fence {
                    self.verdicts.fences.insert(id, decision.slot);
                }
            }
        }
        if decision.by == me && self.config.hooks.contains(&Hook::Notify) {
            let server = decision.act.server();
            self.run_hook(turn, Hook::Notify, server, format!("decision {}: {}", decision.slot, decision.reason));
        }
    }

    pub(super) fn run_hook(&mut self, turn: &mut Turn, hook: Hook, server: &ServerName, reason: String) -> HookId {
        let id = self.number();
        let run = HookRun { id, hook, server: server.clone(), reason };
        self.verdicts.hooks.insert(id, run.clone());
        turn.out(ManagementOutput::Run(run));
        id
    }

    pub(super) fn hook_done(&mut self, turn: &mut Turn, id: HookId, outcome: Result<String, String>) {
        self.ready_hook_done(id, &outcome);
        let Some(run) = self.verdicts.hooks.remove(&id) else { return };
        let fences = self.verdicts.fences.remove(&id);
        let name = format!("hook {} of {}", run.hook.word(), run.server);
        let failure =
            outcome.as_ref().err().map(|why| format!("the hook {} for {}: {why}", run.hook.word(), run.server));
        self.alarm(turn, name, failure);
        self.tell_hook(turn, &run, &outcome);
        // Whoever was back in between, and has failed again, serves perhaps: this fence knows nothing of that.
        let fences = fences.is_some_and(|slot| slot == first_out(&self.chain, &run.server));
        if fences && outcome.is_ok() {
            self.tell_fenced(turn, &run.server, "fenced", self.config.me.clone().as_str());
        }
        // Also when it has failed; but a server that is back needs nobody to start it.
        if fences && self.config.hooks.contains(&Hook::RestartServer) {
            self.run_hook(turn, Hook::RestartServer, &run.server, run.reason);
        }
    }

    /// Writes how a hook has ended. One that is tried again and again is told when its outcome changes.
    fn tell_hook(&mut self, turn: &mut Turn, run: &HookRun, outcome: &Result<String, String>) {
        let (word, output) = match outcome {
            Ok(line) => ("done", line),
            Err(why) => ("failed", why),
        };
        let output: String = output.chars().filter(|character| !character.is_control()).collect();
        let row = Record::of([run.server.as_str(), run.hook.word(), word, &output]);
        let key = format!("{}, {}", run.server, run.hook.word());
        let mut reason = format!("{} of {}: {}", run.hook.word(), run.server, run.reason);
        reason.truncate(reason.floor_char_boundary(HOOK_REASON_BYTES_MAX));
        self.want_record(turn, file::HOOK, &key, Some(row), &reason);
    }

    /// Writes that a server that is out of the group does not serve.
    pub(super) fn tell_fenced(&mut self, turn: &mut Turn, target: &ServerName, how: &str, by: &str) {
        let slot = first_out(&self.chain, target);
        if slot == 0 {
            return;
        }
        let row = Record::of([target.as_str(), &slot.to_string(), how, by]);
        let reason = format!("{target} does not serve: {how} by {by}");
        self.want_record(turn, file::FENCE, target.as_str(), Some(row), &reason);
    }
}
