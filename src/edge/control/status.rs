//! What `status` tells: one stable structure, printed by the command line and read by scripts.
//! Fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FileSummary;
use crate::core::id::{ClusterId, Digest, ServerName};
use crate::core::lifecycle::Lifecycle;
use crate::core::management::ManagementReport;
use crate::core::priority::ClassStatus;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: ServerName,
    /// 32 hexadecimal digits.
    #[serde(with = "as_text")]
    pub cluster: ClusterId,
    /// The version of the program.
    pub version: String,
    pub lifecycle: Lifecycle,
    /// When the life cycle came to where it is, in ms since the Unix epoch.
    pub since_ms: u64,
    /// The flag as its record says; `None` if there is none.
    pub flag: Option<String>,
    /// Every member, this one included, in the order of the ring.
    pub members: Vec<MemberStatus>,
    pub files: Vec<FileSummary>,
    pub log: LogStatus,
    pub queue: QueueStatus,
    pub alarms: Vec<Alarm>,
    pub disk: DiskStatus,
    pub process: ProcessStatus,
    pub vector: VectorStatus,
    /// Watching, deciding, recovering, as this server sees it.
    #[serde(default)]
    pub management: Option<Box<ManagementReport>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub name: ServerName,
    /// Place in the ring, as in the file `Server`.
    pub order: i64,
    pub address: String,
    pub link: LinkState,
    /// Since when the link is so, in ms since the Unix epoch.
    pub since_ms: u64,
    pub round_trip_us: Option<u64>,
    /// Entries held here that the member has not acknowledged.
    pub lag_entries: u64,
    pub messages_sent: u64,
    pub messages_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// As the member last said.
    pub lifecycle: Option<Lifecycle>,
    /// Its clock minus ours.
    pub clock_offset_ms: Option<i64>,
    /// Why its last connection was refused or broken.
    pub last_refusal: Option<String>,
    /// How busy it is, as the file `Condition` says.
    #[serde(default)]
    pub load: Option<LoadStatus>,
}

/// What is in use of a machine, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadStatus {
    pub cpu: f64,
    pub memory: f64,
    pub network: f64,
    /// Stand-ins that it runs.
    pub stand_ins: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// This server itself.
    Own,
    Up,
    Down,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogStatus {
    /// Live segments and their bytes.
    pub segments: u64,
    pub bytes: u64,
    /// Entries held, over all streams.
    pub entries: u64,
    pub archived_segments: u64,
    pub archived_bytes: u64,
    /// Entries that the log does not hold any more, over all streams.
    pub floor_entries: u64,
    /// When the last checkpoint was made, in ms since the Unix epoch.
    pub checkpoint_ms: Option<u64>,
}

/// The queue of the one writer, by class.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueStatus {
    pub management: ClassStatus,
    pub transmission: ClassStatus,
    pub reception: ClassStatus,
}

/// Something that is wrong until it is cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    pub name: String,
    pub text: String,
    /// In ms since the Unix epoch.
    pub since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskStatus {
    pub free_bytes: u64,
    /// Edits are refused until there is room.
    pub full: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessStatus {
    pub pid: u32,
    pub rss_bytes: u64,
    /// Of one core, since the last status; 100 is a whole core.
    pub cpu_percent: f64,
    /// When the daemon started, in ms since the Unix epoch.
    pub started_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorStatus {
    /// Equal on servers that hold the same entries.
    #[serde(with = "as_text")]
    pub digest: Digest,
    pub streams: usize,
    /// Entries held of each origin, over all its streams.
    pub origins: BTreeMap<ServerName, u64>,
}

/// Identifiers as the text that a person compares, instead of a list of numbers.
pub(super) mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
