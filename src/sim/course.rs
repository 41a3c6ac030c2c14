//! What happens in a cluster by itself: timers, disks that finish, frames that arrive, links that come and go.

use super::cluster::{Cluster, Event, ROOM_LOOK_US};
use super::network::{Arrival, Frame, Silence};
use super::time::{MILLISECOND_US, SECOND_US};
use super::workload::{describe_message, ids};
use crate::core::chain::ChainMessage;
use crate::core::flaw::Flaw;
use crate::core::io::{Input, Message};
use crate::core::lifecycle::Lifecycle;
use crate::core::management::ManagementInput;
use crate::core::node::{Node, TICK_MS};
use crate::core::priority::Class;
use crate::core::version::Vector;
use crate::format::decode_message;
use crate::ports::LogRead;

impl Cluster {
    pub(super) fn happen(&mut self, event: Event) {
        if let Some(host) = self.stopped_host(&event) {
            let after_us = self.hosts[host].frozen_until_us - self.now_us;
            return self.plan(after_us, event);
        }
        match event {
            Event::Tick { host, life } if self.lives(host, life) => {
                self.feed(host, Input::Tick);
                if self.settings.management.is_some() {
                    self.look_after_originals(host);
                }
                self.check_bounds(host);
                self.resume(host);
                self.plan(TICK_MS * MILLISECOND_US, Event::Tick { host, life });
            }
            Event::Synced { host, life, room } if self.lives(host, life) => self.synced(host, room),
            Event::ReadDone { host, life, request } if self.lives(host, life) => {
                let entries = self.hosts[host].journal.read(&request);
                let LogRead { peer, stream, from, .. } = request;
                self.feed(host, Input::Read { peer, stream, from, entries });
            }
            Event::CheckpointDone { host, life, bytes, seen } if self.lives(host, life) => {
                self.checkpoint_done(host, bytes, &seen);
            }
            Event::ViewFlush { host, life } if self.lives(host, life) => self.hosts[host].view.flush(),
            Event::RoomLook { host, life } if self.lives(host, life) => match self.hosts[host].disk.full {
                true => self.plan(ROOM_LOOK_US, Event::RoomLook { host, life }),
                false => self.feed(host, Input::Room { available: true }),
            },
            Event::Arrive(frame) => self.arrive(frame),
            Event::Closed { host, peer, epoch } if self.network.end(host, peer) == Some(epoch) => {
                self.lose_link(host, peer);
            }
            Event::Idle { host, peer, epoch, silence } => {
                let thawed = silence == Silence::Frozen && self.hosts[peer].frozen_until_us <= self.now_us;
                if !thawed && self.network.is_silent(host, peer, epoch, silence) {
                    self.lose_link(host, peer);
                    self.tell_closed(host, peer, epoch);
                }
            }
            Event::Dial { one, other } => self.dial(one, other),
            Event::Persisted { host, life } if self.lives(host, life) => {
                self.hosts[host].machine.decisions.sync_first();
                self.managed(host, ManagementInput::Persisted);
            }
            Event::Managed { host, life, input } if self.lives(host, life) => self.managed(host, *input),
            Event::Guest { host, life, order, begun_us } if self.lives(host, life) => {
                self.guest_done(host, order, begun_us);
            }
            Event::Address { host, life, order, begun_us } if self.lives(host, life) => {
                self.address_done(host, order, begun_us);
            }
            Event::Looked { host, life, id, address, seen } if self.lives(host, life) => {
                self.looked(host, id, address, seen);
            }
            _ => {}
        }
    }

    /// Reads on from the links that were left alone while the node took no entries.
    fn resume(&mut self, host: usize) {
        if !self.hosts[host].node.as_ref().is_some_and(Node::takes_entries) {
            return;
        }
        for peer in 0..self.hosts.len() {
            for frame in self.network.resume(peer, host) {
                self.happen(Event::Arrive(frame));
            }
        }
    }

    fn lives(&self, host: usize, life: u32) -> bool {
        self.hosts[host].runs() && self.hosts[host].life == life
    }

    /// The frozen host, if the event needs one that is.
    fn stopped_host(&self, event: &Event) -> Option<usize> {
        let host = match event {
            Event::Tick { host, .. }
            | Event::Synced { host, .. }
            | Event::ReadDone { host, .. }
            | Event::CheckpointDone { host, .. }
            | Event::ViewFlush { host, .. }
            | Event::RoomLook { host, .. }
            | Event::Closed { host, .. }
            | Event::Idle { host, .. }
            | Event::Persisted { host, .. }
            | Event::Managed { host, .. }
            | Event::Looked { host, .. } => *host,
            // The drivers are processes of their own.
            Event::Guest { .. } | Event::Address { .. } => return None,
            Event::Arrive(frame) => frame.to,
            Event::Dial { .. } => return None,
        };
        (self.hosts[host].runs() && self.hosts[host].frozen_until_us > self.now_us).then_some(host)
    }

    fn synced(&mut self, host: usize, room: bool) {
        let one = &mut self.hosts[host];
        if !room {
            one.journal.write_failed(&mut one.disk);
            self.note(host, || "append failed: no room".to_owned());
            self.plan(ROOM_LOOK_US, Event::RoomLook { host, life: self.hosts[host].life });
            return self.feed(host, Input::AppendFailed);
        }
        if self.settings.node.flaw != Some(Flaw::SkipSync) {
            one.disk.sync();
        }
        let entries = one.journal.written();
        self.oracle.written(host, &entries);
        self.note(host, || format!("has on disk {}", ids(&entries)));
        self.feed(host, Input::Appended);
    }

    fn checkpoint_done(&mut self, host: usize, bytes: Option<Vec<u8>>, seen: &Vector) {
        let one = &mut self.hosts[host];
        one.checkpoints_writing -= 1;
        let Some(bytes) = bytes else {
            self.note(host, || "checkpoint failed: no room".to_owned());
            self.plan(ROOM_LOOK_US, Event::RoomLook { host, life: self.hosts[host].life });
            return self.feed(host, Input::CheckpointFailed);
        };
        let floor = one.journal.checkpoint_stored(&mut one.disk, bytes, seen);
        for (stream, seq) in seen.iter() {
            self.oracle.witness(host).promised.raise(stream, seq);
        }
        self.note(host, || "has a checkpoint on disk".to_owned());
        self.feed(host, Input::CheckpointStored { floor });
        let one = &mut self.hosts[host];
        let archived = self.settings.keep_segments.and_then(|keep| one.journal.archive(&mut one.disk, keep));
        if let Some(floor) = archived {
            self.note(host, || "has archived segments".to_owned());
            self.feed(host, Input::Archived { floor });
        }
    }

    fn arrive(&mut self, frame: Frame) {
        let (from, to, epoch) = (frame.from, frame.to, frame.epoch);
        match self.network.arrive(frame) {
            Arrival::HeldBack => {}
            Arrival::Unknown => {
                if self.hosts[to].runs() {
                    self.tell_closed(to, from, epoch);
                }
            }
            Arrival::Delivered(frame) => self.deliver(frame),
        }
    }

    fn deliver(&mut self, Frame { from, to, epoch, mut bytes }: Frame) {
        if self.hosts[to].node.as_ref().is_some_and(|node| !node.takes_entries()) {
            return self.network.stall(Frame { from, to, epoch, bytes });
        }
        if self.corrupt_permille > 0 && bytes.len() > 150 && self.random.below(1000) < self.corrupt_permille {
            let mut corrupted = bytes.to_vec();
            let at = self.random.index(corrupted.len());
            corrupted[at] ^= 1 << self.random.below(8);
            if matches!(decode_message(&bytes), Ok(Message::Entries(_))) {
                self.note(to, || format!("gets a frame with a flipped bit from S{}", from + 1));
                bytes = corrupted.into();
            }
        }
        self.receive(to, from, &bytes);
    }

    /// What a host does with bytes from a linked peer.
    pub(super) fn receive(&mut self, host: usize, from: usize, bytes: &[u8]) {
        match decode_message(bytes) {
            Err(error) => {
                self.disconnected.push((host, from, error.to_string()));
                self.note(host, || format!("disconnects S{}: {error}", from + 1));
                self.close(host, from);
            }
            Ok(Message::CheckpointPart { digest, total, offset, bytes }) => {
                self.checkpoint_part(host, from, digest, total, offset, &bytes);
            }
            Ok(message) => {
                // Beats come all the time and would drive everything else out of the timeline.
                let is_routine = matches!(
                    message,
                    Message::Beat(_) | Message::Lease(_) | Message::Chain(ChainMessage::WantDecisions { .. })
                );
                if !is_routine {
                    let text = || format!("gets from S{}: {}", from + 1, describe_message(&message));
                    self.note(host, text);
                }
                let peer = self.hosts[from].name.clone();
                self.feed(host, Input::Frame { peer, message });
            }
        }
    }

    fn dial(&mut self, one: usize, other: usize) {
        let again_us = 150 * MILLISECOND_US + self.random.below(150 * MILLISECOND_US);
        self.plan(again_us, Event::Dial { one, other });
        let open = !self.network.is_blocked(one, other) && !self.network.is_blocked(other, one);
        let ready = |host: usize| self.hosts[host].runs() && self.hosts[host].frozen_until_us <= self.now_us;
        let accepted = self.accepts(one, other) && self.accepts(other, one);
        if self.network.is_linked(one, other) || !open || !ready(one) || !ready(other) || !accepted {
            return;
        }
        for (host, peer) in [(one, other), (other, one)] {
            if self.network.end(host, peer).is_some() {
                self.lose_link(host, peer);
            }
        }
        self.network.establish(one, other);
        self.note(one, || format!("and S{} are linked", other + 1));
        for (host, peer) in [(one, other), (other, one)] {
            let peer = self.hosts[peer].name.clone();
            self.feed(host, Input::LinkUp { peer });
        }
    }

    /// Whether a host lets another in: a member, or anyone while it does not know the members.
    fn accepts(&self, host: usize, peer: usize) -> bool {
        let Some(node) = self.node(host) else { return false };
        !knows_members(node) || node.others().contains(&self.hosts[peer].name)
    }

    /// Breaks the links to whoever is not a member any more.
    pub(super) fn drop_strangers(&mut self, host: usize) {
        for peer in 0..self.hosts.len() {
            if self.network.end(host, peer).is_some() && !self.accepts(host, peer) {
                self.close(host, peer);
            }
        }
    }

    pub(super) fn lose_link(&mut self, host: usize, peer: usize) {
        if self.network.give_up(host, peer).is_some() {
            self.hosts[host].collecting.remove(&peer);
            self.note(host, || format!("loses its link to S{}", peer + 1));
            let peer = self.hosts[peer].name.clone();
            self.feed(host, Input::LinkDown { peer });
        }
    }

    pub(super) fn tell_closed(&mut self, host: usize, peer: usize, epoch: u32) {
        if !self.network.is_blocked(host, peer) {
            let delay_us = self.network.delay(&mut self.random);
            self.plan(delay_us, Event::Closed { host: peer, peer: host, epoch });
        }
    }

    fn check_bounds(&mut self, host: usize) {
        let limits = self.settings.node.limits;
        let Some(node) = &self.hosts[host].node else { return };
        let waiting = node.queue_status(Class::Reception).waiting_bytes;
        // One message may come on top of what was still allowed.
        if waiting > limits.reception_bytes + 2 * limits.read_bytes {
            self.oracle.report("bounds", || format!("S{} has {waiting} received bytes waiting", host + 1));
        }
        let in_flight = node.sync().peers().map(|(_, peer)| peer.in_flight_bytes()).max().unwrap_or(0);
        if in_flight > limits.window_bytes + 2 * limits.read_bytes {
            self.oracle.report("bounds", || format!("S{} has {in_flight} bytes in flight to one peer", host + 1));
        }
        // A frozen daemon answers when it is thawed.
        let patience_us = if self.settings.management.is_some() { 45 * SECOND_US } else { 8 * SECOND_US };
        let late =
            self.asked.iter().find(|(_, asked)| asked.host == host && asked.deadline_us + patience_us < self.now_us);
        if let Some((&ticket, asked)) = late
            && asked.life == self.hosts[host].life
            && !self.hosts[host].disk.full
        {
            self.oracle
                .report("answers", || format!("S{} has not answered {ticket} long after its deadline", host + 1));
        }
    }
}

/// A server that has yet to get the files takes them from anyone that has a certificate.
fn knows_members(node: &Node) -> bool {
    node.lifecycle() >= Lifecycle::Ready
}
