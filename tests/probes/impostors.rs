//! What only looks like a service, and questions to nobody.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use p2pdb::core::probe::{Probe, ProbeKind, ProbeOutcome};
use p2pdb::edge::probes::Probes;

use crate::rig::{LOOPBACK, ask, free_port, is_alive, runtime};

/// Says the same to everybody.
pub struct Impostor {
    pub port: u16,
}

impl Impostor {
    pub fn says(words: impl AsRef<[u8]>) -> Self {
        let words = words.as_ref().to_vec();
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let words = words.clone();
                std::thread::spawn(move || {
                    if stream.write_all(&words).is_ok() {
                        // Held open until the other side has had enough.
                        let _ = stream.read_to_end(&mut Vec::new());
                    }
                });
            }
        });
        Self { port }
    }
}

fn tcp_questions(port: u16) -> Vec<ProbeKind> {
    let web = |tls| ProbeKind::Http { port, tls, host: None, path: "/".to_owned(), status: None };
    let url = "http://www.example.org/".to_owned();
    vec![
        ProbeKind::Smtp { port },
        ProbeKind::Ssh { port },
        ProbeKind::Ftp { port },
        ProbeKind::Proxy { port, url },
        web(false),
        web(true),
    ]
}

#[test]
fn who_accepts_and_says_nothing_does_not_answer() {
    let silent = Impostor::says("");
    for question in tcp_questions(silent.port) {
        let begin = Instant::now();
        let wanted = "the connection is accepted, and no answer comes within 200 ms".to_owned();
        assert_eq!(ask(&question, 200), ProbeOutcome::Refused(wanted), "{question}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    assert!(matches!(ask(&ProbeKind::Tcp { port: silent.port }, 2000), ProbeOutcome::Answered { .. }));
}

#[test]
fn who_answers_rubbish_does_not_answer() {
    let mut endless = vec![b'x'; 1 << 20];
    endless.push(b'\n');
    let rubbish: [&[u8]; 5] = [b"rubbish\r\n", b"\0\xff\xfe\x01\n", b"421 no\r\n", b"2200 x\r\n", &endless];
    for words in rubbish {
        let impostor = Impostor::says(words);
        for question in tcp_questions(impostor.port) {
            match ask(&question, 500) {
                ProbeOutcome::Refused(why) => assert!(why.len() < 300, "{why}"),
                other => panic!("{question}: {other:?}"),
            }
        }
    }
    let impostor = Impostor::says("rubbish\r\n");
    let why = ask(&ProbeKind::Smtp { port: impostor.port }, 5000);
    assert_eq!(why, ProbeOutcome::Refused("it says \"rubbish\", not 220".to_owned()));
}

#[test]
fn a_name_server_is_not_who_answers_rubbish() {
    let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let server_failure = |bytes: &mut [u8]| {
                bytes[2] |= 0x80;
                bytes[3] = 2;
            };
            match bytes[..length].windows(7).any(|window| window == b"failing") {
                true => server_failure(&mut bytes),
                false => bytes[..length].fill(0xff),
            }
            socket.send_to(&bytes[..length], from).unwrap();
        }
    });
    let question = |name: &str| ask(&ProbeKind::Dns { port, name: name.to_owned() }, 5000);
    assert!(matches!(question("www.example.org"), ProbeOutcome::Refused(why) if why.ends_with("not a DNS response")));
    assert_eq!(question("failing.example.org"), ProbeOutcome::Refused("it answers with a server failure".to_owned()));
}

fn echo(address: &str) -> ProbeOutcome {
    let probe = Probe { id: 1, address: address.parse().unwrap(), kind: ProbeKind::Icmp, timeout_ms: 300 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { Probes::new(1).ask(&probe).await })
}

#[test]
fn an_echo_comes_back_from_here() {
    for address in ["127.0.0.1", "127.0.0.77", "::1"] {
        match echo(address) {
            ProbeOutcome::Answered { .. } => {}
            ProbeOutcome::Unable(why) => {
                eprintln!("\n**** SKIPPED: echo of {address}: {why} ****\n");
                assert!(why.contains("ping_group_range") || why.contains("ip route"), "{why}");
            }
            other => panic!("{address}: {other:?}"),
        }
    }
}

/// Moves this thread, and what it starts, to a network of its own.
#[allow(unsafe_code)]
fn leave_the_network() -> std::io::Result<()> {
    // SAFETY: the flag concerns this thread's network alone; memory and descriptors stay shared.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// On a network of its own, with one interface and nobody at its other end.
#[test]
fn an_echo_does_not_come_back_from_nobody_and_cannot_be_sent_without_a_route() {
    let ip = |words: &str| Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success());
    let outcomes = std::thread::spawn(move || {
        leave_the_network().ok()?;
        let ready = ip("link add near type veth peer name far")
            && ip("address add 10.77.0.1/24 dev near")
            && ip("link set near up")
            && ip("link set far up");
        ready.then(|| (echo("10.77.0.2"), echo("192.0.2.1")))
    });
    let Some((nobody, no_route)) = outcomes.join().unwrap() else {
        eprintln!("\n**** SKIPPED: echo of nobody: no network namespace can be made here ****\n");
        return;
    };
    assert_eq!(nobody, ProbeOutcome::Failed("no answer within 300 ms".to_owned()));
    assert!(matches!(&no_route, ProbeOutcome::Unable(why) if why.contains("no route")), "{no_route:?}");
}

fn command(words: &[&str]) -> ProbeKind {
    ProbeKind::Command { command: words.iter().map(|word| (*word).to_owned()).collect() }
}

#[test]
fn a_command_tells_by_its_exit_code() {
    assert!(matches!(ask(&command(&["/bin/true"]), 5000), ProbeOutcome::Answered { .. }));
    let address = command(&["/bin/sh", "-c", "test \"$1\" = 127.0.0.1", "sh", "{address}"]);
    assert!(matches!(ask(&address, 5000), ProbeOutcome::Answered { .. }));
    let failing = command(&["/bin/sh", "-c", "echo out; echo the queue is full >&2; echo more >&2; exit 3"]);
    let why = "/bin/sh ends with 3: the queue is full".to_owned();
    assert_eq!(ask(&failing, 5000), ProbeOutcome::Failed(why));
    let missing = ask(&command(&["/usr/bin/there-is-no-such-program"]), 5000);
    assert!(matches!(missing, ProbeOutcome::Unable(why) if why.contains("install it")));
    let loud = command(&["/bin/sh", "-c", "head -c 10000000 /dev/zero; exit 1"]);
    assert!(matches!(ask(&loud, 20_000), ProbeOutcome::Failed(why) if why.len() < 300));
}

#[test]
fn a_command_that_hangs_is_killed_with_all_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 1000 & echo $! > {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; wait", pids.display());
    let outcome = ask(&command(&["/bin/sh", "-c", &script]), 3000);
    assert_eq!(outcome, ProbeOutcome::Failed("no answer within 3000 ms".to_owned()));
    let pids = std::fs::read_to_string(pids).unwrap();
    let begin = Instant::now();
    while pids.lines().any(|pid| is_alive(pid.parse().unwrap())) {
        assert!(begin.elapsed() < Duration::from_secs(10), "{pids} live on");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(pids.lines().count(), 2);
}

#[test]
fn no_more_questions_are_under_way_than_allowed_and_waiting_does_not_count() {
    let silent = Impostor::says("");
    let probes = Probes::new(2);
    let begin = Instant::now();
    runtime().block_on(async {
        let asks = (0..6).map(|id| {
            let probes = probes.clone();
            let kind = ProbeKind::Ssh { port: silent.port };
            tokio::spawn(async move { probes.ask(&Probe { id, address: LOOPBACK, kind, timeout_ms: 200 }).await })
        });
        for ask in asks.collect::<Vec<_>>() {
            assert!(matches!(ask.await.unwrap(), ProbeOutcome::Refused(_)));
        }
    });
    assert!(begin.elapsed() >= Duration::from_millis(600));
}

#[test]
fn nobody_at_the_port_is_a_refusal() {
    for question in tcp_questions(free_port()) {
        assert_eq!(ask(&question, 2000), ProbeOutcome::Refused("connection refused".to_owned()), "{question}");
    }
    let nobody = ProbeKind::Dns { port: free_port(), name: "www.example.org".to_owned() };
    assert_eq!(ask(&nobody, 2000), ProbeOutcome::Refused("connection refused".to_owned()));
}
