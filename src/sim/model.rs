//! What the files should be, computed from a set of entries by brute force and without the core's merge.
//!
//! A write is a *leaf* while no write of the set names it as a base. The newest leaf of a record is its value; every
//! other leaf with another value is an open conflict.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::entry::Sealed;
use crate::core::id::FileName;
use crate::core::merge::Files;
use crate::core::record::Record;
use crate::core::version::Version;

type Writes<'a> = Vec<(Version, Option<&'a Record>)>;

/// The leaves of each record that some entries make, newest first.
pub fn leaves<'a>(entries: impl Iterator<Item = &'a Arc<Sealed>>) -> BTreeMap<(&'a FileName, &'a str), Writes<'a>> {
    let mut writes: BTreeMap<(&FileName, &str), Writes> = BTreeMap::new();
    let mut bases: BTreeSet<(&FileName, &str, &Version)> = BTreeSet::new();
    for sealed in entries {
        let version = sealed.entry().version();
        for diff in &sealed.entry().diffs {
            writes.entry((&diff.file, &diff.key)).or_default().push((version.clone(), diff.change.value()));
            bases.extend(diff.bases.iter().map(|base| (&diff.file, diff.key.as_str(), base)));
        }
    }
    for ((file, key), writes) in &mut writes {
        writes.retain(|(version, _)| !bases.contains(&(*file, *key, version)));
        writes.sort_by(|one, other| other.0.cmp(&one.0));
    }
    writes.retain(|_, writes| !writes.is_empty());
    writes
}

/// How files differ from what their entries make.
pub enum Difference {
    /// Another value of a record, or another text.
    Value(String),
    /// The right value, and not the conflicts that there are.
    Conflicts(String),
}

/// Compares files with what the entries that they are made of should make. Returns the first difference.
pub fn difference<'a>(files: &Files, entries: impl Iterator<Item = &'a Arc<Sealed>>) -> Option<Difference> {
    let expected = leaves(entries);
    let mut registers = 0;
    for (name, file) in files.iter() {
        let mut text = String::new();
        for (key, register) in file.registers().filter(|(_, register)| !register.leaves.is_empty()) {
            registers += 1;
            let held: Vec<_> = register.leaves.iter().map(|leaf| (leaf.version.clone(), leaf.value.as_ref())).collect();
            let wanted = expected.get(&(name, key));
            if wanted != Some(&held) {
                let text = format!("{name} '{key}' holds {held:?}, its entries make {wanted:?}");
                let value_fits = wanted.is_some_and(|wanted| wanted.first() == held.first());
                return Some(if value_fits { Difference::Conflicts(text) } else { Difference::Value(text) });
            }
            if let Some((_, Some(record))) = held.first() {
                text.push_str(&format!("{record}\n"));
            }
            let lost = held.iter().filter(|(_, value)| *value != held[0].1).count();
            if lost != register.conflicts().count() {
                let text = format!("{name} '{key}' has {lost} losing edits, not so many conflicts");
                return Some(Difference::Conflicts(text));
            }
        }
        if text != file.text() {
            return Some(Difference::Value(format!("{name} reads {:?}, its entries make {text:?}", file.text())));
        }
    }
    let missing = expected.len() - registers;
    (missing > 0).then(|| Difference::Value(format!("{missing} records that its entries make are not there")))
}
