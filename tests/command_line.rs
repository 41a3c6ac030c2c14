//! The command line as a process: what it prints, how it ends, and that it never surprises a script.
#![cfg(feature = "daemon")]

mod little_daemon;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use little_daemon::LittleDaemon;
use predicates::prelude::*;
use predicates::str::{contains, starts_with};

fn p2pdb(arguments: &[&str]) -> Assert {
    let mut command = Command::cargo_bin("p2pdb").unwrap();
    for variable in ["P2PDB_DIR", "P2PDB_TOKEN", "SUDO_USER", "VISUAL", "EDITOR"] {
        command.env_remove(variable);
    }
    command.env("NO_COLOR", "1").args(arguments).assert()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn init(directory: &Path) {
    p2pdb(&["init", "--name", "S1", "--listen", "127.0.0.1:7400", "--dir", text(directory)]).success();
}

fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

#[test]
fn help_names_every_command() {
    let mut help = p2pdb(&["--help"]).success();
    for command in [
        "init",
        "token",
        "join",
        "cert",
        "daemon",
        "status",
        "files",
        "bundle",
        "procedure",
        "remove",
        "dump",
        "replay",
        "verify",
        "bench",
        "util",
    ] {
        help = help.stdout(contains(format!("\n  {command} ")));
    }
    for command in ["list", "show", "add", "del", "mod", "apply", "edit", "history", "conflicts", "resolve"] {
        p2pdb(&["files", command, "--help"]).success().stdout(contains("--dir"));
    }
}

#[test]
fn what_cannot_be_asked_exits_2() {
    p2pdb(&[]).code(2);
    p2pdb(&["dance"]).code(2);
    p2pdb(&["files", "add", "../etc", "a"]).code(2).stderr(contains("the name '../etc'"));
    p2pdb(&["files", "add", "Group", "\"a"]).code(2).stderr(contains("double quote of field 1 is not closed"));
    p2pdb(&["files", "add", "Group", "a", "--wait", "most"]).code(2);
    p2pdb(&["files", "resolve", "Group", "a"]).code(2);
    p2pdb(&["dump"]).code(2);
    p2pdb(&["dump", "x", "--since", "soon"]).code(2).stderr(contains("'soon' is no time"));
}

#[test]
fn init_makes_a_server_and_never_a_second_one() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    init(&directory);
    let settings = std::fs::read(directory.join("p2pdb.toml")).unwrap();
    p2pdb(&["init", "--name", "S2", "--listen", "127.0.0.1:7401", "--dir", text(&directory)])
        .code(2)
        .stderr(contains("is not empty"));
    assert_eq!(std::fs::read(directory.join("p2pdb.toml")).unwrap(), settings);
    p2pdb(&["cert", "show", "--dir", text(&directory)]).success().stdout(starts_with("server       S1\n"));
    let ca = p2pdb(&["cert", "ca", "--json", "--dir", text(&directory)]).success();
    let ca: serde_json::Value = serde_json::from_str(&stdout(&ca)).unwrap();
    assert_eq!((ca["issues"].as_bool(), ca["cluster"].as_str().map(str::len)), (Some(true), Some(32)));

    let out = folder.path().join("for-S2");
    let issue = ["cert", "issue", "--name", "S2", "--out", text(&out), "--dir", text(&directory)];
    p2pdb(&issue).success().stdout(starts_with("server       S2\n"));
    assert!(!out.join("ca.key").exists() && out.join("server.key").exists());
    p2pdb(&issue).code(2).stderr(contains("is not empty"));
}

#[test]
fn what_root_makes_in_a_directory_of_another_user_belongs_to_that_user() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    const SOMEBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("\n**** SKIPPED: only root can make files for others ****\n");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let directory = folder.path().join("S1");
    std::fs::create_dir(&directory).unwrap();
    chown(&directory, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    init(&directory);
    for name in ["p2pdb.toml", "founding", "certs", "certs/ca.key", "certs/server.crt", "certs/server.key"] {
        let metadata = std::fs::metadata(directory.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (SOMEBODY, SOMEBODY), "{name}");
    }
}

#[test]
fn an_init_that_was_cut_off_is_repeated_with_the_same_keys() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    let cut_off = |files: &[&str]| files.iter().for_each(|file| std::fs::remove_file(directory.join(file)).unwrap());
    init(&directory);
    let key = || std::fs::read(directory.join("certs/ca.key")).unwrap();
    let before = key();
    cut_off(&["p2pdb.toml"]);
    init(&directory);
    assert_eq!(key(), before);
    cut_off(&["p2pdb.toml", "certs/server.key", "certs/server.crt"]);
    init(&directory);
    assert_eq!(key(), before);
    p2pdb(&["cert", "show", "--dir", text(&directory)]).success().stdout(starts_with("server       S1\n"));
    assert!(directory.join("founding").exists());
    // Not as another server, and not where there is more than that.
    cut_off(&["p2pdb.toml"]);
    let other = ["init", "--name", "S2", "--listen", "127.0.0.1:7401", "--dir", text(&directory)];
    p2pdb(&other).code(2).stderr(contains("a server named S1 was begun here"));
    std::fs::create_dir(directory.join("Diff.dat")).unwrap();
    p2pdb(&other).code(2).stderr(contains("is not empty"));
    assert_eq!(key(), before);
    std::fs::remove_dir(directory.join("Diff.dat")).unwrap();
    // A key without its certificate has issued nothing.
    cut_off(&["certs/ca.crt", "certs/server.key", "certs/server.crt"]);
    init(&directory);
    // Certificates without the marker were put there by somebody.
    cut_off(&["p2pdb.toml", "founding"]);
    p2pdb(&["init", "--name", "S1", "--listen", "127.0.0.1:7401", "--dir", text(&directory)])
        .code(2)
        .stderr(contains("is not empty"));
}

#[test]
fn wrong_addresses_and_names_are_told_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    for listen in ["10.0.0.1", "10.0.0.1:0", "0.0.0.0:7400", "server:7400"] {
        p2pdb(&["init", "--name", "S1", "--listen", listen, "--dir", text(&directory)])
            .code(2)
            .stderr(contains("an IP address and a port such as"));
    }
    p2pdb(&["init", "--name", "S 1", "--listen", "10.0.0.1:7400", "--dir", text(&directory)]).code(2);
    p2pdb(&["join", "--name", "S1", "--listen", "10.0.0.1:7400", "--peer", "10.0.0.2:7400", "--token", "nonsense"])
        .code(2)
        .stderr(contains("a join token begins with"));
    assert!(!directory.exists());
}

#[test]
fn a_wrong_setting_keeps_the_daemon_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    p2pdb(&["daemon", "--dir", text(&directory)]).code(2).stderr(contains("p2pdb.toml: not found"));
    init(&directory);
    let path = directory.join("p2pdb.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, settings.replace("#beat_ms", "beats_ms")).unwrap();
    p2pdb(&["daemon", "--dir", text(&directory)]).code(2).stderr(
        contains("there is no key 'network.beats_ms'; did you mean").or(contains("did you mean 'network.beat_ms'")),
    );
}

#[test]
fn without_a_daemon_it_is_said_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p2pdb.toml"), "").unwrap();
    let directory = text(folder.path());
    for command in [
        &["status"][..],
        &["files", "list"],
        &["files", "add", "Group", "S2"],
        &["token"],
        &["remove", "S2"],
        &["bench", "edit"],
        &["cert", "rotate"],
        &["bundle", "list"],
        &["procedure", "list"],
    ] {
        let arguments: Vec<&str> = command.iter().copied().chain(["--dir", directory]).collect();
        p2pdb(&arguments)
            .code(2)
            .stderr(contains(format!("no daemon answers at {directory}/control.sock")))
            .stderr(contains(format!("start it with: p2pdb daemon --dir {directory}")));
    }
}

#[test]
fn files_are_read_and_changed() {
    let daemon = LittleDaemon::start();
    let run = |arguments: &[&str]| daemon.run(arguments);
    run(&["files", "show", "Group"]).code(1).stderr(contains("Group has no records"));
    run(&["files", "add", "Group", "S1", "--reason", "first"]).success().stdout(contains("S1:"));
    run(&["files", "add", "Group", "S2"]).success();
    run(&["files", "add", "Group", "S2"]).code(2).stderr(contains("already has a record")).stderr(contains("use mod"));
    run(&["files", "show", "Group"]).success().stdout("S1\nS2\n");
    run(&["files", "mod", "Group", "S2", "S3"]).success();
    run(&["files", "show", "Group"]).success().stdout("S1\nS3\n");
    run(&["files", "del", "Group", "S9"]).code(2).stderr(contains("Group has no record 'S9'"));
    let lines = "# S1 has failed\nGroup, Del, S1\n\nProblem, Add, ---, S1, ---\n";
    daemon.command(&["files", "apply"]).write_stdin(lines).assert().success();
    let change = "Problem, Mod, \"---, S1, ---\", \"S1b, S1, S3\"\n";
    daemon.command(&["files", "apply", "-"]).write_stdin(change).assert().success();
    run(&["files", "show", "Problem"]).success().stdout("S1b, S1, S3\n");
    daemon
        .command(&["files", "apply"])
        .write_stdin("Group, Add, S7\nGroup, Drop, S3\n")
        .assert()
        .code(2)
        .stderr(contains("standard input, line 2: 'Drop' is none of Add, Del and Mod"));
    run(&["files", "show", "Group"]).success().stdout("S3\n");
    let shown = stdout(&run(&["files", "show", "Problem", "--json"]).success());
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["records"][0]["record"], serde_json::json!(["S1b", "S1", "S3"]));
    run(&["files", "list"])
        .success()
        .stdout(contains("FILE     RECORDS  CONFLICTS  DIGEST\nGroup          1          0  "));
}

#[test]
fn a_level_that_is_not_reached_is_a_negative_answer() {
    let daemon = LittleDaemon::start();
    daemon.run(&["files", "add", "Notes", "a, 1", "--wait", "majority"]).success();
    daemon
        .run(&["files", "add", "Notes", "b, 1", "--wait", "all", "--timeout", "0.5"])
        .code(1)
        .stdout(contains("'all' was not reached in 0.5 s: S5 has not confirmed it. The edit stands on this server"));
    daemon.run(&["files", "show", "Notes"]).success().stdout("a, 1\nb, 1\n");
}

#[test]
fn conflicts_are_listed_and_settled() {
    let daemon = LittleDaemon::start();
    daemon.run(&["files", "add", "Notes", "a, 1"]).success();
    daemon.run(&["files", "conflicts"]).success().stdout("no conflicts\n");
    daemon.write_concurrently("Notes", "a, 2");
    daemon.run(&["files", "conflicts"]).success().stdout(contains("Notes: a\n")).stdout(contains("lost"));
    let json = stdout(&daemon.run(&["files", "conflicts", "--json"]).success());
    let conflict: serde_json::Value = serde_json::from_str(&json).unwrap();
    let lost = conflict["leaves"][1]["record"].clone();
    daemon.run(&["files", "resolve", "Notes", "b", "--keep", "1"]).code(2).stderr(contains("no conflict at 'b'"));
    daemon.run(&["files", "resolve", "Notes", "a", "--keep", "2"]).code(2).stderr(contains("0 to 1, not 2"));
    daemon.run(&["files", "resolve", "Notes", "a", "--keep", "1"]).success();
    daemon.run(&["files", "conflicts"]).success().stdout("no conflicts\n");
    let expected = format!("{}, {}\n", lost[0].as_str().unwrap(), lost[1].as_str().unwrap());
    daemon.run(&["files", "show", "Notes"]).success().stdout(expected);
}

#[test]
fn an_editor_changes_a_file() {
    let daemon = LittleDaemon::start();
    let edit = |editor: &str| {
        daemon.command(&["files", "edit", "Notes", "--reason", "by hand"]).env("EDITOR", editor).assert()
    };
    edit("printf 'a, 1\\nb, 2\\n' >").success();
    daemon.run(&["files", "show", "Notes"]).success().stdout("a, 1\nb, 2\n");
    edit("sed -i 's/b, 2/b, 3/'").success();
    daemon.run(&["files", "show", "Notes"]).success().stdout("a, 1\nb, 3\n");
    edit("true").success().stderr(contains("Notes is unchanged"));
    edit("false").code(2).stderr(contains("the editor 'false' ended with"));

    let wrong = edit("printf 'a, 1\\n\"open\\n' >").code(2).stderr(contains("Notes, line 2: "));
    let message = String::from_utf8(wrong.get_output().stderr.clone()).unwrap();
    let kept = message.split("your text is kept in ").nth(1).unwrap().trim();
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "a, 1\n\"open\n");
    std::fs::remove_file(kept).unwrap();
    daemon.run(&["files", "show", "Notes"]).success().stdout("a, 1\nb, 3\n");
}

#[test]
fn status_shows_members_files_and_alarms() {
    let daemon = LittleDaemon::start();
    daemon.run(&["files", "add", "Group", "S1"]).success();
    daemon
        .run(&["status"])
        .success()
        .stdout(contains("S1 is operating for "))
        .stdout(contains("ALARM clock ("))
        .stdout(contains("S5").and(contains("DOWN")))
        .stdout(predicate::str::contains("\u{1b}[").not());
    let status = stdout(&daemon.run(&["status", "--json"]).success());
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["members"][1]["link"], "down");
    assert_eq!(status["files"][0]["file"], "Group");
}

#[test]
fn bundles_travel_in_parts() {
    let daemon = LittleDaemon::start();
    let content: Vec<u8> = (0..2_500_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let path = daemon.directory().join("procedure.tar");
    std::fs::write(&path, &content).unwrap();
    daemon.run(&["bundle", "put", "procedure", text(&path)]).success().stdout(starts_with("procedure, 2500000, "));
    let back = daemon.directory().join("back.tar");
    daemon.run(&["bundle", "get", "procedure", text(&back)]).success();
    assert_eq!(std::fs::read(&back).unwrap(), content);
    daemon.run(&["bundle", "list"]).success().stdout(contains("2.4 MiB"));
    daemon.run(&["bundle", "get", "other", text(&back)]).code(2).stderr(contains("there is no bundle 'other'"));
}

#[test]
fn procedures_are_checked_shared_and_shown() {
    let daemon = LittleDaemon::start();
    let folder = daemon.directory().join("web");
    std::fs::create_dir(&folder).unwrap();
    let put = |arguments: &[&str]| daemon.run(&[&["procedure", "put", text(&folder)], arguments].concat());
    std::fs::write(folder.join("procedure.toml"), "format = 1\n").unwrap();
    put(&["--server", "S2"]).code(2).stderr(contains("'install.sh' is missing"));
    std::fs::write(folder.join("install.sh"), "true\n").unwrap();
    put(&[]).code(2).stderr(contains("give --server, or set target in procedure.toml"));
    std::fs::write(folder.join("procedure.toml"), "format = 1\ntarget = \"S2\"\ndeadline = 3\n").unwrap();
    put(&[]).code(2).stderr(contains("procedure.toml, line 3: unknown field `deadline`"));
    std::fs::write(folder.join("procedure.toml"), "format = 1\ntarget = \"S2\"\ndeadline_s = 3\n").unwrap();
    put(&["--server", "S3"]).code(2).stderr(contains("is for S2, not for S3"));
    put(&[]).success().stdout(starts_with("procedure.S2, "));
    daemon.run(&["procedure", "list"]).success().stdout(contains("S2"));
    let shown = stdout(&daemon.run(&["procedure", "show", "S2"]).success());
    assert!(shown.contains("deadline_s = 3") && shown.contains("install.sh"));
    let shown = stdout(&daemon.run(&["procedure", "show", "S2", "--json"]).success());
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["files"][0], serde_json::json!({ "name": "install.sh", "size_bytes": 5 }));
    daemon.run(&["procedure", "show", "S3"]).code(2).stderr(contains("there is no bundle 'procedure.S3'"));
    std::fs::write(folder.join("not-a-procedure"), "x").unwrap();
    daemon.run(&["bundle", "put", "procedure.S4", text(&folder.join("not-a-procedure"))]).success();
    daemon.run(&["procedure", "show", "S4"]).code(2).stderr(contains("is not an installation procedure"));
}

#[test]
fn a_benchmark_tells_every_edit() {
    let daemon = LittleDaemon::start();
    let bench = daemon.run(&["bench", "edit", "--count", "200", "--writers", "8", "--records", "3"]).success();
    let lines = stdout(&bench);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 201);
    assert!(lines[..200].iter().all(|line| line["done_ns"].as_u64() > line["start_ns"].as_u64()));
    assert_eq!(lines[200]["summary"]["count"], 200);
    // Edits that rest between are paced by the interval.
    let paced = ["bench", "edit", "--count", "6", "--writers", "2", "--interval-ms", "50", "--quiet", "--json"];
    let summary: serde_json::Value = serde_json::from_str(&stdout(&daemon.run(&paced).success())).unwrap();
    assert!(summary["summary"]["seconds"].as_f64().unwrap() >= 0.1);
}

#[test]
fn a_watch_tells_changes_as_they_come() {
    let daemon = LittleDaemon::start();
    let mut watch = Process::new(env!("CARGO_BIN_EXE_p2pdb"))
        .args(["bench", "watch", "--count", "1", "--file", "Notes", "--dir", text(daemon.directory())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "{\"watching\":true}");
    daemon.run(&["files", "add", "Group", "S1"]).success();
    daemon.run(&["files", "add", "Notes", "a, 1"]).success();
    let change: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(change["files"], serde_json::json!(["Notes"]));
    assert!(change["readable_ns"].as_u64().unwrap() > 0);
    assert!(watch.wait().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    init(&directory);
    p2pdb(&["bench", "fill", "--entries", "5000", "--dir", text(&directory)]).success();
    let mut dump = Process::new(env!("CARGO_BIN_EXE_p2pdb"))
        .args(["dump", text(&directory)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    let mut out = dump.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let ended = dump.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

#[test]
fn a_log_is_dumped_replayed_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    init(&directory);
    let directory = text(&directory);
    p2pdb(&["dump", directory]).code(2).stderr(contains("is no log"));
    p2pdb(&["bench", "fill", "--entries", "400", "--dir", directory]).success();
    p2pdb(&["bench", "fill", "--entries", "100", "--dir", directory]).success();

    let paper = stdout(&p2pdb(&["dump", directory, "--format", "paper"]).success());
    assert_eq!(paper.lines().count(), 500);
    assert!(paper.starts_with("Bench, Add, web1-"));
    let json = stdout(&p2pdb(&["dump", "--live", "--dir", directory, "--json"]).success());
    let entries: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tenth = entries[9]["entry"].as_str().unwrap();
    p2pdb(&["dump", directory, "--origin", "S2"]).success().stdout("");
    p2pdb(&["dump", directory, "--until", "2020-01-01"]).success().stdout("");
    let utc = stdout(&p2pdb(&["dump", directory, "--utc", "--since", "1h"]).success());
    assert!(utc.lines().all(|line| line.contains("+00:00  S1:") && line.ends_with("# fill")), "{utc}");
    let key = entries[0]["diffs"][0]["key"].as_str().unwrap();
    let history = stdout(&p2pdb(&["files", "history", "Bench", key, "--dir", directory]).success());
    assert_eq!(history.lines().count(), 20);
    let nothing = p2pdb(&["files", "history", "Nothing", "--dir", directory]).code(1);
    assert!(String::from_utf8_lossy(&nothing.get_output().stderr).contains("nobody has ever written it"));

    p2pdb(&["replay", directory, "--at", tenth, "--file", "Bench"])
        .success()
        .stdout(predicate::function(|text: &str| text.lines().count() == 10));
    p2pdb(&["replay", directory, "--at", "S9:00000001:1"]).code(2).stderr(contains("is not in this log"));
    let changed = stdout(&p2pdb(&["replay", directory, "--diff", tenth, "now"]).success());
    assert!(changed.lines().any(|line| line.starts_with("Bench, Mod, \"web1-")), "{changed}");

    p2pdb(&["verify", directory]).success().stdout(contains("good: 500 entries in 2 streams"));
    let other = folder.path().join("S9");
    init(&other);
    let foreign = other.join("certs/ca.crt");
    p2pdb(&["verify", directory, "--ca", text(&foreign)]).code(2).stderr(contains("the log is of cluster"));
    p2pdb(&["bench", "fill", "--entries", "10", "--dir", text(&other)]).success();
    p2pdb(&["replay", directory, text(&other)]).code(2).stderr(contains("one cluster"));

    // One bit.
    let segment = Path::new(directory).join("Diff.dat/00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    p2pdb(&["verify", directory]).code(1).stdout(contains("WRONG: ")).stdout(contains("damaged"));
}

#[test]
fn a_dump_follows_a_log_that_grows() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    init(&directory);
    p2pdb(&["bench", "fill", "--entries", "1", "--dir", text(&directory)]).success();
    let mut dump = Process::new(env!("CARGO_BIN_EXE_p2pdb"))
        .args(["dump", text(&directory), "--follow", "--format", "paper"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(dump.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("Bench, Add, web0-"));
    p2pdb(&["bench", "fill", "--entries", "2", "--dir", text(&directory)]).success();
    assert!(lines.next().unwrap().unwrap().starts_with("Bench, "));
    dump.kill().unwrap();
    dump.wait().unwrap();
}

#[test]
fn manual_pages_and_completions_are_made() {
    let folder = tempfile::tempdir().unwrap();
    p2pdb(&["util", "man", text(folder.path())]).success();
    assert!(folder.path().join("p2pdb-files-add.1").exists());
    for shell in ["bash", "zsh", "fish", "elvish"] {
        p2pdb(&["util", "completions", shell]).success().stdout(contains("p2pdb"));
    }
    std::io::stdout().flush().unwrap();
}

#[test]
fn a_view_is_proven_against_its_log() {
    use p2pdb::core::merge::Files;
    use p2pdb::core::version::Vector;
    use p2pdb::edge::log_reader::{LogItem, LogReader};
    use p2pdb::edge::view::View;

    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("S1");
    init(&directory);
    p2pdb(&["bench", "fill", "--entries", "300", "--dir", text(&directory)]).success();
    let check = || p2pdb(&["replay", "--check", text(&directory)]);
    check().code(2).stderr(contains("has no view to compare with"));

    let mut reader = LogReader::open(std::slice::from_ref(&directory)).unwrap();
    let mut files = Files::default();
    let mut half = Files::default();
    while let Some(item) = reader.next_item().unwrap() {
        let LogItem::Entry { sealed, .. } = item else { panic!("the log is whole") };
        files.apply(sealed.entry());
        if sealed.id().seq == 150 {
            half = files.clone();
        }
    }
    // A view that is behind is what its log said by then.
    for state in [&half, &files] {
        let view = View::open(&directory.join("view"), None).unwrap().view;
        view.rewrite(state, None);
        view.close();
        check().success().stdout(starts_with("equal: 1 files are what the log says"));
    }
    // Half of the records, and the claim to have seen all.
    std::fs::remove_dir_all(directory.join("view")).unwrap();
    let view = View::open(&directory.join("view"), None).unwrap().view;
    let seen: Vector = files.seen().clone();
    view.rewrite(&Files::restore([], seen), None);
    view.close();
    check().code(1).stdout(contains("the view '(none)'")).stdout(contains("move the folder 'view' away"));
}
