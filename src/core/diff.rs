//! A diff: one Add, Del or Mod of one record of one management file (the paper, section 3.1, `Diff.dat`).
//!
//! The key is sealed into the diff by its author, so that a replica never needs the file's schema to merge it, and
//! replicas with the same entries agree whatever schema they have at hand. `bases` names the versions of the record
//! that the author had before its eyes; a write that is nobody's base and not the newest has lost unseen, which is
//! how a conflict is found (see `merge`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::FileName;
use super::record::Record;
use super::version::Version;

/// Most versions that one diff can build on.
pub const BASES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Add(Record),
    Del(Record),
    /// Both records have the same key; a change of key is a Del and an Add in one entry.
    Mod {
        before: Record,
        after: Record,
    },
}

impl Change {
    /// What the record is after the change; `None` when it is gone.
    pub fn value(&self) -> Option<&Record> {
        match self {
            Change::Add(record) | Change::Mod { after: record, .. } => Some(record),
            Change::Del(_) => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    pub file: FileName,
    /// The key fields as printed, joined by `, `.
    pub key: String,
    pub change: Change,
    pub bases: Vec<Version>,
}

impl fmt::Display for Diff {
    /// As the paper prints it: `Group, Del, S2` · `Problem, Mod, ---, S2, --- => S2b, S2, S6`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.change {
            Change::Add(record) => write!(out, "{}, Add, {record}", self.file),
            Change::Del(record) => write!(out, "{}, Del, {record}", self.file),
            Change::Mod { before, after } => write!(out, "{}, Mod, {before} => {after}", self.file),
        }
    }
}
