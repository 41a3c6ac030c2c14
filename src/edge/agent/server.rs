//! The process of an agent, in its stages.
//!
//! `Outer` → `Init` (waits for the word, so that nobody runs whom nobody knows) → `Guest`; or `Host` alone. Standard input is the
//! socket on which to listen, standard output the link to whoever starts it: `pid N` goes out, `go` comes in, `ready` goes out.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, set_child_subreaper, wait};

use super::address::AddressLease;
use super::install::Installation;
use super::{AgentArgs, Call, JSON_BYTES_MAX, Reply, Request, STALL_MAX, Stage, VERSION, isolation};
use super::{log, read_frame, read_line, write_frame};

const MYSELF: &str = "/proc/self/exe";
/// An agent beside a daemon that holds nothing and is asked nothing for this long has no purpose any more.
const IDLE: Duration = Duration::from_secs(10);
/// How long it waits when the host is short of something.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Runs a stage until its end; the caller is the whole program.
///
/// # Errors
/// What could not be done; whoever started it has been told.
pub fn run(arguments: &AgentArgs) -> io::Result<()> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let gate = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let outcome = match arguments.stage {
        Stage::Outer => outer(arguments, &gate),
        Stage::Init => init(arguments, &gate),
        Stage::Guest | Stage::Host => agent(arguments, &listener, &gate),
    };
    if let Err(error) = &outcome {
        let _ = writeln!(&gate, "{}", error.to_string().replace('\n', " "));
    }
    outcome
}

fn outer(arguments: &AgentArgs, mut gate: &UnixStream) -> io::Result<()> {
    let isolated = arguments.root.is_none();
    if isolated {
        isolation::leave_host()?;
    }
    let child = next(arguments, Stage::Init).spawn()?;
    writeln!(gate, "pid {}", child.id())
}

fn init(arguments: &AgentArgs, gate: &UnixStream) -> io::Result<()> {
    isolation::own_session()?;
    if read_line(gate)? != "go" {
        return Err(io::Error::other("nobody said go"));
    }
    if arguments.root.is_none() {
        isolation::enter_file_system(&arguments.name, arguments.hide.as_deref())?;
        isolation::set_up_network(arguments.interface.as_deref())?;
    } else {
        set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    let agent = next(arguments, Stage::Guest).spawn()?;
    let agent = Pid::from_child(&agent);
    close_gate()?;
    // Orphans of the guest end up here.
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, _))) if ended == agent => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn next(arguments: &AgentArgs, stage: Stage) -> Command {
    let mut command = AgentArgs { stage, ..arguments.clone() }.command(Path::new(MYSELF));
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    command
}

/// Whoever started this must not wait for it any more.
fn close_gate() -> io::Result<()> {
    let nothing = OwnedFd::from(std::fs::File::options().write(true).open("/dev/null")?);
    Ok(rustix::stdio::dup2_stdout(nothing)?)
}

fn agent(arguments: &AgentArgs, listener: &UnixListener, gate: &UnixStream) -> io::Result<()> {
    if arguments.stage == Stage::Host {
        isolation::own_session()?;
        writeln!(&mut &*gate, "pid {}", std::process::id())?;
        if read_line(gate)? != "go" {
            return Err(io::Error::other("nobody said go"));
        }
    }
    let lease = AddressLease::start(arguments.place()?)?;
    writeln!(&mut &*gate, "ready")?;
    close_gate()?;
    gate.shutdown(Shutdown::Both)?;
    loop {
        match next_call(arguments, listener) {
            // A caller that goes away harms nobody else.
            Ok(Some(mut stream)) => answer(arguments, &lease, &mut stream)
                .unwrap_or_else(|error| log(format_args!("a call was cut off: {error}"))),
            Ok(None) if lease.held().is_none() => return Ok(()),
            Ok(None) => {}
            // Who holds an address stays.
            Err(error) => {
                log(format_args!("no call can be taken: {error}"));
                std::thread::sleep(SHORTAGE);
            }
        }
    }
}

/// Waits for a call; beside a daemon not for ever.
fn next_call(arguments: &AgentArgs, listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    let patience = Timespec::try_from(IDLE).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    if arguments.stage == Stage::Host && poll(&mut polled, Some(&patience))? == 0 {
        return Ok(None);
    }
    listener.accept().map(|(stream, _)| Some(stream))
}

fn answer(arguments: &AgentArgs, lease: &AddressLease, stream: &mut UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(STALL_MAX))?;
    stream.set_write_timeout(Some(STALL_MAX))?;
    let (Call { version, request }, payload) = read_frame(stream)?;
    let reply = match version {
        VERSION => carry_out(arguments, lease, request, &payload),
        _ => Reply::Failed(format!("this agent speaks version {VERSION}, not {version}; reset it")),
    };
    write_frame(stream, &reply, &[])
}

fn carry_out(arguments: &AgentArgs, lease: &AddressLease, request: Request, payload: &[u8]) -> Reply {
    let done = match request {
        Request::Report => Ok(()),
        Request::Take { address, until_ns } => lease.take(address, until_ns),
        Request::Hold { address, until_ns } => lease.hold(address, until_ns),
        Request::Release => lease.release(),
        Request::Install { .. } if arguments.stage != Stage::Guest => {
            return Reply::Failed("procedures are installed in guests only".into());
        }
        Request::Install { target, original } => {
            let installation = Installation {
                root: arguments.root.as_deref().unwrap_or(Path::new("/")),
                isolated: arguments.root.is_none(),
                original: &original,
                target: &target,
            };
            return match installation.run(payload) {
                Ok(output) => Reply::Installed { output },
                Err(why) => Reply::Failed(why.chars().take(JSON_BYTES_MAX as usize / 8).collect()),
            };
        }
    };
    match done {
        Ok(()) => Reply::Held(lease.held()),
        Err(error) => Reply::Failed(error.to_string()),
    }
}
