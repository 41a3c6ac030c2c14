//! What is known of a target, as data: for `why` and `status`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::pulse::State;
use super::{Role, Target, Watch, Watching};
use crate::core::id::ServerName;
use crate::core::opinion::{Failure, Health};
use crate::core::probe::ProbeOutcome;

/// One target as this server sees it. Times are ages, in ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    pub target: ServerName,
    pub host: ServerName,
    pub role: Role,
    pub health: Health,
    pub health_for_ms: u64,
    /// Since the first question of the present failure was put.
    pub failing_for_ms: Option<u64>,
    /// Whether the daemon of the host is linked.
    pub linked: bool,
    /// The verdict that stands.
    pub verdict: Option<Failure>,
    /// The other manager, and what it holds, if it has said so.
    pub other: Option<ServerName>,
    pub other_says: Option<Health>,
    /// What must happen before a verdict; `None` when there is nothing to judge, or it has been.
    pub waits_for: Option<Waiting>,
    pub checks: Vec<CheckReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    pub name: ServerName,
    /// The question, as in the file `Check`.
    pub question: String,
    /// `None`: not known yet.
    pub up: Option<bool>,
    pub for_ms: u64,
    /// The last outcome in words, and its age.
    pub last: Option<String>,
    pub last_ms: Option<u64>,
    /// How long it must answer before it counts as up again, because it has been going up and down.
    pub hold_ms: u64,
    /// Whether the last question could not be put; the outcome says what to do.
    pub unable: bool,
}

/// What a verdict waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// More failures of a check in a row.
    Failures { check: ServerName, more: u32 },
    /// Whether the host answers an ICMP echo.
    HostAnswer,
    /// Whether this other target answers; if none does, the fault may be this server's.
    Others(ServerName),
    /// Whether only the link to the target's host is down, or all of them.
    Links,
    /// The second manager must see it, too.
    Agreement { of: ServerName, says: Option<Health> },
    /// The first manager judges.
    FirstManager { name: ServerName, says: Option<Health> },
}

impl fmt::Display for Waiting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said =
            |says: &Option<Health>| says.map_or("has not said anything yet".to_owned(), |it| format!("says: {it}"));
        match self {
            Waiting::Failures { check, more } => write!(out, "check {check} must fail {more} more time(s)"),
            Waiting::HostAnswer => out.write_str("whether the host answers an echo"),
            Waiting::Others(name) => write!(out, "whether {name} answers, or this server is cut off itself"),
            Waiting::Links => out.write_str("whether more links go down, or this server is cut off itself"),
            Waiting::Agreement { of, says } => write!(out, "{of} must see it too; it {}", said(says)),
            Waiting::FirstManager { name, says } => write!(out, "{name} judges; it {}", said(says)),
        }
    }
}

pub(super) fn of(watch: &Watch, target: &Target, now_us: u64) -> TargetReport {
    let age_ms = |since_us: u64| now_us.saturating_sub(since_us) / 1000;
    let watched = &target.watched;
    TargetReport {
        target: watched.target.clone(),
        host: watched.host.clone(),
        role: watched.role,
        health: target.health,
        health_for_ms: age_ms(target.since_us),
        failing_for_ms: target.suspect_us.map(age_ms),
        linked: watched.here || watch.linked.contains_key(&watched.host),
        verdict: target.judged.map(|(failure, _)| failure),
        other: watched.other().cloned(),
        other_says: watch.opinion_of_other(target).map(|(_, health)| health),
        waits_for: waits_for(watch, target, now_us),
        checks: target.asked().map(|watching| check_report(watching, now_us)).collect(),
    }
}

fn waits_for(watch: &Watch, target: &Target, now_us: u64) -> Option<Waiting> {
    match target.health {
        Health::Failed(_) => watch.waiting_for_other(target, now_us),
        Health::Suspect => {
            let pulses = || target.checks.iter().filter(|watching| watching.pulse.failing_since_us().is_some());
            if pulses().any(|watching| watching.pulse.state == State::Down) {
                return watch.open_question(target, target.suspect_us?, now_us);
            }
            let nearest = pulses().min_by_key(|watching| watching.pulse.missing(&watching.check.pace))?;
            let more = nearest.pulse.missing(&nearest.check.pace);
            Some(Waiting::Failures { check: nearest.check.name.clone(), more })
        }
        Health::Unknown | Health::Healthy | Health::Blind(_) => None,
    }
}

fn check_report(watching: &Watching, now_us: u64) -> CheckReport {
    let pulse = &watching.pulse;
    let age_ms = |since_us: u64| now_us.saturating_sub(since_us) / 1000;
    CheckReport {
        name: watching.check.name.clone(),
        question: watching.check.kind.to_string(),
        up: match pulse.state {
            State::Unknown => None,
            State::Up => Some(true),
            State::Down => Some(false),
        },
        for_ms: age_ms(pulse.since_us),
        last: pulse.last.as_ref().map(|last| last.outcome.to_string()),
        last_ms: pulse.last.as_ref().map(|last| age_ms(last.at_us)),
        hold_ms: if pulse.state == State::Down { pulse.hold_us() / 1000 } else { 0 },
        unable: matches!(pulse.last.as_ref().map(|last| &last.outcome), Some(ProbeOutcome::Unable(_))),
    }
}
