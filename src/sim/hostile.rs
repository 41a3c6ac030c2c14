//! A member that has gone bad: it is linked, and sends what it must not.
//!
//! Each attack is made for the moment at which it arrives, so that nothing but the check under test stands in its way.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::certifier::Authority;
use super::cluster::Cluster;
use crate::core::clock::Timestamp;
use crate::core::diff::{Change, Diff};
use crate::core::entry::{Entry, Sealed};
use crate::core::id::{ClusterId, EntryId, FileName, Lane, ServerName, Stream};
use crate::core::io::Message;
use crate::core::oplog::Head;
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::format::encode_message;

/// What the bad member tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Continues another server's stream with a signature by its own key.
    Forged,
    /// Opens a stream of another server with a certificate of its own authority.
    ForeignAuthority,
    /// Opens a stream of another server with its own, genuine certificate.
    StolenName,
    /// Continues its own stream, signed for another cluster.
    ForeignCluster,
    /// Changes the last entry of another server's stream and keeps its signature.
    Tampered,
    /// Sends what is no message at all.
    Garbage,
    /// Sends old, genuine entries once more; harmless, and no reason to break the link.
    Replayed,
}

impl Attack {
    pub const ALL: [Attack; 7] = [
        Attack::Forged,
        Attack::ForeignAuthority,
        Attack::StolenName,
        Attack::ForeignCluster,
        Attack::Tampered,
        Attack::Garbage,
        Attack::Replayed,
    ];

    /// The attack of that name, as scenarios write it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attack| format!("{attack:?}").eq_ignore_ascii_case(&name.replace('-', "")))
    }
}

impl Cluster {
    /// Lets `from` attack `victim` over their link, and checks that the victim broke the link and took nothing.
    /// Returns whether the attack could be made at this moment.
    pub fn attack(&mut self, attack: Attack, from: usize, victim: usize) -> bool {
        let idle = !self.hosts[victim].journal.is_writing() && self.hosts[victim].checkpoints_writing == 0;
        let takes = self.node(victim).is_some_and(|node| node.has_room() && node.takes_entries());
        let frozen = self.hosts[victim].frozen_until_us > self.now_us;
        if !idle || !takes || frozen || !self.network.is_linked(from, victim) {
            return false;
        }
        let Some(bytes) = self.attack_bytes(attack, from, victim) else { return false };
        self.note(victim, || format!("is attacked by S{}: {attack:?}", from + 1));
        let before = self.disconnected.len();
        self.receive(victim, from, &bytes);
        let broke = self.disconnected[before..].iter().any(|(host, peer, _)| (*host, *peer) == (victim, from));
        if broke != (attack != Attack::Replayed) {
            self.oracle.report("P7 foreign entry", || format!("S{} met {attack:?}; disconnected: {broke}", victim + 1));
        }
        true
    }

    fn attack_bytes(&mut self, attack: Attack, from: usize, victim: usize) -> Option<Vec<u8>> {
        let heads = self.node(victim)?.durable().heads().clone();
        let own_key = self.hosts[from].key.clone();
        let own_certificate = self.hosts[from].certificate.clone();
        let strangers: Vec<_> = heads.iter().filter(|(stream, _)| stream.origin != self.hosts[from].name).collect();
        let mine: Vec<_> = heads.iter().filter(|(stream, _)| stream.origin == self.hosts[from].name).collect();
        let name = self.hosts[from].name.clone();
        let cluster = self.cluster;
        let other = strangers.get(self.random.index(strangers.len())).copied();
        let sealed = match attack {
            Attack::Garbage => return Some(self.random.bytes::<64>().to_vec()),
            Attack::Replayed => {
                let (stream, head) = other?;
                let seq = self.random.between(1, head.seq);
                let held = self.oracle.entries().find(|sealed| *sealed.id() == EntryId { stream: stream.clone(), seq });
                return Some(encode_message(&Message::Entries(vec![held?.clone()])));
            }
            Attack::Forged => {
                let (stream, head) = other?;
                seal(stream.clone(), Some(head), None, cluster, &own_key)
            }
            Attack::ForeignAuthority => {
                let (stream, head) = other?;
                let key = SigningKey::from_bytes(&self.random.bytes());
                let authority = Authority::new(self.random.bytes());
                let certificate = authority.issue(&stream.origin, &key.verifying_key());
                seal(next_run(stream, head), None, Some(certificate), cluster, &key)
            }
            Attack::StolenName => {
                let (stream, head) = other?;
                seal(next_run(stream, head), None, Some(own_certificate), cluster, &own_key)
            }
            Attack::ForeignCluster => {
                let (stream, head) = *mine.iter().max_by_key(|(stream, _)| stream.run)?;
                debug_assert_eq!(stream.origin, name, "these are its own streams");
                seal(stream.clone(), Some(head), None, ClusterId([7; 16]), &own_key)
            }
            Attack::Tampered => {
                let (stream, head) = other?;
                let id = EntryId { stream: stream.clone(), seq: head.seq };
                let held = self.oracle.entries().find(|sealed| *sealed.id() == id)?;
                let entry = Entry { reason: "nothing of note".into(), ..held.entry().clone() };
                Sealed::new(entry, Some(*held.signature()?))
            }
        };
        Some(encode_message(&Message::Entries(vec![Arc::new(sealed)])))
    }
}

fn next_run(stream: &Stream, head: &Head) -> Stream {
    Stream { run: stream.run + 1000 + head.seq as u32, ..stream.clone() }
}

fn seal(
    stream: Stream,
    head: Option<&Head>,
    certificate: Option<Arc<[u8]>>,
    cluster: ClusterId,
    key: &SigningKey,
) -> Sealed {
    let volatile = stream.lane == Lane::Volatile;
    let file = FileName::new(if volatile { "Condition" } else { "Notes" }).expect("these names are well formed");
    let record = if volatile { Record::of(["evil", "1", "1", "1", "1"]) } else { Record::of(["evil", "entry"]) };
    let author = ServerName::new("evil").expect("this name is well formed").to_string();
    let entry = Entry {
        id: EntryId { stream, seq: head.map_or(1, |head| head.seq + 1) },
        time: head.map_or(Timestamp::from_wall_ms(1_780_000_000_000), |head| Timestamp(head.time.0 + 1)),
        class: Class::Management,
        author,
        reason: String::new(),
        previous: head.map(|head| head.hash).unwrap_or_default(),
        certificate,
        diffs: vec![Diff { file, key: "evil".into(), change: Change::Add(record), bases: Vec::new() }],
    };
    let mut sealed = Sealed::new(entry, None);
    sealed.sign(cluster, key);
    sealed
}
