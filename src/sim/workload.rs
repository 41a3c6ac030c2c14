//! What operators, editors and monitors do to the simulated cluster: edits of few keys in few files from all servers.
//!
//! Few keys, so that edits meet. Some are made with a look at what is there, some with versions remembered from
//! earlier (as an editor does that was opened a while ago), some settle conflicts, some write several files at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cluster::Cluster;
use super::host::Host;
use super::random::Random;
use crate::core::diff::Change;
use crate::core::entry::{Entry, Sealed};
use crate::core::id::{FileName, ServerName};
use crate::core::io::{Edit, Message, Transaction, Wait};
use crate::core::merge::{Files, Register};
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::core::version::Version;

/// How often and how hard the cluster is edited.
#[derive(Debug, Clone, Copy)]
pub struct Intensity {
    /// Mean time between two edits anywhere.
    pub interval_us: u64,
    /// Bytes of filling in a record, for runs in which windows and queues should fill up.
    pub filling: usize,
}

/// What an editor that was opened earlier has before its eyes.
struct Remembered {
    file: FileName,
    key: String,
    value: Option<Record>,
    bases: Vec<Version>,
}

/// Makes up edits. Keeps nothing of the cluster but what an open editor would.
pub struct Workload {
    pub intensity: Intensity,
    remembered: Vec<Remembered>,
    counter: u64,
}

impl Workload {
    pub fn new(intensity: Intensity) -> Self {
        Self { intensity, remembered: Vec::new(), counter: 0 }
    }

    /// Submits one transaction to a running host.
    pub fn edit(&mut self, cluster: &mut Cluster) {
        let running = cluster.running();
        let mut random = cluster.random.clone();
        let Some(&host) = random.pick(&running) else { return };
        let Some(node) = cluster.node(host) else { return };
        let edits = self.edits(node.files(), cluster.name(host).as_str(), &mut random);
        let wait = [Wait::Local, Wait::Local, Wait::Majority, Wait::All][random.index(4)];
        let class = if random.percent(20) { Class::Management } else { Class::Transmission };
        let deadline_ms = random.between(200, 3000);
        cluster.random = random;
        let transaction = Transaction { class, author: "someone".into(), reason: String::new(), edits };
        cluster.submit(host, transaction, wait, deadline_ms);
    }

    fn edits(&mut self, files: &Files, server: &str, random: &mut Random) -> Vec<Edit> {
        self.counter += 1;
        match random.below(20) {
            0..3 => vec![self.condition(files, server)],
            3..6 if files.conflicts().next().is_some() => vec![self.resolve(files, random)],
            6..9 => {
                let mut edits: BTreeMap<(String, String), Edit> = BTreeMap::new();
                for _ in 0..random.between(2, 4) {
                    let (file, key) = place(random);
                    let edit = self.plain(files, &file, &key, random);
                    edits.insert((file.to_string(), key), edit);
                }
                edits.into_values().collect()
            }
            9..13 => {
                let (file, key) = place(random);
                self.remember(files, file, key);
                vec![self.stale(files, random)]
            }
            _ => {
                let (file, key) = place(random);
                vec![self.plain(files, &file, &key, random)]
            }
        }
    }

    fn record(&self, file: &FileName, key: &str, random: &mut Random) -> Record {
        let number = self.counter.to_string();
        if file.as_str() == file::PROBLEM {
            return Record::of(["---", key, "---"]);
        }
        let filling = "x".repeat(random.index(self.intensity.filling + 1));
        Record::of([key, &number, &filling])
    }

    /// An edit of what is there, as the command line makes it. Sometimes it does not fit and is refused.
    fn plain(&self, files: &Files, file: &FileName, key: &str, random: &mut Random) -> Edit {
        let held = files.file(file).and_then(|held| held.record(key)).cloned();
        let change = match held {
            None => Change::Add(self.record(file, key, random)),
            Some(held) if random.percent(25) => Change::Del(held),
            Some(held) if random.percent(3) => Change::Add(held),
            Some(before) => Change::Mod { after: self.record(file, key, random), before },
        };
        Edit { file: file.clone(), change, bases: None }
    }

    fn remember(&mut self, files: &Files, file: FileName, key: String) {
        let register = files.file(&file).and_then(|held| held.register(&key));
        let value = register.and_then(Register::value).cloned();
        let bases = register.map(Register::bases).unwrap_or_default();
        self.remembered.push(Remembered { file, key, value, bases });
        if self.remembered.len() > 6 {
            self.remembered.remove(0);
        }
    }

    /// An edit of what somebody saw a while ago, perhaps on another server.
    fn stale(&mut self, files: &Files, random: &mut Random) -> Edit {
        let at = random.index(self.remembered.len());
        let Remembered { file, key, value, bases } = &self.remembered[at];
        let change = match value {
            None => Change::Add(self.record(file, key, random)),
            Some(value) if random.percent(30) => Change::Del(value.clone()),
            Some(before) => Change::Mod { before: before.clone(), after: self.record(file, key, random) },
        };
        // Versions that this server has not seen yet are what an operator on another server saw: they are allowed,
        // as long as they are older than the edit, which the clock sees to once it has seen them.
        let bases = bases.iter().filter(|base| files.seen().holds(&base.entry)).cloned().collect();
        Edit { file: file.clone(), change, bases: Some(bases) }
    }

    fn condition(&self, files: &Files, server: &str) -> Edit {
        let file = name(file::CONDITION);
        let number = (self.counter % 100).to_string();
        let after = Record::of([server, &number, "1", "2", "0"]);
        let change = match files.file(&file).and_then(|held| held.record(server)) {
            None => Change::Add(after),
            Some(before) => Change::Mod { before: before.clone(), after },
        };
        Edit { file, change, bases: None }
    }

    fn resolve(&self, files: &Files, random: &mut Random) -> Edit {
        let conflicts: Vec<_> = files.conflicts().collect();
        let (file, key, register) = conflicts[random.index(conflicts.len())];
        let settled = register.leaves[random.index(register.leaves.len())].value.clone();
        let change = match (register.value(), settled) {
            (Some(before), Some(after)) => Change::Mod { before: before.clone(), after },
            (Some(before), None) => Change::Del(before.clone()),
            (None, Some(after)) => Change::Add(after),
            (None, None) => Change::Add(self.record(file, key, random)),
        };
        Edit { file: file.clone(), change, bases: Some(register.newest_leaves()) }
    }
}

fn place(random: &mut Random) -> (FileName, String) {
    let file = ["Notes", "Notes", "Plan", file::PROBLEM][random.index(4)];
    let key = ["a", "b", "c"][random.index(3)];
    (name(file), key.to_owned())
}

fn name(text: &str) -> FileName {
    FileName::new(text).expect("the simulator's own file names are well formed")
}

/// The records with which a cluster begins.
pub fn founding_edits(members: &[Host]) -> Vec<Edit> {
    let add = |file: &str, record: Record| Edit { file: name(file), change: Change::Add(record), bases: None };
    let mut edits = Vec::new();
    for (order, host) in members.iter().enumerate() {
        edits.push(add(file::SERVER, server_record(host, order + 1)));
        edits.push(add(file::GROUP, Record::of([host.name.as_str()])));
    }
    edits.push(add(file::FLAG, Record::of([members[0].name.as_str(), "operating"])));
    edits
}

/// The record of the `Server` file that makes a host a member.
pub fn server_record(host: &Host, order: usize) -> Record {
    Record::of([host.name.as_str(), &order.to_string(), &format!("10.0.0.{order}:7400")])
}

/// The edits that make a server a member, or that remove it and all that names it.
pub fn membership_edits(files: &Files, host: &Host, order: usize, member: bool) -> Vec<Edit> {
    let server = host.name.as_str();
    if member {
        let change = Change::Add(server_record(host, order));
        return vec![Edit { file: name(file::SERVER), change, bases: None }];
    }
    let named = [file::SERVER, file::GROUP, file::FLAG].into_iter().filter_map(|file| {
        let record = files.builtin(file)?.record(server)?.clone();
        Some(Edit { file: name(file), change: Change::Del(record), bases: None })
    });
    named.collect()
}

/// Whether an entry makes a server a member, or removes it.
pub fn changes_member(entry: &Entry, server: &ServerName, member: bool) -> bool {
    entry.diffs.iter().any(|diff| {
        diff.file.as_str() == file::SERVER && diff.key == server.as_str() && diff.change.value().is_some() == member
    })
}

/// A transaction in a few words.
pub fn describe(transaction: &Transaction) -> String {
    let edits = transaction.edits.iter().map(|edit| {
        let stale = if edit.bases.is_some() { " (with bases)" } else { "" };
        match &edit.change {
            Change::Add(record) => format!("{} Add {record}{stale}", edit.file),
            Change::Del(record) => format!("{} Del {record}{stale}", edit.file),
            Change::Mod { before, after } => format!("{} Mod {before} => {after}{stale}", edit.file),
        }
    });
    edits.collect::<Vec<_>>().join("; ")
}

/// The ids of some entries, for people.
pub fn ids(entries: &[Arc<Sealed>]) -> String {
    entries.iter().map(|sealed| sealed.id().to_string()).collect::<Vec<_>>().join(" ")
}

/// A message in a few words.
pub fn describe_message(message: &Message) -> String {
    match message {
        Message::Entries(entries) => format!("entries {}", ids(entries)),
        Message::Beat(beat) => format!("beat {} {}", beat.vector.short(), beat.lifecycle),
        Message::CheckpointPart { offset, total, .. } => format!("checkpoint part at {offset} of {total}"),
        other => format!("{other:?}"),
    }
}
