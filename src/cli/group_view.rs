//! How the group looks after itself, in lines: for `status` and for the live view.

use std::collections::BTreeMap;

use super::error::Failure;
use super::output::{Output, Style, printable};
use crate::core::id::ServerName;
use crate::core::management::ManagementReport;
use crate::edge::control::{LinkState, MemberStatus, Status};

/// What is to be said of the group, the worst first.
pub fn lines(report: &ManagementReport) -> Vec<(Style, String)> {
    let mut lines = Vec::new();
    for it in &report.recovered {
        let place = it
            .place
            .as_ref()
            .map_or("nobody plays it".to_owned(), |place| format!("played by {} on {}", place.original, place.host));
        let text = format!(
            "{} is out of the group, {place}: {} (decision {}); see p2pdb why {}",
            it.target, it.phase, it.slot, it.target
        );
        lines.push((if it.phase == "serving" { Style::Warning } else { Style::Bad }, text));
    }
    for target in report.targets.iter().filter(|target| target.failing_for_ms.is_some()) {
        let waits = target.waits_for.as_ref().map_or(String::new(), |waits| format!("; waits: {waits}"));
        lines.push((
            Style::Bad,
            format!("{} on {} looks {} from here{waits}", target.target, target.host, target.health),
        ));
    }
    for work in &report.work {
        let waits = work.waits_for.as_ref().map_or(String::new(), |waits| format!(", waits {waits}"));
        let unblock = work.unblock.as_ref().map_or(String::new(), |command| format!(" ({command} ends it)"));
        lines.push((Style::Warning, format!("{} {}{waits}{unblock}", work.server, work.work)));
    }
    lines
}

/// One line on who decides and what the group could bear.
pub fn summary(report: &ManagementReport) -> String {
    if report.decisions == 0 {
        return "decisions: none; this group only shares files, until p2pdb found".into();
    }
    let gone: Vec<&str> =
        report.electors.iter().filter(|elector| !elector.linked).map(|elector| elector.name.as_str()).collect();
    let gone = if gone.is_empty() { String::new() } else { format!(", out of reach: {}", gone.join(" ")) };
    let dry = if report.acts { "" } else { "; act = false, nothing is done from here" };
    format!(
        "decisions: {} by {} electors{gone} ({}, a quorum needs {}); can lose {} more{dry}",
        report.decisions,
        report.electors.len(),
        report.policy,
        report.quorum_needs,
        report.capacity.can_lose
    )
}

/// What each member is to the group: in it, played by another, or not admitted.
pub fn roles(status: &Status) -> BTreeMap<ServerName, String> {
    let Some(report) = &status.management else { return BTreeMap::new() };
    let role = |member: &MemberStatus| {
        let played = report.recovered.iter().find(|it| it.target == member.name);
        let elector = report.electors.iter().find(|elector| elector.name == member.name);
        match (played, elector) {
            (Some(it), _) => match &it.place {
                Some(place) => format!("played on {}", place.host),
                None => "played by nobody".into(),
            },
            (None, Some(elector)) if elector.witness => "witness".into(),
            (None, Some(_)) => "in the group".into(),
            (None, None) => "-".into(),
        }
    };
    status.members.iter().map(|member| (member.name.clone(), role(member))).collect()
}

/// Whether anything of a member is not as it should be.
pub fn is_well(status: &Status, member: &MemberStatus) -> bool {
    let played = status.management.as_ref().is_some_and(|it| it.recovered.iter().any(|it| it.target == member.name));
    member.link != LinkState::Down && !played
}

/// The part of `status` about the group.
pub fn show(report: &ManagementReport, output: &mut Output) -> Result<(), Failure> {
    output.line(summary(report))?;
    if let Some(address) = &report.holds {
        output.line(format_args!("holds {address}; lease for {} ms more", report.lease_left_ms))?;
    }
    if report.decisions > 0 && report.standing != "in the group" {
        output.line(output.paint(Style::Warning, format_args!("this server: {}", report.standing)))?;
    }
    for (style, text) in lines(report) {
        output.line(output.paint(style, printable(&text)))?;
    }
    let takers: Vec<String> = report
        .capacity
        .takers
        .iter()
        .map(|taker| match &taker.place {
            Some(place) => format!("{} to {}", taker.target, place.host),
            None => format!("{} to nobody", taker.target),
        })
        .collect();
    if report.decisions > 0 && !takers.is_empty() {
        output.line(format_args!("if one fails: {}", takers.join(", ")))?;
    }
    Ok(())
}
