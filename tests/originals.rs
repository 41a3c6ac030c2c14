//! The original servers of a real daemon, as an operator sees them. Needs root and network namespaces.
#![cfg(feature = "daemon")]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::network::Network;
use harness::{Cluster, Server, skip, wait_until};
use p2pdb::edge::process_identity::ProcessIdentity;
use p2pdb::format::guest::decode_guest;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

/// The originals of a server end with the test, also when it fails.
struct Originals<'a>(&'a Path);

impl Drop for Originals<'_> {
    fn drop(&mut self) {
        for item in fs::read_dir(self.0.join("originals")).into_iter().flatten().flatten() {
            let record = fs::read(item.path().join("state")).ok().and_then(|bytes| decode_guest(&bytes).ok());
            let identity = record.and_then(|record| record.instance.parse::<ProcessIdentity>().ok());
            let _ = identity.map(|identity| identity.kill(Duration::from_secs(5)));
        }
    }
}

/// A group of one whose host has a bridge, `br0`; its daemon does not run yet.
fn host(test: &str) -> Option<Cluster> {
    let network = match Network::of(1) {
        Ok(network) => network,
        Err(error) => {
            skip(test, error);
            return None;
        }
    };
    let bridge = network.within(0, || {
        let mut command = Command::new("ip");
        command.args(["link", "add", "br0", "up", "type", "bridge"]).status()
    });
    assert!(bridge.is_ok_and(|status| status.success()), "the bridge");
    let mut cluster = Cluster::on_network(network);
    cluster.add("S1");
    Some(cluster)
}

fn rows(server: &Server) -> Vec<String> {
    server.show("Original")
}

fn ready(server: &Server, count: usize) -> bool {
    let rows = rows(server);
    rows.len() == count && rows.iter().all(|row| row.contains(", suspended, "))
}

fn put_procedure(server: &Server, folder: &Path, script: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("procedure.toml"), "format = 1\ntarget = \"mail\"\n").unwrap();
    fs::write(folder.join("install.sh"), script).unwrap();
    server.cli(&["procedure", "put", folder.to_str().unwrap()]).ok();
}

#[test]
fn a_host_keeps_its_originals_ready_and_tries_them() {
    let Some(cluster) = host("originals") else { return };
    let server = cluster.server("S1");
    let _originals = Originals(&server.dir);
    server.set("service", "interface", "\"br0\"");
    server.start();
    wait_until("two originals stand in the file", || ready(server, 2));
    assert_eq!(server.cli(&["original", "check"]).ok(), "original-1: ready\noriginal-2: ready\n");
    assert!(server.cli(&["original", "prepare"]).ok().contains("suspended"));
    assert_eq!(server.cli(&["original", "list"]).ok().lines().count(), 3);

    let missing = server.cli(&["procedure", "test", "mail"]);
    missing.fails_saying(&["there is no installation procedure for mail", "p2pdb procedure put"]);
    put_procedure(server, &cluster.root.join("good"), "echo \"I am $P2PDB_TARGET\"\n");
    assert!(server.cli(&["procedure", "test", "mail"]).ok().contains("I am mail"));
    put_procedure(server, &cluster.root.join("bad"), "echo no such service; exit 3\n");
    let refused = server.cli(&["procedure", "test", "mail"]).negative();
    assert!(refused.contains("no such service"), "{refused}");
    wait_until("both are put back", || ready(server, 2));

    wait_until("its load is told", || {
        let status = server.status().expect("it answers");
        let load = status.members[0].load;
        load.is_some_and(|load| load.memory > 0.0 && load.memory < 1.0 && load.stand_ins == 0)
    });
    assert_eq!(server.show("Condition").len(), 1);

    // A restart finds them; fewer wanted ones leave fewer.
    server.stop();
    server.set("originals", "count", "0");
    server.start();
    wait_until("they are gone", || rows(server).is_empty());
    server.cli(&["original", "check"]).fails_saying(&["keeps no original servers", "set service.interface"]);
    cluster.finish();
}

#[test]
fn originals_that_can_take_no_address_do_not_count_as_ready() {
    let mut cluster = Cluster::empty();
    cluster.add("S1");
    let server = cluster.server("S1");
    let _originals = Originals(&server.dir);
    server.set("service", "interface", "\"lo\"");
    server.set("originals", "count", "1");
    // What this thread starts does not get it. Whoever is not root has none to lose.
    let _ = remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN);
    server.start();
    wait_until("it is told", || rows(server).iter().any(|row| row.starts_with("S1, original-1, limited, ")));
    assert!(server.cli(&["original", "list"]).ok().contains("limited"));
    assert_eq!(server.cli(&["original", "check"]).ok(), "original-1: ready\n");
    let found = server.cli(&["doctor"]).negative();
    assert!(found.contains("original-1 of S1 can stand in for nobody: a plain process"), "{found}");
    // It shares the processes of the host: its daemon ends all of it.
    server.stop();
    server.set("originals", "count", "0");
    server.start();
    wait_until("it is gone", || rows(server).is_empty());
    cluster.finish();
}

#[test]
fn without_a_service_network_there_are_none() {
    let mut cluster = Cluster::empty();
    cluster.add("S1").start();
    cluster.wait_operating();
    let server = cluster.server("S1");
    assert!(rows(server).is_empty());
    assert!(server.show("Condition").is_empty());
    assert!(!server.dir.join("originals").exists());
}

#[test]
fn virtual_machines_that_cannot_be_made_say_what_is_missing() {
    let mut cluster = Cluster::empty();
    let server = cluster.add("S1");
    server.set("service", "interface", "\"lo\"");
    server.set("originals", "driver", "\"libvirt\"");
    server.set("libvirt", "image", "\"/nowhere\"");
    server.start();
    cluster.wait_operating();
    let server = cluster.server("S1");
    let why = "libvirt.image '/nowhere' holds neither vmlinuz and initrd.img nor disk.qcow2";
    wait_until("the originals say what is missing", || {
        rows(server).iter().filter(|row| row.contains(why)).count() == 2
    });
    cluster.finish();
}
