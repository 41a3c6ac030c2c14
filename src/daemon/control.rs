//! Between the control socket and the loop: requests become commands, and answers too long for one line are told in parts.
//!
//! A file is read from a snapshot, so it is of one moment however fast it changes. Bounds: [`SNAPSHOTS_MAX`] at a time,
//! each for [`SNAPSHOT_LIFE`] at most.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Command;
use crate::core::id::FileName;
use crate::core::io::Refusal;
use crate::edge::control::{Conflict, Handler, Peer, Request, Response, Responses};

/// Most files that are being read at a time; who comes later waits.
const SNAPSHOTS_MAX: usize = 8;
/// How long reading a file may take.
const SNAPSHOT_LIFE: Duration = Duration::from_secs(60);
/// Changes that wait for a watcher before further ones are not told.
const WATCHED_WAITING_MAX: usize = 4096;

/// Hands requests of the control socket to the loop.
#[derive(Clone)]
pub struct ControlHandler {
    commands: mpsc::Sender<Command>,
    snapshots: Arc<Semaphore>,
}

impl ControlHandler {
    pub fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands, snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)) }
    }

    /// Asks the loop; `None`: it has stopped.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    async fn read(&self, file: FileName, responses: &Responses) -> Option<Response> {
        let _permit = self.snapshots.acquire().await.ok()?;
        let told = async {
            let snapshot = self.ask(|reply| Command::Read { file: file.clone(), reply }).await?;
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

    async fn conflicts(&self, file: Option<FileName>, responses: &Responses) -> Option<Response> {
        let conflicts = self.ask(|reply| Command::Conflicts { file, reply }).await?;
        tell(Conflict::lots(conflicts).into_iter().map(Response::Conflicts), responses).await
    }

    async fn watch(&self, files: Vec<FileName>, responses: &Responses) -> Option<Response> {
        let (changes, mut watched) = mpsc::channel(WATCHED_WAITING_MAX);
        self.commands.send(Command::Watch { files: files.into_iter().collect(), changes }).await.ok()?;
        responses.send(Response::Watching).await.ok()?;
        while let Some(change) = watched.recv().await {
            responses.send(Response::Change(change)).await.ok()?;
        }
        None
    }
}

impl Handler for ControlHandler {
    async fn handle(&self, peer: Peer, request: Request) -> Response {
        let answer = self.ask(|reply| Command::Control { peer, request, reply }).await;
        answer.unwrap_or(Response::Refused(Refusal::Stopping))
    }

    async fn stream(&self, _peer: Peer, request: Request, responses: Responses) -> Response {
        let last = match request {
            Request::FileRead { file } => self.read(file, &responses).await,
            Request::Conflicts { file } => self.conflicts(file, &responses).await,
            Request::Watch { files } => self.watch(files, &responses).await,
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
