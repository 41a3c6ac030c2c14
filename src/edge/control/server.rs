//! The daemon's side of the control socket.
//!
//! One task per connection reads lines, runs the requests side by side and writes the answers as they come; while the client
//! does not read its answers, nothing more is read from it. When the client goes, what it waits for is dropped: a
//! handler's future must stand being dropped at any await.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::peer::{Access, Peer, Role, group_id, peer_groups, user_name};
use super::protocol::{Call, CallHead, Reply, Request, Response};
use super::{
    CONNECTIONS_MAX, ControlError, IN_FLIGHT_MAX, LINE_BYTES_MAX, READERS_IN_FLIGHT_MAX, READERS_MAX,
    READERS_OF_USER_MAX, SOCKET_PATH_BYTES_MAX, STALL_MAX, VERSION, socket_path,
};
use crate::edge::config::ControlConfig;

/// Carries out requests. The server has checked that the peer may ask them.
pub trait Handler: Clone + Send + 'static {
    /// Answers a request whose answer is no stream.
    fn handle(&self, peer: Peer, request: Request) -> impl Future<Output = Response> + Send;

    /// Answers a request by a stream: sends to `responses` what there is, until sending says that the client has gone. What
    /// is returned is the last response.
    fn stream(&self, peer: Peer, request: Request, responses: Responses) -> impl Future<Output = Response> + Send;
}

/// Where the responses of a stream go.
#[derive(Debug)]
pub struct Responses {
    id: u64,
    replies: mpsc::Sender<Reply>,
}

impl Responses {
    /// Waits until there is room, so a slow client slows down only its own stream.
    ///
    /// # Errors
    /// The client has gone.
    pub async fn send(&self, response: Response) -> Result<(), Response> {
        let reply = Reply { id: self.id, more: true, response };
        self.replies.send(reply).await.map_err(|unsent| unsent.0.response)
    }
}

/// The open control socket. Dropping it removes it from the directory.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    access: Access,
}

impl ControlSocket {
    /// Opens the socket in `directory`; must be called within a tokio runtime. A socket that a dead daemon left behind
    /// is replaced.
    ///
    /// # Errors
    /// Another daemon answers there, or the socket cannot be made as the settings say.
    pub fn bind(directory: &Path, config: &ControlConfig) -> Result<Self, ControlError> {
        let path = socket_path(directory);
        let operators_gid = group_id(&config.group)?;
        let access = Access { daemon_uid: rustix::process::geteuid().as_raw(), operators_gid };
        // It appears under its name with its rights, never before it has them.
        let temporary = directory.join(format!("{}.new", super::FILE_NAME));
        if temporary.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(ControlError::PathTooLong { path });
        }
        if StdUnixStream::connect(&path).is_ok() {
            return Err(ControlError::Taken { path });
        }
        let failed = |source| ControlError::Bind { path: path.clone(), source };
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&temporary).map_err(failed)?;
        if let Some(gid) = operators_gid {
            std::os::unix::fs::chown(&temporary, None, Some(gid)).map_err(|source| ControlError::Group {
                path: path.clone(),
                group: config.group.clone(),
                source,
            })?;
        }
        let mode = if config.everyone_reads { 0o666 } else { 0o660 };
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        std::fs::rename(&temporary, &path).map_err(failed)?;
        Ok(Self { listener, path, access })
    }

    /// Serves clients until it is dropped; all its connections end with it.
    pub async fn serve<H: Handler>(self, handler: H) {
        let mut connections = JoinSet::new();
        let mut room = Room::new();
        loop {
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let peer = match identify(&stream, self.access) {
                        Ok(peer) => peer,
                        Err(error) => {
                            debug!(%error, "a control connection ended");
                            continue;
                        }
                    };
                    let Some(place) = room.enter(&peer).await else {
                        debug!(user = peer.user, "a control connection is refused: there are too many of readers");
                        continue;
                    };
                    let handler = handler.clone();
                    connections.spawn(async move {
                        if let Err(error) = Connection::new(stream, peer, handler).run().await {
                            debug!(%error, "a control connection ended");
                        }
                        drop(place);
                    });
                }
                // Out of file descriptors, most likely: it passes.
                Err(error) => {
                    debug!(%error, "a control connection could not be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Room for connections. Readers have their own, and none of them all of it: whatever they do, operators get in.
struct Room {
    operators: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    by_reader: BTreeMap<u32, Arc<Semaphore>>,
}

/// What one connection takes of the room, until it is dropped.
type Place = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Room {
    fn new() -> Self {
        let room = |connections| Arc::new(Semaphore::new(connections));
        Self { operators: room(CONNECTIONS_MAX), readers: room(READERS_MAX), by_reader: BTreeMap::new() }
    }

    /// Operators wait for a place; for a reader there is one, or `None`.
    async fn enter(&mut self, peer: &Peer) -> Option<Place> {
        if peer.role == Role::Operator {
            return Some((self.operators.clone().acquire_owned().await.ok()?, None));
        }
        self.by_reader.retain(|_, room| room.available_permits() < READERS_OF_USER_MAX);
        let of_user = self.by_reader.entry(peer.uid).or_insert_with(|| Arc::new(Semaphore::new(READERS_OF_USER_MAX)));
        let of_user = of_user.clone().try_acquire_owned().ok()?;
        Some((self.readers.clone().try_acquire_owned().ok()?, Some(of_user)))
    }
}

fn identify(stream: &UnixStream, access: Access) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let (uid, gid) = (credentials.uid(), credentials.gid());
    let groups = peer_groups(stream.as_fd())?;
    Ok(Peer {
        uid,
        gid,
        pid: credentials.pid().unwrap_or(0),
        user: user_name(uid),
        role: access.role(uid, gid, &groups),
    })
}

struct Connection<H> {
    stream: UnixStream,
    peer: Peer,
    handler: H,
    running: JoinSet<Reply>,
    streamed: mpsc::Receiver<Reply>,
    stream_sender: mpsc::Sender<Reply>,
    inbound: Vec<u8>,
    /// Where the next line of `inbound` begins.
    begun: usize,
    /// No newline from there up to here.
    searched: usize,
    outbound: Vec<u8>,
}

impl<H: Handler> Connection<H> {
    fn new(stream: UnixStream, peer: Peer, handler: H) -> Self {
        let (stream_sender, streamed) = mpsc::channel(64);
        Self {
            stream,
            peer,
            handler,
            running: JoinSet::new(),
            streamed,
            stream_sender,
            inbound: Vec::new(),
            begun: 0,
            searched: 0,
            outbound: Vec::new(),
        }
    }

    async fn run(&mut self) -> io::Result<()> {
        let in_flight_max = if self.peer.role == Role::Operator { IN_FLIGHT_MAX } else { READERS_IN_FLIGHT_MAX };
        let mut line_deadline = None;
        let mut lines = 0;
        loop {
            while self.running.len() < in_flight_max
                && let Some(line) = self.next_line()?
            {
                line_deadline = None;
                self.accept(&line);
                lines += 1;
                if lines % LINES_AT_ONCE == 0 {
                    self.flush().await?;
                    yield_now().await;
                }
            }
            if self.begun < self.inbound.len() && line_deadline.is_none() {
                line_deadline = Some(Instant::now() + STALL_MAX);
            }
            self.flush().await?;
            tokio::select! {
                read = self.stream.read_buf(&mut self.inbound), if self.running.len() < in_flight_max => {
                    if read? == 0 {
                        return Ok(());
                    }
                }
                Some(done) = self.running.join_next() => {
                    self.reply_joined(done)?;
                    while let Some(done) = self.running.try_join_next() {
                        self.reply_joined(done)?;
                    }
                }
                Some(reply) = self.streamed.recv() => {
                    self.reply(&reply);
                    while self.outbound.len() < LINE_BYTES_MAX && let Ok(reply) = self.streamed.try_recv() {
                        self.reply(&reply);
                    }
                }
                () = sleep_until(line_deadline.unwrap_or_else(Instant::now)),
                    if line_deadline.is_some() && self.running.len() < in_flight_max => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "half a line, and no more"));
                }
            }
        }
    }

    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let found = self.inbound[self.searched..].iter().position(|byte| *byte == b'\n');
        if let Some(at) = found {
            let end = self.searched + at + 1;
            let line = self.inbound[self.begun..end].to_vec();
            (self.begun, self.searched) = (end, end);
            return Ok(Some(line));
        }
        // Not after each line: all that follows is moved.
        self.inbound.drain(..std::mem::take(&mut self.begun));
        self.searched = self.inbound.len();
        if self.inbound.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line longer than any request"));
        }
        Ok(None)
    }

    fn accept(&mut self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let (id, request) = match serde_json::from_slice::<Call>(line) {
            Ok(Call { version: VERSION, id, request }) => (id, request),
            Ok(Call { version, id, .. }) => return self.reply(&other_version(id, version)),
            Err(error) => {
                // A request of another version need not be known here.
                let reply = match serde_json::from_slice::<CallHead>(line) {
                    Ok(head) if head.version != VERSION => other_version(head.id, head.version),
                    head => {
                        let response = Response::failed(format!("this is no request: {error}"), "");
                        Reply { id: head.map_or(0, |head| head.id), more: false, response }
                    }
                };
                return self.reply(&reply);
            }
        };
        if request.needs_operator() && self.peer.role != Role::Operator {
            let response = denied(&self.peer, &request);
            return self.reply(&Reply { id, more: false, response });
        }
        let (handler, peer) = (self.handler.clone(), self.peer.clone());
        if request.is_streamed() {
            let responses = Responses { id, replies: self.stream_sender.clone() };
            self.running.spawn(async move {
                let replies = responses.replies.clone();
                let response = handler.stream(peer, request, responses).await;
                // By the same way as those before it, so that it stays the last.
                let last = Reply { id, more: false, response };
                let _ = replies.send(last).await;
                Reply { id: NO_REPLY, more: true, response: Response::Watching }
            });
        } else {
            self.running.spawn(async move { Reply { id, more: false, response: handler.handle(peer, request).await } });
        }
    }

    fn reply_joined(&mut self, done: Result<Reply, tokio::task::JoinError>) -> io::Result<()> {
        match done {
            Ok(reply) if reply.id == NO_REPLY && reply.more => {}
            Ok(reply) => self.reply(&reply),
            // Whose request it was is lost with the task: the client must not wait for its answer.
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    fn reply(&mut self, reply: &Reply) {
        let start = self.outbound.len();
        let written = serde_json::to_writer(&mut self.outbound, reply);
        if written.is_err() || self.outbound.len() - start > LINE_BYTES_MAX {
            self.outbound.truncate(start);
            let response = Response::failed(
                format!("the answer is longer than {LINE_BYTES_MAX} bytes"),
                "read the file in the plain-file view instead",
            );
            serde_json::to_writer(&mut self.outbound, &Reply { id: reply.id, more: false, response })
                .expect("a short answer can be written to memory");
        }
        self.outbound.push(b'\n');
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.outbound.is_empty() {
            return Ok(());
        }
        timeout(STALL_MAX, self.stream.write_all(&self.outbound))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answers"))??;
        self.outbound.clear();
        Ok(())
    }
}

/// After so many lines of one client all that the daemon does besides has its turn.
const LINES_AT_ONCE: usize = 256;
/// No client's request has this id.
const NO_REPLY: u64 = u64::MAX;

fn other_version(id: u64, version: u32) -> Reply {
    let what = format!("the daemon speaks version {VERSION} of the control protocol, not {version}");
    let response = Response::failed(what, "use the p2pdb command of the version that the daemon runs");
    Reply { id, more: false, response }
}

fn denied(peer: &Peer, request: &Request) -> Response {
    Response::Denied {
        who: format!("{} (uid {}, pid {})", peer.user, peer.uid, peer.pid),
        what: request.describe(),
        why: "this user may only read; root, the daemon's user and the group control.group of p2pdb.toml may make changes"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::FileName;
    use tokio::io::{AsyncBufReadExt, BufReader};

    #[derive(Clone)]
    struct Echo;

    impl Handler for Echo {
        async fn handle(&self, peer: Peer, request: Request) -> Response {
            match request {
                Request::Shutdown => Response::Stopping,
                // The first request is answered after the second.
                Request::FilesList => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    Response::Files(Vec::new())
                }
                _ => Response::failed(peer.user, ""),
            }
        }

        async fn stream(&self, _peer: Peer, _request: Request, responses: Responses) -> Response {
            for _ in 0..3 {
                if responses.send(Response::Watching).await.is_err() {
                    break;
                }
            }
            Response::Stopping
        }
    }

    fn connected(role: Role) -> (UnixStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer { uid: 1000, gid: 1000, pid: 7, user: "alice".into(), role };
        (ours, tokio::spawn(async move { Connection::new(theirs, peer, Echo).run().await }))
    }

    async fn exchange(role: Role, text: &str, answers: usize) -> Vec<String> {
        let (mut stream, _server) = connected(role);
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let mut found = Vec::new();
        for _ in 0..answers {
            found.push(lines.next_line().await.unwrap().unwrap());
        }
        found
    }

    #[tokio::test]
    async fn readers_read_and_operators_change() {
        let stop = "{\"version\":1,\"id\":5,\"request\":\"shutdown\"}\n";
        let answer = exchange(Role::Operator, stop, 1).await;
        assert_eq!(answer, [r#"{"id":5,"response":"stopping"}"#]);
        let answer = exchange(Role::ReadOnly, stop, 1).await;
        assert!(answer[0].contains("alice (uid 1000, pid 7)") && answer[0].contains("stop the daemon"), "{answer:?}");
        let list = "{\"version\":1,\"id\":6,\"request\":\"files_list\"}\n";
        assert_eq!(exchange(Role::ReadOnly, list, 1).await, [r#"{"id":6,"response":{"files":[]}}"#]);
    }

    #[tokio::test]
    async fn readers_leave_room_for_operators_and_for_each_other() {
        let peer = |uid, role| Peer { uid, gid: uid, pid: 7, user: String::new(), role };
        let mut room = Room::new();
        let mut places = Vec::new();
        for (uid, wanted) in (1000..).zip([READERS_OF_USER_MAX, READERS_MAX, READERS_MAX, READERS_MAX, READERS_MAX]) {
            while let Some(place) = room.enter(&peer(uid, Role::ReadOnly)).await {
                places.push(place);
            }
            assert!(places.len() <= wanted, "{} with {uid}", places.len());
        }
        assert_eq!(places.len(), READERS_MAX);
        assert!(room.enter(&peer(0, Role::Operator)).await.is_some());
        places.clear();
        assert!(room.enter(&peer(1000, Role::ReadOnly)).await.is_some());
        assert_eq!(room.by_reader.len(), 1, "who has gone is forgotten");
    }

    #[tokio::test]
    async fn answers_come_as_they_are_ready() {
        let text = "{\"version\":1,\"id\":1,\"request\":\"files_list\"}\n\n{\"version\":1,\"id\":2,\"request\":\"shutdown\"}\n";
        let answers = exchange(Role::Operator, text, 2).await;
        assert!(answers[0].contains("\"id\":2") && answers[1].contains("\"id\":1"), "{answers:?}");
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_last_response() {
        let text = "{\"version\":1,\"id\":9,\"request\":{\"watch\":{\"files\":[]}}}\n";
        let answers = exchange(Role::ReadOnly, text, 4).await;
        assert!(answers[..3].iter().all(|line| line.contains("\"more\":true")), "{answers:?}");
        assert_eq!(answers[3], r#"{"id":9,"response":"stopping"}"#);
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_the_connection_stays() {
        let text = "hello\n{\"version\":1,\"id\":3,\"request\":\"dance\"}\n{\"version\":9,\"id\":4,\"request\":\"status\"}\n\
                    {\"version\":1,\"id\":5,\"request\":{\"file_read\":{\"file\":\"../x\"}}}\n";
        let answers = exchange(Role::Operator, text, 4).await;
        assert!(answers[0].contains("\"id\":0") && answers[0].contains("no request"), "{answers:?}");
        assert!(answers[1].contains("\"id\":3") && answers[1].contains("dance"), "{answers:?}");
        assert!(answers[2].contains("\"id\":4") && answers[2].contains("version 1"), "{answers:?}");
        assert!(answers[3].contains("\"id\":5") && answers[3].contains("the name '../x'"), "{answers:?}");
    }

    #[tokio::test]
    async fn an_endless_line_costs_the_connection() {
        let (mut stream, server) = connected(Role::Operator);
        let block = vec![b'x'; 1 << 20];
        while stream.write_all(&block).await.is_ok() {}
        assert_eq!(server.await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn whoever_sends_many_lines_holds_up_nobody_else() {
        use std::io::Write;
        let (mut sender, theirs) = StdUnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let peer = Peer { uid: 1000, gid: 1000, pid: 7, user: "alice".into(), role: Role::ReadOnly };
        let theirs = UnixStream::from_std(theirs).unwrap();
        tokio::spawn(async move { Connection::new(theirs, peer, Echo).run().await });
        // The long line makes room for many short ones.
        let sending = std::thread::spawn(move || {
            sender.write_all(&vec![b'x'; 3 << 20]).and_then(|()| sender.write_all(&vec![b'\n'; 2 << 20]))
        });
        let list = "{\"version\":1,\"id\":6,\"request\":\"files_list\"}\n";
        while !sending.is_finished() {
            let begun = Instant::now();
            exchange(Role::ReadOnly, list, 1).await;
            assert!(begun.elapsed() < std::time::Duration::from_secs(1), "answered after {:?}", begun.elapsed());
        }
        sending.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_socket_has_its_rights_and_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let config = ControlConfig { group: String::new(), everyone_reads: false };
        // A dead daemon's socket does not stand in the way.
        drop(StdUnixStream::pair());
        std::os::unix::net::UnixListener::bind(socket_path(folder.path())).unwrap();
        let socket = ControlSocket::bind(folder.path(), &config).unwrap();
        let mode = std::fs::metadata(socket_path(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(ControlSocket::bind(folder.path(), &config), Err(ControlError::Taken { .. })));
        let serving = tokio::spawn(socket.serve(Echo));
        let directory = folder.path().to_path_buf();
        let answer = tokio::task::spawn_blocking(move || {
            let mut client = super::super::Client::connect(&directory).unwrap();
            let file = FileName::new("Group").unwrap();
            (client.call(&Request::Shutdown).unwrap(), client.call_all(&Request::FileRead { file }).unwrap())
        });
        let (stopping, streamed) = answer.await.unwrap();
        assert_eq!(stopping, Response::Stopping);
        assert_eq!(streamed.len(), 4, "all of the stream, and its last response");
        serving.abort();
        let _ = serving.await;
        assert!(!socket_path(folder.path()).exists());
    }
}
