//! The control socket: how commands on this machine speak to the daemon.
//!
//! `DIR/control.sock` is a unix stream socket. Each line is one JSON object. The client sends
//! `{"version":1,"id":7,"request":…}`, the daemon answers `{"id":7,"response":…}`; answers may come in another order
//! than their requests. A request whose answer is a stream is answered by any number of lines with `"more":true` before
//! the last.
//! The requests and responses themselves are described by [`Request`] and [`Response`], and nowhere else.
//!
//! Who may do what is decided by the kernel's word about the peer (`SO_PEERCRED`, `SO_PEERGROUPS`), never by what it says of
//! itself: root, the daemon's own user and members of the configured group are operators; whoever else can open the
//! socket may read. Bounds: [`LINE_BYTES_MAX`], [`IN_FLIGHT_MAX`], [`CONNECTIONS_MAX`], [`READERS_MAX`], [`STALL_MAX`]. A client
//! that breaks one of them loses its connection, and nobody else notices.

mod client;
mod peer;
mod protocol;
mod server;
mod status;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

pub use client::{Client, ClientError, has_unit};
pub use peer::{Peer, Role};
pub use protocol::{
    Bundle, BundlePart, CertificateView, Conflict, ConflictLeaf, Edited, FileChange, FileEdit, FilePart, FileSnapshot,
    FileSummary, Keep, KeyedRegister, OriginalCheck, OriginalView, ProcedureTest, Reply, Request, Resolve, Response,
    Token,
};
pub use server::{ControlSocket, Handler, Responses};
pub use status::{
    Alarm, DiskStatus, LinkState, LoadStatus, LogStatus, MemberStatus, ProcessStatus, QueueStatus, Status, VectorStatus,
};

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// The name of the socket in the daemon's directory.
pub const FILE_NAME: &str = "control.sock";
/// Longest line either side sends, in bytes.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// Most requests of one connection that are worked on at a time; the rest wait in the socket.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Of a connection of somebody who may only read; more than may watch, so that a client that has gone is always noticed.
pub const READERS_IN_FLIGHT_MAX: usize = 128;
/// Most connections of operators at a time.
pub const CONNECTIONS_MAX: usize = 256;
/// Most connections at a time of all who may only read, and of one user among them.
pub const READERS_MAX: usize = 128;
pub const READERS_OF_USER_MAX: usize = 32;
/// How long a line may take from its first byte to its last, in either direction.
pub const STALL_MAX: Duration = Duration::from_secs(10);
/// About the most bytes in one response of a stream.
pub const PART_BYTES_MAX: usize = 256 << 10;
/// Most bytes of a bundle in one request or response.
pub const BUNDLE_PART_BYTES_MAX: usize = 1 << 20;

/// Longest path of a unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why the control socket cannot be opened.
#[derive(Debug, Error)]
pub enum ControlError {
    #[error("{path}: another daemon answers here; one directory is for one daemon")]
    Taken { path: PathBuf },
    #[error("{path}: the path of a unix socket may have {SOCKET_PATH_BYTES_MAX} bytes; use a shorter --dir")]
    PathTooLong { path: PathBuf },
    #[error("{path}: the control socket cannot be made: {source}")]
    Bind { path: PathBuf, source: io::Error },
    #[error("there is no unix group '{group}' on this machine; correct control.group in p2pdb.toml")]
    NoGroup { group: String },
    #[error(
        "{path} cannot be given to group '{group}': {source}; run the daemon as root or as a member of the group, or change control.group"
    )]
    Group { path: PathBuf, group: String, source: io::Error },
}

/// The path of the control socket of the daemon in `directory`.
pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join(FILE_NAME)
}
