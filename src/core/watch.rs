//! Watching: which questions one server puts to its targets, and what it makes of the answers.
//!
//! ```text
//! Unknown --all checks answer--> Healthy --a failure--> Suspect --`fall` failures, and it is known what answers--> Failed
//!                                   ^---------all checks up again----'-------------------------------------------'
//! Suspect, Failed <--it reaches others / it does not--> Blind
//! ```
//! At the first failure everything is asked at once: the other checks of the target, an ICMP echo, and the other targets. So when
//! the failure is certain it is also known what still answers: the host (service failure), its daemon (network failure) or
//! nothing (host failure). What the other manager is alarmed of is asked at once as well. A manager that has become one because the one before
//! has failed, too, does not begin from the beginning: where the other is certain that the host is dead, and nothing of it answers here
//! nor is linked, its first failure is enough.
//!
//! A server that may be cut off itself accuses nobody, and prepares for nothing. It is *isolated* when no link is up and nothing that it asks of another
//! server answers, unless there is only one other server; its *service network* is in doubt when a target is silent and
//! linked, and all that it watches on other hosts (there must be some) is silent, too. When it reaches them again, it counts from
//! the beginning.
//!
//! A verdict is made by the first manager when the second agrees, or is not linked, or holds no opinion; by the second when
//! the first is not linked or holds no opinion. A manager that is linked and says nothing for [`SILENT_US`] counts as one
//! without opinion. A server's own verdict of its own service needs nobody.
//! Invariants: at most one question per check is under way; one `Verdict` per failure, one more each time that it gets graver,
//! followed by `Cleared` when the target is healthy again.

mod assignment;
mod pulse;
mod report;
mod target;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::id::ServerName;
use super::opinion::{Blindness, Failure, Health, Opinion};
use super::probe::{Probe, ProbeId, ProbeOutcome};
use pulse::State;
use target::{Target, Watching};

pub use assignment::{Assignment, Role, Watched, managing};
pub use report::{CheckReport, TargetReport, Waiting};

/// A manager that is linked and says nothing of a target for so long holds no opinion, in microseconds.
pub const SILENT_US: u64 = 5_000_000;
/// While no target answers, a link that went down so recently may be the first of all of them, in microseconds.
pub const SETTLE_US: u64 = 500_000;
/// Without any input for so long, this server has not been running, in microseconds.
pub const STALL_US: u64 = 1_000_000;
/// Most opinions of others that are kept.
const OPINIONS_MAX: usize = 1024;

/// What goes in.
#[derive(Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    Outcome {
        id: ProbeId,
        outcome: ProbeOutcome,
    },
    Opinion {
        from: ServerName,
        opinion: Opinion,
    },
    /// What is to be watched from now on.
    Assign(Assignment),
    LinkUp {
        peer: ServerName,
    },
    LinkDown {
        peer: ServerName,
    },
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Put this question: answered by `Outcome`.
    Ask(Probe),
    Tell {
        to: ServerName,
        opinion: Opinion,
    },
    /// The first failure of a target that was in order; told once something else has answered since, or it is certain.
    Suspected {
        target: ServerName,
        host: ServerName,
    },
    Verdict(Verdict),
    /// What was suspected or judged is healthy again, or this server cannot tell any more.
    Cleared {
        target: ServerName,
        host: ServerName,
    },
}

/// It is certain that a target has failed. Made again when the failure turns out to be graver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub target: ServerName,
    /// Who runs the target.
    pub host: ServerName,
    pub failure: Failure,
    /// In which capacity this server judges.
    pub role: Role,
    /// Since when it stands, however it has changed, by the monotonic clock.
    pub since_us: u64,
    /// When the newest question was put of those whose outcomes speak for it, by the monotonic clock.
    pub asked_us: u64,
    /// What each check says.
    pub evidence: Vec<String>,
    /// What the other manager holds, if it could be asked.
    pub other: Option<(ServerName, Health)>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.failure, self.evidence.join("; "))?;
        match &self.other {
            Some((name, health)) => write!(out, "; {name} says: {health}"),
            None if self.role == Role::Own => Ok(()),
            None => out.write_str("; the other manager cannot be asked"),
        }
    }
}

/// The monitor of one server.
#[derive(Debug, Default)]
pub struct Watch {
    targets: BTreeMap<(ServerName, ServerName), Target>,
    /// How many other servers there are to reach, witnesses included.
    others: usize,
    /// Since when each link is up.
    linked: BTreeMap<ServerName, u64>,
    /// When a link went down last.
    link_lost_us: Option<u64>,
    /// By who says it and of whom.
    opinions: BTreeMap<(ServerName, ServerName), Opinion>,
    last_probe: ProbeId,
    handled_us: u64,
}

impl Watch {
    pub fn handle(&mut self, now_us: u64, input: Input) -> Vec<Output> {
        if now_us > self.handled_us + STALL_US {
            // This server was frozen or overloaded: what it missed meanwhile says nothing of the targets.
            self.targets
                .values_mut()
                .flat_map(Target::all_mut)
                .for_each(|watching| watching.pulse.forget_question(now_us));
        }
        self.handled_us = now_us;
        match input {
            Input::Tick => {}
            Input::Outcome { id, outcome } => self.outcome(id, outcome, now_us),
            Input::Opinion { from, opinion } => self.hear(from, opinion, now_us),
            Input::Assign(assignment) => self.assign(assignment, now_us),
            Input::LinkUp { peer } => {
                for target in self.targets.values_mut() {
                    target.told = target.told.take().filter(|(to, _)| *to != peer);
                }
                self.linked.insert(peer, now_us);
            }
            Input::LinkDown { peer } => {
                self.linked.remove(&peer);
                self.link_lost_us = Some(now_us);
                self.opinions.retain(|(from, _), _| *from != peer);
            }
        }
        let mut out = Vec::new();
        self.judge(now_us, &mut out);
        self.ask(now_us, &mut out);
        out
    }

    /// What is known of each target and what is waited for, in order of targets.
    pub fn reports(&self, now_us: u64) -> Vec<TargetReport> {
        self.targets.values().map(|target| report::of(self, target, now_us)).collect()
    }

    /// The verdicts that stand, as they would be made now: for whoever could not act on one when it was put out.
    pub fn standing(&self, now_us: u64) -> impl Iterator<Item = Verdict> {
        self.targets.values().filter(|target| target.judged.is_some()).filter_map(move |it| self.verdict(it, now_us))
    }

    /// When the next question is due, if anything is watched: a caller that wakes up then is never late.
    pub fn next_us(&self) -> Option<u64> {
        let due = |watching: &Watching| watching.pulse.due_us(&watching.check.pace);
        self.targets.values().flat_map(Target::asked).map(due).min()
    }

    fn assign(&mut self, assignment: Assignment, now_us: u64) {
        self.others = assignment.others;
        let mut before = std::mem::take(&mut self.targets);
        for watched in assignment.watched {
            let key = (watched.target.clone(), watched.host.clone());
            let target = match before.remove(&key) {
                Some(held) if held.watched.address == watched.address => held.reassigned(watched, now_us),
                _ => Target::new(watched, now_us),
            };
            self.targets.insert(key, target);
        }
    }

    fn outcome(&mut self, id: ProbeId, outcome: ProbeOutcome, now_us: u64) {
        let asked = |watching: &Watching| watching.pulse.in_flight.is_some_and(|(asked, _)| asked == id);
        let Some(target) = self.targets.values_mut().find(|target| target.all().any(asked)) else { return };
        let Some(watching) = target.all_mut().find(|watching| asked(watching)) else { return };
        watching.pulse.outcome(&watching.check.pace, outcome, now_us);
    }

    fn hear(&mut self, from: ServerName, opinion: Opinion, now_us: u64) {
        let key = (from, opinion.target.clone());
        if !self.linked.contains_key(&key.0) || self.opinions.len() >= OPINIONS_MAX && !self.opinions.contains_key(&key)
        {
            return;
        }
        // What alarms the other manager is looked at at once.
        if matches!(opinion.health, Health::Suspect | Health::Failed(_))
            && let Some(target) = self.targets.get_mut(&(opinion.target.clone(), opinion.host.clone()))
            && matches!(target.health, Health::Healthy | Health::Unknown)
        {
            target.checks.iter_mut().for_each(|watching| watching.pulse.hurry(now_us));
        }
        self.opinions.insert(key, opinion);
    }

    /// Puts the questions that are due.
    fn ask(&mut self, now_us: u64, out: &mut Vec<Output>) {
        for target in self.targets.values_mut() {
            let address = target.watched.address;
            for watching in target.asked_mut() {
                if watching.pulse.due_us(&watching.check.pace) > now_us {
                    continue;
                }
                self.last_probe += 1;
                let (id, kind) = (self.last_probe, watching.check.kind.clone());
                watching.pulse.asked(id, now_us);
                out.push(Output::Ask(Probe { id, address, kind, timeout_ms: watching.check.pace.timeout_ms }));
            }
        }
    }

    /// Brings every target's health up to date and says what follows from it.
    fn judge(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let alarms = |target| matches!(self.opinion_of_other(target), Some((_, Health::Suspect | Health::Failed(_))));
        let alarmed: Vec<bool> = self.targets.values().map(alarms).collect();
        for (target, alarmed) in self.targets.values_mut().zip(alarmed) {
            target.alarmed = alarmed;
        }
        self.mark_suspects(now_us);
        let healths: Vec<Health> = self.targets.values().map(|target| self.health(target, now_us)).collect();
        let in_touch: Vec<bool> = self.targets.values().map(|target| self.is_in_touch(target)).collect();
        for ((target, health), in_touch) in self.targets.values_mut().zip(healths).zip(in_touch) {
            target.turn(health, in_touch, &self.linked, now_us, out);
        }
        let verdicts: Vec<_> = self.targets.values().map(|target| self.verdict(target, now_us)).collect();
        for (target, verdict) in self.targets.values_mut().zip(verdicts) {
            let judged = target.judged.map(|(failure, _)| failure);
            if let Some(verdict) = verdict.filter(|verdict| judged < Some(verdict.failure)) {
                target.judged = Some((verdict.failure, verdict.since_us));
                out.push(Output::Verdict(verdict));
            }
            target.tell(&self.linked, out);
        }
    }

    /// Notes when each failure began; at a new one, everything is asked at once.
    fn mark_suspects(&mut self, now_us: u64) {
        let mut new = BTreeSet::new();
        for (key, target) in &mut self.targets {
            let began = target.checks.iter().filter_map(|watching| watching.pulse.failing_since_us()).min();
            if began.is_some() && target.suspect_us.is_none() {
                new.insert(key.clone());
            }
            target.suspect_us = target.suspect_us.filter(|_| began.is_some()).or(began);
        }
        if new.is_empty() {
            return;
        }
        for (key, target) in &mut self.targets {
            let fresh = new.contains(key);
            let suspect_us = target.suspect_us;
            for watching in target.all_mut() {
                // A question that has just failed keeps its pace, unless it was put before all this.
                let is_old = suspect_us.is_some_and(|suspect_us| watching.unsettled(suspect_us));
                if !fresh || is_old || watching.pulse.failing_since_us().is_none() {
                    watching.pulse.hurry(now_us);
                }
            }
        }
    }

    fn health(&self, target: &Target, now_us: u64) -> Health {
        if target.unable() {
            return Health::Blind(Blindness::Unable);
        }
        let states: Vec<State> = target.checks.iter().map(|watching| watching.pulse.state).collect();
        let Some(suspect_us) = target.suspect_us else {
            let known = states.contains(&State::Up) && target.checks.iter().all(|it| it.pulse.last.is_some());
            return if known { Health::Healthy } else { Health::Unknown };
        };
        if self.open_question(target, suspect_us, now_us).is_some() {
            return Health::Suspect;
        }
        if let Some(blindness) = self.blindness(target, suspect_us) {
            return Health::Blind(blindness);
        }
        if !states.contains(&State::Down) && !self.agrees_at_once(target, suspect_us) {
            return Health::Suspect;
        }
        Health::Failed(self.failure(target, suspect_us))
    }

    fn failure(&self, target: &Target, suspect_us: u64) -> Failure {
        if target.watched.role == Role::Own || target.host_answers(suspect_us) {
            return Failure::Service;
        }
        if self.reaches_daemon(target) { Failure::Network } else { Failure::Host }
    }

    /// Whether one failure is enough: to the other manager the host is dead, and this one has never known anything else of it.
    fn agrees_at_once(&self, target: &Target, suspect_us: u64) -> bool {
        let other = self.opinion_of_other(target).map(|(_, health)| health);
        let is_silent = !target.host_answers(suspect_us) && !self.reaches_daemon(target);
        other == Some(Health::Failed(Failure::Host)) && is_silent && !target.was_healthy
    }

    /// Whether it is not this server that is cut off, as far as can be told within moments: something has answered since the
    /// failure began, or there is nothing else to ask.
    fn is_in_touch(&self, target: &Target) -> bool {
        let Some(suspect_us) = target.suspect_us else { return true };
        let mut elsewhere = self.elsewhere(target).peekable();
        let own = target.watched.role == Role::Own || target.watched.here;
        own || target.host_answers(suspect_us)
            || elsewhere.peek().is_none()
            || elsewhere.any(|other| other.host_answers(suspect_us))
    }

    fn reaches_daemon(&self, target: &Target) -> bool {
        target.watched.here || self.linked.contains_key(&target.watched.host)
    }

    /// What has to be known before a failure is certain.
    fn open_question(&self, target: &Target, suspect_us: u64, now_us: u64) -> Option<Waiting> {
        if target.watched.role == Role::Own || target.host_answers(suspect_us) {
            return None;
        }
        if target.echo.as_ref().is_some_and(|echo| echo.unsettled(suspect_us)) {
            return Some(Waiting::HostAnswer);
        }
        if target.watched.here || self.elsewhere(target).any(|other| other.host_answers(suspect_us)) {
            return None;
        }
        if !self.linked.is_empty() && !self.reaches_daemon(target) {
            // When a server is cut off its links do not all go down in one moment.
            let settled = self.link_lost_us.is_none_or(|lost_us| now_us >= lost_us + SETTLE_US);
            return (!settled).then_some(Waiting::Links);
        }
        let unsettled = |other: &&Target| other.checks.iter().any(|watching| watching.unsettled(suspect_us));
        self.elsewhere(target).find(unsettled).map(|other| Waiting::Others(other.watched.target.clone()))
    }

    /// Whether this server has reason to doubt itself; meaningful when there is no open question.
    fn blindness(&self, target: &Target, suspect_us: u64) -> Option<Blindness> {
        let own = target.watched.role == Role::Own || target.watched.here;
        if own || target.host_answers(suspect_us) || self.elsewhere(target).any(|other| other.host_answers(suspect_us))
        {
            return None;
        }
        if self.linked.is_empty() {
            return (self.others > 1).then_some(Blindness::Isolated);
        }
        let silent_and_linked = self.elsewhere(target).next().is_some() && self.reaches_daemon(target);
        silent_and_linked.then_some(Blindness::ServiceNetwork)
    }

    /// The targets on other hosts than this one and than the target's.
    fn elsewhere<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = &'a Target> {
        let host = &target.watched.host;
        self.targets.values().filter(move |other| other.watched.host != *host && !other.watched.here)
    }

    fn verdict(&self, target: &Target, now_us: u64) -> Option<Verdict> {
        let Health::Failed(failure) = target.health else { return None };
        if self.waiting_for_other(target, now_us).is_some() {
            return None;
        }
        let other = self.opinion_of_other(target);
        // Whoever still gets an answer knows better.
        let failure = match other {
            Some((_, Health::Failed(theirs))) => failure.min(theirs),
            _ => failure,
        };
        Some(Verdict {
            target: target.watched.target.clone(),
            host: target.watched.host.clone(),
            failure,
            role: target.watched.role,
            since_us: target.judged.map_or(now_us, |(_, since_us)| since_us),
            asked_us: target.checks.iter().filter_map(Watching::failed_us).max().unwrap_or(now_us),
            evidence: self.evidence(target),
            other: other.map(|(name, health)| (name.clone(), health)),
        })
    }

    /// Whose word is missing before this server may judge, and what it says so far.
    fn waiting_for_other(&self, target: &Target, now_us: u64) -> Option<Waiting> {
        let other = target.watched.other()?;
        let linked_us = *self.linked.get(other)?;
        let says = self.opinion_of_other(target).map(|(_, health)| health);
        let silent = says.is_none() && now_us >= linked_us.max(target.since_us) + SILENT_US;
        match (target.watched.role, says) {
            (_, Some(Health::Blind(_))) => None,
            (Role::First, Some(Health::Failed(_))) => None,
            _ if silent => None,
            (Role::First, says) => Some(Waiting::Agreement { of: other.clone(), says }),
            (_, says) => Some(Waiting::FirstManager { name: other.clone(), says }),
        }
    }

    fn opinion_of_other<'a>(&'a self, target: &'a Target) -> Option<(&'a ServerName, Health)> {
        let other = target.watched.other()?;
        let opinion = self.opinions.get(&(other.clone(), target.watched.target.clone()))?;
        (opinion.host == target.watched.host).then_some((other, opinion.health))
    }

    fn evidence(&self, target: &Target) -> Vec<String> {
        let mut evidence: Vec<String> = target
            .asked()
            .filter_map(|watching| {
                let last = watching.pulse.last.as_ref()?;
                Some(format!("{} ({}): {}", watching.check.name, watching.check.kind, last.outcome))
            })
            .collect();
        if !target.watched.here {
            let linked = if self.reaches_daemon(target) { "linked" } else { "not linked" };
            evidence.push(format!("{} is {linked}", target.watched.host));
        }
        evidence
    }
}
