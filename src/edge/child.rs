//! A program of the administrator, run to its end: in a process group of its own, all of which is killed when nobody waits for it
//! any more; its output read to the end and kept up to a bound.

use std::io;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// How much of each output is kept, in bytes; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 1024;
/// Longest line that is told, in characters.
const LINE_CHARS_MAX: usize = 120;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Ended {
    /// The first line that it said, on standard error before standard output.
    pub fn first_line(&self) -> String {
        let lines = [&self.err, &self.out].map(|text| first_line(text));
        lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default()
    }

    /// The exit code, or the signal that ended it, in words.
    pub fn ending(&self) -> String {
        self.status.code().map_or_else(|| self.status.to_string(), |code| code.to_string())
    }
}

struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs a program. Dropping the future ends it and all that it started.
///
/// # Errors
/// It does not start, or cannot be waited for.
pub async fn run(program: &str, arguments: &[String], environment: &[(&str, String)]) -> io::Result<Ended> {
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let _group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err, status) = tokio::join!(read(out), read(err), child.wait());
    Ok(Ended { status: status?, out, err })
}

/// Reads to the end and keeps the beginning.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return kept };
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut bytes).await {
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&bytes[..length.min(room)]);
    }
    kept
}

fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().next().unwrap_or("");
    line.chars().filter(|character| !character.is_control()).take(LINE_CHARS_MAX).collect()
}
