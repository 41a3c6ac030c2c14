//! This server's own service address on its own host: taken, held as long as its lease is renewed, released; and whether somebody
//! answers at an address.
//!
//! The address is held by an agent (`edge::agent`), a process beside the daemon that outlives it: the address lapses on time when
//! the daemon is frozen or killed, and stays when a new daemon renews it in time. Orders are carried out one after the other by a
//! worker; probes have threads of their own and hold nobody up. Everything is answered by an [`AddressReport`].

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing::warn;

use super::agent::{self, AgentArgs, Reply, Request, call};
use super::clock::{SystemClock, monotonic_ns};
use super::iproute;
use super::link_layer::{self, Mac};
use crate::core::clock::Now;
use crate::core::decision::ServiceAddress;
use crate::core::guest::OrderId;
use crate::core::service::parse_address;

const ANSWER: Duration = Duration::from_secs(1);
/// Orders that may wait.
const WAITING_MAX: usize = 64;
/// Probes at a time.
const PROBES_MAX: usize = 32;

/// What becomes of an order or a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressReport {
    /// What is held after the order; or why it was not carried out.
    Outcome { id: OrderId, outcome: Result<Option<ServiceAddress>, String> },
    /// Who answers at an address, if anybody; or why nobody could ask.
    Probed { id: OrderId, address: ServiceAddress, outcome: Result<Option<Mac>, String> },
}

/// Tells the daemon; called from other threads, must not block.
pub type Report = Arc<dyn Fn(AddressReport) + Send + Sync>;

/// Where addresses are held.
#[derive(Debug, Clone)]
pub struct AddressSettings {
    /// The p2pdb program itself, `/proc/self/exe` in the daemon.
    pub program: PathBuf,
    pub directory: PathBuf,
    /// The interface of this host on the service network.
    pub interface: Option<String>,
}

enum Order {
    Report,
    Take(ServiceAddress, u64),
    Hold(ServiceAddress, u64),
    Release(ServiceAddress),
}

/// The keeper of this server's service address. Dropping it releases nothing.
pub struct ServiceAddressKeeper {
    settings: AddressSettings,
    clock: SystemClock,
    report: Report,
    orders: SyncSender<(OrderId, Order)>,
    probes: Arc<AtomicUsize>,
}

impl ServiceAddressKeeper {
    /// Starts the worker. No agent runs before the first address is taken.
    pub fn start(settings: AddressSettings, clock: SystemClock, report: Report) -> io::Result<Self> {
        let (orders, inbox) = sync_channel(WAITING_MAX);
        let worker = Worker { settings: settings.clone(), last: None };
        let told = report.clone();
        let thread = std::thread::Builder::new().name("service-address".into());
        thread.spawn(move || worker.run(&inbox, &told))?;
        Ok(Self { settings, clock, report, orders, probes: Arc::default() })
    }

    /// Asks what is held: an earlier daemon may have left it.
    pub fn held(&self, id: OrderId) {
        self.order(id, Order::Report);
    }

    /// Takes the address for `lease_ms` from `now`, and announces it.
    pub fn take(&self, id: OrderId, address: ServiceAddress, lease_ms: u64, now: Now) {
        self.order(id, Order::Take(address, self.until_ns(lease_ms, now)));
    }

    /// Holds it for `lease_ms` from `now`; fails when it has lapsed.
    pub fn hold(&self, id: OrderId, address: ServiceAddress, lease_ms: u64, now: Now) {
        self.order(id, Order::Hold(address, self.until_ns(lease_ms, now)));
    }

    /// After this was answered, this host does not answer at the address any more.
    pub fn release(&self, id: OrderId, address: ServiceAddress) {
        self.order(id, Order::Release(address));
    }

    /// Asks the service network who answers at the address, for `patience` at most.
    pub fn probe(&self, id: OrderId, address: ServiceAddress, patience: Duration) {
        let report = self.report.clone();
        if self.probes.fetch_add(1, Ordering::Relaxed) >= PROBES_MAX {
            self.probes.fetch_sub(1, Ordering::Relaxed);
            let outcome = Err(format!("{PROBES_MAX} probes are under way already"));
            return report(AddressReport::Probed { id, address, outcome });
        }
        let (interface, probes) = (self.settings.interface.clone(), self.probes.clone());
        let ask = move || {
            let asked = required(interface.as_deref()).and_then(|name| link_layer::probe(name, address.ip, patience));
            probes.fetch_sub(1, Ordering::Relaxed);
            report(AddressReport::Probed { id, address, outcome: asked.map_err(|error| error.to_string()) });
        };
        if let Err(error) = std::thread::Builder::new().name("address-probe".into()).spawn(ask) {
            self.probes.fetch_sub(1, Ordering::Relaxed);
            (self.report)(AddressReport::Probed { id, address, outcome: Err(error.to_string()) });
        }
    }

    fn order(&self, id: OrderId, order: Order) {
        if self.orders.try_send((id, order)).is_err() {
            let outcome = Err(format!("{WAITING_MAX} orders wait for the service address already"));
            (self.report)(AddressReport::Outcome { id, outcome });
        }
    }

    fn until_ns(&self, lease_ms: u64, now: Now) -> u64 {
        let age_us = self.clock.now().monotonic_us.saturating_sub(now.monotonic_us);
        (monotonic_ns() + lease_ms * 1_000_000).saturating_sub(age_us * 1000)
    }
}

struct Worker {
    settings: AddressSettings,
    /// What was taken last. The interface may still have it when the agent that would say so is dead.
    last: Option<ServiceAddress>,
}

impl Worker {
    fn run(mut self, orders: &Receiver<(OrderId, Order)>, report: &Report) {
        for (id, order) in orders {
            let outcome = self.carry_out(order).map_err(|error| error.to_string());
            report(AddressReport::Outcome { id, outcome });
        }
    }

    fn carry_out(&mut self, order: Order) -> io::Result<Option<ServiceAddress>> {
        let interface = required(self.settings.interface.as_deref())?.to_owned();
        match order {
            Order::Report => match self.ask(Request::Report) {
                Err(error) if is_absent(&error) => self.clean_up(&interface).map(|()| None),
                other => other,
            },
            Order::Take(address, until_ns) => {
                self.remember(address);
                let request = Request::Take { address, until_ns };
                match self.ask(request.clone()) {
                    Err(error) if is_absent(&error) => {}
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => self.end_silent_agent()?,
                    other => return other,
                }
                self.start_agent(&interface)?;
                self.ask(request)
            }
            Order::Hold(address, until_ns) => self.ask(Request::Hold { address, until_ns }),
            Order::Release(address) => {
                // Whoever has put it there: it is not to be there now.
                self.last = Some(address);
                match self.ask(Request::Release) {
                    Ok(_) => {}
                    Err(error) if is_absent(&error) => {}
                    Err(_) => {
                        // An agent that cannot remove it goes on trying: it is not ended before somebody could.
                        iproute::remove_address(&interface, address)?;
                        self.end_silent_agent()?;
                    }
                }
                self.clean_up(&interface).map(|()| None)
            }
        }
    }

    /// Survives this daemon, unless the disk is full.
    fn remember(&mut self, address: ServiceAddress) {
        self.last = Some(address);
        let path = self.held();
        if let Err(error) = fs::write(&path, address.to_string()) {
            warn!("{}: {error}", path.display());
        }
    }

    /// Takes away what an agent has left that is dead.
    fn clean_up(&mut self, interface: &str) -> io::Result<()> {
        let kept = || parse_address(fs::read_to_string(self.held()).ok()?.trim());
        if let Some(address) = self.last.or_else(kept) {
            iproute::remove_address(interface, address)?;
        }
        self.last = None;
        let _ = fs::remove_file(self.held());
        Ok(())
    }

    fn ask(&self, request: Request) -> io::Result<Option<ServiceAddress>> {
        match call(&self.socket(), request, &[], ANSWER)? {
            Reply::Held(held) => Ok(held.map(|(address, _)| address)),
            other => Err(io::Error::other(format!("the agent gave an answer to another question: {other:?}"))),
        }
    }

    fn start_agent(&self, interface: &str) -> io::Result<()> {
        let arguments = AgentArgs::host(Some(interface.to_owned()));
        agent::start_known(&self.settings.program, &self.socket(), &arguments)
    }

    /// An agent that does not answer holds up whoever waits for it; what it held goes within a second or two, by the kernel.
    fn end_silent_agent(&self) -> io::Result<()> {
        agent::end_known(&self.socket())
    }

    fn socket(&self) -> PathBuf {
        self.settings.directory.join("address.sock")
    }

    fn held(&self) -> PathBuf {
        self.settings.directory.join("address.held")
    }
}

/// Nobody listens, or whoever did has ended meanwhile.
fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}

fn required(interface: Option<&str>) -> io::Result<&str> {
    interface.ok_or_else(|| {
        io::Error::other("this host has no service network; set service.interface in p2pdb.toml and restart the daemon")
    })
}
