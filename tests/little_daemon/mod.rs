//! A daemon that keeps files in memory and speaks the real control protocol: what the command line is tested against.
//! It pretends to be S1 of two members, of which S5 is away.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use p2pdb::core::clock::Timestamp;
use p2pdb::core::diff::{Change, Diff};
use p2pdb::core::entry::Entry;
use p2pdb::core::id::{ClusterId, Digest, EntryId, FileName, Lane, ServerName, Stream};
use p2pdb::core::io::{Committed, Edit, Refusal, Wait};
use p2pdb::core::lifecycle::Lifecycle;
use p2pdb::core::merge::Files;
use p2pdb::core::priority::Class;
use p2pdb::core::record::Record;
use p2pdb::edge::config::ControlConfig;
use p2pdb::edge::control::*;
use tempfile::TempDir;
use tokio::sync::broadcast;

pub struct LittleDaemon {
    folder: TempDir,
    handler: LittleHandler,
    runtime: Option<tokio::runtime::Runtime>,
}

impl LittleDaemon {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handler = LittleHandler { state: Arc::default(), changes: broadcast::channel(64).0 };
        let entered = runtime.enter();
        let config = ControlConfig { group: String::new(), everyone_reads: false };
        let socket = ControlSocket::bind(folder.path(), &config).unwrap();
        drop(entered);
        runtime.spawn(socket.serve(handler.clone()));
        Self { folder, handler, runtime: Some(runtime) }
    }

    pub fn directory(&self) -> &Path {
        self.folder.path()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("p2pdb").unwrap();
        command.env("P2PDB_DIR", self.directory()).env("NO_COLOR", "1").env("TMPDIR", self.directory());
        command.env_remove("SUDO_USER").env_remove("VISUAL").args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Assert {
        self.command(arguments).assert()
    }

    /// What another server wrote without having seen what is here.
    pub fn write_concurrently(&self, file: &str, record: &str) {
        let mut state = self.handler.state.lock().unwrap();
        let (file, record) = (FileName::new(file).unwrap(), Record::parse(record).unwrap());
        let key = state.files.schema(&file).key_of(&record);
        state.write("S5", vec![Diff { file, key, change: Change::Add(record), bases: Vec::new() }]);
    }
}

impl Drop for LittleDaemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct LittleHandler {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<FileChange>,
}

#[derive(Default)]
struct State {
    files: Files,
    clock: u64,
    bundles: BTreeMap<String, BundlePart>,
}

impl State {
    fn write(&mut self, origin: &str, diffs: Vec<Diff>) -> EntryId {
        self.clock += 1;
        let stream = Stream { origin: ServerName::new(origin).unwrap(), run: 7, lane: Lane::Audit };
        let id = EntryId { seq: self.files.seen().seq(&stream) + 1, stream };
        self.files.apply(&Entry {
            id: id.clone(),
            time: Timestamp::from_wall_ms(self.clock),
            class: Class::Transmission,
            author: String::new(),
            reason: String::new(),
            previous: Digest::ZERO,
            certificate: None,
            diffs,
        });
        id
    }

    fn diff(&self, Edit { file, change, bases }: Edit) -> Result<Diff, Refusal> {
        let schema = self.files.schema(&file);
        let record = match &change {
            Change::Add(record) | Change::Del(record) | Change::Mod { before: record, .. } => record.clone(),
        };
        let key = schema
            .check(&file, &record)
            .map_err(|error| Refusal::Schema { file: file.clone(), why: error.to_string() })?;
        let register = self.files.file(&file).and_then(|held| held.register(&key));
        let held = register.and_then(|register| register.value());
        match (&change, held) {
            _ if bases.is_some() => {}
            (Change::Add(_), Some(held)) => return Err(Refusal::Exists { file, held: held.to_string() }),
            (Change::Del(_) | Change::Mod { .. }, None) => {
                return Err(Refusal::Missing { file, wanted: record.to_string() });
            }
            _ => {}
        }
        let bases = bases.unwrap_or_else(|| register.map(|register| register.bases()).unwrap_or_default());
        Ok(Diff { file, key, change, bases })
    }
}

impl LittleHandler {
    fn edit(&self, edits: Vec<Edit>, wait: Wait) -> Response {
        let mut state = self.state.lock().unwrap();
        let diffs: Result<Vec<Diff>, Refusal> = edits.into_iter().map(|edit| state.diff(edit)).collect();
        let result = diffs.map(|diffs| {
            let files = diffs.iter().map(|diff| diff.file.clone()).collect();
            let entry = state.write("S1", diffs);
            let _ = self.changes.send(FileChange { entry: entry.clone(), files, readable_ns: 1 });
            let away = ServerName::new("S5").unwrap();
            let lacking = if wait == Wait::All { vec![away] } else { Vec::new() };
            Committed { entry, reached: wait.min(Wait::Majority), asked: wait, lacking }
        });
        result.into()
    }

    fn status(&self) -> Status {
        let state = self.state.lock().unwrap();
        let member = |name: &str, order, link| MemberStatus {
            name: ServerName::new(name).unwrap(),
            order,
            address: "127.0.0.1:7400".into(),
            link,
            since_ms: 1_800_000_000_000,
            round_trip_us: None,
            lag_entries: 3,
            messages_sent: 1,
            messages_received: 2,
            bytes_sent: 3,
            bytes_received: 4,
            lifecycle: None,
            clock_offset_ms: Some(-12),
            last_refusal: None,
            load: None,
        };
        Status {
            name: ServerName::new("S1").unwrap(),
            cluster: ClusterId([7; 16]),
            version: "0".into(),
            lifecycle: Lifecycle::Operating,
            since_ms: 1_800_000_000_000,
            flag: Some("operating".into()),
            members: vec![member("S1", 1, LinkState::Own), member("S5", 2, LinkState::Down)],
            files: state.files.iter().map(|(name, file)| FileSummary::of(name, file)).collect(),
            log: LogStatus::default(),
            queue: QueueStatus::default(),
            alarms: vec![Alarm { name: "clock".into(), text: "12 s off".into(), since_ms: 1_800_000_000_000 }],
            disk: DiskStatus::default(),
            process: ProcessStatus::default(),
            management: None,
            vector: VectorStatus { digest: Digest::ZERO, streams: 0, origins: BTreeMap::new() },
        }
    }

    fn put(&self, part: BundlePart) -> Response {
        let mut state = self.state.lock().unwrap();
        let held =
            state.bundles.entry(part.name.clone()).or_insert_with(|| BundlePart { bytes: Vec::new(), ..part.clone() });
        if part.offset == 0 {
            held.bytes.clear();
        }
        held.bytes.extend(&part.bytes);
        let bytes = held.bytes.len() as u64;
        if bytes < part.total_bytes {
            return Response::BundleReceived { bytes };
        }
        drop(state);
        let record = Record::parse(&format!("{}, {}, {}", part.name, part.total_bytes, part.digest)).unwrap();
        let file = FileName::new("Bundle").unwrap();
        self.edit(vec![Edit { file, change: Change::Add(record), bases: Some(Vec::new()) }], Wait::Local)
    }

    fn get(&self, name: &str, offset: u64) -> Response {
        let state = self.state.lock().unwrap();
        let Some(held) = state.bundles.get(name) else {
            return Response::failed(format!("there is no bundle '{name}'"), "");
        };
        let from = offset as usize;
        let to = held.bytes.len().min(from + BUNDLE_PART_BYTES_MAX);
        Response::BundlePart(BundlePart { offset, bytes: held.bytes[from..to].to_vec(), ..held.clone() })
    }
}

impl Handler for LittleHandler {
    async fn handle(&self, _peer: Peer, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.status())),
            Request::FilesList => Response::Files(self.status().files),
            Request::FileEdit(edit) => self.edit(edit.edits, edit.wait),
            Request::Resolve(resolve) => {
                let register = {
                    let state = self.state.lock().unwrap();
                    state.files.file(&resolve.file).and_then(|file| file.register(&resolve.key)).cloned()
                };
                match resolve.edit(register.as_ref()) {
                    Ok(edit) => self.edit(vec![edit], resolve.wait),
                    Err(what) => Response::failed(what, ""),
                }
            }
            Request::BundlePut(part) => self.put(part),
            Request::BundleGet { name, offset } => self.get(&name, offset),
            Request::BundleList => {
                let state = self.state.lock().unwrap();
                let bundle = |part: &BundlePart| Bundle {
                    name: part.name.clone(),
                    size_bytes: part.total_bytes,
                    digest: part.digest,
                    here: true,
                };
                Response::Bundles(state.bundles.values().map(bundle).collect())
            }
            other => Response::failed(format!("the little daemon cannot {}", other.describe()), ""),
        }
    }

    async fn stream(&self, _peer: Peer, request: Request, responses: Responses) -> Response {
        let files = match request {
            Request::FileRead { file } => {
                let snapshot = FileSnapshot::of(&self.state.lock().unwrap().files, &file);
                let mut parts: Vec<_> = snapshot.parts().collect();
                let last = parts.pop().expect("there is one at least");
                for part in parts {
                    let _ = responses.send(Response::File(part)).await;
                }
                return Response::File(last);
            }
            Request::Conflicts { .. } => {
                let state = self.state.lock().unwrap();
                let conflicts = state.files.conflicts();
                let all = conflicts.map(|(file, key, register)| Conflict::of(file, key, register));
                return Response::Conflicts(all.collect());
            }
            Request::Watch { files } => files,
            other => return Response::failed(format!("the little daemon cannot {}", other.describe()), ""),
        };
        let mut changes = self.changes.subscribe();
        if responses.send(Response::Watching).await.is_err() {
            return Response::Stopping;
        }
        while let Ok(change) = changes.recv().await {
            let wanted = files.is_empty() || change.files.iter().any(|file| files.contains(file));
            if wanted && responses.send(Response::Change(change)).await.is_err() {
                break;
            }
        }
        Response::Stopping
    }
}
