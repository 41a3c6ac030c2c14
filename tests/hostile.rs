//! Hostile peers at the door of real daemons, and hostile members: each costs its own connection and nobody else anything (P7).
//!
//! The third server has joined and its daemon never starts: the test has its key and speaks as it.

#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod harness;

use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::careless::close_reason;
use harness::peer::{Identity, Peer, dial, framed, slander};
use harness::writer::{Writer, add_request};
use harness::{Cluster, LIMIT, wait_until};
use p2pdb::core::clock::Timestamp;
use p2pdb::core::diff::Change;
use p2pdb::core::entry::Sealed;
use p2pdb::core::id::{Digest, ServerName, Stream};
use p2pdb::core::io::{Beat, Edit, Message, Range, Wait};
use p2pdb::core::lifecycle::Lifecycle;
use p2pdb::core::merge::Files;
use p2pdb::core::oplog::{Checkpoint, Head};
use p2pdb::core::record::Record;
use p2pdb::core::version::Vector;
use p2pdb::edge::clock::wall_ms;
use p2pdb::edge::control::{Request, Response};
use p2pdb::edge::vector_parts::{STREAMS_MAX, STREAMS_PER_MESSAGE};

/// Two servers that operate, and the identity of a third member.
fn cluster_and_member() -> (Cluster, Identity) {
    let mut cluster = Cluster::of(2);
    let member = Identity::of(cluster.add("S3"));
    cluster.wait_same();
    (cluster, member)
}

/// The two go on as if nothing had been, and their logs are genuine.
#[track_caller]
fn assert_unharmed(cluster: &Cluster) {
    let [one, two] = &cluster.servers()[..2] else { unreachable!("there are two") };
    one.cli(&["files", "add", "Notes", "unharmed-1, x", "--wait", "majority"]).ok();
    two.cli(&["files", "add", "Notes", "unharmed-2, x", "--wait", "majority"]).ok();
    cluster.wait_same();
    for server in [one, two] {
        assert!(server.is_running() && !server.log_text().contains("panicked"));
        let notes = server.show("Notes");
        assert!(notes.iter().all(|note| !note.starts_with("forged")), "{notes:?}");
    }
    cluster.finish();
}

fn now() -> Timestamp {
    Timestamp::from_wall_ms(wall_ms())
}

fn next(run: u32) -> u32 {
    run + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_to_the_cluster_does_not_get_in() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");

    let (_endpoint, anonymous) = dial(None, target.address).await.unwrap();
    assert!(close_reason(&anonymous).await.contains("the mesh needs a certificate"));
    let stranger = member.of_foreign_authority();
    let refused = match dial(Some(&stranger), target.address).await {
        Ok((_endpoint, connection)) => close_reason(&connection).await,
        Err(error) => error.to_string(),
    };
    assert!(!refused.is_empty());

    let other_name = p2pdb::edge::hello::Hello { name: ServerName::new("S2").unwrap(), ..member.hello() };
    let other_cluster = p2pdb::edge::hello::Hello { cluster: p2pdb::core::id::ClusterId([7; 16]), ..member.hello() };
    for (hello, expected) in [
        (framed(&other_name.encode()), "'S2' shows the certificate of 'S3'"),
        (framed(&other_cluster.encode()), "meets cluster"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "at most"),
        (framed(&[0; 900]), "this is no hello"),
    ] {
        let (_endpoint, connection) = dial(Some(&member), target.address).await.unwrap();
        let (mut out, _input) = connection.open_bi().await.unwrap();
        out.write_all(&hello).await.unwrap();
        let reason = close_reason(&connection).await;
        assert!(reason.contains(expected), "{reason}");
    }
    // Many who connect and say nothing do not keep others out.
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.extend(dial(Some(&member), target.address).await.ok());
    }
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_tell_a_lonely_server_that_it_was_removed() {
    let cluster = Cluster::of(1);
    let server = cluster.server("S1");
    for _ in 0..5 {
        slander(server.address).await;
    }
    wait_until("it has heard that", || server.log_text().matches("our certificate is revoked").count() == 5);
    server.cli(&["files", "add", "Notes", "still, here"]).ok();
    assert!(server.status().unwrap().alarms.is_empty());
    cluster.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_oversize_frames_cost_a_member_its_link() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    let oversize = [&0x7fff_ffffu32.to_le_bytes()[..], &[0; 4]].concat();
    let damaged = [&4u32.to_le_bytes()[..], &[1; 4], b"abcd"].concat();
    let unknown = framed(&[0xff; 100]);
    let half = framed(&p2pdb::format::encode_message(&Message::WantCheckpoint))[..8].to_vec();
    for (bytes, expected) in [
        (oversize, "at most"),
        (damaged, "checksum"),
        (unknown, "cannot be read"),
        ([half, vec![0; 64]].concat(), ""),
        (framed(b""), ""),
    ] {
        let mut peer = Peer::link(&member, target).await;
        peer.receive().await.expect("a member is spoken to");
        let _ = peer.live.write_all(&bytes).await;
        let reason = peer.close_reason().await;
        assert!(reason.contains(expected), "{reason}");
    }
    // Random junk in good frames, on both channels.
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for round in 0..20 {
        let mut peer = Peer::link(&member, target).await;
        for _ in 0..50 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let junk: Vec<u8> = (0..random % 200).map(|place| (random >> (place % 57)) as u8).collect();
            let out = if round % 2 == 0 { &mut peer.live } else { &mut peer.bulk };
            if out.write_all(&framed(&junk)).await.is_err() {
                break;
            }
        }
        peer.close_reason().await;
    }
    assert_unharmed(&cluster);
}

/// What a linked member is sent: the entries of others, as they travel.
async fn recorded(peer: &mut Peer, stream: impl Fn(&Stream) -> bool) -> Vec<Arc<Sealed>> {
    peer.send(&Message::Vector { held: Default::default(), floor: Default::default() }).await;
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < LIMIT, "no entries come");
        match peer.receive().await.expect("the link stays") {
            Message::Vector { held, .. } => {
                let (wanted, to) = held.iter().find(|(held, _)| stream(held)).expect("there are entries");
                let range = Range { stream: wanted.clone(), from: 1, to };
                peer.send(&Message::Want(vec![range])).await;
            }
            Message::Entries(entries) if stream(&entries[0].id().stream) => return entries,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_frames_change_nothing() {
    let (cluster, member) = cluster_and_member();
    let (one, two) = (cluster.server("S1"), cluster.server("S2"));
    one.cli(&["files", "add", "Notes", "kept, 1", "--wait", "majority"]).ok();
    one.cli(&["files", "del", "Notes", "kept, 1", "--wait", "majority"]).ok();
    let mut peer = Peer::link(&member, one).await;
    let entries = recorded(&mut peer, |stream| stream.origin.as_str() == "S1").await;
    assert!(entries.len() >= 3);
    let before = one.status().unwrap().vector;
    let mut to_other = Peer::link(&member, two).await;
    for _ in 0..200 {
        peer.send(&Message::Entries(entries.clone())).await;
        to_other.send(&Message::Entries(entries.clone())).await;
        to_other.send(&Message::Entries(entries[entries.len() / 2..].to_vec())).await;
    }
    one.cli(&["files", "add", "Notes", "after, 2", "--wait", "majority"]).ok();
    assert!(two.has("Notes", "after, 2") || two.show("Notes").contains(&"after, 2".to_owned()));
    assert!(!two.show("Notes").contains(&"kept, 1".to_owned()), "a deletion stays");
    assert_eq!(one.status().unwrap().vector.streams, before.streams);
    assert!(peer.is_open() && to_other.is_open(), "what is held already is no crime");
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_forge_entries() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    target.cli(&["files", "add", "Notes", "genuine, 1", "--wait", "majority"]).ok();
    let mut peer = Peer::link(&member, target).await;
    let of_second = recorded(&mut peer, |stream| stream.origin.as_str() == "S1").await;
    drop(peer);
    let last = of_second.last().unwrap();
    let second = last.id().stream.clone();
    let stream = member.stream(next(second.run));
    let run_of_second = Stream { run: next(second.run), ..second.clone() };
    let stranger = member.of_foreign_authority();

    // In another's name: a new run with our certificate, and the next entry of its run with our signature.
    let new_run = member.first_entry(run_of_second, now(), "forged-1, x");
    let next_of_second = member.entry(second.clone(), last.id().seq + 1, now(), last.hash(), None, "forged-2, x");
    // An entry of its own that was changed after it was signed.
    let mut changed = last.entry().clone();
    changed.id.seq += 1;
    changed.previous = last.hash();
    changed.time = now();
    changed.reason = "forged".into();
    let changed = Sealed::new(changed, last.signature().copied());
    // In our own name, but not signed; signed with a key that the certificate is not for; by a CA nobody knows; without a certificate.
    let good = member.first_entry(stream.clone(), now(), "forged-3, x");
    let unsigned = Sealed::new(good.entry().clone(), None);
    let mut other_key = Sealed::new(good.entry().clone(), None);
    other_key.sign(member.cluster, &stranger.credentials.key);
    let other_cluster = {
        let mut sealed = Sealed::new(good.entry().clone(), None);
        sealed.sign(p2pdb::core::id::ClusterId([9; 16]), &member.credentials.key);
        sealed
    };
    let foreign = stranger.first_entry(stream.clone(), now(), "forged-4, x");
    let bare = member.entry(stream.clone(), 1, now(), Digest::ZERO, None, "forged-5, x");
    for (what, forged) in [
        ("a new run of another", new_run),
        ("the next entry of another", next_of_second),
        ("a changed entry", changed),
        ("no signature", unsigned),
        ("another key", other_key),
        ("for another cluster", other_cluster),
        ("a foreign certificate", foreign),
        ("no certificate", bare),
    ] {
        let mut peer = Peer::link(&member, target).await;
        peer.receive().await.expect("a member is spoken to");
        peer.send(&Message::Entries(vec![Arc::new(forged)])).await;
        let reason = peer.close_reason().await;
        assert!(
            reason.contains("entry") || reason.contains("entries") || reason.contains("certificate"),
            "{what}: {reason}"
        );
    }
    // The right one is taken: what is refused above is refused for its fault.
    let mut peer = Peer::link(&member, target).await;
    let honest = member.first_entry(stream, now(), "honest, x");
    peer.send(&Message::Entries(vec![Arc::new(honest)])).await;
    wait_until("it is taken", || target.show("Notes").contains(&"honest, x".to_owned()));
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_carry_the_clocks_of_the_others_away() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    let run = (wall_ms() / 1000) as u32 + 5;
    for (number, time) in
        [Timestamp(u64::MAX), Timestamp::from_wall_ms(wall_ms() + 400 * 24 * 3600 * 1000)].into_iter().enumerate()
    {
        let mut peer = Peer::link(&member, target).await;
        let entry = member.first_entry(member.stream(run + number as u32), time, "future, x");
        peer.send(&Message::Entries(vec![Arc::new(entry)])).await;
        wait_until("it is told", || target.has_alarm("ahead of this server's clock"));
        target.cli(&["files", "add", "Notes", &format!("go-on-{number}, x"), "--wait", "majority"]).ok();
    }
    let dump = target.cli(&["dump", "--live", "--json"]).ok();
    for line in dump.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(entry["time_ms"].as_u64().unwrap() < wall_ms() + 60_000, "{line}");
    }
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_nobody_asked_for_is_not_taken() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    target.cli(&["files", "add", "Notes", "genuine, 1", "--wait", "majority"]).ok();
    // It would lift another's stream to a number that this one never reached, under a key of the forger's.
    let mut peer = Peer::link(&member, target).await;
    let of_first = recorded(&mut peer, |stream| stream.origin.as_str() == "S1").await;
    let stream = of_first[0].id().stream.clone();
    let public_key = member.credentials.key.verifying_key().to_bytes();
    let head = Head { seq: 1_000_000, hash: Digest([1; 32]), time: now(), public_key, certificate: None };
    let second = Stream { origin: ServerName::new("S2").unwrap(), ..stream.clone() };
    let mut files = Files::default();
    let lie = member.first_entry(member.stream(1), now(), "forged-checkpoint, x");
    files.apply(lie.entry());
    let checkpoint = Checkpoint { files, heads: [(second, head)].into() };
    let bytes = p2pdb::format::encode_checkpoint(&checkpoint, member.cluster);
    let digest = Digest(*blake3::hash(&bytes).as_bytes());
    let total = bytes.len() as u64;
    peer.send(&Message::CheckpointPart { digest, total, offset: 0, bytes }).await;
    // Nor is a large one collected, part by part.
    let before = target.status().unwrap().process.rss_bytes;
    let part = vec![7; 200 * 1024];
    for number in 0..120u64 {
        let (total, offset) = (1 << 30, number * part.len() as u64);
        peer.send(&Message::CheckpointPart { digest: Digest([2; 32]), total, offset, bytes: part.clone() }).await;
    }
    target.cli(&["files", "add", "Notes", "after, 2", "--wait", "majority"]).ok();
    let grown = target.status().unwrap().process.rss_bytes.saturating_sub(before);
    assert!(grown < 16 << 20, "it has grown by {grown} bytes");
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_tells_in_parts_counts_as_one_and_has_a_bound() {
    let (cluster, member) = cluster_and_member();
    let mut peer = Peer::link(&member, cluster.server("S1")).await;
    let stream = |run: u32| Stream { origin: ServerName::new("S9").unwrap(), ..member.stream(run) };
    let told = |runs: std::ops::Range<u32>| -> Vector { runs.map(|run| (stream(run), 1)).collect() };
    peer.send(&Message::VectorPart { held: told(1..6), floor: Vector::default() }).await;
    peer.send(&Message::Vector { held: told(6..9), floor: Vector::default() }).await;
    let wanted = loop {
        if let Message::Want(ranges) = peer.receive().await.expect("the link stays") {
            break ranges;
        }
    };
    assert_eq!(wanted.len(), 8, "{wanted:?}");
    for first in (0..=STREAMS_MAX as u32).step_by(STREAMS_PER_MESSAGE) {
        let held = told(first..first + STREAMS_PER_MESSAGE as u32);
        peer.send(&Message::VectorPart { held, floor: Vector::default() }).await;
    }
    let reason = peer.close_reason().await;
    assert!(reason.contains("more than 100000 streams"), "{reason}");
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_gives_nobody_the_name_of_another() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    let mut peer = Peer::link(&member, target).await;
    // It says that its log no longer has the beginning of a stream of S2, so it is asked for its checkpoint.
    let stream = Stream { origin: ServerName::new("S2").unwrap(), ..member.stream(77) };
    let vector: Vector = [(stream.clone(), 5)].into_iter().collect();
    peer.send(&Message::Vector { held: vector.clone(), floor: vector.clone() }).await;
    while !matches!(peer.receive().await.expect("the link stays"), Message::WantCheckpoint) {}
    let head = Head {
        seq: 5,
        hash: Digest([1; 32]),
        time: now(),
        public_key: member.credentials.key.verifying_key().to_bytes(),
        certificate: Some(member.credentials.certificate.as_ref().into()),
    };
    let checkpoint = Checkpoint { files: Files::restore([], vector), heads: [(stream, head)].into() };
    let bytes = p2pdb::format::encode_checkpoint(&checkpoint, member.cluster);
    let (digest, total) = (Digest(*blake3::hash(&bytes).as_bytes()), bytes.len() as u64);
    peer.send(&Message::CheckpointPart { digest, total, offset: 0, bytes }).await;
    let reason = peer.close_reason().await;
    assert!(reason.contains("S2") && reason.contains("no certificate"), "{reason}");
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_never_reads_costs_bounded_memory_and_holds_nobody_up() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    let mut peer = Peer::link_narrow(&member, target).await;
    // It says that it has nothing, wants everything, and then reads no more.
    peer.send(&Message::Vector { held: Default::default(), floor: Default::default() }).await;
    let long = "x".repeat(3500);
    // The same records come and go: the files stay small, the log grows. Once all that is bounded is full, memory stays.
    let mut client = target.client().unwrap();
    let mut write_mib = |mib: usize| {
        for _ in 0..mib * 5 / 2 {
            for change in [Change::Add as fn(Record) -> Change, Change::Del] {
                assert!(matches!(client.call(&bulk_request(change, &long)).unwrap(), Response::Edited(_)));
            }
        }
    };
    write_mib(8);
    let before = target.status().unwrap().process.rss_bytes;
    write_mib(16);
    target.cli(&["files", "add", "Notes", "not-held-up, x", "--wait", "majority"]).ok();
    let grown = target.status().unwrap().process.rss_bytes.saturating_sub(before);
    println!("grown by {} KiB", grown / 1024);
    assert!(grown < 12 << 20, "it has grown by {grown} bytes");
    drop(peer);
    assert_unharmed(&cluster);
}

/// One transaction of 60 changes of 3.5 KB.
fn bulk_request(change: fn(Record) -> Change, text: &str) -> Request {
    let mut request = add_request("Load", "placeholder", Wait::Local);
    if let Request::FileEdit(edit) = &mut request {
        let file = edit.edits[0].file.clone();
        let records = (0..60).map(|number| Record::parse(&format!("r{number}, {text}")).unwrap());
        edit.edits = records.map(|record| Edit { file: file.clone(), change: change(record), bases: None }).collect();
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_asks_for_everything_again_and_again_starves_nobody() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    let writer = Writer::start(target, "Load", "n", &"x".repeat(2000), Wait::Majority);
    writer.wait_for_more(100);
    let mut peer = Peer::link(&member, target).await;
    let Some(Message::Vector { held, .. }) = peer.receive().await else { panic!("a vector comes first") };
    let ranges: Vec<_> = held.iter().map(|(stream, to)| Range { stream: stream.clone(), from: 1, to }).collect();
    let before = target.status().unwrap().process.rss_bytes;
    for _ in 0..300 {
        peer.send(&Message::Want(ranges.clone())).await;
        peer.send(&Message::WantCheckpoint).await;
        peer.send(&Message::Vector { held: Default::default(), floor: Default::default() }).await;
    }
    writer.wait_for_more(50);
    let status = target.status().unwrap();
    let grown = status.process.rss_bytes.saturating_sub(before);
    println!("grown by {} KiB", grown / 1024);
    assert!(grown < 96 << 20, "it has grown by {grown} bytes");
    writer.finish();
    drop(peer);
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_certificate_does_not_end_the_wait_for_one() {
    let mut cluster = Cluster::empty();
    for name in ["S1", "S2"] {
        let server = cluster.add(name);
        server.set("network", "idle_timeout_ms", "20000");
        server.start();
    }
    cluster.wait_operating();
    let member = Identity::of(cluster.add("S3"));
    cluster.wait_same();
    let (issuer, target) = (cluster.server("S1"), cluster.server("S2"));
    let mut peer = Peer::link(&member, target).await;
    peer.receive().await.expect("a member is spoken to");
    issuer.freeze();
    let mut client = target.client().expect("it answers");
    let rotating = std::thread::spawn(move || client.call(&Request::CertificateRotate).unwrap());
    while !matches!(peer.receive().await.expect("it asks all"), Message::WantCertificate { .. }) {}
    peer.send(&Message::Certificate { result: Ok(vec![1; 500]) }).await;
    // What is asked after that is answered after that.
    peer.send(&Message::WantCertificate { request: vec![1; 96] }).await;
    while !matches!(peer.receive().await.expect("it answers"), Message::Certificate { .. }) {}
    issuer.thaw();
    let answer = rotating.join().unwrap();
    assert!(matches!(answer, Response::Certificate(_)), "{answer:?}");
    drop(peer);
    cluster.wait_operating();
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_claims_of_a_member_are_harmless() {
    let (cluster, member) = cluster_and_member();
    let target = cluster.server("S1");
    let mut peer = Peer::link(&member, target).await;
    let own = target.status().unwrap();
    let stream = |name: &str| Stream { origin: ServerName::new(name).unwrap(), ..member.stream(1) };
    // It holds entries of all that nobody ever wrote, acknowledges the future, and wants what there is not.
    let streams: Vec<_> = ["S1", "S2", "S3", "S9"].map(stream).into();
    let everything = streams.iter().map(|stream| (stream.clone(), u64::MAX)).collect();
    peer.send(&Message::Vector { held: everything, floor: Default::default() }).await;
    peer.send(&Message::Ack(streams.iter().map(|stream| (stream.clone(), u64::MAX)).collect())).await;
    let absurd = |from, to| streams.iter().map(move |stream| Range { stream: stream.clone(), from, to }).collect();
    peer.send(&Message::Want(absurd(0, u64::MAX))).await;
    peer.send(&Message::Want(absurd(u64::MAX, 0))).await;
    peer.send(&Message::WantBundle { digest: Digest([3; 32]), offset: u64::MAX }).await;
    peer.send(&Message::BundlePart { digest: Digest([3; 32]), total: u64::MAX, offset: 7, bytes: vec![1] }).await;
    let (vector, files) = (Digest([1; 32]), Digest([2; 32]));
    peer.send(&Message::Beat(Beat { wall_ms: 1 << 63, vector, files, lifecycle: Lifecycle::Operating })).await;
    peer.send(&Message::WantCertificate { request: vec![1; 5000] }).await;
    peer.send(&Message::Certificate { result: Ok(vec![1; 500]) }).await;
    let real = Stream { origin: own.name.clone(), ..member.stream(own.process.started_ms as u32) };
    peer.send(&Message::Ack(vec![(real, u64::MAX)])).await;
    // An acknowledgement of what was never sent does not count for anybody else.
    target.cli(&["files", "add", "Notes", "counted, x", "--wait", "majority"]).ok();
    wait_until("the second has it", || cluster.server("S2").has("Notes", "counted, x"));
    tokio::time::timeout(Duration::from_secs(1), peer.connection.closed()).await.ok();
    drop(peer);
    assert_unharmed(&cluster);
}
