//! `p2pdb dump`: prints the operation log, of a running daemon too: it is files, and no lock is needed.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use jiff::Zoned;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::error::{Answer, Failure, Outcome};
use super::log::{Log, Logged, Piece};
use super::output::{Output, Style, note, printable};
use super::time::{format_ms, parse_time};
use super::{DirectoryArgs, Session, paper, server_name};
use crate::core::diff::{Change, Diff};
use crate::core::entry::{Entry, Sealed};
use crate::core::id::{FileName, ServerName};
use crate::core::record::Record;

#[derive(Debug, Args)]
#[group(id = "source", required = true, multiple = true, args = ["paths", "live"])]
pub struct DumpArgs {
    /// Servers' directories, log folders, segments or archives
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The log of the server in --dir
    #[arg(long, conflicts_with = "paths")]
    live: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
    /// Only changes of this file
    #[arg(long, value_name = "FILE")]
    file: Option<FileName>,
    /// Only entries of this server
    #[arg(long, value_name = "SERVER", value_parser = server_name)]
    origin: Option<ServerName>,
    /// Only entries from then on: a time, '10m' for ten minutes ago, 'today 12:00'
    #[arg(long, value_name = "TIME", value_parser = time_now)]
    since: Option<u64>,
    /// Only entries up to then
    #[arg(long, value_name = "TIME", value_parser = time_now)]
    until: Option<u64>,
    /// Go on as the log grows
    #[arg(long)]
    follow: bool,
    /// What the lines look like
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As the paper prints changes: Group, Del, S2
    Paper,
    /// For people: time, entry, author, changes, reason
    Text,
    /// One JSON object per entry
    Json,
}

pub fn run(args: DumpArgs, session: &mut Session) -> Outcome {
    let paths = if args.live { vec![args.directory.directory] } else { args.paths };
    let selection = Selection {
        file: args.file,
        key: None,
        origin: args.origin,
        since_ms: args.since.unwrap_or(0),
        until_ms: args.until.unwrap_or(u64::MAX),
    };
    let format = if session.output.is_json() { Format::Json } else { args.format };
    print(Log::open(&paths)?, args.follow, &selection, format, session)?;
    Ok(Answer::Yes)
}

/// What `files history` prints: every change of a file, or of the record with this key.
pub fn history(directory: &Path, file: FileName, key: Option<String>, session: &mut Session) -> Outcome {
    let selection = Selection { file: Some(file), key, origin: None, since_ms: 0, until_ms: u64::MAX };
    let format = if session.output.is_json() { Format::Json } else { Format::Text };
    let entries = print(Log::open(&[directory.to_path_buf()])?, false, &selection, format, session)?;
    if entries == 0 {
        note("nobody has ever written it, as far as this log goes");
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

/// Which entries, and which of their changes.
#[derive(Debug, Clone)]
struct Selection {
    file: Option<FileName>,
    key: Option<String>,
    origin: Option<ServerName>,
    /// Both ends included.
    since_ms: u64,
    until_ms: u64,
}

impl Selection {
    fn takes_entry(&self, entry: &Entry) -> bool {
        let time_ms = entry.time.wall_ms();
        (self.since_ms..=self.until_ms).contains(&time_ms)
            && self.origin.as_ref().is_none_or(|origin| *origin == entry.id.stream.origin)
            && (self.takes_all_diffs() || entry.diffs.iter().any(|diff| self.takes_diff(diff)))
    }

    fn takes_diff(&self, diff: &Diff) -> bool {
        self.file.as_ref().is_none_or(|file| *file == diff.file) && self.key.as_ref().is_none_or(|key| *key == diff.key)
    }

    fn takes_all_diffs(&self) -> bool {
        self.file.is_none() && self.key.is_none()
    }
}

/// Prints what is selected. Returns how many entries that were.
fn print(
    mut log: Log,
    follow: bool,
    selection: &Selection,
    format: Format,
    session: &mut Session,
) -> Result<u64, Failure> {
    let mut entries = 0;
    let zone = session.zone.clone();
    let output = &mut session.output;
    let mut columns = Columns::default();
    loop {
        let sealed = match log.next_piece()? {
            Some(Piece::Entry(Logged { sealed, .. })) => sealed,
            Some(Piece::Damage(damage)) => {
                output.flush()?;
                note(damage.text());
                continue;
            }
            None if follow => {
                output.flush()?;
                log.wait();
                continue;
            }
            None => return Ok(entries),
        };
        if !selection.takes_entry(sealed.entry()) {
            continue;
        }
        entries += 1;
        let diffs: Vec<&Diff> = sealed.entry().diffs.iter().filter(|diff| selection.takes_diff(diff)).collect();
        match format {
            Format::Json => output.json(&EntryView::of(&sealed, &diffs, &zone))?,
            Format::Paper => {
                for diff in diffs {
                    output.line(paper::format_change(&diff.file, &diff.change))?;
                }
            }
            Format::Text => text(&sealed, &diffs, &zone, &mut columns, output)?,
        }
    }
}

/// Widths that only grow, so that a stream of lines stays aligned.
#[derive(Debug, Default)]
struct Columns {
    id: usize,
    author: usize,
    file: usize,
}

fn text(
    sealed: &Sealed,
    diffs: &[&Diff],
    zone: &TimeZone,
    columns: &mut Columns,
    output: &mut Output,
) -> Result<(), Failure> {
    let entry = sealed.entry();
    let (id, author) = (entry.id.to_string(), printable(&entry.author));
    columns.id = columns.id.max(id.chars().count());
    columns.author = columns.author.max(author.chars().count());
    for diff in diffs {
        columns.file = columns.file.max(diff.file.as_str().len());
    }
    let (id_width, author_width, file_width) = (columns.id, columns.author, columns.file);
    let time = format_ms(entry.time.wall_ms(), zone);
    let blank = " ".repeat(time.len() + id_width + author_width + 4);
    let head = format!("{}  {id:<id_width$}  {author:<author_width$}", output.paint(Style::Dim, &time));
    let reason = match entry.reason.as_str() {
        "" => String::new(),
        reason => output.paint(Style::Dim, format_args!("  # {}", printable(reason))),
    };
    if diffs.is_empty() {
        let what = if entry.certificate.is_some() { "(opens its stream)" } else { "(no change)" };
        return output.line(format_args!("{head}  {}{reason}", output.paint(Style::Dim, what)));
    }
    for (index, diff) in diffs.iter().enumerate() {
        let (style, change) = match &diff.change {
            Change::Add(record) => (Style::Added, format!("Add  {record}")),
            Change::Del(record) => (Style::Deleted, format!("Del  {record}")),
            Change::Mod { before, after } => (Style::Modified, format!("Mod  {before}  =>  {after}")),
        };
        let front = if index == 0 { &head } else { &blank };
        let tail = if index == 0 { reason.as_str() } else { "" };
        let change = output.paint(style, change);
        output.line(format_args!("{front}  {:<file_width$}  {change}{tail}", diff.file))?;
    }
    Ok(())
}

/// An entry as JSON.
#[derive(Debug, Serialize)]
pub struct EntryView<'a> {
    entry: String,
    origin: &'a ServerName,
    time: String,
    time_ms: u64,
    class: &'static str,
    author: &'a str,
    reason: &'a str,
    hash: String,
    previous: String,
    /// Whether this entry carries the signature of its group.
    signed: bool,
    /// Whether it opens its stream.
    opens: bool,
    diffs: Vec<DiffView<'a>>,
}

#[derive(Debug, Serialize)]
struct DiffView<'a> {
    file: &'a FileName,
    key: &'a str,
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'a Record>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a Record>,
    /// The entries whose writes this one builds on.
    bases: Vec<String>,
}

impl<'a> EntryView<'a> {
    pub fn of(sealed: &'a Sealed, diffs: &[&'a Diff], zone: &TimeZone) -> Self {
        let entry = sealed.entry();
        Self {
            entry: entry.id.to_string(),
            origin: &entry.id.stream.origin,
            time: format_ms(entry.time.wall_ms(), zone),
            time_ms: entry.time.wall_ms(),
            class: entry.class.name(),
            author: &entry.author,
            reason: &entry.reason,
            hash: sealed.hash().to_string(),
            previous: entry.previous.to_string(),
            signed: sealed.signature().is_some(),
            opens: entry.certificate.is_some(),
            diffs: diffs.iter().map(|diff| DiffView::of(diff)).collect(),
        }
    }
}

impl<'a> DiffView<'a> {
    fn of(diff: &'a Diff) -> Self {
        let (change, before, after) = match &diff.change {
            Change::Add(record) => ("add", None, Some(record)),
            Change::Del(record) => ("del", Some(record), None),
            Change::Mod { before, after } => ("mod", Some(before), Some(after)),
        };
        let bases = diff.bases.iter().map(|version| version.entry.to_string()).collect();
        Self { file: &diff.file, key: &diff.key, change, before, after, bases }
    }
}

fn time_now(text: &str) -> Result<u64, String> {
    parse_time(text, &Zoned::now())
}
