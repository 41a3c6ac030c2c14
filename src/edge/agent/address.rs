//! An address that is here as long as its lease lasts.
//!
//! ```text
//! nothing --take--> held (announced 3 times) --hold--> held … --release, or the lease is over--> nothing
//! ```
//! Two things end a lease, so that it ends even when one of them is frozen: a thread of this process, on time, and the kernel,
//! which was told the life of the address and takes it away a second or two later.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::log;
use super::place::Place;
use crate::core::decision::ServiceAddress;
use crate::edge::clock::monotonic_ns;

/// When the announcement is repeated, after the first one. Some neighbours do not believe two changes within a second.
const ANNOUNCE_AGAIN_NS: [u64; 2] = [150_000_000, 1_100_000_000];
const SECOND_NS: u64 = 1_000_000_000;

/// Holds at most one address at one place; releases it when it is dropped.
pub struct AddressLease {
    shared: Arc<Shared>,
}

struct Shared {
    place: Place,
    held: Mutex<Option<Held>>,
    changed: Condvar,
}

struct Held {
    address: ServiceAddress,
    until_ns: u64,
    /// When it is announced again.
    announcements: Vec<u64>,
}

impl AddressLease {
    /// Starts the thread that ends leases.
    pub fn start(place: Place) -> io::Result<Self> {
        let shared = Arc::new(Shared { place, held: Mutex::new(None), changed: Condvar::new() });
        let watched = shared.clone();
        std::thread::Builder::new().name("address-lease".into()).spawn(move || watched.watch())?;
        Ok(Self { shared })
    }

    pub fn held(&self) -> Option<(ServiceAddress, u64)> {
        self.shared.lock().as_ref().map(|held| (held.address, held.until_ns))
    }

    /// Adds the address and announces it. An address that was held before is taken away first.
    pub fn take(&self, address: ServiceAddress, until_ns: u64) -> io::Result<()> {
        let place = &self.shared.place;
        place.is_there()?;
        let mut held = self.shared.lock();
        if held.as_ref().is_some_and(|held| held.address != address) {
            self.shared.drop_held(&mut held)?;
        }
        let now_ns = monotonic_ns();
        if until_ns <= now_ns {
            return Err(over(address));
        }
        let lasting = seconds_left(until_ns, now_ns);
        *held = Some(Held { address, until_ns, announcements: ANNOUNCE_AGAIN_NS.map(|after| now_ns + after).to_vec() });
        self.shared.changed.notify_all();
        let taken = place
            .put(address, lasting)
            // This process may have been frozen since.
            .and_then(|()| if until_ns <= monotonic_ns() { Err(over(address)) } else { Ok(()) })
            .and_then(|()| place.announce(address.ip));
        if taken.is_err() {
            // Not half: whoever asked is told that it is not here.
            self.shared.drop_held(&mut held)?;
        }
        taken
    }

    /// Lengthens the lease.
    pub fn hold(&self, address: ServiceAddress, until_ns: u64) -> io::Result<()> {
        let place = &self.shared.place;
        let mut held = self.shared.lock();
        let now_ns = monotonic_ns();
        match held.as_mut() {
            Some(held) if held.address == address && held.until_ns > now_ns => {
                if until_ns > held.until_ns {
                    place.keep(address, seconds_left(until_ns, now_ns))?;
                    held.until_ns = until_ns;
                    self.shared.changed.notify_all();
                }
                Ok(())
            }
            _ => Err(over(address)),
        }
    }

    pub fn release(&self) -> io::Result<()> {
        self.shared.drop_held(&mut self.shared.lock())
    }
}

impl Drop for AddressLease {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log(format_args!("it ends and its address stays: {error}"));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What cannot be taken away now is over all the same; `watch` goes on trying.
    fn drop_held(&self, held: &mut Option<Held>) -> io::Result<()> {
        if let Some(lease) = held {
            lease.until_ns = 0;
            self.changed.notify_all();
            self.place.remove(lease.address)?;
        }
        *held = None;
        Ok(())
    }

    /// Ends what is over and announces what is due, for ever.
    fn watch(&self) {
        let mut held = self.lock();
        loop {
            let now_ns = monotonic_ns();
            let mut wait_ns = u64::MAX;
            match held.as_mut() {
                None => {}
                Some(lease) if lease.until_ns <= now_ns => match self.drop_held(&mut held) {
                    Ok(()) => continue,
                    Err(error) => {
                        log(format_args!("a lease is over and its address stays: {error}"));
                        wait_ns = SECOND_NS / 10;
                    }
                },
                Some(lease) => {
                    let due = lease.announcements.iter().filter(|due| **due <= now_ns).count();
                    if due > 0 {
                        lease.announcements.retain(|due| *due > now_ns);
                        if let Err(error) = self.place.announce(lease.address.ip) {
                            log(format_args!("{} cannot be announced: {error}", lease.address));
                        }
                    }
                    let next_ns = lease.announcements.iter().copied().chain([lease.until_ns]).min();
                    wait_ns = next_ns.unwrap_or(lease.until_ns).saturating_sub(now_ns);
                }
            }
            let waited = self.changed.wait_timeout(held, Duration::from_nanos(wait_ns.min(3600 * SECOND_NS)));
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What the kernel is told: whole seconds, and one more, so that it is never first.
fn seconds_left(until_ns: u64, now_ns: u64) -> u64 {
    until_ns.saturating_sub(now_ns).div_ceil(SECOND_NS) + 1
}

fn over(address: ServiceAddress) -> io::Error {
    io::Error::other(format!("the lease of {address} is over; it has to be taken again"))
}
