//! `p2pdb replay`: the files as they were at some point of the log, what changed between two points, and whether a
//! server's files are what its log says.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use jiff::Zoned;

use super::error::{Answer, Failure, Outcome};
use super::log::{Log, Logged, Piece};
use super::output::{Output, Style, note, progress};
use super::time::{FORMS, parse_time};
use super::{Session, paper};
use crate::core::diff::Change;
use crate::core::entry::Entry;
use crate::core::id::{EntryId, FileName, Lane, Stream};
use crate::core::merge::{Files, Written};
use crate::core::oplog::Checkpoint;
use crate::core::record::Record;
use crate::core::text::{KeyedChange, Records, difference};
use crate::core::version::Vector;

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Servers' directories, log folders, segments or archives
    #[arg(value_name = "PATH", required_unless_present = "check")]
    paths: Vec<PathBuf>,
    /// The files as of a time, or as after this entry
    #[arg(long, value_name = "TIME|ENTRY")]
    at: Option<Point>,
    /// Only this file
    #[arg(long)]
    file: Option<FileName>,
    /// What changed from one point to another
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "at")]
    diff: Option<Vec<Point>>,
    /// Prove that the files of the server in DIR are what its log says
    #[arg(long, value_name = "DIR", conflicts_with_all = ["at", "diff"])]
    check: Option<PathBuf>,
}

/// A point of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Point {
    /// Everything that was written up to then, by the clocks of those who wrote it, in ms since the Unix epoch.
    Time(u64),
    /// Everything that lies in this log up to this entry, the entry included.
    Entry(EntryId),
    /// Everything that a vector names, from the entries themselves or from a checkpoint within it.
    Seen {
        vector: Vector,
        from_checkpoints: bool,
    },
    End,
}

impl FromStr for Point {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // The time first: 12:30:00 could be an entry of a server that is called 12.
        if let Ok(time) = parse_time(text, &Zoned::now()) {
            return Ok(Point::Time(time));
        }
        text.parse()
            .map(Point::Entry)
            .map_err(|_| format!("'{text}' is no entry such as mail:6a91f3c2:12, and no time; write {FORMS}"))
    }
}

pub fn run(args: ReplayArgs, session: &mut Session) -> Outcome {
    if let Some(directory) = args.check {
        return check::check(&args.paths, directory, args.file.as_ref(), session);
    }
    match args.diff.as_deref() {
        Some([from, to]) => {
            let states = fold(Log::open(&args.paths)?, &[from.clone(), to.clone()])?;
            let [before, after] = states.as_slice() else { unreachable!("one state for each point") };
            show_difference(&before.files, &after.files, args.file.as_ref(), &mut session.output)?;
        }
        _ => {
            let states = fold(Log::open(&args.paths)?, &[args.at.unwrap_or(Point::End)])?;
            for state in &states {
                show_files(&state.files, args.file.as_ref(), &mut session.output)?;
            }
        }
    }
    Ok(Answer::Yes)
}

/// The files as they are at the end of a log.
pub(super) fn files_at_end(paths: &[PathBuf]) -> Result<Files, Failure> {
    let mut states = fold(Log::open(paths)?, &[Point::End])?;
    Ok(states.pop().map(|state| state.files).unwrap_or_default())
}

/// The files at each point, in one pass over the log.
fn fold(mut log: Log, points: &[Point]) -> Result<Vec<Folded>, Failure> {
    let bar = progress(0, "replaying");
    let checkpoints: Vec<Checkpoint> = log.checkpoints().cloned().collect();
    let mut folds: Vec<Fold> = points.iter().map(|point| Fold::new(point.clone(), &checkpoints)).collect();
    while let Some(piece) = log.next_piece()? {
        match piece {
            Piece::Entry(Logged { sealed, .. }) => folds.iter_mut().try_for_each(|fold| fold.take(sealed.entry()))?,
            Piece::Damage(damage) => note(damage.text()),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    folds.into_iter().map(Fold::finish).collect()
}

/// The files up to one point.
struct Fold<'a> {
    point: Point,
    files: Files,
    passed: bool,
    /// Hold what the log does not hold any more.
    checkpoints: &'a [Checkpoint],
    /// Volatile entries are missing, so volatile files may be, too.
    volatile_lost: bool,
    /// Of each stream the first entry of the log that is behind a point in time.
    behind: BTreeMap<Stream, u64>,
}

/// What came out of a fold.
struct Folded {
    files: Files,
    volatile_lost: bool,
}

impl<'a> Fold<'a> {
    fn new(point: Point, checkpoints: &'a [Checkpoint]) -> Self {
        Self {
            point,
            files: Files::default(),
            passed: false,
            checkpoints,
            volatile_lost: false,
            behind: BTreeMap::new(),
        }
    }

    fn take(&mut self, entry: &Entry) -> Result<(), Failure> {
        let id = &entry.id;
        let wanted = match &self.point {
            // Within a stream times grow, so what is taken of it has no gap.
            Point::Time(ms) => entry.time.wall_ms() <= *ms,
            Point::Entry(_) => !self.passed,
            Point::Seen { vector, .. } => vector.holds(id),
            Point::End => true,
        };
        if !wanted && matches!(self.point, Point::Time(_)) {
            self.behind.entry(id.stream.clone()).or_insert(id.seq);
        }
        if wanted && id.seq > self.files.seen().seq(&id.stream) + 1 {
            self.leap(id)?;
        }
        if wanted && id.seq > self.files.seen().seq(&id.stream) {
            self.files.apply(entry);
        }
        self.passed |= matches!(&self.point, Point::Entry(point) if point == id);
        Ok(())
    }

    /// Goes on where the log lacks the entries before `id`: they are in a checkpoint, or were volatile.
    fn leap(&mut self, id: &EntryId) -> Result<(), Failure> {
        let held = self.files.seen().seq(&id.stream);
        let covers = |checkpoint: &&Checkpoint| checkpoint.files.seen().seq(&id.stream) + 1 >= id.seq;
        let covering = self.checkpoints.iter().find(covers);
        if let Some(checkpoint) = covering.filter(|checkpoint| self.may_use(checkpoint, id)) {
            self.files.merge(&checkpoint.files);
        } else if id.stream.lane == Lane::Volatile {
            let mut seen = self.files.seen().clone();
            seen.raise(&id.stream, id.seq - 1);
            self.files = Files::restore(registers(&self.files), seen);
            self.volatile_lost = true;
        } else if covering.is_some() {
            return Err(before_the_beginning());
        } else {
            return Err(Failure::storage(
                format!("the entries {} of {} are missing before {id}", gap(held + 1, id.seq - 1), id.stream),
                "give the archives or the other part of the log, too; verify tells what is there",
            ));
        }
        Ok(())
    }

    /// Whether nothing in a checkpoint is behind the point.
    fn may_use(&self, checkpoint: &Checkpoint, next: &EntryId) -> bool {
        match &self.point {
            Point::Time(ms) => checkpoint.heads.values().all(|head| head.time.wall_ms() <= *ms),
            // What a checkpoint holds came before what the log goes on with.
            Point::Entry(_) => checkpoint.files.seen().seq(&next.stream) + 1 == next.seq,
            Point::Seen { vector, from_checkpoints } => *from_checkpoints && vector.covers(checkpoint.files.seen()),
            Point::End => true,
        }
    }

    /// Takes the checkpoints that a point in time is not before. Where the log does not say what was then, nothing is guessed.
    fn finish_at(&mut self, ms: u64) -> Result<(), Failure> {
        self.merge_checkpoints(|checkpoint| checkpoint.heads.values().all(|head| head.time.wall_ms() <= ms));
        let is_unknown = |(stream, seq): (&Stream, u64)| {
            let held = self.files.seen().seq(stream);
            stream.lane == Lane::Audit && seq > held && self.behind.get(stream) != Some(&(held + 1))
        };
        match self.checkpoints.iter().any(|checkpoint| checkpoint.files.seen().iter().any(is_unknown)) {
            true => Err(before_the_beginning()),
            false => Ok(()),
        }
    }

    fn merge_checkpoints(&mut self, may_use: impl Fn(&Checkpoint) -> bool) {
        for checkpoint in self.checkpoints {
            if may_use(checkpoint) && !self.files.seen().covers(checkpoint.files.seen()) {
                self.files.merge(&checkpoint.files);
            }
        }
    }

    fn finish(mut self) -> Result<Folded, Failure> {
        match &self.point {
            Point::Entry(id) if !self.passed => {
                return Err(Failure::input(
                    format!("the entry {id} is not in this log"),
                    "p2pdb dump shows the entries that are",
                ));
            }
            Point::Time(ms) => {
                let ms = *ms;
                self.finish_at(ms)?;
            }
            // Streams that have ended, and of which the log holds nothing any more.
            Point::End => self.merge_checkpoints(|_| true),
            Point::Seen { vector, from_checkpoints: true } => {
                let vector = vector.clone();
                self.merge_checkpoints(|checkpoint| vector.covers(checkpoint.files.seen()));
            }
            _ => {}
        }
        Ok(Folded { files: self.files, volatile_lost: self.volatile_lost })
    }
}

fn before_the_beginning() -> Failure {
    Failure::input(
        "this point lies before the beginning of the log, in its checkpoint",
        "give the archives, too, or the log of a server that still has them",
    )
}

fn gap(from: u64, to: u64) -> String {
    if from == to { from.to_string() } else { format!("{from} to {to}") }
}

fn registers(files: &Files) -> Vec<Written> {
    let all = files.iter().flat_map(|(name, file)| file.registers().map(move |(key, register)| (name, key, register)));
    all.map(|(file, key, register)| Written { file: file.clone(), key: key.to_owned(), register: register.clone() })
        .collect()
}

fn selected<'a>(files: &'a Files, only: Option<&FileName>) -> BTreeSet<&'a FileName> {
    files.iter().map(|(name, _)| name).filter(|name| only.is_none_or(|only| only == *name)).collect()
}

fn show_files(files: &Files, only: Option<&FileName>, output: &mut Output) -> Result<(), Failure> {
    for (index, name) in selected(files, only).into_iter().enumerate() {
        let Some(held) = files.file(name) else { continue };
        if output.is_json() {
            let records: Vec<&Record> = held.records().map(|(_, record)| record).collect();
            output.json(&serde_json::json!({
                "file": name, "digest": held.digest().to_string(), "records": records,
            }))?;
            continue;
        }
        if only.is_none() {
            if index > 0 {
                output.line("")?;
            }
            output.line(output.paint(Style::Heading, format_args!("# {name}")))?;
        }
        for (_, record) in held.records() {
            output.line(record)?;
        }
    }
    if let Some(name) = only.filter(|name| files.file(name).is_none_or(|held| held.is_empty())) {
        note(format_args!("{name} had no records at this point"));
    }
    Ok(())
}

fn show_difference(before: &Files, after: &Files, only: Option<&FileName>, output: &mut Output) -> Result<(), Failure> {
    let names: BTreeSet<_> = selected(before, only).into_iter().chain(selected(after, only)).collect();
    for name in names {
        for KeyedChange { key, change } in difference(&records(before, name), &records(after, name)) {
            if output.is_json() {
                let (kind, before, after) = match &change {
                    Change::Add(record) => ("add", None, Some(record)),
                    Change::Del(record) => ("del", Some(record), None),
                    Change::Mod { before, after } => ("mod", Some(before), Some(after)),
                };
                output.json(&serde_json::json!({
                    "file": name, "key": key, "change": kind, "before": before, "after": after,
                }))?;
                continue;
            }
            let style = match &change {
                Change::Add(_) => Style::Added,
                Change::Del(_) => Style::Deleted,
                Change::Mod { .. } => Style::Modified,
            };
            output.line(output.paint(style, paper::format_change(name, &change)))?;
        }
    }
    Ok(())
}

fn records(files: &Files, name: &FileName) -> Records {
    let held = files.file(name).into_iter().flat_map(|file| file.records());
    held.map(|(key, record)| (key.to_owned(), record.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::Author;
    use super::*;
    use crate::core::oplog::Head;

    fn folded(point: Point, entries: &[std::sync::Arc<crate::core::entry::Sealed>]) -> Result<String, String> {
        let mut fold = Fold::new(point, &[]);
        let text = |failure: Failure| failure.report().unwrap().what;
        entries.iter().try_for_each(|sealed| fold.take(sealed.entry())).map_err(text)?;
        let files = fold.finish().map_err(text)?.files;
        Ok(files.file(&FileName::new("Notes").unwrap()).map(|file| file.text()).unwrap_or_default())
    }

    #[test]
    fn what_could_be_a_time_or_an_entry_is_a_time() {
        for time in ["12:30:00", "2026-11-22T12:00:00", "2026-11-22 12:00", "yesterday 18:00", "now"] {
            assert!(matches!(time.parse(), Ok(Point::Time(_))), "{time}");
        }
        assert!(matches!("mail:6a91f3c2:12".parse(), Ok(Point::Entry(_))));
        assert!("mail".parse::<Point>().unwrap_err().contains("no time; write "));
    }

    #[test]
    fn points_are_times_and_entries() {
        let mut author = Author::new("S1");
        let entries = [author.add("Notes", "a, 1"), author.add("Notes", "b, 2"), author.add("Notes", "c, 3")];
        assert_eq!(folded(Point::End, &entries).unwrap(), "a, 1\nb, 2\nc, 3\n");
        assert_eq!(folded(Point::Entry(entries[1].id().clone()), &entries).unwrap(), "a, 1\nb, 2\n");
        let time = Point::Time(entries[0].entry().time.wall_ms());
        assert_eq!(folded(time, &entries).unwrap(), "a, 1\n");
        assert_eq!(folded(Point::Time(0), &entries).unwrap(), "");
        let unknown = Point::Entry("S9:00000001:1".parse().unwrap());
        assert!(folded(unknown, &entries).unwrap_err().contains("not in this log"));
    }

    #[test]
    fn the_same_entries_twice_are_one_and_a_gap_is_told() {
        let mut author = Author::new("S1");
        let entries = [author.add("Notes", "a, 1"), author.add("Notes", "b, 2"), author.add("Notes", "c, 3")];
        let twice: Vec<_> = entries.iter().chain(&entries).cloned().collect();
        assert_eq!(folded(Point::End, &twice).unwrap(), "a, 1\nb, 2\nc, 3\n");
        let gap = [entries[0].clone(), entries[2].clone()];
        assert!(folded(Point::End, &gap).unwrap_err().starts_with("the entries 2 of S1:"));
    }

    #[test]
    fn what_the_log_lacks_comes_from_a_checkpoint() {
        let mut author = Author::new("S1");
        let entries = [author.add("Notes", "a, 1"), author.add("Notes", "b, 2"), author.add("Notes", "c, 3")];
        let mut checkpoint = Checkpoint::default();
        entries[..2].iter().for_each(|sealed| checkpoint.files.apply(sealed.entry()));
        let checkpoints = [checkpoint];
        let fold = |point: Point, entries: &[std::sync::Arc<crate::core::entry::Sealed>]| {
            let mut fold = Fold::new(point, &checkpoints);
            entries.iter().try_for_each(|sealed| fold.take(sealed.entry()))?;
            fold.finish()
        };
        let len = |folded: Result<Folded, Failure>| {
            folded.map(|folded| folded.files.iter().map(|(_, file)| file.len()).sum())
        };
        assert_eq!(len(fold(Point::End, &entries[2..])).ok(), Some(3_usize));
        assert_eq!(len(fold(Point::End, &[])).ok(), Some(2));
        assert_eq!(len(fold(Point::Entry(entries[2].id().clone()), &entries[2..])).ok(), Some(3));
        let vector = checkpoints[0].files.seen().clone();
        assert_eq!(len(fold(Point::Seen { vector, from_checkpoints: true }, &[])).ok(), Some(2));
    }

    #[test]
    fn a_time_before_the_beginning_of_a_log_is_told_and_one_behind_it_is_shown() {
        let mut author = Author::new("S1");
        let entries = [author.add("Notes", "a, 1"), author.add("Notes", "b, 2"), author.add("Notes", "c, 3")];
        let mut checkpoint = Checkpoint::default();
        for sealed in &entries[..2] {
            checkpoint.files.apply(sealed.entry());
            let head = Head::after(checkpoint.heads.get(&sealed.id().stream), sealed);
            checkpoint.heads.insert(sealed.id().stream.clone(), head);
        }
        let checkpoints = [checkpoint];
        let at = |ms: u64, entries: &[std::sync::Arc<crate::core::entry::Sealed>]| {
            let mut fold = Fold::new(Point::Time(ms), &checkpoints);
            entries.iter().try_for_each(|sealed| fold.take(sealed.entry()))?;
            fold.finish().map(|folded| folded.files.iter().map(|(_, file)| file.len()).sum::<usize>())
        };
        let times = entries.each_ref().map(|sealed| sealed.entry().time.wall_ms());
        assert!(times[0] < times[1] && times[1] < times[2], "{times:?}");
        for early in [0, times[0]] {
            let told = at(early, &entries[2..]).map_err(|failure| failure.report().unwrap().what);
            assert!(told.as_ref().is_err_and(|what| what.contains("before the beginning")), "{told:?}");
        }
        assert_eq!(at(times[1], &entries[2..]).ok(), Some(2));
        assert_eq!(at(times[2], &entries[2..]).ok(), Some(3));
        assert_eq!(at(times[0], &entries).ok(), Some(1), "the archives are there");
    }

    #[test]
    fn dropped_volatile_entries_are_no_gap() {
        let mut author = Author::new("S1");
        author.volatile();
        let rows: Vec<_> = (0..3).map(|load| author.add("Condition", &format!("S1, {load}, 1, 1, 0"))).collect();
        let mut fold = Fold::new(Point::End, &[]);
        fold.take(rows[0].entry()).unwrap();
        fold.take(rows[2].entry()).unwrap();
        let folded = fold.finish().unwrap();
        assert!(folded.volatile_lost);
        assert_eq!(folded.files.seen().seq(&rows[0].id().stream), 3);
    }
}
