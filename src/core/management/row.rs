//! One record of the file `Recovery`: how far the recovery or the return of a server has come.

use crate::core::decision::Slot;
use crate::core::id::ServerName;
use crate::core::merge::Files;
use crate::core::record::Record;
use crate::core::schema::file;

/// How far a recovery or a return has come: one record of the file `Recovery`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryRow {
    pub target: ServerName,
    pub phase: Phase,
    pub host: Option<ServerName>,
    pub manager: Option<ServerName>,
    /// 0: not decided yet.
    pub slot: Slot,
    pub note: String,
}

/// The phases of the file `Recovery`, in the order in which they follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Detected,
    Decided,
    Resumed,
    Installed,
    /// For the address.
    Waiting,
    Serving,
    Failed,
    /// The target takes its place again.
    Returning,
    /// The target has its address again.
    Back,
}

impl Phase {
    const ALL: [Phase; 9] = [
        Phase::Detected,
        Phase::Decided,
        Phase::Resumed,
        Phase::Installed,
        Phase::Waiting,
        Phase::Serving,
        Phase::Failed,
        Phase::Returning,
        Phase::Back,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Phase::Detected => "detected",
            Phase::Decided => "decided",
            Phase::Resumed => "resumed",
            Phase::Installed => "installed",
            Phase::Waiting => "waiting",
            Phase::Serving => "serving",
            Phase::Failed => "failed",
            Phase::Returning => "returning",
            Phase::Back => "back",
        }
    }
}

/// Longest note of a row, in bytes.
const NOTE_BYTES_MAX: usize = 600;

impl RecoveryRow {
    /// The row of a server, if there is one that can be read.
    pub fn of(files: &Files, target: &ServerName) -> Option<Self> {
        let record = files.builtin(file::RECOVERY)?.record(target.as_str())?;
        let phase = Phase::ALL.into_iter().find(|phase| phase.word() == record.field(1))?;
        Some(Self {
            target: target.clone(),
            phase,
            host: ServerName::new(record.field(2)).ok(),
            manager: ServerName::new(record.field(3)).ok(),
            slot: record.field(4).parse().ok()?,
            note: record.field(5).to_owned(),
        })
    }

    pub(super) fn words(&self) -> String {
        match self.note.as_str() {
            "" => self.phase.word().to_owned(),
            note => format!("{}, {note}", self.phase.word()),
        }
    }

    pub(super) fn record(&self) -> Record {
        let name = |name: &Option<ServerName>| name.as_ref().map_or("---", ServerName::as_str).to_owned();
        let note: String = self.note.chars().filter(|character| !character.is_control()).collect();
        let end = note.floor_char_boundary(NOTE_BYTES_MAX);
        Record::of([
            self.target.as_str(),
            self.phase.word(),
            &name(&self.host),
            &name(&self.manager),
            &self.slot.to_string(),
            &note[..end],
        ])
    }
}
