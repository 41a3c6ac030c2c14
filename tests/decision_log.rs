//! `Decision.dat` on a real disk: what was told to be kept is kept, whatever happens to the file in between.
#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::CLUSTER;
use p2pdb::core::chain::{Ballot, ChainRecord, Memory};
use p2pdb::core::decision::{Act, Decision, Incarnation, Slot};
use p2pdb::core::id::{ClusterId, ServerName};
use p2pdb::edge::decision_log::{
    DecisionLogError, DecisionLogEvent, DecisionLogWarning, FILE_NAME, Opened, open, read,
};
use p2pdb::format::decision::DECISION_HEADER_BYTES;
use tempfile::TempDir;

struct Rig {
    directory: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(FILE_NAME)
    }

    fn open(&self) -> (Opened, Receiver<DecisionLogEvent>) {
        let (opened, events) = self.try_open(CLUSTER, 7);
        (opened.unwrap(), events)
    }

    fn try_open(&self, cluster: ClusterId, new: u64) -> (Result<Opened, DecisionLogError>, Receiver<DecisionLogEvent>) {
        let (sender, events) = channel();
        let notify = Arc::new(move |event| drop(sender.send(event)));
        (open(self.directory.path(), cluster, Incarnation(new), 5, notify), events)
    }
}

fn name(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, proposer: name("S1"), incarnation: Incarnation(7) }
}

fn decision(slot: Slot) -> Arc<Decision> {
    let act = match slot {
        1 => Act::Found { founder: name("S1"), incarnation: Incarnation(7) },
        _ => Act::Admit { server: name(&format!("S{slot}")), incarnation: Incarnation(slot) },
    };
    let (author, reason) = ("p2pdb".to_owned(), format!("reason {slot}"));
    Arc::new(Decision { slot, by: name("S1"), wall_ms: 1, author, reason, act })
}

/// What one slot leaves behind at an acceptor.
fn records_of(slot: Slot) -> Vec<Vec<ChainRecord>> {
    vec![
        vec![ChainRecord::Promised { slot, ballot: ballot(1) }],
        vec![ChainRecord::Accepted { ballot: ballot(1), decision: decision(slot) }],
        vec![ChainRecord::Decided(decision(slot)), ChainRecord::Promised { slot: slot + 1, ballot: ballot(9) }],
    ]
}

fn memory_of(records: impl IntoIterator<Item = ChainRecord>) -> Memory {
    let mut memory = Memory::default();
    records.into_iter().for_each(|record| memory.replay(record).unwrap());
    memory
}

fn wait_persisted(events: &Receiver<DecisionLogEvent>, count: usize) {
    for _ in 0..count {
        let event = events.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(event, DecisionLogEvent::Persisted), "{event:?}");
    }
}

#[test]
fn what_was_persisted_comes_back_and_can_be_read_beside_the_daemon() {
    let rig = Rig::new();
    let (opened, events) = rig.open();
    assert_eq!((opened.memory, opened.incarnation), (Memory::default(), Incarnation(7)));
    let batches: Vec<_> = (1..=20).flat_map(records_of).collect();
    batches.iter().cloned().for_each(|batch| opened.log.persist(batch));
    wait_persisted(&events, batches.len());
    let expected = memory_of(batches.concat());
    assert_eq!(read(rig.directory.path()).unwrap().memory, expected, "read while it is open");
    drop(opened.log);
    let (again, _) = rig.try_open(CLUSTER, 8);
    let again = again.unwrap();
    assert_eq!(again.memory, expected);
    assert_eq!(again.incarnation, Incarnation(7), "the life of the memory goes on");
    assert_eq!(again.warnings, []);
}

#[test]
fn cut_at_any_byte_it_holds_what_was_confirmed_before() {
    let rig = Rig::new();
    let (opened, events) = rig.open();
    let batches: Vec<_> = (1..=3).flat_map(records_of).collect();
    let mut ends = vec![DECISION_HEADER_BYTES];
    for batch in &batches {
        opened.log.persist(batch.clone());
        wait_persisted(&events, 1);
        ends.push(read(rig.directory.path()).unwrap().end.at());
    }
    drop(opened.log);
    let whole = fs::read(rig.path()).unwrap();
    let end = *ends.last().unwrap();
    for cut in DECISION_HEADER_BYTES..=end {
        // A file that ends there, and one that has only zeros from there on.
        let shorter = whole[..cut].to_vec();
        let mut zeros = whole.clone();
        zeros[cut..].fill(0);
        let kept = ends.iter().rposition(|end| *end <= cut).unwrap();
        // The last bytes of a frame may be zeros anyway: then zeros have changed nothing.
        let kept_of_zeros = ends.iter().rposition(|end| zeros[..*end] == whole[..*end]).unwrap();
        for (bytes, kept) in [(shorter, kept), (zeros, kept_of_zeros)] {
            fs::write(rig.path(), bytes).unwrap();
            let (opened, events) = rig.open();
            assert_eq!(opened.memory, memory_of(batches[..kept].concat()), "cut at {cut}");
            let torn = DecisionLogWarning::TornTail { offset: ends[kept] as u64 };
            assert!(opened.warnings.is_empty() || opened.warnings == [torn], "cut at {cut}: {:?}", opened.warnings);
            // It goes on from there.
            if kept < batches.len() {
                opened.log.persist(batches[kept].clone());
                wait_persisted(&events, 1);
                drop(opened.log);
                let memory = read(rig.directory.path()).unwrap().memory;
                assert_eq!(memory, memory_of(batches[..=kept].concat()), "cut at {cut}");
            }
        }
    }
}

#[test]
fn damage_before_the_end_is_refused_with_what_to_do() {
    let rig = Rig::new();
    let (opened, events) = rig.open();
    for batch in (1..=3).flat_map(records_of) {
        opened.log.persist(batch);
        wait_persisted(&events, 1);
    }
    drop(opened.log);
    let whole = fs::read(rig.path()).unwrap();
    let first_frame = DECISION_HEADER_BYTES + 10;
    for at in [0, 30, first_frame] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(rig.path(), &damaged).unwrap();
        let error = rig.try_open(CLUSTER, 8).0.err().unwrap_or_else(|| panic!("byte {at} was taken"));
        let text = error.to_string();
        assert!(text.contains("Decision.dat") && text.contains("Move the file away"), "{text}");
        assert_eq!(fs::read(rig.path()).unwrap(), damaged, "nothing has changed");
    }
    fs::write(rig.path(), &whole).unwrap();
    let error = rig.try_open(ClusterId([9; 16]), 8).0.err().unwrap();
    assert!(matches!(error, DecisionLogError::Foreign { found: CLUSTER, .. }), "{error}");
}

#[test]
fn the_file_does_not_grow_with_promises_and_keeps_every_decision() {
    let rig = Rig::new();
    let (opened, events) = rig.open();
    let mut all = Vec::new();
    for slot in 1..=300 {
        let many = (1..20).map(|round| vec![ChainRecord::Promised { slot, ballot: ballot(round) }]);
        for batch in many.chain([vec![ChainRecord::Decided(decision(slot))]]) {
            all.extend(batch.clone());
            opened.log.persist(batch);
        }
    }
    wait_persisted(&events, 300 * 20);
    drop(opened.log);
    let bytes = fs::metadata(rig.path()).unwrap().len();
    assert!(bytes < 500 << 10, "{bytes} bytes");
    let (again, _) = rig.open();
    assert_eq!(again.memory, memory_of(all));
    assert_eq!(again.memory.decisions.len(), 300);
}

#[test]
fn without_room_nothing_is_confirmed_until_there_is_some() {
    let rig = Rig::new();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k", "p2pdb-test"])
        .arg(rig.directory.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "**** SKIPPED: without_room_nothing_is_confirmed_until_there_is_some needs the right to mount a tmpfs"
        );
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(rig.directory.path().to_owned());
    let ballast = rig.directory.path().join("ballast");
    fs::write(&ballast, vec![1; 300 << 10]).unwrap();
    let (opened, events) = rig.open();
    let batch = |slot| vec![ChainRecord::Decided(decision(slot))];
    let mut slot = 0;
    loop {
        slot += 1;
        opened.log.persist(batch(slot));
        match events.recv_timeout(Duration::from_secs(10)).unwrap() {
            DecisionLogEvent::Persisted => assert!(slot < 20_000),
            DecisionLogEvent::NoRoom => break,
            other => panic!("{other:?}"),
        }
    }
    opened.log.persist(batch(slot + 1));
    fs::remove_file(&ballast).unwrap();
    let event = events.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(event, DecisionLogEvent::Room), "nothing was confirmed before: {event:?}");
    wait_persisted(&events, 2);
    drop(opened.log);
    assert_eq!(read(rig.directory.path()).unwrap().memory, memory_of((1..=slot + 1).flat_map(batch)));
}
