//! A daemon in small, a folder to wait for, and a terminal for editors.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use p2pdb::core::clock::{HybridClock, Now};
use p2pdb::core::diff::{Change, Diff};
use p2pdb::core::entry::Entry;
use p2pdb::core::id::{Digest, EntryId, FileName, Lane, ServerName, Stream};
use p2pdb::core::io::{Committed, Edit, Refusal, Transaction, Wait};
use p2pdb::core::merge::Files;
use p2pdb::core::priority::Class;
use p2pdb::core::record::Record;
use p2pdb::core::text::ShownFile;
use p2pdb::edge::plain_files::{PlainEvent, PlainFiles, SaveId};
use rustix::event::{PollFd, PollFlags};
use tokio::sync::mpsc;

pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A daemon in small: the tree, and what it does about saves.
pub struct Tree {
    pub files: Files,
    pub clock: HybridClock,
    pub view: Option<PlainFiles>,
    /// Saves wait until they are let go.
    pub held: bool,
    pub waiting: VecDeque<(SaveId, FileName, Transaction)>,
    pub refuse: bool,
    pub saves: Vec<(Instant, Transaction)>,
    pub alarms: Vec<String>,
    pub cleared: Vec<String>,
}

impl Tree {
    pub fn apply(&mut self, origin: &str, edits: &[Edit]) -> EntryId {
        let stream = Stream { origin: ServerName::new(origin).unwrap(), run: 1, lane: Lane::Audit };
        let id = EntryId { seq: self.files.seen().seq(&stream) + 1, stream };
        let mut diffs = Vec::new();
        for Edit { file, change, bases } in edits {
            let (Change::Add(record) | Change::Del(record) | Change::Mod { after: record, .. }) = change;
            let key = self.files.schema(file).key_of(record);
            let register = self.files.file(file).and_then(|held| held.register(&key));
            let bases = bases.clone().unwrap_or_else(|| register.map_or(Vec::new(), |register| register.bases()));
            diffs.push(Diff { file: file.clone(), key, change: change.clone(), bases });
        }
        let time = self.clock.tick(Now { wall_ms: 1_700_000_000_000, monotonic_us: 0 });
        self.files.apply(&Entry {
            id: id.clone(),
            time,
            class: Class::Transmission,
            author: String::new(),
            reason: String::new(),
            previous: Digest::ZERO,
            certificate: None,
            diffs,
        });
        id
    }

    /// `a, 1` sets the record, `-a` deletes it.
    pub fn apply_line(&mut self, origin: &str, name: &FileName, line: &str) {
        let schema = self.files.schema(name);
        let held = |key: &str| self.files.file(name).and_then(|file| file.record(key)).cloned();
        let change = match line.strip_prefix('-') {
            Some(key) => Change::Del(held(key).unwrap()),
            None => {
                let after = Record::parse(line).unwrap();
                match held(&schema.key_of(&after)) {
                    Some(before) => Change::Mod { before, after },
                    None => Change::Add(after),
                }
            }
        };
        self.apply(origin, &[Edit { file: name.clone(), change, bases: None }]);
    }

    pub fn shown(&self, name: &FileName) -> Arc<ShownFile> {
        Arc::new(self.files.file(name).map(ShownFile::of).unwrap_or_default())
    }

    pub fn text(&self, name: &str) -> String {
        self.files.file(&FileName::new(name).unwrap()).map(|file| file.text()).unwrap_or_default()
    }

    pub fn answer(&mut self) {
        while let Some((id, name, transaction)) = if self.held { None } else { self.waiting.pop_front() } {
            let result = match self.refuse {
                true => Err(Refusal::DiskFull),
                false => {
                    let entry = self.apply("here", &transaction.edits);
                    let committed = Committed { entry, reached: Wait::Local, asked: Wait::Local, lacking: Vec::new() };
                    Ok((committed, self.shown(&name)))
                }
            };
            if let Some(view) = &self.view {
                view.outcome(id, result);
            }
        }
    }
}

pub struct Shared {
    pub tree: Mutex<Tree>,
    pub changed: Condvar,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap()
    }
}

pub struct Rig {
    pub shared: Arc<Shared>,
    pub directory: PathBuf,
    pub events: Inotify,
    pub _temporary: tempfile::TempDir,
}

impl Rig {
    pub fn new(file: &str, lines: &[&str]) -> Self {
        let temporary = tempfile::Builder::new().tempdir_in(fast_folder()).unwrap();
        let directory = temporary.path().join("files");
        Self::at(temporary, directory, file, lines)
    }

    pub fn at(temporary: tempfile::TempDir, directory: PathBuf, file: &str, lines: &[&str]) -> Self {
        let mut tree = Tree {
            files: Files::default(),
            clock: HybridClock::default(),
            view: None,
            held: false,
            waiting: VecDeque::new(),
            refuse: false,
            saves: Vec::new(),
            alarms: Vec::new(),
            cleared: Vec::new(),
        };
        let name = FileName::new(file).unwrap();
        lines.iter().for_each(|line| tree.apply_line("remote", &name, line));
        let shared = Arc::new(Shared { tree: Mutex::new(tree), changed: Condvar::new() });
        std::fs::create_dir_all(&directory).unwrap();
        let events = watch(&directory);
        let rig = Self { shared, directory, events, _temporary: temporary };
        rig.start();
        rig
    }

    pub fn start(&self) {
        let (out, mut events) = mpsc::channel(4);
        let mut tree = self.shared.lock();
        let names: Vec<FileName> = tree.files.iter().map(|(name, _)| name.clone()).collect();
        let current = names.into_iter().map(|name| (name.clone(), tree.shown(&name))).collect();
        tree.view = Some(PlainFiles::start(&self.directory, current, out).unwrap());
        drop(tree);
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            while let Some(event) = events.blocking_recv() {
                let now = Instant::now();
                let mut tree = shared.lock();
                match event {
                    PlainEvent::Save { id, file, transaction } => {
                        tree.saves.push((now, transaction.clone()));
                        tree.waiting.push_back((id, file, transaction));
                        tree.answer();
                    }
                    PlainEvent::Alarm { name, .. } => tree.alarms.push(name),
                    PlainEvent::AlarmCleared { name } => tree.cleared.push(name),
                }
                shared.changed.notify_all();
            }
        });
    }

    pub fn stop(&self) {
        let view = self.shared.lock().view.take();
        drop(view);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn remote(&self, line: &str) {
        let name = FileName::new("Notes").unwrap();
        let mut tree = self.shared.lock();
        tree.apply_line("remote", &name, line);
        let shown = tree.shown(&name);
        tree.view.as_ref().unwrap().show(name, shown);
    }

    pub fn hold(&self, held: bool) {
        let mut tree = self.shared.lock();
        tree.held = held;
        tree.answer();
    }

    #[track_caller]
    pub fn until_tree(&self, what: &str, condition: impl Fn(&Tree) -> bool) {
        let tree = self.shared.lock();
        let (tree, timeout) = self.shared.changed.wait_timeout_while(tree, TIMEOUT, |tree| !condition(tree)).unwrap();
        let text = tree.text("Notes");
        drop(tree);
        assert!(!timeout.timed_out(), "{what}; the tree has {text:?}, rejected: {:?}", self.rejected("Notes"));
    }

    /// Waits until something in the folder makes it true.
    #[track_caller]
    pub fn until(&mut self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !condition() {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: {:?}", std::fs::read_dir(&self.directory).map(Iterator::count));
            wait_readable(&self.events, left);
            let _ = self.events.read_events(&mut [0; 4096]).map(Iterator::count);
        }
    }

    /// Waits until the tree and the file both have these lines.
    #[track_caller]
    pub fn ends_as(&mut self, lines: &[&str]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.until_tree("the save arrives", |tree| tree.text("Notes") == text);
        let path = self.path("Notes");
        self.until("the file is in step", || std::fs::read_to_string(&path).is_ok_and(|held| held == text));
    }

    /// Waits until the file was written by the view with this text, without reading it.
    #[track_caller]
    pub fn until_shown(&mut self, text: &str) {
        let path = self.path("Notes");
        self.until("the text is shown", || is_shown(&path, text));
    }

    pub fn rejected(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(&format!("{name}.rejected"))).ok()
    }

    #[track_caller]
    pub fn until_rejected(&mut self, name: &str, why: &str) {
        let path = self.path(&format!("{name}.rejected"));
        self.until(&format!("refused: {why}"), || {
            std::fs::read_to_string(&path).is_ok_and(|report| report.contains(why))
        });
    }

    pub fn conflicts(&self) -> usize {
        self.shared.lock().files.conflicts().count()
    }

    pub fn saves(&self) -> usize {
        self.shared.lock().saves.len()
    }

    pub fn shell(&self, script: &str) {
        let status = Command::new("sh").arg("-c").arg(script).current_dir(&self.directory).status().unwrap();
        assert!(status.success(), "{script}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn fast_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

pub fn watch(directory: &Path) -> Inotify {
    let events = Inotify::init().unwrap();
    let mask = WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE | WatchMask::CLOSE_WRITE;
    events.watches().add(directory, mask).unwrap();
    events
}

pub fn wait_readable(events: &Inotify, left: Duration) {
    let left = rustix::fs::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    let _ = rustix::event::poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&left));
}

pub fn is_shown(path: &Path, text: &str) -> bool {
    let mut digest = [0u8; 32];
    rustix::fs::getxattr(path, "user.p2pdb.shown", &mut digest) == Ok(32)
        && digest == *blake3::hash(text.as_bytes()).as_bytes()
}

pub fn has(program: &str) -> bool {
    let found = Command::new("sh").arg("-c").arg(format!("command -v {program}")).stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("**** SKIPPED: {program} is not installed, so it was NOT tested against the plain files");
    }
    found
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program at a terminal. Each step waits for a text on its screen, or for leave by the test, or sends keys.
pub struct Terminal {
    pub driver: Child,
    pub said: BufReader<std::process::ChildStdout>,
}

const TERMINAL_DRIVER: &str = r#"
import os, pty, sys, select, struct, fcntl, termios, time
program, steps = sys.argv[1].split("\x1f"), sys.argv[2].split("\x1f")
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.execvp(program[0], program)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
screen = b""
def pump(timeout):
    global screen
    if select.select([terminal], [], [], timeout)[0]:
        try: data = os.read(terminal, 65536)
        except OSError: data = b""
        if not data: return False
        screen += data
    return True
for step in steps:
    kind, text = step[0], step[1:]
    if kind == "?":
        end = time.time() + 15
        while text.encode() not in screen:
            if not pump(1) or time.time() > end: sys.exit("never saw " + text + " in " + repr(screen))
    elif kind == "!":
        screen = b""
        os.write(terminal, text.encode())
    elif kind == "=":
        print(text, flush=True)
        sys.stdin.readline()
end = time.time() + 15
while pump(1):
    if time.time() > end: sys.exit("it does not end: " + repr(screen))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

impl Terminal {
    pub fn run(directory: &Path, program: &[&str], steps: &[&str]) -> Self {
        let mut driver = Command::new("python3")
            .args(["-c", TERMINAL_DRIVER, &program.join("\x1f"), &steps.join("\x1f")])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(driver.stdout.take().unwrap());
        Self { driver, said }
    }

    pub fn until_said(&mut self, what: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), what);
    }

    pub fn go_on(&mut self) {
        self.driver.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    pub fn finish(mut self) {
        assert!(self.driver.wait().unwrap().success());
    }
}
