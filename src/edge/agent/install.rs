//! Installs a procedure in the guest that this process is in.
//!
//! Unpack to `run/p2pdb/procedure` → put the files in their places → `install.sh` → checks, again and again until each has
//! succeeded. One deadline over all. What they print is kept in bounds, the beginning and the end of it. When it
//! fails, every process that it started is killed.

use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, umask};

use crate::core::id::ServerName;
use crate::edge::procedure::{Procedure, SCRIPT};

/// Most of the beginning and of the end of the output that is kept, in bytes each.
const OUTPUT_BYTES: usize = 8 * 1024;
/// What a pipe holds: so much may still be in it when whoever printed it has ended.
const PIPE_BYTES: usize = 64 * 1024;
const CHECK_AGAIN: Duration = Duration::from_millis(50);

pub struct Installation<'a> {
    /// Where the guest's file system begins.
    pub root: &'a Path,
    /// Whether all processes but this one and its parent belong to the guest.
    pub isolated: bool,
    pub original: &'a str,
    pub target: &'a ServerName,
}

impl Installation<'_> {
    /// Installs; returns what was printed.
    ///
    /// # Errors
    /// What failed, with what was printed until then.
    pub fn run(&self, bundle: &[u8]) -> Result<String, String> {
        let procedure = Procedure::of_bundle(bundle).map_err(|error| error.to_string())?;
        // The daemon's is for its own files; services run as users of their own.
        umask(Mode::WGRP | Mode::WOTH);
        let deadline = Instant::now() + procedure.manifest.deadline();
        let folder = self.unpack(&procedure).map_err(|error| error.to_string())?;
        let mut output = Output::default();
        let mut script = self.shell(&folder);
        script.arg(SCRIPT);
        let done = self.run_until(script, SCRIPT, deadline, &mut output).and_then(|status| match status.success() {
            true => self.checks(&procedure, &folder, deadline, &mut output),
            false => Err(format!("{SCRIPT} ended with {status}")),
        });
        done.map(|()| output.text()).map_err(|why| {
            self.kill_all();
            format!("{why}\n{}", output.text()).trim_end().to_owned()
        })
    }

    fn unpack(&self, procedure: &Procedure) -> io::Result<PathBuf> {
        let folder = self.root.join("run/p2pdb/procedure");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        for (name, content) in &procedure.files {
            put(&folder.join(name), content, 0o600)?;
        }
        for file in &procedure.manifest.files {
            let target = self.root.join(file.target.strip_prefix("/").expect("targets are absolute"));
            put(&target, &procedure.files[&file.source], file.permissions().expect("modes were checked"))?;
        }
        Ok(folder)
    }

    fn checks(
        &self,
        procedure: &Procedure,
        folder: &Path,
        deadline: Instant,
        output: &mut Output,
    ) -> Result<(), String> {
        for check in &procedure.manifest.checks {
            let what = format!("the check '{}'", check.command);
            let mut before: Option<(ExitStatus, Output)> = None;
            loop {
                let mut shell = self.shell(folder);
                shell.arg("-c").arg(&check.command);
                let mut printed = Output::default();
                match self.run_until(shell, &what, deadline, &mut printed) {
                    Ok(status) if status.success() => break,
                    Ok(status) if Instant::now() + CHECK_AGAIN >= deadline => {
                        output.take(printed.text().as_bytes());
                        return Err(format!("{what} still ends with {status} when time is up"));
                    }
                    Ok(status) => {
                        before = Some((status, printed));
                        std::thread::sleep(CHECK_AGAIN);
                    }
                    Err(why) => {
                        let Some((status, mut printed)) = before else { return Err(why) };
                        // Time may have been up a moment after it began; what it said when it had some is worth more.
                        output.take(printed.text().as_bytes());
                        return Err(format!("{why}; before, it ended with {status}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn shell(&self, folder: &Path) -> Command {
        let root = if self.isolated { Path::new("") } else { self.root };
        let mut shell = Command::new("/bin/sh");
        shell.current_dir(folder).env_clear().stdin(Stdio::null()).process_group(0);
        shell.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        shell.env("P2PDB_TARGET", self.target.as_str()).env("P2PDB_ORIGINAL", self.original).env("P2PDB_ROOT", root);
        shell
    }

    /// Runs until it ends, or kills it at the deadline. What it has started may go on, and print.
    fn run_until(
        &self,
        mut command: Command,
        what: &str,
        deadline: Instant,
        output: &mut Output,
    ) -> Result<ExitStatus, String> {
        let told = |error: io::Error| format!("{what}: {error}");
        let (mut reader, writer) = io::pipe().map_err(told)?;
        let child = command.stdout(writer.try_clone().map_err(told)?).stderr(writer).spawn();
        drop(command);
        let mut child = child.map_err(told)?;
        let ended = wait(&mut child, &mut reader, deadline, output).map_err(told)?;
        match ended {
            Some(status) => {
                // Services keep the pipe: somebody has to read what they print for as long as they do.
                let drain = move || io::copy(&mut reader, &mut io::sink());
                std::thread::Builder::new().name("output".into()).spawn(drain).map_err(told)?;
                Ok(status)
            }
            None => {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                self.kill_all();
                let _ = child.wait();
                Err(format!("{what} was not done in time and was killed"))
            }
        }
    }

    fn kill_all(&self) {
        if self.isolated {
            // All that this process can see, but itself and the first one: nothing is outside of the guest.
            let _ = kill_everything();
        }
    }
}

#[allow(unsafe_code)]
fn kill_everything() -> io::Result<()> {
    // SAFETY: sends a signal, touches no memory.
    match unsafe { libc::kill(-1, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for the child, reading what it prints; `None` when time is up.
fn wait(
    child: &mut Child,
    reader: &mut PipeReader,
    deadline: Instant,
    output: &mut Output,
) -> io::Result<Option<ExitStatus>> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [
            PollFd::new(&handle, PollFlags::IN),
            PollFd::from_borrowed_fd(reader.as_fd(), if open { PollFlags::IN } else { PollFlags::empty() }),
        ];
        let ready = poll(&mut polled, Some(&left))?;
        let (ended, readable) = (!polled[0].revents().is_empty(), open && !polled[1].revents().is_empty());
        if ready == 0 {
            return Ok(None);
        }
        // What was printed before the end is read before the end counts; what services print meanwhile must not hold it up.
        if readable && (!ended || output.since_end < PIPE_BYTES) {
            let mut part = [0; 4096];
            let bytes = reader.read(&mut part)?;
            open = bytes > 0;
            output.take(&part[..bytes]);
            output.since_end += if ended { bytes } else { 0 };
        } else if ended {
            return child.wait().map(Some);
        }
        if Instant::now() >= deadline && !ended {
            return Ok(None);
        }
    }
}

/// The beginning and the end of what was printed.
#[derive(Default)]
struct Output {
    head: Vec<u8>,
    tail: Vec<u8>,
    dropped: usize,
    since_end: usize,
}

impl Output {
    fn take(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        self.tail.extend_from_slice(&bytes[room..]);
        if self.tail.len() > 2 * OUTPUT_BYTES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let excess = self.tail.len().saturating_sub(OUTPUT_BYTES);
        self.tail.drain(..excess);
        self.dropped += excess;
    }

    fn text(&mut self) -> String {
        self.cut();
        let (head, tail) = (String::from_utf8_lossy(&self.head), String::from_utf8_lossy(&self.tail));
        match self.dropped {
            0 => format!("{head}{tail}"),
            dropped => format!("{head}\n[… {dropped} bytes …]\n{tail}"),
        }
    }
}

fn put(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(at)?;
    let opened = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    opened.and_then(|mut file| io::Write::write_all(&mut file, content)).map_err(at)?;
    // A file that was there has kept its mode, and the umask may have taken bits away.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at)
}
