//! One file of the plain-file view: what a save means, and what the file must show. No file system in here.
//!
//! The tree is the backup copy that a save is compared with. A [`PlainFile`] is told what the file holds (`saved`,
//! `gone`, `obstacle`), who has read it (`read`), what the tree holds (`show`), how a submission went (`outcome`)
//! and that time passes (`tick`); it answers with [`Action`]s, to be carried out in order.
//!
//! States: *in step* (the file holds the tree's text) · *in flight* (a save is submitted; later saves wait, and the
//! tree's news is not shown, until the outcome) · *unsettled* (the file is missing, or holds what cannot be taken; it
//! is given [`GRACE_MS`] to become a save that can be, because editors and scripts do their work in several
//! steps). Whatever happens, it ends in step: the file holds the tree's text byte for byte (unless that is too long to be shown: then the file stays as it was), and what was saved is
//! in the log, or in `FILE.rejected` with the reason, or was there before.
//!
//! # Which text had the author in hand?
//!
//! An edit builds on the versions of the records that its author saw, so the text that he made his own from, the *base*,
//! decides what survives. Texts are remembered with their versions, and whether each was *seen*: read since it was
//! shown, or saved by an author who had a seen text in hand. A text is remembered while its file is held open by
//! somebody (`opened`, `closed`), for [`TEXT_AGE_MS_MAX`] if it was seen, and among the last [`UNSEEN_TEXTS_MAX`] if
//! not; all that within [`TEXTS_BYTES_MAX`]. The rule:
//!
//! 1. The reference is the newest text that was seen: nobody undoes what he cannot have seen. (Nothing was seen: the
//!    newest text. Somebody replaces the file without looking, which must work.)
//! 2. An older seen text instead, if the save lacks what others changed from it to the reference: of those records, more
//!    are as they were than as they are. That is an editor with a stale buffer. (Changes by saves of this file do not
//!    count: who takes back his own work would look the same.) But a save that is identical to an older text is a
//!    deliberate return to it.
//! 3. The text that this very file held, seen or not, if the save starts with all of it and is nearer to it, and the
//!    tree has moved on since: `echo >>` keeps a text without looking at it.
//! 4. What is written into a file that has been replaced meanwhile can only build on texts up to that file's.
//!
//! Why so: between the two ways to be wrong, taking a stale buffer for a deliberate return undoes other people's work
//! on all servers; taking a deliberate return (together with other changes) for a stale buffer makes its author repeat it, and
//! then it works, because his first save is now an older text identical to the second. Where the base still
//! is wrong, nothing is lost: the overruled record is in the log, and in the list of conflicts if it was not seen.
//! Changes of others that are in the save need no rule: what the tree holds already is not submitted again.
//! A save that has nothing new to its base while the tree has moved on is refused as *stale*, visibly.

mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::id::{EntryId, FileName};
use super::io::{Committed, Edit, Refusal};
use super::schema::Schema;
use super::text::{
    Records, ShownFile, TEXT_BYTES_MAX, difference, differing, distance, edit_records, parse_text_knowing,
};

pub use report::REPORT_MARK;

/// How long a missing file, a text that cannot be taken or a new name may last before it counts, in milliseconds.
pub const GRACE_MS: u64 = 100;
/// Most records of a file that is shown as a text: making one takes time in proportion.
pub const SHOWN_RECORDS_MAX: usize = 100_000;
/// Most texts remembered per file that nobody has seen and whose files nobody holds open.
pub const UNSEEN_TEXTS_MAX: usize = 32;
/// Most bytes of texts remembered per file, beyond the newest, the newest seen and those that are held open.
pub const TEXTS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a text is remembered that was seen, in milliseconds.
pub const TEXT_AGE_MS_MAX: u64 = 3_600_000;

/// Most texts whose reading is remembered before they are.
const EARLY_READS_MAX: usize = 16;

/// Most entries that are remembered as saves of a file.
const OWN_ENTRIES_MAX: usize = 256;

/// Names a text that a file has held; later texts have larger numbers. 0 names none.
pub type TextId = u64;

/// Names that belong to editors and scripts, and to the view itself.
const LEFT_ALONE_ENDINGS: [&str; 19] = [
    "~",
    ".swp",
    ".swo",
    ".swx",
    ".swpx",
    ".tmp",
    ".temp",
    ".bak",
    ".orig",
    ".rej",
    ".rejected",
    ".save",
    ".old",
    ".new",
    ".part",
    ".lock",
    ".kate-swp",
    ".rpmnew",
    ".dpkg-dist",
];

/// Whether a name in the folder can be a management file's. Droppings of editors and scripts, such as `.Group.swp`, `Group~`,
/// `Group.bak`, `#Group#` or vi's `4913`, and the view's own `Group.rejected`, cannot.
pub fn is_shown_name(name: &str) -> bool {
    let probe = name.parse::<u64>().is_ok_and(|number| number >= 4913 && (number - 4913).is_multiple_of(123));
    FileName::new(name).is_ok() && !probe && !LEFT_ALONE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// What was found in place of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    Directory,
    SymbolicLink,
    /// A FIFO, a socket or a device.
    Special,
    TooLarge {
        bytes: u64,
    },
    Unreadable {
        why: String,
    },
}

/// A save as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Save {
    pub bytes: Vec<u8>,
    /// The text that this very file (inode) held before; 0 if it is a new one.
    pub held: TextId,
    /// The file had been replaced by the time it was written: it does not bear the name any more.
    pub orphan: bool,
}

/// What was found under the name when the daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Missing,
    Text {
        bytes: Vec<u8>,
        /// It is as the view wrote it.
        untouched: bool,
    },
    Obstacle(Obstacle),
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Submit these edits as one transaction and report its outcome. At most one is under way.
    Submit {
        edits: Vec<Edit>,
    },
    /// Replace the file by this text, atomically.
    Rewrite {
        id: TextId,
        file: Arc<ShownFile>,
        /// Only the layout changes: keep the time of modification, so that editors do not warn of a change.
        keep_time: bool,
    },
    /// Move what bears the name aside, whatever it is.
    KeepAside,
    /// Write this as `FILE.rejected`.
    Reject {
        report: String,
    },
    /// Remove `FILE.rejected`.
    ClearRejected,
    /// Remove the file: it is none of the tree's, and what it held is in `FILE.rejected`.
    Remove,
    Alarm {
        text: String,
    },
    AlarmCleared,
}

impl Action {
    /// Whether an earlier action that could not be done yet need not be done any more: only the last state of a name counts.
    pub fn replaces(&self, earlier: &Self) -> bool {
        match self {
            Self::Rewrite { .. } | Self::Remove => matches!(earlier, Self::Rewrite { .. } | Self::Remove),
            Self::Reject { .. } | Self::ClearRejected => matches!(earlier, Self::Reject { .. } | Self::ClearRejected),
            Self::Alarm { .. } | Self::AlarmCleared => matches!(earlier, Self::Alarm { .. } | Self::AlarmCleared),
            Self::Submit { .. } | Self::KeepAside => false,
        }
    }
}

/// One file of the view.
#[derive(Debug)]
pub struct PlainFile {
    name: FileName,
    schema: Schema,
    /// `None`: the tree has no such file.
    tree: Option<Arc<ShownFile>>,
    /// Oldest first.
    texts: VecDeque<Text>,
    last_id: TextId,
    /// Texts whose files somebody holds open.
    open: BTreeSet<TextId>,
    /// Texts that were read before it was clear what they stand for.
    early_reads: VecDeque<TextId>,
    /// What bears the name; `None`: nothing, or nothing that is a text.
    content: Option<Content>,
    in_flight: Option<InFlight>,
    waiting: VecDeque<(TextId, Save)>,
    unsettled: Option<Unsettled>,
    rejected: bool,
    alarmed: bool,
    /// The tree's text is too long to be shown; what was shown before stays.
    too_long: bool,
    /// Entries that came from saves of this file, the last of them.
    own: VecDeque<EntryId>,
}

#[derive(Debug)]
struct Text {
    id: TextId,
    file: Arc<ShownFile>,
    seen: bool,
    since_ms: u64,
}

#[derive(Debug)]
struct Content {
    id: TextId,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct InFlight {
    id: TextId,
    base: Arc<ShownFile>,
    records: Records,
    text: String,
    seen: bool,
}

#[derive(Debug)]
struct Unsettled {
    deadline_ms: u64,
    what: Matter,
}

#[derive(Debug)]
enum Matter {
    Gone,
    Obstacle(Obstacle),
    Refused { report: String, aside: bool },
    NewName { id: TextId, save: Save },
}

impl PlainFile {
    /// A file of which nothing is known yet but the tree's side; `None` for a name that the tree does not have.
    pub fn new(name: FileName, schema: Schema, tree: Option<Arc<ShownFile>>) -> Self {
        Self {
            name,
            schema,
            tree,
            texts: VecDeque::new(),
            last_id: 0,
            open: BTreeSet::new(),
            early_reads: VecDeque::new(),
            content: None,
            in_flight: None,
            waiting: VecDeque::new(),
            unsettled: None,
            rejected: false,
            alarmed: false,
            too_long: false,
            own: VecDeque::new(),
        }
    }

    /// The schema that saves are checked against from now on.
    pub fn set_schema(&mut self, schema: Schema) {
        self.schema = schema;
    }

    /// There is a `FILE.rejected` from before: the next good save removes it.
    pub fn found_report(&mut self) {
        self.rejected = true;
    }

    pub fn tree(&self) -> Option<&Arc<ShownFile>> {
        self.tree.as_ref()
    }

    /// When `tick` is due, in milliseconds.
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.in_flight.is_some() {
            return None;
        }
        self.unsettled.as_ref().map(|unsettled| unsettled.deadline_ms)
    }

    /// Whether there is nothing to remember: no such file, neither here nor in the tree.
    pub fn is_forgettable(&self) -> bool {
        self.tree.is_none() && self.content.is_none() && self.in_flight.is_none() && self.unsettled.is_none()
    }

    /// Compares the file with the tree when the daemon, or the folder, has just come up. What is untouched since the
    /// view wrote it is merely out of date. What somebody changed meanwhile has no known base, so it is kept as
    /// `FILE.rejected`, and nothing is guessed. Returns the name of the text that the file holds.
    pub fn begin(&mut self, now_ms: u64, found: Found) -> (TextId, Vec<Action>) {
        (self.content, self.unsettled) = (None, None);
        let (bytes, untouched) = match found {
            Found::Missing => return (0, self.settle(now_ms)),
            Found::Obstacle(obstacle) => return (0, self.obstacle(now_ms, obstacle)),
            Found::Text { bytes, untouched } => (bytes, untouched),
        };
        let Some(tree) = self.tree.clone() else {
            if untouched {
                let id = self.next_id();
                self.content = Some(Content { id, bytes });
                return (id, Vec::new());
            }
            return self.saved(now_ms, Save { bytes, held: 0, orphan: false });
        };
        let id = self.next_id();
        let same = too_long(&tree).is_none() && bytes == tree.text().as_bytes();
        if same {
            self.remember(now_ms, id, tree, true);
        } else if let Ok(records) = parse_text_knowing(&self.name, &self.schema, &bytes, tree.records()) {
            // An editor may still have it open. Which versions it stands for is not known where it differs.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let file = ShownFile::of_unknown_age(records, text, &tree);
            self.remember(now_ms, id, Arc::new(file), true);
        }
        let mut actions = Vec::new();
        if !same && !untouched {
            actions.push(self.reject(report::changed_while_down(&self.name, &bytes)));
        }
        self.content = Some(Content { id, bytes });
        actions.extend(self.settle(now_ms));
        (id, actions)
    }

    /// The tree's file is now this one.
    pub fn show(&mut self, now_ms: u64, tree: Arc<ShownFile>) -> Vec<Action> {
        self.tree = Some(tree);
        self.settle(now_ms)
    }

    /// Somebody has read the file that held this text.
    pub fn read(&mut self, id: TextId) {
        match self.texts.iter_mut().find(|text| text.id == id) {
            Some(text) => text.seen = true,
            None if self.early_reads.contains(&id) => {}
            None => {
                self.early_reads.truncate(EARLY_READS_MAX - 1);
                self.early_reads.push_front(id);
            }
        }
    }

    /// Somebody has opened the file that holds this text, and may write into it whatever becomes of the file.
    pub fn opened(&mut self, id: TextId) {
        self.open.insert(id);
    }

    /// Nobody has the file that holds this text open any more.
    pub fn closed(&mut self, id: TextId) {
        self.open.remove(&id);
    }

    /// Whoever may have read something has: it was not recorded.
    pub fn read_all(&mut self) {
        self.texts.iter_mut().for_each(|text| text.seen = true);
    }

    /// Whether nobody is known to have read this text, which is remembered.
    pub fn is_unread(&self, id: TextId) -> bool {
        self.texts.iter().any(|text| text.id == id && !text.seen)
    }

    /// The file was written and closed, or another one took its place. Returns the name of the text it now holds.
    pub fn saved(&mut self, now_ms: u64, save: Save) -> (TextId, Vec<Action>) {
        if save.orphan {
            if self.is_known(&save) {
                return (save.held, Vec::new());
            }
        } else if let Some(content) = &self.content
            && content.bytes == save.bytes
            && self.unsettled.is_none()
            && (save.held == content.id || self.in_flight.is_some())
        {
            return (content.id, Vec::new());
        }
        let id = self.next_id();
        if !save.orphan {
            self.unsettled = None;
            self.content = Some(Content { id, bytes: save.bytes.clone() });
        }
        if self.in_flight.is_some() {
            if !save.orphan {
                self.waiting.retain(|(_, earlier)| earlier.orphan);
            }
            self.waiting.push_back((id, save));
            return (id, Vec::new());
        }
        let mut actions = self.take(now_ms, id, save, false);
        actions.extend(self.settle(now_ms));
        (id, actions)
    }

    /// Nothing bears the name any more.
    pub fn gone(&mut self, now_ms: u64) -> Vec<Action> {
        self.content = None;
        if self.tree.is_none() && self.in_flight.is_none() {
            self.unsettled = None;
        } else if !matches!(&self.unsettled, Some(Unsettled { what: Matter::Gone, .. })) {
            self.unsettle(now_ms, Matter::Gone);
        }
        Vec::new()
    }

    /// Something that is no readable text bears the name.
    pub fn obstacle(&mut self, now_ms: u64, obstacle: Obstacle) -> Vec<Action> {
        self.content = None;
        if !matches!(&self.unsettled, Some(Unsettled { what: Matter::Obstacle(held), .. }) if *held == obstacle) {
            self.unsettle(now_ms, Matter::Obstacle(obstacle));
        }
        Vec::new()
    }

    /// Somebody has removed `FILE.rejected`: it was read.
    pub fn acknowledged(&mut self) -> Vec<Action> {
        self.rejected = false;
        self.alarm_cleared()
    }

    /// How the submission went; with the tree's file in which the entry is applied.
    pub fn outcome(&mut self, now_ms: u64, result: Result<(Committed, Arc<ShownFile>), Refusal>) -> Vec<Action> {
        let Some(InFlight { id, base, records, text, seen }) = self.in_flight.take() else { return Vec::new() };
        let mut actions = Vec::new();
        match result {
            Ok((committed, tree)) => {
                self.own.truncate(OWN_ENTRIES_MAX - 1);
                self.own.push_front(committed.entry.clone());
                let file = ShownFile::after_save(&base, records, text, &tree, Some(&committed.entry));
                self.remember(now_ms, id, Arc::new(file), seen);
                self.tree = Some(tree);
                actions.extend(self.clear_rejected());
            }
            Err(refusal) => {
                // Whoever has the refused text in hand goes on from there.
                if (seen || self.early_reads.contains(&id))
                    && let Some(text) = self.texts.iter_mut().find(|text| Arc::ptr_eq(&text.file, &base))
                {
                    text.seen = true;
                }
                let report = report::refusal(&self.name, &refusal, text.as_bytes());
                actions.push(self.reject(report));
                actions.extend(self.remove_if_new());
            }
        }
        while self.in_flight.is_none()
            && let Some((id, save)) = self.waiting.pop_front()
        {
            actions.extend(self.take(now_ms, id, save, false));
        }
        actions.extend(self.tick(now_ms));
        actions.extend(self.settle(now_ms));
        actions
    }

    /// Time has passed.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        if self.deadline_ms().is_none_or(|deadline_ms| now_ms < deadline_ms) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        match self.unsettled.take().map(|unsettled| unsettled.what) {
            None | Some(Matter::Gone) => {}
            Some(Matter::NewName { id, save }) => actions.extend(self.take(now_ms, id, save, true)),
            Some(Matter::Refused { report, aside }) => {
                if aside {
                    actions.push(Action::KeepAside);
                    self.content = None;
                }
                actions.push(self.reject(report));
                actions.extend(self.remove_if_new());
            }
            Some(Matter::Obstacle(obstacle)) => {
                actions.push(Action::KeepAside);
                let report = report::obstacle(&self.name, &obstacle);
                if matches!(obstacle, Obstacle::Unreadable { .. }) {
                    self.alarmed = true;
                    let text = format!("{}: {}", self.name, report::obstacle_text(&obstacle));
                    actions.push(Action::Alarm { text });
                }
                actions.push(self.reject(report));
            }
        }
        actions.extend(self.settle(now_ms));
        actions
    }

    /// Decides about a save; `aged`: it has had its grace.
    fn take(&mut self, now_ms: u64, id: TextId, save: Save, aged: bool) -> Vec<Action> {
        let tree = match &self.tree {
            Some(tree) => tree.clone(),
            None if aged || save.orphan => Arc::default(),
            None => {
                self.unsettle(now_ms, Matter::NewName { id, save });
                return Vec::new();
            }
        };
        if self.tree.is_some() && too_long(&tree).is_none() && save.bytes == tree.text().as_bytes() {
            return self.clear_rejected();
        }
        let parsed = match save.bytes.starts_with(REPORT_MARK.as_bytes()) {
            true => Err(report::is_report()),
            false => parse_text_knowing(&self.name, &self.schema, &save.bytes, tree.records()),
        };
        let records = match parsed {
            Ok(records) => records,
            Err(errors) => {
                let text = std::str::from_utf8(&save.bytes).is_ok_and(|text| !text.contains('\0'));
                let report = report::lines(&self.name, &errors, text.then_some(&save.bytes));
                return self.refuse(now_ms, report, !text, save.orphan, aged);
            }
        };
        if records.is_empty() && tree.records().len() > 1 {
            let report = report::emptied(&self.name, tree.records());
            return self.refuse(now_ms, report, false, save.orphan, aged);
        }
        let (base, seen) = self.base_of(&save, &records, &tree);
        let edited = edit_records(&self.name, &base, records, &tree);
        let (records, edits) = (edited.records, edited.edits);
        if edits.is_empty() && records != *tree.records() && difference(base.records(), &records).is_empty() {
            let report = report::stale(&self.name, &save.bytes);
            return self.refuse(now_ms, report, false, save.orphan, aged);
        }
        let text = String::from_utf8_lossy(&save.bytes).into_owned();
        if edits.is_empty() {
            let file = ShownFile::after_save(&base, records, text, &tree, None);
            self.remember(now_ms, id, Arc::new(file), seen);
            return self.clear_rejected();
        }
        self.in_flight = Some(InFlight { id, base, records, text, seen });
        vec![Action::Submit { edits }]
    }

    /// The text that the author of this save had in hand, see the head of this module, and whether what he saved
    /// thereby counts as seen.
    fn base_of(&self, save: &Save, records: &Records, tree: &Arc<ShownFile>) -> (Arc<ShownFile>, bool) {
        let possible = |text: &&Text| !save.orphan || text.id <= save.held;
        let texts: Vec<&Text> = self.texts.iter().filter(possible).collect();
        let Some(newest) = texts.last() else {
            // Of what is not shown nobody can have left anything out.
            let base = if too_long(tree).is_some() { Arc::default() } else { tree.clone() };
            return (base, true);
        };
        let reference = texts.iter().rposition(|text| text.seen);
        let mut best = reference.map_or(newest, |at| &texts[at]);
        let older = || texts[..reference.unwrap_or(0)].iter().rev().filter(|text| text.seen);
        if !older().any(|text| text.file.records() == records) {
            let mut best_lacking = 0;
            for text in older() {
                let lacking = self.lacking(&text.file, &texts[reference.unwrap_or(0)].file, records);
                if lacking > best_lacking {
                    (best, best_lacking) = (text, lacking);
                }
            }
        }
        let best_distance = distance(best.file.records(), records, usize::MAX);
        let held = texts.iter().find(|text| text.id == save.held);
        let appended = held.filter(|held| save.bytes.starts_with(held.file.text().as_bytes()));
        if let Some(held) = appended
            && held.file.records() != tree.records()
            && distance(held.file.records(), records, best_distance) < best_distance
        {
            best = held;
        }
        // Who appends has seen nothing by that; nor is it known of what was written into a forgotten text.
        let untold = match appended {
            Some(held) => !held.seen && reference.is_some(),
            None => held.is_none() && save.held != 0,
        };
        (best.file.clone(), !untold && (best.seen || reference.is_none()))
    }

    /// How many more records, of those that others changed between an older text and a newer, are in a save as they
    /// were in the older than as they are in the newer.
    fn lacking(&self, older: &ShownFile, newer: &ShownFile, records: &Records) -> isize {
        let changed = differing(older.records(), newer.records());
        let by_others = changed.into_iter().filter(|key| !newer.is_by(key, &self.own));
        by_others.fold(0, |lacking, key| match records.get(key) {
            saved if saved == older.records().get(key) => lacking + 1,
            saved if saved == newer.records().get(key) => lacking - 1,
            _ => lacking,
        })
    }

    fn refuse(&mut self, now_ms: u64, report: String, aside: bool, orphan: bool, aged: bool) -> Vec<Action> {
        if orphan {
            return vec![self.reject(report)];
        }
        if !aged {
            self.unsettle(now_ms, Matter::Refused { report, aside });
            return Vec::new();
        }
        let mut actions = Vec::new();
        if aside {
            actions.push(Action::KeepAside);
            self.content = None;
        }
        actions.push(self.reject(report));
        actions.extend(self.remove_if_new());
        actions
    }

    /// Shows the tree's text if nothing stands against it.
    fn settle(&mut self, now_ms: u64) -> Vec<Action> {
        if self.in_flight.is_some() || self.unsettled.is_some() {
            return Vec::new();
        }
        let Some(tree) = self.tree.clone() else { return Vec::new() };
        // A text longer than what is taken back would be kept aside as somebody's.
        if let Some(why) = too_long(&tree) {
            self.too_long = true;
            let text =
                format!("{} has {why}, too much for a plain file, which stays as it was; use p2pdb files", self.name);
            return if std::mem::replace(&mut self.alarmed, true) { Vec::new() } else { vec![Action::Alarm { text }] };
        }
        let mut actions = if std::mem::take(&mut self.too_long) { self.alarm_cleared() } else { Vec::new() };
        if let Some(content) = &self.content
            && content.bytes == tree.text().as_bytes()
        {
            self.remember(now_ms, content.id, tree, false);
            return actions;
        }
        let held = self.content.as_ref().and_then(|content| self.text(content.id));
        let keep_time = held.is_some_and(|held| held.records() == tree.records());
        let shown = self.texts.iter().rev().find(|text| text.file.shows_same(&tree)).map(|text| text.id);
        let id = shown.unwrap_or_else(|| self.next_id());
        self.remember(now_ms, id, tree.clone(), false);
        self.content = Some(Content { id, bytes: tree.text().as_bytes().to_vec() });
        actions.push(Action::Rewrite { id, file: tree, keep_time });
        actions
    }

    /// Remembers a text, or what it stands for by now. One that says what the newest seen one says counts as seen.
    fn remember(&mut self, now_ms: u64, id: TextId, file: Arc<ShownFile>, seen: bool) {
        let seen = seen || self.early_reads.contains(&id);
        let newest_seen = self.texts.iter().rev().find(|text| text.seen);
        let seen = seen || newest_seen.is_some_and(|text| text.file.records() == file.records());
        match self.texts.iter_mut().find(|text| text.id == id) {
            Some(text) => {
                text.file = file;
                text.seen |= seen;
                text.since_ms = now_ms;
            }
            None => {
                let at = self.texts.partition_point(|text| text.id < id);
                self.texts.insert(at, Text { id, file, seen, since_ms: now_ms });
            }
        }
        self.forget_old(now_ms);
    }

    fn forget_old(&mut self, now_ms: u64) {
        let newest = self.texts.back().map_or(0, |text| text.id);
        let seen = self.texts.iter().rev().find(|text| text.seen).map_or(0, |text| text.id);
        let current = self.content.as_ref().map_or(0, |content| content.id);
        let (mut unseen, mut bytes) = (0, 0);
        let mut kept = VecDeque::with_capacity(self.texts.len());
        while let Some(text) = self.texts.pop_back() {
            if [newest, seen, current].contains(&text.id) || self.open.contains(&text.id) {
                kept.push_front(text);
                continue;
            }
            unseen += usize::from(!text.seen);
            let young = now_ms.saturating_sub(text.since_ms) <= TEXT_AGE_MS_MAX;
            let fits = bytes + text.file.weight_bytes() <= TEXTS_BYTES_MAX;
            if young && fits && (text.seen || unseen <= UNSEEN_TEXTS_MAX) {
                bytes += text.file.weight_bytes();
                kept.push_front(text);
            }
        }
        self.texts = kept;
    }

    /// Whether a save is what its file held before, taken or still under way: it was closed without a change, or
    /// read before.
    fn is_known(&self, save: &Save) -> bool {
        self.text(save.held).is_some_and(|text| text.text().as_bytes() == save.bytes)
            || self.in_flight.as_ref().is_some_and(|held| held.id == save.held && held.text.as_bytes() == save.bytes)
            || self.waiting.iter().any(|(id, held)| *id == save.held && held.bytes == save.bytes)
    }

    fn text(&self, id: TextId) -> Option<&Arc<ShownFile>> {
        self.texts.iter().find(|text| text.id == id).map(|text| &text.file)
    }

    fn next_id(&mut self) -> TextId {
        self.last_id += 1;
        self.last_id
    }

    fn unsettle(&mut self, now_ms: u64, what: Matter) {
        self.unsettled = Some(Unsettled { deadline_ms: now_ms + GRACE_MS, what });
    }

    fn reject(&mut self, report: String) -> Action {
        self.rejected = true;
        Action::Reject { report }
    }

    fn remove_if_new(&mut self) -> Option<Action> {
        if self.tree.is_some() {
            return None;
        }
        self.content.take().map(|_| Action::Remove)
    }

    fn clear_rejected(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        if std::mem::take(&mut self.rejected) {
            actions.push(Action::ClearRejected);
        }
        actions.extend(self.alarm_cleared());
        actions
    }

    fn alarm_cleared(&mut self) -> Vec<Action> {
        if std::mem::take(&mut self.alarmed) { vec![Action::AlarmCleared] } else { Vec::new() }
    }
}

/// Why a file cannot be shown as a text, if it cannot.
fn too_long(file: &ShownFile) -> Option<String> {
    match file.records_count() {
        records if records > SHOWN_RECORDS_MAX => Some(format!("{records} records")),
        _ => Some(file.text().len())
            .filter(|bytes| *bytes > TEXT_BYTES_MAX)
            .map(|bytes| format!("{bytes} bytes of text")),
    }
}
