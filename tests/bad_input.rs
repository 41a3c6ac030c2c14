//! Bad input: each is told with what, where and what to do, ends with exit code 2, and changes nothing on disk.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use harness::{Cluster, Output, Server, p2pdb, skip, tree, wait_until};

/// A server that was made and does not run, with some log.
fn stopped() -> Cluster {
    let cluster = Cluster::of(1);
    let server = cluster.server("S1");
    (0..10).for_each(|number| drop(server.add("Notes", &format!("k{number}, v"))));
    server.stop();
    cluster
}

/// Starts the daemon, which must refuse and leave everything as it was.
#[track_caller]
fn assert_refused(server: &Server, words: &[&str]) {
    let before = tree(&server.dir);
    let mut refused = server.start_refused();
    refused.err = refused.err.lines().filter(|line| !line.contains(" INFO ")).collect::<Vec<_>>().join("\n");
    refused.fails_saying(words);
    assert_unchanged(server, &before);
}

#[track_caller]
fn assert_unchanged(server: &Server, before: &std::collections::BTreeMap<std::path::PathBuf, String>) {
    let after = tree(&server.dir);
    // Bookkeeping is none of the server's data: who held the lock, the last number of a run, and sled's own files, a
    // projection that opening alone rewrites.
    let bookkeeping = ["lock", "run", "view"].map(|name| server.dir.join(name));
    let of_server = |path: &&std::path::PathBuf| !bookkeeping.iter().any(|own| path.starts_with(own));
    let changed: Vec<_> = before
        .keys()
        .chain(after.keys())
        .filter(of_server)
        .filter(|path| before.get(*path) != after.get(*path))
        .collect();
    assert!(changed.is_empty(), "changed: {changed:?}");
}

fn edit_config(server: &Server, change: impl FnOnce(String) -> String) {
    let path = server.dir.join("p2pdb.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, change(text)).unwrap();
}

#[test]
fn settings_that_cannot_be_are_told_with_file_line_and_remedy() {
    let cluster = stopped();
    let server = cluster.server("S1");
    let good = fs::read_to_string(server.dir.join("p2pdb.toml")).unwrap();
    let listen = format!("listen = \"{}\"", server.address);
    type Change<'a> = (&'a str, &'a dyn Fn(&str) -> String, &'a [&'a str]);
    let cases: &[Change] = &[
        (
            "unknown key",
            &|text| text.replace("[network]", "[network]\nidle_timeout = 5"),
            &["idle_timeout", "did you mean"],
        ),
        ("unknown section", &|text| format!("{text}\n[nonsense]\nx = 1\n"), &["nonsense", "line"]),
        ("out of bounds", &|text| text.replace("[network]", "[network]\nbeat_ms = 5"), &["beat_ms", "50", "60000"]),
        ("wrong kind", &|text| text.replace("[network]", "[network]\nbeat_ms = \"often\""), &["beat_ms", "a number"]),
        ("no address", &|text| text.replace(&listen, "listen = \"here\""), &["listen", "IP address and a port"]),
        (
            "any address",
            &|text| text.replace(&listen, "listen = \"0.0.0.0:7400\""),
            &["listen", "other servers dial it"],
        ),
        (
            "files among secrets",
            &|text| text.replace(&format!("files = \"{}", server.files.display()), "files = \"certs"),
            &["files", "certs", "of its own"],
        ),
        ("no toml", &|text| format!("{text}\n= = =\n"), &["p2pdb.toml, line"]),
        ("no name", &|text| text.replace("name = \"S1\"", ""), &["'name' is missing"]),
    ];
    for (what, change, words) in cases {
        edit_config(server, |_| change(&good));
        println!("{what}");
        assert_refused(server, &[&["p2pdb.toml"], *words].concat());
    }
    edit_config(server, |_| good.clone());
    server.start();
}

#[test]
fn an_address_of_another_machine_or_in_use_is_told() {
    let cluster = stopped();
    let server = cluster.server("S1");
    let good = fs::read_to_string(server.dir.join("p2pdb.toml")).unwrap();
    let ours = server.address.to_string();
    edit_config(server, |_| good.replace(&ours, "192.0.2.7:7400"));
    assert_refused(server, &["192.0.2.7:7400"]);
    edit_config(server, |_| good.clone());
    let _taken = std::net::UdpSocket::bind(server.address).unwrap();
    assert_refused(server, &[&ours, "in use"]);
}

#[test]
fn arguments_that_cannot_be_are_refused_before_anything_is_made() {
    let cluster = Cluster::empty();
    let dir = cluster.root.join("new");
    let path = dir.to_string_lossy().into_owned();
    let init = |name: &str, listen: &str, dir: &str| p2pdb(["init", "--name", name, "--listen", listen, "--dir", dir]);
    init("a/b", "127.0.0.1:7400", &path).fails_saying(&["a/b"]);
    init("S1", "localhost", &path).fails_saying(&["localhost", "IP address and a port"]);
    init("S1", "0.0.0.0:7400", &path).fails_saying(&["other servers dial it"]);
    init("S1", "127.0.0.1:0", &path).fails_saying(&["port 0"]);
    let join = ["join", "--name", "S1", "--listen", "127.0.0.1:7400", "--dir", &path, "--peer", "127.0.0.1:1"];
    p2pdb(join.iter().chain(&["--token", "p2pdb-join-abc"])).fails_saying(&["damaged", "whole line"]);
    assert!(!dir.exists());
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("something"), "of somebody").unwrap();
    init("S1", "127.0.0.1:7400", &path).fails_saying(&["is not empty", "choose"]);
    assert_eq!(tree(&dir).len(), 1);
    // Everything in the folder of the plain files would be shared with the group.
    let elsewhere = cluster.root.join("elsewhere");
    let of_others = dir.to_string_lossy().into_owned();
    for (files, words) in [
        (elsewhere.to_string_lossy().into_owned(), &["elsewhere", "of its own"][..]),
        (elsewhere.join("certs").to_string_lossy().into_owned(), &["certs", "of its own"]),
        (elsewhere.join("x/../certs").to_string_lossy().into_owned(), &["certs", "of its own"]),
        (cluster.root.to_string_lossy().into_owned(), &["of its own"]),
        ("/".into(), &["of its own"]),
        (of_others, &["new", "'something'", "shared", "--files"]),
    ] {
        let place = ["init", "--name", "S1", "--listen", "127.0.0.1:7400", "--files", &files, "--dir"];
        p2pdb(place.iter().copied().chain([elsewhere.to_str().unwrap()])).fails_saying(words);
        assert!(!elsewhere.exists(), "{files}");
    }
    p2pdb(["daemon", "--dir", &path]).fails_saying(&["p2pdb.toml", "not found", "p2pdb init"]);
    p2pdb(["daemon", "--dir", &cluster.root.join("none").to_string_lossy()]).fails_saying(&["not found"]);
    p2pdb(["status", "--dir", &path]).fails_saying(&["no server lives in", "p2pdb init, or p2pdb join"]);
    assert_eq!(tree(&dir).len(), 1);
}

#[test]
fn a_second_daemon_on_one_directory_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::of(1);
    let server = cluster.server("S1");
    let told = server.run_plain(&["daemon", "--dir", &server.dir.to_string_lossy()]);
    let pid = server.pid().unwrap().to_string();
    told.fails_saying(&["in use by process", &pid, "stop that daemon first"]);
    server.add("Notes", "still, here");
    cluster.finish();
}

#[test]
fn a_directory_that_cannot_be_read_or_is_open_to_others_is_told() {
    let cluster = stopped();
    let server = cluster.server("S1");
    let key = server.dir.join("certs/server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_refused(server, &["server.key", "0644", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let log = server.dir.join("Diff.dat");
    let aside = cluster.root.join("aside");
    fs::rename(&log, &aside).unwrap();
    fs::write(&log, "not a directory").unwrap();
    assert_refused(server, &["Diff.dat", "not a directory", "move it"]);
    fs::remove_file(&log).unwrap();
    fs::rename(&aside, &log).unwrap();
    let certs = server.dir.join("certs/ca.crt");
    fs::rename(&certs, &aside).unwrap();
    assert_refused(server, &["ca.crt"]);
    fs::create_dir(&certs).unwrap();
    assert_refused(server, &["ca.crt"]);
    fs::remove_dir(&certs).unwrap();
    fs::rename(&aside, &certs).unwrap();
    server.start();
}

#[test]
fn a_log_that_another_user_owns_is_told() {
    // Root may read everything, so it is tried as somebody else.
    let cluster = stopped();
    let server = cluster.server("S1");
    if !Path::new("/usr/bin/setpriv").exists() || fs::metadata("/proc/self").is_ok_and(|meta| owner(&meta) != 0) {
        return skip("unreadable directory", "it takes root and setpriv");
    }
    let before = tree(&server.dir);
    let told = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_p2pdb"), "daemon", "--dir"])
        .arg(&server.dir)
        .output()
        .unwrap();
    let told = Output {
        code: told.status.code(),
        out: String::new(),
        err: String::from_utf8_lossy(&told.stderr).into_owned(),
    };
    if told.code == Some(127) || told.err.contains("failed to execute") {
        return skip("unreadable directory", "the program cannot be run as another user here");
    }
    told.fails_saying(&[&server.dir.to_string_lossy()]);
    assert_unchanged(server, &before);
}

fn owner(meta: &fs::Metadata) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    meta.uid()
}

#[test]
fn another_version_on_disk_is_told_and_left_alone() {
    let cluster = stopped();
    let server = cluster.server("S1");
    for version in [0u16, 99] {
        for segment in server.segments() {
            let good = fs::read(&segment).unwrap();
            let mut bytes = good.clone();
            // Behind the magic, in every header; with the checksum that another version would write.
            bytes[8..10].copy_from_slice(&version.to_le_bytes());
            let crc = crc32fast::hash(&bytes[..42]);
            bytes[42..46].copy_from_slice(&crc.to_le_bytes());
            fs::write(&segment, &bytes).unwrap();
            let file = segment.file_name().unwrap().to_string_lossy().into_owned();
            assert_refused(server, &[&file, &format!("version {version}")]);
            fs::write(&segment, &good).unwrap();
        }
    }
    server.start();
    assert_eq!(server.show("Notes").len(), 10);
}

#[test]
fn a_certificate_of_another_server_or_cluster_is_told() {
    let cluster = Cluster::of(2);
    let foreign = Cluster::of(1);
    let (one, two) = (cluster.server("S1"), cluster.server("S2"));
    one.stop();
    two.stop();
    let certs = |server: &Server| server.dir.join("certs");
    let swap = |from: &Path, to: &Path| {
        for file in ["server.crt", "server.key"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    };
    let keep = cluster.root.join("keep");
    fs::create_dir(&keep).unwrap();
    swap(&certs(two), &keep);
    swap(&certs(one), &certs(two));
    assert_refused(two, &["server.crt", "'S1'", "name = 'S2'"]);
    swap(&certs(foreign.server("S1")), &certs(two));
    assert_refused(two, &["server.crt", "another cluster"]);
    fs::copy(keep.join("server.crt"), certs(two).join("server.crt")).unwrap();
    assert_refused(two, &["server.crt", "server.key"]);
    swap(&keep, &certs(two));
    fs::write(certs(two).join("server.crt"), "junk").unwrap();
    assert_refused(two, &["server.crt", "PEM"]);
    swap(&keep, &certs(two));
    // The log of another cluster in our directory.
    foreign.server("S1").stop();
    let ours = two.segments()[0].clone();
    fs::rename(&ours, keep.join("segment")).unwrap();
    fs::copy(&foreign.server("S1").segments()[0], &ours).unwrap();
    assert_refused(two, &["belongs to cluster", "move it away"]);
    fs::rename(keep.join("segment"), &ours).unwrap();
    one.start();
    two.start();
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn logs_that_do_not_belong_together_are_not_replayed() {
    let (ours, theirs) = (stopped(), stopped());
    let (one, other) = (ours.server("S1"), theirs.server("S1"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let before = (tree(&one.dir), tree(&other.dir));
    p2pdb(["replay", &text(&one.dir), &text(&other.dir)]).fails_saying(&["cluster", "one cluster"]);
    p2pdb(["replay", &text(&other.dir), "--check", &text(&one.dir)]).fails_saying(&["cluster"]);
    let ca = text(&one.dir.join("certs/ca.crt"));
    p2pdb(["verify", &text(&other.dir), "--ca", &ca]).fails_saying(&["cluster"]);
    p2pdb(["dump", &text(&ours.root.join("nothing"))]).fails_saying(&["nothing"]);
    let junk = ours.root.join("junk");
    fs::write(&junk, "this is no log at all, but somebody gave it").unwrap();
    p2pdb(["dump", &text(&junk)]).fails_saying(&["junk"]);
    p2pdb(["verify", &text(&junk), "--ca", &ca]).fails_saying(&["junk"]);
    let dir = text(&one.dir);
    p2pdb(["replay", &dir, "--at", "yesterdayish"]).fails_saying(&["yesterdayish"]);
    p2pdb(["replay", &dir, "--at", "S9:00000001:7"]).fails_saying(&["S9:00000001:7", "not in this log"]);
    assert_eq!(before, (tree(&one.dir), tree(&other.dir)));
}

#[test]
fn records_that_cannot_be_are_refused_with_the_reason() {
    let cluster = Cluster::of(1);
    let server = cluster.server("S1");
    server.add("Notes", "a, 1");
    let digest = || server.status().unwrap().vector.digest;
    let before = digest();
    let refused = |args: &[&str], words: &[&str]| drop(server.cli(args).fails_saying(words));
    refused(&["files", "add", "Server", "S9, first, 10.0.0.1:7400"], &["field 2 of Server", "not a number"]);
    refused(&["files", "add", "Group", "S9, S10"], &["Group takes 1 field"]);
    refused(&["files", "add", "../etc", "x, 1"], &["../etc"]);
    refused(&["files", "add", "Notes", ""], &["empty"]);
    refused(&["files", "add", "Notes", "\"open, 1"], &["quote", "not closed"]);
    refused(&["files", "add", "Notes", "a, 2"], &["already", "a, 1", "mod"]);
    refused(&["files", "del", "Notes", "b, 1"], &["no record"]);
    refused(&["files", "mod", "Notes", "a, 0", "a, 2"], &["a, 1", "a, 0"]);
    refused(&["files", "add", "Notes", &format!("b, {}", "x".repeat(5000))], &["4096"]);
    refused(&["remove", "S9"], &["S9", "not a member"]);
    refused(&["remove", "S1"], &["itself", "another server"]);
    refused(&["files", "apply", "/nonexistent/changes"], &["/nonexistent/changes", "cannot be read"]);
    let changes = cluster.root.join("changes");
    fs::write(&changes, "Notes, Add, c, 1\nNotes, Put, d, 1\n").unwrap();
    refused(&["files", "apply", &changes.to_string_lossy()], &["line 2", "Put", "one transaction"]);
    fs::write(&changes, "Notes, Add, c, 1\nNotes, Add, a, 9\n").unwrap();
    refused(&["files", "apply", &changes.to_string_lossy()], &["already"]);
    assert_eq!(digest(), before, "nothing has changed");
    cluster.finish();
}

#[test]
fn garbage_in_a_management_file_is_refused_beside_it() {
    let cluster = Cluster::of(2);
    let (one, two) = (cluster.server("S1"), cluster.server("S2"));
    one.cli(&["files", "add", "Problem", "---, S9, ---", "--wait", "all"]).ok();
    wait_until("it is in the plain file", || one.has("Problem", "---, S9, ---"));
    let digest = one.status().unwrap().vector.digest;
    fs::write(one.files.join("Problem"), "---, S9, ---\nthis is no problem record\n").unwrap();
    let rejected = one.files.join("Problem.rejected");
    wait_until("the reason stands beside the file", || {
        fs::read_to_string(&rejected).is_ok_and(|text| text.contains("no problem record"))
    });
    wait_until("the file is what is shared", || one.plain("Problem") == ["---, S9, ---"]);
    fs::write(one.files.join("Problem"), [0xff, 0xfe, 0, 1, 2, 3, 0x80, 0x0a]).unwrap();
    wait_until("the file is what is shared", || one.plain("Problem") == ["---, S9, ---"]);
    assert_eq!(one.status().unwrap().vector.digest, digest, "nobody else has seen anything of it");
    assert_eq!(two.plain("Problem"), ["---, S9, ---"]);
    cluster.finish();
}
