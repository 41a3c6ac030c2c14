//! The whole contract of the node: what goes in, what comes out, and what servers say to each other.
//!
//! The daemon and the simulator feed the same inputs and carry out the same outputs. Outputs of one input are
//! carried out in order. No output waits: what takes time comes back as an input.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::chain::ChainMessage;
use super::diff::Change;
use super::entry::Sealed;
use super::id::{Digest, EntryId, FileName, ServerName, Stream};
use super::lease::LeaseMessage;
use super::lifecycle::Lifecycle;
use super::management::{ManagementInput, ManagementMessage, ManagementOutput};
use super::merge::Written;
use super::opinion::Opinion;
use super::oplog::Checkpoint;
use super::priority::Class;
use super::version::{Vector, Version};

/// Names a request until its reply.
pub type Ticket = u64;

/// On how many disks an edit must be before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wait {
    /// On this server's.
    Local,
    /// On more than half of the members', this one included.
    Majority,
    /// On every member's.
    All,
}

/// One wished change of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub file: FileName,
    pub change: Change,
    /// The versions that the author had before its eyes; `None`: what the file holds now. With bases, the edit is
    /// never refused for being out of date: it merges like an edit that another server made at the same time.
    pub bases: Option<Vec<Version>>,
}

/// One wished transaction: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// `Management` or `Transmission`.
    pub class: Class,
    pub author: String,
    pub reason: String,
    pub edits: Vec<Edit>,
}

/// Why a transaction was not taken. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("{file}: {why}")]
    Schema { file: FileName, why: String },
    #[error("{file} already has a record with this key: '{held}'; use mod to change it")]
    Exists { file: FileName, held: String },
    #[error("{file} has no record '{wanted}'")]
    Missing { file: FileName, wanted: String },
    #[error("{file} holds '{held}', not '{wanted}'; look again and repeat the edit")]
    Changed { file: FileName, held: String, wanted: String },
    #[error("the transaction is empty")]
    Empty,
    #[error("the transaction is too large: {0}")]
    TooLarge(String),
    #[error("the transaction writes the record '{key}' of {file} twice")]
    Twice { file: FileName, key: String },
    #[error(
        "the disk is full: the edit was not taken; make room where the log is kept, edits are taken again by themselves"
    )]
    DiskFull,
    #[error("this server has not got the files yet ({0}); try again when status says ready")]
    NotReady(Lifecycle),
    #[error(
        "this server's clock is {0} ms off from the other servers' clocks; set it right, edits are taken again by themselves"
    )]
    ClockOff(i64),
    #[error("too many transactions are waiting; try again")]
    Busy,
    #[error("this server has been removed from the group: nobody would get the edit")]
    Removed,
    #[error("the daemon is stopping")]
    Stopping,
    #[error(
        "this server's clock is {0} ms behind the newest entry that it holds; set it right, edits are taken again by themselves. \
         If it is right and was ahead before, nobody takes what this server writes: remove it and let it join again"
    )]
    ClockBehind(u64),
}

/// An edit that is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    pub entry: EntryId,
    /// The level that was reached; below the one asked for if the deadline passed first.
    pub reached: Wait,
    pub asked: Wait,
    /// Members that have not acknowledged yet.
    pub lacking: Vec<ServerName>,
}

/// What goes in.
#[derive(Debug)]
pub enum Input {
    /// Time has passed; expected every `TICK_MS` or so.
    Tick,
    /// Everything that was there to be handled has been: what waits may be written now. One commit takes all that waits,
    /// so this comes after the inputs that are ready together, not after each; when `Node::wants_commit` says so.
    /// The journal is certain to have room for `room_bytes`, so a commit within them fails only with the disk itself.
    Commit {
        room_bytes: u64,
    },
    Submit {
        ticket: Ticket,
        transaction: Transaction,
        wait: Wait,
        deadline_ms: u64,
    },
    /// Whoever waited for the reply has gone.
    Cancel {
        ticket: Ticket,
    },
    LinkUp {
        peer: ServerName,
    },
    LinkDown {
        peer: ServerName,
    },
    Frame {
        peer: ServerName,
        message: Message,
    },
    /// The batch of the last `Append` is on disk.
    Appended,
    /// The batch of the last `Append` is not on disk, and never will be: there is no room.
    AppendFailed,
    /// Whether the journal has room; after `AppendFailed`, nothing is appended until there is.
    Room {
        available: bool,
    },
    /// The answer to `Output::Read`: consecutive entries from the one asked for; empty if it is not in the log any more.
    Read {
        peer: ServerName,
        stream: Stream,
        from: u64,
        entries: Vec<Arc<Sealed>>,
    },
    /// The answer to `Output::StoreCheckpoint`; `floor` is the highest number per stream that the log no longer holds.
    CheckpointStored {
        floor: Vector,
    },
    /// The checkpoint of the oldest unanswered `Output::StoreCheckpoint` was not kept: there is no room.
    CheckpointFailed,
    /// Old segments were archived.
    Archived {
        floor: Vector,
    },
    /// A part of the checkpoint that was asked of a peer arrived: it has sent so many bytes of it by now.
    CheckpointProgress {
        peer: ServerName,
        collected_bytes: u64,
    },
    /// A peer's checkpoint arrived whole and passed its checks.
    CheckpointReceived {
        peer: ServerName,
        checkpoint: Box<Checkpoint>,
    },
    /// The certificate and key that this server signs with from now on.
    Identity {
        certificate: Arc<[u8]>,
        key: [u8; 32],
        run: u32,
    },
    Management(ManagementInput),
}

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// Write these entries and make them durable: answered by `Appended` or `AppendFailed`. One at a time.
    Append(Vec<Arc<Sealed>>),
    /// Read entries of a stream from the log, `from` onwards, at most `bytes_max` of them and none above `to`.
    Read {
        peer: ServerName,
        stream: Stream,
        from: u64,
        to: u64,
        bytes_max: usize,
    },
    /// Project these registers; `seen` holds after them.
    Project {
        written: Vec<Written>,
        seen: Vector,
    },
    /// Keep this state as a checkpoint, durably, before the log goes on: answered by `CheckpointStored` or
    /// `CheckpointFailed`, in the order of asking.
    StoreCheckpoint(Box<Checkpoint>),
    /// Send the current checkpoint to a peer that is too far behind.
    SendCheckpoint {
        peer: ServerName,
    },
    Send {
        peers: Vec<ServerName>,
        message: Message,
    },
    /// Break the link: the peer has sent what it must not.
    Disconnect {
        peer: ServerName,
        reason: String,
    },
    Reply {
        ticket: Ticket,
        result: Result<Committed, Refusal>,
    },
    Management(ManagementOutput),
    Event(Event),
}

/// What people and the daemon's other parts should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Event {
    /// These files have changed: the plain-file view must follow.
    FilesChanged(Vec<FileName>),
    Lifecycle(Lifecycle),
    /// Something is wrong and stays wrong until it is cleared by the same name.
    Alarm {
        name: String,
        text: String,
    },
    AlarmCleared {
        name: String,
    },
}

/// A range of one stream, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub stream: Stream,
    pub from: u64,
    pub to: u64,
}

/// What a server says of itself a few times a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub wall_ms: u64,
    /// Digest of the vector of durable entries.
    pub vector: Digest,
    /// Digest of the files that these entries make.
    pub files: Digest,
    pub lifecycle: Lifecycle,
}

/// What servers say to each other. Variants are only ever appended.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Consecutive entries of one stream, ending in a signed one.
    Entries(Vec<Arc<Sealed>>),
    /// Durable and readable at the sender: cumulative, per stream.
    Ack(Vec<(Stream, u64)>),
    Beat(Beat),
    /// All that the sender holds, and what its log no longer has; together with the parts before it.
    Vector {
        held: Vector,
        floor: Vector,
    },
    Want(Vec<Range>),
    /// The sender is too far behind for the receiver's log.
    WantCheckpoint,
    /// A part of the receiver's checkpoint file.
    CheckpointPart {
        digest: Digest,
        total: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    WantBundle {
        digest: Digest,
        offset: u64,
    },
    BundlePart {
        digest: Digest,
        total: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    NoBundle {
        digest: Digest,
    },
    /// Asks a server that holds the CA key for a new certificate for the sender's new public key.
    WantCertificate {
        request: Vec<u8>,
    },
    Certificate {
        result: Result<Vec<u8>, String>,
    },
    /// Between electors, and to whoever learns from them.
    Chain(ChainMessage),
    /// Between the two managers of a target.
    Opinion(Opinion),
    /// Between who holds service addresses and the electors.
    Lease(LeaseMessage),
    Management(ManagementMessage),
    /// A part of what the sender holds, when it is more than one message takes; a `Vector` ends the parts.
    VectorPart {
        held: Vector,
        floor: Vector,
    },
}
