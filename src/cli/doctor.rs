//! `p2pdb doctor`: what is wrong with this machine and its group, and what to do about it.
//!
//! What this machine says is looked at first, so that it helps also when the daemon does not start. The daemon's own alarms,
//! and what the management files say, come from the daemon.

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use inotify::{Inotify, WatchMask};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
use serde::Serialize;

use super::error::{Answer, Failure, Outcome};
use super::files::fetch;
use super::output::{Style, human_bytes, printable};
use super::{DirectoryArgs, Session};
use crate::core::check::{Check, Preset};
use crate::core::guest::GuestState;
use crate::core::id::{FileName, ServerName};
use crate::core::lifecycle::Lifecycle;
use crate::core::merge::Files;
use crate::core::placement::{LIMITED, READY};
use crate::core::schema::file;
use crate::core::service::{Service, procedure_of};
use crate::edge::config::{Config, Driver};
use crate::edge::control::{LinkState, OriginalView, Request, Response, Status};
#[cfg(feature = "libvirt")]
use crate::edge::guests::{
    FOLDER, SPANNING_TREE_REMEDY, describe_libvirt, describe_template, found_acceleration, original_name, spanning_tree,
};

/// Less room than this beside the next two segments of the log is told.
const ROOM_BYTES: u64 = 256 << 20;
/// A clock that is further off than this from another member's is told, long before edits are refused.
const CLOCK_OFFSET_MS_MAX: i64 = 500;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    about: &'static str,
    good: bool,
    text: String,
    /// What to do; empty if there is nothing to do.
    remedy: String,
}

/// What was looked at so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, about: &'static str, text: impl Display) {
        self.0.push(Finding { about, good: true, text: text.to_string(), remedy: String::new() });
    }

    fn wrong(&mut self, about: &'static str, text: impl Display, remedy: impl Display) {
        self.0.push(Finding { about, good: false, text: text.to_string(), remedy: remedy.to_string() });
    }

    /// Says that nothing is wrong with `about`, if that is so.
    fn conclude(&mut self, about: &'static str, text: impl Display) {
        if self.0.iter().all(|finding| finding.about != about) {
            self.good(about, text);
        }
    }
}

pub fn run(args: DoctorArgs, session: &mut Session) -> Outcome {
    let mut findings = Findings::default();
    let config = Config::load(&args.directory.directory);
    match &config {
        Ok(config) => {
            findings.good("settings", "p2pdb.toml can be used");
            machine(config, &mut findings);
        }
        Err(error) => findings.wrong("settings", error, "correct it and start the daemon again"),
    }
    let group = group(&args.directory);
    if let Ok(config) = &config {
        judge_service_network(config, group.as_ref().ok().map(|(_, files)| &files.services), &mut findings);
    }
    match group {
        Ok((status, files)) => {
            judge_status(&status, &mut findings);
            judge_decisions(&status, &mut findings);
            judge_files(&files, &mut findings);
            if let Ok(config) = &config {
                judge_gates(config, &args.directory, &mut findings);
            }
        }
        Err(failure) => {
            let (what, hint) = failure.report().map(|report| (report.what, report.hint)).unwrap_or_default();
            findings.wrong("daemon", what, hint);
        }
    }
    show(&findings.0, session)
}

fn show(findings: &[Finding], session: &mut Session) -> Outcome {
    for finding in findings {
        if session.output.is_json() {
            session.output.json(finding)?;
            continue;
        }
        let (style, word) = if finding.good { (Style::Good, "good ") } else { (Style::Bad, "WRONG") };
        let word = session.output.paint(style, word);
        session.output.line(format_args!("{word}  {}: {}", finding.about, printable(&finding.text)))?;
        if !finding.remedy.is_empty() {
            session.output.line(format_args!("       {}", printable(&finding.remedy)))?;
        }
    }
    let good = findings.iter().all(|finding| finding.good);
    Ok(if good { Answer::Yes } else { Answer::No })
}

// ---- this machine ----

fn machine(config: &Config, findings: &mut Findings) {
    match rustix::fs::statvfs(&config.directory) {
        Ok(stat) => {
            let free_bytes = stat.f_bavail * stat.f_frsize;
            let text = format!("{} free where the log is kept", human_bytes(free_bytes));
            match free_bytes < 2 * config.log.segment_mib * 1024 * 1024 + ROOM_BYTES {
                true => findings.wrong("disk", text, "make room; edits are refused while the disk is full"),
                false => findings.good("disk", text),
            }
        }
        Err(error) => findings.wrong("disk", format!("{}: {error}", config.directory.display()), "is it mounted?"),
    }
    match can_watch(&config.files) {
        Ok(()) => findings.good("plain files", "the folder can be watched"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            findings.good("plain files", "not looked at: this user may not read the folder");
        }
        Err(error) => {
            let remedy = "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches with sysctl, \
                          and see that the folder is there";
            findings.wrong("plain files", format!("{}: {error}", config.files.display()), remedy);
        }
    }
    if config.originals.driver == Driver::Libvirt {
        judge_libvirt(config, findings);
    }
    judge_hooks(config, findings);
}

/// `services` is the file `Service`, if the daemon could be asked for it.
fn judge_service_network(config: &Config, services: Option<&Files>, findings: &mut Findings) {
    let Some(interface) = config.service.interface() else {
        let Some(service) = services.and_then(|files| Service::of(files, &config.name)) else {
            return findings
                .good("service network", "none is set: this host holds no service address and no original servers");
        };
        if is_own(service.address.ip) {
            let text = format!(
                "{} is on this host, and not by p2pdb: it is watched; once played elsewhere, this server does not come back by \
                 itself",
                service.address
            );
            return findings.good("service network", text);
        }
        let text = format!(
            "the file Service gives {} to {}, and no interface is set: this server does not take it, and counts as failed",
            service.address, config.name
        );
        return findings.wrong(
            "service network",
            text,
            "set service.interface in p2pdb.toml and restart the daemon, or delete the record with p2pdb files del Service",
        );
    };
    if !has_interface(&interface) {
        let text = format!("there is no interface '{interface}'");
        findings.wrong("service network", text, "make it, or correct service.interface in p2pdb.toml");
    }
    if !Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success()) {
        findings.wrong("service network", "the program 'ip' does not run", "install iproute2");
    }
    let own = services.and_then(|files| Service::of(files, &config.name)).map(|service| service.address);
    let has_neighbours = own.is_some_and(|own| own.ip.is_ipv4() && own.prefix < 32);
    if has_neighbours && network::loses_addresses(Path::new(network::SETTINGS), &interface) {
        let text = format!("with its service address, '{interface}' loses addresses of that network that came later");
        let remedy = format!("sysctl net/ipv4/conf/{interface}/promote_secondaries=1, and the same in /etc/sysctl.d");
        findings.wrong("service network", text, remedy);
    }
    if network::firewall_drops(&interface) {
        let text = format!(
            "the firewall of this host sees what crosses the bridge '{interface}' (br_netfilter), and drops it"
        );
        findings.wrong(
            "service network",
            text,
            "sysctl net.bridge.bridge-nf-call-iptables=0; or iptables -I FORWARD -m physdev --physdev-is-bridged -j ACCEPT",
        );
    }
    findings.conclude("service network", format_args!("'{interface}' is there"));
}

/// A guest that does not serve must not be reached: somebody else may have its address by now.
fn judge_gates(config: &Config, directory: &DirectoryArgs, findings: &mut Findings) {
    let Some(interface) = config.service.interface().filter(|_| config.originals.driver == Driver::Libvirt) else {
        return;
    };
    let look = || {
        let open = network::open_gates(Path::new(network::INTERFACES), &interface);
        let Ok(Response::Originals(originals)) = directory.call(&Request::Originals) else { return None };
        let is_serving =
            |view: &&OriginalView| view.host == config.name.as_str() && view.state == GuestState::Serving.word();
        let serving = originals.iter().filter(is_serving).count();
        (open.len() > serving).then_some((open, serving))
    };
    // A gate is opened a moment before its original is said to serve.
    let Some(_) = look() else { return };
    std::thread::sleep(Duration::from_secs(1));
    if let Some((open, serving)) = look() {
        let text =
            format!("{serving} of {} gates that are up ({}) are of originals that serve", open.len(), open.join(", "));
        let remedy = "let no network manager take interfaces named p2pdb*; see which one serves (p2pdb original list) before you shut \
                      one with 'ip link set NAME down'";
        findings.wrong("virtual machines", text, remedy);
    }
}

#[cfg(not(feature = "libvirt"))]
fn judge_libvirt(_: &Config, findings: &mut Findings) {
    let text = "originals.driver is \"libvirt\", and this program was built without it";
    findings.wrong("virtual machines", text, "write \"process\" in p2pdb.toml, or build it with the feature libvirt");
}

#[cfg(feature = "libvirt")]
fn judge_libvirt(config: &Config, findings: &mut Findings) {
    const TOPIC: &str = "virtual machines";
    let settings = &config.libvirt;
    match describe_libvirt(&settings.uri) {
        Ok(text) => {
            findings.good(TOPIC, format!("{text} at {}; {}", settings.uri, accelerations(config)));
        }
        Err(error) => findings.wrong(TOPIC, error.to_string(), "start libvirtd, or correct libvirt.uri in p2pdb.toml"),
    }
    let holds = |name: &str| Path::new(&settings.image).join(name).is_file();
    if !settings.domain.is_empty() {
        match describe_template(&settings.uri, &settings.domain) {
            Ok(text) => findings.good(TOPIC, text),
            Err(why) => findings.wrong(TOPIC, why, "correct that, or libvirt.domain in p2pdb.toml"),
        }
    } else if !(holds("disk.qcow2") || holds("vmlinuz") && holds("initrd.img")) {
        let text = format!("libvirt.image '{}' holds no image", settings.image);
        let remedy = "make one with tools/image (in the package: /usr/share/p2pdb/image), and name its folder in \
                      p2pdb.toml; or name a virtual machine as libvirt.domain";
        findings.wrong(TOPIC, text, remedy);
    }
    if config.service.interface().is_some_and(|name| !Path::new("/sys/class/net").join(name).join("bridge").exists()) {
        let text = format!("service.interface '{}' is not a bridge", config.service.interface);
        findings.wrong(TOPIC, text, "put the interface into a bridge, and name that");
    }
    if let Some(words) = config.service.interface().and_then(|name| spanning_tree(&name)) {
        findings.wrong(TOPIC, words, SPANNING_TREE_REMEDY);
    }
}

/// With what the originals of this host run. That there is a `/dev/kvm` does not mean that guests run with it.
#[cfg(feature = "libvirt")]
fn accelerations(config: &Config) -> String {
    let own = config.directory.join(FOLDER);
    let folder = if config.libvirt.folder.is_empty() { own } else { config.libvirt.folder.clone().into() };
    let names = (1..=config.originals.count).map(original_name);
    let found = names.filter_map(|name| found_acceleration(&folder.join(&name)).map(|it| (name, it.word())));
    let found: Vec<_> = found.map(|(name, word)| format!("{name} runs with {word}")).collect();
    let kvm = if Path::new("/dev/kvm").exists() { "/dev/kvm is there" } else { "no /dev/kvm" };
    match found.is_empty() {
        true => format!("{kvm}; no original has been made yet"),
        false => format!("{kvm}; {}", found.join(", ")),
    }
}

fn judge_hooks(config: &Config, findings: &mut Findings) {
    let commands = config.hooks.commands();
    for (hook, words) in &commands {
        let Some(program) = words.first() else { continue };
        if rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_err() {
            let text = format!("hooks.{}: {program} is not there, or may not be run", hook.word());
            findings.wrong("hooks", text, "correct the path in p2pdb.toml, or chmod +x the program");
        }
    }
    findings.conclude("hooks", format_args!("{} configured", commands.len()));
}

fn can_watch(folder: &Path) -> std::io::Result<()> {
    Inotify::init()?.watches().add(folder, WatchMask::MOVED_TO).map(drop)
}

/// Whether an address is one of this host's: what is sent there comes from there.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| {
        // Nothing is sent by that.
        socket.connect((address, 9)).is_ok() && socket.local_addr().is_ok_and(|own| own.ip() == address)
    })
}

fn has_interface(name: &str) -> bool {
    socket(AddressFamily::INET, SocketType::DGRAM, None).is_ok_and(|socket| name_to_index(socket, name).is_ok())
}

// ---- the group ----

fn group(directory: &DirectoryArgs) -> Result<(Status, GroupFiles), Failure> {
    let status = match directory.call(&Request::Status)? {
        Response::Status(status) => *status,
        other => return Err(Failure::of_response(other)),
    };
    let get = |name: &str| {
        let name = FileName::new(name).expect("built-in file names are well formed");
        Ok::<_, Failure>(fetch(directory, &name)?.files)
    };
    let files = GroupFiles {
        services: get(file::SERVICE)?,
        checks: get(file::CHECK)?,
        bundles: get(file::BUNDLE)?,
        originals: get(file::ORIGINAL)?,
    };
    Ok((status, files))
}

/// The management files that are looked at.
struct GroupFiles {
    services: Files,
    checks: Files,
    bundles: Files,
    originals: Files,
}

fn judge_status(status: &Status, findings: &mut Findings) {
    for alarm in &status.alarms {
        findings.wrong("daemon", format_args!("alarm {}: {}", alarm.name, alarm.text), alarm_remedy(&alarm.name));
    }
    if status.lifecycle < Lifecycle::Operating {
        let text = format!("{} is {}, not operating", status.name, status.lifecycle);
        findings.wrong(
            "daemon",
            text,
            "it waits for another member, for the files, or for its record in the file Flag",
        );
    }
    findings.conclude("daemon", format_args!("{} operates", status.name));
    for member in &status.members {
        if member.link == LinkState::Down {
            let why = member.last_refusal.as_ref().map_or(String::new(), |why| format!(": {why}"));
            let remedy = format!("is its daemon running, and can {} be reached by UDP?", member.address);
            findings.wrong("links", format_args!("{} is not linked{why}", member.name), remedy);
        }
        if let Some(offset_ms) = member.clock_offset_ms.filter(|offset| offset.abs() > CLOCK_OFFSET_MS_MAX) {
            let text = format!("the clock of {} is {offset_ms:+} ms off from this server's", member.name);
            findings.wrong("clocks", text, "let chrony or systemd-timesyncd keep the clocks of all servers");
        }
    }
    let (members, linked) = (status.members.len(), status.members.iter().filter(|m| m.link != LinkState::Down).count());
    if 2 * linked <= members && members > 1 {
        let text = format!("{linked} of {members} members are here: no majority");
        findings.wrong(
            "links",
            text,
            "edits are taken, but not acknowledged by a majority, until more members are back",
        );
    }
    findings.conclude("links", format_args!("all {members} members are here"));
    findings.conclude("clocks", format_args!("within {CLOCK_OFFSET_MS_MAX} ms of each other"));
}

/// What to do about an alarm, where its text does not say that itself.
fn alarm_remedy(name: &str) -> &'static str {
    match name {
        "disk full" | "decisions" | "checkpoint" => "make room; it goes on by itself then",
        "clock" => "set this server's clock right, and let chrony or systemd-timesyncd keep it",
        "clock jump" => "find out why; it is cleared when the others agree with this server's clock",
        "certificate" => "link with a server that holds certs/ca.key, then p2pdb cert rotate",
        "removed" => "see 'Removing a server' in operations.md; it may join again if that was a mistake",
        "bundles" => "make room, delete records of Bundle, or raise bundles.total_mib and restart",
        "checks" => "correct the record with p2pdb files mod Check",
        _ if name.starts_with("clock of ") => "set the clock of that server right, and let it be kept",
        _ if name.starts_with("divergence ") => {
            "p2pdb replay --check on both; on the one that differs stop the daemon, move its folder view away, start it"
        }
        _ if name.starts_with("fork ") => "stop both servers that use its key, remove it, and let it join anew",
        _ => "",
    }
}

/// Whether the group can decide, and who waits for what.
fn judge_decisions(status: &Status, findings: &mut Findings) {
    let Some(report) = &status.management else { return };
    if report.decisions == 0 {
        return findings.good("decisions", "none: this group only shares files; p2pdb found lets it look after itself");
    }
    let gone: Vec<&str> =
        report.electors.iter().filter(|elector| !elector.linked).map(|elector| elector.name.as_str()).collect();
    // The lease shows whether a quorum answers; who is out of the group, or only votes, has none.
    if report.standing == "in the group" && report.lease_left_ms == 0 {
        let text = format!(
            "no quorum: {} of {} electors are out of reach ({}), and a quorum needs {}; nothing can be decided, and no \
             exclusive address is served",
            gone.len(),
            report.electors.len(),
            gone.join(", "),
            report.quorum_needs
        );
        findings.wrong(
            "decisions",
            text,
            "start one of them; if they are gone for good, see 'No quorum' in recovery.md",
        );
    }
    for target in &report.targets {
        for check in target.checks.iter().filter(|check| check.unable) {
            let why = check.last.clone().unwrap_or_default();
            let (what, remedy) = why.split_once("; ").unwrap_or((&why, ""));
            let text = format!(
                "{} cannot be asked '{}' from here, so nothing is known of it: {what}",
                target.target, check.question
            );
            findings.wrong("checks", text, remedy);
        }
    }
    for it in report.recovered.iter().filter(|it| it.phase != "serving") {
        let text = format!("{} is out of the group and is not served: {} {}", it.target, it.phase, it.note);
        findings.wrong("decisions", text, format_args!("see p2pdb why {}", it.target));
    }
    if !report.acts {
        findings.wrong("decisions", "act = false: failures are noticed here, and nothing is done", "set recovery.act");
    }
    let has_places = report.capacity.takers.iter().any(|taker| taker.place.is_some());
    if report.capacity.can_lose == 0 && report.electors.len() > 1 && has_places {
        let text = "if one more server fails, there is no place for what it does";
        findings.wrong(
            "decisions",
            text,
            "p2pdb original list; p2pdb original prepare on hosts whose originals are broken",
        );
    }
    let summary = super::group_view::summary(report);
    findings.conclude("decisions", summary.strip_prefix("decisions: ").unwrap_or(&summary));
}

fn judge_files(files: &GroupFiles, findings: &mut Findings) {
    let servers: BTreeSet<ServerName> =
        files.services.records_of(file::SERVICE).filter_map(|record| ServerName::new(record.field(0)).ok()).collect();
    let mut holders: BTreeMap<IpAddr, Vec<&ServerName>> = BTreeMap::new();
    for server in &servers {
        if let Some(service) = Service::of(&files.services, server) {
            holders.entry(service.address.ip).or_default().push(server);
        }
        if procedure_of(&files.bundles, server).is_none() {
            let text = format!("{server} has a service and no installation procedure, so nobody can stand in for it");
            findings.wrong("services", text, format_args!("p2pdb procedure put FOLDER --server {server}"));
        }
    }
    for (address, servers) in holders.iter().filter(|(_, servers)| servers.len() > 1) {
        let names = servers.iter().map(|server| server.as_str()).collect::<Vec<_>>().join(" and ");
        let text = format!("{names} have the same service address {address}");
        findings.wrong("services", text, "give each its own with p2pdb files mod Service");
    }
    for record in files.checks.records_of(file::CHECK) {
        if let Err(error) = Check::parse(record, Preset::Fast) {
            let text = error.to_string();
            let (what, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            findings.wrong("services", what, remedy);
        }
    }
    findings.conclude("services", format_args!("{} with addresses and procedures", servers.len()));
    let (mut ready, mut limited) = (0, 0);
    for record in files.originals.records_of(file::ORIGINAL) {
        match record.field(2) {
            READY => ready += 1,
            LIMITED => {
                limited += 1;
                let text =
                    format!("{} of {} can stand in for nobody: {}", record.field(1), record.field(0), record.field(3));
                findings.wrong(
                    "original servers",
                    text,
                    format_args!("on {}: give the daemon the rights of the drop-in in originals.md", record.field(0)),
                );
            }
            "broken" => {
                let text = format!("{} of {} is broken: {}", record.field(1), record.field(0), record.field(3));
                findings.wrong(
                    "original servers",
                    text,
                    format_args!("on {}: p2pdb original prepare", record.field(0)),
                );
            }
            _ => {}
        }
    }
    if ready + limited == 0 && !servers.is_empty() {
        let text = "no host has one that is ready, so no failed server can be recovered";
        findings.wrong("original servers", text, "set service.interface in p2pdb.toml of the hosts");
    }
    findings.conclude("original servers", format_args!("{ready} are ready"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_told_with_what_to_do() {
        let names = [
            "disk full",
            "decisions",
            "checkpoint",
            "bundles",
            "clock",
            "clock jump",
            "certificate",
            "removed",
            "checks",
            "clock of S2",
        ];
        for name in names {
            assert!(!alarm_remedy(name).is_empty(), "{name}");
        }
        assert!(alarm_remedy("divergence S2").contains("p2pdb replay --check"));
        assert!(alarm_remedy("fork S2").contains("join anew"));
        // These say it themselves.
        assert_eq!((alarm_remedy("service address"), alarm_remedy("plain file Notes")), ("", ""));
    }
}
