//! Between the control socket and the loop: requests become commands, and answers too long for one line are told in parts.
//!
//! A file is read from a snapshot, so it is of one moment however fast it changes. Bounds: [`SNAPSHOTS_MAX`] at a time,
//! each for [`SNAPSHOT_LIFE`] at most; [`WATCHES_MAX`]. Those who may only read have room of their own: they hold up each
//! other only.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Command;
use crate::core::id::FileName;
use crate::core::io::Refusal;
use crate::edge::control::{Conflict, Handler, Peer, Request, Response, Responses, Role};

/// Most files that are being read at a time, by operators and by others each; who comes later waits.
const SNAPSHOTS_MAX: usize = 8;
/// Most streams of changes at a time of operators, and of all others; who comes later is refused.
const WATCHES_MAX: usize = 1024;
const READERS_WATCHES_MAX: usize = 64;
/// Most files that one stream of changes names.
const WATCHED_FILES_MAX: usize = 1024;
/// How long reading a file may take.
const SNAPSHOT_LIFE: Duration = Duration::from_secs(60);
/// Changes that wait for a watcher before further ones are not told.
const WATCHED_WAITING_MAX: usize = 4096;

/// Hands requests of the control socket to the loop.
#[derive(Clone)]
pub struct ControlHandler {
    commands: mpsc::Sender<Command>,
    /// What those ask who may only read: it waits for all else.
    reads: mpsc::Sender<Command>,
    operators: Arc<Room>,
    readers: Arc<Room>,
}

/// How much of what takes long may be under way.
struct Room {
    snapshots: Semaphore,
    watches: Semaphore,
}

impl Room {
    fn new(watches_max: usize) -> Arc<Self> {
        Arc::new(Self { snapshots: Semaphore::new(SNAPSHOTS_MAX), watches: Semaphore::new(watches_max) })
    }
}

impl ControlHandler {
    pub fn new(commands: mpsc::Sender<Command>, reads: mpsc::Sender<Command>) -> Self {
        Self { commands, reads, operators: Room::new(WATCHES_MAX), readers: Room::new(READERS_WATCHES_MAX) }
    }

    fn room(&self, role: Role) -> &Room {
        match role {
            Role::Operator => &self.operators,
            Role::ReadOnly => &self.readers,
        }
    }

    fn way(&self, role: Role) -> &mpsc::Sender<Command> {
        match role {
            Role::Operator => &self.commands,
            Role::ReadOnly => &self.reads,
        }
    }

    /// Asks the loop; `None`: it has stopped.
    async fn ask<T>(&self, role: Role, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.way(role).send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    async fn read(&self, role: Role, file: FileName, responses: &Responses) -> Option<Response> {
        let _permit = self.room(role).snapshots.acquire().await.ok()?;
        let told = async {
            let snapshot = self.ask(role, |reply| Command::Read { file: file.clone(), reply }).await?;
            tell(snapshot.parts().map(Response::File), responses).await
        };
        match tokio::time::timeout(SNAPSHOT_LIFE, told).await {
            Ok(last) => last,
            Err(_) => Some(Response::failed(
                format!("{file} was not read within {} s", SNAPSHOT_LIFE.as_secs()),
                "read it faster, or in the plain-file view",
            )),
        }
    }

    async fn conflicts(&self, role: Role, file: Option<FileName>, responses: &Responses) -> Option<Response> {
        let conflicts = self.ask(role, |reply| Command::Conflicts { file, reply }).await?;
        tell(Conflict::lots(conflicts).into_iter().map(Response::Conflicts), responses).await
    }

    async fn watch(&self, role: Role, files: Vec<FileName>, responses: &Responses) -> Option<Response> {
        if files.len() > WATCHED_FILES_MAX {
            let what = format!("at most {WATCHED_FILES_MAX} files are watched at once");
            return Some(Response::failed(what, "name none, and all are watched"));
        }
        let Ok(_permit) = self.room(role).watches.try_acquire() else {
            return Some(Response::failed(
                "too many watch already",
                "end some of them, or read the files now and then",
            ));
        };
        let (changes, mut watched) = mpsc::channel(WATCHED_WAITING_MAX);
        self.way(role).send(Command::Watch { files: files.into_iter().collect(), changes }).await.ok()?;
        responses.send(Response::Watching).await.ok()?;
        while let Some(change) = watched.recv().await {
            responses.send(Response::Change(change)).await.ok()?;
        }
        None
    }
}

impl Handler for ControlHandler {
    async fn handle(&self, peer: Peer, request: Request) -> Response {
        let answer = self.ask(peer.role, |reply| Command::Control { peer, request, reply }).await;
        answer.unwrap_or(Response::Refused(Refusal::Stopping))
    }

    async fn stream(&self, peer: Peer, request: Request, responses: Responses) -> Response {
        let last = match request {
            Request::FileRead { file } => self.read(peer.role, file, &responses).await,
            Request::Conflicts { file } => self.conflicts(peer.role, file, &responses).await,
            Request::Watch { files } => self.watch(peer.role, files, &responses).await,
            other => Some(Response::failed(format!("cannot {} in a stream", other.describe()), "")),
        };
        last.unwrap_or(Response::Stopping)
    }
}

/// Sends all but the last response, which is returned.
async fn tell(all: impl Iterator<Item = Response>, responses: &Responses) -> Option<Response> {
    let mut all = all.peekable();
    loop {
        let response = all.next()?;
        if all.peek().is_none() {
            return Some(response);
        }
        responses.send(response).await.ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_watch_and_read_in_room_of_their_own() {
        let handler = ControlHandler::new(mpsc::channel(1).0, mpsc::channel(1).0);
        let readers = handler.room(Role::ReadOnly);
        let watches: Vec<_> = std::iter::from_fn(|| readers.watches.try_acquire().ok()).collect();
        let snapshots: Vec<_> = std::iter::from_fn(|| readers.snapshots.try_acquire().ok()).collect();
        assert_eq!((watches.len(), snapshots.len()), (READERS_WATCHES_MAX, SNAPSHOTS_MAX));
        let operators = handler.room(Role::Operator);
        assert!(operators.watches.try_acquire().is_ok() && operators.snapshots.try_acquire().is_ok());
    }
}
