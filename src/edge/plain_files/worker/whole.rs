//! The folder as a whole: filled at the start, made anew when it was lost, looked at when events were.

use std::fs::File;
use std::io;
use std::time::Instant;

use crate::core::id::FileName;
use crate::core::plain::{Action, Found, Obstacle, is_shown_name};
use crate::core::text::TEXT_BYTES_MAX;
use crate::edge::plain_files::PlainEvent;
use crate::edge::plain_files::folder::{self, Folder, Held};

use super::{FOLDER_ALARM, Inode, RETRY_EVERY, Watched, Worker, watch_file, watch_folder};

impl Worker {
    /// Compares every file with the tree: at the start, and when the folder was made anew.
    pub(super) fn fill_folder(&mut self) -> io::Result<()> {
        self.folder.clear_temporaries()?;
        self.set_schemas();
        let names: Vec<FileName> = self.files.keys().cloned().collect();
        for name in &names {
            self.begin(name);
        }
        for name in self.folder.names()? {
            if let Ok(name) = FileName::new(&name)
                && is_shown_name(name.as_str())
                && !self.files.contains_key(&name)
                && matches!(self.folder.held(name.as_str()), Held::Text(_))
            {
                let mut watched = Watched::new(name.clone(), None);
                watched.plain.set_schema(self.schema(&name));
                self.files.insert(name.clone(), watched);
                self.begin(&name);
            }
        }
        Ok(())
    }

    fn begin(&mut self, name: &FileName) {
        let now_ms = self.now_ms();
        let mut found = Found::Missing;
        let mut current = None;
        match self.folder.held(name.as_str()) {
            Held::Nothing => {}
            Held::Obstacle(obstacle) => found = Found::Obstacle(obstacle),
            Held::Text(file) => match self.found(file) {
                Ok((inode, bytes, untouched)) if bytes.len() <= TEXT_BYTES_MAX => {
                    found = Found::Text { bytes, untouched };
                    current = Some(inode);
                }
                Ok((_, bytes, _)) => found = Found::Obstacle(Obstacle::TooLarge { bytes: bytes.len() as u64 }),
                Err(error) => found = Found::Obstacle(Obstacle::Unreadable { why: error.to_string() }),
            },
        }
        let reported = self.folder.identity(&format!("{name}.rejected")).is_some();
        let Some(held) = self.files.get_mut(name) else { return };
        if reported {
            held.plain.found_report();
        }
        let (text, actions) = held.plain.begin(now_ms, found);
        if let Some(inode) = &mut current {
            inode.text = text;
            held.plain.opened(text);
            self.watched.insert(inode.watch.get_watch_descriptor_id(), name.clone());
        }
        held.current = current;
        self.act(name, actions);
    }

    fn found(&self, file: File) -> io::Result<(Inode, Vec<u8>, bool)> {
        let watch = watch_file(&self.inotify, &file, false)?;
        let (identity, _) = folder::identity_and_attributes(&file)?;
        let untouched = folder::is_untouched(&file);
        let bytes = folder::read_text(&file)?;
        watch_file(&self.inotify, &file, true)?;
        let mut inode = Inode::new(watch, file, identity, 0);
        // Somebody may have had it open all the time.
        (inode.used, inode.opens) = (Some(Instant::now()), 1);
        Ok((inode, bytes, untouched))
    }

    pub(super) fn look_at_everything(&mut self) {
        let mut names: Vec<FileName> = self.files.keys().cloned().collect();
        if let Ok(held) = self.folder.names() {
            names.extend(held.iter().filter(|name| is_shown_name(name)).filter_map(|name| FileName::new(name).ok()));
        }
        names.sort_unstable();
        names.dedup();
        for name in names {
            let mut watches = Vec::new();
            if let Some(held) = self.files.get_mut(&name) {
                held.plain.read_all();
                for inode in held.orphans.iter_mut().map(|(_, inode)| inode).chain(&mut held.current) {
                    // Who has it open was not told either.
                    (inode.used, inode.opens) = (Some(Instant::now()), inode.opens.max(1));
                    held.plain.opened(inode.text);
                    watches.push(inode.watch.get_watch_descriptor_id());
                }
            }
            watches.into_iter().for_each(|watch| self.read_again(&name, watch));
            self.look(&name, false);
        }
        self.check_folder();
    }

    pub(super) fn check_folder(&mut self) {
        if !self.folder.is_in_place() {
            self.folder_is_lost();
        }
    }

    pub(super) fn folder_is_lost(&mut self) {
        if self.folder_lost.is_none() {
            self.folder_lost = Some(Instant::now());
            let text = format!("{} was deleted, moved, replaced or unmounted; it is made anew", self.path.display());
            self.send(PlainEvent::Alarm { name: FOLDER_ALARM.into(), text });
        }
    }

    /// Makes the folder anew.
    pub(super) fn find_folder(&mut self) {
        let result = Folder::open(&self.path).and_then(|folder| Ok((watch_folder(&self.inotify, &folder)?, folder)));
        let filled = result.and_then(|(watch, folder)| {
            if watch != self.folder_watch {
                let _ = self.inotify.watches().remove(std::mem::replace(&mut self.folder_watch, watch));
            }
            self.folder = folder;
            for held in self.files.values_mut() {
                if let Some(inode) = held.current.take() {
                    held.orphans.push_back((Instant::now(), inode));
                }
                // Only the reports are still to be written: everything else is found out anew.
                held.undone.retain(|action| matches!(action, Action::Reject { .. }));
                held.retry_at = held.retry_at.map(|_| Instant::now()).filter(|_| !held.undone.is_empty());
            }
            self.fill_folder()
        });
        match filled {
            Ok(()) => {
                self.folder_lost = None;
                self.send(PlainEvent::AlarmCleared { name: FOLDER_ALARM.into() });
            }
            Err(error) => {
                self.folder_lost = Some(Instant::now() + RETRY_EVERY);
                tracing::warn!("plain files: {} cannot be made anew: {error}", self.path.display());
            }
        }
    }
}
