//! Which process is meant: a process id alone comes to mean another process, with its start time it does not.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// One process of this machine, since its last start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessIdentity {
    pub pid: i32,
    /// When it was started, in clock ticks since the machine was (proc(5), field 22 of `stat`).
    pub started: u64,
}

impl ProcessIdentity {
    /// The process that has this id now; a process that has ended and was not waited for counts as none.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        (stat.state != 'Z').then_some(Self { pid, started: stat.started })
    }

    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Whether it is stopped by a signal; a process that is gone is not.
    pub fn is_stopped(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.started == self.started && stat.state == 'T')
    }

    /// Sends a signal to it and its process group, if it is still there.
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        if !self.is_alive() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"));
        }
        Ok(kill_process_group(self.rustix_pid()?, signal)?)
    }

    /// Kills it and waits until it is gone; one that is gone already is fine.
    ///
    /// # Errors
    /// It is still there after `patience`.
    pub fn kill(&self, patience: Duration) -> io::Result<()> {
        let Some(handle) = self.handle()? else { return Ok(()) };
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut polled, Some(&patience))? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} does not end", self.pid))),
            _ => Ok(()),
        }
    }

    /// Waits until it is stopped.
    ///
    /// # Errors
    /// It is not after `patience`, or it has ended.
    pub fn wait_stopped(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        while !self.is_stopped() {
            if !self.is_alive() {
                return Err(io::Error::other("the process has ended"));
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} does not stop", self.pid)));
            }
            // Nothing tells of the stop of a process that is not a child.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// A handle that stays its own, whatever its number comes to mean.
    fn handle(&self) -> io::Result<Option<OwnedFd>> {
        match pidfd_open(self.rustix_pid()?, PidfdFlags::empty()) {
            Ok(handle) => Ok(self.is_alive().then_some(handle)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn rustix_pid(&self) -> io::Result<Pid> {
        Pid::from_raw(self.pid).filter(|pid| !pid.is_init()).ok_or_else(|| io::Error::other("no process id of a guest"))
    }
}

impl fmt::Display for ProcessIdentity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.pid, self.started)
    }
}

impl FromStr for ProcessIdentity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(' ').and_then(|(pid, started)| {
            Some(Self { pid: pid.parse().ok().filter(|pid| *pid > 1)?, started: started.parse().ok()? })
        });
        parsed.ok_or_else(|| format!("'{text}' names no process"))
    }
}

struct Stat {
    state: char,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses and may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let state = fields.next()?.chars().next()?;
        Some(Self { state, started: fields.nth(18)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_until_it_ends() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id() as i32).unwrap();
        assert_eq!(identity.to_string().parse(), Ok(identity));
        assert!(identity.is_alive() && !identity.is_stopped());
        assert!(!ProcessIdentity { started: identity.started + 1, ..identity }.is_alive());
        identity.kill(Duration::from_secs(5)).unwrap();
        assert!(!identity.is_alive());
        child.wait().unwrap();
        identity.kill(Duration::from_secs(5)).unwrap();
    }
}
