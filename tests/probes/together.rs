//! Two managers with real questions to a real service: how the core's watching and the edge's questions are joined.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use p2pdb::core::check::{Check, Preset};
use p2pdb::core::id::ServerName;
use p2pdb::core::opinion::Failure;
use p2pdb::core::probe::ProbeKind;
use p2pdb::core::record::Record;
use p2pdb::core::ring::Ring;
use p2pdb::core::watch::{Assignment, Input, Output, Role, Verdict, Watch, Watched};
use p2pdb::edge::probes::Probes;
use tokio::sync::mpsc;

use crate::rig::{LOOPBACK, Program, free_port, installed, runtime};

const TICK: Duration = Duration::from_millis(50);

fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

/// S2, as its managers S1 and S3 are to watch it.
fn assignment(role: Role, check: &str) -> Assignment {
    let names = ["S1", "S2", "S3", "S4"].map(server);
    let ring = Ring::new(names.clone(), BTreeSet::from(names));
    let target = server("S2");
    let watched = Watched {
        managers: ring.managers(&target, &target),
        host: target.clone(),
        here: false,
        role,
        address: LOOPBACK,
        checks: vec![Check::parse(&Record::parse(check).unwrap(), Preset::Fast).unwrap()],
        target,
    };
    Assignment { watched: vec![watched], others: 3, ..Assignment::default() }
}

struct Managers {
    watches: [Watch; 2],
    begin: Instant,
    tell: mpsc::UnboundedSender<(usize, Input)>,
    told: mpsc::UnboundedReceiver<(usize, Input)>,
}

/// Runs both managers until `wanted` has come out of the first, or gives up after half a minute.
async fn run(managers: &mut Managers, mut wanted: impl FnMut(&Output) -> bool) -> Output {
    let Managers { watches, begin, tell, told } = managers;
    let probes = Probes::new(8);
    let mut ticks = tokio::time::interval(TICK);
    let give_up = Instant::now() + Duration::from_secs(30);
    while Instant::now() < give_up {
        let inputs = tokio::select! {
            _ = ticks.tick() => vec![(0, Input::Tick), (1, Input::Tick)],
            Some(input) = told.recv() => vec![input],
        };
        for (index, input) in inputs {
            for output in watches[index].handle(begin.elapsed().as_micros() as u64, input) {
                match output {
                    Output::Ask(probe) => {
                        let (probes, tell) = (probes.clone(), tell.clone());
                        tokio::spawn(async move {
                            let outcome = probes.ask(&probe).await;
                            let _ = tell.send((index, Input::Outcome { id: probe.id, outcome }));
                        });
                    }
                    Output::Tell { opinion, .. } => {
                        let from = server(["S1", "S3"][index]);
                        let _ = tell.send((1 - index, Input::Opinion { from, opinion }));
                    }
                    output if index == 0 && wanted(&output) => return output,
                    Output::Verdict(verdict) => panic!("of manager {index}: {verdict}"),
                    Output::Suspected { .. } | Output::Cleared { .. } => {}
                }
            }
        }
    }
    panic!("half a minute is over; {:#?}", watches[0].reports(begin.elapsed().as_micros() as u64));
}

fn verdict(output: Output) -> Verdict {
    match output {
        Output::Verdict(verdict) => verdict,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_managers_judge_a_service_that_hangs_and_one_that_is_killed() {
    let Some(sshd) = installed("two managers", "sshd") else { return };
    let port = free_port();
    let mut program = Program::start(&ProbeKind::Ssh { port }, |dir| {
        let key = dir.join("key").to_str().unwrap().to_owned();
        assert!(Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f", &key]).status().unwrap().success());
        let _ = fs::create_dir("/run/sshd");
        let mut command = Command::new(sshd);
        command.args(["-D", "-e", "-f", "/dev/null", "-h", &key, "-o", "PidFile=none"]);
        command.args(["-o", &format!("ListenAddress=127.0.0.1:{port}")]);
        command
    });
    let check = format!("S2, login, ssh {port}");
    let (tell, told) = mpsc::unbounded_channel();
    for (index, role, peer) in [(0, Role::First, "S3"), (1, Role::Second, "S1")] {
        tell.send((index, Input::LinkUp { peer: server(peer) })).unwrap();
        tell.send((index, Input::LinkUp { peer: server("S4") })).unwrap();
        tell.send((index, Input::Assign(assignment(role, &check)))).unwrap();
    }
    let mut managers = Managers { watches: Default::default(), begin: Instant::now(), tell, told };
    runtime().block_on(async {
        program.freeze();
        let hangs = verdict(run(&mut managers, |output| matches!(output, Output::Verdict(_))).await);
        assert_eq!((hangs.failure, hangs.role), (Failure::Service, Role::First));
        assert!(hangs.evidence[0].ends_with("the connection is accepted, and no answer comes within 400 ms"));
        assert!(hangs.to_string().ends_with("S3 says: service failure"), "{hangs}");
        program.thaw();
        run(&mut managers, |output| matches!(output, Output::Cleared { .. })).await;

        program.stop();
        let killed = Instant::now();
        let gone = verdict(run(&mut managers, |output| matches!(output, Output::Verdict(_))).await);
        eprintln!("from the kill to the verdict of both: {} ms", killed.elapsed().as_millis());
        assert_eq!(gone.failure, Failure::Service);
        assert_eq!(gone.evidence[0], format!("login (ssh {port}): connection refused"));
    });
}
