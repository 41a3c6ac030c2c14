//! Carries out what a simulated node wants: the same ports as the daemon's, on the simulated world.

use std::sync::Arc;

use super::cluster::{Cluster, Event};
use super::time::MILLISECOND_US;
use crate::core::entry::Sealed;
use crate::core::id::{Digest, ServerName};
use crate::core::io::{Committed, Event as NodeEvent, Input, Message, Refusal, Ticket};
use crate::core::merge::Written;
use crate::core::oplog::Checkpoint;
use crate::core::schema::file;
use crate::core::version::Vector;
use crate::format::{decode_checkpoint, encode_message};
use crate::ports::{Audience, Journal, LogRead, Peers, View};

/// Bytes of one part of a checkpoint: small, so that parts can be lost.
const PART_BYTES: usize = 4 * 1024;

/// One host of a cluster, as its node's outputs see it.
pub struct Desk<'a> {
    pub cluster: &'a mut Cluster,
    pub host: usize,
}

impl Desk<'_> {
    /// Plans what the disk has done once it has done everything before.
    pub(super) fn after_disk(&mut self, longer: u64, event: impl FnOnce(u32) -> Event) {
        let random = &mut self.cluster.random;
        let host = &mut self.cluster.hosts[self.host];
        let (shortest, longest) = host.disk.sync_us;
        let started_us = host.disk_busy_us.max(self.cluster.now_us);
        host.disk_busy_us = started_us + random.between(shortest, longest) * longer;
        let after_us = host.disk_busy_us - self.cluster.now_us;
        let event = event(host.life);
        self.cluster.plan(after_us, event);
    }
}

impl Journal for Desk<'_> {
    fn append(&mut self, entries: Vec<Arc<Sealed>>) {
        let Cluster { hosts, oracle, now_us, .. } = &mut *self.cluster;
        let host = &mut hosts[self.host];
        oracle.appending(host.name.as_str(), &entries);
        let wall_ms = host.clock.now(*now_us).wall_ms;
        host.journal.write(&mut host.disk, entries, wall_ms);
        let room = !host.disk.full;
        let host = self.host;
        self.after_disk(1, |life| Event::Synced { host, life, room });
    }

    fn read(&mut self, request: LogRead) {
        let after_us = 50 + self.cluster.random.below(500);
        let (host, life) = (self.host, self.cluster.hosts[self.host].life);
        self.cluster.plan(after_us, Event::ReadDone { host, life, request });
    }

    fn store_checkpoint(&mut self, checkpoint: Checkpoint) {
        let host = &mut self.cluster.hosts[self.host];
        host.checkpoints_writing += 1;
        let bytes = (!host.disk.full).then(|| host.journal.encode(&checkpoint));
        let seen = Box::new(checkpoint.files.seen().clone());
        let host = self.host;
        self.after_disk(5, |life| Event::CheckpointDone { host, life, bytes, seen });
    }
}

impl View for Desk<'_> {
    fn project(&mut self, written: Vec<Written>, seen: Vector) {
        let Cluster { hosts, oracle, random, .. } = &mut *self.cluster;
        let host = &mut hosts[self.host];
        if let Some(node) = &host.node {
            oracle.shown(self.host, host.name.as_str(), node.files(), host.journal.durable());
        }
        if host.view.project(written, seen) {
            let after_us = random.between(20, 600) * MILLISECOND_US;
            let (host, life) = (self.host, host.life);
            self.cluster.plan(after_us, Event::ViewFlush { host, life });
        }
    }
}

impl Peers for Desk<'_> {
    fn send(&mut self, peers: &[ServerName], message: Message) {
        if let Message::Ack(acks) = &message {
            let durable = self.cluster.hosts[self.host].journal.durable();
            if let Some((stream, seq)) = acks.iter().find(|(stream, seq)| durable.seq(stream) < *seq) {
                let text = format!("S{} acknowledges {stream} up to {seq}, which is not on its disk", self.host + 1);
                self.cluster.oracle.report("P1 undurable read", || text);
            }
        }
        let bytes: Arc<[u8]> = encode_message(&message).into();
        for peer in peers {
            let Some(to) = self.cluster.host_of(peer) else { continue };
            let Cluster { network, random, now_us, .. } = &mut *self.cluster;
            if let Some((at_us, frame)) = network.send(*now_us, self.host, to, bytes.clone(), random) {
                let after_us = at_us - *now_us;
                self.cluster.plan(after_us, Event::Arrive(frame));
            }
        }
    }

    fn send_checkpoint(&mut self, peer: ServerName) {
        let host = &self.cluster.hosts[self.host];
        let Some(node) = &host.node else { return };
        let encoded = host.journal.encode(&node.checkpoint());
        let digest = Digest(*blake3::hash(&encoded).as_bytes());
        let total = encoded.len() as u64;
        for (part, bytes) in encoded.chunks(PART_BYTES).enumerate() {
            let offset = (part * PART_BYTES) as u64;
            let message = Message::CheckpointPart { digest, total, offset, bytes: bytes.to_vec() };
            self.send(std::slice::from_ref(&peer), message);
        }
    }

    fn disconnect(&mut self, peer: &ServerName, reason: &str) {
        let Some(to) = self.cluster.host_of(peer) else { return };
        self.cluster.disconnected.push((self.host, to, reason.to_owned()));
        self.cluster.note(self.host, || format!("disconnects {peer}: {reason}"));
        self.cluster.close(self.host, to);
    }
}

impl Audience for Desk<'_> {
    fn reply(&mut self, ticket: Ticket, result: Result<Committed, Refusal>) {
        self.cluster.note(self.host, || match &result {
            Ok(committed) => format!("answers {ticket}: {} {:?}", committed.entry, committed.reached),
            Err(refusal) => format!("answers {ticket}: refused, {refusal}"),
        });
        if self.cluster.asked.remove(&ticket).is_none() {
            let host = self.host + 1;
            self.cluster.oracle.report("answers", || format!("S{host} answers {ticket}, which nobody has asked"));
        }
        if let Ok(committed) = &result {
            let node = self.cluster.node(self.host);
            let others = node.map(|node| node.others().clone()).unwrap_or_default();
            let members: Vec<usize> = others.iter().filter_map(|name| self.cluster.host_of(name)).collect();
            let now_us = self.cluster.now_us;
            self.cluster.oracle.acknowledged(self.host, &members, committed, now_us);
        }
        self.cluster.answers.insert(ticket, result);
    }

    fn event(&mut self, event: NodeEvent) {
        self.cluster.note(self.host, || format!("{event:?}"));
        if let NodeEvent::FilesChanged(names) = event
            && names.iter().any(|name| name.as_str() == file::SERVER)
        {
            self.cluster.drop_strangers(self.host);
        }
    }
}

impl Cluster {
    /// Collects the parts of a checkpoint that a peer sends.
    pub(super) fn checkpoint_part(
        &mut self,
        host: usize,
        from: usize,
        digest: Digest,
        total: u64,
        offset: u64,
        bytes: &[u8],
    ) {
        let collecting = &mut self.hosts[host].collecting;
        if offset == 0 {
            collecting.insert(from, (digest, Vec::new()));
        }
        let Some((wanted, collected)) = collecting.get_mut(&from) else { return };
        if *wanted != digest || collected.len() as u64 != offset || offset + bytes.len() as u64 > total {
            collecting.remove(&from);
            return;
        }
        collected.extend_from_slice(bytes);
        if (collected.len() as u64) < total {
            return;
        }
        let Some((_, collected)) = collecting.remove(&from) else { return };
        if let Ok(checkpoint) = decode_checkpoint(&collected, self.cluster) {
            self.note(host, || format!("has the checkpoint of S{}", from + 1));
            let peer = self.hosts[from].name.clone();
            self.feed(host, Input::CheckpointReceived { peer, checkpoint: Box::new(checkpoint) });
        }
    }
}
