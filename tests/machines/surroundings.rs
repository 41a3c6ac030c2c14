//! What hosts and guests bring along that are not made for p2pdb: bridges of others, closed folders, restricted agents, updates.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::faults::serves_by_the_installers_channel;
use super::life::{WEB_FILES, WEB_MANIFEST, WEB_SCRIPT};
use super::rig::{Network, Tie, run};
use super::stage::{host, image_with_restricted_agent, machines_possible};

/// After an update of QEMU or of the processor's microcode, say.
#[test]
fn a_pristine_state_that_is_whole_and_cannot_be_restored_is_made_anew() {
    if !machines_possible("a_pristine_state_that_is_whole_and_cannot_be_restored_is_made_anew") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (libvirtd, host) = host(&network, 0, 1, "saved");
    let owner = host.start();
    let folder = host.directory().join("originals/original-1");
    let (save, description) = (folder.join("pristine.save"), folder.join("pristine.json"));
    let digest = |path: &Path| blake3::hash(&std::fs::read(path).unwrap()).to_hex().to_string();
    let before = digest(&save);
    std::fs::write(&save, "of another world").unwrap();
    let text = std::fs::read_to_string(&description).unwrap();
    std::fs::write(&description, text.replace(&before, &digest(&save))).unwrap();
    let outcome = owner.order("1 7 resume S2");
    assert!(outcome.starts_with("failed restoring it: "), "{outcome}");
    assert!(owner.done("1 8 reset").starts_with("suspended "));
    owner.done("1 9 resume S2");
    assert_eq!(libvirtd.machines(), ["running"]);
}

#[test]
fn qemus_user_can_enter_the_folder_of_an_original_after_a_restart_of_the_daemon() {
    if !machines_possible("qemus_user_can_enter_the_folder_of_an_original_after_a_restart_of_the_daemon") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (_libvirtd, host) = host(&network, 0, 1, "saved");
    host.start().kill();
    let owner = host.start();
    owner.done("1 7 resume S2");
    for folder in ["originals", "originals/original-1"] {
        let mode = std::fs::metadata(host.directory().join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o711, "{folder}");
    }
}

#[test]
fn where_the_guest_agent_may_not_run_programs_the_installers_channel_is_the_way_in() {
    if !machines_possible("where_the_guest_agent_may_not_run_programs_the_installers_channel_is_the_way_in") {
        return;
    }
    serves_by_the_installers_channel(&image_with_restricted_agent());
}

#[test]
fn a_bridge_that_was_made_anew_gets_the_gate_again() {
    if !machines_possible("a_bridge_that_was_made_anew_gets_the_gate_again") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (_libvirtd, host) = host(&network, 0, 1, "paused");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let owner = host.start();
    let listed = run("ip", &format!("-n {} -oneline link show type tun", network.host(0)));
    let gate = listed.split(": ").nth(1).unwrap();
    run("ip", &format!("-n {} link set {gate} nomaster", network.host(0)));
    owner.done("1 7 resume S2");
    owner.done(&format!("1 7 install S2 {digest}"));
    owner.done("1 7 take 10.91.0.50/24 60000");
    assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));
}

#[test]
fn a_bridge_that_would_keep_a_stand_in_waiting_is_refused() {
    if !machines_possible("a_bridge_that_would_keep_a_stand_in_waiting_is_refused") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (_libvirtd, host) = host(&network, 0, 1, "paused");
    let set = |state| run("ip", &format!("-n {} link set eth0 type bridge stp_state {state}", network.host(0)));
    set(1);
    let owner = host.start_without_waiting();
    let note = owner.wait_for("changed original-1 broken --- 0 ");
    assert!(note.contains("'eth0' runs the spanning tree protocol") && note.contains("bridge.stp no"), "{note}");
    set(0);
    owner.begin("prepare");
    owner.wait_for("changed original-1 suspended");
}
