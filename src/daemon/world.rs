//! What the node's outputs are carried out with: the journal, the view, the links.
//!
//! What concerns the loop itself (replies, events, checkpoints to send) is put down here and taken up by the loop
//! once the outputs of one input are carried out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::stages::{self, Stage};
use crate::core::entry::Sealed;
use crate::core::id::ServerName;
use crate::core::io::{Committed, Event, Message, Refusal, Ticket};
use crate::core::management::ManagementOutput;
use crate::core::merge::Written;
use crate::core::oplog::Checkpoint;
use crate::core::version::Vector;
use crate::edge::frame::SendError;
use crate::edge::journal;
use crate::edge::quic::{Channel, Mesh};
use crate::edge::vector_parts::{self, STREAMS_MAX};
use crate::edge::view;
use crate::format;
use crate::format::message::MESSAGE_BYTES_MAX;
use crate::ports::{Audience, Journal, LogRead, Manager, Peers, View};

const STREAMS_ALARM: &str = "streams";

/// Frames sent to one peer since the start.
#[derive(Default, Clone, Copy)]
pub struct Sent {
    pub messages: u64,
    pub bytes: u64,
}

pub struct World {
    pub me: ServerName,
    pub journal: journal::Journal,
    pub view: view::View,
    pub mesh: Arc<Mesh>,
    /// What is on its way to the disk.
    pub appending: Vec<Arc<Sealed>>,
    pub replies: Vec<(Ticket, Result<Committed, Refusal>)>,
    pub events: Vec<Event>,
    pub management: Vec<ManagementOutput>,
    pub checkpoints_wanted: Vec<ServerName>,
    /// Vectors on their way in parts.
    pub vectors_out: BTreeMap<ServerName, JoinHandle<()>>,
    pub sent: BTreeMap<ServerName, Sent>,
    /// Alarms of the daemon's own parts, beside the node's.
    pub alarms: BTreeMap<String, String>,
}

impl World {
    pub fn send_on(&mut self, channel: Channel, peers: &[ServerName], message: &Message) {
        let frame = Bytes::from(format::encode_message(message));
        if let Message::Vector { held, floor } = message {
            self.watch_vector(held.len());
            if frame.len() > MESSAGE_BYTES_MAX {
                return peers.iter().for_each(|peer| self.send_vector(peer, held, floor));
            }
        }
        for peer in peers {
            match self.mesh.send(peer, channel, frame.clone()) {
                Ok(()) => {
                    let sent = self.sent.entry(peer.clone()).or_default();
                    sent.messages += 1;
                    sent.bytes += frame.len() as u64;
                }
                Err(error @ SendError::TooLong) => {
                    warn!(%peer, bytes = frame.len(), "a message that no frame takes was not sent: {error}");
                }
                // What is lost is found missing by the next exchange of vectors.
                Err(error) => debug!(%peer, "frame not sent: {error}"),
            }
        }
    }

    /// Sends a vector in parts. Beyond what is taken nothing is said, or the others would break the link, with all else that it is for.
    fn send_vector(&mut self, peer: &ServerName, held: &Vector, floor: &Vector) {
        let under_way = self.vectors_out.get(peer).is_some_and(|sending| !sending.is_finished());
        if under_way || held.len().max(floor.len()) > STREAMS_MAX {
            return;
        }
        let (mesh, receiver, parts) = (self.mesh.clone(), peer.clone(), vector_parts::parts(held, floor));
        let sending = tokio::spawn(async move {
            let frames = parts.iter().map(|part| Bytes::from(format::encode_message(part)));
            mesh.send_in_turn(&receiver, Channel::Bulk, frames).await;
        });
        self.vectors_out.insert(peer.clone(), sending);
    }

    /// The link with a peer is gone: what was to be sent on it must not be sent on the next.
    pub fn stop_vector(&mut self, peer: &ServerName) {
        if let Some(sending) = self.vectors_out.remove(peer) {
            sending.abort();
        }
    }

    /// Tells in good time when there are nearly more streams than the others take.
    fn watch_vector(&mut self, streams: usize) {
        let name = STREAMS_ALARM.to_owned();
        match vector_alarm(streams) {
            Some(text) => {
                if self.alarms.insert(name.clone(), text.clone()).is_none() {
                    self.events.push(Event::Alarm { name, text });
                }
            }
            None => {
                if self.alarms.remove(&name).is_some() {
                    self.events.push(Event::AlarmCleared { name });
                }
            }
        }
    }

    pub async fn close(self) {
        let Self { journal, view, mesh, .. } = self;
        if let Some(mesh) = Arc::into_inner(mesh) {
            mesh.close().await;
        }
        let closed = tokio::task::spawn_blocking(move || {
            journal.close();
            view.close();
        });
        if closed.await.is_err() {
            warn!("the log or the view did not close cleanly; both are checked at the next start");
        }
    }
}

/// What is to be said of so many streams, if anything is.
fn vector_alarm(streams: usize) -> Option<String> {
    if streams < STREAMS_MAX / 2 {
        return None;
    }
    let told = format!(
        "{streams} streams are held here, one or two of each start of a daemon; servers tell each other of {STREAMS_MAX} at most"
    );
    if streams > STREAMS_MAX {
        Some(format!("{told}: what others lack is not repaired any more; found the group anew"))
    } else {
        Some(format!("{told}: beyond that nothing is repaired any more; found the group anew before"))
    }
}

impl Journal for World {
    fn append(&mut self, entries: Vec<Arc<Sealed>>) {
        let own = |sealed: &&Arc<Sealed>| sealed.id().stream.origin == self.me;
        stages::pass(Stage::Sealed, entries.iter().filter(own).map(|sealed| sealed.id()));
        stages::pass(Stage::Checked, entries.iter().filter(|sealed| !own(sealed)).map(|sealed| sealed.id()));
        self.appending.clone_from(&entries);
        self.journal.append(entries);
    }

    fn read(&mut self, request: LogRead) {
        let LogRead { peer, stream, from, to, bytes_max } = request;
        self.journal.read(peer, stream, from, to, bytes_max);
    }

    fn store_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.journal.store_checkpoint(Box::new(checkpoint));
    }
}

impl View for World {
    fn project(&mut self, written: Vec<Written>, seen: Vector) {
        self.view.project(written, seen);
    }
}

impl Peers for World {
    fn send(&mut self, peers: &[ServerName], message: Message) {
        self.send_on(Channel::Live, peers, &message);
        if let Message::Entries(entries) = &message {
            stages::pass(Stage::Sent, entries.iter().map(|sealed| sealed.id()));
        }
    }

    fn send_checkpoint(&mut self, peer: ServerName) {
        self.checkpoints_wanted.push(peer);
    }

    fn disconnect(&mut self, peer: &ServerName, reason: &str) {
        warn!(%peer, reason, "link broken: it sent what it must not");
        self.mesh.disconnect(peer, reason);
    }
}

impl Manager for World {
    fn manage(&mut self, output: ManagementOutput) {
        self.management.push(output);
    }
}

impl Audience for World {
    fn reply(&mut self, ticket: Ticket, result: Result<Committed, Refusal>) {
        self.replies.push((ticket, result));
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_in_good_time_that_the_others_will_not_take_so_many_streams() {
        assert_eq!(vector_alarm(1_000), None);
        let early = vector_alarm(60_000).expect("more than half of what is taken");
        assert!(early.contains("60000 streams") && early.contains("anew before"), "{early}");
        let late = vector_alarm(STREAMS_MAX + 1).expect("more than is taken");
        assert!(late.contains("not repaired any more"), "{late}");
    }
}
