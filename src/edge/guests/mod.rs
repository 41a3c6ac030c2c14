//! The original servers of this host, whatever the driver: the port `Hypervisor`.
//!
//! One worker thread per original carries out its orders one after the other; what it is about to do, and the highest token it has seen, is in
//! `DIR/originals/NAME/state` before it does it. Invariants: an older token than one that was seen is refused, also
//! after a restart; an order that was cut off by a crash is undone or finished when the next daemon starts; an original that no
//! decision has put to work is made anew by itself when something has happened to it.

mod drivers;
#[cfg(feature = "libvirt")]
mod libvirt;
mod machine;
mod process;
mod worker;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use thiserror::Error;
use tracing::warn;

use super::bundles::BundleStore;
use super::certificate::write_atomically;
use super::clock::{SystemClock, monotonic_ns};
use crate::core::clock::Now;
use crate::core::guest::{GuestOrder, GuestOutcome, GuestRecord, GuestReport, GuestState};
use crate::format::guest::{decode_guest, encode_guest};
use crate::ports::Hypervisor;

pub use drivers::{Drivers, MadeWith};
#[cfg(feature = "libvirt")]
pub use libvirt::{
    Acceleration, Keep, LibvirtDriver, LibvirtMachine, SPANNING_TREE_REMEDY, describe as describe_libvirt,
    describe_template, found_acceleration, spanning_tree,
};
pub use machine::{Failed, Machine, Seen};
pub use process::{ProcessDriver, ProcessMachine};
use worker::{Job, Worker};

/// The folder of the originals in the daemon's directory.
pub const FOLDER: &str = "originals";
/// Orders that may wait for one original; a core that asks for more than this has lost count.
const WAITING_MAX: usize = 64;

#[derive(Debug, Error)]
pub enum OriginalsError {
    #[error("{path}: {source}; the original servers of this host are kept there")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is of an original server that libvirt keeps, and this program was built without it; start one that was built with it \
         once more, or, if there is no such virtual machine any more, remove that folder"
    )]
    Driver { path: PathBuf },
}

/// Tells the daemon; called from the workers' threads, must not block.
pub type Report = Arc<dyn Fn(GuestReport) + Send + Sync>;

/// The original servers of this host. Dropping it lets the workers end; what runs goes on, and is found again.
pub struct Originals {
    clock: SystemClock,
    report: Report,
    workers: Vec<(String, SyncSender<Job>)>,
}

impl Originals {
    /// Starts the workers of `original-1` to `original-COUNT`. Each looks after what an earlier daemon has left, prepares its
    /// original if there is none, and reports it.
    ///
    /// # Errors
    /// The folder cannot be used, or this program has not the driver that made what is wanted.
    pub fn start(
        directory: &Path,
        count: usize,
        drivers: &Drivers,
        bundles: &BundleStore,
        clock: SystemClock,
        report: Report,
    ) -> Result<Self, OriginalsError> {
        let folder = directory.join(FOLDER);
        let mut workers = Vec::new();
        for (name, wanted) in names(&folder, count)? {
            let folder = folder.join(&name);
            let failed = |source| OriginalsError::Io { path: folder.clone(), source };
            private_folder(&folder).map_err(failed)?;
            let missing = || OriginalsError::Driver { path: folder.clone() };
            let Some(made) = drivers.before(&name, &folder) else {
                if wanted {
                    return Err(missing());
                }
                warn!("{}", missing());
                continue;
            };
            let named = Some(drivers.named()).filter(|named| wanted && *named != made.with);
            let successor = named.map(|with| drivers.machine(with, &name, &folder).ok_or_else(missing)).transpose()?;
            let (bundles, report) = (bundles.clone(), report.clone());
            let worker = Worker::new(name.clone(), folder.clone(), wanted, made, successor, bundles, report);
            let (jobs, inbox) = sync_channel(WAITING_MAX);
            std::thread::Builder::new().name(name.clone()).spawn(move || worker.run(&inbox)).map_err(failed)?;
            workers.push((name, jobs));
        }
        Ok(Self { clock, report, workers })
    }

    fn send(&self, order: GuestOrder, given_ns: u64) -> Result<(), String> {
        let worker = self.workers.iter().find(|(name, _)| *name == order.original);
        let Some((_, jobs)) = worker else {
            return Err(format!("this host has no original server '{}'", order.original));
        };
        jobs.try_send(Job::Order { order, given_ns }).map_err(|error| match error {
            TrySendError::Full(_) => format!("{WAITING_MAX} orders wait for this original server already"),
            TrySendError::Disconnected(_) => "the worker of this original server has ended".into(),
        })
    }
}

impl Hypervisor for Originals {
    fn order(&mut self, order: GuestOrder, now: Now) {
        let age_us = self.clock.now().monotonic_us.saturating_sub(now.monotonic_us);
        let given_ns = monotonic_ns().saturating_sub(age_us * 1000);
        let id = order.id;
        if let Err(why) = self.send(order, given_ns) {
            (self.report)(GuestReport::Outcome { id, outcome: GuestOutcome::Failed(why) });
        }
    }

    fn prepare(&mut self) {
        for (_, jobs) in &self.workers {
            // One that has so much to do is not in need of being prepared.
            let _ = jobs.try_send(Job::Prepare);
        }
    }
}

/// On a host that knows no decision, lets all originals be made anew that one has ever put to work: after `Decision.dat` was lost or
/// moved away, the tokens that they have seen may be above those of the decisions to come. To be called before the workers start.
///
/// # Errors
/// What is remembered cannot be read or written.
pub fn forget_decisions(directory: &Path) -> io::Result<()> {
    let folder = directory.join(FOLDER);
    if !folder.exists() {
        return Ok(());
    }
    for item in fs::read_dir(folder)? {
        let path = item?.path().join("state");
        let held = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            held => held?,
        };
        // What cannot be read, its worker sets aside.
        let Ok(record) = decode_guest(&held) else { continue };
        if record.highest > 0 {
            let state = GuestState::Suspended;
            let forgotten = GuestRecord { state, highest: 0, token: 0, target: None, unfinished: true, ..record };
            write_atomically(&path, &encode_guest(&forgotten), 0o600)?;
        }
    }
    Ok(())
}

/// The name of the original with this number, from 1.
pub fn original_name(number: usize) -> String {
    format!("original-{number}")
}

/// The wanted originals, and those of which there are remains.
fn names(folder: &Path, count: usize) -> Result<Vec<(String, bool)>, OriginalsError> {
    let failed = |source| OriginalsError::Io { path: folder.to_path_buf(), source };
    private_folder(folder).map_err(failed)?;
    let mut names: Vec<_> = (1..=count).map(|number| (original_name(number), true)).collect();
    for item in fs::read_dir(folder).map_err(failed)? {
        let name = item.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // A copy that somebody has made of such a folder names the instance of another one.
        let number = name.rsplit('-').next().and_then(|number| number.parse::<usize>().ok());
        let is_original = number.is_some_and(|number| original_name(number) == name);
        if is_original && !names.iter().any(|(held, _)| *held == name) {
            names.push((name, false));
        }
    }
    Ok(names)
}

fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_somebody_has_made_of_an_original_are_no_remains_of_one() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["original-1", "original-1.bak", "original-12", "original-02", "original-", "my-original-2", "notes"]
        {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names = names(folder.path(), 2).unwrap();
        let expected = [("original-1", true), ("original-2", true), ("original-12", false)];
        assert_eq!(names, expected.map(|(name, wanted)| (name.to_owned(), wanted)));
    }
}
