//! The agent: a small process that holds an address for as long as its lease lasts, and in a guest installs procedures.
//!
//! One runs in each guest of the driver `process` (there it is the only program of a pristine guest), and one beside the daemon of
//! a server that holds its own service address. It is a process of its own so that an address lapses on time whatever
//! becomes of the daemon: frozen, killed, replaced. It outlives the daemon; the next one finds it at its socket.
//!
//! A unix stream socket, one call per connection: a frame with [`Call`], answered by a frame with [`Reply`]. A frame is the
//! length of its JSON as `u32` (little endian), the JSON, the length of its payload, the payload. Bounds: [`JSON_BYTES_MAX`],
//! [`PAYLOAD_BYTES_MAX`], [`STALL_MAX`]. Leases are deadlines on `CLOCK_MONOTONIC`, which all processes of a machine share.

mod address;
mod install;
mod isolation;
mod place;
mod server;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::place::Place;
use super::link_layer;
use super::procedure;
use super::process_identity::ProcessIdentity;
use crate::core::decision::ServiceAddress;
use crate::core::id::ServerName;

pub use server::run;

pub const VERSION: u32 = 1;
pub const JSON_BYTES_MAX: u32 = 1 << 20;
/// A procedure with its archive's overhead.
pub const PAYLOAD_BYTES_MAX: u32 = procedure::BYTES_MAX as u32 * 2;
/// Longest that either side takes to send what it has begun to send.
pub const STALL_MAX: Duration = Duration::from_secs(5);
/// How long an agent beside the daemon may take to start, and to end when it is killed.
const START: Duration = Duration::from_secs(5);
const END: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub version: u32,
    pub request: Request,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered by `Reply::Held`.
    Report,
    /// Adds the address to the interface and announces it, unless `until_ns` has passed.
    Take { address: ServiceAddress, until_ns: u64 },
    /// Lengthens the lease of an address that is held; never shortens it.
    Hold { address: ServiceAddress, until_ns: u64 },
    /// Whatever is held is taken away.
    Release,
    /// Installs the procedure in the payload. Answered by `Reply::Installed`.
    Install { target: ServerName, original: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// What is held now, and until when.
    Held(Option<(ServiceAddress, u64)>),
    /// The procedure is installed and its checks succeeded; what it printed.
    Installed { output: String },
    /// It was not done, or only in part. For people.
    Failed(String),
}

/// Where an agent works.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct AgentArgs {
    /// Which of its lives this is
    #[arg(long, value_enum)]
    pub stage: Stage,
    /// The interface for the address
    #[arg(long)]
    pub interface: Option<String>,
    /// The router that is used while the address is held
    #[arg(long)]
    pub gateway: Option<std::net::IpAddr>,
    /// The name of the guest
    #[arg(long, default_value = "host")]
    pub name: String,
    /// A folder that the guest must not see
    #[arg(long)]
    pub hide: Option<PathBuf>,
    /// The end of a virtual machine's network that is on this host; the interface is then the bridge that it leads to
    #[arg(long, requires = "mac")]
    pub gate: Option<String>,
    /// The hardware address of that virtual machine
    #[arg(long)]
    pub mac: Option<String>,
    /// Where files of procedures go in a guest without a file system of its own
    #[arg(long)]
    pub root: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Makes the namespaces of a guest, starts `Init` in them and ends
    Outer,
    /// The first process of a guest: makes its file system, starts `Guest`, reaps
    Init,
    /// The agent of a guest
    Guest,
    /// The agent beside a daemon
    Host,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Stage::Outer => "outer",
            Stage::Init => "init",
            Stage::Guest => "guest",
            Stage::Host => "host",
        }
    }
}

impl AgentArgs {
    /// An agent that holds an address on an interface of this host, or, with a gate, in a guest behind it.
    pub fn host(interface: Option<String>) -> Self {
        Self {
            stage: Stage::Host,
            interface,
            gateway: None,
            name: "host".into(),
            hide: None,
            gate: None,
            mac: None,
            root: None,
        }
    }

    fn place(&self) -> io::Result<Place> {
        let Some(gate) = &self.gate else {
            return Ok(Place::Interface { name: self.interface.clone(), gateway: self.gateway });
        };
        let mac = self.mac.as_deref().and_then(link_layer::read_mac);
        let (Some(bridge), Some(mac)) = (self.interface.clone(), mac) else {
            return Err(io::Error::other("a gate leads to an interface, and its guest has a hardware address"));
        };
        Ok(Place::Gate { gate: gate.clone(), bridge, mac })
    }

    /// The command that runs an agent of these arguments.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.args(["util", "agent", "--stage", self.stage.word(), "--name", &self.name]);
        let mut option = |name: &str, value: Option<&std::ffi::OsStr>| {
            if let Some(value) = value {
                command.arg(name).arg(value);
            }
        };
        let gateway = self.gateway.map(|gateway| gateway.to_string());
        option("--interface", self.interface.as_deref().map(AsRef::as_ref));
        option("--gateway", gateway.as_deref().map(AsRef::as_ref));
        option("--hide", self.hide.as_deref().map(Path::as_os_str));
        option("--gate", self.gate.as_deref().map(AsRef::as_ref));
        option("--mac", self.mac.as_deref().map(AsRef::as_ref));
        option("--root", self.root.as_deref().map(Path::as_os_str));
        command
    }
}

/// An agent that was started and has not begun to work: it ends if whoever starts it does.
pub struct StartingAgent {
    gate: UnixStream,
    pub identity: ProcessIdentity,
}

impl StartingAgent {
    /// Starts an agent that will listen at `socket`.
    ///
    /// # Errors
    /// It does not start, or does not say so within `patience`.
    pub fn start(program: &Path, socket: &Path, arguments: &AgentArgs, patience: Duration) -> io::Result<Self> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", socket.display()));
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
            _ => {}
        }
        // Listening from the beginning: no call has to be tried again.
        let listener = UnixListener::bind(socket).map_err(at)?;
        let (gate, theirs) = UnixStream::pair()?;
        gate.set_read_timeout(Some(patience))?;
        let mut command = arguments.command(program);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
        command.stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        // Not the daemon's own standard error: whoever reads that would wait for the agent to end.
        command.stderr(std::fs::File::create(socket.with_extension("log"))?);
        let mut child = command.spawn()?;
        drop(command);
        // The outer stage ends at once, the others live on; either way it is waited for.
        let name = format!("agent-{}", arguments.name);
        std::thread::Builder::new().name(name).spawn(move || child.wait())?;
        let told = read_line(&gate)?;
        let pid = told.strip_prefix("pid ").and_then(|pid| pid.parse().ok());
        let identity = pid.and_then(ProcessIdentity::of).ok_or_else(|| io::Error::other(told))?;
        Ok(Self { gate, identity })
    }

    /// Lets it work, and waits until it does.
    pub fn release(mut self) -> io::Result<ProcessIdentity> {
        self.gate.write_all(b"go\n")?;
        match read_line(&self.gate)?.as_str() {
            "ready" => Ok(self.identity),
            other => Err(io::Error::other(other.to_owned())),
        }
    }
}

/// Asks the agent at a socket.
///
/// # Errors
/// Nobody listens there, it does not answer within `patience`, or its answer is `Reply::Failed`.
pub fn call(socket: &Path, request: Request, payload: &[u8], patience: Duration) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(STALL_MAX))?;
    stream.set_read_timeout(Some(patience))?;
    write_frame(&mut stream, &Call { version: VERSION, request }, payload)?;
    match read_frame(&mut stream).map_err(no_answer)?.0 {
        Reply::Failed(why) => Err(io::Error::other(why)),
        reply => Ok(reply),
    }
}

/// Starts an agent beside the daemon, which a file beside its socket names.
pub fn start_known(program: &Path, socket: &Path, arguments: &AgentArgs) -> io::Result<()> {
    let agent = StartingAgent::start(program, socket, arguments, START)?;
    std::fs::write(socket.with_extension("pid"), agent.identity.to_string())?;
    agent.release().map(drop)
}

/// Kills the agent that `start_known` has started at this socket, if it is still there.
pub fn end_known(socket: &Path) -> io::Result<()> {
    let known = std::fs::read_to_string(socket.with_extension("pid"));
    let known = known.ok().and_then(|text| text.parse::<ProcessIdentity>().ok());
    known.map_or(Ok(()), |identity| identity.kill(END))
}

/// Tells people. On a full disk nobody hears it, and the agent has to go on.
fn log(words: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "p2pdb agent: {words}");
}

fn no_answer(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the agent does not answer in time"),
        io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the agent has ended"),
        _ => error,
    }
}

fn read_line(mut stream: impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 4096 {
        stream.read_exact(&mut byte).map_err(no_answer)?;
        if byte == *b"\n" {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn write_frame(stream: &mut impl Write, head: &impl Serialize, payload: &[u8]) -> io::Result<()> {
    let json = serde_json::to_vec(head).map_err(io::Error::other)?;
    let too_large = |_| io::Error::other("a frame is too large");
    let json_bytes = u32::try_from(json.len()).map_err(too_large)?;
    let payload_bytes = u32::try_from(payload.len()).map_err(too_large)?;
    let mut frame = Vec::with_capacity(json.len() + payload.len() + 8);
    frame.extend_from_slice(&json_bytes.to_le_bytes());
    frame.extend_from_slice(&json);
    frame.extend_from_slice(&payload_bytes.to_le_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame)
}

fn read_frame<T: for<'a> Deserialize<'a>>(stream: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let json = read_part(stream, JSON_BYTES_MAX)?;
    let payload = read_part(stream, PAYLOAD_BYTES_MAX)?;
    Ok((serde_json::from_slice(&json).map_err(io::Error::other)?, payload))
}

fn read_part(stream: &mut impl Read, bytes_max: u32) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > bytes_max {
        return Err(io::Error::other(format!("a part of a frame has {length} bytes; at most {bytes_max} are taken")));
    }
    let mut part = Vec::new();
    match stream.take(length.into()).read_to_end(&mut part)? {
        read if read == length as usize => Ok(part),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
