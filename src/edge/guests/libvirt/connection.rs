//! One connection to libvirt and the one thread that uses it, each call with a deadline.
//!
//! ```text
//! closed --call--> open --the call fails and the connection is dead--> closed
//!                   |---the call is late--> given up: its thread ends when libvirt answers; for a while nobody asks
//! ```
//! libvirt's calls block, some for ever when its daemon is frozen. So whoever calls waits for the thread, not for libvirt.
//! Invariant: at most `GIVEN_UP_MAX` threads wait for an answer that nobody waits for any more; more is not asked before one has come.
//! Before each call the connection is tried with a question that costs a fraction of a millisecond: after a restart of libvirtd the
//! old one only says so when it is used.

use std::ffi::CString;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error as VirtError, ErrorNumber};

/// After a call that was late nobody is kept waiting by another one for this long.
const GIVEN_UP: Duration = Duration::from_secs(5);
/// A call may hang alone, so others are tried beside it; where so many hang, so would the next, and each costs a thread and a socket.
const GIVEN_UP_MAX: usize = 3;
const OPEN: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum LibvirtError {
    #[error("libvirt at {uri} cannot be reached: {why}; is libvirtd running, and may this user use it?")]
    Unreachable { uri: String, why: String },
    #[error("libvirt at {uri} does not answer: {what} was not done within {patience_ms} ms")]
    Late { uri: String, what: &'static str, patience_ms: u128 },
    #[error(
        "libvirt at {uri} does not answer: {GIVEN_UP_MAX} calls have not come back, and it is asked nothing more until one has; \
         restart libvirtd, which virtual machines outlive"
    )]
    Stuck { uri: String },
    #[error("there is no such virtual machine")]
    NoDomain,
    #[error("{what}: {why}")]
    Failed { what: &'static str, why: String },
}

type Task = Box<dyn FnOnce(&mut Option<Connect>) + Send>;

struct Thread {
    tasks: SyncSender<Task>,
    handle: JoinHandle<()>,
}

pub struct Connection {
    uri: String,
    thread: Option<Thread>,
    given_up_until: Option<Instant>,
    /// Threads whose call was late, and that have not ended since.
    given_up: Vec<JoinHandle<()>>,
}

impl Connection {
    /// Connects when it is first used.
    pub fn new(uri: &str) -> Self {
        // Otherwise libvirt writes every error to standard error, also those that are expected.
        virt::error::clear_error_callback();
        Self { uri: uri.to_owned(), thread: None, given_up_until: None, given_up: Vec::new() }
    }

    /// Does something with the connection; `what` names it for people.
    ///
    /// # Errors
    /// libvirt is not there, says no, or is not done within `patience`: then it may still be done later.
    pub fn call<T: Send + 'static>(
        &mut self,
        what: &'static str,
        patience: Duration,
        work: impl FnOnce(&Connect) -> Result<T, VirtError> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let late =
            |patience: Duration| LibvirtError::Late { uri: self.uri.clone(), what, patience_ms: patience.as_millis() };
        if self.given_up_until.is_some_and(|until| Instant::now() < until) {
            return Err(late(Duration::ZERO));
        }
        self.given_up.retain(|thread| !thread.is_finished());
        if self.given_up.len() >= GIVEN_UP_MAX {
            return Err(LibvirtError::Stuck { uri: self.uri.clone() });
        }
        let (answer, answered) = sync_channel(1);
        let uri = self.uri.clone();
        let task: Task = Box::new(move |connection| {
            // Nobody waits for it any more: fine.
            let _ = answer.send(carry_out(&uri, connection, what, work));
        });
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => start_thread()
                .map_err(|error| LibvirtError::Unreachable { uri: self.uri.clone(), why: error.to_string() })?,
        };
        let sent = thread.tasks.send(task).is_ok();
        match answered.recv_timeout(patience) {
            Ok(outcome) => {
                self.given_up_until = None;
                self.thread = Some(thread);
                outcome
            }
            Err(RecvTimeoutError::Timeout) => {
                self.given_up_until = Some(Instant::now() + GIVEN_UP);
                self.given_up.push(thread.handle);
                Err(late(patience))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let why = if sent { "the call was dropped" } else { "its thread has ended" };
                Err(LibvirtError::Failed { what, why: why.into() })
            }
        }
    }

    /// Does something with one virtual machine.
    ///
    /// # Errors
    /// As `call`; `NoDomain` when libvirt does not know it.
    pub fn on_domain<T: Send + 'static>(
        &mut self,
        uuid: &str,
        what: &'static str,
        patience: Duration,
        work: impl FnOnce(&Domain) -> Result<T, VirtError> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let uuid = uuid.to_owned();
        self.call(what, patience, move |connection| work(&Domain::lookup_by_uuid_string(connection, &uuid)?))
    }
}

fn start_thread() -> std::io::Result<Thread> {
    let (tasks, inbox) = sync_channel(1);
    let handle = std::thread::Builder::new().name("libvirt".into()).spawn(move || work_through(&inbox))?;
    Ok(Thread { tasks, handle })
}

fn work_through(inbox: &Receiver<Task>) {
    let mut connection = None;
    while let Ok(task) = inbox.recv() {
        task(&mut connection);
    }
    close(&mut connection);
}

fn close(connection: &mut Option<Connect>) {
    if let Some(mut held) = connection.take() {
        // One that is dead cannot be closed better.
        let _ = held.close();
    }
}

fn carry_out<T>(
    uri: &str,
    connection: &mut Option<Connect>,
    what: &'static str,
    work: impl FnOnce(&Connect) -> Result<T, VirtError>,
) -> Result<T, LibvirtError> {
    if connection.as_ref().is_some_and(|held| held.get_lib_version().is_err()) {
        close(connection);
    }
    let held = match connection {
        Some(held) => held,
        None => {
            let opened = Connect::open(Some(uri))
                .map_err(|error| LibvirtError::Unreachable { uri: uri.to_owned(), why: error.message().to_owned() })?;
            connection.insert(opened)
        }
    };
    let error = match work(held) {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    if !held.is_alive().unwrap_or(false) {
        close(connection);
        return Err(LibvirtError::Unreachable { uri: uri.to_owned(), why: error.message().to_owned() });
    }
    Err(match error.code() {
        ErrorNumber::NoDomain => LibvirtError::NoDomain,
        _ => LibvirtError::Failed { what, why: error.message().trim().to_owned() },
    })
}

/// Writes a domain's memory to a file and ends it. The crate has no wrapper for it.
#[allow(unsafe_code)]
pub fn save(domain: &Domain, path: &str) -> Result<(), VirtError> {
    let path = CString::new(path).map_err(|_| VirtError::last_error())?;
    // SAFETY: both pointers are valid for the call, which keeps neither.
    match unsafe { virt_sys::virDomainSave(domain.as_ptr(), path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(VirtError::last_error()),
    }
}

/// What libvirt says of itself, for people: the hypervisor and its URI.
///
/// # Errors
/// It cannot be reached.
pub fn describe(uri: &str) -> Result<String, LibvirtError> {
    Connection::new(uri).call("asking what is there", OPEN, |connection| {
        let version = connection.get_lib_version()?;
        let (major, minor, release) = (version / 1_000_000, version / 1000 % 1000, version % 1000);
        Ok(format!("libvirt {major}.{minor}.{release}, {}", connection.get_type()?))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_frozen_libvirtd_costs_a_few_threads_and_is_asked_again_once_one_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("frozen.sock");
        // Whoever connects waits: nobody accepts, nobody answers.
        let frozen = UnixListener::bind(&socket).unwrap();
        let mut connection = Connection::new(&format!("qemu+unix:///system?socket={}", socket.display()));
        let ask = |connection: &mut Connection| {
            // As if enough time had passed.
            connection.given_up_until = None;
            connection.call("asking", Duration::from_millis(100), Connect::get_lib_version).unwrap_err()
        };
        for _ in 0..GIVEN_UP_MAX {
            assert!(matches!(ask(&mut connection), LibvirtError::Late { .. }));
        }
        for _ in 0..10 {
            assert!(matches!(ask(&mut connection), LibvirtError::Stuck { .. }));
        }
        assert_eq!(connection.given_up.len(), GIVEN_UP_MAX);
        drop(frozen);
        let begun = Instant::now();
        while !matches!(ask(&mut connection), LibvirtError::Unreachable { .. }) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no thread has come back");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
