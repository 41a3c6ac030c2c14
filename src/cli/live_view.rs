//! `p2pdb status --watch` on a terminal: the ring, its loads, what is wrong and what was decided last, once a second.

use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style as Look};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Wrap};

use super::DirectoryArgs;
use super::decisions;
use super::error::{Answer, Failure, Outcome};
use super::group_view;
use super::output::{Style, printable};
use super::time::{format_age, format_ms};
use crate::edge::clock::monotonic_ns;
use crate::edge::control::{Client, LinkState, MemberStatus, Request, Response, Status};

const EVERY: Duration = Duration::from_secs(1);
/// Width of a bar of load, in characters.
const BAR: usize = 10;

/// What is on show.
struct Shown {
    status: Box<Status>,
    decided: Vec<String>,
    /// The member at the top of the table.
    first: usize,
}

/// Shows it until somebody presses q.
///
/// # Errors
/// The daemon does not answer any more, or the terminal cannot be used.
pub fn run(directory: &DirectoryArgs, client: &mut Client, zone: &jiff::tz::TimeZone) -> Outcome {
    let mut shown = Shown { status: read(client)?, decided: last_decisions(directory, zone), first: 0 };
    let mut terminal = ratatui::try_init().map_err(Failure::Output)?;
    let outcome = watch(&mut terminal, directory, client, zone, &mut shown);
    ratatui::restore();
    outcome
}

fn watch(
    terminal: &mut DefaultTerminal,
    directory: &DirectoryArgs,
    client: &mut Client,
    zone: &jiff::tz::TimeZone,
    shown: &mut Shown,
) -> Outcome {
    let mut read_ns = monotonic_ns();
    loop {
        terminal.draw(|frame| draw(frame, shown)).map_err(Failure::Output)?;
        if event::poll(EVERY.saturating_sub(since(read_ns))).map_err(Failure::Output)?
            && let Event::Key(key) = event::read().map_err(Failure::Output)?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(Answer::Yes),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(Answer::Yes),
                KeyCode::Down => shown.first = (shown.first + 1).min(shown.status.members.len().saturating_sub(1)),
                KeyCode::Up => shown.first = shown.first.saturating_sub(1),
                _ => {}
            }
        }
        if since(read_ns) >= EVERY {
            shown.status = read(client)?;
            shown.decided = last_decisions(directory, zone);
            read_ns = monotonic_ns();
        }
    }
}

fn since(began_ns: u64) -> Duration {
    Duration::from_nanos(monotonic_ns().saturating_sub(began_ns))
}

fn read(client: &mut Client) -> Result<Box<Status>, Failure> {
    match client.call(&Request::Status)? {
        Response::Status(status) => Ok(status),
        other => Err(Failure::of_response(other)),
    }
}

fn last_decisions(directory: &DirectoryArgs, zone: &jiff::tz::TimeZone) -> Vec<String> {
    // Whoever may ask the daemon may not be allowed to read its folder.
    let chain = decisions::read(directory).unwrap_or_default();
    let line = |decision: &std::sync::Arc<crate::core::decision::Decision>| {
        let time = format_ms(decision.wall_ms, zone);
        format!("{:>4}  {}  {}", decision.slot, time.get(11..19).unwrap_or(&time), decision.act)
    };
    chain.iter().rev().take(4).map(line).collect()
}

fn draw(frame: &mut ratatui::Frame, shown: &Shown) {
    let status = &shown.status;
    let members = status.members.len() as u16 + 3;
    let [head, table, wrong, decided, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Max(members),
        Constraint::Min(3),
        Constraint::Length(shown.decided.len() as u16 + 2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(headline(status), head);
    frame.render_widget(ring(shown), table);
    frame.render_widget(problems(status), wrong);
    let lines: Vec<Line> = shown.decided.iter().map(|line| Line::from(printable(line))).collect();
    frame.render_widget(Paragraph::new(lines).block(block("last decisions")), decided);
    frame.render_widget(Paragraph::new(Span::styled("q quits, arrows move", dim())), keys);
}

fn headline(status: &Status) -> Paragraph<'_> {
    let up = status.members.iter().filter(|member| member.link != LinkState::Down).count();
    let title = Line::from(vec![
        Span::styled(status.name.to_string(), Look::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!(" is {}; {up} of {} members linked", status.lifecycle, status.members.len())),
    ]);
    let summary = status.management.as_ref().map(|report| group_view::summary(report)).unwrap_or_default();
    Paragraph::new(vec![title, Line::styled(summary, dim())])
}

fn ring(shown: &Shown) -> Table<'_> {
    let status = &shown.status;
    let roles = group_view::roles(status);
    let rows = status.members.iter().skip(shown.first).map(|member| {
        let colour = if group_view::is_well(status, member) { Color::Green } else { Color::Red };
        let link = match member.link {
            LinkState::Own => "this one",
            LinkState::Up => "up",
            LinkState::Down => "DOWN",
        };
        Row::new([
            Cell::from(member.name.to_string()).style(Look::new().fg(colour)),
            Cell::from(link),
            Cell::from(member.lifecycle.map_or("-".into(), |lifecycle| lifecycle.to_string())),
            Cell::from(roles.get(&member.name).cloned().unwrap_or_default()),
            load(member),
            Cell::from(health(status, member)),
        ])
    });
    let widths = [
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(16),
        Constraint::Length(BAR as u16 + 5),
        Constraint::Min(10),
    ];
    let head = Row::new(["SERVER", "LINK", "LIFE", "ROLE", "LOAD", "SEEN FROM HERE"]).style(dim());
    Table::new(rows, widths).header(head).block(block("ring"))
}

/// The scarcest of processors, memory and network.
fn load(member: &MemberStatus) -> Cell<'static> {
    let Some(load) = member.load else { return Cell::from("-") };
    let share = load.cpu.max(load.memory).max(load.network).clamp(0.0, 1.0);
    let full = (share * BAR as f64).round() as usize;
    let colour = if share > 0.8 { Color::Red } else { Color::Blue };
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR - full));
    Cell::from(Line::from(vec![
        Span::styled(bar, Look::new().fg(colour)),
        Span::raw(format!(" {:>3.0}%", 100.0 * share)),
    ]))
}

fn health(status: &Status, member: &MemberStatus) -> String {
    let report = status.management.as_ref();
    let target = report.and_then(|report| report.targets.iter().find(|target| target.target == member.name));
    target.map_or(String::new(), |target| target.health.to_string())
}

fn problems(status: &Status) -> Paragraph<'_> {
    let mut lines: Vec<Line> = status
        .alarms
        .iter()
        .map(|alarm| {
            let text = format!("{}: {}", alarm.name, printable(&alarm.text));
            Line::styled(text, Look::new().fg(Color::Red))
        })
        .collect();
    let of_group = status.management.as_ref().map(|report| group_view::lines(report)).unwrap_or_default();
    lines.extend(of_group.into_iter().map(|(style, text)| {
        let colour = if style == Style::Bad { Color::Red } else { Color::Yellow };
        Line::styled(printable(&text), Look::new().fg(colour))
    }));
    if lines.is_empty() {
        let since = format_age(super::wall_clock_ms().saturating_sub(status.process.started_ms));
        lines.push(Line::styled(format!("nothing; the daemon has run for {since}"), dim()));
    }
    Paragraph::new(lines).wrap(Wrap { trim: true }).block(block("what is wrong"))
}

fn block(title: &str) -> Block<'_> {
    Block::default().borders(Borders::TOP).title(Span::styled(title, dim()))
}

fn dim() -> Look {
    Look::new().add_modifier(Modifier::DIM)
}
