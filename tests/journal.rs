//! The log on a real disk: what is appended comes back, whatever is done to the files in between.
#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::rig::{Open, Rig, checkpoint_of, read_all, some};
use common::{CLUSTER, Origin, files_of, heads_of};
use p2pdb::core::id::{ClusterId, Lane};
use p2pdb::core::io::Input;
use p2pdb::edge::journal::{ArchiveRetention, JournalConfig, JournalError, JournalEvent, RecoveryWarning};
use p2pdb::edge::log_reader::{LogItem, Standing};

#[test]
fn what_was_appended_comes_back() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut web = Origin::new("web", 1, Lane::Volatile);
    let mut all = Vec::new();
    let open = rig.open();
    assert!(open.recovered.heads.is_empty() && open.recovered.warnings.is_empty());
    for _ in 0..40 {
        let batch: Vec<_> = some(&mut mail, 3).into_iter().chain(some(&mut web, 2)).collect();
        all.extend(batch.clone());
        open.append(batch);
    }
    assert_eq!(open.journal.usage().entries, 200);
    open.journal.close();
    let open = rig.open();
    assert_eq!(open.recovered.warnings, []);
    assert_eq!(open.recovered.heads, heads_of(&all));
    assert_eq!(open.recovered.replayed, 200);
    assert!(open.recovered.segments > 2, "the entries should take several segments");
    assert_eq!(open.files, files_of(&all));
    assert_eq!(open.recovered.floor.len(), 0);
    let more = some(&mut mail, 1);
    all.extend(more.clone());
    open.append(more);
    drop(open);
    assert_eq!(rig.open().recovered.heads, heads_of(&all));
}

#[test]
fn batches_that_wait_are_committed_together() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 4 << 20;
    let open = rig.open();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let batches: Vec<_> = (0..200).map(|_| some(&mut mail, 1)).collect();
    batches.into_iter().for_each(|batch| open.journal.append(batch));
    (0..200).for_each(|_| assert!(matches!(open.next_input(), Input::Appended)));
    let usage = open.journal.usage();
    assert_eq!(usage.appended, 200);
    assert!(usage.syncs < 150, "{} syncs for 200 batches", usage.syncs);
}

#[test]
fn an_entry_out_of_order_is_not_written() {
    let rig = Rig::new();
    let open = rig.open();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    mail.small();
    open.journal.append(some(&mut mail, 1));
    let event = open.events.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(matches!(event, JournalEvent::Fatal(JournalError::OutOfOrder { expected: 1, .. })), "{event:?}");
}

#[test]
fn a_tail_torn_at_any_byte_costs_the_last_entry_only() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let entries = some(&mut mail, 5);
    let open = rig.open();
    open.append(entries.clone());
    open.journal.close();
    let path = rig.path("00000001.seg");
    let whole = fs::read(&path).unwrap();
    let (start, length) = *rig.frames(&path).last().unwrap();
    let (start, end) = (start as usize, (start + length) as usize);
    for cut in start..end {
        // Once with zeros behind, as after a power cut, once with the file cut off, once with junk behind.
        for variant in 0..3 {
            let mut torn = whole.clone();
            match variant {
                0 => torn[cut..].fill(0),
                1 => torn.truncate(cut),
                _ => torn[cut..end].iter_mut().for_each(|byte| *byte = !*byte),
            }
            if torn.get(start..end) == Some(&whole[start..end]) {
                continue;
            }
            fs::write(&path, &torn).unwrap();
            let open = rig.open();
            assert_eq!(open.entries, entries[..4], "cut at {cut}, variant {variant}");
            let warned =
                open.recovered.warnings.iter().any(
                    |warning| matches!(warning, RecoveryWarning::TornTail { offset, .. } if *offset == start as u64),
                );
            let nothing_there = torn[start..].iter().all(|&byte| byte == 0);
            assert_eq!(warned, !nothing_there, "cut at {cut}, variant {variant}: {:?}", open.recovered.warnings);
            if cut % 16 == 0 {
                open.append(vec![entries[4].clone()]);
                open.journal.close();
                let open = rig.open();
                assert_eq!((open.recovered.warnings.as_slice(), &open.entries), (&[][..], &entries));
            }
            rig.segments().iter().skip(1).for_each(|path| fs::remove_file(path).unwrap());
        }
    }
    assert!(!rig.directory.path().join("quarantine").exists());
}

#[test]
fn a_group_that_lost_its_signature_is_dropped_and_can_be_written_again() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut web = Origin::new("web", 1, Lane::Audit);
    let first = some(&mut mail, 2);
    let group = vec![
        mail.unsigned(&[("Notes", "a", Some("a"))]),
        mail.unsigned(&[("Notes", "b", Some("b"))]),
        mail.entry(&[("Notes", "c", Some("c"))]),
    ];
    let other = some(&mut web, 1);
    let open = rig.open();
    open.append(first.clone());
    open.append(other.clone());
    open.append(group.clone());
    open.journal.close();
    let path = rig.path("00000001.seg");
    let (start, _) = *rig.frames(&path).last().unwrap();
    rig.flip(&path, start + 20);
    let open = rig.open();
    assert_eq!(open.entries, [first.clone(), other.clone()].concat());
    let stream = mail.stream.clone();
    assert!(open.recovered.warnings.contains(&RecoveryWarning::Unvouched { stream, held: 2, up_to: 4 }));
    open.append(group.clone());
    open.journal.close();
    let open = rig.open();
    assert_eq!(open.recovered.warnings, []);
    assert_eq!(open.entries, [first, other, group].concat());
}

#[test]
fn damage_in_the_middle_is_quarantined_and_other_streams_stay() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 8 << 10;
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut web = Origin::new("web", 1, Lane::Audit);
    let (mut mails, mut webs) = (Vec::new(), Vec::new());
    let open = rig.open();
    for _ in 0..50 {
        let (one, other) = (some(&mut mail, 1), some(&mut web, 1));
        mails.extend(one.clone());
        webs.extend(other.clone());
        open.append([one, other].concat());
    }
    open.journal.close();
    let path = rig.segments()[1].clone();
    let frames = rig.frames(&path);
    let damaged = fs::read(&path).unwrap();
    let at = frames.iter().position(|&(offset, length)| {
        let payload = &damaged[offset as usize + 8..(offset + length) as usize];
        p2pdb::format::peek_entry(payload).unwrap().is_of(&mail.stream)
    });
    let (offset, length) = frames[at.unwrap() + 2];
    rig.flip(&path, offset + length / 2);
    let original = fs::read(&path).unwrap();
    let open = rig.open();
    let held = open.recovered.heads[&mail.stream].seq;
    assert!(held > 5 && held < 45, "{held}");
    assert_eq!(open.recovered.heads[&web.stream].seq, 50);
    let quarantine = open.recovered.warnings.iter().find_map(|warning| match warning {
        RecoveryWarning::Damaged { segment: 2, offset: at, quarantine, .. } if *at == offset => quarantine.clone(),
        _ => None,
    });
    let quarantine = quarantine.unwrap_or_else(|| panic!("{:?}", open.recovered.warnings));
    assert_eq!(fs::read(&quarantine).unwrap(), original);
    assert!(quarantine.to_string_lossy().contains(&format!("00000002.seg-at-{offset}")), "{}", quarantine.display());
    let lost = RecoveryWarning::EntriesLost { stream: mail.stream.clone(), held, up_to: 50 };
    assert!(open.recovered.warnings.contains(&lost), "{:?}", open.recovered.warnings);
    assert_eq!(open.read(&mail.stream, 1, 100, 1 << 20), mails[..held as usize]);
    assert_eq!(open.read(&mail.stream, held + 1, 100, 1 << 20), []);
    assert_eq!(open.read(&web.stream, 1, 100, 1 << 20), webs);
    // As if refetched from a peer.
    open.append(mails[held as usize..].to_vec());
    open.journal.close();
    let open = rig.open();
    assert_eq!(open.recovered.warnings, []);
    assert_eq!(open.recovered.heads, heads_of(&[mails.clone(), webs.clone()].concat()));
    assert_eq!(open.files.digest(), files_of(&[mails, webs].concat()).digest());
    assert!(
        rig.read_log()
            .iter()
            .all(|item| matches!(item, LogItem::Entry { standing: Standing::First | Standing::Next, .. }))
    );
}

#[test]
fn every_flipped_bit_leaves_a_log_that_opens() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut web = Origin::new("web", 1, Lane::Audit);
    let entries: Vec<_> = (0..4).flat_map(|_| [some(&mut mail, 1), some(&mut web, 1)].concat()).collect();
    let open = rig.open();
    open.append(entries.clone());
    open.journal.close();
    let path = rig.path("00000001.seg");
    let whole = fs::read(&path).unwrap();
    let (start, length) = *rig.frames(&path).last().unwrap();
    for at in (0..start + length).step_by(3) {
        fs::write(&path, &whole).unwrap();
        rig.flip(&path, at);
        let open = rig.open();
        assert!(!open.recovered.warnings.is_empty(), "byte {at}");
        assert!(open.entries.len() >= 4, "byte {at}");
        assert!(open.entries.iter().all(|sealed| entries.contains(sealed)));
        open.journal.close();
        assert_eq!(rig.open().recovered.warnings, [], "byte {at}: repaired once is repaired");
        fs::remove_dir_all(rig.directory.path().join("quarantine")).ok();
        rig.segments().iter().skip(1).for_each(|path| fs::remove_file(path).unwrap());
    }
}

#[test]
fn a_missing_segment_is_told_and_an_empty_file_gives_it_up() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let open = rig.open();
    (0..30).for_each(|_| open.append(some(&mut mail, 10)));
    open.journal.close();
    fs::remove_file(rig.path("00000002.seg")).unwrap();
    let before = rig.snapshot();
    let error = rig.try_open().err().unwrap();
    assert!(matches!(error, JournalError::Missing { number: 2, .. }), "{error}");
    assert!(error.to_string().contains("00000002.seg"), "{error}");
    assert_eq!(rig.snapshot(), before, "an error must change nothing");
    fs::write(rig.path("00000002.seg"), b"").unwrap();
    let open = rig.open();
    assert!(open.recovered.warnings.contains(&RecoveryWarning::SegmentLost { segment: 2 }));
    let held = open.recovered.heads[&mail.stream].seq;
    assert!(held > 0 && held < 300);
    open.journal.close();
    let open = rig.open();
    assert_eq!(open.recovered.warnings, []);
    assert_eq!(open.recovered.heads[&mail.stream].seq, held);
    drop(open);
    fs::remove_file(rig.path("00000001.seg")).unwrap();
    assert!(matches!(rig.try_open(), Err(JournalError::Missing { number: 1, .. })));
}

#[test]
fn what_does_not_belong_here_is_refused_and_left_alone() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let open = rig.open();
    open.append(some(&mut mail, 3));
    open.journal.close();
    let path = rig.path("00000001.seg");
    let whole = fs::read(&path).unwrap();

    let mut foreign =
        Rig { config: rig.config.clone(), clock_ms: rig.clock_ms.clone(), directory: tempfile::tempdir().unwrap() };
    foreign.config.cluster = ClusterId([9; 16]);
    let before = rig.snapshot();
    let error = foreign.try_open().err().unwrap();
    assert!(matches!(error, JournalError::Foreign { found: CLUSTER, .. }), "{error}");
    assert_eq!(rig.snapshot(), before);

    let mut newer = whole.clone();
    newer[8] = 9;
    newer[42] ^= 0xff;
    fs::write(&path, &newer).unwrap();
    let before = rig.snapshot();
    let error = rig.try_open().err().unwrap();
    assert!(error.to_string().contains("version 9") && error.to_string().contains("update"), "{error}");
    assert_eq!(rig.snapshot(), before);

    let mut junk = whole.clone();
    junk.iter_mut().for_each(|byte| *byte ^= 0x5a);
    fs::write(&path, &junk).unwrap();
    let before = rig.snapshot();
    let error = rig.try_open().err().unwrap();
    assert!(matches!(error, JournalError::HeaderDamaged { .. }), "{error}");
    assert_eq!(rig.snapshot(), before);

    fs::write(&path, &whole).unwrap();
    fs::rename(&path, rig.path("00000007.seg")).unwrap();
    rig.segments()
        .iter()
        .filter(|path| !path.ends_with("00000007.seg"))
        .for_each(|path| fs::remove_file(path).unwrap());
    let error = rig.try_open().err().unwrap();
    assert!(matches!(error, JournalError::Missing { .. } | JournalError::Misplaced { .. }), "{error}");
    fs::rename(rig.path("00000007.seg"), rig.path("00000001.seg")).unwrap();
    fs::copy(rig.path("00000001.seg"), rig.path("00000002.seg")).unwrap();
    assert!(matches!(rig.try_open(), Err(JournalError::Misplaced { number: 1, .. })));
    fs::remove_file(rig.path("00000002.seg")).unwrap();
    assert_eq!(rig.open().entries.len(), 3);

    let other = Rig::new();
    fs::write(other.path(""), b"").unwrap_err();
    fs::write(other.directory.path().join("Diff.dat"), b"a file").unwrap();
    assert!(matches!(other.try_open(), Err(JournalError::NotADirectory(_))));
    let gone = Rig { config: JournalConfig::new(Path::new("/nonexistent/node"), CLUSTER), ..Rig::new() };
    assert!(matches!(gone.try_open(), Err(JournalError::NotADirectory(_))));
}

#[test]
fn entries_are_read_by_stream() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut web = Origin::new("web", 1, Lane::Volatile);
    let (mut mails, mut webs) = (Vec::new(), Vec::new());
    let open = rig.open();
    for _ in 0..60 {
        let (one, other) = (some(&mut mail, 3), some(&mut web, 2));
        mails.extend(one.clone());
        webs.extend(other.clone());
        open.append([one, other].concat());
    }
    for from in [1, 2, 50, 100, 179, 180] {
        assert_eq!(open.read(&mail.stream, from, 180, 1 << 20), mails[from as usize - 1..], "from {from}");
    }
    assert_eq!(open.read(&mail.stream, 10, 12, 1 << 20), mails[9..12]);
    assert_eq!(open.read(&web.stream, 1, 1000, 1 << 20), webs);
    assert_eq!(open.read(&mail.stream, 7, 180, 1), mails[6..7], "one entry at least");
    let bounded = open.read(&mail.stream, 1, 180, 4000);
    assert!(bounded.len() > 5 && bounded.len() < 30 && bounded == mails[..bounded.len()]);
    assert_eq!(open.read(&mail.stream, 181, 200, 1 << 20), []);
    assert_eq!(open.read(&Origin::new("none", 1, Lane::Audit).stream, 1, 1, 1 << 20), []);
    open.journal.close();
    let open = rig.open();
    assert_eq!(open.read(&mail.stream, 1, u64::MAX, usize::MAX), mails);
}

#[test]
fn an_entry_larger_than_a_segment_is_kept() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let long = "x".repeat(4000);
    let big = |mail: &mut Origin| {
        let keys: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        let lines: Vec<String> = keys.iter().map(|key| format!("{key}, {long}")).collect();
        let changes: Vec<_> =
            keys.iter().zip(&lines).map(|(key, line)| ("Notes", key.as_str(), Some(line.as_str()))).collect();
        mail.entry(&changes)
    };
    let mut all = some(&mut mail, 2);
    all.push(big(&mut mail));
    all.extend(some(&mut mail, 2));
    all.push(big(&mut mail));
    let open = rig.open();
    open.append(all.clone());
    assert_eq!(open.read(&mail.stream, 3, 3, 1), all[2..3]);
    open.journal.close();
    let open = rig.open();
    assert_eq!((open.recovered.warnings.as_slice(), &open.entries), (&[][..], &all));
    assert_eq!(open.read(&mail.stream, 1, 9, 1 << 20), all);
}

#[test]
fn checkpoints_let_segments_go_and_archives_keep_the_audit_trail() {
    let mut rig = Rig::new();
    rig.config.keep_live_bytes = 20 << 10;
    rig.config.keep_live_ms = 0;
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut load = Origin::new("mail", 1, Lane::Volatile);
    let mut all = Vec::new();
    let open = rig.open();
    let fill = |open: &Open, all: &mut Vec<_>, mail: &mut Origin, load: &mut Origin| {
        for _ in 0..40 {
            let batch = [some(mail, 2), some(load, 8)].concat();
            all.extend(batch.clone());
            open.append(batch);
        }
    };
    fill(&open, &mut all, &mut mail, &mut load);
    open.store(checkpoint_of(&all));
    assert_eq!(rig.segments()[0], rig.path("00000001.seg"), "one checkpoint alone lets nothing go");
    fill(&open, &mut all, &mut mail, &mut load);
    open.store(checkpoint_of(&all));
    let Input::Archived { floor } = open.next_input() else { panic!("segments should have been archived") };
    assert!(floor.seq(&mail.stream) > 20 && floor.seq(&load.stream) > 80, "{floor:?}");
    assert_eq!(open.journal.floor(), floor);
    assert!(rig.segments()[0] > rig.path("00000003.seg"));
    assert_eq!(open.read(&load.stream, floor.seq(&load.stream), u64::MAX, 1 << 20), []);
    assert!(!open.read(&load.stream, floor.seq(&load.stream) + 1, u64::MAX, 1 << 20).is_empty());
    fill(&open, &mut all, &mut mail, &mut load);
    open.journal.close();

    let open = rig.open();
    assert_eq!(open.recovered.warnings, []);
    assert_eq!(open.recovered.heads, heads_of(&all));
    assert_eq!(open.recovered.replayed, 400, "only what the checkpoint does not hold is replayed");
    assert_eq!(open.recovered.floor, floor);
    assert_eq!(open.files, files_of(&all));
    drop(open);

    let audit: Vec<_> = all.iter().filter(|sealed| sealed.id().stream.lane == Lane::Audit).cloned().collect();
    let mut volatile = 0;
    let mut found = Vec::new();
    for item in rig.read_log() {
        match item {
            LogItem::Entry { sealed, standing, .. } if sealed.id().stream.lane == Lane::Audit => {
                assert!(matches!(standing, Standing::First | Standing::Next));
                found.push(sealed);
            }
            LogItem::Entry { .. } => volatile += 1,
            damage => panic!("{damage:?}"),
        }
    }
    assert_eq!(found, audit, "the whole audit trail is still there");
    assert!(volatile < 900, "volatile entries were dropped: {volatile}");
    let one = read_all(&[rig.path("archive").join("00000001.zst")]);
    assert!(!one.is_empty() && one.iter().all(|item| matches!(item, LogItem::Entry { .. })));

    // The newest checkpoint is damaged: the older one and the log give the same.
    let checkpoints: Vec<_> = fs::read_dir(rig.path("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut checkpoints: Vec<_> =
        checkpoints.into_iter().filter(|path| path.extension().is_some_and(|end| end == "ckp")).collect();
    checkpoints.sort();
    assert_eq!(checkpoints.len(), 2);
    rig.flip(&checkpoints[1], 100);
    let open = rig.open();
    assert!(
        matches!(&open.recovered.warnings[..], [RecoveryWarning::Checkpoint { .. }]),
        "{:?}",
        open.recovered.warnings
    );
    assert_eq!(open.files, files_of(&all));
    assert_eq!(open.recovered.heads, heads_of(&all));
}

#[test]
fn archives_are_dropped_when_their_time_has_come() {
    let mut rig = Rig::new();
    (rig.config.keep_live_bytes, rig.config.keep_live_ms) = (0, 0);
    rig.config.archives = ArchiveRetention::Days(10);
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut all = Vec::new();
    let open = rig.open();
    for round in 0..3 {
        for _ in 0..20 {
            let batch = some(&mut mail, 10);
            all.extend(batch.clone());
            open.append(batch);
        }
        open.store(checkpoint_of(&all));
        if round > 0 {
            assert!(matches!(open.next_input(), Input::Archived { .. }));
        }
        rig.clock_ms.fetch_add(6 * 24 * 3600 * 1000, Ordering::SeqCst);
    }
    open.journal.close();
    let first = rig.path("archive").join("00000001.zst");
    assert!(first.exists());
    rig.clock_ms.fetch_add(20 * 24 * 3600 * 1000, Ordering::SeqCst);
    let open = rig.open();
    open.store(checkpoint_of(&all));
    open.journal.close();
    assert!(!first.exists());
}

#[test]
fn entries_behind_a_received_checkpoint_follow_it() {
    let rig = Rig::new();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let all = some(&mut mail, 100);
    let open = rig.open();
    open.append(all[..10].to_vec());
    open.journal.store_checkpoint(Box::new(checkpoint_of(&all[..90])));
    open.journal.append(all[90..].to_vec());
    let answers = [open.next_input(), open.next_input()];
    assert!(
        matches!(answers[0], Input::CheckpointStored { .. }) || matches!(answers[1], Input::CheckpointStored { .. })
    );
    assert_eq!(open.read(&mail.stream, 91, 200, 1 << 20), all[90..]);
    assert_eq!(open.read(&mail.stream, 5, 200, 1 << 20), []);
    assert_eq!(open.journal.floor().seq(&mail.stream), 90);
    open.journal.close();
    let open = rig.open();
    assert_eq!(open.recovered.warnings, []);
    assert_eq!(open.recovered.heads, heads_of(&all));
    assert_eq!(open.recovered.floor.seq(&mail.stream), 90);
    assert_eq!(open.files, files_of(&all));
}

/// A file system of 512 KiB of a test's own; it is unmounted with the second part. `None`, with a line, where nothing can be mounted.
fn small_disk(test: &str) -> Option<(tempfile::TempDir, Unmount)> {
    let directory = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k", "p2pdb-test"])
        .arg(directory.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("**** SKIPPED: {test} needs the right to mount a tmpfs");
        return None;
    }
    let unmount = Unmount(directory.path().to_owned());
    Some((directory, unmount))
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes all the room that a disk has for a file. How many bytes that was.
fn fill(path: &Path) -> u64 {
    let file = fs::File::create(path).unwrap();
    let mut at = 0;
    while file.write_all_at(&[1; 1024], at).is_ok() {
        at += 1024;
    }
    at
}

#[test]
fn a_checkpoint_without_room_is_answered_at_once_and_the_log_goes_on() {
    let test = "a_checkpoint_without_room_is_answered_at_once_and_the_log_goes_on";
    let Some((directory, _unmount)) = small_disk(test) else { return };
    let mut rig = Rig::within(directory);
    rig.config.segment_bytes = 64 << 10;
    let ballast = rig.directory.path().join("ballast");
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let all = some(&mut mail, 300);
    let open = rig.open();
    open.append(all[..10].to_vec());
    let big = || Box::new(checkpoint_of(&all[..250]));
    let needed = p2pdb::format::encode_checkpoint(&big(), rig.config.cluster).len();
    // The next segment is there before the disk is full.
    while rig.segments().len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let filled = fill(&ballast);
    fs::File::options().write(true).open(&ballast).unwrap().set_len(filled - needed as u64 / 2).unwrap();
    open.journal.store_checkpoint(big());
    assert!(matches!(open.next_input(), Input::CheckpointFailed));
    open.append(all[10..20].to_vec());
    fs::remove_file(&ballast).unwrap();
    assert!(matches!(open.next_input(), Input::Room { available: true }));
    open.journal.store_checkpoint(big());
    assert!(matches!(open.next_input(), Input::CheckpointStored { .. }));
    open.append(all[250..].to_vec());
    open.journal.close();
    assert_eq!(rig.open().files, files_of(&all));
}

#[test]
fn a_full_disk_fails_appends_until_there_is_room() {
    let Some((directory, _unmount)) = small_disk("a_full_disk_fails_appends_until_there_is_room") else { return };
    let mut rig = Rig::within(directory);
    rig.config.segment_bytes = 64 << 10;
    let ballast = rig.directory.path().join("ballast");
    fs::write(&ballast, vec![1; 300 << 10]).unwrap();
    let mut mail = Origin::new("mail", 1, Lane::Audit);
    let mut kept = Vec::new();
    let open = rig.open();
    let failed = loop {
        let batch = some(&mut mail, 20);
        open.journal.append(batch.clone());
        match open.next_input() {
            Input::Appended => kept.extend(batch),
            Input::AppendFailed => break batch,
            other => panic!("{other:?}"),
        }
        assert!(kept.len() < 5000);
    };
    assert!(matches!(open.next_input(), Input::Room { available: false }));
    assert!(kept.len() > 200, "the room that was there was used: {}", kept.len());
    assert_eq!(open.read(&mail.stream, 1, 5, 1 << 20), kept[..5], "reading goes on");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(open.events.try_recv().is_err(), "still no room");
    fs::remove_file(&ballast).unwrap();
    assert!(matches!(open.next_input(), Input::Room { available: true }));
    open.append(failed.clone());
    kept.extend(failed);
    open.journal.close();
    let open = rig.open();
    assert_eq!((open.recovered.warnings.as_slice(), &open.entries), (&[][..], &kept));
    drop(open);
    // A node whose disk is full starts, and its log can be read.
    fill(&ballast);
    let open = rig.open();
    assert_eq!(open.entries, kept);
    open.journal.close();
}
