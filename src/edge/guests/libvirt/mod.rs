//! The driver `libvirt`: an original server is a virtual machine that is kept suspended.
//!
//! ```text
//! (nothing) --boot, save--> pristine state on disk --restore--> suspended --resume--> running … --destroy--> pristine state
//! ```
//! It is booted once, from an image or as a copy of a virtual machine that libvirt has (`template`); after that each life begins by
//! restoring the state that was saved then. `keep = "paused"`: it is restored ahead of time, runs until it has answered and rehearsed,
//! and waits in memory. `keep = "saved"`: it waits on disk and is restored when it is needed. The machines are transient: libvirt
//! forgets them when they end. Procedures come in by the guest agent, so a guest needs no network for that. Its address is on its
//! own interface, and whether anybody reaches it there is decided on this host (`gate`). An instance is named by its UUID.

mod connection;
mod definition;
mod gate;
mod guest_agent;
mod pristine;
mod script;
mod template;

use std::fs::{self, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};
use virt::domain::Domain;
use virt_sys::{
    VIR_DOMAIN_BLOCKED, VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_IOERROR, VIR_DOMAIN_RUNNING, VIR_DOMAIN_SAVE_RUNNING,
};

use super::machine::{Failed, Machine, Seen};
use crate::core::decision::ServiceAddress;
use crate::core::id::ServerName;
use crate::edge::procedure::Procedure;
use connection::{Connection, LibvirtError};
use definition::{Base, Definition, Image, Source};
use gate::Gate;
use guest_agent::Ran;
use pristine::{Made, OF_ANOTHER, Pristine, Store};
use script::Archive;
use template::Template;

pub use connection::describe;
pub use definition::Acceleration;
pub use gate::{SPANNING_TREE_REMEDY, spanning_tree};

/// What is asked often, and must not hold up a lease.
const LOOK: Duration = Duration::from_millis(500);
const ACT: Duration = Duration::from_secs(10);
/// Reading or writing the memory of a guest.
const MOVE_MEMORY: Duration = Duration::from_secs(120);
const RESUME: Duration = Duration::from_secs(20);
/// How long the guest agent alone is asked, before the other way in is tried as well.
const AGENT_ALONE: Duration = Duration::from_secs(3);
/// How long the agent may stay away while the other way in is there.
const AGENT_GRACE: Duration = Duration::from_secs(8);
const ASK_AGAIN: Duration = Duration::from_millis(50);
const ADDRESS: Duration = Duration::from_secs(5);
/// How long a rehearsal may take.
const REHEARSAL: Duration = Duration::from_secs(60);
/// Beyond the deadline of a procedure itself.
const INSTALL_MARGIN: Duration = Duration::from_secs(5);
/// A guest whose kernel has said nothing by then does not run with this acceleration.
const FIRST_WORDS: Duration = Duration::from_secs(8);

const KVM: &str = "/dev/kvm";

/// How an original waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// In memory.
    Paused,
    /// On disk.
    Saved,
}

/// With what the original whose states are in this folder was found to run; `None` while it has not been made.
pub fn found_acceleration(folder: &Path) -> Option<Acceleration> {
    Store { folder: folder.to_path_buf() }.description().ok().map(|pristine| pristine.acceleration)
}

/// What is said of the virtual machine that is to be the template, for people.
///
/// # Errors
/// Why it cannot be.
pub fn describe_template(uri: &str, name: &str) -> Result<String, Failed> {
    let template = Template::read(&mut Connection::new(uri), uri, name)?;
    pristine::made_from(&Source::Domain(template.clone()), "")?;
    let (disks, memory_mib) = (template.bases.len(), template.memory_mib);
    Ok(format!("'{name}' is the template of original servers: {memory_mib} MiB of memory, {disks} disks"))
}

/// Where and with what the driver works.
#[derive(Debug, Clone)]
pub struct LibvirtDriver {
    /// The p2pdb program itself, `/proc/self/exe` in the daemon.
    pub program: PathBuf,
    pub uri: String,
    /// The folder of the image: `vmlinuz` and `initrd.img`, `disk.qcow2`, or all three.
    pub image: PathBuf,
    /// The virtual machine of libvirt that is the template, instead of an image.
    pub domain: Option<String>,
    /// Where the originals' states and disks are kept; QEMU's user must be able to enter it. `None`: in the daemon's folder.
    pub folder: Option<PathBuf>,
    pub memory_mib: u64,
    pub processors: u32,
    /// `None`: what is found to work.
    pub acceleration: Option<Acceleration>,
    pub keep: Keep,
    /// A command that a guest runs once before it waits in memory, beside what is p2pdb's own; empty: none.
    pub rehearsal: String,
    /// How long a first boot may take.
    pub boot: Duration,
    /// The bridge of this host on the service network.
    pub bridge: Option<String>,
    /// The router of the service network.
    pub gateway: Option<IpAddr>,
}

impl LibvirtDriver {
    /// The machine for one original, whose folder exists.
    pub fn machine(&self, original: &str, folder: &Path) -> LibvirtMachine {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let home = absolute(folder.to_path_buf());
        let folder = self.folder.as_ref().map_or_else(|| home.clone(), |shared| absolute(shared.join(original)));
        let store = Store { folder };
        let guest_agent = store.description().is_ok_and(|pristine| pristine.guest_agent);
        LibvirtMachine {
            connection: Connection::new(&self.uri),
            driver: self.clone(),
            original: original.to_owned(),
            home,
            store,
            guest_agent,
            memory_mib: self.memory_mib,
            addressed: None,
            activation: None,
        }
    }

    fn image(&self) -> Result<Image, Failed> {
        let file = |name: &str| Some(self.image.join(name)).filter(|path| path.is_file());
        let image = Image {
            kernel: file("vmlinuz").zip(file("initrd.img")),
            disk: file("disk.qcow2"),
            memory_mib: self.memory_mib,
            processors: self.processors,
        };
        match image.kernel.is_none() && image.disk.is_none() {
            true => Err(format!(
                "libvirt.image '{}' holds neither vmlinuz and initrd.img nor disk.qcow2; tools/image makes one; or set libvirt.domain",
                self.image.display()
            )),
            false => Ok(image),
        }
    }

    /// What may work here, best first.
    fn accelerations(&self, source: &Source) -> Vec<Acceleration> {
        match (self.acceleration, source) {
            (Some(only), _) => vec![only],
            (None, Source::Domain(template)) => vec![template.acceleration],
            (None, _) if Path::new(KVM).exists() => vec![Acceleration::Kvm, Acceleration::Qemu],
            (None, _) => vec![Acceleration::Qemu],
        }
    }
}

pub struct LibvirtMachine {
    driver: LibvirtDriver,
    original: String,
    /// Its folder in the daemon's directory.
    home: PathBuf,
    store: Store,
    connection: Connection,
    /// Whether this life is reached by the guest agent, and not by the installer's channel.
    guest_agent: bool,
    memory_mib: u64,
    /// What the guest has just been given on its own interface; whether anybody reaches it there is the gate's affair.
    addressed: Option<ServiceAddress>,
    /// How long the last resumption took until the guest answered.
    activation: Option<Duration>,
}

impl Machine for LibvirtMachine {
    fn note(&self) -> String {
        let Ok(pristine) = self.store.description() else { return "a virtual machine".into() };
        let what = match pristine.acceleration {
            Acceleration::Kvm => "a virtual machine",
            Acceleration::Qemu => "an emulated machine",
        };
        let saved_mib = pristine.save_bytes >> 20;
        let keeps = match self.driver.keep {
            Keep::Paused => format!("paused in memory ({} MiB of it, {saved_mib} in use)", self.memory_mib),
            Keep::Saved => format!("saved on disk ({saved_mib} MiB)"),
        };
        let activation = self.activation.map_or(String::new(), |took| format!("; resumed in {} ms", took.as_millis()));
        let way = if pristine.guest_agent { "" } else { "; without guest agent" };
        format!("{what}, {keeps}; booted in {} ms{activation}{way}", pristine.boot_ms)
    }

    fn adopt(&mut self, instance: &str) -> Result<(), Failed> {
        self.store.adopt(&self.home, instance).map_err(|error| self.at_folder(error))
    }

    fn prepare(&mut self, register: &mut dyn FnMut(&str) -> Result<(), Failed>) -> Result<(), Failed> {
        self.make_folder().map_err(|error| self.at_folder(error))?;
        let source = self.source()?;
        self.memory_mib = source.memory_mib();
        let made_from = pristine::made_from(&source, &self.shape(&source))?;
        match self.store.pristine(&made_from) {
            Ok(pristine) => {
                self.lay_out(&pristine, register)?;
                match self.restore_ahead(&pristine.uuid) {
                    Err(LibvirtError::Failed { why, .. }) => {
                        info!("{}: its pristine state cannot be restored and is made anew: {why}", self.original);
                        self.end(&pristine.uuid)?;
                    }
                    restored => return restored.map_err(|error| error.to_string()),
                }
            }
            Err(why) => info!("{}: it is booted, to make its pristine state: {why}", self.original),
        }
        let pristine = self.make_pristine(&source, made_from, register)?;
        self.lay_out(&pristine, register)?;
        self.restore_ahead(&pristine.uuid).map_err(|error| error.to_string())
    }

    fn look(&mut self, instance: &str) -> Seen {
        if self.store.is_others(&self.home) {
            return Seen::Unknown(self.at_folder(io::Error::other(OF_ANOTHER)));
        }
        let state = self.connection.on_domain(instance, "asking how it is", LOOK, Domain::get_state);
        match state {
            Ok((VIR_DOMAIN_RUNNING | VIR_DOMAIN_BLOCKED, _)) => self.running(instance),
            Ok((VIR_DOMAIN_PAUSED, reason)) if reason == VIR_DOMAIN_PAUSED_IOERROR as i32 => {
                Seen::Stuck(self.lacking_room("QEMU has suspended it: it cannot write to its disk".into()))
            }
            Ok((VIR_DOMAIN_PAUSED, _)) => Seen::Suspended,
            Ok(_) => Seen::Gone,
            Err(LibvirtError::NoDomain) if self.waits_on_disk() => Seen::Suspended,
            Err(LibvirtError::NoDomain) => Seen::Gone,
            // It runs without libvirt as well, and its gate is here.
            Err(_) if self.store.is_awake() => self.running(instance),
            Err(error) => Seen::Unknown(error.to_string()),
        }
    }

    fn resume(&mut self, instance: &str) -> Result<(), Failed> {
        let begun = Instant::now();
        self.addressed = None;
        // A daemon that has started since has closed it. And what fails here says nothing of the pristine state.
        self.make_folder().map_err(|error| self.at_folder(error))?;
        self.store.set_awake(true).map_err(|error| self.at_folder(error))?;
        let resumed = match self.driver.keep {
            Keep::Paused => self.connection.on_domain(instance, "resuming it", ACT, |domain| domain.resume()).map(drop),
            Keep::Saved => self.restore(),
        };
        if resumed.is_ok() {
            // Ready before it is needed.
            self.gate(instance).attend().map_err(|error| error.to_string())?;
        }
        let woken = resumed.and_then(|()| self.wait_for_first_answer(instance, begun + RESUME));
        if self.driver.keep == Keep::Saved && matches!(woken, Err(LibvirtError::Failed { .. })) {
            // As whole as its state is, this host cannot go on with it: QEMU or the processor may be another than then.
            self.store.forget().map_err(|error| self.at_folder(error))?;
        }
        woken.map_err(|error| error.to_string())?;
        self.activation = Some(begun.elapsed());
        Ok(())
    }

    fn install(
        &mut self,
        instance: &str,
        target: &ServerName,
        procedure: &Procedure,
        address: Option<ServiceAddress>,
    ) -> Result<String, Failed> {
        let patience = procedure.manifest.deadline() + INSTALL_MARGIN;
        let archive = if self.guest_agent { Archive::Input } else { Archive::Within };
        // With IPv6 the guest says which addresses it listens to when it gets one: nobody would hear that.
        let ahead = address.filter(|address| address.ip.is_ipv4());
        if ahead.is_some() {
            self.gate(instance).shut().map_err(|error| error.to_string())?;
        }
        let ahead = ahead.map(|address| script::take_address(&mac(instance), address, self.driver.gateway));
        let script = script::install(procedure, target, &self.original, archive, ahead.as_deref())?;
        let input = if self.guest_agent { procedure.bundle() } else { Vec::new() };
        match self.run(instance, &script, &input, patience)? {
            Ran { status: 0, output } => {
                let (is_addressed, output) = script::installed(&output);
                self.addressed = address.filter(|_| is_addressed);
                Ok(output.to_owned())
            }
            Ran { output, .. } => Err(output.trim().to_owned()),
        }
    }

    fn take_address(&mut self, instance: &str, address: ServiceAddress, until_ns: u64) -> Result<(), Failed> {
        // What became of it since it was last needed is not known.
        if self.addressed.take() != Some(address) {
            let script = script::take_address(&mac(instance), address, self.driver.gateway);
            let ran = self.run(instance, &script, &[], ADDRESS)?;
            if ran.status != 0 {
                return Err(format!("the guest does not take the address: {}", ran.output.trim()));
            }
        }
        self.gate(instance).take(address, until_ns).map_err(|error| error.to_string())
    }

    fn hold_address(&mut self, instance: &str, address: ServiceAddress, until_ns: u64) -> Result<(), Failed> {
        self.gate(instance).hold(address, until_ns).map_err(|error| error.to_string())
    }

    fn release_address(&mut self, instance: &str) -> Result<(), Failed> {
        self.gate(instance).release().map_err(|error| error.to_string())
    }

    fn destroy(&mut self, instance: &str) -> Result<(), Failed> {
        self.end(instance)
    }

    fn remove(&mut self) -> Result<(), Failed> {
        self.remove_folder()?;
        Store::disown(&self.home).map_err(|error| format!("{}: {error}", self.home.display()))
    }
}

impl LibvirtMachine {
    fn at_folder(&self, error: io::Error) -> Failed {
        format!("{}: {error}", self.store.folder.display())
    }

    fn remove_folder(&mut self) -> Result<(), Failed> {
        let folder = self.store.folder.clone();
        if !folder.try_exists().map_err(|error| self.at_folder(error))? {
            return self.must_be_there();
        }
        if !self.store.is_of(&self.home).map_err(|error| self.at_folder(error))? {
            let folder = folder.display();
            warn!(
                "{}: {folder} is not known to be its own and is left as it is; remove it if no server uses it",
                self.original
            );
            return Ok(());
        }
        // What was remembered of it may be lost: nothing is taken away below a machine that runs.
        if let Ok(pristine) = self.store.description() {
            match self.look(&pristine.uuid) {
                Seen::Gone | Seen::Suspended => self.end(&pristine.uuid)?,
                Seen::Unknown(why) => return Err(why),
                _ => {
                    let uuid = pristine.uuid;
                    return Err(format!(
                        "its virtual machine runs, and it is not known what for; 'virsh destroy {uuid}' ends it"
                    ));
                }
            }
        }
        self.store.remove().map_err(|error| self.at_folder(error))?;
        if folder == self.home {
            return Ok(());
        }
        match fs::remove_dir(&folder) {
            // What somebody else has put there stays.
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(self.at_folder(error)),
            _ => Ok(()),
        }
    }

    /// That a folder is not there means that nothing of it is left only where the one that it was made in is.
    fn must_be_there(&self) -> Result<(), Failed> {
        let Some(shared) = &self.driver.folder else { return Ok(()) };
        let at = |error: io::Error| format!("{}: {error}", shared.display());
        match shared.try_exists().map_err(at)? || !Store::has_claimed(&self.home).map_err(at)? {
            true => Ok(()),
            false => Err(format!(
                "{} is not there, and an original server was made in it: is its disk mounted? If all of it is gone for good, make it \
                 again, empty",
                shared.display()
            )),
        }
    }

    /// QEMU's user must be able to enter it, whatever the daemon's own files are like.
    fn make_folder(&self) -> io::Result<()> {
        let folder = &self.store.folder;
        // A folder above it that is there already is the administrator's affair.
        let is_own = |above: &&Path| self.driver.folder.is_none() || !above.exists();
        let own = folder.parent().filter(is_own);
        let open = |it: &Path| fs::set_permissions(it, Permissions::from_mode(0o711));
        fs::create_dir_all(folder)?;
        // It is known to be its own only this once, whatever becomes of the rest.
        own.map_or(Ok(()), open)?;
        self.store.claim(&self.home)?;
        open(folder)
    }

    /// Says what to do where a failure may come from a lack of room.
    fn lacking_room(&self, why: Failed) -> Failed {
        let Ok(stat) = rustix::fs::statvfs(&self.store.folder) else { return why };
        let (free_mib, memory_mib) = ((stat.f_bavail * stat.f_frsize) >> 20, self.memory_mib);
        match free_mib < memory_mib {
            true => format!(
                "{why}; {} has {free_mib} MiB left, and an original server takes up to {memory_mib} MiB there and what it writes: \
                 make room, or set libvirt.folder in p2pdb.toml",
                self.store.folder.display()
            ),
            false => why,
        }
    }

    fn source(&mut self) -> Result<Source, Failed> {
        match &self.driver.domain {
            Some(name) => Template::read(&mut self.connection, &self.driver.uri, name).map(Source::Domain),
            None => self.driver.image().map(Source::Image),
        }
    }

    /// What a saved state depends on beside the files of its source.
    fn shape(&self, source: &Source) -> String {
        let LibvirtDriver { memory_mib, processors, uri, .. } = &self.driver;
        let acceleration = match self.driver.acceleration {
            Some(only) => only.word(),
            None if Path::new(KVM).exists() => "auto",
            None => "auto, without KVM",
        };
        let what = match source {
            Source::Image(_) => format!("{memory_mib} MiB, {processors} processors"),
            Source::Domain(template) => template.digest(),
        };
        format!("{what}, {acceleration}, {uri}, {}", self.store.folder.display())
    }

    fn gate(&self, uuid: &str) -> Gate {
        // Where the folder has become another's, so has the agent there; what is the gate's own is shut without one.
        let folder = if self.store.is_others(&self.home) { &self.home } else { &self.store.folder };
        Gate {
            program: self.driver.program.clone(),
            bridge: self.driver.bridge.clone(),
            tap: tap(uuid),
            mac: mac(uuid),
            socket: gate::socket(folder),
        }
    }

    fn running(&self, instance: &str) -> Seen {
        match self.gate(instance).held() {
            Ok(held) => Seen::Running(held),
            Err(_) => Seen::Silent,
        }
    }

    fn waits_on_disk(&self) -> bool {
        // While it waits in memory, QEMU keeps others from writing to the disks below its own.
        let is_there = || self.store.save_path().exists() && self.store.fits_its_bases();
        self.driver.keep == Keep::Saved && !self.store.is_awake() && is_there()
    }

    /// All of a new life but its memory.
    fn lay_out(
        &mut self,
        pristine: &Pristine,
        register: &mut dyn FnMut(&str) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        self.store.clear().map_err(|error| self.at_folder(error))?;
        register(&pristine.uuid)?;
        self.guest_agent = pristine.guest_agent;
        self.gate(&pristine.uuid).make().map_err(|error| error.to_string())?;
        let base = |number| Base { path: self.store.disk_path(number), format: "qcow2".into() };
        self.overlay(&(0..pristine.disks()).map(base).collect::<Vec<_>>())
    }

    /// New disks for the present life.
    fn overlay(&self, bases: &[Base]) -> Result<(), Failed> {
        let make = |(number, base)| pristine::overlay(base, &self.store.overlay_path(number));
        bases.iter().enumerate().try_for_each(make).map_err(|why| self.lacking_room(why))
    }

    /// Puts into memory what is to wait there, and lets it answer and rehearse before it is suspended: whether it can is known
    /// then, and what it has done once it does again in a fraction of the time.
    fn restore_ahead(&mut self, uuid: &str) -> Result<(), LibvirtError> {
        if self.driver.keep == Keep::Saved {
            return Ok(());
        }
        self.restore()?;
        self.wait_for_first_answer(uuid, Instant::now() + RESUME)?;
        self.rehearse(uuid);
        self.connection.on_domain(uuid, "suspending it", ACT, |domain| domain.suspend()).map(drop)
    }

    fn wait_for_first_answer(&mut self, uuid: &str, deadline: Instant) -> Result<(), LibvirtError> {
        let Err(why) = self.wait_for_guest(uuid, deadline) else { return Ok(()) };
        // That libvirt does not answer says nothing of the guest.
        self.connection.on_domain(uuid, "asking how it is", LOOK, Domain::get_state)?;
        Err(LibvirtError::Failed { what: "waiting for its first answer", why })
    }

    /// One that cannot be rehearsed with serves all the same, only later.
    fn rehearse(&mut self, uuid: &str) {
        let script = script::rehearsal(&self.driver.rehearsal, REHEARSAL.as_secs());
        let why = match self.run(uuid, &script, &[], REHEARSAL + INSTALL_MARGIN) {
            Ok(Ran { status: 0, .. }) => return,
            Ok(Ran { status, output }) => format!("it ended with exit code {status}: {}", output.trim()),
            Err(why) => why,
        };
        warn!("{}: libvirt.rehearsal: {why}", self.original);
    }

    fn restore(&mut self) -> Result<(), LibvirtError> {
        let path = self.store.save_path().to_string_lossy().into_owned();
        self.connection.call("restoring it", MOVE_MEMORY, move |connection| {
            Domain::domain_restore_flags(connection, &path, None, VIR_DOMAIN_SAVE_RUNNING)
        })
    }

    fn definition(&self, source: &Source, uuid: &str, acceleration: Acceleration) -> String {
        Definition {
            name: &format!("p2pdb-{}-{}", self.original, &uuid[..8]),
            uuid,
            mac: &mac(uuid),
            tap: &tap(uuid),
            acceleration,
            source,
            disks: &self.store.overlay_paths(source.bases().len()),
            console: &self.store.console_path(),
            channel: &self.store.channel_path(),
        }
        .xml()
    }

    /// Boots it and saves it, with the first acceleration that works.
    fn make_pristine(
        &mut self,
        source: &Source,
        made_from: String,
        register: &mut dyn FnMut(&str) -> Result<(), Failed>,
    ) -> Result<Pristine, Failed> {
        self.store.forget().map_err(|error| self.at_folder(error))?;
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(|error| error.to_string())?;
        let uuid = uuid.trim().to_owned();
        register(&uuid)?;
        let mut why = String::new();
        for acceleration in self.driver.accelerations(source) {
            match self.boot(source, &uuid, acceleration) {
                Ok(boot_ms) => {
                    let made = Made { uuid, acceleration, guest_agent: self.guest_agent, boot_ms };
                    return self.save(made, made_from, source.bases().len()).map_err(|why| {
                        let why = self.lacking_room(why);
                        // A part of it would take the room away. What cannot be removed now is, before the next one is made.
                        let _ = self.store.forget();
                        why
                    });
                }
                Err(this) => {
                    info!("{}: it does not boot with {}: {this}", self.original, acceleration.word());
                    self.end(&uuid)?;
                    why = this;
                }
            }
        }
        Err(why)
    }

    fn save(&mut self, made: Made, made_from: String, disks: usize) -> Result<Pristine, Failed> {
        let path = self.store.save_path().to_string_lossy().into_owned();
        let save = move |domain: &Domain| connection::save(domain, &path);
        let saved = self.connection.on_domain(&made.uuid, "saving it", MOVE_MEMORY, save);
        saved.map_err(|error| error.to_string())?;
        self.store.keep(made, made_from, disks).map_err(|error| self.at_folder(error))
    }

    fn boot(&mut self, source: &Source, uuid: &str, acceleration: Acceleration) -> Result<u64, Failed> {
        let begun = Instant::now();
        self.store.clear().map_err(|error| self.at_folder(error))?;
        let console = self.store.console_path();
        match fs::remove_file(&console) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.at_folder(error)),
            _ => {}
        }
        self.gate(uuid).make().map_err(|error| error.to_string())?;
        self.overlay(&source.bases())?;
        let xml = self.definition(source, uuid, acceleration);
        self.connection
            .call("starting it", MOVE_MEMORY, move |connection| Domain::create_xml(connection, &xml, 0).map(drop))
            .map_err(|error| error.to_string())?;
        // Of others it is not known that they say anything there.
        let speaks = matches!(source, Source::Image(Image { kernel: Some(_), .. }));
        if self.driver.acceleration.is_none() && acceleration == Acceleration::Kvm && speaks {
            wait_for_words(&console, begun + FIRST_WORDS)?;
        }
        self.wait_for_guest(uuid, begun + self.driver.boot)?;
        // What the guest has in mind to write belongs to the state.
        self.run(uuid, "sync", &[], ACT)?;
        Ok(begun.elapsed().as_millis() as u64)
    }

    /// Whether the agent is a way into the guest; what it may do is asked of a guest that boots, and `known` afterwards.
    fn ask_agent(&mut self, uuid: &str, known: Option<bool>) -> Result<(), LibvirtError> {
        let patience = Duration::from_secs(1);
        match known {
            None => guest_agent::may_run(&mut self.connection, uuid, patience),
            Some(true) => guest_agent::ping(&mut self.connection, uuid, patience),
            Some(false) => {
                self.connection.on_domain(uuid, "asking how it is", LOOK, Domain::get_state)?;
                Err(LibvirtError::Failed { what: "the guest agent", why: "it was of no use at the first boot".into() })
            }
        }
    }

    /// Waits until the guest answers, by whichever way.
    fn wait_for_guest(&mut self, uuid: &str, deadline: Instant) -> Result<(), Failed> {
        let begun = Instant::now();
        let known = self.store.description().ok().map(|pristine| pristine.guest_agent);
        // While it boots, the channel may be there before the agent.
        let (alone, grace) = match known {
            Some(false) => (Duration::ZERO, Duration::ZERO),
            _ => (AGENT_ALONE, AGENT_GRACE),
        };
        let mut channel_since = None;
        loop {
            let why = match self.ask_agent(uuid, known) {
                Ok(()) => {
                    self.guest_agent = true;
                    return Ok(());
                }
                Err(LibvirtError::NoDomain) => return Err("it has ended".into()),
                Err(error) => error,
            };
            let channel = self.store.channel_path();
            if begun.elapsed() > alone && guest_agent::run_by_channel(&channel, ":", Duration::from_secs(1)).is_ok() {
                let since = *channel_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= grace {
                    self.guest_agent = false;
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                let console = self.store.console_path();
                return Err(format!(
                    "neither its guest agent nor its installer's channel answers: {why}; what it says of itself is in {}",
                    console.display()
                ));
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }

    fn run(&mut self, uuid: &str, script: &str, input: &[u8], patience: Duration) -> Result<Ran, Failed> {
        let ran = match self.guest_agent {
            true => guest_agent::run(&mut self.connection, uuid, script, input, patience),
            false => guest_agent::run_by_channel(&self.store.channel_path(), script, patience),
        };
        ran.map_err(|why| match self.look(uuid) {
            Seen::Stuck(reason) => reason,
            _ => why,
        })
    }

    /// Ends a life, gate first.
    fn end(&mut self, uuid: &str) -> Result<(), Failed> {
        self.gate(uuid).remove().map_err(|error| error.to_string())?;
        match self.connection.on_domain(uuid, "ending it", ACT, Domain::destroy) {
            Ok(()) | Err(LibvirtError::NoDomain) => {}
            Err(error) => return Err(error.to_string()),
        }
        match self.store.is_others(&self.home) {
            true => Ok(()),
            false => self.store.clear().map_err(|error| self.at_folder(error)),
        }
    }
}

/// The guest's hardware address.
fn mac(uuid: &str) -> String {
    format!("52:54:00:{}:{}:{}", &uuid[..2], &uuid[2..4], &uuid[4..6])
}

/// The gate's name: at most 15 bytes.
fn tap(uuid: &str) -> String {
    format!("p2pdb{}", &uuid[..8])
}

fn wait_for_words(console: &Path, deadline: Instant) -> Result<(), Failed> {
    loop {
        if fs::metadata(console).is_ok_and(|metadata| metadata.len() > 0) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("its kernel has said nothing within {} s", FIRST_WORDS.as_secs()));
        }
        std::thread::sleep(ASK_AGAIN);
    }
}
