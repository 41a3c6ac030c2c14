//! What the node's outputs are carried out with: the journal, the view, the links.
//!
//! What concerns the loop itself (replies, events, checkpoints to send) is put down here and taken up by the loop
//! once the outputs of one input are carried out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tracing::{debug, warn};

use super::stages::{self, Stage};
use crate::core::entry::Sealed;
use crate::core::id::ServerName;
use crate::core::io::{Committed, Event, Message, Refusal, Ticket};
use crate::core::management::ManagementOutput;
use crate::core::merge::Written;
use crate::core::oplog::Checkpoint;
use crate::core::version::Vector;
use crate::edge::journal;
use crate::edge::quic::{Channel, Mesh};
use crate::edge::view;
use crate::format;
use crate::ports::{Audience, Journal, LogRead, Manager, Peers, View};

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
    pub sent: BTreeMap<ServerName, Sent>,
    /// Alarms of the daemon's own parts, beside the node's.
    pub alarms: BTreeMap<String, String>,
}

impl World {
    pub fn send_on(&mut self, channel: Channel, peers: &[ServerName], message: &Message) {
        let frame = Bytes::from(format::encode_message(message));
        for peer in peers {
            match self.mesh.send(peer, channel, frame.clone()) {
                Ok(()) => {
                    let sent = self.sent.entry(peer.clone()).or_default();
                    sent.messages += 1;
                    sent.bytes += frame.len() as u64;
                }
                // What is lost is found missing by the next exchange of vectors.
                Err(error) => debug!(%peer, "frame not sent: {error}"),
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
