//! A group of real daemons whose stand-ins are virtual machines.

use super::group::{Group, address};
use super::life::{NGINX, WEB_MANIFEST, WEB_SCRIPT};
use super::rig::wait_until;
use super::stage::{Libvirtd, image, machines_possible};

/// Three hosts, each with a libvirtd of its own.
fn group() -> (Group, Vec<Libvirtd>) {
    let mut libvirtds = Vec::new();
    let manifest = format!("format = 1\n{}", WEB_MANIFEST.replace("target = \"S2\"\n", ""));
    let parts = [("procedure.toml", manifest.as_str()), ("install.sh", WEB_SCRIPT), ("nginx.conf", NGINX)];
    let group = Group::with_procedure(3, &[], &parts, &mut |network, server| {
        let libvirtd = Libvirtd::start(network, server);
        let settings = vec![
            ("#driver = \"process\"", "driver = \"libvirt\"".to_owned()),
            ("#uri = \"qemu:///system\"", format!("uri = \"{}\"", libvirtd.uri())),
            ("#image = \"\"", format!("image = \"{}\"", image().display())),
            ("#memory_mib = 256", "memory_mib = 160".to_owned()),
            ("#acceleration = \"auto\"", "acceleration = \"qemu\"".to_owned()),
        ];
        libvirtds.push(libvirtd);
        settings
    });
    (group, libvirtds)
}

#[test]
fn a_dead_machine_is_played_by_a_virtual_one_and_takes_its_place_again() {
    if !machines_possible("a_dead_machine_is_played_by_a_virtual_one_and_takes_its_place_again") {
        return;
    }
    let (mut group, libvirtds) = group();
    group.power_off(1);
    group.wait_served(1, "played");
    wait_until("the files say who plays it", || {
        group.records("Problem").iter().any(|row| row.starts_with("S2b, S2, S"))
    });
    let running = libvirtds.iter().filter(|libvirtd| libvirtd.machines() == ["running"]).count();
    assert_eq!(running, 1, "one plays it");
    let why = group.cli(0, &["why", "S2"]);
    for words in ["the failure is certain", "S2 is played by original-1 on", "the stand-in serves"] {
        assert!(why.contains(words), "{words:?} is not in:\n{why}");
    }

    group.power_on(1);
    group.wait_served(1, "itself");
    wait_until("the story ends", || group.records("Problem").is_empty() && group.records("Recovery").is_empty());
    wait_until("all machines wait again", || libvirtds.iter().all(|libvirtd| libvirtd.machines() == ["paused"]));
    group.assert_never_two();
}

#[test]
fn a_stand_in_whose_network_card_is_detached_is_replaced() {
    if !machines_possible("a_stand_in_whose_network_card_is_detached_is_replaced") {
        return;
    }
    let (mut group, libvirtds) = group();
    group.power_off(1);
    group.wait_served(1, "played");
    let playing = libvirtds.iter().find(|libvirtd| libvirtd.machines() == ["running"]).unwrap();
    let card = || playing.virsh(&["dumpxml", &playing.name_of(1)]).contains("<interface type='ethernet'>");
    playing.virsh(&["detach-interface", &playing.name_of(1), "ethernet", "--live"]);
    wait_until("nobody answers", || !group.network.answers(&address(1)));
    group.wait_served(1, "played");
    wait_until("the one before waits, with a card", || playing.machines() == ["paused"] && card());
    group.assert_never_two();
}
