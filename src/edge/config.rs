//! The settings of one server: `DIR/p2pdb.toml`.
//!
//! [`KEYS`] is the one place that knows every key: its kind, bounds, default and meaning. The commented file that
//! `init` writes, the check of a file, the nearest known key in an error and the values of absent keys all come from
//! it. Invariant: a [`Config`] that was loaded has passed every check of that table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};
use thiserror::Error;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::certificate::write_atomically;
use crate::core::check::Preset;
use crate::core::id::ServerName;
use crate::core::management::{Failback, Hook};
use crate::core::quorum::Policy;

/// The name of the settings file in the daemon's directory.
pub const FILE_NAME: &str = "p2pdb.toml";
/// Largest settings file that is read, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("{path}: not found; no server lives in this directory. Make one with `p2pdb init` or `p2pdb join`")]
    Missing { path: PathBuf },
    #[error("{path}: cannot be read: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be written: {source}")]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{path}: exists already; a server lives in this directory, choose another one")]
    Exists { path: PathBuf },
    #[error("{path}, line {line}: {problem}")]
    Syntax { path: PathBuf, line: usize, problem: String },
    #[error("{path}, line {line}: there is no key '{key}'{}", nearest_hint(nearest))]
    Unknown { path: PathBuf, line: usize, key: String, nearest: Option<String> },
    #[error("{path}, line {line}: {key} is {found}, but must be {wanted}")]
    Value { path: PathBuf, line: usize, key: String, found: String, wanted: String },
    #[error("{path}: the key '{key}' is missing; {about}")]
    Absent { path: PathBuf, key: &'static str, about: &'static str },
}

fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |key| format!("; did you mean '{key}'?"))
}

/// The settings of one server, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the settings, certificates, log and view are.
    #[serde(skip)]
    pub directory: PathBuf,
    pub name: ServerName,
    /// Where this daemon listens, and what the others dial.
    pub listen: SocketAddr,
    /// The folder of the plain-file view.
    pub files: PathBuf,
    /// Members to dial while the file `Server` is not known yet.
    #[serde(deserialize_with = "read_peers")]
    pub peers: BTreeMap<ServerName, SocketAddr>,
    pub network: NetworkConfig,
    pub log: LogConfig,
    pub priority: PrioritySettings,
    pub clock: ClockConfig,
    pub control: ControlConfig,
    pub bundles: BundleConfig,
    pub service: ServiceConfig,
    pub originals: OriginalsConfig,
    pub libvirt: LibvirtConfig,
    pub recovery: RecoveryConfig,
    pub hooks: HooksConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    pub keep_alive_ms: u64,
    pub idle_timeout_ms: u64,
    pub beat_ms: u64,
    /// UDP segmentation offload; some containers cannot.
    pub offload: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub segment_mib: u64,
    pub keep_live_mib: u64,
    pub keep_live_hours: u64,
    pub keep_live_mib_max: u64,
    pub archive: Archive,
    pub checkpoint_every_mib: u64,
}

/// How long archived segments are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Archive {
    Forever,
    Days(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrioritySettings {
    pub enabled: bool,
    pub ageing_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockConfig {
    pub offset_ms_max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// Name or number of the unix group whose members are operators; empty: root and the daemon's own user only.
    pub group: String,
    /// Whether every local user may open the socket, to read.
    pub everyone_reads: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    pub bytes_max: u64,
    pub total_mib: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The interface on the service network; empty: this host has none.
    pub interface: String,
    /// The router of that network for stand-ins; empty: none.
    pub gateway: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginalsConfig {
    pub driver: Driver,
    pub count: usize,
}

/// How virtual machines are made where `originals.driver` is `libvirt`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibvirtConfig {
    pub uri: String,
    /// The folder of the image; empty: none is set.
    pub image: String,
    /// The virtual machine that is the template instead; empty: none is set.
    pub domain: String,
    /// Where states and disks are kept; empty: in the daemon's folder.
    pub folder: String,
    pub memory_mib: u64,
    pub processors: u32,
    pub acceleration: AccelerationSetting,
    pub keep: KeepSetting,
    /// Empty: none.
    pub rehearsal: String,
    pub boot_s: u64,
}

/// How the processor of a virtual machine comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelerationSetting {
    /// What is found to work, by running it.
    Auto,
    Kvm,
    Qemu,
}

/// How an original server waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepSetting {
    Paused,
    Saved,
}

/// What an original server is on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    Process,
    Libvirt,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryConfig {
    pub policy: Policy,
    /// `false`: failures are noticed and explained, and nothing is done about them.
    pub act: bool,
    pub failback: Failback,
    #[serde(deserialize_with = "read_preset")]
    pub preset: Preset,
    /// This server votes, and manages nothing.
    pub witness: bool,
}

/// Programs of the administrator; an empty list: none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HooksConfig {
    pub restart_service: Vec<String>,
    pub restart_server: Vec<String>,
    pub fence: Vec<String>,
    pub notify: Vec<String>,
    pub ready: Vec<String>,
    pub deadline_ms: u64,
}

impl HooksConfig {
    /// Those that are there.
    pub fn commands(&self) -> BTreeMap<Hook, Vec<String>> {
        let of = |hook: &Hook| match hook {
            Hook::RestartService => &self.restart_service,
            Hook::RestartServer => &self.restart_server,
            Hook::Fence => &self.fence,
            Hook::Notify => &self.notify,
            Hook::Ready => &self.ready,
        };
        let commands = Hook::ALL.into_iter().map(|hook| (hook, of(&hook).clone()));
        commands.filter(|(_, words)| !words.is_empty()).collect()
    }
}

impl ServiceConfig {
    pub fn interface(&self) -> Option<String> {
        Some(self.interface.clone()).filter(|interface| !interface.is_empty())
    }

    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway.parse().ok()
    }
}

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Name,
    Address,
    Peers,
    Folder,
    /// Both bounds are allowed.
    Integer {
        min: i64,
        max: i64,
    },
    Flag,
    Archive,
    Group,
    Interface,
    IpOrNone,
    Driver,
    /// Any text.
    Text,
    /// Any text, or empty.
    TextOrNone,
    /// A folder with its full path, or empty.
    FolderOrNone,
    Acceleration,
    Keep,
    Policy,
    Failback,
    Preset,
    /// A program with its full path, and its arguments; empty for none.
    Command,
}

/// One key of the settings file.
#[derive(Debug)]
pub struct Key {
    /// Empty for the keys at the top.
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// As TOML; `None` for a key that has to be there.
    pub default: Option<&'static str>,
    /// One sentence or two.
    pub about: &'static str,
}

const fn key(section: &'static str, name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { section, name, kind, default: Some(default), about }
}

const fn required(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { section: "", name, kind, default: None, about }
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    required("name", Kind::Name, "The name of this server, as it is in its certificate and in the file Server."),
    required("listen", Kind::Address, "The address and UDP port where this daemon listens and the others reach it."),
    required("files", Kind::Folder, "The folder of the plain-file view: one text file per management file."),
    key(
        "",
        "peers",
        Kind::Peers,
        "[]",
        "Members to dial while this server does not know the file Server yet, as NAME=IP:PORT.",
    ),
    key(
        "network",
        "keep_alive_ms",
        Kind::Integer { min: 50, max: 60_000 },
        "300",
        "How often a silent link sends a sign of life. At most half of idle_timeout_ms, or the daemon does not start.",
    ),
    key(
        "network",
        "idle_timeout_ms",
        Kind::Integer { min: 200, max: 600_000 },
        "1000",
        "A member that sends nothing for this long counts as gone.",
    ),
    key(
        "network",
        "beat_ms",
        Kind::Integer { min: 50, max: 60_000 },
        "300",
        "How often members tell each other what they hold; a gap is found and repaired after about this long.",
    ),
    key(
        "network",
        "offload",
        Kind::Flag,
        "true",
        "UDP segmentation offload. Switch it off where the kernel or a container makes it fail.",
    ),
    key(
        "log",
        "segment_mib",
        Kind::Integer { min: 1, max: 256 },
        "8",
        "Size of one segment file of the log; the file is made this long at once.",
    ),
    key(
        "log",
        "keep_live_mib",
        Kind::Integer { min: 1, max: 1 << 20 },
        "64",
        "At least this much of the newest log stays uncompressed, so that members that were away can catch up from it.",
    ),
    key(
        "log",
        "keep_live_hours",
        Kind::Integer { min: 0, max: 24 * 366 },
        "24",
        "At least this many hours of the newest log stay uncompressed.",
    ),
    key(
        "log",
        "keep_live_mib_max",
        Kind::Integer { min: 2, max: 1 << 20 },
        "1024",
        "At most this much of the log stays uncompressed, however young it is.",
    ),
    key(
        "log",
        "archive",
        Kind::Archive,
        "\"forever\"",
        "How long compressed old segments are kept: \"forever\", or for example \"90 days\".",
    ),
    key(
        "log",
        "checkpoint_every_mib",
        Kind::Integer { min: 1, max: 1 << 20 },
        "16",
        "After this much new log the state is written as a whole, which bounds the time of a start.",
    ),
    key(
        "priority",
        "enabled",
        Kind::Flag,
        "true",
        "Management transactions before local edits before received ones; false makes it one queue.",
    ),
    key(
        "priority",
        "ageing_ms",
        Kind::Integer { min: 1, max: 600_000 },
        "200",
        "What has waited longer than this goes first whatever its class, so that nothing starves.",
    ),
    key(
        "clock",
        "offset_ms_max",
        Kind::Integer { min: 100, max: 3_600_000 },
        "10000",
        "While this server's clock is further off than this from the others', it takes no edits.",
    ),
    key(
        "control",
        "group",
        Kind::Group,
        "\"\"",
        "The unix group, by name or number, whose members may make changes; \"\" leaves that to root and the daemon's user.",
    ),
    key(
        "control",
        "everyone_reads",
        Kind::Flag,
        "false",
        "Whether every user of this machine may read status and files through the control socket.",
    ),
    key(
        "bundles",
        "bytes_max",
        Kind::Integer { min: 1024, max: 1 << 30 },
        "16777216",
        "Largest bundle that is taken or fetched, in bytes.",
    ),
    key(
        "bundles",
        "total_mib",
        Kind::Integer { min: 1, max: 1 << 20 },
        "1024",
        "Most disk space for all bundles together; what no record names any more goes first, the oldest first.",
    ),
    key(
        "service",
        "interface",
        Kind::Interface,
        "\"\"",
        "The interface on the network of the service addresses, best a bridge; \"\" leaves addresses alone.",
    ),
    key(
        "service",
        "gateway",
        Kind::IpOrNone,
        "\"\"",
        "The router of the service network, for stand-ins whose clients are behind it; \"\" for none.",
    ),
    key(
        "originals",
        "driver",
        Kind::Driver,
        "\"process\"",
        "What an original server is here: \"process\", a stopped process, or \"libvirt\", a suspended virtual machine.",
    ),
    key(
        "originals",
        "count",
        Kind::Integer { min: 0, max: 16 },
        "2",
        "How many original servers are kept ready on this host.",
    ),
    key(
        "libvirt",
        "uri",
        Kind::Text,
        "\"qemu:///system\"",
        "Where libvirt is reached, if originals.driver is \"libvirt\"; it has to be on this host.",
    ),
    key(
        "libvirt",
        "image",
        Kind::FolderOrNone,
        "\"\"",
        "The folder of the image of original servers: vmlinuz and initrd.img, disk.qcow2, or all three; tools/image makes one.",
    ),
    key(
        "libvirt",
        "domain",
        Kind::TextOrNone,
        "\"\"",
        "Instead of an image: the name of a virtual machine of libvirt, shut off, of which original servers are copies.",
    ),
    key(
        "libvirt",
        "folder",
        Kind::FolderOrNone,
        "\"\"",
        "Where states and disks of original servers are kept; QEMU's user must be able to enter it. \"\" for this daemon's own folder.",
    ),
    key("libvirt", "memory_mib", Kind::Integer { min: 64, max: 1 << 20 }, "256", "The memory of one original server."),
    key("libvirt", "processors", Kind::Integer { min: 1, max: 64 }, "1", "The processors of one original server."),
    key(
        "libvirt",
        "acceleration",
        Kind::Acceleration,
        "\"auto\"",
        "\"kvm\", \"qemu\" (emulated, ten times slower), or \"auto\": what is found to work when an original is made.",
    ),
    key(
        "libvirt",
        "keep",
        Kind::Keep,
        "\"paused\"",
        "How originals wait: \"paused\" in memory, ready at once, or \"saved\" on disk, which costs no memory and takes longer.",
    ),
    key(
        "libvirt",
        "rehearsal",
        Kind::TextOrNone,
        "\"\"",
        "A command that a guest runs once before it waits in memory, such as \"nginx && nginx -s quit\": what has run once starts sooner.",
    ),
    key(
        "libvirt",
        "boot_s",
        Kind::Integer { min: 5, max: 3600 },
        "180",
        "How long the first boot of an original may take until its guest agent answers.",
    ),
    key(
        "recovery",
        "policy",
        Kind::Policy,
        "\"balanced\"",
        "Who decides: \"strict\", more than half; \"balanced\", or exactly half with the first; \"paper\", all that are reached, which is unsafe in a partition. The same on all servers.",
    ),
    key(
        "recovery",
        "act",
        Kind::Flag,
        "true",
        "false makes it a dry run: failures are noticed and explained, and nothing is done about them here.",
    ),
    key(
        "recovery",
        "failback",
        Kind::Failback,
        "\"auto\"",
        "Whether this server takes its place by itself when it is back (\"auto\"), or when an operator says p2pdb failback (\"manual\").",
    ),
    key(
        "recovery",
        "preset",
        Kind::Preset,
        "\"fast\"",
        "Where the options come from that records of Check leave out: \"fast\", a verdict mostly within 2 s, or \"paper\", a question every 10 s.",
    ),
    key(
        "recovery",
        "witness",
        Kind::Flag,
        "false",
        "This server only votes: it serves nothing, manages nothing and hosts nothing. See p2pdb witness.",
    ),
    key(
        "hooks",
        "restart_service",
        Kind::Command,
        "[]",
        "Restarts this server's own service when it does not answer, such as [\"/usr/bin/systemctl\", \"restart\", \"nginx\"].",
    ),
    key(
        "hooks",
        "restart_server",
        Kind::Command,
        "[]",
        "Tries to restart a server that has failed ($P2PDB_SERVER), such as by its management board; run by its manager.",
    ),
    key(
        "hooks",
        "fence",
        Kind::Command,
        "[]",
        "Makes sure that a server that has failed ($P2PDB_SERVER) does not serve any more; run by its manager. Success ends its lease.",
    ),
    key(
        "hooks",
        "notify",
        Kind::Command,
        "[]",
        "Tells people of a decision ($P2PDB_SERVER, $P2PDB_REASON); run by the server that proposed it.",
    ),
    key(
        "hooks",
        "ready",
        Kind::Command,
        "[]",
        "Succeeds when this server's services are ready for its address, before it takes its place again; without it, its checks are asked at 127.0.0.1.",
    ),
    key(
        "hooks",
        "deadline_ms",
        Kind::Integer { min: 100, max: 600_000 },
        "30000",
        "A hook that takes longer is killed with its process group.",
    ),
];

/// What a new server has to say of itself; the rest is left at its default.
#[derive(Debug, Clone)]
pub struct Identity {
    pub name: ServerName,
    pub listen: SocketAddr,
    pub files: PathBuf,
    pub peers: BTreeMap<ServerName, SocketAddr>,
}

impl Config {
    /// Reads and checks `DIR/p2pdb.toml`.
    ///
    /// # Errors
    /// Names the file, the line, the key and what would be right.
    pub fn load(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(FILE_NAME);
        let unreadable = |source| ConfigError::Unreadable { path: path.clone(), source };
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ConfigError::Missing { path }),
            Err(error) => return Err(unreadable(error)),
        };
        if size > CONFIG_BYTES_MAX {
            let source = io::Error::other(format!("it has {size} bytes, which no settings file needs"));
            return Err(unreadable(source));
        }
        Self::parse(&fs::read_to_string(&path).map_err(unreadable)?, &path)
    }

    /// Checks the text of a settings file; `path` is where it is, its folder is the daemon's directory.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let syntax = |line, problem: &str| ConfigError::Syntax { path: path.into(), line, problem: problem.into() };
        let wrong_toml = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            syntax(line, error.message())
        };
        let places = DeTable::parse(text).map_err(wrong_toml)?;
        let mut values: Table = text.parse().map_err(wrong_toml)?;
        for (name, value) in places.get_ref() {
            let line = line_of(text, name.span().start);
            let name = name.get_ref().as_ref();
            match value.get_ref() {
                DeValue::Table(section) => {
                    for (name_within, value) in section {
                        let line = line_of(text, name_within.span().start);
                        let found = &values[name][name_within.get_ref().as_ref()];
                        check(path, line, name, name_within.get_ref(), found, value.get_ref())?;
                    }
                    if !KEYS.iter().any(|key| key.section == name) {
                        return Err(unknown(path, line, name));
                    }
                }
                other => check(path, line, "", name, &values[name], other)?,
            }
        }
        for key in KEYS {
            let table = if key.section.is_empty() {
                &mut values
            } else {
                let section = values.entry(key.section).or_insert_with(|| Value::Table(Table::new()));
                section.as_table_mut().ok_or_else(|| syntax(1, "a section is not a table"))?
            };
            if table.contains_key(key.name) {
                continue;
            }
            let Some(default) = key.default else {
                return Err(ConfigError::Absent { path: path.into(), key: key.name, about: key.about });
            };
            table.insert(key.name.into(), parse_default(default));
        }
        let mut config: Config = values.try_into().map_err(|error: toml::de::Error| syntax(1, error.message()))?;
        config.directory = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        if config.files.is_relative() {
            config.files = config.directory.join(&config.files);
        }
        if let Err(wanted) = check_files_folder(&config.directory, &config.files) {
            let line = places.get_ref().iter().find(|(name, _)| name.get_ref() == "files");
            let line = line.map_or(1, |(name, _)| line_of(text, name.span().start));
            let found = format!("\"{}\"", config.files.display());
            return Err(ConfigError::Value { path: path.into(), line, key: "files".into(), found, wanted });
        }
        let LibvirtConfig { image, domain, .. } = &config.libvirt;
        if !image.is_empty() && !domain.is_empty() {
            let section = places.get_ref().get("libvirt").and_then(|section| section.get_ref().as_table());
            let place = section.and_then(|section| section.get_key_value("domain"));
            return Err(ConfigError::Value {
                path: path.into(),
                line: place.map_or(1, |(name, _)| line_of(text, name.span().start)),
                key: "libvirt.domain".into(),
                found: format!("\"{domain}\""),
                wanted: "\"\" where libvirt.image is set: original servers are made from one of them".into(),
            });
        }
        Ok(config)
    }

    /// Writes the settings file of a new server, commented, on disk when this returns.
    ///
    /// # Errors
    /// There is one already, or it cannot be written; nothing has changed then.
    pub fn create(directory: &Path, identity: &Identity) -> Result<Self, ConfigError> {
        let path = directory.join(FILE_NAME);
        let text = default_text(identity);
        let config = Self::parse(&text, &path)?;
        if path.exists() {
            return Err(ConfigError::Exists { path });
        }
        write_atomically(&path, text.as_bytes(), 0o644)
            .map_err(|source| ConfigError::Unwritable { path: path.clone(), source })?;
        Ok(config)
    }
}

/// Checks the folder of the plain files: whatever lies in it is shared with the group.
///
/// # Errors
/// What would be right.
pub fn check_files_folder(directory: &Path, files: &Path) -> Result<(), String> {
    let (directory, files) = (plain_path(directory), plain_path(files));
    let own = directory.join("files");
    if directory.starts_with(&files) || (files.starts_with(&directory) && files != own) {
        return Err(format!(
            "a folder of its own, such as {}: every file in it is shared with the group",
            own.display()
        ));
    }
    Ok(())
}

/// A full path without `.` and `..`; links are followed as far as the path exists.
fn plain_path(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
        plain = fs::canonicalize(&plain).unwrap_or(plain);
    }
    plain
}

/// Checks an address that others shall dial.
///
/// # Errors
/// What would be right.
pub fn check_listen(text: &str) -> Result<SocketAddr, String> {
    let wanted = "an IP address and a port such as 192.168.1.10:7400, or [fd00::1]:7400";
    let address: SocketAddr = text.parse().map_err(|_| wanted.to_owned())?;
    if address.port() == 0 {
        return Err(format!("{wanted}; port 0 cannot be dialled"));
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("{wanted}; the other servers dial it, so it must be an address of this machine"));
    }
    Ok(address)
}

/// Where the plain-file view goes unless the operator says otherwise: `/run/p2pdb/NAME` where `/run` is in memory and
/// this user may write there, `DIR/files` elsewhere.
pub fn default_files_folder(directory: &Path, name: &ServerName) -> PathBuf {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let in_memory = rustix::fs::statfs("/run").is_ok_and(|stat| stat.f_type == TMPFS_MAGIC);
    let ours = Path::new("/run/p2pdb");
    let parent = if ours.exists() { ours } else { Path::new("/run") };
    if in_memory && rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_ok() {
        return ours.join(name.as_str());
    }
    directory.join("files")
}

/// The settings file of a new server: every key with its meaning, defaults commented out.
pub fn default_text(identity: &Identity) -> String {
    let mut text = String::from(
        "# The settings of one p2pdb server, read when its daemon starts.\n\
         # What is commented out shows the default.\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            let _ = write!(text, "\n[{section}]\n");
        }
        let _ = write!(text, "\n# {}{}\n", key.about, key.kind.bounds());
        let given = match key.name {
            "name" => Some(Value::from(identity.name.as_str())),
            "listen" => Some(Value::from(identity.listen.to_string())),
            "files" => Some(Value::from(identity.files.to_string_lossy().into_owned())),
            "peers" if !identity.peers.is_empty() => {
                let peers = identity.peers.iter().map(|(name, address)| format!("{name}={address}"));
                Some(Value::from(peers.collect::<Vec<_>>()))
            }
            _ => None,
        };
        let _ = match given {
            Some(value) => writeln!(text, "{} = {value}", key.name),
            None => writeln!(text, "#{} = {}", key.name, key.default.unwrap_or("\"\"")),
        };
    }
    text
}

impl Kind {
    fn bounds(self) -> String {
        match self {
            Kind::Integer { min, max } => format!(" ({min} to {max})"),
            _ => String::new(),
        }
    }

    fn wanted(self) -> String {
        match self {
            Kind::Name => "a name of letters, digits, '-', '_' and '.', such as \"S1\"".into(),
            Kind::Address => "an IP address and a port such as \"192.168.1.10:7400\"".into(),
            Kind::Peers => "a list of servers such as [\"mail=192.168.1.10:7400\"]".into(),
            Kind::Folder => "the path of a folder such as \"/run/p2pdb/S1\"".into(),
            Kind::Integer { min, max } => format!("a number from {min} to {max}"),
            Kind::Flag => "true or false".into(),
            Kind::Archive => "\"forever\" or a number of days such as \"90 days\"".into(),
            Kind::Interface => "the name of a network interface such as \"br0\", or \"\"".into(),
            Kind::IpOrNone => "an IP address such as \"10.0.0.1\", or \"\"".into(),
            Kind::Driver => "\"process\" or \"libvirt\"".into(),
            Kind::Text => "a text such as \"qemu:///system\"".into(),
            Kind::TextOrNone => "a text in quotes, or \"\"".into(),
            Kind::FolderOrNone => "the full path of a folder such as \"/var/lib/p2pdb-image\", or \"\"".into(),
            Kind::Acceleration => "\"auto\", \"kvm\" or \"qemu\"".into(),
            Kind::Keep => "\"paused\" or \"saved\"".into(),
            Kind::Policy => "\"strict\", \"balanced\" or \"paper\"".into(),
            Kind::Failback => "\"auto\" or \"manual\"".into(),
            Kind::Preset => "\"fast\" or \"paper\"".into(),
            Kind::Command => {
                "a list of words, the first one the full path of a program, such as [\"/usr/local/sbin/fence\", \"now\"]; or []".into()
            }
            Kind::Group => "the name or number of a unix group such as \"adm\", or \"\"".into(),
        }
    }

    /// `Err` holds what would be right, where more can be said than `wanted`.
    fn accept(self, value: &Value) -> Result<(), Option<String>> {
        let text = value.as_str();
        let good = match self {
            Kind::Name => text.is_some_and(|text| ServerName::new(text).is_ok()),
            Kind::Address => return check_listen(text.unwrap_or_default()).map(drop).map_err(Some),
            Kind::Peers => value
                .as_array()
                .is_some_and(|list| list.iter().all(|item| item.as_str().and_then(parse_peer).is_some())),
            Kind::Folder => text.is_some_and(|text| !text.is_empty()),
            Kind::Integer { min, max } => value.as_integer().is_some_and(|number| (min..=max).contains(&number)),
            Kind::Flag => value.is_bool(),
            Kind::Archive => text.is_some_and(|text| Archive::parse(text).is_some()),
            Kind::Interface => text.is_some_and(is_interface_name),
            Kind::IpOrNone => text.is_some_and(|text| text.is_empty() || text.parse::<IpAddr>().is_ok()),
            Kind::Driver => matches!(text, Some("process" | "libvirt")),
            Kind::Text => text.is_some_and(|text| !text.is_empty()),
            Kind::TextOrNone => text.is_some(),
            Kind::FolderOrNone => text.is_some_and(|text| text.is_empty() || text.starts_with('/')),
            Kind::Acceleration => matches!(text, Some("auto" | "kvm" | "qemu")),
            Kind::Keep => matches!(text, Some("paused" | "saved")),
            Kind::Policy => matches!(text, Some("strict" | "balanced" | "paper")),
            Kind::Failback => matches!(text, Some("auto" | "manual")),
            Kind::Preset => text.is_some_and(|text| Preset::parse(text).is_some()),
            Kind::Command => value.as_array().is_some_and(|words| {
                let first = words.first().map(|word| word.as_str().is_some_and(|word| word.starts_with('/')));
                first.unwrap_or(true) && words.iter().all(Value::is_str)
            }),
            Kind::Group => text.is_some_and(|text| !text.contains([':', ',', '\n'])),
        };
        good.then_some(()).ok_or(None)
    }
}

impl Archive {
    fn parse(text: &str) -> Option<Self> {
        if text == "forever" {
            return Some(Archive::Forever);
        }
        let days = text.strip_suffix("days").or_else(|| text.strip_suffix("day"))?;
        days.trim().parse().ok().filter(|days| (1..=36_500).contains(days)).map(Archive::Days)
    }
}

impl TryFrom<String> for Archive {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Archive::parse(&text).ok_or_else(|| Kind::Archive.wanted())
    }
}

fn check(
    path: &Path,
    line: usize,
    section: &str,
    name: &str,
    value: &Value,
    as_written: &DeValue<'_>,
) -> Result<(), ConfigError> {
    let full = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let Some(key) = KEYS.iter().find(|key| key.section == section && key.name == name) else {
        return Err(unknown(path, line, &full));
    };
    key.kind.accept(value).map_err(|wanted| ConfigError::Value {
        path: path.into(),
        line,
        key: full,
        found: match as_written {
            DeValue::Table(_) => "a section".into(),
            _ => value.to_string(),
        },
        wanted: wanted.unwrap_or_else(|| key.kind.wanted()),
    })
}

fn unknown(path: &Path, line: usize, wrong: &str) -> ConfigError {
    let last = wrong.rsplit('.').next().unwrap_or(wrong);
    let full = |key: &Key| match key.section {
        "" => key.name.to_owned(),
        section => format!("{section}.{}", key.name),
    };
    let sections = KEYS.iter().map(|key| (key.section.to_owned(), key.section));
    let candidates = KEYS.iter().map(|key| (full(key), key.name)).chain(sections);
    let nearest = candidates
        .filter(|(_, name)| !name.is_empty())
        .map(|(full, name)| (distance(wrong, &full).min(distance(last, name)), full))
        .min()
        .filter(|(distance, _)| *distance <= 2.max(last.len() / 3))
        .map(|(_, full)| full);
    ConfigError::Unknown { path: path.into(), line, key: wrong.into(), nearest }
}

/// How many characters have to be put in, taken out or changed to make `a` of `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

/// What the kernel takes: at most 15 bytes. No dash in front: it would read as an option of `ip`.
fn is_interface_name(text: &str) -> bool {
    text.len() <= 15
        && !text.starts_with('-')
        && !text.contains(|c: char| c == '/' || c == ':' || !c.is_ascii_graphic())
}

fn parse_default(default: &str) -> Value {
    let table: Table = format!("v = {default}").parse().expect("the defaults in KEYS are TOML");
    table["v"].clone()
}

fn parse_peer(text: &str) -> Option<(ServerName, SocketAddr)> {
    let (name, address) = text.split_once('=')?;
    Some((ServerName::new(name.trim()).ok()?, check_listen(address.trim()).ok()?))
}

fn read_preset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Preset, D::Error> {
    let word = String::deserialize(deserializer)?;
    Preset::parse(&word).ok_or_else(|| de::Error::custom(Kind::Preset.wanted()))
}

fn read_peers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<ServerName, SocketAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let wrong = |text: &String| de::Error::custom(format!("'{text}' is not NAME=IP:PORT"));
    texts.iter().map(|text| parse_peer(text).ok_or_else(|| wrong(text))).collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            name: ServerName::new("S1").unwrap(),
            listen: "10.0.0.1:7400".parse().unwrap(),
            files: "/run/p2pdb/S1".into(),
            peers: [(ServerName::new("S2").unwrap(), "10.0.0.2:7400".parse().unwrap())].into(),
        }
    }

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/d/p2pdb.toml")).unwrap_err().to_string()
    }

    const GOOD: &str = "name = \"S1\"\nlisten = \"10.0.0.1:7400\"\nfiles = \"files\"\n";

    #[test]
    fn the_default_file_reads_as_the_defaults() {
        let config = Config::parse(&default_text(&identity()), Path::new("/d/p2pdb.toml")).unwrap();
        assert_eq!(config.network.idle_timeout_ms, 1000);
        assert_eq!(config.log.archive, Archive::Forever);
        assert_eq!(config.peers.len(), 1);
        assert_eq!(config.directory, Path::new("/d"));
        // Every default stands in the file as it would be read.
        let uncommented = default_text(&identity()).replace("\n#", "\n").replace("\n ", "\n#");
        let spelled_out = Config::parse(&uncommented, Path::new("/d/p2pdb.toml")).unwrap();
        assert_eq!(spelled_out, config);
    }

    #[test]
    fn an_unknown_key_is_told_with_line_and_neighbour() {
        assert_eq!(
            error(&format!("{GOOD}[network]\nkeepalive_ms = 3\n")),
            "/d/p2pdb.toml, line 5: there is no key 'network.keepalive_ms'; did you mean 'network.keep_alive_ms'?"
        );
        assert_eq!(
            error(&format!("{GOOD}beat_ms = 3\n")),
            "/d/p2pdb.toml, line 4: there is no key 'beat_ms'; did you mean 'network.beat_ms'?"
        );
        assert_eq!(error(&format!("{GOOD}zzzzzzzz = 3\n")), "/d/p2pdb.toml, line 4: there is no key 'zzzzzzzz'");
        assert_eq!(
            error(&format!("{GOOD}[logs]\n")),
            "/d/p2pdb.toml, line 4: there is no key 'logs'; did you mean 'log'?"
        );
    }

    #[test]
    fn a_wrong_value_is_told_with_line_and_bounds() {
        assert_eq!(
            error(&format!("{GOOD}[network]\n\nbeat_ms = 3\n")),
            "/d/p2pdb.toml, line 6: network.beat_ms is 3, but must be a number from 50 to 60000"
        );
        assert_eq!(
            error(&GOOD.replace("\"10.0.0.1:7400\"", "\"10.0.0.1\"")),
            "/d/p2pdb.toml, line 2: listen is \"10.0.0.1\", but must be an IP address and a port such as \
             192.168.1.10:7400, or [fd00::1]:7400"
        );
        assert!(error(&GOOD.replace("10.0.0.1:7400", "0.0.0.0:7400")).contains("the other servers dial it"));
        assert!(error(&format!("{GOOD}[log]\narchive = \"a while\"")).contains("\"90 days\""));
        assert!(error(&format!("{GOOD}[network]\noffload = 1")).contains("true or false"));
        assert!(error(&format!("{GOOD}[service]\ninterface = \"-br0\"")).contains("a network interface such as"));
        assert!(error(&format!("{GOOD}[originals]\ndriver = \"xen\"")).contains("\"process\" or \"libvirt\""));
        let both = error(&format!("{GOOD}[libvirt]\nimage = \"/i\"\ndomain = \"web\""));
        assert!(both.contains("libvirt.domain is \"web\", but must be \"\" where libvirt.image is set"), "{both}");
        assert!(error("name = \"S1\"").starts_with("/d/p2pdb.toml: the key 'listen' is missing"));
        assert!(error("name = \n").starts_with("/d/p2pdb.toml, line 1: "));
        assert!(error(&format!("{GOOD}network = 3")).contains("there is no key 'network'"));
    }

    #[test]
    fn a_new_server_never_overwrites_another() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Config::load(folder.path()), Err(ConfigError::Missing { .. })));
        let made = Config::create(folder.path(), &identity()).unwrap();
        assert_eq!(Config::load(folder.path()).unwrap(), made);
        assert!(matches!(Config::create(folder.path(), &identity()), Err(ConfigError::Exists { .. })));
    }
}
