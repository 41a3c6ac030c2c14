//! Well-behaved servers: linking, order, silence, restart, back-pressure, revocation, rotation, membership.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use p2pdb::edge::quic::{Channel, MeshConfig, MeshEvent, SendError};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_link_up_and_frames_keep_their_order() {
    let cluster = Cluster::new();
    let mut nodes = [cluster.start("a").await, cluster.start("b").await, cluster.start("c").await];
    introduce(&nodes.iter().collect::<Vec<_>>());
    let names = ["a", "b", "c"];
    for (index, node) in nodes.iter_mut().enumerate() {
        let mut missing: BTreeSet<_> = (0..3).filter(|other| *other != index).map(|other| name(names[other])).collect();
        while !missing.is_empty() {
            let (peer, version, offset) = node
                .wait("a link", |event| match event {
                    MeshEvent::LinkUp { peer, version, clock_offset_ms, .. } => Some((peer, version, clock_offset_ms)),
                    _ => None,
                })
                .await;
            assert!(missing.remove(&peer), "{peer} came up twice");
            assert_eq!(version, 1);
            assert!(offset.abs() < 1000, "{offset}");
        }
        assert_eq!(node.mesh.links().len(), 2);
    }
    for number in 0..2000u32 {
        nodes[0].send("b", Channel::Live, number.to_le_bytes().to_vec()).unwrap();
        let size = 4 + (number as usize * 37) % 3000 + if number % 500 == 0 { 300_000 } else { 0 };
        let mut frame = vec![7; size];
        frame[..4].copy_from_slice(&number.to_le_bytes());
        nodes[0].send("b", Channel::Bulk, frame).unwrap();
    }
    let mut next = BTreeMap::from([(Channel::Live, 0), (Channel::Bulk, 0)]);
    while next.values().any(|next| *next < 2000) {
        let (peer, channel, bytes) = nodes[1].frame().await;
        assert_eq!(peer, name("a"));
        let expected = next.get_mut(&channel).unwrap();
        assert_eq!(bytes[..4], u32::to_le_bytes(*expected), "{channel:?}");
        *expected += 1;
    }
    let [a, mut b, _c] = nodes;
    a.mesh.close().await;
    assert!(b.down("a").await.contains("shuts down"));
}

#[test]
fn a_peer_that_falls_silent_is_noticed() {
    let ours = tokio::runtime::Runtime::new().unwrap();
    let theirs = tokio::runtime::Runtime::new().unwrap();
    let cluster = Cluster::new();
    let normal = |config: &mut MeshConfig| config.idle_timeout_ms = 1000;
    let mut a = ours.block_on(cluster.start_with("a", 1024, normal));
    let mut b = theirs.block_on(cluster.start_with("b", 1024, normal));
    {
        let _inside = ours.enter();
        a.mesh.set_members(BTreeMap::from([(name("b"), b.address())]));
    }
    theirs.block_on(b.up("a"));
    ours.block_on(a.up("b"));
    // Without its runtime the peer's socket stays open and says nothing more.
    theirs.shutdown_background();
    let begun = Instant::now();
    assert_eq!(ours.block_on(a.down("b")), "no sign of life");
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(600) && waited < Duration::from_millis(4000), "{waited:?}");
    assert_eq!(a.send("b", Channel::Live, "x"), Err(SendError::NotLinked));
    std::mem::forget(b);
}

#[test]
fn a_restarted_peer_is_noticed_before_the_idle_timeout() {
    let ours = tokio::runtime::Runtime::new().unwrap();
    let theirs = tokio::runtime::Runtime::new().unwrap();
    let cluster = Cluster::new();
    let slow = |config: &mut MeshConfig| config.idle_timeout_ms = 60_000;
    let mut a = ours.block_on(cluster.start_with("a", 1024, slow));
    let identity = cluster.identity("b");
    let mut config = MeshConfig::new(name("b"), cluster.id(), anywhere());
    slow(&mut config);
    let mut b = theirs.block_on(cluster.start_as(config.clone(), identity.clone(), 1024));
    config.listen = b.address();
    {
        let _inside = ours.enter();
        a.mesh.set_members(BTreeMap::from([(name("b"), b.address())]));
    }
    theirs.block_on(b.up("a"));
    ours.block_on(a.up("b"));
    // The whole runtime goes, and with it the socket: nothing is said to the peer.
    theirs.shutdown_timeout(LIMIT);
    drop(b);
    let mut b = ours.block_on(cluster.start_as(config, identity, 1024));
    assert_eq!(ours.block_on(a.down("b")), "the peer restarted");
    ours.block_on(a.up("b"));
    ours.block_on(b.up("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_back_its_own_link_only() {
    let cluster = Cluster::new();
    let small = |config: &mut MeshConfig| {
        config.frame_bytes_max = 64 * 1024;
        config.queue_bytes_max = 1024 * 1024;
        config.window_bytes = 256 * 1024;
    };
    let mut a = cluster.start_with("a", 1024, small).await;
    let mut b = cluster.start_with("b", 8, small).await;
    let mut c = cluster.start_with("c", 1024, small).await;
    introduce(&[&a, &b, &c]);
    let mut missing = BTreeSet::from([name("b"), name("c")]);
    while !missing.is_empty() {
        let peer = a
            .wait("links", |event| match event {
                MeshEvent::LinkUp { peer, .. } => Some(peer),
                _ => None,
            })
            .await;
        missing.remove(&peer);
    }
    // b reads nothing from here on. A frame to c and its arrival mark the time between tries.
    let frame_bytes = 32 * 1024;
    let mut sent = 0u32;
    let mut full_in_a_row = 0;
    while full_in_a_row < 200 {
        let mut frame = vec![0; frame_bytes];
        frame[..4].copy_from_slice(&sent.to_le_bytes());
        match a.send("b", Channel::Bulk, frame) {
            Ok(()) => (sent, full_in_a_row) = (sent + 1, 0),
            Err(SendError::Full) => full_in_a_row += 1,
            Err(error) => panic!("{error}"),
        }
        a.send("c", Channel::Live, "tick").unwrap();
        assert_eq!(c.frame().await.2, "tick");
    }
    let bytes = sent as usize * frame_bytes;
    assert!(bytes < 1024 * 1024 + 256 * 1024 + 12 * frame_bytes, "{bytes} bytes were taken for a peer that reads none");
    for number in 0..sent {
        let (_, channel, frame) = b.frame().await;
        assert_eq!((channel, &frame[..4]), (Channel::Bulk, &number.to_le_bytes()[..]));
    }
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_closes_the_link_and_refuses_the_next() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    a.mesh.set_revoked(BTreeMap::from([(name("b"), now_ms())]));
    assert_eq!(a.down("b").await, "the certificate is revoked");
    assert!(b.down("a").await.contains("the certificate is revoked"));
    // Both dial again; each hears why it is in vain.
    let reason = a.refused().await;
    assert!(reason.contains("revoked"), "{reason}");
    let reason = b.refused().await;
    assert_eq!(reason, "the peer refused us: our certificate is revoked");
    assert!(a.mesh.links().is_empty());
    // A certificate issued later is good again.
    let fresh = cluster.credentials("b", now_ms() + 1);
    b.mesh.rotate(&fresh).unwrap();
    a.up("b").await;
    b.up("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_shows_the_new_certificate_to_all() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    for (step, rotated) in [("a", true), ("b", false), ("a", true)].into_iter().enumerate() {
        let (server, is_a) = rotated;
        let issued_ms = now_ms() + 1000 * (step as u64 + 1);
        let fresh = cluster.credentials(server, issued_ms);
        let begun = Instant::now();
        let (turning, watching) = if is_a { (&mut a, &mut b) } else { (&mut b, &mut a) };
        turning.mesh.rotate(&fresh).unwrap();
        // The old link goes when it is told, or when the new one takes its place, whichever is first.
        watching
            .wait("the new certificate", |event| match event {
                MeshEvent::LinkUp { certificate_issued_ms, .. } => (certificate_issued_ms == issued_ms).then_some(()),
                _ => None,
            })
            .await;
        turning.up(watching.me.as_str()).await;
        println!("rotation of {server}: linked again after {:?}", begun.elapsed());
    }
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_dialling_at_once_leaves_one_link() {
    let cluster = Cluster::new();
    for _ in 0..20 {
        let eager = |config: &mut MeshConfig| config.dial_delay_ms = 0;
        let mut a = cluster.start_with("a", 1024, eager).await;
        let mut b = cluster.start_with("b", 1024, eager).await;
        introduce(&[&a, &b]);
        // A link that loses may have carried frames before. In the end both sides name the same one.
        let agreed = |a: &Node, b: &Node| match (&a.mesh.links()[..], &b.mesh.links()[..]) {
            ([ours], [theirs]) => ours.dialled_by_us != theirs.dialled_by_us,
            _ => false,
        };
        let begun = Instant::now();
        let mut links = (None, None);
        let mut answered = None;
        while answered.is_none() || answered != links.0 || links.1.is_none() || !agreed(&a, &b) {
            assert!(begun.elapsed() < LIMIT, "{links:?} {answered:?}");
            tokio::select! {
                event = a.events.recv() => match event.unwrap() {
                    MeshEvent::LinkUp { link, .. } => {
                        assert_eq!(links.0.replace(link), None, "two links at once");
                        a.send("b", Channel::Live, "ping").unwrap_or_default();
                    }
                    MeshEvent::LinkDown { link, .. } => assert_eq!(links.0.take(), Some(link)),
                    MeshEvent::Frame { link, .. } => answered = Some(link),
                    MeshEvent::Refused { reason, .. } => panic!("{reason}"),
                },
                event = b.events.recv() => match event.unwrap() {
                    MeshEvent::LinkUp { link, .. } => assert_eq!(links.1.replace(link), None, "two links at once"),
                    MeshEvent::LinkDown { link, .. } => assert_eq!(links.1.take(), Some(link)),
                    MeshEvent::Frame { .. } => b.send("a", Channel::Live, "pong").unwrap_or_default(),
                    MeshEvent::Refused { reason, .. } => panic!("{reason}"),
                },
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_cut_off_until_it_is_a_member_again() {
    let cluster = Cluster::new();
    let (mut a, mut b) = pair(&cluster).await;
    a.mesh.set_members(BTreeMap::new());
    assert_eq!(a.down("b").await, "not a member any more");
    b.down("a").await;
    assert!(a.refused().await.contains("not a member any more"));
    a.mesh.set_members(BTreeMap::from([(name("b"), b.address())]));
    a.up("b").await;
    b.up("a").await;
}
