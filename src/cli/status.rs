//! `p2pdb status`: how this server and its cluster are, on one screen.

use std::time::Duration;

use clap::Args;

use super::error::{Answer, Failure, Outcome};
use super::output::{Output, Style, human_bytes, printable};
use super::time::{format_age, format_ms};
use super::{DirectoryArgs, Session, group_view, live_view, wall_clock_ms};
use crate::core::priority::ClassStatus;
use crate::edge::control::{LinkState, MemberStatus, Request, Response, Status};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show it live: the ring, loads, what is wrong, the last decisions; q ends it. In a pipe: again every second
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub fn run(args: StatusArgs, session: &mut Session) -> Outcome {
    let mut client = args.directory.connect()?;
    if args.watch && session.output.is_terminal() && !session.output.is_json() {
        return live_view::run(&args.directory, &mut client, &session.zone);
    }
    loop {
        let status = match client.call(&Request::Status)? {
            Response::Status(status) => status,
            other => return Err(Failure::of_response(other)),
        };
        if session.output.is_json() {
            session.output.json(&*status)?;
        } else {
            show(&status, session)?;
        }
        if !args.watch {
            return Ok(Answer::Yes);
        }
        session.output.flush()?;
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn show(status: &Status, session: &mut Session) -> Result<(), Failure> {
    let now_ms = wall_clock_ms();
    let age = |since_ms: u64| format_age(now_ms.saturating_sub(since_ms));
    let zone = session.zone.clone();
    let output = &mut session.output;
    let up = status.members.iter().filter(|member| member.link != LinkState::Down).count();
    let life = format!("{} for {}", status.lifecycle, age(status.since_ms));
    let name = output.paint(Style::Heading, &status.name);
    output.line(format_args!(
        "{name} is {life}; flag: {}; {up} of {} members linked",
        status.flag.as_deref().map_or_else(|| "none".into(), printable),
        status.members.len()
    ))?;
    output.line(format_args!(
        "cluster {}, p2pdb {}, pid {}, up {}, {} resident, {:.1} % of a core",
        status.cluster,
        status.version,
        status.process.pid,
        age(status.process.started_ms),
        human_bytes(status.process.rss_bytes),
        status.process.cpu_percent,
    ))?;
    for alarm in &status.alarms {
        let text = format!("ALARM {} ({}): {}", alarm.name, age(alarm.since_ms), printable(&alarm.text));
        output.line(output.paint(Style::Bad, text))?;
    }
    output.line("")?;
    members(status, &age, output)?;
    if let Some(report) = &status.management {
        output.line("")?;
        group_view::show(report, output)?;
    }
    output.line("")?;
    let rows = status.files.iter().map(|file| {
        vec![file.file.to_string(), file.records.to_string(), file.conflicts.to_string(), file.digest.short()]
    });
    output.table(&["FILE", "RECORDS", "CONFLICTS", "DIGEST"], &[1, 2], rows.collect())?;
    output.line("")?;
    let queue = [
        ("management", status.queue.management),
        ("transmission", status.queue.transmission),
        ("reception", status.queue.reception),
    ];
    let rows = queue.into_iter().map(|(name, class)| queue_row(name, class));
    output.table(
        &["TRANSACTIONS", "WAITING", "SERVED", "MEAN WAIT µs", "LONGEST µs"],
        &[1, 2, 3, 4],
        rows.collect(),
    )?;
    output.line("")?;
    let log = &status.log;
    output.line(format_args!(
        "log: {} entries, {} in {} segments; archived {} in {}; checkpoint {}",
        log.entries,
        human_bytes(log.bytes),
        log.segments,
        human_bytes(log.archived_bytes),
        log.archived_segments,
        log.checkpoint_ms.map_or_else(|| "none yet".into(), |ms| format_ms(ms, &zone)),
    ))?;
    let disk = format!("disk: {} free", human_bytes(status.disk.free_bytes));
    match status.disk.full {
        true => output.line(output.paint(Style::Bad, format_args!("{disk}: FULL, edits are refused")))?,
        false => output.line(disk)?,
    }
    output.line(format_args!("vector {} over {} streams", status.vector.digest.short(), status.vector.streams))
}

fn members(status: &Status, age: &dyn Fn(u64) -> String, output: &mut Output) -> Result<(), Failure> {
    let members = &status.members;
    let roles = group_view::roles(status);
    let rows = members.iter().map(|member| {
        let link = match member.link {
            LinkState::Own => "this one".into(),
            LinkState::Up => format!("up {}", age(member.since_ms)),
            LinkState::Down => format!("DOWN {}", age(member.since_ms)),
        };
        let round_trip = member.round_trip_us.map(|us| format!("{:.2}", us as f64 / 1000.0));
        vec![
            member.name.to_string(),
            member.order.to_string(),
            printable(&member.address),
            link,
            member.lifecycle.map(|lifecycle| lifecycle.to_string()).unwrap_or_else(|| "-".into()),
            roles.get(&member.name).cloned().unwrap_or_else(|| "-".into()),
            round_trip.unwrap_or_else(|| "-".into()),
            member.lag_entries.to_string(),
            member.clock_offset_ms.map_or_else(|| "-".into(), |ms| format!("{ms:+}")),
            load(member),
            human_bytes(member.bytes_sent),
            human_bytes(member.bytes_received),
        ]
    });
    let headings = [
        "MEMBER", "ORDER", "ADDRESS", "LINK", "LIFE", "ROLE", "TRIP ms", "LAG", "CLOCK ms", "LOAD %", "SENT",
        "RECEIVED",
    ];
    output.table(&headings, &[1, 6, 7, 8, 9, 10, 11], rows.collect())?;
    for member in members {
        if let Some(refusal) = &member.last_refusal {
            let text = format!("  {}: {}", member.name, printable(refusal));
            output.line(output.paint(Style::Warning, text))?;
        }
    }
    Ok(())
}

/// Processors, memory and network, and the stand-ins behind it.
fn load(member: &MemberStatus) -> String {
    let Some(load) = member.load else { return "-".into() };
    let stand_ins = if load.stand_ins == 0 { String::new() } else { format!(" +{}", load.stand_ins) };
    format!("{:.0}/{:.0}/{:.0}{stand_ins}", 100.0 * load.cpu, 100.0 * load.memory, 100.0 * load.network)
}

fn queue_row(name: &str, class: ClassStatus) -> Vec<String> {
    let mean_us = class.waited_us.checked_div(class.served).unwrap_or(0);
    vec![
        name.to_owned(),
        class.waiting.to_string(),
        class.served.to_string(),
        mean_us.to_string(),
        class.waited_us_max.to_string(),
    ]
}
