//! `p2pdb doctor` on real daemons: it finds what is wrong, says what to do, and finds nothing where nothing is.
#![cfg(feature = "daemon")]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod harness;

use harness::{Cluster, Server, wait_until};
use serde_json::Value;

/// What the doctor finds wrong, as `about: text; remedy`.
fn wrong(server: &Server) -> Vec<String> {
    let output = server.cli(&["doctor", "--json"]);
    let findings: Vec<Value> = output.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!findings.is_empty(), "{output:?}");
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let wrong = findings.iter().filter(|finding| finding["good"] == false);
    assert_eq!(output.code, Some(i32::from(wrong.clone().next().is_some())), "{output:?}");
    // Whether ICMP can be asked is up to the machine that tests.
    let wrong = wrong.filter(|finding| finding["about"] != "checks");
    let wrong: Vec<_> =
        wrong.map(|it| format!("{}: {}; {}", text(it, "about"), text(it, "text"), text(it, "remedy"))).collect();
    wrong
}

#[track_caller]
fn finds(server: &Server, parts: &[&str]) {
    let found = wrong(server);
    assert!(found.iter().any(|finding| parts.iter().all(|part| finding.contains(part))), "{parts:?}: {found:#?}");
}

#[test]
fn the_doctor_finds_what_is_wrong_and_nothing_else() {
    let cluster = Cluster::of(2);
    let (first, second) = (cluster.server("S1"), cluster.server("S2"));
    assert_eq!(wrong(first), Vec::<String>::new());
    assert!(first.cli(&["doctor"]).ok().contains("all 2 members are here"));

    first.add("Service", "S1, 10.0.0.9/24, exclusive");
    first.add("Service", "S2, 10.0.0.9/24, shared");
    finds(first, &["service network: the file Service gives 10.0.0.9/24 to S1", "set service.interface in p2pdb.toml"]);
    finds(first, &["services: S1 and S2 have the same service address 10.0.0.9", "p2pdb files mod Service"]);
    finds(first, &["services: S2 has a service and no installation procedure", "procedure put FOLDER --server S2"]);
    finds(first, &["original servers: no host has one that is ready"]);
    first.add("Original", "S3, original-1, broken, out of memory");
    finds(first, &["original-1 of S3 is broken: out of memory", "on S3: p2pdb original prepare"]);

    second.kill();
    wait_until("S2 is missed", || wrong(first).iter().any(|finding| finding.contains("links: S2 is not linked")));
    finds(first, &["links: 1 of 2 members are here: no majority"]);
}

#[test]
fn the_doctor_helps_when_the_daemon_does_not_start() {
    let mut cluster = Cluster::empty();
    let server = cluster.add("S1");
    finds(server, &["daemon: ", "p2pdb daemon"]);
    server.set("service", "interface", "\"nowhere0\"");
    finds(server, &["service network: there is no interface 'nowhere0'", "service.interface"]);
    server.set("log", "segment_mib", "0");
    finds(server, &["settings: ", "log.segment_mib is 0, but must be a number from 1 to 256"]);
    let nobody = harness::p2pdb(["doctor", "--dir", "/nonexistent"]).negative();
    assert!(nobody.contains("no server lives in this directory"), "{nobody}");
}
