//! Joining with a one-time token, and every way in which it must fail.

use std::sync::{Arc, Mutex};

use p2pdb::core::id::ClusterId;
use p2pdb::edge::certificate::{CertificateDirectory, SERVER_VALIDITY_MS, generate_key};
use p2pdb::edge::frame::frame_header;
use p2pdb::edge::join::{JoinGrant, JoinServer, join};
use p2pdb::edge::quic::MeshConfig;
use p2pdb::edge::tls::{TLS_SERVER_NAME, TlsIdentity, join_client_config};
use p2pdb::edge::token::{TOKEN_LIFE_MS, Token, TokenStore};
use quinn::Endpoint;

use crate::careless::close_reason;
use crate::support::*;

struct JoinSide {
    node: Node,
    tokens: TokenStore,
    asked: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

/// A member that takes joins; it admits everyone but "taken".
async fn join_side(cluster: &Cluster, holds_key: bool) -> JoinSide {
    let folder = tempfile::tempdir().unwrap();
    let directory = CertificateDirectory::new(folder.path());
    directory.store_authority(cluster.0.certificate(), Some(&cluster.0)).unwrap();
    let node = cluster.start("a").await;
    let tokens = TokenStore::new(folder.path().join("tokens"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let members = vec![(name("a"), node.address())];
    let seen = asked.clone();
    let server = JoinServer {
        authority: if holds_key { directory.load_authority().unwrap() } else { None },
        tokens: tokens.clone(),
        validity_ms: SERVER_VALIDITY_MS,
        admit: Box::new(move |request| {
            let members = members.clone();
            seen.lock().unwrap().push(format!("{} at {}", request.name, request.listen));
            Box::pin(async move {
                match request.name.as_str() {
                    "taken" => Err("the name 'taken' is taken".into()),
                    _ => Ok(JoinGrant { members, revoked_ms: None }),
                }
            })
        }),
    };
    node.mesh.set_join_handler(Some(server.into_handler()));
    JoinSide { node, tokens, asked, _folder: folder }
}

async fn join_error(side: &JoinSide, token: &Token, server: &str) -> String {
    let joined = join(side.node.address(), token, &name(server), anywhere()).await;
    joined.err().expect("the join is refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_joins_and_is_linked() {
    let cluster = Cluster::new();
    let mut side = join_side(&cluster, true).await;
    let token = side.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    let token: Token = token.to_string().parse().unwrap();
    let joined = join(side.node.address(), &token, &name("b"), anywhere()).await.unwrap();
    assert_eq!(joined.cluster, cluster.id());
    assert_eq!(joined.credentials.info.name, name("b"));
    assert_eq!(*side.asked.lock().unwrap(), [format!("b at {}", anywhere())]);

    let folder = tempfile::tempdir().unwrap();
    let directory = CertificateDirectory::new(folder.path().join("certs"));
    directory.store_authority(&joined.ca, None).unwrap();
    directory.store_credentials(&joined.credentials).unwrap();
    let ca = directory.load_authority_certificate().unwrap();
    assert!(directory.load_authority().unwrap().is_none());
    let identity = TlsIdentity::new(&directory.load_credentials(&ca).unwrap(), &ca).unwrap();
    let mut b = cluster.start_as(MeshConfig::new(name("b"), joined.cluster, anywhere()), identity, 1024).await;
    b.mesh.set_members(joined.members.into_iter().collect());
    b.up("a").await;
    side.node.up("b").await;

    let again = join_error(&side, &token, "c").await;
    assert!(again.contains("the join token is not known here: it was used already"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_are_refused_with_the_reason() {
    let cluster = Cluster::new();
    let side = join_side(&cluster, true).await;
    let token = side.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let unknown = TokenStore::new(elsewhere.path()).create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    assert!(join_error(&side, &unknown, "b").await.contains("is not known here"));
    let expired = side.tokens.create(cluster.id(), 1, now_ms() - 2).unwrap();
    assert!(join_error(&side, &expired, "b").await.contains("has expired"));
    let foreign = side.tokens.create(ClusterId([7; 16]), TOKEN_LIFE_MS, now_ms()).unwrap();
    let told = join_error(&side, &foreign, "b").await;
    assert!(told.contains("the server belongs to cluster"), "{told}");
    assert!(side.asked.lock().unwrap().is_empty());

    // A refusal by the daemon leaves the token good for a better name.
    assert!(join_error(&side, &token, "taken").await.ends_with("refused: the name 'taken' is taken"));
    join(side.node.address(), &token, &name("free"), anywhere()).await.unwrap();

    let keyless = join_side(&cluster, false).await;
    let token = keyless.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    let told = join_error(&keyless, &token, "b").await;
    assert!(told.ends_with("join through a server that has certs/ca.key, usually the one that ran init"), "{told}");

    keyless.node.mesh.set_join_handler(None);
    assert!(join_error(&keyless, &token, "b").await.contains("takes no joining servers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_stolen_join_requests_are_refused() {
    let cluster = Cluster::new();
    let side = join_side(&cluster, true).await;
    let address = "10.0.0.1:4747";
    let key = generate_key().unwrap().verifying_key().to_bytes();
    let mut stolen = [b"P2PDBJRQ\x01\x00", &[0; 21][..], b"\x01b", &[address.len() as u8]].concat();
    stolen.extend([address.as_bytes(), &key, &[0; 64]].concat());
    for (request, expected) in [
        (stolen, "not signed by the key it shows"),
        (b"P2PDBJRQ junk".to_vec(), "the request is malformed"),
        (vec![0; 2000], "a frame of 2000 bytes; at most 1024"),
    ] {
        let (_endpoint, connection) = dial(join_client_config(cluster.id()).unwrap(), &side.node).await;
        let (mut out, mut input) = connection.open_bi().await.unwrap();
        out.write_all(&[&frame_header(&request)[..], &request].concat()).await.unwrap();
        let mut answer = vec![0; 8];
        let told = match input.read_exact(&mut answer).await {
            Ok(()) => {
                answer.resize(u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize, 0);
                input.read_exact(&mut answer).await.unwrap();
                String::from_utf8_lossy(&answer).into_owned()
            }
            Err(_) => close_reason(&connection).await,
        };
        assert!(told.contains(expected), "{told}");
    }
    assert!(side.asked.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_say_nothing_do_not_keep_others_from_joining() {
    let cluster = Cluster::new();
    let side = join_side(&cluster, true).await;
    let token = side.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(join_client_config(cluster.id()).unwrap()));
    let endpoint = Endpoint::client("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut silent = Vec::new();
    for _ in 0..80 {
        let connecting = endpoint.connect_with(config.clone(), side.node.address(), TLS_SERVER_NAME).unwrap();
        silent.push(connecting.await.unwrap());
    }
    join(side.node.address(), &token, &name("b"), anywhere()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_joins_one_of_many() {
    let cluster = Cluster::new();
    let side = join_side(&cluster, true).await;
    let token = side.tokens.create(cluster.id(), TOKEN_LIFE_MS, now_ms()).unwrap();
    let mut tries = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (peer, token) = (side.node.address(), token.clone());
        tries.spawn(async move { join(peer, &token, &name(&format!("s{number}")), anywhere()).await.is_ok() });
    }
    let joined = tries.join_all().await.into_iter().filter(|joined| *joined).count();
    assert_eq!((joined, side.asked.lock().unwrap().len()), (1, 1));
}
