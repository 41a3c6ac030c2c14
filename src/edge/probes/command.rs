//! A program that tells by its exit code.

use std::io;
use std::net::IpAddr;

use super::Answer;
use crate::core::probe::ProbeOutcome;
use crate::edge::child;

/// What is replaced by the address in the arguments.
const ADDRESS: &str = "{address}";

pub(super) async fn ask(command: &[String], address: IpAddr) -> Answer {
    let [program, arguments @ ..] = command else {
        return Err(ProbeOutcome::Unable("the check names no program".to_owned()));
    };
    let address = address.to_string();
    let arguments: Vec<String> = arguments.iter().map(|argument| argument.replace(ADDRESS, &address)).collect();
    let ended = child::run(program, &arguments, &[]).await.map_err(|error| unable(program, &error))?;
    if ended.status.success() {
        return Ok(());
    }
    let said =
        Some(ended.first_line()).filter(|line| !line.is_empty()).map_or(String::new(), |line| format!(": {line}"));
    Err(ProbeOutcome::Failed(format!("{program} ends with {}{said}", ended.ending())))
}

fn unable(program: &str, error: &io::Error) -> ProbeOutcome {
    ProbeOutcome::Unable(match error.kind() {
        io::ErrorKind::NotFound => format!("{program} is not there; install it on every server, or change the check"),
        io::ErrorKind::PermissionDenied => format!("{program} may not be run by the daemon; see its permissions"),
        _ => format!("{program} does not start: {error}"),
    })
}
