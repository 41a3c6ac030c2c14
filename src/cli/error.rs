//! How a command ends: with an answer, or with a failure that says what, where and what to do.

use std::fmt;
use std::io;

use crate::core::id::NameError;
use crate::edge::certificate::CertificateError;
use crate::edge::config::ConfigError;
use crate::edge::control::{ClientError, ControlError, Response};

/// The answer of a command that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Yes,
    /// The negative answer: exit code 1.
    No,
}

/// What every command returns.
pub type Outcome = Result<Answer, Failure>;

/// Why a command could not do its work: exit code 2.
#[derive(Debug)]
pub enum Failure {
    /// What was given cannot be: an argument, a name, a setting.
    Input(Report),
    /// The daemon does not answer, or refuses.
    Daemon(Report),
    /// A file or folder cannot be used, or is not what it should be.
    Storage(Report),
    /// Nobody reads what is printed.
    Output(io::Error),
}

/// What a person reads about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, and where.
    pub what: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl Report {
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }

    /// Takes a text of the form "what is wrong; what to do" apart.
    pub fn of(text: impl fmt::Display) -> Self {
        let text = text.to_string();
        match text.split_once("; ") {
            Some((what, hint)) => Self::new(what, hint),
            None => Self::new(text, ""),
        }
    }
}

impl Failure {
    pub fn input(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input(Report::new(what, hint))
    }

    pub fn storage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Storage(Report::new(what, hint))
    }

    /// The failure behind a response that is not the one asked for.
    pub fn of_response(response: Response) -> Self {
        Self::Daemon(match response {
            Response::Denied { who, what, why } => Report::new(format!("{who} may not {what}"), why),
            Response::Refused(refusal) => Report::of(refusal),
            Response::Failed { what, hint } => Report { what, hint },
            other => Report::new(
                format!("the daemon's answer does not fit the question: {}", variant(&other)),
                "is the daemon of another version than this command?",
            ),
        })
    }

    /// `None` when there is nobody to tell.
    pub fn report(&self) -> Option<Report> {
        match self {
            Failure::Input(report) | Failure::Daemon(report) | Failure::Storage(report) => Some(report.clone()),
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Output(error) => Some(Report::new(format!("the output cannot be written: {error}"), "")),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Input(Report::of(error))
    }
}

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Self {
        Self::Storage(Report::of(error))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Daemon(Report::of(error))
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Daemon(Report::of(error))
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::Input(Report::new(error.to_string(), ""))
    }
}

fn variant(response: &Response) -> String {
    let text = format!("{response:?}");
    text.chars().take_while(|character| character.is_alphanumeric()).collect()
}
