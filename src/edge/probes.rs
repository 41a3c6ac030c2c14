//! Puts the questions of checks to services, each with a deadline, and tells what came of it in words.
//!
//! | question | file | answered when |
//! |---|---|---|
//! | icmp | `echo.rs` | an echo reply comes back |
//! | tcp, smtp, ftp, ssh | `greeting.rs` | the connection is accepted, and the greeting is that of the protocol |
//! | http, https, proxy | `web.rs` | the status is good |
//! | dns | `name.rs` | a response that is no server failure comes back |
//! | command | `command.rs` | the program ends with 0 |
//!
//! What a service sends is read up to a bound and never trusted. A check asks whether a service answers, not who it is: the
//! certificate of https is not verified. Invariants: no question outlives its deadline, nor is anything left running; no more
//! than [`Probes::new`]'s number of questions are under way at once.

mod command;
mod echo;
mod greeting;
mod name;
mod web;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::core::probe::{Probe, ProbeKind, ProbeOutcome};

/// What a question comes to: answered, or the outcome that says why not.
type Answer = Result<(), ProbeOutcome>;

/// Most questions that are under way at once, unless the caller wants another number.
pub const CONCURRENCY: usize = 64;

/// Asks.
#[derive(Clone)]
pub struct Probes {
    slots: Arc<Semaphore>,
    tls: TlsConnector,
}

/// How far a question came, for the words at its deadline.
#[derive(Debug, Default)]
struct Progress {
    accepted: AtomicBool,
}

impl Probes {
    /// At most `concurrency` questions are under way at once; further ones wait, which does not count against their deadline.
    pub fn new(concurrency: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(concurrency)), tls: web::connector() }
    }

    /// Puts one question. Ends at the latest when its timeout is over.
    pub async fn ask(&self, probe: &Probe) -> ProbeOutcome {
        let _slot = self.slots.acquire().await.expect("the slots are never closed");
        let progress = Progress::default();
        let begin = Instant::now();
        let limit = Duration::from_millis(probe.timeout_ms);
        match timeout(limit, self.put(probe, &progress)).await {
            Ok(Ok(())) => ProbeOutcome::Answered { took_us: begin.elapsed().as_micros() as u64 },
            Ok(Err(outcome)) => outcome,
            Err(_) if progress.accepted.load(Ordering::Relaxed) => ProbeOutcome::Refused(format!(
                "the connection is accepted, and no answer comes within {} ms",
                probe.timeout_ms
            )),
            Err(_) => ProbeOutcome::Failed(format!("no answer within {} ms", probe.timeout_ms)),
        }
    }

    async fn put(&self, probe: &Probe, progress: &Progress) -> Answer {
        let again = Duration::from_millis(probe.timeout_ms) / 2;
        let connect = |port: u16| connect(probe.address, port, progress);
        match &probe.kind {
            ProbeKind::Icmp => echo::ask(probe.address, probe.id, again).await,
            ProbeKind::Tcp { port } => connect(*port).await.map(drop),
            ProbeKind::Smtp { port } => greeting::ask_220(connect(*port).await?).await,
            ProbeKind::Ftp { port } => greeting::ask_220(connect(*port).await?).await,
            ProbeKind::Ssh { port } => greeting::ask_ssh(connect(*port).await?).await,
            ProbeKind::Http { port, tls, host, path, status } => {
                let authority = host.clone().unwrap_or_else(|| authority(probe.address, *port));
                let request = web::Request { target: path, authority: &authority, status: *status };
                let stream = connect(*port).await?;
                match tls {
                    false => web::ask(stream, &request).await,
                    true => web::ask_tls(&self.tls, stream, &request, probe.address, host.as_deref()).await,
                }
            }
            ProbeKind::Proxy { port, url } => {
                let authority = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or(url);
                let request = web::Request { target: url, authority, status: None };
                web::ask(connect(*port).await?, &request).await
            }
            ProbeKind::Dns { port, name } => name::ask((probe.address, *port).into(), name, probe.id, again).await,
            ProbeKind::Command { command } => command::ask(command, probe.address).await,
        }
    }
}

/// As a URL has it: without the usual port, with brackets around an IPv6 address.
fn authority(address: IpAddr, port: u16) -> String {
    match (SocketAddr::from((address, port)).to_string(), port) {
        (whole, 80 | 443) => whole.rsplit_once(':').map_or(whole.clone(), |(host, _)| host.to_owned()),
        (whole, _) => whole,
    }
}

async fn connect(address: IpAddr, port: u16, progress: &Progress) -> Result<TcpStream, ProbeOutcome> {
    let stream = TcpStream::connect((address, port)).await.map_err(|error| outcome_of(&error))?;
    progress.accepted.store(true, Ordering::Relaxed);
    Ok(stream)
}

/// What an error of this machine's network says of the service.
fn outcome_of(error: &io::Error) -> ProbeOutcome {
    let words = match error.kind() {
        io::ErrorKind::ConnectionRefused => return ProbeOutcome::Refused("connection refused".to_owned()),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            return ProbeOutcome::Refused("the connection is broken off".to_owned());
        }
        io::ErrorKind::HostUnreachable => "the host does not answer in its network",
        io::ErrorKind::NetworkUnreachable => {
            return ProbeOutcome::Unable("this server has no route to the address; see ip route".to_owned());
        }
        io::ErrorKind::PermissionDenied => {
            return ProbeOutcome::Unable("this server may not send there; see its packet filter".to_owned());
        }
        io::ErrorKind::AddrNotAvailable => {
            return ProbeOutcome::Unable("this server has no address or port left to ask from".to_owned());
        }
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
            return ProbeOutcome::Unable(format!("this server has too little left to ask: {error}; see LimitNOFILE"));
        }
        io::ErrorKind::TimedOut => "no answer",
        _ => return ProbeOutcome::Failed(error.to_string()),
    };
    ProbeOutcome::Failed(words.to_owned())
}

/// Something else than expected was said.
fn wrong(expected: &str, said: &[u8]) -> ProbeOutcome {
    let shown: String = String::from_utf8_lossy(said).chars().take(60).collect();
    ProbeOutcome::Refused(format!("it says {:?}, not {expected}", shown.trim_end()))
}

/// Sends a datagram, and once more after `again`, until one comes back that `takes` judges.
async fn exchange(
    socket: &UdpSocket,
    datagram: &[u8],
    again: Duration,
    mut takes: impl FnMut(&[u8]) -> Option<Answer>,
) -> Answer {
    let mut bytes = [0; 4096];
    loop {
        socket.send(datagram).await.map_err(|error| outcome_of(&error))?;
        let reply = async {
            loop {
                let length = socket.recv(&mut bytes).await.map_err(|error| outcome_of(&error))?;
                if let Some(answer) = takes(&bytes[..length]) {
                    return answer;
                }
            }
        };
        if let Ok(answer) = timeout(again, reply).await {
            return answer;
        }
    }
}
