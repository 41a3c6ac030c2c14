//! Somebody who keeps editing, and remembers what was promised.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use p2pdb::core::diff::Change;
use p2pdb::core::id::FileName;
use p2pdb::core::io::{Edit, Wait};
use p2pdb::core::record::Record;
use p2pdb::edge::control::{Client, FileEdit, Request, Response};

use super::Server;

/// An edit that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    pub record: String,
    pub reached: Wait,
}

/// A thread that adds records `PREFIX-1`, `PREFIX-2`, … to a file of one server until it is told to stop. It reconnects
/// when the daemon is gone, and never repeats a record.
pub struct Writer {
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    promises: Arc<Mutex<Vec<Promise>>>,
    refusals: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

pub fn add_request(file: &str, record: &str, wait: Wait) -> Request {
    let change = Change::Add(Record::parse(record).unwrap());
    Request::FileEdit(FileEdit {
        edits: vec![Edit { file: FileName::new(file).unwrap(), change, bases: None }],
        on_behalf_of: None,
        reason: String::new(),
        wait,
        timeout_ms: 5_000,
    })
}

impl Writer {
    /// `rest` is the second field of each record, which makes it as long as one likes.
    pub fn start(server: &Server, file: &str, prefix: &str, rest: &str, wait: Wait) -> Self {
        let (stop, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let promises = Arc::<Mutex<Vec<Promise>>>::default();
        let refusals = Arc::<Mutex<Vec<String>>>::default();
        let work = Work {
            dir: server.dir.clone(),
            file: file.into(),
            prefix: prefix.into(),
            rest: rest.into(),
            wait,
            stop: stop.clone(),
            tried: tried.clone(),
            promises: promises.clone(),
            refusals: refusals.clone(),
        };
        let thread = Some(thread::spawn(move || work.run()));
        Self { stop, tried, promises, refusals, thread }
    }

    /// How many edits have been acknowledged so far.
    pub fn promised(&self) -> usize {
        super::lock(&self.promises).len()
    }

    /// What was refused, in the daemon's words.
    pub fn refusals(&self) -> Vec<String> {
        super::lock(&self.refusals).clone()
    }

    /// How many edits were sent, acknowledged or not.
    pub fn tried(&self) -> u64 {
        self.tried.load(Ordering::Relaxed)
    }

    /// Waits until so many more edits are acknowledged.
    #[track_caller]
    pub fn wait_for_more(&self, more: usize) {
        let goal = self.promised() + more;
        super::wait_until(&format!("{more} more edits are acknowledged"), || self.promised() >= goal);
    }

    pub fn finish(mut self) -> Vec<Promise> {
        self.end();
        super::lock(&self.promises).clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer does not panic");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Work {
    dir: PathBuf,
    file: String,
    prefix: String,
    rest: String,
    wait: Wait,
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    promises: Arc<Mutex<Vec<Promise>>>,
    refusals: Arc<Mutex<Vec<String>>>,
}

impl Work {
    fn run(self) {
        while !self.stop.load(Ordering::Relaxed) {
            match Client::connect(&self.dir) {
                Ok(client) => self.edit_through(client),
                // The daemon is down; whoever stopped it will start it.
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn edit_through(&self, mut client: Client) {
        client.set_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.tried.fetch_add(1, Ordering::Relaxed) + 1;
            let record = format!("{}-{number}, {}", self.prefix, self.rest);
            match client.call(&add_request(&self.file, &record, self.wait)) {
                Ok(Response::Edited(edited)) => {
                    super::lock(&self.promises).push(Promise { record, reached: edited.reached });
                }
                Ok(Response::Refused(refusal)) => {
                    super::lock(&self.refusals).push(refusal.to_string());
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(Response::Failed { what, .. }) => super::lock(&self.refusals).push(what),
                Ok(other) => panic!("an edit is not answered by {other:?}"),
                Err(_) => return,
            }
        }
    }
}
