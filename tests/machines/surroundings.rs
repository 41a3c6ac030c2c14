//! What hosts and guests bring along that are not made for p2pdb: bridges of others, closed and shared folders, restricted agents, updates.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::faults::serves_by_the_installers_channel;
use super::life::{WEB_FILES, WEB_MANIFEST, WEB_SCRIPT};
use super::rig::{Network, Tie, run, wait_until};
use super::stage::{Libvirtd, environment, host, host_with, image_with_restricted_agent, machines_possible, qemus};

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

#[test]
fn originals_that_are_not_wanted_any_more_leave_nothing_in_a_folder_that_others_use_too() {
    if !machines_possible("originals_that_are_not_wanted_any_more_leave_nothing_in_a_folder_that_others_use_too") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let libvirtd = Libvirtd::start(&network, 0);
    let shared = tempfile::tempdir().unwrap();
    let host_here =
        |originals| host_with(&network, 0, originals, &libvirtd, "saved", &[("OWNER_FOLDER", shared.path())]);
    let left = |original: &str| {
        let items = std::fs::read_dir(shared.path().join(original)).into_iter().flatten();
        items.map(|item| item.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let host = host_here(2);
    let owner = host.start();
    owner.done("2 7 resume S2");
    owner.kill();
    std::fs::write(shared.path().join("original-2/notes"), "the administrator's").unwrap();

    // The one at work stays until it is free.
    let owner = host.start_with(1);
    assert!(owner.wait_for("changed original-2 ").starts_with("running S2 7 "));
    assert_eq!(libvirtd.machines(), ["running"]);
    owner.done("2 8 reset");
    wait_until("nothing that is its own is left", || left("original-2") == ["notes"]);
    wait_until("it is forgotten", || !host.directory().join("originals/original-2").exists());
    assert!(libvirtd.machines().is_empty());

    // Another server has the same settings: it takes nothing of this one's, neither at work nor when it goes.
    let before = left("original-1");
    let other = host_here(1);
    let its = other.start_without_waiting();
    let note = its.wait_for("changed original-1 broken --- 0 ");
    assert!(note.contains("belongs to another server") && note.contains("libvirt.folder"), "{note}");
    its.kill();
    let its = other.start_with(0);
    wait_until("it is gone", || !other.directory().join("originals/original-1").exists());
    its.kill();
    assert_eq!(left("original-1"), before);
    owner.done("1 9 resume S2");

    // The folder has become another's meanwhile: its machine ends, and what is there stays.
    let whose = shared.path().join("original-1/owner");
    let mine = std::fs::read(&whose).unwrap();
    std::fs::write(&whose, "another").unwrap();
    let outcome = owner.order("1 9 reset");
    assert!(outcome.starts_with("failed ") && outcome.contains("belongs to another server"), "{outcome}");
    assert!(libvirtd.machines().is_empty());
    for name in ["pristine.json", "pristine.save", "awake"] {
        assert!(shared.path().join("original-1").join(name).exists(), "{name}");
    }
    std::fs::write(&whose, mine).unwrap();
    owner.done("1 10 reset");

    // A resumption that fails for that says nothing of the state.
    let away = shared.path().join("away");
    std::fs::rename(&whose, &away).unwrap();
    std::fs::create_dir(&whose).unwrap();
    let before = std::fs::read(shared.path().join("original-1/pristine.json")).unwrap();
    let outcome = owner.order("1 11 resume S2");
    assert!(outcome.starts_with("failed "), "{outcome}");
    std::fs::remove_dir(&whose).unwrap();
    std::fs::rename(&away, &whose).unwrap();
    owner.done("1 12 reset");
    assert_eq!(std::fs::read(shared.path().join("original-1/pristine.json")).unwrap(), before);
    owner.kill();

    // As an earlier version has left it: whose it is was not said.
    for whose in [&whose, &host.directory().join("originals/original-1/owner")] {
        std::fs::remove_file(whose).unwrap();
    }
    host.start().kill();
    assert!(whose.exists());

    // The settings ask for none any more, while the disk is away.
    let away = shared.path().with_extension("away");
    std::fs::rename(shared.path(), &away).unwrap();
    let owner = host.start_with(0);
    owner.wait_for("changed original-1 ");
    owner.kill();
    assert!(host.directory().join("originals/original-1").exists());
    std::fs::rename(&away, shared.path()).unwrap();
    let _owner = host.start_with(0);
    wait_until("nothing is left", || !shared.path().join("original-1").exists());
}

#[test]
fn machines_that_other_settings_made_are_removed_and_made_anew_once_they_are_free() {
    if !machines_possible("machines_that_other_settings_made_are_removed_and_made_anew_once_they_are_free") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (mut libvirtd, host) = host(&network, 0, 1, "paused");
    let shared = tempfile::tempdir().unwrap();
    let own_save = host.directory().join("originals/original-1/pristine.save");
    host.start().kill();
    assert!(own_save.exists());

    // Another folder.
    let host = host.with_environment(environment(&libvirtd, "paused", &[("OWNER_FOLDER", shared.path())]));
    let owner = host.start_without_waiting();
    owner.wait_for("changed original-1 suspended");
    assert_eq!((libvirtd.machines(), qemus(&host)), (vec!["paused".to_owned()], 1));
    assert!(!own_save.exists() && shared.path().join("original-1/pristine.save").exists());

    // Another driver, while it is at work and libvirtd is away when it is to go.
    owner.done("1 7 resume S2");
    owner.kill();
    let host = host.with_environment(Vec::new());
    let owner = host.start_without_waiting();
    assert!(owner.wait_for("changed original-1 ").starts_with("running S2 7 "));
    libvirtd.kill();
    let outcome = owner.order("1 8 reset");
    assert!(outcome.starts_with("failed made by libvirt at ") && outcome.contains("cannot be reached"), "{outcome}");
    libvirtd.run();
    assert!(owner.done("1 8 reset").starts_with("suspended a process in namespaces"));
    assert_eq!(qemus(&host), 0);
    assert!(!shared.path().join("original-1").exists());
}
