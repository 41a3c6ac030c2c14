//! The client's side of the control socket: blocking, one connection, as many requests in flight as one likes.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::protocol::{OutgoingCall, Reply, Request, Response};
use super::{LINE_BYTES_MAX, VERSION, socket_path};

/// The directory that the unit of the package starts the daemon of.
const PACKAGED_DIRECTORY: &str = "/var/lib/p2pdb";
/// Where that unit may be.
const UNITS: [&str; 3] =
    ["/etc/systemd/system/p2pdb.service", "/lib/systemd/system/p2pdb.service", "/usr/lib/systemd/system/p2pdb.service"];

/// Why the daemon cannot be spoken to.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no daemon answers at {path}; start it with: {}", start_command(directory, has_unit(directory)))]
    NoDaemon { path: PathBuf, directory: PathBuf },
    #[error("no server lives in {}; make one with p2pdb init, or p2pdb join", .directory.display())]
    NoServer { directory: PathBuf },
    #[error("{path}: this user may not open the control socket; ask as root, or as a member of its group")]
    Forbidden { path: PathBuf },
    #[error("the daemon at {path} has not answered within {waited_s} s; it may be stopped, or its disk may hang")]
    Silent { path: PathBuf, waited_s: u64 },
    #[error("the daemon at {path} has closed the connection; look into its log")]
    Gone { path: PathBuf },
    #[error("the daemon at {path} cannot be spoken to: {source}")]
    Broken { path: PathBuf, source: io::Error },
    #[error("what the daemon at {path} answers is not understood: {problem}; is it of another version?")]
    Strange { path: PathBuf, problem: String },
}

/// A connection to the daemon of one directory.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    path: PathBuf,
    next_id: u64,
    /// Replies to other requests that came while one was waited for.
    early: VecDeque<Reply>,
    line: Vec<u8>,
    outbound: Vec<u8>,
    timeout: Option<Duration>,
}

impl Client {
    /// Connects to the daemon of `directory`.
    ///
    /// # Errors
    /// None answers there, or this user may not speak to it.
    pub fn connect(directory: &Path) -> Result<Self, ClientError> {
        let path = socket_path(directory);
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(source) => {
                return Err(match source.kind() {
                    io::ErrorKind::NotFound if is_empty(directory) => {
                        ClientError::NoServer { directory: directory.into() }
                    }
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ClientError::NoDaemon { path, directory: directory.into() }
                    }
                    io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
                    _ => ClientError::Broken { path, source },
                });
            }
        };
        Ok(Self {
            reader: BufReader::with_capacity(1 << 16, stream),
            path,
            next_id: 0,
            early: VecDeque::new(),
            line: Vec::new(),
            outbound: Vec::new(),
            timeout: None,
        })
    }

    /// How long `receive` and `call` wait for an answer; `None`: for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        if self.timeout != timeout {
            // Zero would mean for ever.
            let timeout = timeout.map(|timeout| timeout.max(Duration::from_micros(1)));
            self.reader.get_ref().set_read_timeout(timeout).map_err(|source| self.broken(source))?;
            self.timeout = timeout;
        }
        Ok(())
    }

    /// Asks, and waits for the answer; of a stream, the first one.
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        let id = self.send(request)?;
        loop {
            let reply = self.read_reply()?;
            if reply.id == id {
                return Ok(reply.response);
            }
            self.early.push_back(reply);
        }
    }

    /// Asks, and waits for all answers of a stream that ends by itself.
    pub fn call_all(&mut self, request: &Request) -> Result<Vec<Response>, ClientError> {
        let id = self.send(request)?;
        let mut responses = Vec::new();
        loop {
            let reply = self.read_reply()?;
            if reply.id != id {
                self.early.push_back(reply);
                continue;
            }
            responses.push(reply.response);
            if !reply.more {
                return Ok(responses);
            }
        }
    }

    /// Asks without waiting. Returns the id of the reply.
    pub fn send(&mut self, request: &Request) -> Result<u64, ClientError> {
        let id = self.queue(request)?;
        self.flush()?;
        Ok(id)
    }

    /// Puts a request in line, to be sent by `flush`.
    pub fn queue(&mut self, request: &Request) -> Result<u64, ClientError> {
        self.next_id += 1;
        let call = OutgoingCall { version: VERSION, id: self.next_id, request };
        let start = self.outbound.len();
        serde_json::to_writer(&mut self.outbound, &call).map_err(|error| self.broken(error.into()))?;
        if self.outbound.len() - start > LINE_BYTES_MAX {
            self.outbound.truncate(start);
            let problem = format!("the request is longer than {LINE_BYTES_MAX} bytes");
            return Err(self.broken(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        self.outbound.push(b'\n');
        Ok(self.next_id)
    }

    /// Sends what is in line.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let sent = self.reader.get_ref().write_all(&self.outbound);
        self.outbound.clear();
        sent.map_err(|source| self.broken(source))
    }

    /// The next reply, whichever request it is for.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        match self.early.pop_front() {
            Some(reply) => Ok(reply),
            None => self.read_reply(),
        }
    }

    /// Whether `receive` would answer at once, without asking the system.
    pub fn has_reply(&self) -> bool {
        !self.early.is_empty() || self.reader.buffer().contains(&b'\n')
    }

    fn read_reply(&mut self) -> Result<Reply, ClientError> {
        // What was read of a line before a timeout stays in `line`.
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => {}
            Ok(_) => return Err(ClientError::Gone { path: self.path.clone() }),
            Err(source) => return Err(self.broken(source)),
        }
        let reply = serde_json::from_slice(&self.line)
            .map_err(|error| ClientError::Strange { path: self.path.clone(), problem: error.to_string() });
        self.line.clear();
        reply
    }

    fn broken(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Silent { path, waited_s: self.timeout.map_or(0, |timeout| timeout.as_secs()) }
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Gone { path },
            _ => ClientError::Broken { path, source },
        }
    }
}

/// Whether it is certain that nobody has made a server there.
fn is_empty(directory: &Path) -> bool {
    matches!(directory.join("p2pdb.toml").try_exists(), Ok(false))
}

/// Whether a unit of systemd is there for the daemon of this directory.
pub fn has_unit(directory: &Path) -> bool {
    directory == Path::new(PACKAGED_DIRECTORY)
        && Path::new("/run/systemd/system").exists()
        && UNITS.iter().any(|unit| Path::new(unit).exists())
}

fn start_command(directory: &Path, has_unit: bool) -> String {
    match has_unit {
        true => "systemctl start p2pdb".into(),
        false => format!("p2pdb daemon --dir {}", directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_of_the_package_is_started_by_its_unit() {
        assert_eq!(start_command(Path::new(PACKAGED_DIRECTORY), true), "systemctl start p2pdb");
        assert_eq!(start_command(Path::new("/srv/S1"), false), "p2pdb daemon --dir /srv/S1");
        assert!(!has_unit(Path::new("/srv/S1")));
        let nowhere = tempfile::tempdir().unwrap();
        let told = Client::connect(nowhere.path()).unwrap_err().to_string();
        assert!(told.contains("p2pdb init, or p2pdb join"), "{told}");
    }
}
