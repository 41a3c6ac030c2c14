//! A program that tells by its exit code. It runs in a process group of its own, all of which is killed when the question
//! is over, however it ends.

use std::io;
use std::net::IpAddr;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::Answer;
use crate::core::probe::ProbeOutcome;

/// How much of its output is kept, in bytes; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 1024;
/// What is replaced by the address in the arguments.
const ADDRESS: &str = "{address}";

struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

pub(super) async fn ask(command: &[String], address: IpAddr) -> Answer {
    let [program, arguments @ ..] = command else {
        return Err(ProbeOutcome::Unable("the check names no program".to_owned()));
    };
    let address = address.to_string();
    let mut child = Command::new(program)
        .args(arguments.iter().map(|argument| argument.replace(ADDRESS, &address)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| unable(program, &error))?;
    let _group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err, status) = tokio::join!(read(out), read(err), child.wait());
    let status = status.map_err(|error| ProbeOutcome::Unable(format!("{program}: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let said = [err, out].into_iter().map(|text| first_line(&text)).find(|line| !line.is_empty());
    let said = said.map_or(String::new(), |line| format!(": {line}"));
    Err(ProbeOutcome::Failed(format!("{program} ends with {}{said}", ending(status))))
}

fn unable(program: &str, error: &io::Error) -> ProbeOutcome {
    ProbeOutcome::Unable(match error.kind() {
        io::ErrorKind::NotFound => format!("{program} is not there; install it on every server, or change the check"),
        io::ErrorKind::PermissionDenied => format!("{program} may not be run by the daemon; see its permissions"),
        _ => format!("{program} does not start: {error}"),
    })
}

fn ending(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| code.to_string())
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
    text.lines().next().unwrap_or("").chars().filter(|character| !character.is_control()).take(120).collect()
}
