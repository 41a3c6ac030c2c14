//! libvirtd is killed at every step of a life; orders of two decisions come in any order. Whatever is said of a machine is true on the
//! network: one that is not said to serve does not answer, also when libvirtd is back, so that another may have its address.

use p2pdb::core::guest::GuestState;

use super::group::Observer;
use super::life::{WEB_FILES, WEB_MANIFEST, WEB_SCRIPT};
use super::rig::{Host, Network, Owner, Tie, wait_until};
use super::stage::{Libvirtd, host, machines_possible, qemus};

const ADDRESS: &str = "10.91.0.50";
const TAKE: &str = "take 10.91.0.50/24 60000";

#[test]
fn libvirtd_is_killed_at_every_step_of_a_life() {
    if !machines_possible("libvirtd_is_killed_at_every_step_of_a_life") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (mut libvirtd, host) = host(&network, 0, 1, "paused");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let mut observer = Observer::start(&network, [ADDRESS.to_owned()].into_iter());
    let owner = host.start_without_waiting();
    let folder = host.directory().join("originals/original-1");

    // While it boots: that goes on. While its state is saved: nothing of that is used.
    wait_until("it boots", || libvirtd.machines() == ["running"]);
    let booting = libvirtd.qemu(&libvirtd.name_of(1));
    libvirtd.kill();
    libvirtd.run();
    wait_until("its state is being saved", || folder.join("pristine.save").exists());
    assert!(booting.is_alive(), "the same machine that was booting");
    libvirtd.kill();
    let note = owner.wait_for("changed original-1 broken --- 0 ");
    assert!(note.contains("cannot be reached"), "{note}");
    assert!(!booting.is_alive() || !folder.join("pristine.json").exists(), "half a state is none");
    libvirtd.run();
    owner.begin("prepare");
    owner.wait_for("changed original-1 suspended");

    let install = format!("install S2 {digest}");
    let life = ["resume S2", &install, TAKE];
    // What has been done before, what is to be done, and whether that has begun when libvirtd is killed.
    let steps = [
        (&life[..0], "resume S2", Some(GuestState::Running)),
        (&life[..1], &*install, Some(GuestState::Installed)),
        (&life[..2], TAKE, None),
        (&life[..3], "hold 10.91.0.50/24 60000", None),
        (&life[..3], "reset", Some(GuestState::Suspended)),
    ];
    for (token, (before, order, begun)) in (7..).zip(steps) {
        before.iter().for_each(|order| drop(owner.done(&format!("1 {token} {order}"))));
        let outcome = if let Some(goal) = begun {
            let id = owner.begin(&format!("1 {token} {order}"));
            wait_until(order, || host.record().state == goal);
            libvirtd.kill();
            owner.wait_for(&format!("outcome {id} "))
        } else {
            libvirtd.kill();
            owner.order(&format!("1 {token} {order}"))
        };
        // It may have been quick; what had not begun needs libvirt, but for holding an address.
        assert!(begun.is_some() || outcome.starts_with("done ") == order.starts_with("hold "), "{order}: {outcome}");
        settled(&network, &host, &owner, &mut libvirtd, token);
    }
    observer.assert_never_two();
}

/// Whatever has become of it without libvirtd: if it is not said to serve, another one takes its place at once. With libvirtd it is put back.
#[track_caller]
fn settled(network: &Network, host: &Host, owner: &Owner, libvirtd: &mut Libvirtd, token: u64) {
    let record = host.record();
    assert!(!record.unfinished, "{record:?}");
    let serves = record.state == GuestState::Serving;
    assert_eq!(network.answers(ADDRESS), serves, "{record:?}");
    if !serves {
        owner.done(TAKE);
    }
    libvirtd.run();
    assert!(network.answers(ADDRESS));
    let note = owner.done(&format!("1 {token} reset"));
    assert!(note.starts_with("suspended "), "{note}");
    if !serves {
        owner.done("release 10.91.0.50/24");
    }
    assert!(!network.answers(ADDRESS));
    assert_eq!((libvirtd.machines(), qemus(host)), (vec!["paused".to_owned()], 1));
}

#[test]
fn an_older_decision_is_refused_whichever_comes_first() {
    if !machines_possible("an_older_decision_is_refused_whichever_comes_first") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (libvirtd, host) = host(&network, 0, 1, "paused");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let owner = host.start();
    let install = format!("install S2 {digest}");
    let orders =
        ["resume S2", "resume S3", &install, TAKE, "hold 10.91.0.50/24 1", "release 10.91.0.50/24", "check", "reset"];
    let refused = |owner: &Owner, older: u64, newer: u64| {
        for order in orders {
            assert_eq!(owner.order(&format!("1 {older} {order}")), format!("stale {newer}"), "{order}");
        }
    };

    // The newer comes first.
    owner.done("1 8 resume S2");
    refused(&owner, 7, 8);
    owner.done(&format!("1 8 {install}"));
    owner.done(&format!("1 8 {TAKE}"));
    refused(&owner, 7, 8);
    assert!(network.answers(ADDRESS));
    // The next daemon knows it too.
    owner.kill();
    let owner = host.start();
    refused(&owner, 7, 8);
    owner.done("1 8 hold 10.91.0.50/24 60000");
    owner.done("1 8 reset");
    refused(&owner, 7, 8);

    // The older comes first: the newer goes on with what it finds, at every step.
    owner.done("1 9 resume S2");
    owner.done("1 10 resume S2");
    refused(&owner, 9, 10);
    owner.done(&format!("1 10 {install}"));
    owner.done(&format!("1 11 {install}"));
    refused(&owner, 10, 11);
    owner.done(&format!("1 11 {TAKE}"));
    owner.done("1 12 hold 10.91.0.50/24 60000");
    refused(&owner, 11, 12);
    assert!(network.fetch(ADDRESS).unwrap().ends_with("I am S2\n"));
    // One for another server has it put back first.
    let outcome = owner.order("1 13 resume S3");
    assert!(outcome.starts_with("failed ") && outcome.contains("serving as S2"), "{outcome}");
    assert!(network.answers(ADDRESS));
    owner.done("1 13 reset");
    assert!(!network.answers(ADDRESS));

    // Neither waits for the other.
    let (older, newer) = (owner.begin("1 14 resume S2"), owner.begin("1 15 resume S2"));
    assert!(owner.wait_for(&format!("outcome {older} ")).starts_with("done running"));
    assert!(owner.wait_for(&format!("outcome {newer} ")).starts_with("done running"));
    refused(&owner, 14, 15);
    assert_eq!((libvirtd.machines(), qemus(&host)), (vec!["running".to_owned()], 1));
}
