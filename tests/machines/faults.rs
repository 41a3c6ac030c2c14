//! What goes wrong with virtual machines, and in which state each ends.

use rustix::process::Signal;
use tempfile::TempDir;

use super::life::{WEB_FILES, WEB_MANIFEST, WEB_SCRIPT};
use super::rig::{Network, Tie, wait_until};
use super::stage::{Libvirtd, host, host_with, image_with, image_with_disk, machines_possible};

#[test]
fn libvirtd_is_killed_frozen_and_started_again() {
    if !machines_possible("libvirtd_is_killed_frozen_and_started_again") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (mut libvirtd, host) = host(&network, 0, 2, "paused");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let owner = host.start();
    owner.done("1 7 resume S2");
    owner.done(&format!("1 7 install S2 {digest}"));
    owner.done("1 7 take 10.91.0.50/24 2000");

    // Without libvirtd what serves goes on, and its lease is renewed; the one that waits cannot be used.
    libvirtd.kill();
    let note = owner.wait_for("changed original-2 broken --- 0 ");
    assert!(note.contains("cannot be reached"), "{note}");
    for _ in 0..12 {
        owner.done("1 7 hold 10.91.0.50/24 2000");
        assert!(network.answers("10.91.0.50"));
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    let outcome = owner.order("2 8 resume S3");
    assert!(outcome.starts_with("failed the original server, broken"), "{outcome}");
    owner.done("1 7 hold 10.91.0.50/24 60000");
    libvirtd.run();
    // As the core does every few seconds.
    owner.begin("prepare");
    owner.wait_for("changed original-2 suspended");
    assert!(network.answers("10.91.0.50"));
    owner.done("1 7 release 10.91.0.50/24");
    owner.done("1 7 take 10.91.0.50/24 2000");

    // Frozen, it holds up nobody for longer than a lease.
    libvirtd.signal(Signal::STOP);
    for _ in 0..12 {
        owner.done("1 7 hold 10.91.0.50/24 2000");
        assert!(network.answers("10.91.0.50"));
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    let begun = std::time::Instant::now();
    let outcome = owner.order("2 8 resume S3");
    assert!(outcome.starts_with("failed "), "{outcome}");
    assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
    // An address is given back without it.
    owner.done("1 7 release 10.91.0.50/24");
    assert!(!network.answers("10.91.0.50"));
    libvirtd.signal(Signal::CONT);
    wait_until("the other one is put back", || owner.order("2 8 reset").starts_with("done suspended"));
    assert!(owner.done("1 7 reset").starts_with("suspended "));
}

#[test]
fn machines_that_crash_hang_or_are_handled_by_others() {
    if !machines_possible("machines_that_crash_hang_or_are_handled_by_others") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (libvirtd, host) = host(&network, 0, 1, "paused");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let owner = host.start();
    let serve = |token: u64| {
        owner.done(&format!("1 {token} resume S2"));
        owner.done(&format!("1 {token} install S2 {digest}"));
        owner.done(&format!("1 {token} take 10.91.0.50/24 60000"));
        assert!(network.answers("10.91.0.50"));
    };
    serve(7);
    // Its QEMU crashes.
    libvirtd.qemu(&libvirtd.name_of(1)).kill(std::time::Duration::from_secs(2)).unwrap();
    owner.wait_for("changed original-1 broken S2 7 it has ended");
    assert!(!network.answers("10.91.0.50"));
    owner.done("1 7 reset");

    // Somebody suspends it: it does not serve, so it must not keep the address.
    serve(8);
    libvirtd.virsh(&["suspend", &libvirtd.name_of(1)]);
    owner.wait_for("changed original-1 broken S2 8 it was suspended by somebody else");
    owner.done("1 8 reset");

    // Somebody resumes one that waits: it is made anew.
    libvirtd.virsh(&["resume", &libvirtd.name_of(1)]);
    wait_until("it waits again", || libvirtd.machines() == ["paused"]);

    // The guest agent hangs: the procedure is not installed, and nothing is left.
    owner.done("1 9 resume S2");
    let stuck = host.procedure("deadline_s = 2", "kill -STOP $(pidof qemu-ga); sleep 60", &[]);
    let outcome = owner.order(&format!("1 9 install S2 {stuck}"));
    assert!(outcome.starts_with("failed the guest agent: "), "{outcome}");
    assert!(libvirtd.machines().is_empty());
    assert!(owner.done("1 9 reset").starts_with("suspended "));
}

#[test]
fn a_pristine_state_that_is_damaged_is_made_anew() {
    if !machines_possible("a_pristine_state_that_is_damaged_is_made_anew") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (libvirtd, host) = host(&network, 0, 1, "saved");
    let owner = host.start();
    let folder = host.directory().join("originals/original-1");
    let save = folder.join("pristine.save");
    let boots = |note: &str| note.split("booted in ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let first = boots(&owner.done("1 0 check"));
    // Somebody restores it: that life is ended, and the state is as it was.
    libvirtd.virsh(&["restore", save.to_str().unwrap()]);
    wait_until("it waits on disk again", || libvirtd.machines().is_empty());
    assert_eq!(first, boots(&owner.done("1 0 check")));
    // One bit of the guest's memory.
    let mut bytes = std::fs::read(&save).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&save, bytes).unwrap();
    let second = boots(&owner.done("1 7 reset"));
    assert_ne!(first, second, "it was booted again");
    // Gone altogether.
    std::fs::remove_file(&save).unwrap();
    owner.wait_for("changed original-1 suspended");
    owner.done("1 8 resume S2");
    assert_eq!(libvirtd.machines(), ["running"]);
}

#[test]
fn without_guest_agent_the_installers_channel_is_the_way_in() {
    if !machines_possible("without_guest_agent_the_installers_channel_is_the_way_in") {
        return;
    }
    serves_by_the_installers_channel(&image_with("usr/sbin/qemu-ga", "not a program"));
}

pub fn serves_by_the_installers_channel(image: &TempDir) {
    let network = Network::of(1, Tie::Bridge);
    let libvirtd = Libvirtd::start(&network, 0);
    let host = host_with(&network, 0, 1, &libvirtd, "paused", &[("OWNER_IMAGE", image.path())]);
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let owner = host.start();
    assert!(owner.done("1 7 reset").ends_with("without guest agent"));
    owner.done("1 7 resume S2");
    owner.done(&format!("1 7 install S2 {digest}"));
    owner.done("1 7 take 10.91.0.50/24 60000");
    assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));
}

#[test]
fn a_host_without_libvirtd_says_so_and_recovers_when_it_comes() {
    if !machines_possible("a_host_without_libvirtd_says_so_and_recovers_when_it_comes") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (mut libvirtd, host) = host(&network, 0, 1, "paused");
    libvirtd.kill();
    let owner = host.start_without_waiting();
    let note = owner.wait_for("changed original-1 broken --- 0 ");
    assert!(note.contains("cannot be reached") && note.contains("is libvirtd running"), "{note}");
    libvirtd.run();
    owner.begin("prepare");
    owner.wait_for("changed original-1 suspended");
}

#[test]
fn a_device_that_somebody_detaches_is_there_again_in_the_next_life() {
    if !machines_possible("a_device_that_somebody_detaches_is_there_again_in_the_next_life") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let image = image_with_disk();
    let libvirtd = Libvirtd::start(&network, 0);
    let host = host_with(&network, 0, 1, &libvirtd, "paused", &[("OWNER_IMAGE", image.path())]);
    let script = format!("dd if=/dev/vda of=/dev/null bs=4096 count=1 || exit 1\n{WEB_SCRIPT}");
    let digest = host.procedure(WEB_MANIFEST, &script, WEB_FILES);
    let owner = host.start();
    let install = |token: u64| {
        owner.done(&format!("1 {token} resume S2"));
        owner.done(&format!("1 {token} install S2 {digest}"));
    };
    let serve = |token: u64| {
        install(token);
        owner.done(&format!("1 {token} take 10.91.0.50/24 60000"));
        assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));
    };
    let detach = |words: &str, device: &str| {
        let mut words: Vec<&str> = words.split(' ').collect();
        let name = libvirtd.name_of(1);
        words.insert(1, &name);
        libvirtd.virsh(&words);
        wait_until("it is detached", || !libvirtd.virsh(&["dumpxml", &name]).contains(device));
    };

    // Its network card: nobody answers, which is for the checks of the group to see; the address can be given back.
    serve(7);
    detach("detach-interface ethernet --live", "<interface ");
    assert!(!network.answers("10.91.0.50"));
    owner.done("1 7 hold 10.91.0.50/24 60000");
    owner.done("1 7 release 10.91.0.50/24");
    owner.done("1 7 reset");

    // Its disk: what is in memory serves on, and the next life has a disk.
    serve(8);
    detach("detach-disk vda --live", "<disk ");
    assert!(network.answers("10.91.0.50"));
    owner.done("1 8 reset");
    serve(9);
    owner.done("1 9 reset");

    // The card of one that waits: it loses it when it is resumed.
    libvirtd.virsh(&["detach-interface", &libvirtd.name_of(1), "ethernet", "--live"]);
    install(10);
    wait_until("it is detached", || !libvirtd.virsh(&["dumpxml", &libvirtd.name_of(1)]).contains("<interface "));
    let refused = owner.order("1 10 take 10.91.0.50/24 60000");
    assert!(refused.starts_with("failed ") && refused.contains("no network card"), "{refused}");
    assert!(!network.answers("10.91.0.50"));
    owner.done("1 10 reset");
    serve(11);
}
