//! The thread of the plain-file view: events in, decisions of `core::plain` carried out.
//!
//! Events are hints: what counts is what bears the name when it is looked at. Only reading and writing are taken from the
//! events themselves, for those of a file's own watch name exactly that file, whatever its name is by now.

mod whole;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Timespec};
use tokio::sync::mpsc;

use crate::core::id::FileName;
use crate::core::io::Transaction;
use crate::core::plain::{Action, Obstacle, PlainFile, Save, TextId, is_shown_name};
use crate::core::priority::Class;
use crate::core::schema::{Schema, file};
use crate::core::text::{ShownFile, TEXT_BYTES_MAX};
use crate::edge::clock::thread_cpu_time;

use super::folder::{self, Attributes, Folder, Held, Identity, Replaced};
use super::{Order, PlainEvent, SaveId, Shared};

/// How long a replaced file is held that somebody has open; that somebody had open, for events of the same kind that
/// come at once are told as one, so one more may have it; and one that nobody had.
const OPEN_ORPHAN_AGE_MAX: Duration = Duration::from_secs(3600);
const CLOSED_ORPHAN_AGE_MAX: Duration = Duration::from_secs(30);
const UNOPENED_ORPHAN_AGE_MAX: Duration = Duration::from_secs(1);
/// Most bytes of replaced files that are held per name, and most of them: the oldest go first.
const ORPHANS_BYTES_MAX: u64 = 64 << 20;
const ORPHANS_MAX: usize = 256;
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How often it is checked that the path still leads to the folder; a mount over it makes no event.
const FOLDER_CHECK_EVERY: Duration = Duration::from_secs(5);
/// Making texts may take one part in so many of a processor: a text costs time in proportion to its file.
const SHOW_COST_FACTOR: u32 = 20;
const EVENTS_BYTES: usize = 64 * 1024;
const FOLDER_ALARM: &str = "plain-file folder";

/// How far the thread stands back, as `nice` counts.
const NICENESS: i32 = 5;

pub struct Worker {
    path: PathBuf,
    folder: Folder,
    inotify: Inotify,
    folder_watch: WatchDescriptor,
    /// Whose file each watch watches.
    watched: BTreeMap<i32, FileName>,
    files: BTreeMap<FileName, Watched>,
    /// States of the tree's files that are yet to be shown, and when they may be.
    unshown: BTreeMap<FileName, Arc<ShownFile>>,
    show_at: Instant,
    saves: BTreeMap<SaveId, FileName>,
    last_save: SaveId,
    shared: Arc<Shared>,
    out: mpsc::Sender<PlainEvent>,
    /// Events of the start, until the thread runs.
    events: Vec<PlainEvent>,
    started: Instant,
    folder_checked: Instant,
    /// When to make it anew.
    folder_lost: Option<Instant>,
    running: bool,
    stopped: bool,
}

struct Watched {
    plain: PlainFile,
    current: Option<Inode>,
    orphans: VecDeque<(Instant, Inode)>,
    /// The last that were known, for a file that has vanished.
    attributes: Attributes,
    author: String,
    /// An editor is copying the file to its backup `FILE~`: nobody gets to see what it reads.
    backing_up: bool,
    /// What could not be done, and is tried again.
    undone: VecDeque<Action>,
    retry_at: Option<Instant>,
    write_alarmed: bool,
}

impl Watched {
    fn new(name: FileName, tree: Option<Arc<ShownFile>>) -> Self {
        let schema = Schema::builtin(&name).unwrap_or_else(Schema::any);
        Self {
            plain: PlainFile::new(name, schema, tree),
            current: None,
            orphans: VecDeque::new(),
            attributes: Attributes::default(),
            author: "plain file".into(),
            backing_up: false,
            undone: VecDeque::new(),
            retry_at: None,
            write_alarmed: false,
        }
    }

    /// Puts off what could not be done. A folder that cannot be written for long must not fill the memory.
    fn put_off(&mut self, action: Action) {
        self.undone.retain(|earlier| !action.replaces(earlier));
        self.undone.push_back(action);
    }
}

/// A file that is held open and watched, whatever its name.
struct Inode {
    watch: WatchDescriptor,
    file: File,
    identity: Identity,
    text: TextId,
    /// When somebody opened or closed it last.
    used: Option<Instant>,
    /// How many have it open, as far as is known.
    opens: u32,
}

impl Inode {
    fn new(watch: WatchDescriptor, file: File, identity: Identity, text: TextId) -> Self {
        Self { watch, file, identity, text, used: None, opens: 0 }
    }

    fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Until when it is held if it was replaced at `since`.
    fn held_until(&self, since: Instant) -> Instant {
        match self.used {
            Some(_) if self.opens > 0 => since + OPEN_ORPHAN_AGE_MAX,
            Some(used) => since.max(used) + CLOSED_ORPHAN_AGE_MAX,
            None => since + UNOPENED_ORPHAN_AGE_MAX,
        }
    }
}

impl Worker {
    pub fn new(
        path: &Path,
        current: Vec<(FileName, Arc<ShownFile>)>,
        out: mpsc::Sender<PlainEvent>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let folder = Folder::open(path)?;
        let inotify = Inotify::init()?;
        let folder_watch = watch_folder(&inotify, &folder)?;
        let started = Instant::now();
        let mut worker = Self {
            path: path.to_owned(),
            folder,
            inotify,
            folder_watch,
            watched: BTreeMap::new(),
            files: BTreeMap::new(),
            unshown: BTreeMap::new(),
            show_at: started,
            saves: BTreeMap::new(),
            last_save: 0,
            shared,
            out,
            events: Vec::new(),
            started,
            folder_checked: started,
            folder_lost: None,
            running: false,
            stopped: false,
        };
        for (name, shown) in current {
            if worker.can_be_shown(&name) {
                worker.files.insert(name.clone(), Watched::new(name, Some(shown)));
            }
        }
        worker.fill_folder()?;
        Ok(worker)
    }

    /// Works until it is stopped or the daemon has gone.
    pub fn run(&mut self) {
        // It gives way to the threads that entries wait for; on an idle processor that costs nothing.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        self.running = true;
        for event in std::mem::take(&mut self.events) {
            self.send(event);
        }
        let mut buffer = vec![0; EVENTS_BYTES];
        while !self.stopped {
            self.wait();
            self.read_events(&mut buffer);
            let Some(orders) = self.shared.take() else { return };
            for order in orders {
                self.carry_out(order);
            }
            self.show();
            self.pass_time();
        }
    }

    fn wait(&self) {
        let now = Instant::now();
        let now_ms = self.now_ms();
        let mut wait = FOLDER_CHECK_EVERY.saturating_sub(now - self.folder_checked);
        if let Some(retry_at) = self.folder_lost {
            wait = wait.min(retry_at.saturating_duration_since(now));
        }
        if !self.unshown.is_empty() {
            wait = wait.min(self.show_at.saturating_duration_since(now));
        }
        for held in self.files.values() {
            if let Some(deadline_ms) = held.plain.deadline_ms() {
                wait = wait.min(Duration::from_millis(deadline_ms.saturating_sub(now_ms)));
            }
            if let Some(retry_at) = held.retry_at {
                wait = wait.min(retry_at.saturating_duration_since(now));
            }
        }
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let inotify = self.inotify.as_fd();
        let mut sources = [PollFd::new(&inotify, PollFlags::IN), PollFd::new(&self.shared.wake, PollFlags::IN)];
        // An interruption is as good as a timeout: everything is looked at again.
        let _ = rustix::event::poll(&mut sources, Some(&wait));
    }

    fn read_events(&mut self, buffer: &mut [u8]) {
        loop {
            let events: Vec<_> = match self.inotify.read_events(buffer) {
                Ok(events) => events.map(|event| event.to_owned()).collect(),
                Err(_) => return,
            };
            if events.is_empty() {
                return;
            }
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    tracing::warn!("plain files: too many events at once; looking at everything anew");
                    self.look_at_everything();
                } else if event.wd == self.folder_watch {
                    let name = event.name.as_deref().and_then(|name| name.to_str());
                    self.folder_event(event.mask, name);
                } else {
                    self.file_event(event.mask, event.wd.get_watch_descriptor_id());
                }
            }
        }
    }

    fn folder_event(&mut self, mask: EventMask, name: Option<&str>) {
        let lost = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT | EventMask::IGNORED;
        if mask.intersects(lost) {
            if mask.contains(EventMask::IGNORED) || !self.folder.is_in_place() {
                self.folder_is_lost();
            }
            return;
        }
        let Some(name) = name else { return };
        if let Some(name) = name.strip_suffix(".rejected").and_then(|name| FileName::new(name).ok())
            && mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM)
            && let Some(held) = self.files.get_mut(&name)
        {
            let actions = held.plain.acknowledged();
            self.act(&name, actions);
        }
        if let Some(name) = name.strip_suffix('~').and_then(|name| FileName::new(name).ok())
            && let Some(held) = self.files.get_mut(&name)
        {
            held.backing_up = mask.contains(EventMask::CREATE);
        }
        if is_shown_name(name)
            && let Ok(name) = FileName::new(name)
        {
            self.look(&name, mask.contains(EventMask::CREATE));
        }
    }

    fn file_event(&mut self, mask: EventMask, watch: i32) {
        if mask.contains(EventMask::IGNORED) {
            self.watched.remove(&watch);
            return;
        }
        let Some(name) = self.watched.get(&watch).cloned() else { return };
        let Some(held) = self.files.get_mut(&name) else { return };
        let mut inodes = held.current.iter_mut().chain(held.orphans.iter_mut().map(|(_, inode)| inode));
        let Some(inode) = inodes.find(|inode| inode.watch.get_watch_descriptor_id() == watch) else { return };
        if mask.contains(EventMask::OPEN) {
            (inode.used, inode.opens) = (Some(Instant::now()), inode.opens + 1);
            held.plain.opened(inode.text);
        }
        if mask.intersects(EventMask::CLOSE_WRITE | EventMask::CLOSE_NOWRITE) {
            (inode.used, inode.opens) = (Some(Instant::now()), inode.opens.saturating_sub(1));
        }
        if mask.contains(EventMask::ACCESS) && !held.backing_up {
            held.plain.read(inode.text);
            // Once is enough: a file that is read all the time need not wake anybody.
            let _ = watch_file(&self.inotify, &inode.file, false);
        }
        if mask.contains(EventMask::CLOSE_WRITE) {
            self.read_again(&name, watch);
            // It may bear further shown names; its one watch is of this one.
            for (other, held_by) in self.current_watches() {
                if held_by == watch && other != name {
                    self.read_again(&other, watch);
                }
            }
        }
    }

    /// Whose file each name has now.
    fn current_watches(&self) -> Vec<(FileName, i32)> {
        let watch = |held: &Watched| Some(held.current.as_ref()?.watch.get_watch_descriptor_id());
        self.files.iter().filter_map(|(name, held)| Some((name.clone(), watch(held)?))).collect()
    }

    /// Reads a file that was written into.
    fn read_again(&mut self, name: &FileName, watch: i32) {
        let now_ms = self.now_ms();
        let Some(held) = self.files.get_mut(name) else { return };
        let is_it = |inode: &Inode| inode.watch.get_watch_descriptor_id() == watch;
        let bears_name = |inode: &Inode| {
            self.folder.identity(name.as_str()).is_some_and(|(identity, _, _)| identity == inode.identity)
        };
        let current = held.current.as_ref().is_some_and(|inode| is_it(inode) && bears_name(inode));
        let mut inodes = held.current.iter_mut().chain(held.orphans.iter_mut().map(|(_, inode)| inode));
        let Some(inode) = inodes.find(|inode| is_it(inode)) else { return };
        let Ok(metadata) = inode.file.metadata() else { return };
        if !current && std::os::unix::fs::MetadataExt::nlink(&metadata) > 0 {
            // It lives on under another name, such as an editor's backup.
            return;
        }
        let actions = if current && metadata.len() > TEXT_BYTES_MAX as u64 {
            held.plain.obstacle(now_ms, Obstacle::TooLarge { bytes: metadata.len() })
        } else {
            // Its own reading must not look like somebody's.
            let _ = watch_file(&self.inotify, &inode.file, false);
            let read = folder::read_text(&inode.file);
            let _ = watch_file(&self.inotify, &inode.file, true);
            match read {
                Ok(bytes) => {
                    let save = Save { bytes, held: inode.text, orphan: !current };
                    let (text, actions) = held.plain.saved(now_ms, save);
                    held.plain.closed(std::mem::replace(&mut inode.text, text));
                    if inode.opens > 0 {
                        held.plain.opened(text);
                    }
                    actions
                }
                Err(error) => held.plain.obstacle(now_ms, Obstacle::Unreadable { why: error.to_string() }),
            }
        };
        held.author = "plain file".into();
        held.backing_up = false;
        if current {
            held.undone.retain(|action| !matches!(action, Action::Rewrite { .. }));
        }
        self.act(name, actions);
    }

    /// Looks at what bears the name now. A file that was only just created is left until it is closed.
    fn look(&mut self, name: &FileName, created: bool) {
        let now_ms = self.now_ms();
        let seen = self.folder.identity(name.as_str());
        let is_text = matches!(seen, Some((_, FileType::RegularFile, _)));
        if created && matches!(seen, Some((_, FileType::RegularFile, 1))) {
            return;
        }
        if !self.files.contains_key(name) {
            if !is_text {
                return;
            }
            let mut watched = Watched::new(name.clone(), None);
            watched.plain.set_schema(self.schema(name));
            self.files.insert(name.clone(), watched);
        }
        let held = self.files.get_mut(name).expect("it was put there if it was missing");
        let same = |inode: &Inode| seen.as_ref().is_some_and(|(identity, _, _)| *identity == inode.identity);
        let actions = match &held.current {
            Some(inode) if same(inode) => match self.folder.is_readable(name.as_str()) {
                true => return,
                false => held.plain.obstacle(now_ms, Obstacle::Unreadable { why: "permission denied".into() }),
            },
            _ => {
                if let Some(inode) = held.current.take() {
                    held.orphans.push_back((Instant::now(), inode));
                }
                match self.folder.held(name.as_str()) {
                    Held::Nothing => held.plain.gone(now_ms),
                    Held::Obstacle(obstacle) => held.plain.obstacle(now_ms, obstacle),
                    Held::Text(file) => match self.adopt(name, file, false) {
                        Ok(actions) => actions,
                        Err(error) => {
                            let held = self.files.get_mut(name).expect("it is not removed in between");
                            held.plain.obstacle(now_ms, Obstacle::Unreadable { why: error.to_string() })
                        }
                    },
                }
            }
        };
        self.act(name, actions);
        if self.files.get(name).is_some_and(|held| held.plain.is_forgettable()) {
            self.files.remove(name);
        }
    }

    /// Takes a file that somebody put in place: watches it first, so that nothing is missed, then reads it.
    /// `replaced`: it has already lost the name again.
    fn adopt(&mut self, name: &FileName, file: File, replaced: bool) -> io::Result<Vec<Action>> {
        let watch = watch_file(&self.inotify, &file, false)?;
        let (identity, attributes) = folder::identity_and_attributes(&file)?;
        let bytes = folder::read_text(&file)?;
        let size = file.metadata()?.len();
        watch_file(&self.inotify, &file, true)?;
        let now_ms = self.now_ms();
        self.hand_over(&watch, name);
        let held = self.files.get_mut(name).expect("only known files are adopted");
        held.author = attributes.owner.map_or_else(|| "plain file".into(), |(user, _)| folder::user_name(user));
        let mut inode = Inode::new(watch, file, identity, 0);
        // Somebody may have had it open before it was watched.
        inode.used = Some(Instant::now());
        if replaced {
            let before = held.current.as_ref().map_or(0, |inode| inode.text);
            let (text, actions) = held.plain.saved(now_ms, Save { bytes, held: before, orphan: true });
            inode.text = text;
            held.orphans.push_back((Instant::now(), inode));
            return Ok(actions);
        }
        held.attributes = attributes;
        held.undone.retain(|action| !matches!(action, Action::Rewrite { .. }));
        let actions = if bytes.len() > TEXT_BYTES_MAX {
            held.plain.obstacle(now_ms, Obstacle::TooLarge { bytes: size })
        } else {
            let (text, actions) = held.plain.saved(now_ms, Save { bytes, held: 0, orphan: false });
            inode.text = text;
            actions
        };
        held.current = Some(inode);
        Ok(actions)
    }

    /// A file has one watch, whatever its name: what was replaced and has a name again is nobody's orphan any more, or the watch would
    /// end with that.
    fn hand_over(&mut self, watch: &WatchDescriptor, name: &FileName) {
        let Some(before) = self.watched.insert(watch.get_watch_descriptor_id(), name.clone()) else { return };
        let Some(Watched { plain, orphans, .. }) = self.files.get_mut(&before) else { return };
        orphans.retain(|(_, orphan)| {
            let stays = orphan.watch != *watch;
            if !stays {
                plain.closed(orphan.text);
            }
            stays
        });
    }

    /// Shows what is due. After a costly text, the next ones wait, and only the newest state of each file is shown.
    fn show(&mut self) {
        let began = Instant::now();
        if self.unshown.is_empty() || began < self.show_at {
            return;
        }
        let (now_ms, cost_before) = (self.now_ms(), thread_cpu_time());
        for (name, shown) in std::mem::take(&mut self.unshown) {
            let schema = self.schema(&name);
            let held = self.files.entry(name.clone()).or_insert_with(|| Watched::new(name.clone(), None));
            held.plain.set_schema(schema);
            let actions = held.plain.show(now_ms, shown);
            self.act(&name, actions);
            if name.as_str() == file::SCHEMA {
                self.set_schemas();
            }
        }
        self.show_at = began + (thread_cpu_time() - cost_before) * SHOW_COST_FACTOR;
    }

    fn carry_out(&mut self, order: Order) {
        let now_ms = self.now_ms();
        match order {
            Order::Show(name, shown) => {
                if self.can_be_shown(&name) {
                    self.unshown.insert(name, shown);
                }
            }
            Order::Outcome(id, result) => {
                let Some(name) = self.saves.remove(&id) else { return };
                if result.is_ok() {
                    // The file comes with the outcome, and is newer.
                    self.unshown.remove(&name);
                }
                let Some(held) = self.files.get_mut(&name) else { return };
                let actions = held.plain.outcome(now_ms, result);
                self.act(&name, actions);
                if name.as_str() == file::SCHEMA {
                    self.set_schemas();
                }
            }
        }
    }

    fn pass_time(&mut self) {
        let now = Instant::now();
        if now - self.folder_checked >= FOLDER_CHECK_EVERY {
            self.folder_checked = now;
            self.check_folder();
        }
        if self.folder_lost.is_some_and(|retry_at| retry_at <= Instant::now()) {
            self.find_folder();
        }
        let now_ms = self.now_ms();
        let due = |held: &Watched| {
            held.plain.deadline_ms().is_some_and(|deadline_ms| deadline_ms <= now_ms)
                || held.retry_at.is_some_and(|retry_at| retry_at <= now)
        };
        let names: Vec<FileName> =
            self.files.iter().filter(|(_, held)| due(held)).map(|(name, _)| name.clone()).collect();
        for name in names {
            // Somebody may be writing a new file there that he has not closed yet.
            self.look(&name, false);
            let Some(held) = self.files.get_mut(&name) else { continue };
            let mut actions: Vec<Action> = Vec::new();
            if held.retry_at.is_some_and(|retry_at| retry_at <= now) {
                held.retry_at = None;
                actions.extend(held.undone.drain(..));
            }
            actions.extend(held.plain.tick(now_ms));
            self.act(&name, actions);
            if self.files.get(&name).is_some_and(|held| held.plain.is_forgettable()) {
                self.files.remove(&name);
            }
        }
        self.release_orphans(now);
    }

    fn release_orphans(&mut self, now: Instant) {
        let watches = self.inotify.watches();
        let used: BTreeMap<i32, FileName> =
            self.current_watches().into_iter().map(|(name, watch)| (watch, name)).collect();
        for (name, held) in &mut self.files {
            let (mut bytes, mut count) = (0, 0);
            // The newest first.
            for (since, inode) in std::mem::take(&mut held.orphans).into_iter().rev() {
                (bytes, count) = (bytes + inode.bytes(), count + 1);
                let fits = bytes <= ORPHANS_BYTES_MAX && count <= ORPHANS_MAX;
                if fits && now < inode.held_until(since) {
                    held.orphans.push_front((since, inode));
                    continue;
                }
                if inode.opens > 0 {
                    tracing::warn!(
                        "{name}: what is saved into a text that was replaced long ago is not found any more"
                    );
                }
                held.plain.closed(inode.text);
                let watch = inode.watch.get_watch_descriptor_id();
                match used.get(&watch) {
                    // It has another shown name.
                    Some(holder) => drop(self.watched.insert(watch, holder.clone())),
                    None => {
                        self.watched.remove(&watch);
                        let _ = watches.clone().remove(inode.watch);
                    }
                }
            }
        }
    }

    /// Carries out what was decided. What fails, and everything after it, is tried again later.
    fn act(&mut self, name: &FileName, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let Some(held) = self.files.get_mut(name) else { return };
            if held.retry_at.is_some() && !matches!(action, Action::Submit { .. }) {
                held.put_off(action);
                continue;
            }
            match self.act_once(name, &action) {
                Ok(further) => actions.extend(further),
                Err(error) => {
                    self.check_folder();
                    let Some(held) = self.files.get_mut(name) else { return };
                    held.retry_at = Some(Instant::now() + RETRY_EVERY);
                    held.put_off(action);
                    if self.folder_lost.is_none() && !std::mem::replace(&mut held.write_alarmed, true) {
                        let path = self.folder.path().join(name.as_str());
                        let text = format!("{}: {error}; it is tried again every second", path.display());
                        self.send(PlainEvent::Alarm { name: write_alarm(name), text });
                    }
                }
            }
        }
        if let Some(held) = self.files.get_mut(name)
            && held.undone.is_empty()
            && std::mem::take(&mut held.write_alarmed)
        {
            self.send(PlainEvent::AlarmCleared { name: write_alarm(name) });
        }
    }

    fn act_once(&mut self, name: &FileName, action: &Action) -> io::Result<Vec<Action>> {
        let Some(held) = self.files.get_mut(name) else { return Ok(Vec::new()) };
        match action {
            Action::Submit { edits } => {
                self.last_save += 1;
                let id = self.last_save;
                let transaction = Transaction {
                    class: Class::Transmission,
                    author: held.author.clone(),
                    reason: format!("saved in the plain file {name}"),
                    edits: edits.clone(),
                };
                self.saves.insert(id, name.clone());
                self.send(PlainEvent::Save { id, file: name.clone(), transaction });
            }
            Action::Rewrite { id, file, keep_time } => return self.rewrite(name, *id, file, *keep_time),
            Action::KeepAside => {
                self.folder.keep_aside(name.as_str())?;
                if let Some(inode) = held.current.take() {
                    held.plain.closed(inode.text);
                    self.watched.remove(&inode.watch.get_watch_descriptor_id());
                    let _ = self.inotify.watches().remove(inode.watch);
                }
            }
            Action::Reject { report } => {
                self.folder.write(&format!("{name}.rejected"), report.as_bytes(), &held.attributes)?;
            }
            Action::ClearRejected => self.folder.remove(&format!("{name}.rejected"))?,
            Action::Remove => self.folder.remove(name.as_str())?,
            Action::Alarm { text } => self.send(PlainEvent::Alarm { name: alarm(name), text: text.clone() }),
            Action::AlarmCleared => self.send(PlainEvent::AlarmCleared { name: alarm(name) }),
        }
        Ok(Vec::new())
    }

    fn rewrite(&mut self, name: &FileName, id: TextId, shown: &ShownFile, keep_time: bool) -> io::Result<Vec<Action>> {
        let held = self.files.get_mut(name).expect("only known files are written");
        if let Some(inode) = &held.current
            && let Ok((_, attributes)) = folder::identity_and_attributes(&inode.file)
        {
            held.attributes = attributes;
        }
        let file = self.folder.prepare(name.as_str(), shown.text().as_bytes(), &held.attributes, keep_time)?;
        let watch = watch_file(&self.inotify, &file, true)?;
        let (identity, _) = folder::identity_and_attributes(&file)?;
        let known = held.current.as_ref().map(|inode| inode.identity);
        let replaced = match self.folder.put(name.as_str(), known) {
            Ok(replaced) => replaced,
            Err(error) => {
                let _ = self.inotify.watches().remove(watch);
                return Err(error);
            }
        };
        if matches!(replaced, Replaced::Obstacle) {
            let _ = self.inotify.watches().remove(watch);
            self.look(name, false);
            return Ok(Vec::new());
        }
        self.watched.insert(watch.get_watch_descriptor_id(), name.clone());
        let actions = match replaced {
            Replaced::Text(file) => self.adopt(name, file, true)?,
            _ => Vec::new(),
        };
        let held = self.files.get_mut(name).expect("it is not removed in between");
        let inode = Inode::new(watch, file, identity, id);
        if let Some(before) = held.current.replace(inode) {
            held.orphans.push_back((Instant::now(), before));
        }
        Ok(actions)
    }

    fn can_be_shown(&mut self, name: &FileName) -> bool {
        let can = is_shown_name(name.as_str());
        if !can {
            let text = format!("the name {name} is left to editors and scripts, so there is no plain file of it");
            self.send(PlainEvent::Alarm { name: alarm(name), text });
        }
        can
    }

    /// The schema in force, by the file `Schema` as it is shown.
    fn schema(&self, name: &FileName) -> Schema {
        Schema::builtin(name).unwrap_or_else(|| {
            let declared = self.files.iter().find(|(held, _)| held.as_str() == file::SCHEMA);
            declared
                .and_then(|(_, held)| held.plain.tree()?.records().get(name.as_str()))
                .and_then(|record| Schema::from_record(record).ok())
                .map_or_else(Schema::any, |(_, schema)| schema)
        })
    }

    fn set_schemas(&mut self) {
        let schemas: Vec<Schema> = self.files.keys().map(|name| self.schema(name)).collect();
        self.files.values_mut().zip(schemas).for_each(|(held, schema)| held.plain.set_schema(schema));
    }

    fn send(&mut self, event: PlainEvent) {
        if !self.running {
            self.events.push(event);
        } else if self.out.blocking_send(event).is_err() {
            self.stopped = true;
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn watch_folder(inotify: &Inotify, folder: &Folder) -> io::Result<WatchDescriptor> {
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::EXCL_UNLINK
        | WatchMask::ONLYDIR;
    inotify.watches().add(folder.path(), mask)
}

/// Watches an open file, whatever its name; `reading`: who reads it, too.
fn watch_file(inotify: &Inotify, file: &File, reading: bool) -> io::Result<WatchDescriptor> {
    let mut mask = WatchMask::CLOSE | WatchMask::OPEN;
    mask.set(WatchMask::ACCESS, reading);
    inotify.watches().add(format!("/proc/self/fd/{}", file.as_raw_fd()), mask)
}

fn alarm(name: &FileName) -> String {
    format!("plain file {name}")
}

fn write_alarm(name: &FileName) -> String {
    format!("plain file {name} written")
}
