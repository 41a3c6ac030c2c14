//! `p2pdb files`: read and change the management files through the daemon.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::edits::{EditArgs, edit_of, tell};
use super::error::{Answer, Failure, Outcome};
use super::output::{Style, printable};
use super::time::format_ms;
use super::{DirectoryArgs, Session, dump, files_edit, on_behalf_of, paper};
use crate::core::diff::Change;
use crate::core::id::{Digest, FileName};
use crate::core::io::Edit;
use crate::core::merge::{Files, Written};
use crate::core::record::Record;
use crate::core::schema::Schema;
use crate::core::version::Vector;
use crate::edge::control::{Conflict, FileSummary, Keep, KeyedRegister, Request, Resolve, Response};

/// Largest input of `apply`, in bytes.
const APPLY_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Subcommand)]
pub enum FilesCommand {
    /// The files there are
    List(ListArgs),
    /// The records of one file
    Show(ShowArgs),
    /// Add a record: p2pdb files add Group 'S2'
    Add(AddArgs),
    /// Delete a record: p2pdb files del Group 'S2'
    Del(DelArgs),
    /// Change a record: p2pdb files mod Problem '---, S2, ---' 'S2b, S2, S6'
    Mod(ModArgs),
    /// Several changes as one transaction, from lines such as "Group, Del, S2"
    Apply(ApplyArgs),
    /// Edit a file in $VISUAL or $EDITOR
    Edit(files_edit::FilesEditArgs),
    /// Every change of a file or of one of its records, from the log
    History(HistoryArgs),
    /// Edits that lost against another one and wait to be looked at
    Conflicts(ConflictsArgs),
    /// Settle the conflict of one record
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Name of the management file
    file: FileName,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// Name of the management file
    file: FileName,
    /// The record, fields separated by commas: 'S2b, S2, S6'
    #[arg(value_parser = parse_record, allow_hyphen_values = true)]
    record: Record,
    #[command(flatten)]
    edit: EditArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct DelArgs {
    /// Name of the management file
    file: FileName,
    /// The whole record, as `files show` prints it
    #[arg(value_parser = parse_record, allow_hyphen_values = true)]
    record: Record,
    #[command(flatten)]
    edit: EditArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct ModArgs {
    /// Name of the management file
    file: FileName,
    /// The whole record, as `files show` prints it
    #[arg(value_parser = parse_record, allow_hyphen_values = true)]
    before: Record,
    /// The record as it shall be
    #[arg(value_parser = parse_record, allow_hyphen_values = true)]
    after: Record,
    #[command(flatten)]
    edit: EditArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Where the lines are; - is standard input
    #[arg(default_value = "-")]
    path: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Name of the management file
    file: FileName,
    /// Only of the record with this key
    key: Option<String>,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub struct ConflictsArgs {
    /// Only of this management file
    file: Option<FileName>,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
#[group(id = "value", required = true, multiple = false, args = ["keep", "record"])]
pub struct ResolveArgs {
    /// Name of the management file
    file: FileName,
    /// The record's key, as `files conflicts` prints it
    key: String,
    /// Keep one of the values that `files conflicts` lists: 0 is the one in force
    #[arg(long, value_name = "winner|NUMBER", value_parser = parse_keep)]
    keep: Option<usize>,
    /// Give the record a new value
    #[arg(long, value_parser = parse_record, allow_hyphen_values = true)]
    record: Option<Record>,
    #[command(flatten)]
    edit: EditArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub fn run(command: FilesCommand, session: &mut Session) -> Outcome {
    match command {
        FilesCommand::List(args) => list(&args, session),
        FilesCommand::Show(args) => show(&args, session),
        FilesCommand::Add(args) => {
            let edits = vec![edit_of(args.file, Change::Add(args.record))];
            submit(edits, &args.edit, &args.directory, session)
        }
        FilesCommand::Del(args) => {
            let edits = vec![edit_of(args.file, Change::Del(args.record))];
            submit(edits, &args.edit, &args.directory, session)
        }
        FilesCommand::Mod(args) => {
            let change = Change::Mod { before: args.before, after: args.after };
            let schema = |directory: &DirectoryArgs, file: &FileName| Ok(fetch(directory, file)?.schema);
            let edits = change_of_key(args.file, change, |file| schema(&args.directory, file))?;
            submit(edits, &args.edit, &args.directory, session)
        }
        FilesCommand::Apply(args) => apply(&args, session),
        FilesCommand::Edit(args) => files_edit::run(&args, session),
        FilesCommand::History(args) => dump::history(&args.directory.directory, args.file, args.key, session),
        FilesCommand::Conflicts(args) => conflicts(&args, session),
        FilesCommand::Resolve(args) => resolve(args, session),
    }
}

/// A file as the daemon holds it.
pub struct Fetched {
    pub digest: Digest,
    pub schema: Schema,
    /// Holds this one file.
    pub files: Files,
}

/// Gets a whole file from the daemon, in one state.
pub fn fetch(directory: &DirectoryArgs, file: &FileName) -> Result<Fetched, Failure> {
    let mut fetched = Fetched { digest: Digest::ZERO, schema: Schema::any(), files: Files::default() };
    let mut registers: Vec<Written> = Vec::new();
    for response in directory.connect()?.call_all(&Request::FileRead { file: file.clone() })? {
        let part = match response {
            Response::File(part) => part,
            other => return Err(Failure::of_response(other)),
        };
        fetched.digest = part.digest;
        let declared = part.schema.and_then(|record| Schema::from_record(&record).ok());
        fetched.schema = Schema::builtin(file).or(declared.map(|(_, schema)| schema)).unwrap_or_else(Schema::any);
        for KeyedRegister { key, register } in part.registers {
            match registers.last_mut().filter(|last| last.key == key) {
                Some(Written { register: begun, .. }) => {
                    begun.leaves.extend(register.leaves);
                    begun.early.extend(register.early);
                }
                None => registers.push(Written { file: file.clone(), key, register }),
            }
        }
    }
    fetched.files = Files::restore(registers, Vector::default());
    Ok(fetched)
}

fn list(args: &ListArgs, session: &mut Session) -> Outcome {
    let files = match args.directory.call(&Request::FilesList)? {
        Response::Files(files) => files,
        other => return Err(Failure::of_response(other)),
    };
    if session.output.is_json() {
        for file in &files {
            session.output.json(file)?;
        }
        return Ok(Answer::Yes);
    }
    let rows = files.into_iter().map(|FileSummary { file, records, digest, conflicts }| {
        vec![file.to_string(), records.to_string(), conflicts.to_string(), digest.short()]
    });
    session.output.table(&["FILE", "RECORDS", "CONFLICTS", "DIGEST"], &[1, 2], rows.collect())?;
    Ok(Answer::Yes)
}

fn show(args: &ShowArgs, session: &mut Session) -> Outcome {
    let fetched = fetch(&args.directory, &args.file)?;
    let held = fetched.files.file(&args.file);
    let exists = held.is_some_and(|file| !file.is_empty());
    if session.output.is_json() {
        #[derive(Serialize)]
        struct View<'a> {
            file: &'a FileName,
            digest: String,
            records: Vec<RecordView<'a>>,
        }
        #[derive(Serialize)]
        struct RecordView<'a> {
            key: &'a str,
            record: &'a Record,
            conflicts: usize,
        }
        let records = held.into_iter().flat_map(|file| file.registers());
        let records = records.filter_map(|(key, register)| {
            Some(RecordView { key, record: register.value()?, conflicts: register.conflicts().count() })
        });
        let view = View { file: &args.file, digest: fetched.digest.to_string(), records: records.collect() };
        session.output.json(&view)?;
    } else {
        for (_, record) in held.into_iter().flat_map(|file| file.records()) {
            session.output.line(record)?;
        }
    }
    if !exists {
        super::output::note(format_args!("{} has no records", args.file));
    }
    Ok(if exists { Answer::Yes } else { Answer::No })
}

fn submit(edits: Vec<Edit>, args: &EditArgs, directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let edited = args.submit(directory, &args.request(edits))?;
    tell(&mut session.output, &edited, args.timeout)
}

fn apply(args: &ApplyArgs, session: &mut Session) -> Outcome {
    let shown = if args.path.as_os_str() == "-" { "standard input".into() } else { args.path.display().to_string() };
    let unreadable = |error: std::io::Error| Failure::storage(format!("{shown}: cannot be read: {error}"), "");
    let mut text = String::new();
    if args.path.as_os_str() == "-" {
        std::io::stdin().lock().take(APPLY_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    } else {
        let file = std::fs::File::open(&args.path).map_err(unreadable)?;
        file.take(APPLY_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    }
    if text.len() as u64 > APPLY_BYTES_MAX {
        return Err(Failure::input(format!("{shown} is larger than {APPLY_BYTES_MAX} bytes"), "apply it in parts"));
    }
    let mut edits = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (file, change) = paper::parse_change(line).map_err(|why| {
            Failure::input(
                format!("{shown}, line {}: {why}", index + 1),
                "correct the line and apply all of it again: it is one transaction",
            )
        })?;
        edits.extend(change_of_key(file, change, |file| Ok(fetch(&args.directory, file)?.schema))?);
    }
    if edits.is_empty() {
        return Err(Failure::input(format!("{shown} has no changes"), "write lines such as: Group, Del, S2"));
    }
    submit(edits, &args.edit, &args.directory, session)
}

/// A change of the key itself is a Del and an Add; the schema is asked for only if that may be.
fn change_of_key(
    file: FileName,
    change: Change,
    schema: impl FnOnce(&FileName) -> Result<Schema, Failure>,
) -> Result<Vec<Edit>, Failure> {
    let Change::Mod { before, after } = &change else { return Ok(vec![edit_of(file, change)]) };
    let schema = match Schema::builtin(&file) {
        Some(schema) => schema,
        None if before.field(0) == after.field(0) && before.field_count() == after.field_count() => Schema::any(),
        None => schema(&file)?,
    };
    let key = |record: &Record| schema.check(&file, record).ok();
    match (key(before), key(after)) {
        (Some(one), Some(other)) if one != other => {
            let (before, after) = (before.clone(), after.clone());
            Ok(vec![edit_of(file.clone(), Change::Del(before)), edit_of(file, Change::Add(after))])
        }
        _ => Ok(vec![edit_of(file, change)]),
    }
}

fn fetch_conflicts(directory: &DirectoryArgs, file: Option<FileName>) -> Result<Vec<Conflict>, Failure> {
    let mut all = Vec::new();
    for response in directory.connect()?.call_all(&Request::Conflicts { file })? {
        match response {
            Response::Conflicts(conflicts) => all.extend(conflicts),
            other => return Err(Failure::of_response(other)),
        }
    }
    Ok(all)
}

fn conflicts(args: &ConflictsArgs, session: &mut Session) -> Outcome {
    let conflicts = fetch_conflicts(&args.directory, args.file.clone())?;
    let output = &mut session.output;
    for conflict in &conflicts {
        if output.is_json() {
            output.json(conflict)?;
            continue;
        }
        output.line(output.paint(Style::Heading, format_args!("{}: {}", conflict.file, conflict.key)))?;
        for (index, leaf) in conflict.leaves.iter().enumerate() {
            let value = leaf.record.as_ref().map_or_else(|| "(deleted)".to_owned(), Record::to_string);
            let mark = if index == 0 { "in force" } else { "lost" };
            let time = format_ms(leaf.time_ms, &session.zone);
            output.line(format_args!("  {index}  {mark:<8}  {time}  {}  {value}", leaf.entry))?;
        }
        if conflict.further > 0 {
            output.line(format_args!("  and {} more; settle these first", conflict.further))?;
        }
    }
    if conflicts.is_empty() && !output.is_json() {
        output.line("no conflicts")?;
    } else if !output.is_json() {
        let how = "Settle one with: p2pdb files resolve FILE KEY --keep NUMBER, or --record 'RECORD'";
        output.line(output.paint(Style::Dim, how))?;
    }
    Ok(Answer::Yes)
}

fn resolve(args: ResolveArgs, session: &mut Session) -> Outcome {
    let keep = match (args.keep, args.record) {
        (_, Some(record)) => Keep::Record(record),
        (Some(0), None) => Keep::Winner,
        (index, None) => {
            let index = index.unwrap_or(0);
            let conflicts = fetch_conflicts(&args.directory, Some(args.file.clone()))?;
            let conflict = conflicts.iter().find(|conflict| conflict.key == args.key).ok_or_else(|| {
                Failure::input(
                    format!("{} has no conflict at '{}'", args.file, printable(&args.key)),
                    "list them with: p2pdb files conflicts",
                )
            })?;
            let leaf = conflict.leaves.get(index).ok_or_else(|| {
                Failure::input(
                    format!("the conflict has the values 0 to {}, not {index}", conflict.leaves.len() - 1),
                    "list them with: p2pdb files conflicts",
                )
            })?;
            Keep::Leaf { index, entry: leaf.entry.clone() }
        }
    };
    let request = Request::Resolve(Resolve {
        file: args.file,
        key: args.key,
        keep,
        on_behalf_of: on_behalf_of(),
        reason: args.edit.reason.clone(),
        wait: args.edit.wait.into(),
        timeout_ms: args.edit.timeout_ms(),
    });
    let edited = args.edit.submit(&args.directory, &request)?;
    tell(&mut session.output, &edited, args.edit.timeout)
}

fn parse_record(text: &str) -> Result<Record, String> {
    Record::parse(text).map_err(|error| error.to_string())
}

fn parse_keep(text: &str) -> Result<usize, String> {
    match text {
        "winner" => Ok(0),
        number => number.parse().map_err(|_| "write winner, or a number that `files conflicts` shows".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(file: &str, before: &str, after: &str) -> Vec<Change> {
        let change = Change::Mod { before: Record::parse(before).unwrap(), after: Record::parse(after).unwrap() };
        let edits = change_of_key(FileName::new(file).unwrap(), change, |_| Ok(Schema::any())).unwrap();
        edits.into_iter().map(|edit| edit.change).collect()
    }

    #[test]
    fn another_key_is_another_record() {
        assert!(matches!(edits("Problem", "---, S2, ---", "S2b, S2, S6")[..], [Change::Mod { .. }]));
        assert!(matches!(edits("Group", "S2", "S3")[..], [Change::Del(_), Change::Add(_)]));
        assert!(matches!(edits("Notes", "a, 1", "b, 1")[..], [Change::Del(_), Change::Add(_)]));
        assert!(matches!(edits("Notes", "a, 1", "a, 2")[..], [Change::Mod { .. }]));
    }
}
