//! From a wished transaction to the diffs of an entry, or a reason why not.
//!
//! Everything that can be said against an edit is said here, before anything is written: schema, key, whether the
//! record is what the author believed. Transactions that share one commit see each other through the *overlay*: the
//! registers as they will be once the commit is on disk.

use std::collections::BTreeMap;

use super::diff::{Change, Diff};
use super::entry::{AUTHOR_BYTES_MAX, DIFFS_MAX, Entry, REASON_BYTES_MAX};
use super::id::FileName;
use super::io::{Edit, Refusal, Transaction};
use super::merge::{Files, Leaf, Register};
use super::record::Record;
use super::schema::{Schema, file};
use super::version::Version;

/// The registers that the entries of the commit at hand will leave.
#[derive(Default)]
pub struct Overlay {
    registers: BTreeMap<(FileName, String), Register>,
}

impl Overlay {
    fn register<'a>(&'a self, files: &'a Files, file: &FileName, key: &str) -> Option<&'a Register> {
        self.registers
            .get(&(file.clone(), key.to_owned()))
            .or_else(|| files.file(file).and_then(|held| held.register(key)))
    }

    /// Takes an entry of the commit into account.
    pub fn note(&mut self, files: &Files, entry: &Entry) {
        for diff in &entry.diffs {
            let held = || files.file(&diff.file).and_then(|held| held.register(&diff.key)).cloned().unwrap_or_default();
            let register = self.registers.entry((diff.file.clone(), diff.key.clone())).or_insert_with(held);
            register.build_upon(&diff.bases);
            register.insert(Leaf { version: entry.version(), value: diff.change.value().cloned() });
        }
    }
}

/// The diffs that a transaction comes to.
///
/// # Errors
/// The first reason against it.
pub fn admit(files: &Files, overlay: &Overlay, transaction: &Transaction) -> Result<Vec<Diff>, Refusal> {
    if transaction.edits.is_empty() {
        return Err(Refusal::Empty);
    }
    if transaction.author.len() > AUTHOR_BYTES_MAX {
        return Err(Refusal::TooLarge(format!("the author has more than {AUTHOR_BYTES_MAX} bytes")));
    }
    if transaction.reason.len() > REASON_BYTES_MAX {
        return Err(Refusal::TooLarge(format!("the reason has more than {REASON_BYTES_MAX} bytes")));
    }
    let mut diffs: Vec<Diff> = Vec::with_capacity(transaction.edits.len());
    for edit in &transaction.edits {
        let schema = files.schema(&edit.file);
        let place = Place { files, overlay, schema: &schema, edit };
        match &edit.change {
            Change::Add(record) => diffs.push(place.add(record)?),
            Change::Del(record) => diffs.push(place.del(record)?),
            Change::Mod { before, after } => {
                let key = place.key(after)?;
                if place.held_key(before)? == key {
                    diffs.push(place.modify(key, before, after)?);
                } else {
                    diffs.push(place.del(before)?);
                    diffs.push(place.add(after)?);
                }
            }
        }
    }
    if diffs.len() > DIFFS_MAX {
        return Err(Refusal::TooLarge(format!(
            "it has {} diffs; at most {DIFFS_MAX} fit in one transaction",
            diffs.len()
        )));
    }
    let mut written: Vec<_> = diffs.iter().map(|diff| (&diff.file, &diff.key)).collect();
    written.sort_unstable();
    match written.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Refusal::Twice { file: pair[0].0.clone(), key: pair[0].1.clone() }),
        None => Ok(diffs),
    }
}

/// Where one edit lands.
struct Place<'a> {
    files: &'a Files,
    overlay: &'a Overlay,
    schema: &'a Schema,
    edit: &'a Edit,
}

impl Place<'_> {
    fn key(&self, record: &Record) -> Result<String, Refusal> {
        let file = &self.edit.file;
        let refuse = |why: String| Refusal::Schema { file: file.clone(), why };
        let key = self.schema.check(file, record).map_err(|error| refuse(error.to_string()))?;
        if file.as_str() == file::SCHEMA && self.edit.change.value() == Some(record) {
            let (name, _) = Schema::from_record(record).map_err(|error| refuse(error.to_string()))?;
            if self.files.file(&name).is_some_and(|held| !held.is_empty()) {
                return Err(refuse(format!("{name} has records already; a schema is declared before the first one")));
            }
        }
        Ok(key)
    }

    fn register(&self, key: &str) -> Option<&Register> {
        self.overlay.register(self.files, &self.edit.file, key)
    }

    fn add(&self, record: &Record) -> Result<Diff, Refusal> {
        let key = self.key(record)?;
        if self.edit.bases.is_none()
            && let Some(held) = self.register(&key).and_then(Register::value)
        {
            return Err(Refusal::Exists { file: self.edit.file.clone(), held: held.to_string() });
        }
        Ok(self.diff(key, Change::Add(record.clone())))
    }

    fn del(&self, record: &Record) -> Result<Diff, Refusal> {
        let key = self.held_key(record)?;
        self.expect(&key, record)?;
        Ok(self.diff(key, Change::Del(record.clone())))
    }

    fn modify(&self, key: String, before: &Record, after: &Record) -> Result<Diff, Refusal> {
        self.expect(&key, before)?;
        Ok(self.diff(key, Change::Mod { before: before.clone(), after: after.clone() }))
    }

    /// The key of a record that is there; it may be deleted or replaced whatever shape it has.
    fn held_key(&self, record: &Record) -> Result<String, Refusal> {
        self.schema.check(&self.edit.file, record).or_else(|error| {
            let refusal = || Refusal::Schema { file: self.edit.file.clone(), why: error.to_string() };
            self.key_of_misfit(record).ok_or_else(refusal)
        })
    }

    fn key_of_misfit(&self, record: &Record) -> Option<String> {
        let held = self.files.file(&self.edit.file)?;
        held.records().find(|(_, other)| *other == record).map(|(key, _)| key.to_owned())
    }

    /// Without bases of its own, an edit starts from what is there now.
    fn expect(&self, key: &str, wanted: &Record) -> Result<(), Refusal> {
        if self.edit.bases.is_some() {
            return Ok(());
        }
        let file = self.edit.file.clone();
        let wanted_text = wanted.to_string();
        match self.register(key).and_then(Register::value) {
            Some(held) if held == wanted => Ok(()),
            Some(held) => Err(Refusal::Changed { file, held: held.to_string(), wanted: wanted_text }),
            None => Err(Refusal::Missing { file, wanted: wanted_text }),
        }
    }

    fn diff(&self, key: String, change: Change) -> Diff {
        let bases = self.edit.bases.clone();
        let bases: Vec<Version> = bases.unwrap_or_else(|| self.register(&key).map(Register::bases).unwrap_or_default());
        Diff { file: self.edit.file.clone(), key, change, bases }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixture::files;
    use crate::core::priority::Class;

    fn admitted(files: &Files, change: Change) -> Result<Vec<Diff>, Refusal> {
        let edits = vec![Edit { file: FileName::new(file::SERVICE).unwrap(), change, bases: None }];
        let transaction =
            Transaction { class: Class::Transmission, author: "alice".into(), reason: String::new(), edits };
        admit(files, &Overlay::default(), &transaction)
    }

    #[test]
    fn what_was_written_when_its_shape_was_allowed_may_be_corrected() {
        let record = |line: &str| Record::parse(line).unwrap();
        let files = files("Service: S2, 10.0.0.2, exclusive");
        let (before, after) = (record("S2, 10.0.0.2, exclusive"), record("S2, 10.0.0.2/24, exclusive"));
        let added = admitted(&files, Change::Add(record("S3, 10.0.0.3, shared")));
        assert!(matches!(added, Err(Refusal::Schema { .. })), "{added:?}");
        assert_eq!(admitted(&files, Change::Mod { before: before.clone(), after }).unwrap().len(), 1);
        assert_eq!(admitted(&files, Change::Del(before)).unwrap().len(), 1);
    }
}
