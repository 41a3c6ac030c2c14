//! Networks that divide, lose, delay, repeat and reorder; servers that fall silent; clocks that jump.
//!
//! Each server is in a network namespace of its own, and a switch in the test moves the packets between them. Needs root
//! and `/dev/net/tun`. `P2PDB_TEST_FREEZE_SECONDS` makes a frozen server sleep longer than the default.

#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod harness;

use std::time::{Duration, Instant};

use harness::clock::Clock;
use harness::network::{Network, Rule};
use harness::writer::{Promise, Writer};
use harness::{Cluster, Server, skip, wait_until, wait_within};
use p2pdb::core::io::Wait;
use p2pdb::edge::control::LinkState;

/// A cluster on a network of its own, if this machine allows it.
fn cluster_of(test: &str, count: usize) -> Option<Cluster> {
    match Network::of(count) {
        Ok(network) => {
            let mut cluster = Cluster::on_network(network);
            cluster.grow(count);
            Some(cluster)
        }
        Err(error) => {
            skip(test, error);
            None
        }
    }
}

fn has_all(server: &Server, promises: &[Promise]) {
    let held = server.show("Load");
    let lost: Vec<_> = promises.iter().filter(|promise| !held.contains(&promise.record)).collect();
    assert!(lost.is_empty(), "{} lacks {lost:?}", server.name);
}

fn down(from: &Server, to: &Server) -> bool {
    from.link(&to.name) == Some(LinkState::Down)
}

#[test]
fn both_halves_of_a_divided_group_go_on_and_become_one_again() {
    let Some(cluster) = cluster_of("division", 6) else { return };
    let (left, right) = cluster.servers().split_at(3);
    left[0].cli(&["files", "add", "Problem", "---, S9, ---", "--wait", "all"]).ok();
    cluster.network().cut_between(&[0, 1, 2], &[3, 4, 5]);
    wait_until("each half knows that the other is gone", || {
        left.iter().all(|a| right.iter().all(|b| down(a, b) && down(b, a)))
    });
    left[1].cli(&["files", "mod", "Problem", "---, S9, ---", "S9a, S9, S1"]).ok();
    right[1].cli(&["files", "mod", "Problem", "---, S9, ---", "S9b, S9, S4"]).ok();
    for server in cluster.servers() {
        server.add("Load", &format!("{}, alone", server.name));
    }
    let short = left[0].cli(&["files", "add", "Notes", "x, 1", "--wait", "majority", "--timeout", "2"]).negative();
    assert!(right.iter().all(|server| short.contains(&server.name)), "three of six are no majority: {short}");
    wait_until("each half agrees with itself", || {
        left.iter().all(|server| server.has("Load", "S2, alone") && server.has("Problem", "S9a, S9, S1"))
            && right.iter().all(|server| server.has("Load", "S5, alone") && server.has("Problem", "S9b, S9, S4"))
    });
    cluster.network().heal();
    cluster.wait_operating();
    cluster.wait_same();
    for server in cluster.servers() {
        assert_eq!(server.show("Load").len(), 6);
        assert_eq!(server.show("Problem"), ["S9b, S9, S4"], "the newer is in force on {}", server.name);
        let conflicts = server.cli(&["files", "conflicts"]).ok();
        assert!(conflicts.contains("S9a, S9, S1"), "the loser is not silent on {}: {conflicts}", server.name);
    }
    right[2].cli(&["files", "resolve", "Problem", "S9", "--keep", "winner", "--wait", "all"]).ok();
    for server in cluster.servers() {
        assert!(server.cli(&["files", "conflicts"]).ok().contains("no conflicts"));
    }
    cluster.finish();
}

#[test]
fn a_server_that_hears_nobody_or_is_heard_by_nobody_does_not_hold_up_the_others() {
    let Some(cluster) = cluster_of("one-way loss", 4) else { return };
    let writer = Writer::start(cluster.server("S1"), "Load", "n", "x", Wait::Majority);
    writer.wait_for_more(10);
    let last = cluster.server("S4");
    // Its packets arrive, none arrives at it.
    (0..3).for_each(|from| cluster.network().rule(from, 3, Rule::CUT));
    wait_until("both sides give the link up", || {
        cluster.servers()[..3].iter().all(|server| down(server, last) && down(last, server))
    });
    last.add("Load", "deaf, 1");
    writer.wait_for_more(50);
    cluster.network().heal();
    cluster.wait_operating();
    cluster.wait_same_after(writer);
    // And the other way round.
    let writer = Writer::start(cluster.server("S2"), "Load", "m", "x", Wait::Majority);
    (0..3).for_each(|to| cluster.network().rule(3, to, Rule::CUT));
    wait_until("both sides give the link up", || {
        cluster.servers()[..3].iter().all(|server| down(server, last) && down(last, server))
    });
    last.add("Load", "mute, 2");
    writer.wait_for_more(50);
    cluster.network().heal();
    cluster.wait_operating();
    cluster.wait_same_after(writer);
    for server in cluster.servers() {
        assert!(server.has("Load", "deaf, 1") && server.has("Load", "mute, 2"));
    }
    cluster.finish();
}

#[test]
fn entries_go_round_a_broken_link() {
    let Some(cluster) = cluster_of("broken link", 3) else { return };
    let [one, two, three] = cluster.servers() else { unreachable!("there are three") };
    // The first and the second cannot speak; the third reaches both.
    cluster.network().cut_between(&[0], &[1]);
    wait_until("the link is down", || down(one, two) && down(two, one));
    one.add("Notes", "from-one, 1");
    two.add("Notes", "from-two, 2");
    wait_until("both have both, by the third", || {
        one.has("Notes", "from-two, 2") && two.has("Notes", "from-one, 1") && three.has("Notes", "from-one, 1")
    });
    cluster.wait_same();
    cluster.network().heal();
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn a_bad_line_slows_edits_and_loses_none() {
    let Some(cluster) = cluster_of("bad line", 3) else { return };
    cluster.network().rule_for_all(Rule { loss_percent: 8, delay_ms: (1, 40), repeat_percent: 5 });
    let writers: Vec<_> = cluster
        .servers()
        .iter()
        .map(|server| Writer::start(server, "Load", &server.name, "some text", Wait::All))
        .collect();
    writers.iter().for_each(|writer| writer.wait_for_more(30));
    let promises: Vec<_> = writers.into_iter().flat_map(Writer::finish).collect();
    cluster.wait_same();
    cluster.servers().iter().for_each(|server| has_all(server, &promises));
    for server in cluster.servers() {
        assert!(server.status().unwrap().alarms.is_empty(), "{:?}", server.status().unwrap().alarms);
    }
    cluster.network().heal();
    cluster.wait_operating();
    cluster.finish();
}

#[test]
fn a_network_that_comes_and_goes_leaves_no_gap() {
    let Some(cluster) = cluster_of("flapping", 3) else { return };
    let writers: Vec<_> = cluster
        .servers()
        .iter()
        .map(|server| Writer::start(server, "Load", &server.name, "some text", Wait::Local))
        .collect();
    for round in 0..4 {
        let alone = round % 3;
        let others: Vec<usize> = (0..3).filter(|index| *index != alone).collect();
        cluster.network().cut_between(&[alone], &others);
        wait_until("the link is seen to be down", || down(&cluster.servers()[others[0]], &cluster.servers()[alone]));
        writers.iter().for_each(|writer| writer.wait_for_more(20));
        cluster.network().heal();
        cluster.wait_operating();
    }
    let promises: Vec<_> = writers.into_iter().flat_map(Writer::finish).collect();
    cluster.wait_same();
    cluster.servers().iter().for_each(|server| has_all(server, &promises));
    cluster.finish();
}

#[test]
fn a_silent_server_is_noticed_in_about_a_second() {
    let Some(cluster) = cluster_of("silence", 3) else { return };
    let [one, two, three] = cluster.servers() else { unreachable!("there are three") };
    cluster.network().cut_between(&[2], &[0, 1]);
    let start = Instant::now();
    wait_within(Duration::from_secs(10), "the others see it", || down(one, three) && down(two, three));
    let noticed = start.elapsed();
    println!("noticed after {} ms", noticed.as_millis());
    // An idle timeout of 1 s and the time to look; a machine under load may add some.
    assert!(noticed < Duration::from_millis(2500), "{noticed:?}");
    cluster.network().heal();
    let start = Instant::now();
    cluster.wait_operating();
    println!("linked again after {} ms", start.elapsed().as_millis());
    cluster.finish();
}

#[test]
fn a_server_that_was_frozen_for_a_while_loses_nothing_and_does_not_diverge() {
    let Some(cluster) = cluster_of("frozen", 3) else { return };
    let seconds = std::env::var("P2PDB_TEST_FREEZE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let writers: Vec<_> = [0, 2]
        .map(|index| &cluster.servers()[index])
        .map(|server| Writer::start(server, "Load", &server.name, "some text", Wait::Local))
        .into();
    writers.iter().for_each(|writer| writer.wait_for_more(20));
    let frozen = cluster.server("S3");
    frozen.freeze();
    let start = Instant::now();
    let rest: Vec<_> = cluster.servers()[..2].iter().collect();
    wait_within(Duration::from_secs(10), "the others see it", || rest.iter().all(|server| down(server, frozen)));
    println!("noticed after {} ms", start.elapsed().as_millis());
    while start.elapsed() < Duration::from_secs(seconds) {
        writers[0].wait_for_more(20);
    }
    frozen.thaw();
    writers[1].wait_for_more(20);
    cluster.wait_operating();
    let promises: Vec<_> = writers.into_iter().flat_map(Writer::finish).collect();
    cluster.wait_same();
    for server in cluster.servers() {
        has_all(server, &promises);
        assert!(!server.has_alarm("divergence"));
    }
    cluster.finish();
}

#[test]
fn a_certificate_whose_time_has_not_come_is_not_taken() {
    let mut cluster = Cluster::empty();
    cluster.add("S1");
    let clock = match Clock::of(cluster.server("S1"), &cluster.root) {
        Ok(clock) => clock,
        Err(why) => return skip("certificate of another time", why),
    };
    cluster.server("S1").start();
    cluster.add("S2").start();
    cluster.wait_operating();
    let [issuer, other] = cluster.servers() else { unreachable!("there are two") };
    // With two servers nobody can tell whose clock is wrong.
    clock.set_ms(3 * 24 * 3600 * 1000);
    other.cli(&["cert", "rotate"]).fails_saying(&["no new certificate", "its time has not come"]);
    wait_until("the clocks are compared again", || {
        let status = issuer.status().expect("it answers");
        status.members.iter().filter_map(|member| member.clock_offset_ms).any(|offset_ms| offset_ms < -86_400_000)
    });
    issuer.cli(&["cert", "rotate"]).fails_saying(&["its time has not come"]);
    assert_eq!((issuer.link("S2"), other.link("S1")), (Some(LinkState::Up), Some(LinkState::Up)));
    clock.set_ms(0);
    other.cli(&["cert", "rotate"]).ok();
    wait_until("it is linked with its new certificate", || issuer.link("S2") == Some(LinkState::Up));
}

#[test]
fn a_server_whose_clock_jumps_takes_no_edits_until_it_is_right_again() {
    let mut cluster = Cluster::empty();
    for name in ["S1", "S2", "S3"] {
        cluster.add(name);
        if name == "S3" {
            break;
        }
        cluster.server(name).start();
    }
    let jumping = cluster.server("S3");
    let clock = match Clock::of(jumping, &cluster.root) {
        Ok(clock) => clock,
        Err(why) => return skip("clock jump", why),
    };
    jumping.start();
    cluster.wait_operating();
    let others = &cluster.servers()[..2];
    for (round, offset_ms) in [3_600_000, -3_600_000].into_iter().enumerate() {
        jumping.add("Notes", &format!("right-{round}, x"));
        clock.set_ms(offset_ms);
        wait_until("edits are refused there", || {
            let told = jumping.cli(&["files", "add", "Notes", &format!("early-{round}, x")]);
            if told.code == Some(0) {
                // It was taken before the clock was looked at.
                let _ = jumping.cli(&["files", "del", "Notes", &format!("early-{round}, x")]);
            }
            told.code == Some(2) && told.err.contains("clock") && told.err.contains("set it right")
        });
        assert!(jumping.has_alarm("clock"));
        // The others go on, and it follows them.
        for (index, server) in others.iter().enumerate() {
            server.cli(&["files", "add", "Notes", &format!("other-{round}-{index}, x"), "--wait", "all"]).ok();
        }
        clock.set_ms(0);
        wait_until("edits are taken again by themselves", || {
            jumping.cli(&["files", "add", "Notes", &format!("again-{round}, x")]).code == Some(0)
        });
        wait_until("the alarm is gone", || !jumping.has_alarm("clock"));
        cluster.wait_operating();
    }
    cluster.wait_same();
    // Nothing was written in the future: the group's clocks are not carried away.
    let dump = others[0].cli(&["dump", "--live", "--json"]).ok();
    let now_ms = jiff::Timestamp::now().as_millisecond();
    for line in dump.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(entry["time_ms"].as_i64().unwrap() < now_ms + 60_000, "{line}");
    }
    cluster.finish();
}

impl Cluster {
    /// Stops a writer; all servers then have the same, and all that it was promised.
    fn wait_same_after(&self, writer: Writer) {
        let promises = writer.finish();
        self.wait_same();
        self.servers().iter().for_each(|server| has_all(server, &promises));
    }
}
