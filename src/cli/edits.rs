//! What all commands that make an edit have in common: how safe it must be, and how its outcome is told.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::{Answer, Failure, Outcome};
use super::output::{Output, Style};
use super::{ANSWER_TIMEOUT, DirectoryArgs, on_behalf_of};
use crate::core::diff::Change;
use crate::core::id::{FileName, ServerName};
use crate::core::io::{Edit, Wait};
use crate::edge::control::{Edited, FileEdit, Request, Response};

/// Longest time to wait for a level.
const TIMEOUT_S_MAX: f64 = 3600.0;

#[derive(Debug, Clone, Args)]
pub struct EditArgs {
    /// On whose disks the edit must be before the command returns
    #[arg(long, value_enum, default_value_t = Level::Local)]
    pub wait: Level,
    /// How long to wait for that; the edit stands even if it takes longer
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// Why, for those who read the log later
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// This server's
    Local,
    /// More than half of the members'
    Majority,
    /// Every member's
    All,
}

impl From<Level> for Wait {
    fn from(level: Level) -> Self {
        match level {
            Level::Local => Wait::Local,
            Level::Majority => Wait::Majority,
            Level::All => Wait::All,
        }
    }
}

impl EditArgs {
    pub fn timeout_ms(&self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    /// The request of one transaction.
    pub fn request(&self, edits: Vec<Edit>) -> Request {
        Request::FileEdit(FileEdit {
            edits,
            on_behalf_of: on_behalf_of(),
            reason: self.reason.clone(),
            wait: self.wait.into(),
            timeout_ms: self.timeout_ms(),
        })
    }

    /// Sends a request that is answered by an edit, and waits for its level.
    pub fn submit(&self, directory: &DirectoryArgs, request: &Request) -> Result<Edited, Failure> {
        let mut client = directory.connect()?;
        client.set_timeout(Some(self.timeout + ANSWER_TIMEOUT))?;
        match client.call(request)? {
            Response::Edited(edited) => Ok(edited),
            other => Err(Failure::of_response(other)),
        }
    }
}

/// An edit of what the file holds now.
pub fn edit_of(file: FileName, change: Change) -> Edit {
    Edit { file, change, bases: None }
}

/// Tells what became of an edit.
pub fn tell(output: &mut Output, edited: &Edited, timeout: Duration) -> Outcome {
    let reached = edited.reached >= edited.asked;
    if output.is_json() {
        #[derive(Serialize)]
        struct View<'a> {
            entry: String,
            reached: &'static str,
            asked: &'static str,
            lacking: &'a [ServerName],
        }
        let (reached, asked) = (word(edited.reached), word(edited.asked));
        output.json(&View { entry: edited.entry.to_string(), reached, asked, lacking: &edited.lacking })?;
    } else {
        output.line(&edited.entry)?;
        if !reached {
            let lacking: Vec<_> = edited.lacking.iter().map(ServerName::as_str).collect();
            let text = format!(
                "'{}' was not reached in {} s: {} {} not confirmed it. The edit stands on this server and goes on to them.",
                word(edited.asked),
                timeout.as_secs_f64(),
                lacking.join(", "),
                if lacking.len() == 1 { "has" } else { "have" },
            );
            output.line(output.paint(Style::Warning, text))?;
        }
    }
    Ok(if reached { Answer::Yes } else { Answer::No })
}

pub fn word(wait: Wait) -> &'static str {
    match wait {
        Wait::Local => "local",
        Wait::Majority => "majority",
        Wait::All => "all",
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds such as 10 or 0.5".to_owned())?;
    if !(0.0..=TIMEOUT_S_MAX).contains(&seconds) {
        return Err(format!("it must be from 0 to {TIMEOUT_S_MAX} seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}
