//! The view: a projection that may be lost, damaged or too new, and is right again afterwards.
#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Origin, files_of, record};
use p2pdb::core::clock::Timestamp;
use p2pdb::core::id::{EntryId, FileName, Lane, Stream};
use p2pdb::core::merge::{Files, Leaf, Register, Written};
use p2pdb::core::version::{Vector, Version};
use p2pdb::edge::view::{Opened, View};

fn open(directory: &Path, log: Option<&Vector>) -> Opened {
    View::open(directory, log).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens a view that must be accepted as it is.
fn accepted(directory: &Path, log: Option<&Vector>) -> Files {
    let opened = open(directory, log);
    let reason = opened.reason_for_rebuild;
    opened.state.unwrap_or_else(|| panic!("not accepted: {reason:?}"))
}

fn sample(count: usize) -> Files {
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut entries = vec![mail.entry(&[])];
    for number in 0..count {
        let key = format!("k{number:05}");
        entries.push(mail.unsigned(&[(["Notes", "Other"][number % 2], &key, Some(&format!("{key}, value")))]));
    }
    entries.push(mail.entry(&[("Notes", "k00000", None)]));
    files_of(&entries)
}

fn filled(directory: &Path, files: &Files) {
    let opened = open(directory, None);
    assert!(opened.state.is_none() && opened.reason_for_rebuild.is_none());
    opened.view.rewrite(files, None);
    opened.view.close();
}

fn asides(directory: &Path) -> Vec<PathBuf> {
    let parent = directory.parent().unwrap();
    let paths = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("view.broken-")).collect()
}

#[test]
fn what_is_projected_is_there_after_a_restart() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut files = Files::default();
    let opened = open(&directory, None);
    let first = mail.entry(&[]);
    files.apply(first.entry());
    for _ in 0..700 {
        let sealed = mail.small();
        files.apply(sealed.entry());
        let written = files.written(sealed.entry().touched().collect());
        opened.view.project(written, files.seen().clone());
    }
    assert!(opened.view.waiting() <= 100, "only the last value of a key waits");
    opened.view.close();
    let opened = open(&directory, Some(files.seen()));
    assert_eq!(opened.reason_for_rebuild, None);
    assert_eq!(opened.state.unwrap(), files);
}

#[test]
fn after_very_many_starts_of_daemons_it_still_tells_what_is_in_it() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    let stream = Origin::new("mail", 1, Lane::Audit).stream;
    let seen: Vector = (1..=50_000).map(|run| (Stream { run, ..stream.clone() }, 3)).collect();
    let opened = open(&directory, None);
    opened.view.project(Vec::new(), seen.clone());
    opened.view.close();
    assert_eq!(*accepted(&directory, Some(&seen)).seen(), seen);
}

#[test]
fn deleted_and_rebuilt_it_has_the_same_digest() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    let files = sample(1200);
    filled(&directory, &files);
    fs::remove_dir_all(&directory).unwrap();
    filled(&directory, &files);
    let state = accepted(&directory, Some(files.seen()));
    assert_eq!(state.digest(), files.digest());
    assert_eq!(state, files);
}

#[test]
fn a_view_ahead_of_the_log_is_moved_aside() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    let files = sample(10);
    for _ in 0..2 {
        filled(&directory, &files);
        let behind: Vector = files.seen().iter().map(|(stream, seq)| (stream.clone(), seq - 1)).collect();
        let opened = open(&directory, Some(&behind));
        assert!(opened.state.is_none());
        assert_eq!(opened.reason_for_rebuild.as_deref(), Some("it is ahead of the log"));
        opened.view.rewrite(&files, None);
        opened.view.close();
        assert_eq!(accepted(&directory, Some(files.seen())), files);
        assert_eq!(asides(&directory).len(), 1, "one is kept, not more");
        fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn a_view_that_lags_is_brought_up_to_date() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    filled(&directory, &sample(10));
    let files = sample(20);
    let opened = open(&directory, Some(files.seen()));
    let state = opened.state.unwrap();
    opened.view.rewrite(&files, Some(&state));
    assert!(opened.view.waiting() <= 12, "only what differs is written");
    opened.view.close();
    assert_eq!(accepted(&directory, None), files);
}

#[test]
fn long_values_come_back_and_shrink_again() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let id = mail.entry(&[]).id().clone();
    let value = record(&"x".repeat(4000));
    let leaf = |seq: u64| Leaf {
        version: Version { time: Timestamp(seq), entry: EntryId { stream: id.stream.clone(), seq } },
        value: Some(value.clone()),
    };
    let seen: Vector = [(id.stream.clone(), 100)].into_iter().collect();
    for leaves in [100u64, 30, 1, 60] {
        let register = Register { leaves: (1..=leaves).rev().map(leaf).collect(), early: Vec::new() };
        let written = Written { file: FileName::new("Notes").unwrap(), key: "k".into(), register: register.clone() };
        let opened = open(&directory, None);
        assert_eq!(opened.reason_for_rebuild, None);
        opened.view.project(vec![written], seen.clone());
        opened.view.close();
        let state = accepted(&directory, Some(&seen));
        assert_eq!(state.file(&FileName::new("Notes").unwrap()).unwrap().register("k"), Some(&register));
    }
}

#[test]
fn damage_is_never_taken_for_the_truth() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    let files = sample(600);
    filled(&directory, &files);
    let database = directory.join("db");
    let whole = fs::read(&database).unwrap();
    let used = whole.iter().rposition(|&byte| byte != 0).unwrap();
    let mut rebuilt = 0;
    let mut damaged: Vec<Vec<u8>> = Vec::new();
    for part in 1..8 {
        let mut flipped = whole.clone();
        flipped[used * part / 8] ^= 0x10;
        damaged.push(flipped);
    }
    for cut in [1, 600, 60_000] {
        damaged.push(whole[..used.saturating_sub(cut)].to_vec());
    }
    damaged.push(Vec::new());
    for bytes in damaged {
        fs::write(&database, &bytes).unwrap();
        let opened = open(&directory, Some(files.seen()));
        match &opened.state {
            // What is accepted is either all of it, or an older state that adds up.
            Some(state) => assert!(state.seen() != files.seen() || *state == files),
            None => rebuilt += 1,
        }
        opened.view.rewrite(&files, opened.state.as_ref());
        opened.view.close();
        let state = accepted(&directory, Some(files.seen()));
        assert_eq!(state.digest(), files.digest());
        fs::remove_dir_all(&directory).unwrap();
        filled(&directory, &files);
    }
    assert!(rebuilt >= 3, "{rebuilt}");
}

#[test]
fn a_view_that_another_holds_is_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("view");
    let files = sample(10);
    filled(&directory, &files);
    let holder = fs::File::open(directory.join("db")).unwrap();
    holder.lock().unwrap();
    assert!(matches!(View::open(&directory, None), Err(p2pdb::edge::view::ViewError::Held(_))));
    assert!(asides(&directory).is_empty());
    drop(holder);
    assert_eq!(accepted(&directory, Some(files.seen())), files);
}
