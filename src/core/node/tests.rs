//! A node by itself, fed by hand: what runs of whole groups show only by chance.

use super::*;
use crate::core::diff::Change;
use crate::core::fixture::server;
use crate::core::id::FileName;
use crate::core::io::{Beat, Edit, Message};
use crate::core::record::Record;
use crate::core::schema::file;

const BEGIN_MS: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Takes a certificate for the key itself, of S1.
struct Trusting;

impl Certifier for Trusting {
    fn certified(&self, certificate: &[u8]) -> Result<(ServerName, [u8; 32]), String> {
        Ok((server("S1"), certificate.try_into().unwrap()))
    }
}

fn lone(bytes_since_checkpoint: u64) -> Node {
    let key = SigningKey::from_bytes(&[3; 32]);
    let certificate = key.verifying_key().to_bytes().as_slice().into();
    let config = NodeConfig::new(server("S1"), ClusterId([1; 16]));
    let recovered = Recovered { bytes_since_checkpoint, ..Recovered::default() };
    Node::new(config, Arc::new(Trusting), Identity { certificate, key, run: 1 }, recovered)
}

fn at(ms: u64) -> Now {
    Now { wall_ms: BEGIN_MS + ms, monotonic_us: ms * 1000 }
}

fn added(name: &str, record: &str) -> Edit {
    let change = Change::Add(Record::parse(record).unwrap());
    Edit { file: FileName::new(name).unwrap(), change, bases: None }
}

/// Submits an edit and has the journal take it. What comes out of all that.
fn write(node: &mut Node, now: Now, edit: Edit) -> Vec<Output> {
    let transaction =
        Transaction { class: Class::Transmission, author: "ann".into(), reason: "test".into(), edits: vec![edit] };
    let submit = Input::Submit { ticket: 1, transaction, wait: Wait::Local, deadline_ms: 1000 };
    let mut out = node.handle(now, submit);
    out.extend(node.handle(now, Input::Commit { room_bytes: 0 }));
    if out.iter().any(|output| matches!(output, Output::Append(_))) {
        out.extend(node.handle(now, Input::Appended));
    }
    out
}

fn refusal(out: &[Output]) -> Option<&Refusal> {
    out.iter().find_map(|output| match output {
        Output::Reply { result, .. } => result.as_ref().err(),
        _ => None,
    })
}

fn stores_checkpoint(out: &[Output]) -> bool {
    out.iter().any(|output| matches!(output, Output::StoreCheckpoint(_)))
}

const FOUNDING: &str = "S1, 1, 10.0.0.1:7400";

#[test]
fn a_checkpoint_is_due_by_what_the_log_holds_however_short_each_life_of_a_daemon_is() {
    let due = NodeConfig::new(server("S1"), ClusterId([1; 16])).checkpoint_bytes;
    assert!(!stores_checkpoint(&write(&mut lone(0), at(0), added(file::SERVER, FOUNDING))));
    assert!(stores_checkpoint(&write(&mut lone(due - 10), at(0), added(file::SERVER, FOUNDING))));
}

#[test]
fn a_checkpoint_that_did_not_fit_is_made_when_there_is_room_and_told_until_then() {
    let mut node = lone(1 << 30);
    assert!(stores_checkpoint(&write(&mut node, at(0), added(file::SERVER, FOUNDING))));
    node.handle(at(1), Input::CheckpointFailed);
    assert!(node.alarms().contains_key("checkpoint"), "{:?}", node.alarms());
    let out = write(&mut node, at(2), added("Notes", "one"));
    assert!(refusal(&out).is_none() && !stores_checkpoint(&out), "edits go on, and the disk is left alone: {out:?}");
    let out = node.handle(at(3), Input::Room { available: true });
    assert!(stores_checkpoint(&out), "nobody has to write for that: {out:?}");
    assert!(!stores_checkpoint(&write(&mut node, at(4), added("Notes", "two"))));
    node.handle(at(5), Input::CheckpointStored { floor: Vector::default() });
    assert!(node.alarms().is_empty(), "{:?}", node.alarms());
}

#[test]
fn a_clock_that_was_a_year_ahead_takes_no_more_edits_that_nobody_else_would_take() {
    let mut node = lone(0);
    let ahead = Now { wall_ms: BEGIN_MS + 365 * DAY_MS, monotonic_us: 0 };
    assert_eq!(refusal(&write(&mut node, ahead, added(file::SERVER, FOUNDING))), None);
    let out = write(&mut node, at(1000), added("Notes", "one"));
    let refused = refusal(&out).expect("the others would not take it").to_string();
    assert!(refused.contains("31535999000 ms behind") && refused.contains("remove it"), "{refused}");
    assert_eq!(refusal(&write(&mut node, at(365 * DAY_MS), added("Notes", "one"))), None);
}

#[test]
fn what_a_server_writes_of_itself_waits_while_its_clock_is_days_ahead_of_all_others() {
    let mut node = lone(0);
    write(&mut node, at(0), added(file::SERVER, FOUNDING));
    let tell = |node: &mut Node, wall_ms: u64| {
        for peer in [server("S2"), server("S3")] {
            let zero = Digest::ZERO;
            let beat = Beat { wall_ms, vector: zero, files: zero, lifecycle: Lifecycle::Operating };
            node.handle(at(10), Input::LinkUp { peer: peer.clone() });
            node.handle(at(10), Input::Frame { peer, message: Message::Beat(beat) });
        }
        node.submit_own(at(20), "a condition", vec![added("Notes", &format!("at {wall_ms}"))]);
        let out = node.handle(at(20), Input::Commit { room_bytes: 0 });
        let wrote = out.iter().any(|output| matches!(output, Output::Append(_)));
        if wrote {
            node.handle(at(21), Input::Appended);
        }
        wrote
    };
    assert!(!tell(&mut node, BEGIN_MS - 365 * DAY_MS), "the others would not take it");
    assert!(tell(&mut node, BEGIN_MS - 3600 * 1000), "an hour is taken");
    assert!(tell(&mut node, BEGIN_MS + 365 * DAY_MS), "who is behind dates by what was seen");
}

#[test]
fn a_group_of_entries_under_one_signature_fits_into_one_read() {
    let mut node = lone(0);
    write(&mut node, at(0), added(file::SERVER, FOUNDING));
    let long = "x".repeat(174);
    let small = (0..1000).map(|number| vec![added("Notes", &format!("s{number}, {long}"))]);
    // Many short records: in the log they take more than they weigh.
    let short = "x".repeat(130);
    let large = (0..3500).map(|number| added("Notes", &format!("l{number}, {short}"))).collect();
    for edits in small.chain([large]) {
        let transaction =
            Transaction { class: Class::Transmission, author: "ann".into(), reason: "test".into(), edits };
        node.handle(at(1), Input::Submit { ticket: 1, transaction, wait: Wait::Local, deadline_ms: 1000 });
    }
    let out = node.handle(at(1), Input::Commit { room_bytes: 0 });
    let entries = out.iter().find_map(|output| match output {
        Output::Append(entries) => Some(entries.clone()),
        _ => None,
    });
    let entries = entries.expect("they are written");
    assert_eq!(entries.len(), 1001, "one commit has them all");
    let (mut group, mut whole) = (Vec::new(), 0);
    for sealed in &entries {
        whole += crate::format::segment::append_frame(sealed, &mut group);
        if sealed.signature().is_some() {
            assert!(group.len() <= Limits::default().read_bytes, "{}", group.len());
            group.clear();
        }
    }
    assert!(
        group.is_empty() && whole > Limits::default().read_bytes,
        "{whole}: they would not fit under one signature"
    );
}
