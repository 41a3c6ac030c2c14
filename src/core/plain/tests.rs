//! A file without a file system: a tree of real entries, a remote server, authors with buffers of any age.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::core::clock::{HybridClock, Now};
use crate::core::diff::{Change, Diff};
use crate::core::entry::Entry;
use crate::core::id::{Digest, EntryId, Lane, ServerName, Stream};
use crate::core::io::Wait;
use crate::core::merge::Files;
use crate::core::priority::Class;
use crate::core::record::Record;

struct World {
    name: FileName,
    files: Files,
    clock: HybridClock,
    file: PlainFile,
    now_ms: u64,
    /// The text under the name, and which text its inode held.
    disk: Option<(Vec<u8>, TextId)>,
    rejected: Option<String>,
    kept: usize,
    alarm: Option<String>,
    pending: Option<Vec<Edit>>,
    submitted: Vec<Edit>,
}

impl World {
    fn new(lines: &[&str]) -> Self {
        Self::named("Notes", lines)
    }

    fn named(name: &str, lines: &[&str]) -> Self {
        let name = FileName::new(name).unwrap();
        let schema = Schema::builtin(&name).unwrap_or_else(Schema::any);
        let mut world = Self {
            file: PlainFile::new(name.clone(), schema, None),
            name,
            files: Files::default(),
            clock: HybridClock::default(),
            now_ms: 1000,
            disk: None,
            rejected: None,
            kept: 0,
            alarm: None,
            pending: None,
            submitted: Vec::new(),
        };
        lines.iter().for_each(|line| world.apply_remote(line));
        world.shown();
        world
    }

    fn carry(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Submit { edits } => {
                    assert!(self.pending.is_none(), "one submission at a time");
                    self.submitted = edits.clone();
                    self.pending = Some(edits);
                }
                Action::Rewrite { id, file, .. } => self.disk = Some((file.text().as_bytes().to_vec(), id)),
                Action::KeepAside => {
                    self.disk = None;
                    self.kept += 1;
                }
                Action::Reject { report } => self.rejected = Some(report),
                Action::ClearRejected => self.rejected = None,
                Action::Remove => self.disk = None,
                Action::Alarm { text } => self.alarm = Some(text),
                Action::AlarmCleared => self.alarm = None,
            }
        }
    }

    fn apply(&mut self, origin: &str, edits: &[Edit]) -> EntryId {
        let stream = Stream { origin: ServerName::new(origin).unwrap(), run: 1, lane: Lane::Audit };
        let id = EntryId { seq: self.files.seen().seq(&stream) + 1, stream };
        let schema = self.files.schema(&self.name);
        let diffs = edits
            .iter()
            .map(|edit| {
                let record = match &edit.change {
                    Change::Add(record) | Change::Del(record) | Change::Mod { after: record, .. } => record,
                };
                let key = schema.key_of(record);
                let held = self.files.file(&self.name).and_then(|file| file.register(&key));
                let bases = edit.bases.clone().unwrap_or_else(|| held.map_or(Vec::new(), |held| held.bases()));
                Diff { file: self.name.clone(), key, change: edit.change.clone(), bases }
            })
            .collect();
        let time = self.clock.tick(Now { wall_ms: self.now_ms, monotonic_us: 0 });
        let entry = Entry {
            id: id.clone(),
            time,
            class: Class::Transmission,
            author: String::new(),
            reason: String::new(),
            previous: Digest::ZERO,
            certificate: None,
            diffs,
        };
        self.files.apply(&entry);
        id
    }

    /// `a, 1` sets the record, `-a` deletes it.
    fn apply_remote(&mut self, line: &str) {
        let held = |key: &str| self.files.file(&self.name).and_then(|file| file.record(key)).cloned();
        let change = match line.strip_prefix('-') {
            Some(key) => match held(key) {
                Some(record) => Change::Del(record),
                None => return,
            },
            None => {
                let after = Record::parse(line).unwrap();
                match held(after.field(0)) {
                    Some(before) => Change::Mod { before, after },
                    None => Change::Add(after),
                }
            }
        };
        self.apply("remote", &[Edit { file: self.name.clone(), change, bases: None }]);
    }

    fn tree(&self) -> Arc<ShownFile> {
        Arc::new(self.files.file(&self.name).map(ShownFile::of).unwrap_or_default())
    }

    fn shown(&mut self) {
        if self.files.file(&self.name).is_some() {
            let actions = self.file.show(self.now_ms, self.tree());
            self.carry(actions);
        }
    }

    fn remote(&mut self, line: &str) {
        self.apply_remote(line);
        self.shown();
    }

    fn read(&mut self) -> String {
        let (bytes, id) = self.disk.clone().expect("the file is there");
        self.file.read(id);
        String::from_utf8(bytes).unwrap()
    }

    /// As a shell's `>` or `>>` does it.
    fn write(&mut self, text: &str) {
        let held = self.disk.as_ref().map_or(0, |(_, id)| *id);
        self.write_to(held, false, text);
    }

    /// As `mv` does it.
    fn replace(&mut self, text: &str) {
        self.write_to(0, false, text);
    }

    fn write_to(&mut self, held: TextId, orphan: bool, text: &str) {
        let (id, actions) = self.file.saved(self.now_ms, Save { bytes: text.into(), held, orphan });
        if !orphan {
            self.disk = Some((text.into(), id));
        }
        self.carry(actions);
    }

    fn commit(&mut self) {
        while let Some(edits) = self.pending.take() {
            let entry = self.apply("here", &edits);
            let committed = Committed { entry, reached: Wait::Local, asked: Wait::Local, lacking: Vec::new() };
            let actions = self.file.outcome(self.now_ms, Ok((committed, self.tree())));
            self.carry(actions);
        }
    }

    fn wait(&mut self) {
        self.now_ms += GRACE_MS;
        let actions = self.file.tick(self.now_ms);
        self.carry(actions);
    }

    fn lines(&self) -> Vec<String> {
        self.tree().text().lines().map(str::to_owned).collect()
    }

    fn conflicts(&self) -> usize {
        self.files.conflicts().count()
    }

    #[track_caller]
    fn ends_as(&mut self, lines: &[&str]) {
        self.commit();
        self.wait();
        self.commit();
        assert_eq!(self.lines(), lines);
        let shown = self.disk.as_ref().map(|(bytes, _)| String::from_utf8_lossy(bytes).into_owned());
        assert_eq!(shown.as_deref(), Some(self.tree().text()), "in step");
    }
}

#[test]
fn a_save_is_submitted_and_not_echoed() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.write("a, 1\nb, 2\n");
    assert_eq!(world.submitted.len(), 1);
    world.commit();
    world.shown();
    world.write("a, 1\nb, 2\n");
    assert!(world.pending.is_none());
    world.ends_as(&["a, 1", "b, 2"]);
    assert_eq!((world.conflicts(), world.rejected), (0, None));
}

#[test]
fn the_layout_of_a_save_gives_way_to_the_trees_and_keeps_its_time() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.write("b,1\n\na,   1\n");
    world.ends_as(&["a, 1", "b, 1"]);
    let text = "c, 1\na, 1\nb, 1";
    let (_, actions) = world.file.saved(1, Save { bytes: text.into(), held: 0, orphan: false });
    world.disk = Some((text.into(), 99));
    world.carry(actions);
    let edits = world.pending.take().unwrap();
    let entry = world.apply("here", &edits);
    let committed = Committed { entry, reached: Wait::Local, asked: Wait::Local, lacking: Vec::new() };
    let actions = world.file.outcome(1, Ok((committed, world.tree())));
    assert!(matches!(actions[..], [Action::Rewrite { keep_time: true, .. }]), "{actions:?}");
}

#[test]
fn a_stale_buffer_keeps_what_arrived_meanwhile() {
    let mut world = World::new(&["a, 1", "b, 1", "c, 1"]);
    world.read();
    world.remote("b, 2");
    world.remote("d, 1");
    world.write("a, 1\nb, 1\nc, 2\n");
    world.ends_as(&["a, 1", "b, 2", "c, 2", "d, 1"]);
    assert_eq!(world.conflicts(), 0);
}

#[test]
fn a_stale_buffer_is_recognised_though_somebody_else_has_read_the_new_text() {
    let mut world = World::new(&["a, 1", "b, 1", "c, 1"]);
    world.read();
    world.remote("b, 2");
    world.read();
    world.replace("a, 1\nb, 1\nc, 2\n");
    world.ends_as(&["a, 1", "b, 2", "c, 2"]);
}

#[test]
fn both_sides_change_a_record_and_both_are_kept() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.remote("a, 2");
    world.write("a, 3\nb, 1\n");
    world.ends_as(&["a, 3", "b, 1"]);
    assert_eq!(world.conflicts(), 1);
}

#[test]
fn what_both_sides_did_alike_is_no_edit() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.remote("a, 2");
    world.remote("c, 1");
    world.write("a, 2\nb, 1\nd, 1\n");
    assert_eq!(world.submitted.len(), 1);
    world.ends_as(&["a, 2", "b, 1", "c, 1", "d, 1"]);
    assert_eq!((world.conflicts(), world.rejected), (0, None));
}

#[test]
fn appending_without_reading_keeps_what_arrived_meanwhile() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.remote("b, 2");
    let text = world.tree().text().to_owned() + "c, 1\n";
    world.write(&text);
    assert_eq!(world.submitted.len(), 1);
    world.ends_as(&["a, 1", "b, 2", "c, 1"]);
    assert_eq!((world.conflicts(), world.rejected.clone()), (0, None));
    world.replace("a, 2\nb, 1\n");
    world.ends_as(&["a, 2", "b, 2", "c, 1"]);
}

#[test]
fn a_stale_buffer_that_looks_like_an_append_is_none() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.remote("-b");
    world.write("a, 1\nb, 1\n");
    world.ends_as(&["a, 1"]);
    assert!(world.rejected.is_some());
    world.write("a, 1\nb, 1\nc, 1\n");
    world.ends_as(&["a, 1", "c, 1"]);
}

#[test]
fn a_deliberate_return_to_an_older_text_works_after_reading() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.remote("b, 2");
    world.read();
    world.write("a, 1\nb, 1\n");
    world.ends_as(&["a, 1", "b, 1"]);
    assert_eq!(world.conflicts(), 0);
}

#[test]
fn an_older_text_saved_unread_is_refused_as_stale() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.remote("b, 2");
    world.replace("a, 1\nb, 1\n");
    world.ends_as(&["a, 1", "b, 2"]);
    assert!(world.rejected.as_ref().unwrap().contains("nothing new"), "{:?}", world.rejected);
    world.read();
    world.replace("a, 1\nb, 1\n");
    world.ends_as(&["a, 1", "b, 1"]);
    assert_eq!(world.rejected, None);
}

#[test]
fn a_partial_return_taken_for_a_stale_buffer_works_the_second_time() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.remote("b, 2");
    world.read();
    world.write("a, 2\nb, 1\n");
    world.ends_as(&["a, 2", "b, 2"]);
    world.read();
    world.write("a, 2\nb, 1\n");
    world.ends_as(&["a, 2", "b, 1"]);
    assert_eq!(world.conflicts(), 0);
}

#[test]
fn taking_back_ones_own_work_is_no_stale_buffer() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    for text in ["a, 1\nb, 1\nc, 1\n", "a, 1\nb, 1\nc, 1\nd, 1\n", "a, 1\n"] {
        world.write(text);
        world.commit();
    }
    world.ends_as(&["a, 1"]);
    world.write("a, 1\nb, 1\nc, 1\n");
    world.ends_as(&["a, 1", "b, 1", "c, 1"]);
    assert_eq!((world.conflicts(), world.rejected), (0, None));
}

#[test]
fn a_script_that_never_reads_replaces_the_file() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.write("a, 1\nc, 1\n");
    world.ends_as(&["a, 1", "c, 1"]);
    world.write("a, 1\nd, 1\n");
    world.ends_as(&["a, 1", "d, 1"]);
    assert_eq!((world.conflicts(), world.rejected), (0, None));
}

#[test]
fn an_author_who_saves_twice_builds_on_his_first_save() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.read();
    world.write("a, 2\nb, 1\n");
    world.remote("c, 1");
    world.write("a, 3\nb, 1\n");
    world.ends_as(&["a, 3", "b, 1", "c, 1"]);
    assert_eq!(world.conflicts(), 0);
    world.remote("c, 2");
    world.replace("b, 1\n");
    world.ends_as(&["b, 1", "c, 2"]);
    assert_eq!(world.conflicts(), 0);
    world.replace("a, 4\nb, 1\n");
    world.ends_as(&["a, 4", "b, 1", "c, 2"]);
    assert_eq!(world.conflicts(), 0, "the deletion was his own, so it is built upon");
}

#[test]
fn saves_in_a_burst_wait_for_each_other_and_the_last_counts() {
    let mut world = World::new(&["a, 1"]);
    world.write("a, 1\nb, 1\n");
    world.write("a, 1\nb, 1\nc, 1\n");
    world.write("a, 1\nb, 1\nc, 1\nd, 1\n");
    assert_eq!(world.submitted.len(), 1);
    world.ends_as(&["a, 1", "b, 1", "c, 1", "d, 1"]);
    assert_eq!(world.conflicts(), 0);
}

#[test]
fn what_is_written_into_a_replaced_file_is_not_lost() {
    let mut world = World::new(&["a, 1"]);
    let held = world.disk.as_ref().unwrap().1;
    world.remote("b, 1");
    world.read();
    world.write_to(held, true, "a, 1\nc, 1\n");
    world.ends_as(&["a, 1", "b, 1", "c, 1"]);
    world.write_to(held, true, "a, 1\n\"\n");
    assert!(world.rejected.is_some());
    world.ends_as(&["a, 1", "b, 1", "c, 1"]);
}

#[test]
fn a_replaced_file_that_is_closed_again_says_nothing_new() {
    let mut world = World::new(&["a, 1"]);
    world.write("a, 1\nb, 1\n");
    let held = world.disk.as_ref().unwrap().1;
    world.remote("r, 1");
    let save = |bytes: &str, held| Save { bytes: bytes.into(), held, orphan: true };
    let (first, actions) = world.file.saved(world.now_ms, save("a, 1\nb, 1\nc, 1\n", held));
    assert_eq!(actions, []);
    let (second, _) = world.file.saved(world.now_ms, save("a, 1\nb, 1\nc, 1\n", first));
    assert_eq!(first, second);
    world.ends_as(&["a, 1", "b, 1", "c, 1", "r, 1"]);
    assert_eq!(world.rejected, None);
}

#[test]
fn half_written_texts_get_their_grace() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    world.write("");
    assert!(world.pending.is_none() && world.rejected.is_none());
    world.write("a, 1\nb, 2\n");
    world.ends_as(&["a, 1", "b, 2"]);
    world.write("a, 1\nb, \"");
    world.remote("c, 1");
    world.write("a, 1\nb, \"3\"\n");
    world.ends_as(&["a, 1", "b, 3", "c, 1"]);
    assert_eq!(world.rejected, None);
}

#[test]
fn an_emptied_file_comes_back_with_the_commands() {
    let mut world = World::new(&["it's, 1", "b, 1"]);
    world.write("");
    world.ends_as(&["b, 1", "it's, 1"]);
    let report = world.rejected.clone().unwrap();
    assert!(report.contains("p2pdb files del Notes 'b, 1'") && report.contains(r"'it'\''s, 1'"), "{report}");
    world.read();
    world.write("b, 1\n");
    assert_eq!(world.submitted.len(), 1);
    world.commit();
    assert_eq!(world.rejected, None, "a good save clears the report");
    world.write("");
    world.ends_as(&[]);
}

#[test]
fn a_deleted_file_comes_back_unless_something_takes_its_place() {
    let mut world = World::new(&["a, 1"]);
    world.disk = None;
    world.file.gone(world.now_ms);
    world.remote("b, 1");
    assert_eq!(world.disk, None, "the grace is kept also when there is news");
    world.ends_as(&["a, 1", "b, 1"]);
    world.read();
    world.disk = None;
    world.file.gone(world.now_ms);
    world.replace("a, 1\nb, 2\n");
    world.ends_as(&["a, 1", "b, 2"]);
}

#[test]
fn a_schema_violation_refuses_the_whole_save() {
    let mut world = World::named("Group", &["S1"]);
    world.write("S1\nS2\nS3, x\n");
    world.ends_as(&["S1"]);
    let report = world.rejected.clone().unwrap();
    assert!(report.contains("line 3: 'S3, x': Group takes 1 field") && report.ends_with("S1\nS2\nS3, x\n"), "{report}");
    world.write(&report);
    world.ends_as(&["S1"]);
    assert!(world.rejected.unwrap().contains("is a report of p2pdb"));
}

#[test]
fn a_refusal_by_the_node_puts_the_file_back() {
    let mut world = World::new(&["a, 1"]);
    world.write("a, 2\n");
    world.pending = None;
    let actions = world.file.outcome(world.now_ms, Err(Refusal::DiskFull));
    world.carry(actions);
    world.ends_as(&["a, 1"]);
    assert!(world.rejected.as_ref().unwrap().contains("disk is full"));
}

#[test]
fn a_new_name_makes_a_file_after_its_grace() {
    let mut world = World::new(&[]);
    world.write("a, 1\n");
    assert!(world.pending.is_none());
    world.wait();
    world.ends_as(&["a, 1"]);

    let mut world = World::new(&[]);
    world.write("a, 1\n");
    world.disk = None;
    world.file.gone(world.now_ms);
    world.wait();
    assert!(world.pending.is_none() && world.file.is_forgettable(), "it was a temporary file");

    let mut world = World::new(&[]);
    world.write("\"\n");
    world.wait();
    world.wait();
    assert!(world.rejected.is_some() && world.disk.is_none());
}

#[test]
fn obstacles_are_moved_aside() {
    for (obstacle, alarm) in [
        (Obstacle::Directory, false),
        (Obstacle::SymbolicLink, false),
        (Obstacle::TooLarge { bytes: 5_000_000 }, false),
        (Obstacle::Unreadable { why: "EACCES".into() }, true),
    ] {
        let mut world = World::new(&["a, 1"]);
        let actions = world.file.obstacle(world.now_ms, obstacle);
        world.carry(actions);
        world.ends_as(&["a, 1"]);
        assert_eq!((world.kept, world.rejected.is_some(), world.alarm.is_some()), (1, true, alarm));
        let actions = world.file.acknowledged();
        world.carry(actions);
        assert_eq!(world.alarm, None);
    }
    let mut world = World::new(&["a, 1"]);
    world.write("a\0b");
    world.ends_as(&["a, 1"]);
    assert_eq!(world.kept, 1, "binary junk is kept as it is");
}

#[test]
fn at_the_start_nothing_is_lost_and_nothing_guessed() {
    let start = |bytes: &str, untouched| {
        let mut world = World::new(&["a, 1", "b, 1"]);
        world.file = PlainFile::new(world.name.clone(), Schema::any(), Some(world.tree()));
        let (id, actions) = world.file.begin(1, Found::Text { bytes: bytes.into(), untouched });
        world.disk = Some((bytes.into(), id));
        world.carry(actions);
        world
    };
    let mut same = start("a, 1\nb, 1\n", false);
    same.ends_as(&["a, 1", "b, 1"]);
    assert_eq!(same.rejected, None);
    let mut behind = start("a, 1\n", true);
    behind.ends_as(&["a, 1", "b, 1"]);
    assert_eq!(behind.rejected, None);
    behind.replace("a, 2\n");
    behind.ends_as(&["a, 2", "b, 1"]);
    assert_eq!(behind.conflicts(), 0, "the stale editor changed what the tree still says");
    let mut changed = start("a, 1\nc, 1\n", false);
    changed.ends_as(&["a, 1", "b, 1"]);
    assert!(changed.rejected.unwrap().ends_with("a, 1\nc, 1\n"));
}

#[test]
fn memory_is_bounded() {
    let mut world = World::new(&["a, 0"]);
    world.read();
    for number in 1..200 {
        world.remote(&format!("a, {number}"));
    }
    assert!(world.file.texts.len() <= UNSEEN_TEXTS_MAX + 3, "with the newest, the newest seen and the one in the file");
    assert!(world.file.texts.iter().any(|text| text.seen), "the last text that was seen is never forgotten");
    let long = "x".repeat(4000);
    for number in 0..3 * TEXTS_BYTES_MAX / 4000 {
        world.remote(&format!("a, {number}, {long}"));
        world.read();
    }
    let bytes: usize = world.file.texts.iter().map(|text| text.file.weight_bytes()).sum();
    assert!(bytes <= TEXTS_BYTES_MAX + 3 * 5000, "{bytes} bytes of texts that were seen");
}

#[test]
fn names_that_are_left_alone() {
    for name in [
        "4913",
        "5036",
        ".Group.swp",
        "Group~",
        "Group.bak",
        "#Group#",
        "Group.rejected",
        "Group.kept.rejected",
        "a b",
        "",
    ] {
        assert!(!is_shown_name(name), "{name}");
    }
    for name in ["Group", "S1.conf", "4914", "2024"] {
        assert!(is_shown_name(name), "{name}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Read,
    Edit(u8, u8),
    Save { replace: bool },
    Append(u8),
    Remote(u8, u8),
    Orphan(u8),
    Commit,
    Refuse,
    Delete,
    Garbage,
    Empty,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Read),
        4 => (0..5u8, 0..4u8).prop_map(|(key, value)| Step::Edit(key, value)),
        4 => any::<bool>().prop_map(|replace| Step::Save { replace }),
        1 => (10..14u8).prop_map(Step::Append),
        4 => (0..5u8, 0..4u8).prop_map(|(key, value)| Step::Remote(key, value)),
        1 => (14..16u8).prop_map(Step::Orphan),
        3 => Just(Step::Commit),
        1 => Just(Step::Refuse),
        1 => Just(Step::Delete),
        1 => Just(Step::Garbage),
        1 => Just(Step::Empty),
        2 => Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// One author and one remote server do anything in any order. It ends in step, and what the remote server wrote
    /// last to a record that the author never touched stands, or its overruling is in the list of conflicts.
    #[test]
    fn it_ends_in_step_and_remote_edits_stand(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new(&["k0, 1", "k1, 1", "k2, 1", "k3, 1"]);
        let mut buffer = Records::new();
        let mut touched = std::collections::BTreeSet::new();
        let mut remote = std::collections::BTreeMap::new();
        let mut open = false;
        for step in steps {
            match step {
                Step::Read => if world.disk.is_some() {
                    let text = world.read();
                    if let Ok(records) = crate::core::text::parse_text(&world.name, &Schema::any(), text.as_bytes()) {
                        if records.is_empty() {
                            // He goes on from a file that was just emptied.
                            touched.extend((0..5).map(|number| format!("k{number}")));
                        }
                        buffer = records;
                        open = true;
                    }
                },
                Step::Edit(key, value) => {
                    let key = format!("k{key}");
                    touched.insert(key.clone());
                    match value {
                        0 => { buffer.remove(&key); }
                        value => { buffer.insert(key.clone(), Record::of([&key, &value.to_string()])); }
                    }
                }
                Step::Save { replace } if open => {
                    let text: String = buffer.values().map(|record| format!("{record}\n")).collect();
                    if replace { world.replace(&text) } else { world.write(&text) }
                }
                Step::Append(key) => if let Some((bytes, _)) = world.disk.clone()
                    && let Ok(text) = String::from_utf8(bytes) {
                    let key = format!("k{key}");
                    touched.insert(key.clone());
                    if text.is_empty() {
                        // Emptied, then written: the author has replaced everything.
                        touched.extend((0..5).map(|number| format!("k{number}")));
                    }
                    world.write(&format!("{text}{key}, 1\n"));
                },
                Step::Orphan(key) => if let Some((bytes, id)) = world.disk.clone()
                    && let Ok(text) = String::from_utf8(bytes) {
                    let key = format!("k{key}");
                    touched.insert(key.clone());
                    if text.is_empty() {
                        touched.extend((0..5).map(|number| format!("k{number}")));
                    }
                    world.write_to(id, true, &format!("{text}{key}, 1\n"));
                },
                Step::Remote(key, value) => {
                    let key = format!("k{key}");
                    let line = if value == 0 { format!("-{key}") } else { format!("{key}, {value}") };
                    remote.insert(key, (value > 0).then(|| Record::parse(&line).unwrap()));
                    world.remote(&line);
                }
                Step::Commit => world.commit(),
                Step::Refuse => if world.pending.take().is_some() {
                    let actions = world.file.outcome(world.now_ms, Err(Refusal::Busy));
                    world.carry(actions);
                },
                Step::Delete => {
                    world.disk = None;
                    let actions = world.file.gone(world.now_ms);
                    world.carry(actions);
                }
                Step::Garbage => world.write("k0, 1\n\"open\n"),
                Step::Empty => {
                    touched.extend((0..5).map(|number| format!("k{number}")));
                    world.write("");
                }
                Step::Wait => world.wait(),
                Step::Save { .. } => {}
            }
        }
        world.commit();
        world.wait();
        world.commit();
        let tree = world.tree();
        let shown = world.disk.as_ref().map(|(bytes, _)| bytes.as_slice());
        prop_assert_eq!(shown, Some(tree.text().as_bytes()));
        for (key, value) in remote {
            let register = world.files.file(&world.name).unwrap().register(&key);
            let stands = tree.records().get(&key) == value.as_ref();
            let kept = register.is_some_and(|register| register.conflicts().any(|leaf| leaf.value == value));
            prop_assert!(stands || kept || touched.contains(&key), "{} of the remote server is gone", key);
        }
    }
}

#[test]
fn a_text_too_long_to_be_taken_back_is_told_and_not_shown() {
    let mut world = World::new(&["a, 1", "b, 1"]);
    let long = "x".repeat(4000);
    (0..1100).for_each(|number| world.apply_remote(&format!("r{number}, {long}")));
    world.remote("b, 2");
    assert_eq!(world.disk.as_ref().unwrap().0, b"a, 1\nb, 1\n");
    assert!(world.alarm.as_ref().unwrap().contains("bytes of text"), "{:?}", world.alarm);
    // What is shown is old, and a save in it is one of what was seen.
    world.read();
    world.write("a, 7\nb, 1\n");
    world.commit();
    assert_eq!(world.files.file(&world.name).unwrap().record("a").unwrap().field(1), "7");
    assert_eq!(world.files.file(&world.name).unwrap().record("b").unwrap().field(1), "2");
    (0..1100).for_each(|number| world.apply_remote(&format!("-r{number}")));
    world.remote("c, 1");
    assert_eq!(world.alarm, None);
    world.ends_as(&["a, 7", "b, 2", "c, 1"]);
}

#[test]
fn what_is_saved_under_a_name_that_is_not_shown_deletes_nothing() {
    let mut world = World::new(&[]);
    let long = "x".repeat(4000);
    (0..1100).for_each(|number| world.apply_remote(&format!("r{number}, {long}")));
    world.remote("b, 2");
    assert_eq!(world.disk, None);
    world.replace("a, 1\n");
    world.commit();
    assert_eq!(world.files.file(&world.name).unwrap().len(), 1102);
}

#[test]
fn of_what_could_not_be_written_yet_only_the_last_state_of_a_name_counts() {
    let file = World::new(&["a, 1"]).tree();
    let rewrite = |id| Action::Rewrite { id, file: file.clone(), keep_time: false };
    let reject = || Action::Reject { report: String::new() };
    assert!(rewrite(2).replaces(&rewrite(1)) && Action::Remove.replaces(&rewrite(1)));
    assert!(Action::ClearRejected.replaces(&reject()) && reject().replaces(&Action::ClearRejected));
    assert!(
        !rewrite(2).replaces(&reject()) && !reject().replaces(&rewrite(1)) && !rewrite(2).replaces(&Action::KeepAside)
    );
}
