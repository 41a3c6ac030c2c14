//! The files: what all entries together make of the management files, whatever order they arrive in.
//!
//! Each record is a register that holds its *leaves*: the writes that no other write has built upon. The newest
//! leaf is the record's value; every further leaf lost without its loser having been seen, which is a conflict, kept
//! until a later write builds on it. The state is a function of the set of entries alone, so replicas that hold the
//! same entries hold the same files (P2) and the same conflicts (P3). A base that is named before its entry has
//! arrived is remembered as *early*, so that the late entry does not come up as a leaf. Deletions stay as
//! leaves without a record (tombstones), for an older write that arrives later must not bring the record back.
//! Two whole states merge by the rule of dotted version vectors (Preguiça et al., 2010): a leaf that the other
//! side has seen and no longer holds has been built upon.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::diff::Diff;
use super::entry::Entry;
use super::id::{Digest, FileName};
use super::record::Record;
use super::schema::{Schema, file};
use super::version::{Vector, Version};

/// One write of a record; `value` is `None` for a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    pub version: Version,
    pub value: Option<Record>,
}

/// One record with its open conflicts. Invariant: leaves are sorted, newest first, and there is at least one
/// unless every write known so far has only been announced as a base.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Register {
    pub leaves: Vec<Leaf>,
    /// Bases of leaves here or gone whose own entries have not arrived, sorted.
    pub early: Vec<Version>,
}

impl Register {
    pub fn value(&self) -> Option<&Record> {
        self.leaves.first().and_then(|leaf| leaf.value.as_ref())
    }

    /// The leaves that lost against a different value and that nobody has looked at since.
    pub fn conflicts(&self) -> impl Iterator<Item = &Leaf> {
        let winner = self.leaves.first().map(|leaf| &leaf.value);
        self.leaves.iter().skip(1).filter(move |leaf| Some(&leaf.value) != winner)
    }

    /// What an ordinary edit of this record builds on: its value, and the other leaves that say the same.
    pub fn bases(&self) -> Vec<Version> {
        let winner = self.leaves.first().map(|leaf| &leaf.value);
        self.leaves.iter().filter(|leaf| Some(&leaf.value) == winner).map(|leaf| leaf.version.clone()).collect()
    }

    /// What an edit that settles the conflicts builds on: every leaf.
    pub fn all_leaves(&self) -> Vec<Version> {
        self.leaves.iter().map(|leaf| leaf.version.clone()).collect()
    }

    /// Applies one write; `seen` is what had been applied before it.
    fn write(&mut self, leaf: Leaf, bases: &[Version], seen: &Vector) {
        for base in bases {
            self.leaves.retain(|held| held.version != *base);
            if !seen.holds(&base.entry)
                && let Err(at) = self.early.binary_search(base)
            {
                self.early.insert(at, base.clone());
            }
        }
        match self.early.binary_search(&leaf.version) {
            Ok(at) => {
                self.early.remove(at);
            }
            Err(_) => self.insert(leaf),
        }
    }

    fn insert(&mut self, leaf: Leaf) {
        let at = self.leaves.partition_point(|held| held.version > leaf.version);
        self.leaves.insert(at, leaf);
    }

    fn merge(&mut self, seen: &Vector, other: &Register, other_seen: &Vector) {
        let covered = |leaf: &Leaf, register: &Register, vector: &Vector| {
            register.early.contains(&leaf.version)
                || (vector.holds(&leaf.version.entry) && !register.leaves.contains(leaf))
        };
        let theirs: Vec<Leaf> = other
            .leaves
            .iter()
            .filter(|leaf| !self.leaves.contains(leaf) && !covered(leaf, self, seen))
            .cloned()
            .collect();
        self.leaves.retain(|leaf| !covered(leaf, other, other_seen));
        theirs.into_iter().for_each(|leaf| self.insert(leaf));
        self.early.extend(other.early.iter().cloned());
        self.early.retain(|version| !seen.holds(&version.entry) && !other_seen.holds(&version.entry));
        self.early.sort_unstable();
        self.early.dedup();
    }

    /// Depends on the leaves alone: what is early is a matter of what has arrived, not of what is true.
    fn digest(&self, key: &str) -> Digest {
        if self.leaves.is_empty() {
            return Digest::ZERO;
        }
        // Canonical and small: lengths in front of texts, numbers little-endian, a deletion as a record without fields.
        let mut canonical = Vec::with_capacity(256);
        let text = |text: &str, canonical: &mut Vec<u8>| {
            canonical.extend_from_slice(&(text.len() as u64).to_le_bytes());
            canonical.extend_from_slice(text.as_bytes());
        };
        text(key, &mut canonical);
        for Leaf { version, value } in &self.leaves {
            let stream = &version.entry.stream;
            text(stream.origin.as_str(), &mut canonical);
            canonical.extend_from_slice(&stream.run.to_le_bytes());
            canonical.push(stream.lane as u8);
            canonical.extend_from_slice(&version.entry.seq.to_le_bytes());
            canonical.extend_from_slice(&version.time.0.to_le_bytes());
            let fields = value.as_ref().map_or(0, Record::field_count);
            canonical.extend_from_slice(&(fields as u64).to_le_bytes());
            value.iter().flat_map(Record::fields).for_each(|field| text(field, &mut canonical));
        }
        Digest(*blake3::hash(&canonical).as_bytes())
    }
}

/// One management file. A copy shares the records, and holds what they were when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct File {
    registers: BTreeMap<Arc<str>, Held>,
    digest: Digest,
    live: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    register: Arc<Register>,
    digest: Digest,
}

impl File {
    /// The records in order of their keys.
    pub fn records(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.registers().filter_map(|(key, register)| Some((key, register.value()?)))
    }

    /// Every register, deleted ones too.
    pub fn registers(&self) -> impl Iterator<Item = (&str, &Register)> {
        self.registers.iter().map(|(key, held)| (key.as_ref(), held.register.as_ref()))
    }

    pub fn register(&self, key: &str) -> Option<&Register> {
        self.registers.get(key).map(|held| held.register.as_ref())
    }

    pub fn record(&self, key: &str) -> Option<&Record> {
        self.register(key).and_then(Register::value)
    }

    /// How many records the file has.
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The file as the plain-file view shows it: one record per line.
    pub fn text(&self) -> String {
        self.records().fold(String::new(), |mut text, (_, record)| {
            writeln!(text, "{record}").expect("a string takes all that is written");
            text
        })
    }

    fn update(&mut self, key: &str, change: impl FnOnce(&mut Register)) -> &Register {
        if !self.registers.contains_key(key) {
            self.registers.insert(key.into(), Held { register: Arc::default(), digest: Digest::ZERO });
        }
        let held = self.registers.get_mut(key).expect("it was put there if it was missing");
        self.digest.toggle(&held.digest);
        self.live -= usize::from(held.register.value().is_some());
        change(Arc::make_mut(&mut held.register));
        held.digest = held.register.digest(key);
        self.digest.toggle(&held.digest);
        self.live += usize::from(held.register.value().is_some());
        &held.register
    }
}

/// All management files, and the entries they are made of. A copy shares the files that are not written afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    files: BTreeMap<FileName, Arc<File>>,
    seen: Vector,
}

/// A register that an entry has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub file: FileName,
    pub key: String,
    pub register: Register,
}

impl Files {
    /// The state that a projection or a checkpoint holds.
    pub fn restore(registers: impl IntoIterator<Item = Written>, seen: Vector) -> Self {
        let mut files = Self { files: BTreeMap::new(), seen };
        for Written { file, key, register } in registers {
            files.file_mut(file).update(&key, |held| *held = register);
        }
        files
    }

    pub fn seen(&self) -> &Vector {
        &self.seen
    }

    pub fn file(&self, name: &FileName) -> Option<&Arc<File>> {
        self.files.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&FileName, &Arc<File>)> {
        self.files.iter()
    }

    /// The records of a built-in file.
    pub fn records_of(&self, name: &str) -> impl Iterator<Item = &Record> {
        self.builtin(name).into_iter().flat_map(|file| file.records().map(|(_, record)| record))
    }

    pub fn builtin(&self, name: &str) -> Option<&File> {
        self.files.get(&FileName::new(name).expect("built-in file names are well formed")).map(Arc::as_ref)
    }

    /// The schema in force for a file. A declaration that does not hold water counts as none.
    pub fn schema(&self, name: &FileName) -> Schema {
        Schema::builtin(name).unwrap_or_else(|| {
            self.builtin(file::SCHEMA)
                .and_then(|schemas| schemas.record(name.as_str()))
                .and_then(|record| Schema::from_record(record).ok())
                .map_or_else(Schema::any, |(_, schema)| schema)
        })
    }

    fn file_mut(&mut self, name: FileName) -> &mut File {
        Arc::make_mut(self.files.entry(name).or_default())
    }

    /// Applies an entry; the next of its stream. Returns the registers that it changed.
    pub fn apply(&mut self, entry: &Entry) -> Vec<Written> {
        debug_assert_eq!(self.seen.seq(&entry.id.stream) + 1, entry.id.seq, "entries are applied in stream order");
        let version = entry.version();
        let mut written = Vec::with_capacity(entry.diffs.len());
        for Diff { file, key, change, bases } in &entry.diffs {
            let leaf = Leaf { version: version.clone(), value: change.value().cloned() };
            let seen = &self.seen;
            let held = Arc::make_mut(self.files.entry(file.clone()).or_default());
            let register = held.update(key, |register| register.write(leaf, bases, seen)).clone();
            written.push(Written { file: file.clone(), key: key.clone(), register });
        }
        self.seen.raise(&entry.id.stream, entry.id.seq);
        written
    }

    /// Forgets what was deleted: one of the deliberate faults that the simulator must find (`flaw`).
    pub fn forget_deletions(&mut self, written: &[Written]) {
        for Written { file, key, .. } in written {
            let held = self.file_mut(file.clone());
            if held.register(key).is_some_and(|register| register.value().is_none()) {
                held.update(key, |register| *register = Register::default());
                held.registers.remove(key.as_str());
            }
        }
    }

    /// Forgets what lost: another deliberate fault.
    pub fn forget_conflicts(&mut self, written: &mut [Written]) {
        for Written { file, key, register } in written {
            *register = self.file_mut(file.clone()).update(key, |register| register.leaves.truncate(1)).clone();
        }
    }

    /// Forgets what was announced: another deliberate fault.
    pub fn forget_early(&mut self, written: &mut [Written]) {
        for Written { file, key, register } in written {
            *register = self.file_mut(file.clone()).update(key, |register| register.early.clear()).clone();
        }
    }

    /// Merges a whole state. Returns the registers that it changed.
    pub fn merge(&mut self, other: &Files) -> Vec<Written> {
        let mut written = Vec::new();
        let absent = Register::default();
        for (name, theirs) in &other.files {
            let mine = Arc::make_mut(self.files.entry(name.clone()).or_default());
            for (key, register) in theirs.registers() {
                let before = mine.register(key).cloned();
                let after = mine.update(key, |held| held.merge(&self.seen, register, &other.seen)).clone();
                if before.as_ref() != Some(&after) {
                    written.push(Written { file: name.clone(), key: key.to_owned(), register: after });
                }
            }
        }
        // What they have seen and hold no register of cannot exist: registers are never dropped.
        for (name, mine) in &mut self.files {
            let theirs = other.files.get(name);
            let lacking: Vec<String> = mine
                .registers()
                .filter(|(key, register)| {
                    !register.early.is_empty() && theirs.is_none_or(|file| file.register(key).is_none())
                })
                .map(|(key, _)| key.to_owned())
                .collect();
            for key in lacking {
                let mine = Arc::make_mut(mine);
                let after = mine.update(&key, |held| held.merge(&self.seen, &absent, &other.seen)).clone();
                written.push(Written { file: name.clone(), key, register: after });
            }
        }
        self.seen.join(&other.seen);
        written
    }

    /// Equal for states with the same files, conflicts and tombstones.
    pub fn digest(&self) -> Digest {
        let mut sum = Digest::ZERO;
        for (name, held) in &self.files {
            if held.digest == Digest::ZERO {
                continue;
            }
            let mut hasher = blake3::Hasher::new();
            hasher.update(name.as_str().as_bytes());
            hasher.update(&held.digest.0);
            sum.toggle(&Digest(*hasher.finalize().as_bytes()));
        }
        sum
    }

    pub fn conflicts(&self) -> impl Iterator<Item = (&FileName, &str, &Register)> {
        self.files.iter().flat_map(|(name, held)| {
            let open = held.registers().filter(|(_, register)| register.conflicts().next().is_some());
            open.map(move |(key, register)| (name, key, register))
        })
    }
}
