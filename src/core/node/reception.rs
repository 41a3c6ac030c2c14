//! What peers send: entries, acknowledgements, vectors. A received entry goes the way of an own one, through the queue into a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Commit, FIRST_INTERNAL_TICKET, Node, Work};
use crate::core::clock::Now;
use crate::core::entry::Sealed;
use crate::core::flaw::Flaw;
use crate::core::id::{ServerName, Stream};
use crate::core::io::{Committed, Message, Output, Ticket};
use crate::core::management::Cause;
use crate::core::oplog::{Admitted, ChainError};
use crate::core::priority::Class;

impl Node {
    pub(super) fn frame(&mut self, now: Now, peer: ServerName, message: Message, out: &mut Vec<Output>) {
        if !self.sync.is_linked(&peer) {
            return;
        }
        match message {
            Message::Entries(entries) => {
                if self.has_room && !entries.is_empty() {
                    let bytes = entries.iter().map(|sealed| sealed.entry().weight_bytes()).sum();
                    let work = Work::Received { peer, entries };
                    self.queue.push(Class::Reception, work, bytes, now.monotonic_us);
                }
            }
            Message::Ack(acks) => {
                for (stream, seq) in acks {
                    self.with_holding(now, |sync, holding| sync.acknowledged(&peer, &stream, seq, holding));
                    self.acknowledged(&peer, &stream, seq, out);
                }
                self.with_holding(now, |sync, holding| sync.pump(&peer, holding, out));
            }
            Message::Beat(beat) => self.beat(now, peer, beat, out),
            Message::Vector { held, floor } => {
                let mine: Vec<_> = held
                    .iter()
                    .filter(|(stream, _)| stream.origin == self.config.me)
                    .map(|(stream, seq)| (stream.clone(), seq))
                    .collect();
                self.with_holding(now, |sync, holding| {
                    sync.vector(&peer, held, floor, holding, out);
                });
                for (stream, seq) in mine {
                    self.acknowledged(&peer, &stream, seq.min(self.durable.seq(&stream)), out);
                }
                self.update_lifecycle(now, out);
            }
            Message::Want(ranges) => {
                self.with_holding(now, |sync, holding| sync.wanted_by(&peer, ranges, holding, out));
            }
            Message::WantCheckpoint => out.push(Output::SendCheckpoint { peer }),
            // Content and certificates are not the node's business.
            Message::CheckpointPart { .. }
            | Message::WantBundle { .. }
            | Message::BundlePart { .. }
            | Message::NoBundle { .. }
            | Message::VectorPart { .. }
            | Message::WantCertificate { .. }
            | Message::Certificate { .. } => {}
            message @ (Message::Chain(_) | Message::Opinion(_) | Message::Lease(_) | Message::Management(_)) => {
                self.manage(now, Cause::Message { peer, message }, out);
            }
        }
    }

    /// Adds received entries to the commit, if they continue their streams.
    pub(super) fn receive(
        &mut self,
        now: Now,
        peer: ServerName,
        entries: &[Arc<Sealed>],
        commit: &mut Commit,
        out: &mut Vec<Output>,
    ) {
        let admitted = match self.config.flaw {
            Some(Flaw::SkipVerify) => Ok(self.tip.admit_unverified(entries)),
            _ => self.tip.admit(self.config.cluster, self.certifier.as_ref(), entries),
        };
        match admitted {
            Ok(Some(Admitted { stream, head, entries })) => {
                if self.is_far_future(now, &stream, head.time, out) {
                    return;
                }
                self.watch_future(now, &stream, &head, out);
                self.clock.observe(head.time);
                commit.bytes += entries.iter().map(|sealed| sealed.entry().weight_bytes()).sum::<usize>();
                commit.sources.push((peer.clone(), stream.clone(), head.seq));
                self.sync.received(&peer, &stream, head.seq);
                if self.config.flaw == Some(Flaw::AcknowledgeEarly) {
                    let acks = vec![(stream.clone(), head.seq)];
                    out.push(Output::Send { peers: vec![peer], message: Message::Ack(acks) });
                }
                self.tip.set(stream, Some(head));
                commit.entries.extend(entries);
            }
            // Held already: the sender may not know, so it is told.
            Ok(None) => {
                let stream = entries[0].id().stream.clone();
                let seq = self.durable.seq(&stream);
                out.push(Output::Send { peers: vec![peer], message: Message::Ack(vec![(stream, seq)]) });
            }
            // Entries were lost between the sender and here; the next exchange of vectors brings them.
            Err(ChainError::Gap { .. }) => {}
            Err(ChainError::Fork(id)) => {
                let text = format!("{peer} sent another entry under the id {id} than the one held here");
                self.raise_alarm(&format!("fork {}", id.stream.origin), text, out);
            }
            Err(error) => out.push(Output::Disconnect { peer, reason: error.to_string() }),
        }
    }

    pub(super) fn acknowledge_received(&mut self, sources: Vec<(ServerName, Stream, u64)>, out: &mut Vec<Output>) {
        let mut acks: BTreeMap<ServerName, BTreeMap<Stream, u64>> = BTreeMap::new();
        for (source, stream, seq) in sources {
            let origin = stream.origin.clone();
            for receiver in BTreeSet::from([source, origin]) {
                if self.sync.is_linked(&receiver) {
                    acks.entry(receiver).or_default().insert(stream.clone(), seq);
                }
            }
        }
        for (peer, acks) in acks {
            out.push(Output::Send { peers: vec![peer], message: Message::Ack(acks.into_iter().collect()) });
        }
    }

    fn acknowledged(&mut self, peer: &ServerName, stream: &Stream, seq: u64, out: &mut Vec<Output>) {
        // What this server has never written is not worth remembering.
        if stream.origin != self.config.me || self.tip.seq(stream) == 0 {
            return;
        }
        for (ticket, committed) in self.waits.acknowledge(peer, stream, seq, &self.others) {
            self.reply(ticket, committed, out);
        }
    }

    pub(super) fn reply(&self, ticket: Ticket, committed: Committed, out: &mut Vec<Output>) {
        if ticket < FIRST_INTERNAL_TICKET {
            out.push(Output::Reply { ticket, result: Ok(committed) });
        }
    }
}
