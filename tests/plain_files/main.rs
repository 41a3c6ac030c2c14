//! The plain-file view, driven by the programs that people use, over a small tree of real entries.
//!
//! Nothing here waits by sleeping: a test waits for the tree to change, or for an event in the folder, with a generous
//! time-out. A program that is not installed is reported and left out. Measured latencies are printed, not judged.

#![allow(clippy::disallowed_methods)] // tests live in real time
#![cfg(feature = "daemon")]

mod rig;

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchMask};
use p2pdb::core::id::FileName;

use rig::{Rig, TIMEOUT, Terminal, fast_folder, has, is_root, is_shown, wait_readable, watch};

#[test]
fn sed_in_place() {
    if !has("sed") {
        return;
    }
    let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    rig.shell("sed -i 's/^b, 1/b, 2/' Notes");
    rig.ends_as(&["a, 1", "b, 2"]);
    rig.remote("c, 1");
    rig.ends_as(&["a, 1", "b, 2", "c, 1"]);
    rig.shell("sed -i '/^a/d' Notes");
    rig.ends_as(&["b, 2", "c, 1"]);
    assert_eq!((rig.saves(), rig.conflicts(), rig.rejected("Notes")), (2, 0, None));
    assert!(rig.shared.lock().files.iter().all(|(name, _)| name.as_str() == "Notes"), "no file of sed's own");
}

#[test]
fn shell_appends_and_redirections() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("echo 'c, 1' >> Notes");
    rig.ends_as(&["a, 1", "c, 1"]);
    rig.shell("echo 'b, 1' >> Notes; echo 'd, 1' >> Notes; echo 'e, 1' >> Notes");
    rig.ends_as(&["a, 1", "b, 1", "c, 1", "d, 1", "e, 1"]);
    rig.shell("grep -v ^c Notes > .work; cat .work > Notes; rm .work");
    rig.ends_as(&["a, 1", "b, 1", "d, 1", "e, 1"]);
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
}

#[test]
fn many_appends_in_a_burst_all_arrive() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("i=100; while [ $i -lt 200 ]; do echo \"n$i, 1\" >> Notes; i=$((i+1)); done");
    let lines: Vec<String> =
        std::iter::once("a, 1".to_owned()).chain((100..200).map(|number| format!("n{number}, 1"))).collect();
    rig.ends_as(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
}

#[test]
fn appends_race_with_remote_changes_and_all_arrive() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    let mut shell = Command::new("sh")
        .args(["-c", "i=100; while [ $i -lt 300 ]; do echo \"n$i, 1\" >> Notes; env true; i=$((i+1)); done"])
        .current_dir(&rig.directory)
        .spawn()
        .unwrap();
    let mut number = 100;
    while shell.try_wait().unwrap().is_none() && number < 999 {
        rig.remote(&format!("r{number}, 1"));
        let known = format!("r{number}, 1\n");
        let path = rig.path("Notes");
        rig.until("it is shown", || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&known)));
        number += 1;
        // A save into a replaced file is found in the last sixteen of them: a shell that a busy machine holds up between opening
        // and writing must not be left further behind.
        let changes = number - 100;
        if changes % 8 == 0 {
            rig.until_tree("the shell goes on", |tree| tree.text("Notes").matches("\nn").count() * 8 >= changes);
        }
    }
    shell.wait().unwrap();
    let own = (100..300).map(|number| format!("n{number}, 1"));
    let mut lines: Vec<String> =
        std::iter::once("a, 1".into()).chain(own).chain((100..number).map(|number| format!("r{number}, 1"))).collect();
    lines.sort_unstable();
    rig.ends_as(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
    println!("200 appends raced with {} remote changes", number - 100);
}

#[test]
fn cp_mv_tee_python_ed_ex() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("printf 'a, 1\\nb, 1\\n' > .work && cp .work Notes");
    rig.ends_as(&["a, 1", "b, 1"]);
    rig.shell("printf 'a, 1\\nb, 1\\nc, 1\\n' > .work && mv .work Notes");
    rig.ends_as(&["a, 1", "b, 1", "c, 1"]);
    rig.shell("echo 'd, 1' | tee -a Notes > /dev/null");
    rig.ends_as(&["a, 1", "b, 1", "c, 1", "d, 1"]);
    rig.shell("printf 'a, 1\\nb, 1\\n' | tee Notes > /dev/null");
    rig.ends_as(&["a, 1", "b, 1"]);
    if has("python3") {
        rig.shell("python3 -c \"text = open('Notes').read(); open('Notes', 'w').write(text.replace('b, 1', 'b, 2'))\"");
        rig.ends_as(&["a, 1", "b, 2"]);
    }
    rig.remote("b, 3");
    rig.ends_as(&["a, 1", "b, 3"]);
    if has("ed") {
        rig.shell("printf 'a\\nc, 2\\n.\\nw\\nq\\n' | ed -s Notes");
        rig.ends_as(&["a, 1", "b, 3", "c, 2"]);
    }
    if has("ex") {
        rig.shell("ex -s -c '%s/^a, 1/a, 2/' -c wq Notes");
        rig.until_tree("ex saves", |tree| tree.text("Notes").contains("a, 2"));
    }
    if has("perl") {
        rig.shell("perl -pi -e 's/^b, 3/b, 4/' Notes");
        rig.until_tree("perl saves", |tree| tree.text("Notes").contains("b, 4"));
    }
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
    assert_eq!(rig.shared.lock().files.iter().count(), 1, "no temporary file became a management file");
}

#[test]
fn vi_at_a_terminal() {
    if !has("vi") || !has("python3") {
        return;
    }
    for option in ["backupcopy=yes", "backupcopy=no", "backupcopy=auto"] {
        let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
        let set = format!("set {option}");
        let keys = ["?b, 1", "!Goc, 1\x1b:w\r", "?written", "=saved", "!Go0, 1\x1b:wq\r"];
        let mut vi = Terminal::run(&rig.directory, &["vi", "-u", "NONE", "-c", &set, "Notes"], &keys);
        vi.until_said("saved");
        rig.until_tree("the first save", |tree| tree.text("Notes") == "a, 1\nb, 1\nc, 1\n");
        vi.go_on();
        vi.finish();
        rig.ends_as(&["0, 1", "a, 1", "b, 1", "c, 1"]);
        assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None), "{option}");
        assert_eq!(rig.shared.lock().files.iter().count(), 1, "{option}: no dropping became a management file");
    }
}

#[test]
fn vi_with_a_stale_buffer_keeps_what_arrived_meanwhile() {
    if !has("vi") || !has("python3") {
        return;
    }
    for option in ["backupcopy=yes", "backupcopy=no"] {
        let mut rig = Rig::new("Notes", &["a, 1", "b, 1", "c, 1"]);
        let set = format!("set {option}");
        let keys = ["?c, 1", "=opened", "!:1s/1/2/\r:wq!\r", "?(y/n)", "!y"];
        let mut vi = Terminal::run(&rig.directory, &["vi", "-u", "NONE", "-c", &set, "Notes"], &keys);
        vi.until_said("opened");
        rig.remote("c, 9");
        rig.remote("d, 9");
        rig.until_shown("a, 1\nb, 1\nc, 9\nd, 9\n");
        vi.go_on();
        vi.finish();
        rig.ends_as(&["a, 2", "b, 1", "c, 9", "d, 9"]);
        assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None), "{option}");
    }
}

#[test]
fn vi_and_a_remote_server_change_the_same_record() {
    if !has("vi") || !has("python3") {
        return;
    }
    let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    let keys = ["?b, 1", "=opened", "!:1s/1/2/\r:wq!\r", "?(y/n)", "!y"];
    let mut vi = Terminal::run(&rig.directory, &["vi", "-u", "NONE", "Notes"], &keys);
    vi.until_said("opened");
    rig.remote("a, 9");
    rig.until_shown("a, 9\nb, 1\n");
    vi.go_on();
    vi.finish();
    rig.ends_as(&["a, 2", "b, 1"]);
    assert_eq!(rig.conflicts(), 1, "the other side is in the list of conflicts");
}

#[test]
fn nano_at_a_terminal() {
    if !has("nano") || !has("python3") {
        return;
    }
    let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    let keys = ["?b, 1", "!c, 1\r\x0f", "?Name to Write", "!\r", "?Wrote", "!\x18"];
    Terminal::run(&rig.directory, &["nano", "-I", "Notes"], &keys).finish();
    rig.ends_as(&["a, 1", "b, 1", "c, 1"]);
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
}

#[test]
fn a_deliberate_return_after_reading_and_a_stale_one() {
    let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    rig.shell("cp Notes .backup");
    rig.remote("b, 2");
    rig.until_shown("a, 1\nb, 2\n");
    rig.shell("cp .backup Notes");
    rig.until_rejected("Notes", "nothing new");
    rig.ends_as(&["a, 1", "b, 2"]);
    rig.shell("cat Notes > /dev/null; cp .backup Notes");
    rig.ends_as(&["a, 1", "b, 1"]);
    let report = rig.path("Notes.rejected");
    rig.until("a good save removes the report", || !report.exists());
    assert_eq!(rig.conflicts(), 0);
}

#[test]
fn a_writer_whose_file_was_replaced_meanwhile() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    let mut open = std::fs::OpenOptions::new().append(true).open(rig.path("Notes")).unwrap();
    rig.remote("b, 1");
    rig.until_shown("a, 1\nb, 1\n");
    open.write_all(b"c, 1\n").unwrap();
    drop(open);
    rig.ends_as(&["a, 1", "b, 1", "c, 1"]);
}

#[test]
fn a_writer_whose_file_was_replaced_many_times() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    let mut open = std::fs::OpenOptions::new().read(true).write(true).open(rig.path("Notes")).unwrap();
    let mut seen = String::new();
    open.read_to_string(&mut seen).unwrap();
    for number in 1..=100 {
        rig.remote(&format!("r, {number}"));
        rig.until_shown(&format!("a, 1\nr, {number}\n"));
        // Somebody looks at every text.
        std::fs::read_to_string(rig.path("Notes")).unwrap();
    }
    open.write_all_at(format!("{seen}z, 1\n").as_bytes(), 0).unwrap();
    drop(open);
    rig.ends_as(&["a, 1", "r, 100", "z, 1"]);
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
}

#[test]
fn a_buffer_that_is_stale_by_many_texts() {
    let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    let buffer = std::fs::read_to_string(rig.path("Notes")).unwrap();
    for number in 2..=100 {
        rig.remote(&format!("b, {number}"));
        rig.until_shown(&format!("a, 1\nb, {number}\n"));
        std::fs::read_to_string(rig.path("Notes")).unwrap();
    }
    std::fs::write(rig.path("Notes"), buffer.replace("a, 1", "a, 2")).unwrap();
    rig.ends_as(&["a, 2", "b, 100"]);
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
}

#[test]
fn saves_while_one_is_being_committed() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.hold(true);
    rig.shell("echo 'b, 1' >> Notes");
    rig.until_tree("it is submitted", |tree| tree.saves.len() == 1);
    rig.remote("r, 1");
    rig.shell("echo 'c, 1' >> Notes");
    rig.hold(false);
    rig.ends_as(&["a, 1", "b, 1", "c, 1", "r, 1"]);
    assert_eq!((rig.conflicts(), rig.rejected("Notes")), (0, None));
}

#[test]
fn what_cannot_be_taken_is_refused_beside_the_file() {
    let mut rig = Rig::new("Group", &["S1", "S2"]);
    rig.shell("echo 'S3, x' >> Group");
    rig.until_rejected("Group", "line 3: 'S3, x': Group takes 1 field");
    let path = rig.path("Group");
    rig.until("the tree's text is back", || is_shown(&path, "S1\nS2\n"));
    rig.shell(
        "sed -i 's/, x//' Group.rejected && sed '1,/^#p2pdb: ----/d' Group.rejected > Group.tmp && mv Group.tmp Group",
    );
    rig.until_tree("the corrected save", |tree| tree.text("Group") == "S1\nS2\nS3\n");
    let report = rig.path("Group.rejected");
    rig.until("the report is gone", || !report.exists());
    rig.shell(": > Group");
    rig.until_rejected("Group", "p2pdb files del Group 'S1'");
    rig.shared.lock().refuse = true;
    rig.shell("echo S4 >> Group");
    rig.until_rejected("Group", "disk is full");
    rig.until("the tree's text is back", || is_shown(&path, "S1\nS2\nS3\n"));
    assert_eq!(rig.saves(), 2);
}

#[test]
fn a_file_in_two_steps_within_the_grace() {
    let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    rig.shell(": > Notes; printf 'a, 1\\nb, 2\\n' >> Notes");
    rig.ends_as(&["a, 1", "b, 2"]);
    assert_eq!((rig.saves(), rig.rejected("Notes")), (1, None));
}

#[test]
fn deleted_files_come_back() {
    let mut rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    std::fs::set_permissions(rig.path("Notes"), PermissionsExt::from_mode(0o640)).unwrap();
    rig.shell("rm Notes");
    rig.ends_as(&["a, 1", "b, 1"]);
    rig.shell("mv Notes Notes.bak");
    rig.ends_as(&["a, 1", "b, 1"]);
    rig.shell("echo 'c, 1' >> Notes.bak; mv Notes Notes~; cp Notes.bak Notes");
    rig.ends_as(&["a, 1", "b, 1", "c, 1"]);
    assert_eq!((rig.saves(), rig.conflicts(), rig.rejected("Notes")), (1, 0, None));
}

#[test]
fn a_file_that_was_moved_away_is_watched_where_it_is_now() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("mv Notes Notes.bak");
    rig.ends_as(&["a, 1"]);
    rig.shell("mv Notes.bak Notes");
    // What was replaced is held for a second; nothing is to end with that.
    std::thread::sleep(Duration::from_secs(2));
    rig.shell("echo 'x, 1' >> Notes");
    rig.ends_as(&["a, 1", "x, 1"]);

    rig.shell("mv Notes Notes2");
    rig.ends_as(&["a, 1", "x, 1"]);
    rig.until_tree("the new file", |tree| tree.text("Notes2") == "a, 1\nx, 1\n");
    std::thread::sleep(Duration::from_secs(2));
    rig.shell("echo 'y, 1' >> Notes2; echo 'z, 1' >> Notes");
    rig.until_tree("both are read", |tree| tree.text("Notes2").ends_with("y, 1\n"));
    rig.ends_as(&["a, 1", "x, 1", "z, 1"]);
}

#[test]
fn mode_and_owner_stay() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    std::fs::set_permissions(rig.path("Notes"), PermissionsExt::from_mode(0o664)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(rig.path("Notes"), Some(1), Some(2)).unwrap();
    }
    rig.remote("b, 1");
    rig.ends_as(&["a, 1", "b, 1"]);
    let metadata = std::fs::metadata(rig.path("Notes")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o664);
    if is_root() {
        assert_eq!((metadata.uid(), metadata.gid()), (1, 2));
        rig.shell("printf 'a, 1\\nb, 2\\n' > .work && chown 1 .work && mv .work Notes");
        rig.ends_as(&["a, 1", "b, 2"]);
        assert_eq!(rig.shared.lock().saves[0].1.author, "daemon");
    }
}

#[test]
fn things_that_are_no_texts_are_kept_aside() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    let kept = |number: u32| match number {
        1 => "Notes.kept.rejected".to_owned(),
        number => format!("Notes.kept-{number}.rejected"),
    };
    let steps = [
        ("rm Notes; mkdir Notes; echo x > Notes/inside", "a directory"),
        ("ln -sf /etc/passwd Notes", "a symbolic link"),
        ("rm Notes; mkfifo Notes", "a FIFO"),
        ("head -c 5000000 /dev/zero > Notes", "at most 4194304"),
        ("head -c 300 /dev/urandom > Notes; printf '\\0\\377' >> Notes", "what was there is kept"),
    ];
    for (number, (script, why)) in (1..).zip(steps) {
        rig.shell(script);
        let path = rig.path(&kept(number));
        rig.until(&format!("{why} is kept aside"), || path.symlink_metadata().is_ok());
        rig.until_rejected("Notes", why);
        rig.ends_as(&["a, 1"]);
    }
    assert!(rig.path(&kept(1)).join("inside").exists());
    assert!(rig.path(&kept(3)).symlink_metadata().unwrap().file_type().is_fifo());
    assert_eq!(rig.saves(), 0);
    rig.shell("echo 'b, 1' >> Notes");
    rig.ends_as(&["a, 1", "b, 1"]);
}

#[test]
fn a_hard_link_to_a_file_is_broken_by_the_next_change() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("ln Notes Notes.bak");
    rig.remote("b, 1");
    rig.ends_as(&["a, 1", "b, 1"]);
    rig.shell("echo 'x, 1' >> Notes.bak; echo 'c, 1' >> Notes");
    rig.ends_as(&["a, 1", "b, 1", "c, 1"]);
}

#[test]
fn what_is_saved_in_a_file_that_bears_another_shown_name_too_is_saved_in_both() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("ln Notes Copy");
    rig.until_tree("the new file", |tree| tree.text("Copy") == "a, 1\n");
    rig.shell("echo 'x, 1' >> Notes");
    rig.until_tree("both are read", |tree| tree.text("Copy") == "a, 1\nx, 1\n");
    rig.ends_as(&["a, 1", "x, 1"]);
    rig.shell("echo 'y, 1' >> Copy");
    rig.until_tree("both are read", |tree| tree.text("Copy").ends_with("y, 1\n"));
    rig.ends_as(&["a, 1", "x, 1", "y, 1"]);
    // The one watch of the two stays with the name that is left.
    rig.shell("rm Copy");
    std::thread::sleep(Duration::from_secs(2));
    rig.shell("echo 'z, 1' >> Notes");
    rig.ends_as(&["a, 1", "x, 1", "y, 1", "z, 1"]);
}

#[test]
fn an_unreadable_file_is_kept_aside_with_an_alarm() {
    if !is_root() {
        return unreadable();
    }
    // Root reads everything: the same test again, as nobody.
    let program = std::env::current_exe().unwrap();
    let copy =
        tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir_in(fast_folder()).unwrap();
    let copied = copy.path().join("test");
    std::fs::copy(program, &copied).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copied)
        .args(["--exact", "an_unreadable_file_is_kept_aside_with_an_alarm", "--nocapture"])
        .output();
    match output {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => eprintln!("**** SKIPPED: setpriv: {error}, so unreadable files were NOT tested"),
    }
}

fn unreadable() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("printf 'a, 1\\nb, 1\\n' > .work; chmod 000 .work; mv .work Notes");
    rig.until_tree("the alarm", |tree| tree.alarms == ["plain file Notes"]);
    rig.until_rejected("Notes", "cannot be read");
    let kept = rig.path("Notes.kept.rejected");
    rig.until("it is kept", || kept.exists());
    rig.until_tree("nothing is lost", |tree| tree.text("Notes") == "a, 1\n");
    let path = rig.path("Notes");
    rig.until("the tree's text is back", || std::fs::read(&path).is_ok_and(|text| text == b"a, 1\n"));
    rig.shell("chmod 000 Notes");
    rig.until_tree("the second alarm", |tree| tree.alarms.len() == 2);
    rig.until("the tree's text is back", || std::fs::read(&path).is_ok_and(|text| text == b"a, 1\n"));
    rig.shell("rm Notes.rejected");
    rig.until_tree("the alarm is cleared", |tree| tree.cleared == ["plain file Notes"]);
}

#[test]
fn new_names_become_management_files_and_droppings_do_not() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.shell("for name in .hidden 4913 Notes~ Notes.bak '#Notes#' Other.swp 'with space' x.rejected; do echo z, 1 > \"$name\"; done");
    rig.shell("mkdir folder; echo 'z, 1' > Passing; mv Passing Passing.old; echo 'q, 1' > Quota");
    rig.until_tree("the new file", |tree| tree.text("Quota") == "q, 1\n");
    rig.shell("echo 'p, 1' >> Quota");
    rig.until_tree("it is edited", |tree| tree.text("Quota") == "p, 1\nq, 1\n");
    let path = rig.path("Quota");
    rig.until("it is in step", || std::fs::read_to_string(&path).is_ok_and(|text| text == "p, 1\nq, 1\n"));
    rig.shell("echo '\"' > Broken");
    rig.until_rejected("Broken", "line 1");
    let broken = rig.path("Broken");
    rig.until("a refused new file does not stay", || !broken.exists());
    let names: Vec<String> = rig.shared.lock().files.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["Notes", "Quota"]);
}

#[test]
fn changes_while_the_daemon_was_down() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    rig.stop();
    rig.start();
    assert_eq!(rig.rejected("Notes"), None);
    rig.stop();
    rig.shared.lock().apply_line("remote", &FileName::new("Notes").unwrap(), "b, 1");
    rig.start();
    rig.ends_as(&["a, 1", "b, 1"]);
    assert_eq!(rig.rejected("Notes"), None, "it was out of date, nobody had changed it");
    rig.stop();
    rig.shell("echo 'c, 1' >> Notes; echo 'n, 1' > New");
    rig.start();
    rig.until_rejected("Notes", "while p2pdb was not running");
    assert!(rig.rejected("Notes").unwrap().ends_with("a, 1\nb, 1\nc, 1\n"));
    rig.ends_as(&["a, 1", "b, 1"]);
    rig.until_tree("a new file is no riddle", |tree| tree.text("New") == "n, 1\n");
}

#[test]
fn the_folder_is_deleted_and_replaced() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    std::fs::remove_dir_all(&rig.directory).unwrap();
    rig.until_tree("the folder is made anew", |tree| !tree.cleared.is_empty());
    rig.events = watch(&rig.directory);
    rig.ends_as(&["a, 1"]);
    std::fs::rename(&rig.directory, rig.directory.with_extension("away")).unwrap();
    rig.until_tree("the folder is made anew again", |tree| tree.cleared.len() == 2);
    rig.events = watch(&rig.directory);
    rig.shell("echo 'b, 1' >> Notes");
    rig.ends_as(&["a, 1", "b, 1"]);
    assert_eq!(rig.shared.lock().alarms, ["plain-file folder", "plain-file folder"]);
}

#[test]
fn a_full_and_an_unmounted_folder() {
    let temporary = tempfile::Builder::new().tempdir_in(fast_folder()).unwrap();
    let directory = temporary.path().join("files");
    std::fs::create_dir(&directory).unwrap();
    let mount = |options: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&directory).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    };
    if !mount("size=64k") {
        eprintln!("**** SKIPPED: no file system can be mounted here, so full and unmounted folders were NOT tested");
        return;
    }
    let mut rig = Rig::at(temporary, directory.clone(), "Notes", &["a, 1"]);
    rig.shell("head -c 1000000 /dev/zero > .fill 2> /dev/null || true");
    rig.remote("b, 1");
    rig.until_tree("the alarm", |tree| tree.alarms == ["plain file Notes written"]);
    rig.shell("rm .fill");
    rig.ends_as(&["a, 1", "b, 1"]);
    rig.until_tree("the alarm is cleared", |tree| tree.cleared == ["plain file Notes written"]);
    assert!(Command::new("umount").arg("-l").arg(&directory).status().unwrap().success());
    rig.until_tree("the folder is made anew", |tree| tree.cleared.len() == 2);
    rig.events = watch(&rig.directory);
    rig.ends_as(&["a, 1", "b, 1"]);
}

#[test]
fn more_events_than_the_kernel_keeps() {
    let mut rig = Rig::new("Notes", &["a, 1"]);
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 100_000 {
        eprintln!("**** SKIPPED: the queue of events is too long here ({limit}) to be overrun");
        return;
    }
    // The daemon takes nothing, so the thread stands still once the channel is full.
    let tree = rig.shared.lock();
    for number in 0..10 {
        let name = FileName::new(&format!("no{number}.bak")).unwrap();
        tree.view.as_ref().unwrap().show(name, Arc::default());
    }
    for number in 0..limit {
        std::fs::write(rig.directory.join(format!(".dropping{}", number % 2)), b"").unwrap();
    }
    let text = "a, 1\nb, 1\n";
    std::fs::write(rig.path("Notes"), text).unwrap();
    drop(tree);
    rig.ends_as(&["a, 1", "b, 1"]);
}

#[test]
fn how_fast() {
    const ROUNDS: usize = 300;
    let rig = Rig::new("Notes", &["a, 1", "b, 1"]);
    let mut saving = Vec::new();
    let mut renaming = Vec::new();
    let mut out_and_back = Vec::new();
    let path = rig.path("Notes");
    for round in 0..ROUNDS {
        let text = format!("a, 1\nb, {round}x\n");
        let before = rig.saves();
        std::fs::write(&path, &text).unwrap();
        let written = Instant::now();
        rig.until_tree("it is submitted", |tree| tree.saves.len() > before && tree.text("Notes") == text);
        out_and_back.push(written.elapsed());
        saving.push(rig.shared.lock().saves[before].0.saturating_duration_since(written));
    }
    let mut shown_events = Inotify::init().unwrap();
    shown_events.watches().add(&rig.directory, WatchMask::MOVED_TO).unwrap();
    for round in 0..ROUNDS {
        let name = FileName::new("Notes").unwrap();
        let mut tree = rig.shared.lock();
        tree.apply_line("remote", &name, &format!("a, {round}r"));
        let shown = tree.shown(&name);
        let start = Instant::now();
        tree.view.as_ref().unwrap().show(name, shown);
        drop(tree);
        let renamed = wait_for_name(&mut shown_events, "Notes");
        renaming.push(renamed - start);
    }
    print_times("save -> submitted", saving);
    print_times("save -> submitted, committed in memory, seen by the waiting test", out_and_back);
    print_times("show -> renamed", renaming);
}

fn wait_for_name(events: &mut Inotify, name: &str) -> Instant {
    let mut buffer = [0; 4096];
    let end = Instant::now() + TIMEOUT;
    loop {
        wait_readable(events, end.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        assert!(now < end, "no rename");
        if let Ok(mut found) = events.read_events(&mut buffer)
            && found.any(|event| {
                event.mask.contains(EventMask::MOVED_TO) && event.name.and_then(|name| name.to_str()) == Some(name)
            })
        {
            return now;
        }
    }
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    println!("{what}: median {} us, p90 {} us, p99 {} us, max {} us", at(0.5), at(0.9), at(0.99), at(1.0));
}
