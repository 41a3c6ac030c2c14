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
//! Leaves are found by halving and their digests add up, so writes piled up on one record by an origin
//! that builds upon nothing cost about what they would cost on as many records.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::diff::{BASES_MAX, Diff};
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

    /// What an ordinary edit of this record builds on: its value, and the other leaves that say the same; the newest
    /// [`BASES_MAX`] of them.
    pub fn bases(&self) -> Vec<Version> {
        let winner = self.leaves.first().map(|leaf| &leaf.value);
        let same = self.leaves.iter().filter(|leaf| Some(&leaf.value) == winner);
        same.take(BASES_MAX).map(|leaf| leaf.version.clone()).collect()
    }

    /// What an edit that settles the conflicts builds on: every leaf, of more than [`BASES_MAX`] the newest.
    pub fn newest_leaves(&self) -> Vec<Version> {
        self.leaves.iter().take(BASES_MAX).map(|leaf| leaf.version.clone()).collect()
    }

    /// Takes out the leaves that a write builds upon.
    pub fn build_upon(&mut self, bases: &[Version]) -> Vec<Leaf> {
        let mut found: Vec<usize> = bases.iter().filter_map(|base| self.position(base).ok()).collect();
        found.sort_unstable();
        found.dedup();
        match found[..] {
            [] => Vec::new(),
            [at] => vec![self.leaves.remove(at)],
            // One pass, however many there are.
            _ => {
                let mut at = 0;
                let mut found = found.into_iter().peekable();
                let is_base = |_: &mut Leaf| {
                    at += 1;
                    found.next_if_eq(&(at - 1)).is_some()
                };
                self.leaves.extract_if(.., is_base).collect()
            }
        }
    }

    /// Puts a leaf in its place.
    pub fn insert(&mut self, leaf: Leaf) {
        let at = self.position(&leaf.version).unwrap_or_else(|at| at);
        self.leaves.insert(at, leaf);
    }

    /// Where the leaf of a version is, or would be.
    fn position(&self, version: &Version) -> Result<usize, usize> {
        self.leaves.binary_search_by(|held| version.cmp(&held.version))
    }

    /// Applies one write; `seen` is what had been applied before it. Returns the change of the digest.
    fn write(&mut self, key: &str, leaf: Leaf, bases: &[Version], seen: &Vector) -> Digest {
        let mut changed = Digest::ZERO;
        self.build_upon(bases).iter().for_each(|gone| changed.toggle(&gone.digest(key)));
        for base in bases.iter().filter(|base| !seen.holds(&base.entry)) {
            if let Err(at) = self.early.binary_search(base) {
                self.early.insert(at, base.clone());
            }
        }
        match self.early.binary_search(&leaf.version) {
            Ok(at) => {
                self.early.remove(at);
            }
            Err(_) => {
                changed.toggle(&leaf.digest(key));
                self.insert(leaf);
            }
        }
        changed
    }

    fn merge(&mut self, seen: &Vector, other: &Register, other_seen: &Vector) {
        let holds = |register: &Register, leaf: &Leaf| register.position(&leaf.version).is_ok();
        let covered = |leaf: &Leaf, register: &Register, vector: &Vector| {
            register.early.binary_search(&leaf.version).is_ok()
                || (vector.holds(&leaf.version.entry) && !holds(register, leaf))
        };
        let lacking = other.leaves.iter().filter(|leaf| !holds(self, leaf) && !covered(leaf, self, seen));
        let theirs: Vec<Leaf> = lacking.cloned().collect();
        self.leaves.retain(|leaf| !covered(leaf, other, other_seen));
        self.leaves.extend(theirs);
        self.leaves.sort_unstable_by(|one, other| other.version.cmp(&one.version));
        self.early.extend(other.early.iter().cloned());
        self.early.retain(|version| !seen.holds(&version.entry) && !other_seen.holds(&version.entry));
        self.early.sort_unstable();
        self.early.dedup();
    }

    /// The sum of the leaves' digests. What is early does not count: it is a matter of what has arrived, not of what
    /// is true.
    fn digest(&self, key: &str) -> Digest {
        let mut sum = Digest::ZERO;
        self.leaves.iter().for_each(|leaf| sum.toggle(&leaf.digest(key)));
        sum
    }
}

impl Leaf {
    fn digest(&self, key: &str) -> Digest {
        // Canonical and small: lengths in front of texts, numbers little-endian, a deletion as a record without fields.
        let mut canonical = Vec::with_capacity(256);
        let text = |text: &str, canonical: &mut Vec<u8>| {
            canonical.extend_from_slice(&(text.len() as u64).to_le_bytes());
            canonical.extend_from_slice(text.as_bytes());
        };
        text(key, &mut canonical);
        let Leaf { version, value } = self;
        let stream = &version.entry.stream;
        text(stream.origin.as_str(), &mut canonical);
        canonical.extend_from_slice(&stream.run.to_le_bytes());
        canonical.push(stream.lane as u8);
        canonical.extend_from_slice(&version.entry.seq.to_le_bytes());
        canonical.extend_from_slice(&version.time.0.to_le_bytes());
        let fields = value.as_ref().map_or(0, Record::field_count);
        canonical.extend_from_slice(&(fields as u64).to_le_bytes());
        value.iter().flat_map(Record::fields).for_each(|field| text(field, &mut canonical));
        Digest(*blake3::hash(&canonical).as_bytes())
    }
}

/// One management file. A copy shares the records, and holds what they were when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct File {
    registers: BTreeMap<Arc<str>, Arc<Register>>,
    digest: Digest,
    live: usize,
}

impl File {
    /// The records in order of their keys.
    pub fn records(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.registers().filter_map(|(key, register)| Some((key, register.value()?)))
    }

    /// Every register, deleted ones too.
    pub fn registers(&self) -> impl Iterator<Item = (&str, &Register)> {
        self.registers.iter().map(|(key, register)| (key.as_ref(), register.as_ref()))
    }

    pub fn register(&self, key: &str) -> Option<&Register> {
        self.registers.get(key).map(Arc::as_ref)
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

    /// Changes a register as a whole.
    fn update(&mut self, key: &str, change: impl FnOnce(&mut Register)) -> &Register {
        self.change(key, |register| {
            let mut changed = register.digest(key);
            change(register);
            changed.toggle(&register.digest(key));
            changed
        })
    }

    /// Changes a register; `change` returns what its digest has changed by.
    fn change(&mut self, key: &str, change: impl FnOnce(&mut Register) -> Digest) -> &Register {
        if !self.registers.contains_key(key) {
            self.registers.insert(key.into(), Arc::default());
        }
        let register = Arc::make_mut(self.registers.get_mut(key).expect("it was put there if it was missing"));
        self.live -= usize::from(register.value().is_some());
        self.digest.toggle(&change(register));
        self.live += usize::from(register.value().is_some());
        register
    }
}

/// All management files, and the entries they are made of. A copy shares the files until one of the two is changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    files: BTreeMap<FileName, Arc<File>>,
    seen: Vector,
}

/// The registers that entries have changed, by file and key.
pub type Touched = BTreeSet<(FileName, String)>;

/// A register that has changed, as it is now.
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

    /// Applies an entry; the next of its stream.
    pub fn apply(&mut self, entry: &Entry) {
        debug_assert_eq!(self.seen.seq(&entry.id.stream) + 1, entry.id.seq, "entries are applied in stream order");
        let version = entry.version();
        for Diff { file, key, change, bases } in &entry.diffs {
            let leaf = Leaf { version: version.clone(), value: change.value().cloned() };
            let seen = &self.seen;
            let held = Arc::make_mut(self.files.entry(file.clone()).or_default());
            held.change(key, |register| register.write(key, leaf, bases, seen));
        }
        self.seen.raise(&entry.id.stream, entry.id.seq);
    }

    /// The registers that were touched, as they are now; each once, however often it was written.
    pub fn written(&self, touched: Touched) -> Vec<Written> {
        let written = touched.into_iter().filter_map(|(file, key)| {
            let register = self.file(&file)?.register(&key)?.clone();
            Some(Written { file, key, register })
        });
        written.collect()
    }

    /// Forgets what was deleted: one of the deliberate faults that the simulator must find (`flaw`).
    pub fn forget_deletions(&mut self, touched: &Touched) {
        for (file, key) in touched {
            let held = self.file_mut(file.clone());
            if held.register(key).is_some_and(|register| register.value().is_none()) {
                held.update(key, |register| *register = Register::default());
                held.registers.remove(key.as_str());
            }
        }
    }

    /// Forgets what lost: another deliberate fault.
    pub fn forget_conflicts(&mut self, touched: &Touched) {
        self.update_touched(touched, |register| register.leaves.truncate(1));
    }

    /// Forgets what was announced: another deliberate fault.
    pub fn forget_early(&mut self, touched: &Touched) {
        self.update_touched(touched, |register| register.early.clear());
    }

    fn update_touched(&mut self, touched: &Touched, change: impl Fn(&mut Register)) {
        for (file, key) in touched {
            self.file_mut(file.clone()).update(key, &change);
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

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // tests live in real time
mod tests {
    use super::*;
    use crate::core::clock::Timestamp;
    use crate::core::diff::Change;
    use crate::core::id::{EntryId, Lane, ServerName, Stream};
    use crate::core::priority::Class;

    /// Entries of one stream that write one record each, and build upon nothing.
    fn writes(count: u64, key: impl Fn(u64) -> String) -> Vec<Entry> {
        let stream = Stream { origin: ServerName::new("S1").unwrap(), run: 1, lane: Lane::Audit };
        let write = |seq: u64| Entry {
            id: EntryId { stream: stream.clone(), seq },
            time: Timestamp(seq),
            class: Class::Transmission,
            author: String::new(),
            reason: String::new(),
            previous: Digest::ZERO,
            certificate: None,
            diffs: vec![Diff {
                file: FileName::new("Notes").unwrap(),
                key: key(seq),
                change: Change::Add(Record::of([key(seq).as_str(), &seq.to_string()])),
                bases: Vec::new(),
            }],
        };
        (1..=count).map(write).collect()
    }

    #[test]
    fn writes_piled_up_on_one_record_are_all_kept() {
        const COUNT: u64 = 5_000;
        let mut files = Files::default();
        writes(COUNT, |_| "a".into()).iter().for_each(|entry| files.apply(entry));
        let (_, _, register) = files.conflicts().next().unwrap();
        assert_eq!(register.conflicts().count() as u64, COUNT - 1);
        assert_eq!(register.value().unwrap().field(1), COUNT.to_string());
    }
}
