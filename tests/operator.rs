//! What an operator sees and says of a group that looks after itself: decisions, why, maintenance, recover, failback, found.
//!
//! On loopback nobody fails, for the machine answers at every address; what is said is what counts here.

#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod harness;

use harness::{Cluster, Output, p2pdb, wait_until};

fn json(output: Output) -> serde_json::Value {
    serde_json::from_str(output.ok().lines().next().expect("one line of JSON")).unwrap()
}

fn decisions(cluster: &Cluster) -> usize {
    cluster.servers()[0].cli(&["decisions", "--json"]).out.lines().count()
}

fn group_of_three() -> Cluster {
    let cluster = Cluster::of(3);
    wait_until("all are admitted", || decisions(&cluster) == 3);
    cluster
}

#[test]
fn decisions_are_told_with_and_without_a_daemon() {
    let cluster = group_of_three();
    let first = &cluster.servers()[0];
    let told = first.cli(&["decisions", "--utc"]).ok();
    let name = &first.name;
    assert!(told.contains(&format!("{name} begins the group")), "{told}");
    first.stop();
    assert_eq!(first.cli(&["decisions", "--utc"]).ok(), told);
}

#[test]
fn why_tells_of_maintenance_and_of_what_is_unknown() {
    let cluster = group_of_three();
    let [first, second, _] = cluster.servers() else { panic!("three") };
    let name = second.name.as_str();
    first.cli(&["maintenance", "on", name, "--reason", "new disk"]).ok();
    assert_eq!(first.cli(&["maintenance"]).ok().trim(), format!("{name}: new disk"));
    let why = first.cli(&["why", name]).ok();
    for words in [&format!("{name} is in the group and plays itself"), "it is in maintenance", "new disk"] {
        assert!(why.contains(words), "{words:?} is not in:\n{why}");
    }
    first.cli(&["maintenance", "off", name]).ok();
    assert_eq!(first.cli(&["maintenance"]).ok(), "");
    let unknown = first.cli(&["why", "nobody"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("nothing has happened to nobody"), "{}", unknown.err);
    first.cli(&["maintenance", "on", "nobody"]).fails_saying(&["there is no server nobody", "p2pdb status"]);
}

#[test]
fn what_cannot_be_is_said_with_the_reason() {
    let cluster = group_of_three();
    let [first, second, _] = cluster.servers() else { panic!("three") };
    let name = second.name.as_str();
    first.cli(&["found"]).fails_saying(&["the group makes decisions already"]);
    first.cli(&["failback", name]).fails_saying(&["plays itself: there is nothing to return from"]);
    first.cli(&["recover", "nobody"]).fails_saying(&["nobody is no member; members are"]);
    first.cli(&["recover", name, "--on", name]).fails_saying(&["is the target"]);
    first.cli(&["confirm-dead", name]).fails_saying(&["--yes"]);
    first.cli(&["confirm-dead", name, "--yes"]).fails_saying(&["is in the group: let it be recovered first"]);
    assert_eq!(decisions(&cluster), 3, "nothing of that is a decision");
}

#[test]
fn a_server_without_a_place_is_out_of_the_group_until_it_may_return() {
    let cluster = group_of_three();
    let [first, second, third] = cluster.servers() else { panic!("three") };
    let name = second.name.as_str();
    first.cli(&["recover", name]).ok();
    wait_until("it is out of the group", || !third.show("Group").contains(&name.to_owned()));
    let status = json(first.cli(&["status", "--json"]));
    assert_eq!(status["management"]["recovered"][0]["target"], name);
    // Whom an operator had recovered waits for one.
    let waits = json(second.cli(&["status", "--json"]))["management"]["work"][0]["waits_for"].to_string();
    assert!(waits.contains("for an operator"), "{waits}");
    first.cli(&["failback", name]).ok();
    wait_until("it is back", || third.show("Group").contains(&name.to_owned()));
    let why = first.cli(&["why", name]).ok();
    assert!(why.contains("takes its place again"), "{why}");
}

#[test]
fn a_group_that_only_shared_files_looks_after_itself_once_it_is_told_to() {
    let cluster = group_of_three();
    for server in cluster.servers() {
        server.stop();
        std::fs::remove_file(server.dir.join("Decision.dat")).unwrap();
    }
    cluster.servers().iter().for_each(|server| server.start());
    let first = &cluster.servers()[0];
    wait_until("all operate", || cluster.servers().iter().all(|server| server.is_operating()));
    let none = first.cli(&["decisions"]);
    assert_eq!(none.code, Some(1));
    assert!(none.err.contains("p2pdb found"), "{}", none.err);
    first.cli(&["recover", &cluster.servers()[1].name]).fails_saying(&["makes no decisions yet", "p2pdb found"]);
    first.cli(&["found"]).ok();
    wait_until("all are admitted", || decisions(&cluster) == 3);
}

#[test]
fn what_would_happen_is_told_from_a_log() {
    let cluster = group_of_three();
    let first = &cluster.servers()[0];
    let names: Vec<&str> = cluster.servers().iter().map(|server| server.name.as_str()).collect();
    for (number, name) in names.iter().enumerate() {
        first.cli(&["files", "add", "Service", &format!("{name}, 10.3.0.{}/24, exclusive", number + 1)]).ok();
        first.cli(&["files", "add", "Original", &format!("{name}, original-1, suspended, x")]).ok();
        first.cli(&["files", "add", "Bundle", &format!("procedure.{name}, 3, {}", "ab".repeat(32))]).ok();
    }
    let from = first.dir.to_str().unwrap();
    let told = p2pdb(["simulate", "--from", from, "--fail", names[1]]).ok();
    assert!(told.contains(&format!("{} is served by its stand-in on", names[1])), "{told}");
    // Two of three at once leave no quorum.
    let fail = format!("{},{}", names[0], names[1]);
    let none = p2pdb(["simulate", "--from", from, "--fail", &fail]);
    assert_eq!(none.code, Some(1), "{none:?}");
    p2pdb(["simulate", "--from", from, "--fail", "nobody"]).fails_saying(&["there is no server nobody"]);
}
