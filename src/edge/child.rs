//! A program of the administrator, run to its end: in a process group of its own, all of which is killed when nobody waits for it
//! any more; the beginning and the end of its output kept. What goes on when it has ended was left there on purpose, a service as a rule:
//! it is neither waited for nor killed.

use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

/// How much of the beginning and of the end of each output is kept, in bytes; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 1024;
/// Longest line that is told, in characters.
const LINE_CHARS_MAX: usize = 120;
/// How long the output is read on after the end of the program, while what it has left behind keeps it open.
const LAST_WORDS_MAX: Duration = Duration::from_millis(100);

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    out: Output,
    err: Output,
}

/// What a program has written to one of its outputs.
#[derive(Debug, Default)]
struct Output {
    beginning: Vec<u8>,
    /// The last bytes, those of the beginning too if there are no more.
    end: Vec<u8>,
}

impl Ended {
    /// The first line that it said, on standard error before standard output.
    pub fn first_line(&self) -> String {
        let lines = [&self.err, &self.out].map(|output| {
            let text = String::from_utf8_lossy(&output.beginning);
            text.lines().next().map(line_of).unwrap_or_default()
        });
        lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default()
    }

    /// The last line that says anything, likewise.
    pub fn last_line(&self) -> String {
        let lines = [&self.err, &self.out].map(|output| {
            let text = String::from_utf8_lossy(&output.end);
            text.lines().rev().map(line_of).find(|line| !line.is_empty()).unwrap_or_default()
        });
        lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default()
    }

    /// The exit code, or the signal that ended it, in words.
    pub fn ending(&self) -> String {
        self.status.code().map_or_else(|| self.status.to_string(), |code| code.to_string())
    }
}

struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may just have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs a program. Dropping the future before it has ended kills it and its process group: not what it put into a session of its own.
///
/// # Errors
/// It does not start, or cannot be waited for.
pub async fn run(program: &str, arguments: &[String], environment: &[(&str, String)]) -> io::Result<Ended> {
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let (mut out, mut err) = (Output::default(), Output::default());
    let (out_pipe, err_pipe) = (child.stdout.take(), child.stderr.take());
    let status = {
        let mut reading = pin!(async { tokio::join!(out.read(out_pipe), err.read(err_pipe)) });
        let mut read = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                _ = &mut reading, if !read => read = true,
            }
        };
        group.0 = None;
        if !read {
            let _ = timeout(LAST_WORDS_MAX, reading).await;
        }
        status
    };
    Ok(Ended { status, out, err })
}

impl Output {
    /// Reads to the end.
    async fn read(&mut self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut bytes).await {
            self.keep(&bytes[..length]);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.beginning.len();
        self.beginning.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.end.extend_from_slice(&bytes[bytes.len().saturating_sub(OUTPUT_BYTES_MAX)..]);
        let too_many = self.end.len().saturating_sub(OUTPUT_BYTES_MAX);
        self.end.drain(..too_many);
    }
}

/// A line as it is told.
fn line_of(line: &str) -> String {
    let told: String = line.trim().chars().filter(|character| !character.is_control()).take(LINE_CHARS_MAX).collect();
    told.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ended(script: &str) -> Ended {
        run("/bin/sh", &["-c".to_owned(), script.to_owned()], &[]).await.unwrap()
    }

    async fn wait_until(what: &str, held: impl Fn() -> bool) {
        let waiting = async {
            while !held() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), waiting).await.expect(what);
    }

    #[tokio::test]
    async fn the_first_and_the_last_line_are_those_that_say_something() {
        let ended = ended("echo 'connecting'; echo; printf 'no route to the board\\n\\n  \\n'").await;
        assert_eq!((ended.first_line(), ended.last_line()), ("connecting".into(), "no route to the board".into()));
    }

    #[tokio::test]
    async fn standard_error_is_told_before_standard_output() {
        let ended = ended("echo 'S2 is off'; echo 'the board is slow' >&2; echo ' ' >&2").await;
        assert_eq!(ended.last_line(), "the board is slow");
        let silent = super::tests::ended("true").await;
        assert_eq!((silent.first_line(), silent.last_line()), (String::new(), String::new()));
    }

    #[tokio::test]
    async fn the_last_line_of_much_is_kept_and_bounded() {
        let much = ended("echo first; seq 1 100000; printf '%0300d' 7").await;
        assert_eq!(much.first_line(), "first");
        assert_eq!(much.last_line(), "0".repeat(LINE_CHARS_MAX));
        let much = ended("seq 1 100000; echo 'the last word'").await;
        assert_eq!(much.last_line(), "the last word");
        assert!(much.out.beginning.len() <= OUTPUT_BYTES_MAX && much.out.end.len() <= OUTPUT_BYTES_MAX);
        let colours = ended("printf '\\033[31m\\a\\n'; printf '\\a\\n'").await;
        assert_eq!(colours.last_line(), "[31m");
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_is_neither_waited_for_nor_killed() {
        for leave in ["setsid /bin/sh service &", "/bin/sh service &", "/bin/sh service >/dev/null 2>&1 &"] {
            let folder = tempfile::tempdir().unwrap();
            let service = "for _ in $(seq 500); do [ -e asked ] && exec touch answered; sleep 0.02; done";
            std::fs::write(folder.path().join("service"), service).unwrap();
            let script = format!("cd {}; {leave} echo started", folder.path().display());
            let ended = timeout(Duration::from_secs(2), ended(&script)).await.expect(leave);
            assert!(ended.status.success(), "{leave}");
            assert_eq!(ended.last_line(), "started", "{leave}");
            std::fs::write(folder.path().join("asked"), "").unwrap();
            wait_until(leave, || folder.path().join("answered").exists()).await;
        }
    }

    #[tokio::test]
    async fn what_is_given_up_ends_with_all_its_processes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! >{0}.new; mv {0}.new {0}; wait", file.display());
        tokio::select! {
            () = wait_until("it starts", || file.exists()) => {}
            ended = ended(&script) => panic!("{ended:?}"),
        }
        let pid = std::fs::read_to_string(&file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // Whoever inherits it may take a while to bury it.
        wait_until("it ends", || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))).await;
    }
}
