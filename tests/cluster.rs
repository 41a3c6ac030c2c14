//! A group shares its files: joining, editing, losing servers and getting them back, removing them, rotating their
//! certificates. Every story ends with the same files everywhere, genuine logs, and views that equal their logs.

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use harness::clock::Clock;
use harness::writer::Writer;
use harness::{Cluster, Server, p2pdb, wait_until};
use p2pdb::core::id::ServerName;
use p2pdb::core::io::Wait;
use p2pdb::core::lifecycle::Lifecycle;
use p2pdb::edge::certificate::{CertificateDirectory, Credentials, generate_key, issue_certificate};
use p2pdb::edge::clock::wall_ms;
use p2pdb::edge::control::LinkState;

/// Two transactions that fill about half a MiB of log and leave the files as they were.
fn churn() -> [String; 2] {
    let long = "x".repeat(900);
    ["Add", "Del"].map(|change| (0..256).map(|line| format!("Bulk, {change}, r{line}, {long}\n")).collect())
}

/// A server that was removed joins again, with nothing of what it had.
fn enrol_anew(cluster: &Cluster, server: &Server) {
    fs::remove_dir_all(&server.dir).unwrap();
    cluster.enrol(server, Some(&cluster.token())).ok();
}

fn apply(server: &Server, folder: &Path, lines: &str) {
    let path = folder.join("changes");
    fs::write(&path, lines).unwrap();
    server.cli(&["files", "apply", &path.to_string_lossy()]).ok();
}

#[test]
fn six_servers_join_and_an_edit_on_any_reaches_all() {
    let cluster = Cluster::of(6);
    let names: Vec<_> = cluster.servers().iter().map(|server| server.name.clone()).collect();
    for server in cluster.servers() {
        let status = server.status().unwrap();
        assert_eq!(status.flag.as_deref(), Some("operating"), "{}", server.name);
        let members: Vec<_> = status.members.iter().map(|member| member.name.to_string()).collect();
        assert_eq!(members, names, "{} knows all, in the order in which they joined", server.name);
        server.add("Notes", &format!("by-command-{}, one", server.name));
    }
    for server in cluster.servers() {
        let path = server.files.join("Notes");
        let text = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, format!("{text}by-file-{}, two\n", server.name)).unwrap();
        let lines = [format!("by-command-{}, one", server.name), format!("by-file-{}, two", server.name)];
        wait_until("both edits are in the plain file of everybody", || {
            cluster.servers().iter().all(|other| lines.iter().all(|line| other.has("Notes", line)))
        });
    }
    let everything = cluster.server("S3").cli(&["files", "add", "Notes", "safe, x", "--wait", "all", "--json"]).ok();
    assert!(everything.contains("\"reached\":\"all\""), "{everything}");
    for server in cluster.servers() {
        assert!(server.show("Notes").contains(&"safe, x".to_owned()), "who acknowledged it shows it");
    }
    // The log tells all of it while the daemon runs.
    let dump = cluster.server("S6").cli(&["dump", "--live", "--format", "paper"]).ok();
    for line in ["Notes, Add, by-command-S1, one", "Notes, Add, by-file-S2, two", "Flag, Add, S5, operating"] {
        assert!(dump.lines().any(|dumped| dumped == line), "{line} is not in:\n{dump}");
    }
    for server in cluster.servers() {
        server.verify();
        server.replay_check();
    }
    // A slip of the pen is not equal to anything.
    let dir = cluster.server("S1").dir.to_string_lossy().into_owned();
    p2pdb(["replay", &dir, "--check", &dir, "--file", "Note"]).fails_saying(&["Note", "files list"]);
    cluster.finish();
}

#[test]
fn a_server_goes_from_standby_to_operating_and_takes_no_edit_before_it_has_the_files() {
    let mut cluster = Cluster::of(2);
    cluster.server("S1").add("Notes", "a, 1");
    cluster.add("S3");
    let (first, second) = (cluster.server("S1"), cluster.server("S2"));
    first.freeze();
    second.freeze();
    let third = cluster.server("S3");
    third.start();
    assert_eq!(third.lifecycle(), Some(Lifecycle::Standby), "nobody answers, and it has no files");
    third.cli(&["files", "add", "Notes", "b, 2"]).fails_saying(&["has not got the files yet", "standby", "try again"]);
    first.thaw();
    second.thaw();
    wait_until("it has got the files and its flag", || third.is_operating());
    let log = third.log_text();
    for word in ["acquiring", "ready", "operating"] {
        assert!(log.contains(word), "{word} is not in the log:\n{log}");
    }
    assert!(third.show("Notes").contains(&"a, 1".to_owned()));
    third.add("Notes", "b, 2");
    cluster.finish();
}

#[test]
fn acknowledgement_says_on_how_many_disks_an_edit_is() {
    let cluster = Cluster::of(6);
    let writer = cluster.server("S1");
    cluster.server("S6").kill();
    let short = ["--timeout", "3"];
    let lacking = writer.cli(&[&["files", "add", "Notes", "a, 1", "--wait", "all"], &short[..]].concat()).negative();
    assert!(lacking.contains("S6") && !lacking.contains("S5"), "who lacks it is named: {lacking}");
    writer.cli(&["files", "add", "Notes", "b, 2", "--wait", "majority"]).ok();
    cluster.server("S5").kill();
    writer.cli(&["files", "add", "Notes", "c, 3", "--wait", "majority"]).ok();
    cluster.server("S4").kill();
    let lacking = writer.cli(&[&["files", "add", "Notes", "d, 4", "--wait", "majority"], &short[..]].concat());
    let lacking = lacking.negative();
    assert!(["S4", "S5", "S6"].iter().all(|name| lacking.contains(name)), "{lacking}");
    writer.cli(&["files", "add", "Notes", "e, 5", "--wait", "local"]).ok();
    // None of it is undone: those who come back get all.
    for name in ["S4", "S5", "S6"] {
        cluster.server(name).start();
    }
    cluster.wait_operating();
    writer.cli(&["files", "add", "Notes", "f, 6", "--wait", "all"]).ok();
    let expected = ["a, 1", "b, 2", "c, 3", "d, 4", "e, 5", "f, 6"];
    assert_eq!(cluster.server("S6").show("Notes"), expected);
    cluster.finish();
}

#[test]
fn edits_of_a_dead_server_are_passed_on_by_those_who_have_them() {
    let cluster = Cluster::of(3);
    let [one, two, three] = cluster.servers() else { unreachable!("there are three") };
    three.kill();
    one.add("Notes", "from-the-dead, 1");
    wait_until("the second has it", || two.has("Notes", "from-the-dead, 1"));
    one.kill();
    three.start();
    wait_until("the third gets it from the second", || three.has("Notes", "from-the-dead, 1"));
    one.start();
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn a_late_joiner_and_a_long_absent_server_get_a_checkpoint_and_the_tail() {
    let mut cluster = Cluster::empty();
    for name in ["S1", "S2"] {
        let server = cluster.add(name);
        server.set("log", "segment_mib", "1");
        server.set("log", "keep_live_mib", "1");
        server.set("log", "keep_live_hours", "0");
        server.set("log", "checkpoint_every_mib", "1");
        server.start();
    }
    cluster.wait_operating();
    let (first, second) = (cluster.server("S1"), cluster.server("S2"));
    first.add("Notes", "before, 1");
    cluster.wait_same();
    second.kill();
    let mut rounds = 0;
    let archived = || first.status().is_some_and(|status| status.log.archived_segments > 1);
    while !archived() {
        rounds += 1;
        assert!(rounds < 40, "nothing is archived: {:?}", first.status().map(|status| status.log));
        churn().iter().for_each(|lines| apply(first, &cluster.root, lines));
    }
    println!("{rounds} rounds");
    first.cli(&["files", "del", "Notes", "before, 1"]).ok();
    first.add("Notes", "after, 2");
    second.start();
    cluster.wait_operating();
    cluster.wait_same();
    cluster.add("S3").start();
    cluster.wait_operating();
    cluster.wait_same();
    for server in cluster.servers() {
        assert_eq!(server.show("Notes"), ["after, 2"], "{}", server.name);
        assert!(server.show("Bulk").is_empty(), "{}", server.name);
    }
    // They go on from there like anybody else, and start again from what they were given.
    cluster.server("S3").kill();
    cluster.server("S1").add("Notes", "while-away, 3");
    cluster.server("S3").start();
    cluster.wait_operating();
    cluster.server("S3").add("Notes", "back, 4");
    cluster.finish();
}

#[test]
fn a_token_is_good_for_one_server_and_for_its_time() {
    let mut cluster = Cluster::empty();
    let first = cluster.add("S1");
    let clock = Clock::of(first, first.dir.parent().unwrap()).expect("rustc is here");
    first.start();
    let token = cluster.token();
    let second = cluster.plan("S2");
    cluster.enrol(&second, Some(&token)).ok();
    let third = cluster.plan("S3");
    let refused = cluster.enrol(&third, Some(&token));
    refused.fails_saying(&["token", "used already"]);
    assert!(!third.dir.exists(), "nothing is left of a join that was refused");

    let damaged = token.replace("p2pdb-join-a", "p2pdb-join-b");
    cluster.enrol(&third, Some(&damaged)).fails_saying(&["token is damaged", "copy the whole line"]);
    cluster.enrol(&third, Some("hello")).fails_saying(&["p2pdb-join-", "p2pdb token"]);

    let token = cluster.server("S1").cli(&["token", "--minutes", "5"]).ok().trim().to_owned();
    clock.set_ms(6 * 60 * 1000);
    cluster.enrol(&third, Some(&token)).fails_saying(&["expired", "p2pdb token"]);
    assert!(!third.dir.exists());
}

#[test]
fn a_join_that_was_cut_off_is_repeated_with_another_token() {
    let mut cluster = Cluster::of(1);
    let second = cluster.plan("S2");
    cluster.enrol(&second, Some(&cluster.token())).ok();
    // The settings are written last.
    fs::remove_file(second.dir.join("p2pdb.toml")).unwrap();
    let other = Cluster::of(1);
    cluster.enrol(&second, Some(&other.token())).fails_saying(&["is not empty"]);
    cluster.enrol(&second, Some(&cluster.token())).ok();
    cluster.adopt(second).start();
    cluster.wait_operating();
    let again = cluster.enrol(cluster.server("S2"), Some(&cluster.token()));
    again.fails_saying(&["is not empty"]);
    cluster.finish();
}

#[test]
fn a_token_of_another_cluster_and_a_peer_that_is_not_there_are_told() {
    let ours = Cluster::of(1);
    let theirs = Cluster::of(1);
    let token = theirs.token();
    let second = ours.plan("S2");
    ours.enrol(&second, Some(&token)).fails_saying(&["the join token to cluster", "a token of the cluster that is at"]);
    let token = ours.token();
    ours.server("S1").stop();
    let told = ours.enrol(&second, Some(&token)).fails_saying(&[]);
    assert!(told.contains(&ours.server("S1").address.to_string()), "{told}");
    assert!(!second.dir.exists());
}

#[test]
fn a_name_or_an_address_that_is_taken_is_refused() {
    let cluster = Cluster::of(2);
    let mut clash = cluster.plan("S2");
    let token = cluster.token();
    clash.dir = cluster.root.join("other");
    cluster.enrol(&clash, Some(&token)).fails_saying(&["S2", "member already", "another name"]);
    let mut clash = cluster.plan("S3");
    clash.address = cluster.server("S2").address;
    cluster.enrol(&clash, Some(&token)).fails_saying(&[&clash.address.to_string(), "--listen"]);
    assert!(!clash.dir.exists());
    // The token was not wasted.
    let third = cluster.plan("S3");
    cluster.enrol(&third, Some(&token)).ok();
    cluster.finish();
}

/// Rows that only a server that is there can have.
const ITS_ROWS: [(&str, &str); 2] =
    [("Original", "S4, original-9, broken, no room"), ("Maintenance", "S4, a new disk")];

#[test]
fn a_removed_server_is_refused_by_all_at_once_and_told_so() {
    let cluster = Cluster::of(4);
    let removed = cluster.server("S4");
    let rest: Vec<&Server> = cluster.servers()[..3].iter().collect();
    let writer = Writer::start(cluster.server("S2"), "Notes", "n", "x", Wait::Majority);
    writer.wait_for_more(5);
    for (file, row) in ITS_ROWS {
        cluster.server("S1").cli(&["files", "add", file, row]).ok();
    }
    cluster.server("S1").cli(&["remove", "S4", "--reason", "sold"]).ok();
    wait_until("nobody is linked with it", || {
        rest.iter().all(|server| {
            let status = server.status().expect("it answers");
            status.members.iter().all(|member| member.name.as_str() != "S4")
        }) && removed.status().is_some_and(|status| status.members.iter().all(|member| member.link != LinkState::Up))
    });
    wait_until("its own daemon says why", || {
        let status = removed.status().expect("it goes on running");
        let refusals = status.members.iter().filter_map(|member| member.last_refusal.as_deref());
        let alarms = status.alarms.iter().map(|alarm| alarm.text.as_str());
        refusals.chain(alarms).any(|text| text.contains("revoked") || text.contains("removed"))
    });
    writer.wait_for_more(20);
    assert!(writer.refusals().is_empty(), "{:?}", writer.refusals());
    // What it does now concerns nobody, also after a new start.
    let _ = removed.cli(&["files", "add", "Notes", "from-outside, 1"]);
    removed.kill();
    removed.start();
    writer.wait_for_more(20);
    let promises = writer.finish();
    cluster.wait_same_among(&rest);
    for server in rest {
        let notes: BTreeSet<_> = server.show("Notes").into_iter().collect();
        assert!(promises.iter().all(|promise| notes.contains(&promise.record)), "{}", server.name);
        assert!(!notes.contains("from-outside, 1"));
        for (file, _) in ITS_ROWS {
            assert!(server.show(file).iter().all(|row| !row.starts_with("S4, ")), "{file} of {}", server.name);
        }
        assert_eq!(server.link("S4"), None);
        server.verify();
    }
    // Its name is free again for a new machine.
    removed.kill();
    fs::remove_dir_all(&removed.dir).unwrap();
    let token = cluster.token();
    cluster.enrol(removed, Some(&token)).ok();
    removed.start();
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn a_removed_server_stays_out_and_may_join_again_whatever_the_clocks_said() {
    let cluster = Cluster::of(3);
    let removed = cluster.server("S3");
    let rest = &cluster.servers()[..2];
    let first = &rest[0];
    removed.add("Notes", "its-own, 1");
    wait_until("the first has it", || first.has("Notes", "its-own, 1"));
    // It does not hear of its removal, and would link as if nothing had been.
    removed.kill();
    first.cli(&["remove", "S3", "--reason", "stolen"]).ok();
    let is_revoked = |row: &String| row.starts_with("S3, ");
    let revoke_at = |time_ms: u64| {
        let before = first.show("Revoked").into_iter().find(is_revoked).expect("it is revoked");
        let after = format!("S3, {time_ms}");
        first.cli(&["files", "mod", "Revoked", &before, &after, "--wait", "all"]).ok();
    };
    // The clock by which it was removed was far behind the one by which its certificate was issued.
    revoke_at(1);
    rest.iter().for_each(Server::stop);
    rest.iter().for_each(Server::start);
    wait_until("they are linked again", || first.link("S2") == Some(LinkState::Up));
    first.add("Notes", "not-for-it, 1");
    removed.start();
    wait_until("it is refused", || removed.has_alarm("the others refuse its certificate"));
    assert_eq!(first.link("S3"), None);
    assert_eq!(removed.show("Notes"), ["its-own, 1"]);

    // Now the clock by which it was removed was ahead, and it joins again.
    revoke_at(wall_ms() + 3_600_000);
    removed.kill();
    enrol_anew(&cluster, removed);
    removed.start();
    cluster.wait_operating();
    removed.cli(&["cert", "rotate"]).ok();
    cluster.wait_operating();
    // Removed once more, with a clock that is behind all that.
    first.cli(&["remove", "S3"]).ok();
    wait_until("it is out", || removed.has_alarm("removed"));
    let row = first.show("Revoked").into_iter().find(is_revoked).expect("it is revoked");
    let revoked_ms: u64 = row.strip_prefix("S3, ").and_then(|time| time.parse().ok()).expect("a time");
    assert!(revoked_ms > wall_ms() + 3_000_000, "its certificate is from after that: {row}");
    removed.stop();
    cluster.finish();
}

#[test]
fn a_certificate_from_a_clock_that_was_ahead_does_not_count_again_when_its_name_joins_again() {
    let cluster = Cluster::of(3);
    let (first, stolen) = (cluster.server("S1"), cluster.server("S3"));
    stolen.stop();
    let authority = CertificateDirectory::new(first.dir.join("certs")).load_authority().unwrap().unwrap();
    let certs = CertificateDirectory::new(stolen.dir.join("certs"));
    let (key, name) = (generate_key().unwrap(), ServerName::new("S3").unwrap());
    let (ahead_ms, year_ms) = (wall_ms() + 12 * 3_600_000, 365 * 24 * 3_600_000);
    let der = issue_certificate(&authority, &name, &key.verifying_key().to_bytes(), ahead_ms, year_ms).unwrap();
    certs.store_credentials(&Credentials::new(&der, key, authority.certificate()).unwrap()).unwrap();
    stolen.start();
    stolen.add("Notes", "its-own, 1");
    wait_until("the first has it", || first.has("Notes", "its-own, 1"));
    stolen.kill();
    // What a link has shown is not to help, but what the log says.
    first.stop();
    first.start();
    let kept = ["server.crt", "server.key"].map(|file| (file, fs::read(stolen.dir.join("certs").join(file)).unwrap()));
    first.cli(&["remove", "S3", "--reason", "stolen"]).ok();
    enrol_anew(&cluster, stolen);
    stolen.start();
    cluster.wait_operating();
    stolen.stop();
    for (file, content) in kept {
        fs::write(stolen.dir.join("certs").join(file), content).unwrap();
    }
    stolen.start();
    wait_until("it is refused", || stolen.has_alarm("the others refuse its certificate"));
    assert_ne!(first.link("S3"), Some(LinkState::Up));
    stolen.stop();
    cluster.finish();
}

#[test]
fn a_rejoin_that_was_cut_off_is_repeated_with_another_token() {
    let cluster = Cluster::of(2);
    let second = cluster.server("S2");
    second.add("Notes", "its-own, 1");
    cluster.wait_same();
    second.stop();
    cluster.server("S1").cli(&["remove", "S2"]).ok();
    enrol_anew(&cluster, second);
    fs::remove_file(second.dir.join("p2pdb.toml")).unwrap();
    cluster.enrol(second, Some(&cluster.token())).ok();
    second.start();
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn the_name_of_a_member_that_is_away_is_not_given_to_another() {
    let cluster = Cluster::of(2);
    let (first, second) = (cluster.server("S1"), cluster.server("S2"));
    second.add("Notes", "its-own, 1");
    cluster.wait_same();
    second.stop();
    first.cli(&["remove", "S2"]).ok();
    enrol_anew(&cluster, second);
    second.start();
    cluster.wait_operating();
    // It has signed nothing since, and as the group does when it has failed, its flag is taken away.
    second.stop();
    first.cli(&["files", "del", "Flag", "S2, operating"]).ok();
    let mut other = cluster.plan("S2");
    other.dir = cluster.root.join("other");
    cluster.enrol(&other, Some(&cluster.token())).fails_saying(&["a server named S2 is a member already"]);
    second.start();
    wait_until("it is linked", || first.link("S2") == Some(LinkState::Up));
    cluster.finish();
}

#[test]
fn certificates_rotate_under_a_stream_of_edits_and_none_is_lost() {
    let cluster = Cluster::of(3);
    let writers: Vec<_> = cluster
        .servers()
        .iter()
        .map(|server| Writer::start(server, "Notes", &server.name, "x", Wait::Majority))
        .collect();
    let fingerprint = |server: &Server| server.cli(&["cert", "show"]).ok();
    let before: Vec<_> = cluster.servers().iter().map(fingerprint).collect();
    for _ in 0..2 {
        for server in cluster.servers() {
            server.cli(&["cert", "rotate"]).ok();
            writers.iter().for_each(|writer| writer.wait_for_more(10));
        }
    }
    let after: Vec<_> = cluster.servers().iter().map(fingerprint).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    cluster.wait_operating();
    let mut promises = Vec::new();
    for writer in writers {
        assert!(writer.refusals().is_empty(), "{:?}", writer.refusals());
        promises.extend(writer.finish());
    }
    cluster.wait_same();
    for server in cluster.servers() {
        let notes: BTreeSet<_> = server.show("Notes").into_iter().collect();
        let lost: Vec<_> = promises.iter().filter(|promise| !notes.contains(&promise.record)).collect();
        assert!(lost.is_empty(), "{} lacks {lost:?}", server.name);
    }
    // The new certificates are the ones that a new start finds.
    cluster.server("S2").stop();
    cluster.server("S2").start();
    assert_eq!(fingerprint(cluster.server("S2")), after[1]);
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn whoever_asks_a_server_without_the_authority_is_told_where_to_join() {
    let cluster = Cluster::of(2);
    let (token, peer) = (cluster.token(), cluster.server("S2").address.to_string());
    let dir = cluster.root.join("S3").to_string_lossy().into_owned();
    let files = format!("{dir}/files");
    let server = ["join", "--name", "S3", "--listen", "10.9.9.9:7400", "--dir", &dir, "--files", &files];
    p2pdb(server.into_iter().chain(["--peer", &peer, "--token", &token])).fails_saying(&[
        "does not hold the cluster CA key; join through a server that has certs/ca.key, usually the one that ran init",
        "the token is still good",
    ]);
    cluster.finish();
}

#[test]
fn a_bundle_put_on_one_server_is_had_on_all_also_after_that_one_died() {
    let mut cluster = Cluster::of(3);
    let content: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    let (put, got) = (cluster.root.join("install.sh"), cluster.root.join("got.sh"));
    fs::write(&put, &content).unwrap();
    let paths = |path: &Path| path.to_string_lossy().into_owned();
    cluster.server("S1").cli(&["bundle", "put", "install-mail", &paths(&put)]).ok();
    wait_until("all have its content", || {
        cluster.servers().iter().all(|server| server.cli(&["bundle", "list", "--json"]).out.contains("\"here\":true"))
    });
    cluster.server("S1").kill();
    cluster.server("S3").cli(&["bundle", "get", "install-mail", &paths(&got)]).ok();
    assert!(fs::read(&got).unwrap() == content);
    // A server that joins later gets it from whoever is left. The one with the CA's key must be there to let it in.
    cluster.server("S1").start();
    cluster.wait_operating();
    cluster.add("S4").start();
    cluster.wait_operating();
    cluster.server("S4").cli(&["bundle", "get", "install-mail", &paths(&got)]).ok();
    assert!(fs::read(&got).unwrap() == content);
    cluster.server("S4").cli(&["bundle", "get", "nothing", &paths(&got)]).fails_saying(&["nothing"]);
    cluster.finish();
}

#[test]
fn what_is_put_under_sudo_is_recorded_with_the_person() {
    let cluster = Cluster::of(1);
    let server = cluster.server("S1");
    server.set_environment("SUDO_USER", "alice");
    let folder = cluster.root.join("mail");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("procedure.toml"), "format = 1\ntarget = \"mail\"\n").unwrap();
    fs::write(folder.join("install.sh"), "true\n").unwrap();
    server.cli(&["bundle", "put", "notes", &folder.join("install.sh").to_string_lossy()]).ok();
    server.cli(&["procedure", "put", &folder.to_string_lossy()]).ok();
    let told = server.run_plain(&["dump", &server.dir.to_string_lossy(), "--file", "Bundle", "--json"]).ok();
    let entries: Vec<serde_json::Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_alice = |entry: &serde_json::Value| entry["author"].as_str().unwrap().ends_with(" for alice");
    assert!(entries.len() == 2 && entries.iter().all(by_alice), "{told}");
    cluster.finish();
}

#[test]
fn edits_on_both_sides_of_a_division_conflict_visibly_until_somebody_decides() {
    let cluster = Cluster::of(3);
    let [one, two, three] = cluster.servers() else { unreachable!("there are three") };
    one.cli(&["files", "add", "Problem", "---, S9, ---", "--wait", "all"]).ok();
    one.cli(&["files", "add", "Notes", "quiet, 0", "--wait", "all"]).ok();
    // The third is away while the first two edit, and they while it edits.
    three.stop();
    one.cli(&["files", "mod", "Problem", "---, S9, ---", "S9a, S9, S1"]).ok();
    one.cli(&["files", "mod", "Notes", "quiet, 0", "quiet, same"]).ok();
    wait_until("the second has it", || two.has("Problem", "S9a, S9, S1") && two.has("Notes", "quiet, same"));
    one.stop();
    two.stop();
    three.start();
    wait_until("it goes on alone", || three.lifecycle() >= Some(Lifecycle::Ready));
    three.cli(&["files", "mod", "Problem", "---, S9, ---", "S9b, S9, S3"]).ok();
    three.cli(&["files", "mod", "Notes", "quiet, 0", "quiet, same"]).ok();
    one.start();
    two.start();
    cluster.wait_operating();
    cluster.wait_same();
    for server in cluster.servers() {
        assert_eq!(server.show("Problem"), ["S9b, S9, S3"], "the newer one is in force on {}", server.name);
        let conflicts = server.cli(&["files", "conflicts"]).ok();
        for word in ["Problem: S9", "S9a, S9, S1", "S9b, S9, S3", "in force", "lost"] {
            assert!(conflicts.contains(word), "{word} is not in:\n{conflicts}");
        }
        assert!(!conflicts.contains("Notes"), "who agrees has no conflict:\n{conflicts}");
    }
    two.cli(&["files", "resolve", "Problem", "S9", "--keep", "1"]).ok();
    wait_until("it is settled everywhere", || {
        cluster.servers().iter().all(|server| {
            server.cli(&["files", "conflicts"]).ok().contains("no conflicts") && server.has("Problem", "S9a, S9, S1")
        })
    });
    cluster.finish();
}

#[test]
fn the_log_is_dumped_followed_and_replayed_while_the_daemon_runs() {
    let cluster = Cluster::of(2);
    let [one, two] = cluster.servers() else { unreachable!("there are two") };
    let mut follower = Command::new(env!("CARGO_BIN_EXE_p2pdb"))
        .args(["dump", "--follow", "--format", "paper"])
        .arg(&one.dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let before = one.add("Notes", "a, 1");
    two.cli(&["files", "add", "Notes", "b, 2", "--wait", "all"]).ok();
    let after = one.cli(&["files", "mod", "Notes", "a, 1", "a, 9"]).ok().trim().to_owned();
    let wanted = ["Notes, Add, a, 1", "Notes, Add, b, 2", "Notes, Mod, \"a, 1\", \"a, 9\""];
    let mut seen = 0;
    while seen < wanted.len() {
        let line = lines.next().expect("the follower follows").unwrap();
        seen += usize::from(line == wanted[seen]);
    }
    follower.kill().unwrap();
    follower.wait().unwrap();

    let dir = one.dir.to_string_lossy().into_owned();
    let at = |point: &str| p2pdb(["replay", &dir, "--at", point, "--file", "Notes"]).ok();
    assert_eq!(at(&before), "a, 1\n");
    assert_eq!(at(&after), "a, 9\nb, 2\n");
    let difference = p2pdb(["replay", &dir, "--file", "Notes", "--diff", &before, &after]).ok();
    assert_eq!(difference, "Notes, Mod, \"a, 1\", \"a, 9\"\nNotes, Add, b, 2\n");
    let history = one.cli(&["files", "history", "Notes", "a"]).ok();
    assert!(history.contains(&before) && history.contains(&after) && !history.contains("b, 2"), "{history}");

    // Reading under load finds no half-written entry, and nothing wrong where something is only new.
    for round in 0..2 {
        let writer = Writer::start(two, &format!("Load{round}"), "n", "x", Wait::All);
        writer.wait_for_more(10);
        one.verify();
        one.replay_check();
        p2pdb(["dump", &dir]).ok();
        writer.finish();
    }
    cluster.finish();
}

#[test]
fn a_view_that_is_lost_or_damaged_is_made_again_from_the_log() {
    let cluster = Cluster::of(2);
    let one = cluster.server("S1");
    (0..50).for_each(|number| drop(one.add("Notes", &format!("k{number}, v"))));
    one.cli(&["files", "del", "Notes", "k7, v"]).ok();
    cluster.wait_same();
    let digest = |server: &Server| server.cli(&["files", "list", "--json"]).ok();
    let before = digest(one);
    one.stop();
    fs::remove_dir_all(one.dir.join("view")).unwrap();
    one.start();
    assert_eq!(digest(one), before);
    one.stop();
    for path in harness::find_files(&one.dir.join("view"), &|_| true) {
        let mut bytes = fs::read(&path).unwrap();
        let step = (bytes.len() / 50).max(1);
        bytes.iter_mut().step_by(step).for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).unwrap();
    }
    one.start();
    assert_eq!(digest(one), before);
    cluster.wait_operating();
    cluster.finish();
}
