//! The plain-file view: a folder with one text per management file, which any editor or script may change.
//!
//! One thread waits for the folder (inotify) and for the daemon (a queue with an eventfd), and asks `core::plain` what
//! each save means. No timer stands between a save and its submission, nor between a change and its rename.
//!
//! What makes it exact: every text that bears a name is held open and watched by itself, not only through the
//! folder. So it is known which text was read and which was written into, also when the file has lost its name to
//! a newer one while somebody was still writing: his save is found in the file he has open. And a text is put in place
//! by exchange, so a file that an editor renamed into place an instant earlier comes out instead of vanishing.
//!
//! What happens when (a *grace* is `core::plain::GRACE_MS`):
//!
//! | What happens to `FILE` | Outcome |
//! |---|---|
//! | Saved in place, or renamed into place (`vi`, `sed -i`, `mv`) | One transaction, at once; then the tree's layout |
//! | Saved with a stale buffer | The author's changes only; what changed elsewhere stays; both changed: a conflict |
//! | Saved twice in a burst | The second builds on the first, as soon as that is taken |
//! | Saved while another server's change arrives | Both are in: the save is found also in a replaced file |
//! | Saved half, completed within a grace | The complete text counts, if the half cannot be taken |
//! | Saved half, and the half is a valid text | It is taken as it is; the completion brings the rest back |
//! | Emptied, with more than one record | After a grace: refused with the commands that delete; the tree's text |
//! | A line is no record, or breaks the schema | After a grace: the whole save is refused with lines and reasons |
//! | Refused by the node (disk full, clock off, …) | Refused with the node's reason, at once |
//! | Nothing new in it, while the tree moved on unread | Refused as stale; read the file and save again |
//! | Binary junk, more than 4 MiB | After a grace: kept as `FILE.kept.rejected`; the tree's text |
//! | A directory, link, FIFO in its place | The same |
//! | Unreadable | The same, and an alarm until the next good save or until `FILE.rejected` is removed |
//! | Deleted, renamed away | After a grace it comes back; what is put there meanwhile is a save |
//! | A new name | After a grace a new management file, if the name can be one; `core::plain::is_shown_name` |
//! | `FILE~`, `.FILE.swp`, `4913`, `FILE.rejected`, … | Left alone |
//! | Changed while p2pdb was not running | Kept in `FILE.rejected`; the tree's text |
//! | Saved in a file that bears two names of the folder (a hard link) | A save in both |
//! | The tree's file has more than 100,000 records or 4 MiB of text | An alarm; the file stays as it was |
//! | The folder is deleted, moved or unmounted | An alarm; it is made anew and filled |
//! | The folder is full or read-only | An alarm; tried again every second |
//! | Too many events for the kernel's queue | Everything is looked at anew |
//!
//! Refused means: `FILE.rejected` has the saved text and the reasons, `FILE` has the tree's text again, and nothing has
//! changed for the other servers. The next good save removes `FILE.rejected`. Invariant: when nothing is under way, every
//! file holds the tree's text byte for byte, or one that is older where it is too long to be shown. Mode and owner of a file stay as its users set them; access lists do
//! not. A save is what ends with closing the file: what a program writes and never closes is not seen.

mod folder;
mod worker;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::EventfdFlags;
use tokio::sync::mpsc;

use crate::core::id::FileName;
use crate::core::io::{Committed, Refusal, Transaction};
use crate::core::plain::is_shown_name;
use crate::core::text::ShownFile;

use worker::Worker;

/// Names a save until its outcome.
pub type SaveId = u64;

/// What the view tells the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlainEvent {
    /// Submit this, and call [`PlainFiles::outcome`] whatever happens.
    Save {
        id: SaveId,
        file: FileName,
        transaction: Transaction,
    },
    /// Something is wrong until it is cleared by the same name.
    Alarm {
        name: String,
        text: String,
    },
    AlarmCleared {
        name: String,
    },
}

/// The view, running. Dropping it stops it; the files stay as they are.
pub struct PlainFiles {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl PlainFiles {
    /// Opens the folder, makes it if it is missing, compares it with the tree and starts watching. `current` has every
    /// file of the tree. When it returns, all of them are shown, but those that are too long.
    ///
    /// # Errors
    /// The folder cannot be made or opened, or it cannot be watched.
    pub fn start(
        directory: &Path,
        current: Vec<(FileName, Arc<ShownFile>)>,
        out: mpsc::Sender<PlainEvent>,
    ) -> io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { queue: Mutex::new(Queue::default()), wake });
        let mut worker = Worker::new(directory, current, out, shared.clone())?;
        let thread = std::thread::Builder::new().name("plain-files".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The tree's file is now this one. Never blocks; a later one replaces one that still waits.
    pub fn show(&self, name: FileName, file: Arc<ShownFile>) {
        let mut queue = self.shared.lock();
        queue.orders.retain(|order| !matches!(order, Order::Show(held, _) if *held == name));
        queue.orders.push_back(Order::Show(name, file));
        self.shared.wake();
    }

    /// How a save went. With the entry comes the file as it is with the entry applied.
    pub fn outcome(&self, id: SaveId, result: Result<(Committed, Arc<ShownFile>), Refusal>) {
        self.shared.lock().orders.push_back(Order::Outcome(id, result));
        self.shared.wake();
    }
}

impl Drop for PlainFiles {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// A name in a folder that would become a management file although no view has written it; `None` also if there is no
/// such folder.
pub fn foreign_name(path: &Path) -> Option<String> {
    let names = std::fs::read_dir(path).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let written = |name: &str| std::fs::File::open(path.join(name)).is_ok_and(|file| folder::is_untouched(&file));
    names.filter(|name| is_shown_name(name)).find(|name| !written(name))
}

/// What the daemon has for the thread.
struct Shared {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Queue {
    orders: VecDeque<Order>,
    stop: bool,
}

enum Order {
    Show(FileName, Arc<ShownFile>),
    Outcome(SaveId, Result<(Committed, Arc<ShownFile>), Refusal>),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the thread is woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes all orders; `None`: stop.
    fn take(&self) -> Option<VecDeque<Order>> {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        let mut queue = self.lock();
        (!queue.stop).then(|| std::mem::take(&mut queue.orders))
    }
}
