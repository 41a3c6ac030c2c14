//! What a driver can do with one original server.
//!
//! The calls block, each within a deadline of its own, and are made by the one worker of the original, one at a time. They
//! know nothing of tokens and decisions: the worker has judged the order before, and has its beginning on disk.

use crate::core::decision::ServiceAddress;
use crate::core::id::ServerName;
use crate::edge::procedure::Procedure;

/// Why something was not done; for people.
pub type Failed = String;

/// What there is of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Gone,
    Suspended,
    /// It runs, and holds this address.
    Running(Option<ServiceAddress>),
    /// It runs and does not answer.
    Silent,
    /// It has been stopped by what is wrong with it; why.
    Stuck(String),
    /// Whoever keeps it does not answer; why.
    Unknown(String),
}

/// One original server, as a driver handles it. An *instance* is one life of it, from pristine to its end; its name is what
/// the driver needs to find it again, in another process, after any crash.
pub trait Machine: Send + 'static {
    /// What an administrator should know of an instance that is suspended.
    fn note(&self) -> String;

    /// Takes possession of what this instance has on this host, where an earlier version has not said whose that is.
    fn adopt(&mut self, _instance: &str) -> Result<(), Failed> {
        Ok(())
    }

    /// Makes a pristine instance and leaves it suspended. `register` is called with its name before it runs: an instance that
    /// could not be registered must end by itself.
    fn prepare(&mut self, register: &mut dyn FnMut(&str) -> Result<(), Failed>) -> Result<(), Failed>;

    /// What is there now.
    fn look(&mut self, instance: &str) -> Seen;

    /// From suspended to answering.
    fn resume(&mut self, instance: &str) -> Result<(), Failed>;

    /// Puts the procedure into a running instance and runs it; returns what it printed. It may be given its later address as
    /// well, if nobody reaches it there.
    fn install(
        &mut self,
        instance: &str,
        target: &ServerName,
        procedure: &Procedure,
        address: Option<ServiceAddress>,
    ) -> Result<String, Failed>;

    /// Gives it the address until `until_ns` (`CLOCK_MONOTONIC`), and announces it. On failure it does not have it.
    fn take_address(&mut self, instance: &str, address: ServiceAddress, until_ns: u64) -> Result<(), Failed>;

    /// Lengthens that time. Fails when the address has lapsed.
    fn hold_address(&mut self, instance: &str, address: ServiceAddress, until_ns: u64) -> Result<(), Failed>;

    /// When this returns, nobody answers at its address any more because of it.
    fn release_address(&mut self, instance: &str) -> Result<(), Failed>;

    /// Ends it, address first, and all that ran in it. One that is gone is fine.
    fn destroy(&mut self, instance: &str) -> Result<(), Failed>;

    /// Removes what all instances have left on this host, after the one that is known was destroyed. What is not this original's
    /// beyond doubt stays. It is an error where the driver finds one that runs, or cannot see what there is.
    fn remove(&mut self) -> Result<(), Failed>;
}
