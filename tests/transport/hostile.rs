//! Peers that do not belong here or misbehave: each costs its own connection, and the reason is reported.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use p2pdb::core::id::ClusterId;
use p2pdb::edge::certificate::SERVER_VALIDITY_MS;
use p2pdb::edge::frame::frame_header;
use p2pdb::edge::hello::{Hello, encode_ready};
use p2pdb::edge::tls::TLS_SERVER_NAME;
use quinn::Endpoint;

use crate::careless::{careless_client, close_reason};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_do_not_belong_here_cost_only_their_connection() {
    let cluster = Cluster::new();
    let (mut a, b) = pair(&cluster).await;

    let (_endpoint, anonymous) = dial(careless_client(None), &a).await;
    assert!(close_reason(&anonymous).await.contains("the mesh needs a certificate"));
    assert!(a.refused().await.contains("the mesh needs a certificate"));

    let foreign = Cluster::new().credentials("b", now_ms());
    let (_endpoint, stranger) = dial(careless_client(Some(&foreign)), &a).await;
    close_reason(&stranger).await;
    let reason = a.refused().await;
    assert!(reason.contains("not signed by this cluster's CA"), "{reason}");

    let expired = cluster.credentials("b", now_ms() - SERVER_VALIDITY_MS - 60_000);
    let (_endpoint, late) = dial(careless_client(Some(&expired)), &a).await;
    close_reason(&late).await;
    let reason = a.refused().await;
    assert!(reason.contains("expired"), "{reason}");

    // The dialler's side: the server at that address is another one.
    let b_elsewhere = BTreeMap::from([(name("b"), b.address()), (name("z"), b.address())]);
    a.mesh.set_members(b_elsewhere);
    let reason = a.refused().await;
    assert!(reason.contains("the peer is 'b', not 'z'"), "{reason}");

    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_hellos_cost_only_their_connection() {
    let cluster = Cluster::new();
    let (mut a, b) = pair(&cluster).await;
    let good = cluster.hello("x");
    let framed = |hello: Hello| [&frame_header(&hello.encode())[..], &hello.encode()].concat();
    let garbage = b"this is no hello at all".to_vec();
    let cases = [
        (framed(Hello { name: name("y"), ..good.clone() }), "'y' shows the certificate of 'x'"),
        (framed(Hello { cluster: ClusterId([7; 16]), ..good.clone() }), "meets cluster"),
        (framed(Hello { versions: (2, 3), ..good.clone() }), "protocol versions 2 to 3 meet 1 to 1"),
        ([&frame_header(&garbage)[..], &garbage].concat(), "this is no hello of p2pdb"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "at most"),
        ([&9u32.to_le_bytes()[..], &[0; 4], b"123456789"].concat(), "a frame with a wrong checksum"),
    ];
    for (bytes, expected) in cases {
        let (_endpoint, connection) = cluster.raw("x", &a).await;
        let (mut out, _input) = connection.open_bi().await.unwrap();
        out.write_all(&bytes).await.unwrap();
        let told = close_reason(&connection).await;
        assert!(told.contains(expected), "{told}");
        let reported = a.refused().await;
        assert!(reported.contains(expected), "{reported}");
    }
    // One who shows our own name, with a certificate for it.
    let (_endpoint, connection) = cluster.raw("a", &a).await;
    let (mut out, _input) = connection.open_bi().await.unwrap();
    out.write_all(&framed(cluster.hello("a"))).await.unwrap();
    assert!(a.refused().await.contains("linked to itself"));
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_close_the_link_that_carried_them() {
    let cluster = Cluster::new();
    let (mut a, b) = pair(&cluster).await;
    let oversize = (2u32 << 20).to_le_bytes();
    let damaged = [&4u32.to_le_bytes()[..], &[1; 4], b"abcd"].concat();
    for (bytes, expected) in [
        ([&oversize[..], &[0; 4]].concat(), "a frame of 2097152 bytes; at most 1048576 are allowed"),
        (damaged, "a frame with a wrong checksum"),
    ] {
        for live in [true, false] {
            let (_endpoint, connection) = cluster.raw("x", &a).await;
            let (mut live_out, mut live_in) = connection.open_bi().await.unwrap();
            let hello = cluster.hello("x").encode();
            live_out.write_all(&[&frame_header(&hello)[..], &hello].concat()).await.unwrap();
            let mut header = [0; 8];
            live_in.read_exact(&mut header).await.unwrap();
            let ready = encode_ready(now_ms());
            live_out.write_all(&[&frame_header(&ready)[..], &ready].concat()).await.unwrap();
            let (mut bulk_out, _bulk_in) = connection.open_bi().await.unwrap();
            bulk_out.write_all(&frame_header(b"")).await.unwrap();
            a.up("x").await;
            let good = [&frame_header(b"good")[..], b"good"].concat();
            let out = if live { &mut live_out } else { &mut bulk_out };
            out.write_all(&good).await.unwrap();
            out.write_all(&bytes).await.unwrap();
            assert_eq!(a.frame().await.2, "good");
            let told = close_reason(&connection).await;
            assert_eq!(told, expected);
            assert_eq!(a.down("x").await, expected);
        }
    }
    assert_still_linked(a, b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_one_address_leave_room_for_those_of_others() {
    let cluster = Cluster::new();
    let mut a = cluster.start_with("a", 1024, |config| config.handshake_timeout_ms = 60_000).await;
    let mut b = cluster.start("b").await;
    let config = quinn::ClientConfig::new(Arc::new(careless_client(Some(&cluster.credentials("x", now_ms())))));
    let endpoint = Endpoint::client("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut silent = Vec::new();
    for _ in 0..600 {
        let connecting = endpoint.connect_with(config.clone(), a.address(), TLS_SERVER_NAME).unwrap();
        match tokio::time::timeout(Duration::from_secs(3), connecting).await {
            Ok(Ok(connection)) => silent.push(connection),
            _ => break,
        }
    }
    assert!(silent.len() < 600, "somewhere it ends");
    b.mesh.set_members(BTreeMap::from([(name("a"), a.address())]));
    b.up("a").await;
    a.up("b").await;
    assert!(silent.iter().all(|connection| connection.close_reason().is_none()), "they are silent to the end");
}
