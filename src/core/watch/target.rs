//! One target: its checks, what has been made of their answers, and what has been said of it.

use std::collections::BTreeMap;

use super::pulse::Pulse;
use super::{Output, Role, Watched};
use crate::core::check::{Check, Preset};
use crate::core::id::ServerName;
use crate::core::opinion::{Blindness, Failure, Health, Opinion};
use crate::core::probe::{ProbeKind, ProbeOutcome};

/// One check and its answers. The echo that is only asked for as evidence is one, too.
#[derive(Debug, Clone)]
pub(super) struct Watching {
    pub(super) check: Check,
    pub(super) pulse: Pulse,
}

#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) watched: Watched,
    pub(super) checks: Vec<Watching>,
    /// Asked while the target is not healthy, when no check of it is an echo.
    pub(super) echo: Option<Watching>,
    pub(super) health: Health,
    pub(super) since_us: u64,
    /// When the first question of the present failure was put.
    pub(super) suspect_us: Option<u64>,
    /// The other manager says that something is wrong.
    pub(super) alarmed: bool,
    /// Something is wrong with it, and `Cleared` will say when that is over.
    pub(super) suspected: bool,
    /// `Suspected` was put out.
    pub(super) told_of: bool,
    /// It has been in order once.
    pub(super) was_healthy: bool,
    /// The gravest verdict that was made, and when the first one was.
    pub(super) judged: Option<(Failure, u64)>,
    pub(super) told: Option<(ServerName, Health)>,
}

impl Watching {
    pub(super) fn new(check: Check, now_us: u64) -> Self {
        Self { check, pulse: Pulse::new(now_us) }
    }

    /// Whether a question that was put since then has been answered by anybody.
    pub(super) fn host_answers(&self, since_us: u64) -> bool {
        self.pulse.last.as_ref().is_some_and(|last| last.asked_us >= since_us && last.outcome.host_answers())
    }

    /// When the last question was put, if it failed or others in a row did before it.
    pub(super) fn failed_us(&self) -> Option<u64> {
        self.pulse.failing_since_us()?;
        Some(self.pulse.last.as_ref()?.asked_us)
    }

    /// Whether no question that was put since then has an outcome.
    pub(super) fn unsettled(&self, since_us: u64) -> bool {
        self.pulse.last.as_ref().is_none_or(|last| last.asked_us < since_us)
    }
}

impl Target {
    pub(super) fn new(watched: Watched, now_us: u64) -> Self {
        let checks: Vec<Watching> = watched.checks.iter().map(|check| Watching::new(check.clone(), now_us)).collect();
        Self {
            echo: echo_for(&watched).map(|check| Watching::new(check, now_us)),
            watched,
            checks,
            health: Health::Unknown,
            since_us: now_us,
            suspect_us: None,
            alarmed: false,
            suspected: false,
            told_of: false,
            was_healthy: false,
            judged: None,
            told: None,
        }
    }

    /// The same target with other checks or another manager: what is known of a check that stays is kept.
    pub(super) fn reassigned(mut self, watched: Watched, now_us: u64) -> Self {
        if self.watched.role != watched.role || self.watched.other() != watched.other() {
            self.told = None;
        }
        let held = std::mem::take(&mut self.checks);
        let keep = |check: &Check| {
            let same = held.iter().find(|had| had.check.name == check.name && had.check.kind == check.kind);
            let pulse = same.map_or_else(|| Pulse::new(now_us), |had| had.pulse.clone());
            Watching { check: check.clone(), pulse }
        };
        self.checks = watched.checks.iter().map(keep).collect();
        self.echo = echo_for(&watched).map(|check| match self.echo.take() {
            Some(had) => Watching { check, pulse: had.pulse },
            None => Watching::new(check, now_us),
        });
        Self { watched, ..self }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Watching> {
        self.checks.iter().chain(&self.echo)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Watching> {
        self.checks.iter_mut().chain(&mut self.echo)
    }

    /// What is asked at present: the echo only while something is wrong.
    pub(super) fn asked(&self) -> impl Iterator<Item = &Watching> {
        let echo = self.echo.as_ref().filter(|_| self.suspect_us.is_some() || self.alarmed);
        self.checks.iter().chain(echo)
    }

    pub(super) fn asked_mut(&mut self) -> impl Iterator<Item = &mut Watching> {
        let echo = self.echo.as_mut().filter(|_| self.suspect_us.is_some() || self.alarmed);
        self.checks.iter_mut().chain(echo)
    }

    pub(super) fn host_answers(&self, since_us: u64) -> bool {
        self.all().any(|watching| watching.host_answers(since_us))
    }

    /// Whether not one of the questions can be put.
    pub(super) fn unable(&self) -> bool {
        let unable =
            |it: &Watching| matches!(it.pulse.last.as_ref().map(|last| &last.outcome), Some(ProbeOutcome::Unable(_)));
        !self.checks.is_empty() && self.checks.iter().all(unable)
    }

    pub(super) fn turn(
        &mut self,
        health: Health,
        in_touch: bool,
        linked: &BTreeMap<ServerName, u64>,
        now_us: u64,
        out: &mut Vec<Output>,
    ) {
        let before = self.health;
        let sees_again = match before {
            Health::Blind(Blindness::Isolated) => true,
            Health::Blind(Blindness::ServiceNetwork) => linked.contains_key(&self.watched.host),
            _ => false,
        };
        if sees_again && matches!(health, Health::Suspect | Health::Failed(_)) {
            // What failed while this server was cut off says nothing of the target.
            *self = Self { told: self.told.take(), ..Self::new(self.watched.clone(), now_us) };
            return;
        }
        if before != health {
            self.health = health;
            self.since_us = now_us;
        }
        self.was_healthy |= health == Health::Healthy;
        let (target, host) = (self.watched.target.clone(), self.watched.host.clone());
        match health {
            Health::Suspect | Health::Failed(_) => {
                self.suspected = true;
                let is_sure = in_touch || matches!(health, Health::Failed(_));
                if self.was_healthy && is_sure && !self.told_of {
                    self.told_of = true;
                    out.push(Output::Suspected { target, host });
                }
            }
            Health::Healthy | Health::Blind(_) if self.suspected => {
                (self.suspected, self.told_of) = (false, false);
                self.judged = None;
                out.push(Output::Cleared { target, host });
            }
            _ => {}
        }
    }

    /// Says to the other manager what it does not know yet.
    pub(super) fn tell(&mut self, linked: &BTreeMap<ServerName, u64>, out: &mut Vec<Output>) {
        let Some(to) = self.watched.other().filter(|other| linked.contains_key(*other)) else { return };
        let news = Some((to.clone(), self.health));
        if self.told == news {
            return;
        }
        let (target, host) = (self.watched.target.clone(), self.watched.host.clone());
        out.push(Output::Tell { to: to.clone(), opinion: Opinion { target, host, health: self.health } });
        self.told = news;
    }
}

/// The echo that tells a dead host from a dead service, when no check is one: as quick as the quickest check, or as its preset
/// has it, which may give an echo less time.
fn echo_for(watched: &Watched) -> Option<Check> {
    let has_echo = watched.checks.iter().any(|check| check.kind == ProbeKind::Icmp);
    let quickest = watched.checks.iter().min_by_key(|check| check.pace.timeout_ms);
    let beside = |check: &Check| Preset::of(check).map_or(check.pace, |preset| preset.pace(&ProbeKind::Icmp));
    let pace = quickest.map_or_else(|| Preset::Fast.pace(&ProbeKind::Icmp), beside);
    (!has_echo && watched.role != Role::Own).then(|| Check::echo(&watched.target, pace))
}
