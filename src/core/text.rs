//! A management file as text: reading it, comparing it, merging it three ways.
//!
//! A text is UTF-8, one record per line. Blank lines do not count, a line may end in CRLF, the last line may lack its
//! end. Every line that cannot be taken is reported with its number, not only the first, so that one look is enough
//! to correct a file. Comparison and merging work on whole records: a record is one line, and a line is never
//! merged within. All results are ordered by key, so the same texts give the same edits.
//!
//! A [`ShownFile`] is a file of the tree as an author gets to see it: the text, and for each record the versions that
//! it stands for. Whoever edits that text builds on these versions, however long the editing takes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use super::diff::Change;
use super::id::{EntryId, FileName};
use super::io::Edit;
use super::merge::{File, Register};
use super::record::Record;
use super::schema::Schema;
use super::version::Version;

/// Largest text of one file, in bytes.
pub const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most lines that are reported for one text.
pub const LINE_ERRORS_MAX: usize = 50;
/// Longest piece of a line that is repeated in a report, in characters.
pub const LINE_SHOWN_CHARS_MAX: usize = 200;

/// The records of a file by key.
pub type Records = BTreeMap<String, Record>;

/// A line that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// 1 for the first line; 0 when it is about the text as a whole.
    pub line: usize,
    /// The line, cut at [`LINE_SHOWN_CHARS_MAX`] characters, with `\u{fffd}` for what is not text.
    pub text: String,
    /// Why, and what to do.
    pub why: String,
}

/// Reads a text.
///
/// # Errors
/// Every line that is no record, that the schema refuses, or whose key another line has, up to [`LINE_ERRORS_MAX`].
pub fn parse_text(name: &FileName, schema: &Schema, text: &[u8]) -> Result<Records, Vec<LineError>> {
    parse_text_knowing(name, schema, text, &Records::new())
}

/// Reads a text in which the records of `known` may stand whatever the schema says: they were taken under an earlier
/// one, and an author who leaves them alone is not to blame.
///
/// # Errors
/// As [`parse_text`].
pub fn parse_text_knowing(
    name: &FileName,
    schema: &Schema,
    text: &[u8],
    known: &Records,
) -> Result<Records, Vec<LineError>> {
    if text.len() > TEXT_BYTES_MAX {
        let why = format!("the text has {} bytes; at most {TEXT_BYTES_MAX} are taken; split the file", text.len());
        return Err(vec![LineError { line: 0, text: String::new(), why }]);
    }
    let mut errors = Vec::new();
    let mut records = Records::new();
    let mut first_lines: BTreeMap<String, usize> = BTreeMap::new();
    for (index, bytes) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = index + 1;
        let taken = match parse_line(name, schema, bytes, line, known) {
            Ok(None) => continue,
            Ok(Some((key, record))) => match first_lines.get(&key) {
                Some(first) => Err(format!("line {first} has the same key '{key}'; keep one of the two lines")),
                None => {
                    first_lines.insert(key.clone(), line);
                    records.insert(key, record);
                    Ok(())
                }
            },
            Err(why) => Err(why),
        };
        if let Err(why) = taken {
            if errors.len() == LINE_ERRORS_MAX {
                let why = format!("there are more lines to correct; these are the first {LINE_ERRORS_MAX}");
                errors.push(LineError { line: 0, text: String::new(), why });
                return Err(errors);
            }
            errors.push(LineError { line, text: shown_line(bytes), why });
        }
    }
    if errors.is_empty() { Ok(records) } else { Err(errors) }
}

/// A change of the record with this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedChange {
    pub key: String,
    pub change: Change,
}

/// What makes `wanted` of `base`, in order of keys. A record that only stands under another key, because the schema's
/// key has changed since, counts as unchanged.
pub fn difference(base: &Records, wanted: &Records) -> Vec<KeyedChange> {
    let mut changes = Vec::new();
    walk(base, wanted, |key, before, after| {
        let change = match (before, after) {
            (None, Some(after)) => Change::Add(after.clone()),
            (Some(before), None) => Change::Del(before.clone()),
            (Some(before), Some(after)) => Change::Mod { before: before.clone(), after: after.clone() },
            (None, None) => return true,
        };
        changes.push(KeyedChange { key: key.to_owned(), change });
        true
    });
    drop_renamed_keys(&mut changes);
    changes
}

/// How many records differ; counting stops above `limit`.
pub fn distance(base: &Records, wanted: &Records, limit: usize) -> usize {
    let mut count = 0;
    walk(base, wanted, |_, _, _| {
        count += 1;
        count <= limit
    });
    count
}

/// The keys whose records differ, in order.
pub fn differing<'a>(base: &'a Records, wanted: &'a Records) -> Vec<&'a str> {
    let mut keys = Vec::new();
    walk(base, wanted, |key, _, _| {
        keys.push(key);
        true
    });
    keys
}

/// A record that both sides have changed, to different values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub key: String,
    pub base: Option<Record>,
    pub mine: Option<Record>,
    pub theirs: Option<Record>,
}

/// The outcome of a three-way merge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merge {
    /// What brings my changes into theirs, conflicts included: there mine is the newer write and wins, and theirs
    /// stays in the list of conflicts.
    pub changes: Vec<KeyedChange>,
    pub conflicts: Vec<Conflict>,
}

/// Merges what I made of `base` with what they made of it. What both did alike is not done again.
pub fn merge3(base: &Records, mine: &Records, theirs: &Records) -> Merge {
    let mut merge = Merge::default();
    for keyed in difference(base, mine) {
        let (wanted, held) = (keyed.change.value(), theirs.get(&keyed.key));
        if wanted == held {
            continue;
        }
        let before = base.get(&keyed.key);
        if before != held {
            merge.conflicts.push(Conflict {
                key: keyed.key.clone(),
                base: before.cloned(),
                mine: wanted.cloned(),
                theirs: held.cloned(),
            });
        }
        merge.changes.push(keyed);
    }
    merge
}

/// A text that somebody may have before his eyes: a file of the tree, or what an author left behind.
/// What is read of a file is made when it is asked for: most texts are never edited.
#[derive(Debug, Clone)]
pub struct ShownFile(Shown);

#[derive(Debug, Clone)]
enum Shown {
    Tree {
        file: Arc<File>,
        records: OnceLock<Records>,
        text: OnceLock<String>,
    },
    Author {
        records: Records,
        text: String,
        /// What an edit of each record builds on; deleted records have theirs too.
        bases: BTreeMap<String, Vec<Version>>,
    },
}

impl Default for ShownFile {
    fn default() -> Self {
        Self::of(&Arc::default())
    }
}

impl PartialEq for ShownFile {
    fn eq(&self, other: &Self) -> bool {
        self.shows_same(other) || (self.text() == other.text() && self.all_bases() == other.all_bases())
    }
}

impl Eq for ShownFile {}

impl ShownFile {
    /// About what it may take in memory, in bytes.
    pub fn weight_bytes(&self) -> usize {
        const RECORD_BYTES: usize = 256;
        let (records, text) = match &self.0 {
            Shown::Tree { file, text, .. } => (file.len(), text.get().map_or(0, String::len)),
            Shown::Author { records, text, .. } => (records.len(), text.len()),
        };
        RECORD_BYTES * records + text
    }

    pub fn records_count(&self) -> usize {
        match &self.0 {
            Shown::Tree { file, .. } => file.len(),
            Shown::Author { records, .. } => records.len(),
        }
    }

    /// The file as it is now, whatever becomes of it.
    pub fn of(file: &Arc<File>) -> Self {
        Self(Shown::Tree { file: file.clone(), records: OnceLock::new(), text: OnceLock::new() })
    }

    /// The text that an author left behind by saving `records`, which he had made of `base` and which gave `tree` when
    /// `entry` was applied (`None`: there was nothing to apply): what he writes next builds on his own entry and on what
    /// he had seen before.
    pub fn after_save(
        base: &ShownFile,
        records: Records,
        text: String,
        tree: &ShownFile,
        entry: Option<&EntryId>,
    ) -> Self {
        let mut bases = base.all_bases();
        let tree_bases = tree.all_bases();
        for key in tree_bases.keys().chain(records.keys()) {
            if records.get(key) == tree.records().get(key) {
                bases.insert(key.clone(), tree_bases.get(key).cloned().unwrap_or_default());
            } else if records.get(key) != base.records().get(key) {
                bases.insert(key.clone(), entry.and_then(|entry| tree.version_by(key, entry)).into_iter().collect());
            }
        }
        Self(Shown::Author { records, text, bases })
    }

    /// A text that somebody may have in hand though it is not known when it was shown: where it says what the tree
    /// says, it stands for the tree's versions; elsewhere for none, so that an edit there shows as a conflict.
    pub fn of_unknown_age(records: Records, text: String, tree: &ShownFile) -> Self {
        let mut bases = tree.all_bases();
        bases.retain(|key, _| records.get(key) == tree.records().get(key));
        Self(Shown::Author { records, text, bases })
    }

    /// Whether both show the same state of the tree's file.
    pub fn shows_same(&self, other: &ShownFile) -> bool {
        match (&self.0, &other.0) {
            (Shown::Tree { file: mine, .. }, Shown::Tree { file: theirs, .. }) => mine.digest() == theirs.digest(),
            _ => false,
        }
    }

    pub fn records(&self) -> &Records {
        match &self.0 {
            Shown::Tree { file, records, .. } => {
                records.get_or_init(|| file.records().map(|(key, record)| (key.to_owned(), record.clone())).collect())
            }
            Shown::Author { records, .. } => records,
        }
    }

    pub fn text(&self) -> &str {
        match &self.0 {
            Shown::Tree { file, text, .. } => text.get_or_init(|| file.text()),
            Shown::Author { text, .. } => text,
        }
    }

    /// What an edit of this record, seen in this text, builds on.
    pub fn bases(&self, key: &str) -> Vec<Version> {
        match &self.0 {
            Shown::Tree { file, .. } => file.register(key).map(Register::bases).unwrap_or_default(),
            Shown::Author { bases, .. } => bases.get(key).cloned().unwrap_or_default(),
        }
    }

    /// Whether the record, or its deletion, comes from one of these entries and from no other.
    pub fn is_by(&self, key: &str, entries: &VecDeque<EntryId>) -> bool {
        let known = match &self.0 {
            Shown::Tree { file, .. } => file.register(key).is_some(),
            Shown::Author { bases, .. } => bases.contains_key(key),
        };
        known && self.bases(key).iter().all(|base| entries.contains(&base.entry))
    }

    fn all_bases(&self) -> BTreeMap<String, Vec<Version>> {
        match &self.0 {
            Shown::Tree { file, .. } => {
                file.registers().map(|(key, register)| (key.to_owned(), register.bases())).collect()
            }
            Shown::Author { bases, .. } => bases.clone(),
        }
    }

    /// The version that an entry gave to a record, also if it lost against another.
    fn version_by(&self, key: &str, entry: &EntryId) -> Option<Version> {
        let is_by = |version: &&Version| version.entry == *entry;
        match &self.0 {
            Shown::Tree { file, .. } => {
                file.register(key)?.leaves.iter().map(|leaf| &leaf.version).find(is_by).cloned()
            }
            Shown::Author { bases, .. } => bases.get(key)?.iter().find(is_by).cloned(),
        }
    }
}

/// An edited text, ready to be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The records of the edited text.
    pub records: Records,
    /// What to submit; empty when the file holds all of it already.
    pub edits: Vec<Edit>,
    /// What somebody else changed in the meantime and this would overrule.
    pub conflicts: Vec<Conflict>,
}

/// Turns a text that somebody made of `shown` into edits of the file as it is now. Each edit builds on the versions
/// in `shown`: a record that arrived in the meantime stays, and a record changed on both sides becomes a conflict that
/// the log keeps. This is what `p2pdb files edit` does when the editor has closed.
///
/// # Errors
/// The lines that cannot be taken; nothing may be submitted then.
pub fn edit_text(
    name: &FileName,
    schema: &Schema,
    shown: &ShownFile,
    edited: &[u8],
    current: &ShownFile,
) -> Result<Edited, Vec<LineError>> {
    let records = parse_text_knowing(name, schema, edited, shown.records())?;
    Ok(edit_records(name, shown, records, current))
}

/// As [`edit_text`], for records that are read already.
pub fn edit_records(name: &FileName, shown: &ShownFile, records: Records, current: &ShownFile) -> Edited {
    let Merge { changes, conflicts } = merge3(shown.records(), &records, current.records());
    let edits = changes
        .into_iter()
        .map(|KeyedChange { key, change }| Edit { file: name.clone(), bases: Some(shown.bases(&key)), change })
        .collect();
    Edited { records, edits, conflicts }
}

/// Calls `visit` for each key whose record differs, in order of keys, until it returns false.
fn walk<'a>(
    base: &'a Records,
    wanted: &'a Records,
    mut visit: impl FnMut(&'a str, Option<&'a Record>, Option<&'a Record>) -> bool,
) {
    let (mut left, mut right) = (base.iter().peekable(), wanted.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((before, _)), Some((after, _))) => before.cmp(after),
        };
        let before = if order.is_le() { left.next() } else { None };
        let after = if order.is_ge() { right.next() } else { None };
        let Some(key) = before.or(after).map(|(key, _)| key.as_str()) else { return };
        let (before, after) = (before.map(|(_, record)| record), after.map(|(_, record)| record));
        if before != after && !visit(key, before, after) {
            return;
        }
    }
}

fn drop_renamed_keys(changes: &mut Vec<KeyedChange>) {
    let added: BTreeMap<&Record, usize> = changes
        .iter()
        .enumerate()
        .filter_map(|(at, keyed)| match &keyed.change {
            Change::Add(record) => Some((record, at)),
            _ => None,
        })
        .collect();
    let mut dropped = Vec::new();
    for (at, keyed) in changes.iter().enumerate() {
        if let Change::Del(record) = &keyed.change
            && let Some(&other) = added.get(record)
        {
            dropped.extend([at, other]);
        }
    }
    if dropped.is_empty() {
        return;
    }
    let mut at = 0;
    changes.retain(|_| {
        at += 1;
        !dropped.contains(&(at - 1))
    });
}

fn parse_line(
    name: &FileName,
    schema: &Schema,
    bytes: &[u8],
    line: usize,
    known: &Records,
) -> Result<Option<(String, Record)>, String> {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("the text starts with a byte order mark; save it as UTF-8 without one".into());
    }
    if bytes.contains(&0) {
        return Err("the line has a NUL byte: this is no text".into());
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        format!("the line is not UTF-8 from byte {} on; save the text as UTF-8", error.valid_up_to())
    })?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let record = Record::parse(text).map_err(|error| error.to_string())?;
    match schema.check(name, &record) {
        Ok(key) => Ok(Some((key, record))),
        Err(error) => match known.iter().find(|(_, held)| **held == record) {
            Some((key, _)) => Ok(Some((key.clone(), record))),
            None => Err(error.to_string()),
        },
    }
}

fn shown_line(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(4 * LINE_SHOWN_CHARS_MAX)];
    let text = String::from_utf8_lossy(cut);
    let plain = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    text.trim_end_matches('\r').chars().take(LINE_SHOWN_CHARS_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(lines: &[&str]) -> Records {
        let name = FileName::new("Notes").unwrap();
        parse_text(&name, &Schema::any(), lines.join("\n").as_bytes()).unwrap()
    }

    fn parse(file: &str, text: &[u8]) -> Result<Vec<String>, Vec<(usize, String)>> {
        let name = FileName::new(file).unwrap();
        parse_text(&name, &Schema::builtin(&name).unwrap_or_else(Schema::any), text)
            .map(|records| records.values().map(Record::to_string).collect())
            .map_err(|errors| errors.into_iter().map(|error| (error.line, error.why)).collect())
    }

    #[test]
    fn blank_lines_crlf_and_a_missing_last_line_end_are_fine() {
        assert_eq!(parse("Notes", b"b, 2\r\n\r\n   \na, 1").unwrap(), ["a, 1", "b, 2"]);
        assert_eq!(parse("Notes", b"").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_bad_line_is_named() {
        let errors = parse("Group", b"S1\nS2, x\nS3\nS1\n").unwrap_err();
        assert_eq!(errors[0], (2, "Group takes 1 field (name), this record has 2".into()));
        assert_eq!(errors[1], (4, "line 1 has the same key 'S1'; keep one of the two lines".into()));
    }

    #[test]
    fn what_is_no_text_is_a_line_error() {
        for (text, line) in [
            (&b"\xef\xbb\xbfa\n"[..], 1),
            (b"a\nb\0c\n", 2),
            (b"a\n\xff\xfe\n", 2),
            (b"a\nb\nc, \"d\n", 3),
            (b"a\rb\n", 1),
        ] {
            let errors = parse("Notes", text).unwrap_err();
            assert_eq!((errors.len(), errors[0].0), (1, line), "{text:?}: {errors:?}");
        }
        assert_eq!(parse("Notes", &vec![b'x'; TEXT_BYTES_MAX + 1]).unwrap_err()[0].0, 0);
        assert_eq!(parse("Notes", "\"\n".repeat(1000).as_bytes()).unwrap_err().len(), LINE_ERRORS_MAX + 1);
    }

    #[test]
    fn records_taken_under_an_earlier_schema_may_stay() {
        let name = FileName::new("Group").unwrap();
        let schema = Schema::builtin(&name).unwrap();
        let known = Records::from([("old".into(), Record::of(["S1", "old"]))]);
        let read = parse_text_knowing(&name, &schema, b"S1, old\nS2\n", &known).unwrap();
        assert_eq!(read.keys().collect::<Vec<_>>(), ["S2", "old"]);
        assert!(parse_text_knowing(&name, &schema, b"S1, new\n", &known).is_err());
    }

    #[test]
    fn a_change_of_the_schemas_key_alone_is_no_difference() {
        let base = Records::from([("a".into(), Record::of(["a", "1"])), ("b".into(), Record::of(["b", "2"]))]);
        let wanted = Records::from([("a, 1".into(), Record::of(["a", "1"])), ("c, 3".into(), Record::of(["c", "3"]))]);
        let changes = difference(&base, &wanted);
        assert_eq!(changes.iter().map(|keyed| keyed.key.as_str()).collect::<Vec<_>>(), ["b", "c, 3"]);
    }

    #[test]
    fn three_ways() {
        let base = records(&["a, 1", "b, 1", "c, 1", "d, 1"]);
        let mine = records(&["a, 2", "b, 2", "d, 1", "e, 1"]);
        let theirs = records(&["a, 1", "b, 3", "c, 1", "f, 1"]);
        let merge = merge3(&base, &mine, &theirs);
        let keys: Vec<_> = merge.changes.iter().map(|keyed| keyed.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "c", "e"]);
        assert_eq!(merge.conflicts.len(), 1);
        assert_eq!(merge.conflicts[0].theirs, Some(Record::of(["b", "3"])));
        assert_eq!(merge3(&base, &theirs, &theirs), Merge::default());
    }

    fn some_records() -> impl Strategy<Value = Records> {
        proptest::collection::btree_map("[a-f]", "[0-2]", 0..6).prop_map(|map| {
            map.into_iter().map(|(key, value)| (key.clone(), Record::of([key.as_str(), value.as_str()]))).collect()
        })
    }

    fn apply(mut records: Records, changes: &[KeyedChange]) -> Records {
        for KeyedChange { key, change } in changes {
            match change.value() {
                Some(record) => records.insert(key.clone(), record.clone()),
                None => records.remove(key),
            };
        }
        records
    }

    proptest! {
        #[test]
        fn a_difference_makes_the_wanted_of_the_base(base in some_records(), wanted in some_records()) {
            let changes = difference(&base, &wanted);
            prop_assert_eq!(changes.len(), distance(&base, &wanted, usize::MAX));
            prop_assert!(changes.windows(2).all(|pair| pair[0].key < pair[1].key));
            prop_assert_eq!(apply(base, &changes), wanted);
        }

        #[test]
        fn a_merge_keeps_both_sides(base in some_records(), mine in some_records(), theirs in some_records()) {
            let merge = merge3(&base, &mine, &theirs);
            let merged = apply(theirs.clone(), &merge.changes);
            let conflicts: Vec<_> = merge.conflicts.iter().map(|conflict| conflict.key.as_str()).collect();
            for key in ["a", "b", "c", "d", "e", "f"] {
                let (was, my, their) = (base.get(key), mine.get(key), theirs.get(key));
                prop_assert_eq!(merged.get(key), if my == was { their } else { my });
                prop_assert_eq!(conflicts.contains(&key), my != was && their != was && my != their);
            }
        }

        #[test]
        fn reading_never_panics_and_names_lines_that_exist(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let name = FileName::new("Notes").unwrap();
            if let Err(errors) = parse_text(&name, &Schema::any(), &text) {
                let lines = text.split(|&byte| byte == b'\n').count();
                prop_assert!(errors.iter().all(|error| error.line <= lines && !error.why.is_empty()));
            }
        }

        #[test]
        fn what_is_printed_is_read_back(records in some_records()) {
            let name = FileName::new("Notes").unwrap();
            let text: String = records.values().map(|record| format!("{record}\r\n")).collect();
            prop_assert_eq!(parse_text(&name, &Schema::any(), text.as_bytes()).unwrap(), records);
        }
    }
}
