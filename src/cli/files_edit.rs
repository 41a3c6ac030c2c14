//! `p2pdb files edit`: a management file in the editor of one's choice.
//!
//! The text that was shown is remembered. What comes back is merged record by record with what the file holds by then: a record
//! that nobody else touched is changed, one that both changed becomes a conflict that is kept in the log. The text is never
//! lost: unless all of it was taken, it stays in a file that is named.

use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use super::edits::{EditArgs, tell};
use super::error::{Answer, Failure, Outcome, Report};
use super::files::fetch;
use super::output::note;
use super::{DirectoryArgs, Session};
use crate::core::id::FileName;
use crate::core::merge::Files;
use crate::core::text::{Edited, LineError, ShownFile, TEXT_BYTES_MAX, edit_text};

#[derive(Debug, Args)]
pub struct FilesEditArgs {
    /// Name of the management file
    file: FileName,
    #[command(flatten)]
    edit: EditArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub fn run(args: &FilesEditArgs, session: &mut Session) -> Outcome {
    let shown = shown(&fetch(&args.directory, &args.file)?.files, &args.file);
    let draft = Draft::create(&args.file, shown.text())?;
    loop {
        run_editor(&draft.path)?;
        let text = draft.read()?;
        let now = fetch(&args.directory, &args.file).map_err(|failure| draft.keep(failure))?;
        let current = self::shown(&now.files, &args.file);
        match edit_text(&args.file, &now.schema, &shown, &text, &current) {
            Err(errors) => {
                tell_errors(&args.file, &errors);
                if !wants_again()? {
                    let what = format!("{} was not changed: {} lines cannot be taken", args.file, errors.len());
                    return Err(draft.keep(Failure::input(what, "")));
                }
            }
            Ok(Edited { edits, .. }) if edits.is_empty() => {
                draft.remove();
                note(format_args!("{} is unchanged", args.file));
                return Ok(Answer::Yes);
            }
            Ok(Edited { edits, conflicts, .. }) => {
                for conflict in &conflicts {
                    let theirs = conflict.theirs.as_ref().map_or_else(|| "(deleted)".into(), ToString::to_string);
                    let mine = conflict.mine.as_ref().map_or_else(|| "(deleted)".into(), ToString::to_string);
                    note(format_args!(
                        "{}: '{}' was changed to '{theirs}' meanwhile; yours, '{mine}', is in force now, and theirs in `p2pdb files conflicts`",
                        args.file, conflict.key
                    ));
                }
                let request = args.edit.request(edits);
                let edited = args.edit.submit(&args.directory, &request).map_err(|failure| draft.keep(failure))?;
                draft.remove();
                return tell(&mut session.output, &edited, args.edit.timeout);
            }
        }
    }
}

/// The text while it is edited.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn create(file: &FileName, text: &str) -> Result<Self, Failure> {
        let folder = std::env::temp_dir();
        let failed = |path: &Path, error: io::Error| {
            Failure::storage(format!("{}: cannot be written: {error}", path.display()), "set TMPDIR to another folder")
        };
        for number in 0..1000_u32 {
            let path = folder.join(format!("p2pdb-{file}-{}-{number}", std::process::id()));
            // Nobody else may read it or have put something in its place.
            match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(mut made) => {
                    made.write_all(text.as_bytes()).map_err(|error| failed(&path, error))?;
                    return Ok(Self { path });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&path, error)),
            }
        }
        Err(failed(&folder, io::ErrorKind::AlreadyExists.into()))
    }

    fn read(&self) -> Result<Vec<u8>, Failure> {
        let unreadable =
            |why: String| Failure::storage(format!("{}: {why}", self.path.display()), "nothing was changed");
        let size = std::fs::metadata(&self.path).map_err(|error| unreadable(error.to_string()))?.len();
        if size > TEXT_BYTES_MAX as u64 {
            return Err(unreadable(format!("it has {size} bytes; a file may have {TEXT_BYTES_MAX}")));
        }
        std::fs::read(&self.path).map_err(|error| unreadable(error.to_string()))
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// The failure, with a hint where the text is.
    fn keep(&self, failure: Failure) -> Failure {
        let with_hint = |report: Report| {
            let kept = format!("your text is kept in {}", self.path.display());
            let hint = if report.hint.is_empty() { kept } else { format!("{}; {kept}", report.hint) };
            Report::new(report.what, hint)
        };
        match failure {
            Failure::Input(report) => Failure::Input(with_hint(report)),
            Failure::Daemon(report) => Failure::Daemon(with_hint(report)),
            Failure::Storage(report) => Failure::Storage(with_hint(report)),
            other => other,
        }
    }
}

fn shown(files: &Files, name: &FileName) -> ShownFile {
    files.file(name).map(ShownFile::of).unwrap_or_default()
}

fn run_editor(path: &Path) -> Result<(), Failure> {
    let chosen =
        ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let editor = chosen.unwrap_or_else(|| "vi".into());
    // As git does: the variable may hold arguments, so a shell reads it.
    let status = Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(path).status();
    let failed = |why: String| {
        let hint = format!("set EDITOR to the editor you want; the text is in {}", path.display());
        Failure::input(format!("the editor '{editor}' {why}, nothing was changed"), hint)
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("ended with {status}"))),
        Err(error) => Err(failed(format!("could not be started ({error})"))),
    }
}

fn tell_errors(file: &FileName, errors: &[LineError]) {
    for LineError { line, text, why } in errors {
        match line {
            0 => note(format_args!("{file}: {why}")),
            _ => note(format_args!("{file}, line {line}: {why}\n    {text}")),
        }
    }
}

fn wants_again() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Edit again? [Y/n] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    let read = read.map_err(|error| Failure::input(format!("the answer cannot be read: {error}"), ""))?;
    Ok(read > 0 && !answer.trim().to_lowercase().starts_with('n'))
}
