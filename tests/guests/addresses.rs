//! Service addresses on the network: announced, seen to answer, and held by a server for itself.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;

use super::rig::{Host, INTERFACE, Network, Owner, Tie, possible, run, wait_until};

/// A guest that has all but its address.
fn installed(host: &Host) -> Owner {
    let digest = host.procedure("", "true", &[]);
    let owner = host.start();
    owner.done("1 7 resume S2");
    owner.done(&format!("1 7 install S2 {digest}"));
    owner
}

fn moves_between_hosts(address: &str, prefix: u8, tie: Tie) {
    let network = Network::of(2, tie);
    let hosts = [0, 1].map(|host| Host::new(&network, host, 1));
    let owners = [installed(&hosts[0]), installed(&hosts[1])];
    owners[0].done(&format!("1 7 take {address}/{prefix} 60000"));
    assert!(network.answers(address));
    let first = network.neighbour(address).unwrap();
    owners[0].done(&format!("1 7 release {address}/{prefix}"));
    // The announcement alone makes the client's entry change: the client sends nothing.
    owners[1].done(&format!("1 8 take {address}/{prefix} 60000"));
    wait_until("the client knows the new place", || network.neighbour(address).is_some_and(|second| second != first));
    assert!(network.answers(address));
}

#[test]
fn a_guest_that_comes_and_goes_does_not_change_the_hardware_address_of_the_bridge() {
    if !possible("a_guest_that_comes_and_goes_does_not_change_the_hardware_address_of_the_bridge") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    // Nearly every address of the kernel's own choice is lower, and a bridge takes the lowest.
    run("ip", &format!("-n {} link set uplink address fc:ff:ff:ff:ff:ff", network.host(0)));
    let of_bridge = || run("ip", &format!("-n {} -oneline link show {INTERFACE}", network.host(0)));
    let address = |line: String| line.split("link/ether ").nth(1).unwrap()[..17].to_owned();
    let before = address(of_bridge());
    let owner = installed(&host);
    assert_eq!(address(of_bridge()), before);
    owner.done("1 7 reset");
    assert_eq!(address(of_bridge()), before);
}

#[test]
fn an_ipv4_announcement_reaches_clients() {
    if possible("an_ipv4_announcement_reaches_clients") {
        moves_between_hosts("10.91.0.50", 24, Tie::Bridge);
    }
}

#[test]
fn an_ipv4_announcement_reaches_clients_from_a_plain_interface() {
    if possible("an_ipv4_announcement_reaches_clients_from_a_plain_interface") {
        moves_between_hosts("10.91.0.50", 24, Tie::Plain);
    }
}

#[test]
fn an_ipv6_announcement_reaches_clients() {
    if possible("an_ipv6_announcement_reaches_clients") {
        moves_between_hosts("fd91::50", 64, Tie::Bridge);
    }
}

#[test]
fn clients_behind_the_router_are_answered() {
    if !possible("clients_behind_the_router_are_answered") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let owner = installed(&host);
    owner.done("1 7 take 10.91.0.50/24 60000");
    let client = network.client();
    run("ip", &format!("-n {client} address add 192.0.2.1/32 dev lo"));
    run("ip", &format!("-n {client} route add 10.91.0.50/32 dev {INTERFACE} src 192.0.2.1"));
    assert!(network.answers("10.91.0.50"));
}

#[test]
fn a_probe_sees_who_answers_and_silence() {
    if !possible("a_probe_sees_who_answers_and_silence") {
        return;
    }
    let network = Network::of(2, Tie::Bridge);
    let hosts = [0, 1].map(|host| Host::new(&network, host, 0));
    let owners = hosts.each_ref().map(Host::start);
    for address in ["10.91.0.60/24", "fd91::60/64"] {
        assert_eq!(owners[1].done(&format!("probe {address} 200")), "silence");
        owners[0].done(&format!("take {address} 60000"));
        assert_eq!(owners[1].done(&format!("probe {address} 2000")), "answered");
        owners[0].done(&format!("release {address}"));
        assert_eq!(owners[1].done(&format!("probe {address} 200")), "silence");
    }
    run("ip", &format!("-n {} link delete {INTERFACE}", network.host(1)));
    assert!(owners[1].order("probe 10.91.0.60/24 200").starts_with(&format!("failed interface {INTERFACE}: ")));
}

#[test]
fn a_server_holds_its_own_address_as_long_as_somebody_renews_it() {
    if !possible("a_server_holds_its_own_address_as_long_as_somebody_renews_it") {
        return;
    }
    let network = Network::of(1, Tie::Plain);
    let host = Host::new(&network, 0, 0);
    let owner = host.start();
    assert_eq!(owner.done("held"), "nothing");
    assert!(owner.order("hold 10.91.0.60/24 700").starts_with("failed "));
    assert_eq!(owner.done("take 10.91.0.60/24 1500"), "10.91.0.60/24");
    owner.signal(Signal::STOP);
    assert!(network.answers("10.91.0.60"));
    std::thread::sleep(Duration::from_millis(1600));
    assert!(!network.answers("10.91.0.60"), "the lease is over");
    owner.signal(Signal::CONT);
    assert!(owner.order("hold 10.91.0.60/24 700").starts_with("failed the lease of 10.91.0.60/24 is over"));

    // The daemon is replaced: the address stays, if the next one is quick.
    owner.done("take 10.91.0.60/24 5000");
    owner.kill();
    let owner = host.start();
    assert_eq!(owner.done("held"), "10.91.0.60/24");
    assert_eq!(owner.done("hold 10.91.0.60/24 700"), "10.91.0.60/24");
    owner.done("hold 10.91.0.60/24 60000");
    assert_eq!(owner.done("release 10.91.0.60/24"), "nothing");
    assert!(!network.answers("10.91.0.60"));

    owner.done("take 10.91.0.60/24 700");
    owner.kill();
    std::thread::sleep(Duration::from_millis(800));
    assert!(!network.answers("10.91.0.60"), "the lease is over");
}

#[test]
fn what_a_dead_agent_has_left_is_taken_away_before_it_is_said_that_nothing_is_held() {
    if !possible("what_a_dead_agent_has_left_is_taken_away_before_it_is_said_that_nothing_is_held") {
        return;
    }
    let network = Network::of(1, Tie::Plain);
    let host = Host::new(&network, 0, 0);
    let kill_agent = || {
        let text = std::fs::read_to_string(host.directory().join("address.pid")).unwrap();
        let identity: p2pdb::edge::process_identity::ProcessIdentity = text.parse().unwrap();
        identity.kill(Duration::from_secs(2)).unwrap();
    };
    let owner = host.start();
    owner.done("take 10.91.0.60/24 60000");
    kill_agent();
    assert!(network.answers("10.91.0.60"), "the kernel keeps it for the lease");
    assert_eq!(owner.done("held"), "nothing");
    assert!(!network.answers("10.91.0.60"));

    // The daemon has died as well.
    owner.done("take 10.91.0.60/24 60000");
    owner.kill();
    kill_agent();
    let owner = host.start();
    assert_eq!(owner.done("held"), "nothing");
    assert!(!network.answers("10.91.0.60"));
}

#[test]
fn a_frozen_agent_neither_keeps_an_address_nor_stops_the_next_one() {
    if !possible("a_frozen_agent_neither_keeps_an_address_nor_stops_the_next_one") {
        return;
    }
    let network = Network::of(1, Tie::Plain);
    let host = Host::new(&network, 0, 0);
    let owner = host.start();
    owner.done("take 10.91.0.60/24 500");
    let freeze = || host.agent().signal_group(Signal::STOP).unwrap();
    freeze();
    wait_until("the kernel takes the address away", || !network.answers("10.91.0.60"));
    assert_eq!(owner.done("take 10.91.0.60/24 60000"), "10.91.0.60/24");
    assert!(network.answers("10.91.0.60"));
    freeze();
    assert_eq!(owner.done("release 10.91.0.60/24"), "nothing");
    assert!(!network.answers("10.91.0.60"));
}

#[test]
fn an_address_can_be_taken_while_the_interface_is_missing_by_nobody() {
    if !possible("an_address_can_be_taken_while_the_interface_is_missing_by_nobody") {
        return;
    }
    let network = Network::of(1, Tie::Plain);
    let host = Host::new(&network, 0, 0);
    let owner = host.start();
    run("ip", &format!("-n {} link delete {INTERFACE}", network.host(0)));
    let outcome = owner.order("take 10.91.0.60/24 60000");
    assert!(outcome.starts_with("failed ") && outcome.contains(INTERFACE), "{outcome}");
    assert_eq!(owner.done("held"), "nothing");
}

#[test]
fn an_address_that_cannot_be_taken_away_is_not_said_to_be_gone_and_goes_as_soon_as_it_can() {
    if !possible("an_address_that_cannot_be_taken_away_is_not_said_to_be_gone_and_goes_as_soon_as_it_can") {
        return;
    }
    let network = Network::of(1, Tie::Plain);
    let programs = tempfile::tempdir().unwrap();
    let lay_out = |program: &str| {
        let places = std::env::var_os("PATH").unwrap();
        let place = std::env::split_paths(&places).map(|folder| folder.join(program)).find(|path| path.exists());
        symlink(place.unwrap(), programs.path().join(program)).unwrap();
    };
    ["nsenter", "ip"].iter().for_each(|program| lay_out(program));
    let path = programs.path().display().to_string();
    let host = Host::new(&network, 0, 0).with_environment(vec![("PATH", path)]);
    let owner = host.start();
    owner.done("take 10.91.0.60/24 600000");
    std::fs::remove_file(programs.path().join("ip")).unwrap();
    let outcome = owner.order("release 10.91.0.60/24");
    assert!(outcome.starts_with("failed ") && outcome.contains("'ip' is missing"), "{outcome}");
    assert_eq!(owner.done("held"), "10.91.0.60/24");
    assert!(network.answers("10.91.0.60"));
    assert!(owner.order("hold 10.91.0.60/24 600000").starts_with("failed "), "it is on its way out");
    lay_out("ip");
    wait_until("the agent has taken it away", || owner.done("held") == "nothing");
    assert!(!network.answers("10.91.0.60"));
}

#[test]
fn an_agent_that_cannot_write_its_log_holds_and_ends_its_lease() {
    if !possible("an_agent_that_cannot_write_its_log_holds_and_ends_its_lease") {
        return;
    }
    let network = Network::of(1, Tie::Plain);
    let host = Host::new(&network, 0, 0);
    symlink("/dev/full", host.directory().join("address.log")).unwrap();
    let owner = host.start();
    owner.done("take 10.91.0.60/24 1500");
    // A caller that goes away in the middle.
    let mut caller = UnixStream::connect(host.directory().join("address.sock")).unwrap();
    caller.write_all(b"half").unwrap();
    drop(caller);
    owner.done("hold 10.91.0.60/24 2000");
    // The address is announced once more after 1.1 s.
    run("ip", &format!("-n {} link set {INTERFACE} down", network.host(0)));
    wait_until("the lease is over", || owner.done("held") == "nothing");
    run("ip", &format!("-n {} link set {INTERFACE} up", network.host(0)));
    assert!(!network.answers("10.91.0.60"));
}

#[test]
fn an_agent_that_can_open_nothing_for_a_while_lives_on_and_ends_its_lease() {
    if !possible("an_agent_that_can_open_nothing_for_a_while_lives_on_and_ends_its_lease") {
        return;
    }
    let network = Network::of(1, Tie::Plain);
    let host = Host::new(&network, 0, 0);
    let owner = host.start();
    owner.done("take 10.91.0.60/24 1000");
    let agent = host.agent();
    let limit = |files: &str| run("prlimit", &format!("--pid {} --nofile={files}:", agent.pid));
    limit("0");
    assert!(owner.order("hold 10.91.0.60/24 1000").starts_with("failed "));
    wait_until("the kernel takes the address away", || !network.answers("10.91.0.60"));
    limit("1024");
    wait_until("the agent knows", || owner.order("held") == "done nothing");
    assert_eq!(owner.done("take 10.91.0.60/24 60000"), "10.91.0.60/24");
    assert!(agent.is_alive() && host.agent() == agent, "it is the same one");
}
