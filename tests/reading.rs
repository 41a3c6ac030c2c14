//! Big files are read while they change: what is shown is of one moment.

mod harness;

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use harness::{Cluster, Server};
use p2pdb::core::diff::Change;
use p2pdb::core::id::FileName;
use p2pdb::core::io::{Edit, Wait};
use p2pdb::core::record::Record;
use p2pdb::edge::control::{Client, FileEdit, Request, Response};

const FILE: &str = "Big";

/// Gives `servers` files of so many MiB.
fn fill(server: &Server, mib: usize) {
    let long = "x".repeat(3000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changes");
    for lot in 0..mib * 4 {
        let lines = (0..88).fold(String::new(), |mut lines, line| {
            let _ = writeln!(lines, "{FILE}, Add, m{lot}-{line}, {long}");
            lines
        });
        fs::write(&path, lines).unwrap();
        server.cli(&["files", "apply", &path.to_string_lossy()]).ok();
    }
}

/// Changes the first and the last record of the file by one transaction each time, some thousand times a second.
fn flood(mut client: Client, stop: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    const AT_ONCE: u64 = 4;
    let edit = |key: &str, from: u64, to: u64| {
        let record = |number: u64| Record::parse(&format!("{key}, {number}")).unwrap();
        let change = match from {
            0 => Change::Add(record(to)),
            _ => Change::Mod { before: record(from), after: record(to) },
        };
        Edit { file: FileName::new(FILE).unwrap(), change, bases: None }
    };
    thread::spawn(move || {
        let mut made = 0;
        while !stop.load(Ordering::Relaxed) {
            for number in made + 1..=made + AT_ONCE {
                let edits = vec![edit("a-first", number - 1, number), edit("z-last", number - 1, number)];
                let (reason, wait) = (String::new(), Wait::Local);
                let request = FileEdit { edits, on_behalf_of: None, reason, wait, timeout_ms: 30_000 };
                client.queue(&Request::FileEdit(request)).unwrap();
            }
            client.flush().unwrap();
            for _ in 0..AT_ONCE {
                let reply = client.receive().unwrap();
                assert!(matches!(reply.response, Response::Edited(_)), "{reply:?}");
            }
            made += AT_ONCE;
        }
        made
    })
}

#[test]
fn a_big_file_is_shown_as_of_one_moment_under_a_flood_of_edits() {
    let cluster = Cluster::of(1);
    let server = cluster.server("S1");
    fill(server, 8);
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = flood(server.client().unwrap(), stop.clone());
    let mut shown = Vec::new();
    for _ in 0..2 {
        let lines = server.show(FILE);
        assert!(lines.iter().map(String::len).sum::<usize>() > 8 << 20);
        let number = |line: Option<&String>| line.unwrap().split_once(", ").unwrap().1.to_owned();
        let (first, last) = (number(lines.first()), number(lines.last()));
        assert_eq!(first, last, "the first and the last record are always changed together");
        shown.push(first);
    }
    server.replay_check();
    stop.store(true, Ordering::Relaxed);
    let made = flooding.join().unwrap();
    assert!(shown.windows(2).all(|pair| pair[0] != pair[1]), "it changed meanwhile: {shown:?} of {made}");
    cluster.finish();
}
