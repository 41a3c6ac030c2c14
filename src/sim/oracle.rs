//! The promises, checked from outside: the oracle sees what all hosts write, say and answer, and nothing of how.
//!
//! | oracle | promise |
//! |---|---|
//! | `P1 acknowledged` | an acknowledged edit is on as many disks as its level says, and stays while these are honest |
//! | `P1 durable` | what a host has made durable is there when it starts again; its vector never goes back |
//! | `P1 undurable read` | readers and peers see durable entries only |
//! | `P2 replicas` | the same entries make the same files, at any moment, and the files that the model computes |
//! | `P3 conflicts` | every losing edit is kept until a later edit covers it (the model's leaves) |
//! | `P7 foreign entry` | every entry in any log was sealed by its origin; who sends others is disconnected |
//! | `P9 verify` | chains and signatures of every log hold, from the log alone |
//! | `sequence` | an entry id never means two entries |
//! | `answers`, `convergence`, `bounds` | all waits are answered, all heals, queues stay bounded |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::model::{self, Difference};
use crate::core::entry::Sealed;
use crate::core::id::{Digest, EntryId, Stream};
use crate::core::io::{Committed, Wait};
use crate::core::merge::Files;
use crate::core::version::Vector;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which of the promises in the table above.
    pub oracle: &'static str,
    pub text: String,
}

/// An edit that was acknowledged.
#[derive(Debug, Clone)]
struct Acknowledged {
    entry: EntryId,
    reached: Wait,
    origin: usize,
    members: usize,
    at_us: u64,
}

/// What the oracle keeps of one host.
#[derive(Debug, Clone, Default)]
pub struct Witness {
    /// All that the host's journal has called durable.
    pub promised: Vector,
    /// When its disk lost what it had called durable, or the host left for good.
    pub lost_us: Vec<u64>,
}

#[derive(Default)]
pub struct Oracle {
    sealed: BTreeMap<EntryId, BTreeSet<Digest>>,
    durable: BTreeMap<EntryId, Arc<Sealed>>,
    /// The files that each set of entries made, by digests.
    files_of: BTreeMap<Digest, (Digest, usize)>,
    acknowledged: Vec<Acknowledged>,
    witnesses: Vec<Witness>,
    verified: BTreeSet<Digest>,
    violation: Option<Violation>,
}

impl Oracle {
    pub fn new(hosts: usize) -> Self {
        Self { witnesses: vec![Witness::default(); hosts], ..Self::default() }
    }

    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// Keeps the first violation.
    pub fn report(&mut self, oracle: &'static str, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { oracle, text: text() });
        }
    }

    /// Every entry that was durable anywhere.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Sealed>> {
        self.durable.values()
    }

    pub fn entry_count(&self) -> usize {
        self.durable.len()
    }

    pub fn witness(&mut self, host: usize) -> &mut Witness {
        &mut self.witnesses[host]
    }

    /// A host hands entries to its journal; `own` tells which of them it has sealed itself.
    pub fn appending(&mut self, host: &str, entries: &[Arc<Sealed>]) {
        for sealed in entries {
            let id = sealed.id();
            if id.stream.origin.as_str() == host && !self.durable.contains_key(id) {
                self.sealed.entry(id.clone()).or_default().insert(sealed.hash());
            } else if !self.sealed.get(id).is_some_and(|hashes| hashes.contains(&sealed.hash())) {
                let own = id.stream.origin.as_str() == host;
                let oracle = if own { "sequence" } else { "P7 foreign entry" };
                self.report(oracle, || {
                    format!("{host} writes {id}, another entry than its origin sealed under this id")
                });
            }
        }
    }

    /// A host's journal has made entries durable.
    pub fn written(&mut self, host: usize, entries: &[Arc<Sealed>]) {
        for sealed in entries {
            let id = sealed.id();
            let held = self.durable.entry(id.clone()).or_insert_with(|| sealed.clone());
            if held.hash() != sealed.hash() {
                self.report("sequence", || format!("{id} is two entries"));
            }
            self.witnesses[host].promised.raise(&id.stream, id.seq);
        }
    }

    /// A host shows files to its readers.
    pub fn shown(&mut self, host: usize, name: &str, files: &Files, durable: &Vector) {
        let seen = files.seen();
        if !durable.covers(seen) {
            self.report("P1 undurable read", || format!("{name} shows entries that are not on its disk: {seen:?}"));
        }
        if let Some((stream, seq)) = self.first_lacking(host, seen) {
            let text = format!("{name} does not show {stream} up to {seq} any more, which it had made durable");
            self.report("P1 durable", || text);
        }
        let digest = files.digest();
        let (other, by) = *self.files_of.entry(seen.digest()).or_insert((digest, host));
        if other != digest {
            self.report("P2 replicas", || {
                format!("{name} and host {} hold the same entries and other files ({seen:?})", by + 1)
            });
        }
    }

    /// A host has started again and read its disk.
    pub fn recovered(&mut self, host: usize, name: &str, files: &Files) {
        let seen = files.seen();
        if let Some((stream, seq)) = self.first_lacking(host, seen) {
            let text =
                format!("{name} has started with {stream} up to {}, it had made {seq} durable", seen.seq(&stream));
            self.report("P1 durable", || text);
        }
        self.witnesses[host].promised = seen.clone();
    }

    /// The first stream in which a host has promised more than `seen`.
    fn first_lacking(&self, host: usize, seen: &Vector) -> Option<(Stream, u64)> {
        let promised = &self.witnesses[host].promised;
        let lacking = promised.iter().find(|(stream, seq)| seen.seq(stream) < *seq);
        lacking.map(|(stream, seq)| (stream.clone(), seq))
    }

    /// The disk of a host has lost what it had called durable.
    pub fn disk_lost(&mut self, host: usize, now_us: u64) {
        self.witnesses[host].promised = Vector::default();
        self.witnesses[host].lost_us.push(now_us);
    }

    /// A host has answered that an edit is safe. `members` are the other members that its wait counts on.
    pub fn acknowledged(&mut self, origin: usize, members: &[usize], committed: &Committed, now_us: u64) {
        let Committed { entry, reached, .. } = committed;
        let holders = members.iter().filter(|&&host| {
            let witness = &self.witnesses[host];
            witness.promised.holds(entry) || !witness.lost_us.is_empty()
        });
        let holders = holders.count() + usize::from(self.witnesses[origin].promised.holds(entry));
        let needed = needed(*reached, members.len() + 1);
        if holders < needed {
            self.report("P1 acknowledged", || {
                format!("{entry} was acknowledged at {reached:?} and is on {holders} disks, not on {needed}")
            });
        }
        let acknowledged =
            Acknowledged { entry: entry.clone(), reached: *reached, origin, members: members.len() + 1, at_us: now_us };
        self.acknowledged.push(acknowledged);
    }

    /// Checks the files of a host against the model.
    pub fn model(&mut self, name: &str, files: &Files) {
        let seen = files.seen();
        let held: Vec<_> = self.durable.values().filter(|sealed| seen.holds(sealed.id())).collect();
        let counted: u64 = seen.iter().map(|(_, seq)| seq).sum();
        let existing = held.len() as u64;
        let difference = model::difference(files, held.into_iter());
        if counted != existing {
            self.report("P1 undurable read", || format!("{name} holds {counted} entries, of which {existing} exist"));
            return;
        }
        match difference {
            Some(Difference::Value(text)) => self.report("P2 replicas", || format!("{name}: {text}")),
            Some(Difference::Conflicts(text)) => self.report("P3 conflicts", || format!("{name}: {text}")),
            None => {}
        }
    }

    /// At the end: every acknowledged edit is in `files`, unless too many of the disks that held it have lied.
    pub fn kept(&mut self, name: &str, files: &Files) {
        let lost_since = |host: usize, at_us: u64| self.witnesses[host].lost_us.iter().any(|lost| *lost >= at_us);
        let gone = self.acknowledged.iter().find(|one| {
            let lost = (0..self.witnesses.len()).filter(|&host| lost_since(host, one.at_us)).count();
            let excused = match one.reached {
                Wait::Local => lost_since(one.origin, one.at_us),
                level => lost >= needed(level, one.members),
            };
            !excused && !files.seen().holds(&one.entry)
        });
        if let Some(Acknowledged { entry, reached, .. }) = gone.cloned() {
            self.report("P1 acknowledged", || {
                format!("{entry}, acknowledged at {reached:?}, is not at {name} in the end")
            });
        }
    }

    /// Whether the signature of an entry still has to be checked.
    pub fn first_verification(&mut self, sealed: &Sealed) -> bool {
        self.verified.insert(sealed.hash())
    }
}

fn needed(level: Wait, members: usize) -> usize {
    match level {
        Wait::Local => 1,
        Wait::Majority => members / 2 + 1,
        Wait::All => members,
    }
}
