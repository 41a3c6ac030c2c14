//! The daemon is frozen, killed and started again at every step: leases lapse without it, tokens are remembered, and nothing is half.

use std::time::Duration;

use rustix::process::Signal;

use super::rig::{Host, Network, Owner, Tie, possible, wait_until};

fn serving(host: &Host, lease_ms: u64) -> Owner {
    let digest = host.procedure("", "true", &[]);
    let owner = host.start();
    owner.done("1 7 resume S2");
    owner.done(&format!("1 7 install S2 {digest}"));
    owner.done(&format!("1 7 take 10.91.0.50/24 {lease_ms}"));
    owner
}

#[test]
fn an_address_lapses_when_the_daemon_is_frozen() {
    if !possible("an_address_lapses_when_the_daemon_is_frozen") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let owner = serving(&host, 1500);
    owner.signal(Signal::STOP);
    assert!(network.answers("10.91.0.50"));
    std::thread::sleep(Duration::from_millis(1600));
    assert!(!network.answers("10.91.0.50"), "the lease is over");
    owner.signal(Signal::CONT);
    assert!(owner.order("1 7 hold 10.91.0.50/24 700").starts_with("failed "));
    owner.wait_for("changed original-1 installed S2 7 its address has lapsed");
    owner.done("1 8 take 10.91.0.50/24 60000");
    assert!(network.answers("10.91.0.50"));
}

#[test]
fn an_order_that_is_carried_out_late_has_a_lease_that_began_when_it_was_given() {
    if !possible("an_order_that_is_carried_out_late_has_a_lease_that_began_when_it_was_given") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let digest = host.procedure("", "sleep 1", &[]);
    let owner = host.start();
    owner.done("1 7 resume S2");
    let install = owner.begin(&format!("1 7 install S2 {digest}"));
    let take = owner.begin("1 7 take 10.91.0.50/24 500");
    owner.wait_for(&format!("outcome {install} done"));
    let late = owner.wait_for(&format!("outcome {take} "));
    assert!(late.starts_with("failed the lease of 10.91.0.50/24 is over"), "{late}");
    assert!(!network.answers("10.91.0.50"));
}

#[test]
fn an_address_lapses_when_the_daemon_is_killed_and_the_next_one_finds_the_guest() {
    if !possible("an_address_lapses_when_the_daemon_is_killed_and_the_next_one_finds_the_guest") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    serving(&host, 1500).kill();
    assert!(network.answers("10.91.0.50"));
    // In time: it goes on as if nothing had happened.
    let owner = Owner::again(&host);
    assert_eq!(owner.wait_for("changed original-1 "), "serving S2 7 ");
    owner.done("1 7 hold 10.91.0.50/24 2000");
    owner.kill();
    std::thread::sleep(Duration::from_millis(2100));
    assert!(!network.answers("10.91.0.50"), "the lease is over");
    let owner = Owner::again(&host);
    assert!(owner.wait_for("changed original-1 ").starts_with("installed S2 7 its address has lapsed"));
}

#[test]
fn the_kernel_ends_a_lease_when_the_guest_itself_is_frozen() {
    if !possible("the_kernel_ends_a_lease_when_the_guest_itself_is_frozen") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let owner = serving(&host, 500);
    owner.kill();
    for pid in host.processes() {
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    }
    assert!(network.answers("10.91.0.50"));
    let begin = std::time::Instant::now();
    wait_until("the kernel takes the address away", || !network.answers("10.91.0.50"));
    assert!(begin.elapsed() < Duration::from_secs(4));
    let owner = Owner::again(&host);
    assert!(owner.wait_for("changed original-1 ").starts_with("broken S2 7 it was suspended by somebody else"));
    assert_eq!(host.processes().len(), 0);
    owner.done("1 8 reset");
}

#[test]
fn old_tokens_are_refused_also_after_a_restart() {
    if !possible("old_tokens_are_refused_also_after_a_restart") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let owner = host.start();
    owner.done("1 9 resume S2");
    assert_eq!(owner.order("1 8 reset"), "stale 9");
    owner.kill();
    let owner = host.start();
    assert_eq!(owner.order("1 8 reset"), "stale 9");
    assert_eq!(owner.order("1 0 reset"), "stale 9");
    owner.done("1 9 reset");
    // Pristine again: a warm-up may have it, an old decision may not.
    assert_eq!(owner.order("1 8 resume S3"), "stale 9");
    owner.done("1 0 resume S3");
    owner.done("1 10 resume S3");
    owner.kill();
    let owner = host.start();
    assert_eq!(owner.order("1 9 reset"), "stale 10");
}

#[test]
fn killed_while_it_prepares_the_next_daemon_has_exactly_one_guest() {
    if !possible("killed_while_it_prepares_the_next_daemon_has_exactly_one_guest") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    // Whatever moment is hit: before the process, before its record, before it is let go, before it is stopped.
    for delay_ms in [0, 10, 20, 30, 40, 50, 60, 80, 100, 150] {
        let host = Host::new(&network, 0, 1);
        let owner = host.start_without_waiting();
        std::thread::sleep(Duration::from_millis(delay_ms));
        owner.kill();
        let owner = Owner::again(&host);
        let state = owner.wait_for("changed original-1 ");
        assert!(state.starts_with("suspended --- 0 "), "after {delay_ms} ms: {state}");
        wait_until("there is one guest and no orphan", || host.processes().len() == 2);
        owner.done("1 1 resume S2");
    }
}

#[test]
fn killed_at_any_step_nothing_is_half_and_forgotten() {
    if !possible("killed_at_any_step_nothing_is_half_and_forgotten") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let quick = host.procedure("", "true", &[]);
    let hanging = host.procedure("deadline_s = 60", "echo begun >/dev/null; setsid sleep 500 & sleep 500", &[]);
    let state_after_restart = |owner: Owner| {
        owner.kill();
        let again = Owner::again(&host);
        let state = again.wait_for("changed original-1 ");
        (again, state)
    };

    // After resuming.
    let owner = host.start();
    owner.done("1 1 resume S2");
    let (owner, state) = state_after_restart(owner);
    assert_eq!(state, "running S2 1 ");
    // After installing.
    owner.done(&format!("1 1 install S2 {quick}"));
    let (owner, state) = state_after_restart(owner);
    assert!(state.starts_with("installed S2 1"));
    owner.done("1 1 reset");

    // Amid installing for a decision: undone, for the core to decide what comes next.
    owner.done("1 2 resume S2");
    owner.begin(&format!("1 2 install S2 {hanging}"));
    host.wait_state("the installation has begun", p2pdb::core::guest::GuestState::Installed);
    let (owner, state) = state_after_restart(owner);
    assert!(state.starts_with("broken S2 2 the daemon ended while this was being done"), "{state}");
    assert_eq!(host.processes().len(), 0);
    owner.done("1 2 reset");

    // Amid a warm-up: nobody knows of it, so it is pristine again.
    owner.done("1 0 resume S2");
    owner.begin(&format!("1 0 install S2 {hanging}"));
    host.wait_state("the installation has begun", p2pdb::core::guest::GuestState::Installed);
    let (owner, state) = state_after_restart(owner);
    assert!(state.starts_with("suspended --- 0 "), "{state}");

    // Amid putting it back: finished.
    owner.kill();
    for delay_ms in [0, 3, 10, 20, 40] {
        owner_killed_in_reset(&host, delay_ms);
    }
}

/// Resumes, begins a reset, kills the owner within it.
fn owner_killed_in_reset(host: &Host, delay_ms: u64) {
    let owner = Owner::again(host);
    owner.wait_for("changed original-1 suspended");
    owner.done("1 50 resume S2");
    owner.begin("1 50 reset");
    std::thread::sleep(Duration::from_millis(delay_ms));
    owner.kill();
    let owner = Owner::again(host);
    let state = owner.wait_for("changed original-1 ");
    // Before the order was read, or after it was done.
    assert!(state.starts_with("suspended --- 0") || state.starts_with("running S2 50"), "{delay_ms} ms: {state}");
    if state.starts_with("running") {
        owner.done("1 50 reset");
    }
    wait_until("there is one guest and no orphan", || host.processes().len() == 2);
    owner.kill();
}

#[test]
fn originals_that_are_not_wanted_any_more_are_removed() {
    if !possible("originals_that_are_not_wanted_any_more_are_removed") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 2);
    host.start().kill();
    assert_eq!(host.processes().len(), 4);
    let owner = host.start_with(1);
    wait_until("the second one is gone", || {
        host.processes().len() == 2 && !host.directory().join("originals/original-2").exists()
    });
    owner.done("1 1 resume S2");
}

#[test]
fn originals_that_another_driver_made_are_removed_and_made_anew_once_they_are_free() {
    if !possible("originals_that_another_driver_made_are_removed_and_made_anew_once_they_are_free") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 2);
    serving(&host, 60_000).kill();
    assert_eq!(host.processes().len(), 4);
    // As one that an earlier version has made.
    std::fs::remove_file(host.directory().join("originals/original-2/driver.json")).unwrap();

    // No virtual machine can be made here, and that is what is said.
    let host = host.with_environment(vec![("OWNER_LIBVIRT", "qemu+unix:///system?socket=/nowhere".into())]);
    let owner = host.start_without_waiting();
    let note = owner.wait_for("changed original-2 broken --- 0 ");
    assert!(note.starts_with("libvirt.image '' holds neither "), "{note}");
    assert_eq!(owner.wait_for("changed original-1 "), "serving S2 7 ");
    assert_eq!(host.processes().len(), 2, "the one at work goes on");
    owner.done("1 7 hold 10.91.0.50/24 60000");
    assert!(network.answers("10.91.0.50"));
    let outcome = owner.order("1 8 reset");
    assert!(outcome.starts_with("failed libvirt.image '' holds neither "), "{outcome}");
    assert!(!network.answers("10.91.0.50"));
    assert_eq!(host.processes().len(), 0);
    owner.kill();

    // And back; what is remembered of decisions is not lost with that.
    let host = host.with_environment(Vec::new());
    let owner = host.start_without_waiting();
    owner.wait_for("changed original-1 suspended");
    owner.wait_for("changed original-2 suspended");
    assert_eq!(host.processes().len(), 4);
    assert_eq!(owner.order("1 7 resume S2"), "stale 8");
    owner.kill();

    // What made one cannot be read: it is left as it is.
    let with = host.directory().join("originals/original-2/driver.json");
    let text = std::fs::read(&with).unwrap();
    std::fs::write(&with, "of another world").unwrap();
    let owner = host.start_without_waiting();
    let note = owner.wait_for("changed original-2 broken --- 0 ");
    assert!(note.contains("driver.json: ") && note.contains("mend that file"), "{note}");
    owner.wait_for("changed original-1 suspended");
    assert_eq!(host.processes().len(), 4);
    owner.kill();
    assert_eq!(std::fs::read(&with).unwrap(), b"of another world");
    std::fs::write(&with, text).unwrap();
    let owner = host.start_without_waiting();
    owner.wait_for("changed original-2 suspended");
    assert_eq!(host.processes().len(), 4);
}
