//! The doors between the core and the world, and the one place that carries outputs out.
//!
//! Daemon and simulator implement the same few traits; [`carry_out`] hands each output of the node to its door, in order.
//! No door blocks: what takes time comes back to the node as an `Input`.

use std::sync::Arc;

use crate::core::clock::Now;
use crate::core::entry::Sealed;
use crate::core::guest::GuestOrder;
use crate::core::id::{ServerName, Stream};
use crate::core::io::{Committed, Event, Message, Output, Refusal, Ticket};
use crate::core::management::ManagementOutput;
use crate::core::merge::Written;
use crate::core::oplog::Checkpoint;
use crate::core::version::Vector;

/// A read from the operation log on behalf of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRead {
    pub peer: ServerName,
    pub stream: Stream,
    /// First and last sequence number wanted.
    pub from: u64,
    pub to: u64,
    /// Stop after this many bytes; the first entry always comes.
    pub bytes_max: usize,
}

/// Where the operation log is kept.
pub trait Journal {
    /// Writes entries and makes them durable; answers `Appended` or `AppendFailed`.
    fn append(&mut self, entries: Vec<Arc<Sealed>>);
    /// Answers `Read`.
    fn read(&mut self, request: LogRead);
    /// Keeps a state durably before anything that is appended later; answers `CheckpointStored`, or
    /// `CheckpointFailed` where there is no room.
    fn store_checkpoint(&mut self, checkpoint: Checkpoint);
}

/// The projection of the files.
pub trait View {
    fn project(&mut self, written: Vec<Written>, seen: Vector);
}

/// The links to the other servers.
pub trait Peers {
    fn send(&mut self, peers: &[ServerName], message: Message);
    /// Sends the state of this moment, in parts.
    fn send_checkpoint(&mut self, peer: ServerName);
    fn disconnect(&mut self, peer: &ServerName, reason: &str);
}

/// Those who asked, and those who watch.
pub trait Audience {
    fn reply(&mut self, ticket: Ticket, result: Result<Committed, Refusal>);
    fn event(&mut self, event: Event);
}

/// The original servers of this host. What comes of it is told as `GuestReport`s.
pub trait Hypervisor {
    /// Carries out an order, after those given before for the same original; answers `GuestReport::Outcome`. A lease in
    /// it counts from `now`, the time at which the order was decided upon: a daemon that is frozen on the way cannot
    /// lengthen it.
    fn order(&mut self, order: GuestOrder, now: Now);
    /// Looks at every original, and makes anew those that no decision has put to work and that are absent or broken;
    /// answers `GuestReport::Changed` for each.
    fn prepare(&mut self);
}

/// What management has done: its log of decisions, questions to services and addresses, originals, the own address, hooks.
pub trait Manager {
    /// Carries it out; leases in it count from the `now` of the input that led to it. What takes time comes back as
    /// `Input::Management`.
    fn manage(&mut self, output: ManagementOutput);
}

/// Carries out outputs, in order.
pub fn carry_out<W: Journal + View + Peers + Audience + Manager>(world: &mut W, outputs: Vec<Output>) {
    for output in outputs {
        match output {
            Output::Append(entries) => world.append(entries),
            Output::Read { peer, stream, from, to, bytes_max } => {
                world.read(LogRead { peer, stream, from, to, bytes_max });
            }
            Output::Project { written, seen } => world.project(written, seen),
            Output::StoreCheckpoint(checkpoint) => world.store_checkpoint(*checkpoint),
            Output::SendCheckpoint { peer } => world.send_checkpoint(peer),
            Output::Send { peers, message } => world.send(&peers, message),
            Output::Disconnect { peer, reason } => world.disconnect(&peer, &reason),
            Output::Reply { ticket, result } => world.reply(ticket, result),
            Output::Management(output) => world.manage(output),
            Output::Event(event) => world.event(event),
        }
    }
}
