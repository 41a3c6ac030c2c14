//! `p2pdb replay --check DIR`: proves that a server's view, and its checkpoint, are what its log says.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::error::{Answer, Failure, Outcome, Report};
use super::super::log::Log;
use super::super::output::{Output, Style};
use super::super::{ANSWER_TIMEOUT, DirectoryArgs, Session, files};
use super::{Folded, Point, fold, registers, selected};
use crate::core::id::{FileName, Lane};
use crate::core::merge::{Files, Register};
use crate::core::oplog::Checkpoint;
use crate::core::record::Record;
use crate::core::schema::Schema;
use crate::edge::certificate::CertificateDirectory;
use crate::edge::control::{Client, ClientError, FileSummary, Request, Response};
use crate::edge::lock::DirectoryLock;
use crate::edge::view::View;

/// How often a running server's files are compared anew, for the log goes on meanwhile.
const CHECK_ATTEMPTS_MAX: usize = 5;

pub fn check(paths: &[PathBuf], directory: PathBuf, only: Option<&FileName>, session: &mut Session) -> Outcome {
    let paths = if paths.is_empty() { vec![directory.clone()] } else { paths.to_vec() };
    let authority = CertificateDirectory::new(directory.join("certs")).load_authority_certificate()?;
    Log::open(&paths)?.expect_cluster(authority.cluster())?;
    let mut attempt = 1;
    let (found, files) = loop {
        // The view of a daemon at work is of some moment between two readings of the log.
        let earlier = match Client::connect(&directory) {
            Ok(_) => Some(fold(Log::open(&paths)?, &[Point::End])?.remove(0)),
            Err(_) => None,
        };
        let view = view_of(&directory)?;
        let point = match view.moves {
            true => Point::End,
            // After a crash the view may be behind, and is brought up to date at the next start.
            false => Point::Seen { vector: view.files.seen().clone(), from_checkpoints: true },
        };
        let log = fold(Log::open(&paths)?, &[point])?.remove(0);
        let mut found = compare(&log.files, &view.files, only);
        if let Some(earlier) = earlier.filter(|_| view.moves) {
            // What was written meanwhile can be neither right nor wrong.
            let register = |files: &Files, one: &Discrepancy| {
                files.file(&one.file).and_then(|file| file.register(&one.key)).map(|register| register.leaves.clone())
            };
            found.retain(|one| register(&earlier.files, one) == register(&log.files, one));
        }
        if found.is_empty() || !view.moves || attempt == CHECK_ATTEMPTS_MAX {
            break (found, selected(&log.files, only).len());
        }
        attempt += 1;
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    if let Some(only) = only.filter(|_| files == 0 && found.is_empty()) {
        return Err(Failure::input(format!("neither the log nor the view has a file {only}"), "see p2pdb files list"));
    }
    let in_checkpoint = check_checkpoints(&paths, only)?;
    let equal = found.is_empty() && in_checkpoint.as_ref().is_none_or(Vec::is_empty);
    let output = &mut session.output;
    if output.is_json() {
        output.json(&serde_json::json!({
            "equal": equal, "files": files, "different": found, "checkpoint_different": in_checkpoint,
        }))?;
        return Ok(if equal { Answer::Yes } else { Answer::No });
    }
    tell_discrepancies("the view", &found, output)?;
    tell_discrepancies("the checkpoint", in_checkpoint.as_deref().unwrap_or_default(), output)?;
    if !found.is_empty() {
        output.line("stop the daemon, move the folder 'view' away and start it again: it is rebuilt from the log")?;
    }
    if in_checkpoint.as_ref().is_some_and(|found| !found.is_empty()) {
        output.line(
            "the checkpoint is not what the log says: keep a copy of the directory, and have this server join anew",
        )?;
    }
    if equal {
        let checkpoint = match in_checkpoint {
            Some(_) => ", and so is the checkpoint",
            None => "",
        };
        output
            .line(output.paint(Style::Good, format_args!("equal: {files} files are what the log says{checkpoint}")))?;
    }
    Ok(if equal { Answer::Yes } else { Answer::No })
}

/// A register that is not what the log makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Discrepancy {
    file: FileName,
    key: String,
    /// As printed; `None`: there is none.
    log: Option<String>,
    view: Option<String>,
    /// The values agree, what they build on or the conflicts do not.
    history: bool,
}

/// Compares all registers, deleted ones too.
fn compare(log: &Files, view: &Files, only: Option<&FileName>) -> Vec<Discrepancy> {
    let names: BTreeSet<_> = selected(log, only).into_iter().chain(selected(view, only)).collect();
    let mut found = Vec::new();
    for name in names {
        let side = |files: &Files| -> BTreeMap<String, Register> {
            let held = files.file(name).into_iter().flat_map(|file| file.registers());
            held.map(|(key, register)| (key.to_owned(), register.clone())).collect()
        };
        let (in_log, in_view) = (side(log), side(view));
        let keys: BTreeSet<&String> = in_log.keys().chain(in_view.keys()).collect();
        for key in keys {
            // What is announced and has not arrived may differ; what is true may not.
            let leaves = |side: &BTreeMap<String, Register>| side.get(key).map(|register| register.leaves.clone());
            let (one, other) = (leaves(&in_log).unwrap_or_default(), leaves(&in_view).unwrap_or_default());
            if one == other {
                continue;
            }
            let value = |side: &BTreeMap<String, Register>| {
                side.get(key).and_then(|register| register.value()).map(Record::to_string)
            };
            let (log, view) = (value(&in_log), value(&in_view));
            found.push(Discrepancy { file: name.clone(), key: key.clone(), history: log == view, log, view });
        }
    }
    found
}

/// Compares the newest checkpoint of each folder with what the entries that it has seen make; `None` if they are not all there.
fn check_checkpoints(paths: &[PathBuf], only: Option<&FileName>) -> Result<Option<Vec<Discrepancy>>, Failure> {
    let log = Log::open(paths)?;
    let checkpoints: Vec<Checkpoint> = log.checkpoints().cloned().collect();
    if checkpoints.is_empty() {
        return Ok(None);
    }
    let points: Vec<Point> = checkpoints
        .iter()
        .map(|found| Point::Seen { vector: found.files.seen().clone(), from_checkpoints: false })
        .collect();
    let Ok(folded) = fold(log, &points) else { return Ok(None) };
    let mut found = Vec::new();
    for (checkpoint, Folded { files, mut volatile_lost }) in checkpoints.iter().zip(folded) {
        let missing = checkpoint.files.seen().iter().filter(|(stream, seq)| files.seen().seq(stream) < *seq);
        for (stream, _) in missing {
            if stream.lane != Lane::Volatile {
                return Ok(None);
            }
            volatile_lost = true;
        }
        found.extend(
            compare(&files, &checkpoint.files, only)
                .into_iter()
                .filter(|discrepancy| !(volatile_lost && Schema::is_volatile(&discrepancy.file))),
        );
    }
    Ok(Some(found))
}

fn tell_discrepancies(what: &str, found: &[Discrepancy], output: &mut Output) -> Result<(), Failure> {
    for Discrepancy { file, key, log, view, history } in found {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".into());
        let text = match history {
            true => format!("{file}: {key}: the value in {what} is right, but not what it builds on or its conflicts"),
            false => format!("{file}: {key}: the log says '{}', {what} '{}'", shown(log), shown(view)),
        };
        output.line(output.paint(Style::Bad, text))?;
    }
    Ok(())
}

/// The files that a server shows.
struct Shown {
    files: Files,
    /// A daemon is at work on them.
    moves: bool,
}

fn view_of(directory: &Path) -> Result<Shown, Failure> {
    match Client::connect(directory) {
        Ok(client) => Ok(Shown { files: files_of_daemon(client, directory)?, moves: true }),
        Err(ClientError::NoDaemon { .. }) => Ok(Shown { files: stored_view(directory)?, moves: false }),
        Err(error) => Err(error.into()),
    }
}

fn files_of_daemon(mut client: Client, directory: &Path) -> Result<Files, Failure> {
    client.set_timeout(Some(ANSWER_TIMEOUT))?;
    let names: Vec<FileName> = match client.call(&Request::FilesList)? {
        Response::Files(files) => files.into_iter().map(|FileSummary { file, .. }| file).collect(),
        other => return Err(Failure::of_response(other)),
    };
    let directory = DirectoryArgs { directory: directory.to_path_buf() };
    let mut all = Vec::new();
    for name in &names {
        all.extend(registers(&files::fetch(&directory, name)?.files));
    }
    Ok(Files::restore(all, Default::default()))
}

/// Reads a copy of a stopped server's view: opening the view itself could change it.
fn stored_view(directory: &Path) -> Result<Files, Failure> {
    let storage = |error: &dyn std::fmt::Display| Failure::Storage(Report::of(error));
    let _lock = DirectoryLock::acquire(directory).map_err(|error| storage(&error))?;
    let original = directory.join(VIEW_FOLDER);
    if !original.is_dir() {
        return Err(Failure::input(
            format!("{} has no view to compare with", directory.display()),
            "start its daemon once: the view is built from the log",
        ));
    }
    let copy = ViewCopy::make(&original)?;
    let opened = View::open(&copy.path, None).map_err(|error| storage(&error))?;
    opened.view.close();
    opened.state.ok_or_else(|| {
        let why = opened.reason_for_rebuild.unwrap_or_else(|| "it is empty".into());
        Failure::storage(
            format!("{}: the view cannot be used: {why}", original.display()),
            "start the daemon: it moves the view aside and builds it anew from the log",
        )
    })
}

/// Where the view is in a server's directory.
const VIEW_FOLDER: &str = "view";

/// A copy of a view, removed in the end.
struct ViewCopy {
    path: PathBuf,
}

impl ViewCopy {
    fn make(original: &Path) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("p2pdb-check-{}", std::process::id()));
        let shown = path.display().to_string();
        let failed = |error: std::io::Error| {
            Failure::storage(
                format!("{shown}: the view cannot be copied there: {error}"),
                "set TMPDIR to a folder with room",
            )
        };
        // Not one that somebody else has put there.
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let copy = Self { path };
        copy_folder(original, &copy.path).map_err(failed)?;
        Ok(copy)
    }
}

impl Drop for ViewCopy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::log::tests::Author;
    use super::*;

    #[test]
    fn differences_between_log_and_view_are_found() {
        let mut author = Author::new("S1");
        let (first, second) = (author.add("Notes", "a, 1"), author.add("Notes", "b, 2"));
        let mut log = Files::default();
        log.apply(first.entry());
        let mut view = log.clone();
        assert!(compare(&log, &view, None).is_empty());
        view.apply(second.entry());
        let found = compare(&log, &view, None);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].log.as_deref(), found[0].view.as_deref()), (None, Some("b, 2")));
        assert!(compare(&log, &view, Some(&FileName::new("Group").unwrap())).is_empty());
    }
}
