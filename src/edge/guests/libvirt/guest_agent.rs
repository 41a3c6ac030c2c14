//! Running a script in a guest: by the QEMU guest agent, or by the installer's channel where the agent is not there.
//!
//! Neither needs a network. The agent takes commands in JSON (QEMU guest agent protocol); the script is its `guest-exec`, the
//! procedure its standard input, or a file where it is large: the agent breaks on messages of a megabyte. The installer reads one line, `NUMBER
//! SCRIPT`, and answers one, `exit NUMBER CODE OUTPUT`, script and output in base64 (`tools/guest/run`). The number is new each time: an
//! answer that nobody waited for must not be taken for that of another script.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};

use super::connection::{Connection, LibvirtError};
use crate::edge::certificate::fill_random;
use crate::edge::guests::machine::Failed;

const WHAT: &str = "asking the guest agent";
/// What it is used for.
const NEEDED: [&str; 5] =
    ["guest-exec", "guest-exec-status", "guest-file-open", "guest-file-write", "guest-file-close"];
/// Most of an input that goes along with the command.
const INLINE_BYTES: usize = 32 * 1024;
/// Of a file, in one message.
const PART_BYTES: usize = 48 * 1024;
/// Where a large input lies in the guest.
const INPUT_FILE: &str = "/run/p2pdb-input";
/// One answer of the agent.
const ANSWER: Duration = Duration::from_secs(5);
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_LAST: Duration = Duration::from_millis(100);
/// Most of what the installer may answer.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// How a script of a guest ended.
#[derive(Debug)]
pub struct Ran {
    pub status: i64,
    pub output: String,
}

/// Whether the agent answers within `patience`.
///
/// # Errors
/// Why it does not.
pub fn ping(connection: &mut Connection, uuid: &str, patience: Duration) -> Result<(), LibvirtError> {
    command(connection, uuid, "guest-ping", json!({}), patience).map(drop)
}

/// Whether the agent answers within `patience` and may do what is asked of it here: distributions switch some of it off.
///
/// # Errors
/// Why not.
pub fn may_run(connection: &mut Connection, uuid: &str, patience: Duration) -> Result<(), LibvirtError> {
    let info = command(connection, uuid, "guest-info", json!({}), patience)?;
    let is_enabled = |name: &str| {
        let commands = info["supported_commands"].as_array().into_iter().flatten();
        commands.into_iter().any(|command| command["name"] == name && command["enabled"] == true)
    };
    match NEEDED.iter().find(|name| !is_enabled(name)) {
        None => Ok(()),
        Some(name) => Err(LibvirtError::Failed {
            what: WHAT,
            why: format!(
                "it may not do {name}; allow that in the guest (/etc/sysconfig/qemu-ga, /etc/qemu/qemu-ga.conf)"
            ),
        }),
    }
}

/// Runs a script for `/bin/sh` in the guest; `input` is its standard input.
///
/// # Errors
/// The agent is not there or breaks, or the script is not done within `patience`.
pub fn run(
    connection: &mut Connection,
    uuid: &str,
    script: &str,
    input: &[u8],
    patience: Duration,
) -> Result<Ran, Failed> {
    let deadline = Instant::now() + patience;
    let told = |error: LibvirtError| format!("the guest agent: {error}");
    let mut arguments = json!({ "path": "/bin/sh", "capture-output": true });
    if input.len() <= INLINE_BYTES {
        arguments["arg"] = json!(["-c", script]);
        arguments["input-data"] = json!(BASE64.encode(input));
    } else {
        write_file(connection, uuid, INPUT_FILE, input).map_err(told)?;
        arguments["arg"] = json!(["-c", format!("exec <{INPUT_FILE}; rm -f {INPUT_FILE}\n{script}")]);
    }
    let begun = command(connection, uuid, "guest-exec", arguments, ANSWER).map_err(told)?;
    let Some(pid) = begun["pid"].as_i64() else { return Err(format!("the guest agent answered {begun}")) };
    let mut wait = POLL_FIRST;
    loop {
        let state = command(connection, uuid, "guest-exec-status", json!({ "pid": pid }), ANSWER).map_err(told)?;
        if state["exited"] == json!(true) {
            let text = |name: &str| {
                let bytes = BASE64.decode(state[name].as_str().unwrap_or_default()).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            let output = text("out-data") + &text("err-data");
            // Ended by a signal: there is no exit code.
            let status = state["exitcode"].as_i64().unwrap_or(-1);
            return Ok(Ran { status, output });
        }
        if Instant::now() >= deadline {
            return Err("it was not done in time".into());
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(POLL_LAST);
    }
}

fn write_file(connection: &mut Connection, uuid: &str, path: &str, content: &[u8]) -> Result<(), LibvirtError> {
    let opened = command(connection, uuid, "guest-file-open", json!({ "path": path, "mode": "w" }), ANSWER)?;
    for part in content.chunks(PART_BYTES) {
        let arguments = json!({ "handle": opened, "buf-b64": BASE64.encode(part) });
        command(connection, uuid, "guest-file-write", arguments, ANSWER)?;
    }
    command(connection, uuid, "guest-file-close", json!({ "handle": opened }), ANSWER).map(drop)
}

/// One command of the guest agent; what it returns.
fn command(
    connection: &mut Connection,
    uuid: &str,
    name: &str,
    arguments: Value,
    patience: Duration,
) -> Result<Value, LibvirtError> {
    let text = json!({ "execute": name, "arguments": arguments }).to_string();
    // libvirt counts in seconds; it is given the next longer ones, so that it is the one that gives up.
    let seconds = patience.as_secs().max(1) as i32;
    let answer = connection.on_domain(uuid, WHAT, Duration::from_secs(seconds as u64 + 2), move |domain| {
        domain.qemu_agent_command(&text, seconds, 0)
    })?;
    let answer: Value =
        serde_json::from_str(&answer).map_err(|error| LibvirtError::Failed { what: WHAT, why: error.to_string() })?;
    Ok(answer["return"].clone())
}

/// Runs a script by the installer's channel, whose end on the host is this socket; the script brings its input along.
///
/// # Errors
/// Nobody answers there, or not within `patience`.
pub fn run_by_channel(socket: &Path, script: &str, patience: Duration) -> Result<Ran, Failed> {
    ask_installer(socket, script, patience).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the installer's channel: no answer in time".into(),
        _ => format!("the installer's channel: {error}"),
    })
}

fn ask_installer(socket: &Path, script: &str, patience: Duration) -> io::Result<Ran> {
    let deadline = Instant::now() + patience;
    let mut number = [0; 8];
    fill_random(&mut number).map_err(io::Error::other)?;
    let number = u64::from_ne_bytes(number).to_string();
    let mut channel = Channel::open(socket, deadline)?;
    // An empty line ends whatever somebody has left half said.
    channel.write_all(format!("\n{number} {}\n", BASE64.encode(script)).as_bytes())?;
    let mut answers = BufReader::new(channel);
    loop {
        let mut line = String::new();
        if Read::take(&mut answers, LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Err(io::Error::other("it was closed"));
        }
        if let ["exit", whose, status, output @ ..] = &line.split_whitespace().collect::<Vec<_>>()[..]
            && *whose == number
        {
            let status = status.parse().map_err(io::Error::other)?;
            let output = BASE64.decode(output.first().unwrap_or(&"")).map_err(io::Error::other)?;
            return Ok(Ran { status, output: String::from_utf8_lossy(&output).into_owned() });
        }
    }
}

/// The installer's channel until a deadline, however slowly the other end takes and gives.
struct Channel {
    stream: UnixStream,
    deadline: Instant,
}

impl Channel {
    /// A machine that stands still takes nobody, and its socket lets whoever comes wait.
    fn open(path: &Path, deadline: Instant) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            match connect(&socket, &address) {
                Ok(()) => {
                    let stream = UnixStream::from(socket);
                    stream.set_nonblocking(false)?;
                    return Ok(Self { stream, deadline });
                }
                Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(POLL_FIRST),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn not_in_time(socket: &Path) {
        let begun = Instant::now();
        let failed = run_by_channel(socket, ":", PATIENCE).map(|ran| ran.status).unwrap_err();
        assert!(failed.contains("no answer in time"), "{failed}");
        assert!(begun.elapsed() < 20 * PATIENCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_channel_that_takes_nobody_is_waited_for_no_longer_than_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("installer.sock");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        not_in_time(&path);
    }

    #[test]
    fn an_answer_that_comes_in_drops_is_waited_for_no_longer_than_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("installer.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Until nobody reads any more; far longer than anybody should.
            for _ in 0..500 {
                std::thread::sleep(Duration::from_millis(20));
                if stream.write_all(b".").is_err() {
                    return;
                }
            }
        });
        not_in_time(&path);
        guest.join().unwrap();
    }
}
