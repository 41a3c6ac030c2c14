//! What `status` tells, gathered from the node, the links, the log and the process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::Daemon;
use crate::core::id::ServerName;
use crate::core::load::Condition;
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::edge::clock::monotonic_ns;
use crate::edge::control::{
    Alarm, DiskStatus, FileSummary, LinkState, LoadStatus, LogStatus, MemberStatus, ProcessStatus, QueueStatus, Status,
    VectorStatus,
};
use crate::edge::quic::LinkInfo;

/// `/proc/self/statm` counts pages; on every Linux that the daemon runs on they have this size.
const PAGE_BYTES: u64 = 4096;

/// What is remembered of the links with one peer.
#[derive(Default)]
pub struct LinkHistory {
    since_ms: u64,
    messages_received: u64,
    bytes_received: u64,
    last_refusal: Option<String>,
    /// When the newest certificate was issued that it has shown.
    pub certificate_ms: u64,
}

impl LinkHistory {
    pub fn up(&mut self, now_ms: u64) {
        self.since_ms = now_ms;
        self.last_refusal = None;
    }

    pub fn down(&mut self, now_ms: u64, reason: &str) {
        self.since_ms = now_ms;
        self.last_refusal = Some(reason.to_owned());
    }

    pub fn refused(&mut self, reason: &str) {
        self.last_refusal = Some(reason.to_owned());
    }

    pub fn received(&mut self, bytes: usize) {
        self.messages_received += 1;
        self.bytes_received += bytes as u64;
    }
}

/// Reads what this process uses; processor time is that between two readings.
#[derive(Default)]
pub struct ProcessMeter {
    last: Option<(u64, u64)>,
}

impl ProcessMeter {
    fn read(&mut self, started_ms: u64) -> ProcessStatus {
        let rss_bytes = resident_bytes().unwrap_or(0);
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let used_ns = used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64;
        let now_ns = monotonic_ns();
        let (last_ns, last_used_ns) = self.last.replace((now_ns, used_ns)).unwrap_or((now_ns, used_ns));
        let elapsed_ns = now_ns - last_ns;
        let cpu_percent =
            if elapsed_ns == 0 { 0.0 } else { 100.0 * (used_ns - last_used_ns) as f64 / elapsed_ns as f64 };
        ProcessStatus { pid: std::process::id(), rss_bytes, cpu_percent, started_ms }
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * PAGE_BYTES)
}

fn load(row: &Condition) -> LoadStatus {
    let share = |thousandths: u32| f64::from(thousandths) / 1000.0;
    LoadStatus {
        cpu: share(row.shares.cpu),
        memory: share(row.shares.memory),
        network: share(row.shares.network),
        stand_ins: row.stand_ins,
    }
}

/// Number and bytes of the archives.
fn archives(folder: &Path) -> (u64, u64) {
    let Ok(items) = std::fs::read_dir(folder) else { return (0, 0) };
    let sizes = items.filter_map(|item| Some(item.ok()?.metadata().ok()?.len()));
    sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
}

impl Daemon {
    pub(super) fn status(&mut self) -> Status {
        let node = &self.node;
        let flag = node.files().builtin(file::FLAG).and_then(|flags| flags.record(self.config.name.as_str()));
        let seen = node.files().seen();
        let mut origins: BTreeMap<ServerName, u64> = BTreeMap::new();
        seen.iter().for_each(|(stream, seq)| *origins.entry(stream.origin.clone()).or_default() += seq);
        let usage = self.world.journal.usage();
        let (archived_segments, archived_bytes) = archives(&self.config.directory.join("Diff.dat").join("archive"));
        let alarms = node.alarms().iter().chain(&self.world.alarms);
        let since = |name: &str| self.alarms_since_ms.get(name).copied().unwrap_or(self.started_ms);
        let alarms = alarms.map(|(name, text)| Alarm { name: name.clone(), text: text.clone(), since_ms: since(name) });
        let free = rustix::fs::statvfs(&self.config.directory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        Status {
            name: self.config.name.clone(),
            cluster: self.ca.cluster(),
            version: env!("CARGO_PKG_VERSION").into(),
            lifecycle: node.lifecycle(),
            since_ms: self.lifecycle_since_ms,
            flag: flag.map(|record| record.field(1).to_owned()),
            members: self.member_status(),
            files: node.files().iter().map(|(name, held)| FileSummary::of(name, held)).collect(),
            log: LogStatus {
                segments: usage.segments as u64,
                bytes: usage.live_bytes,
                entries: origins.values().sum(),
                archived_segments,
                archived_bytes,
                floor_entries: node.floor().iter().map(|(_, seq)| seq).sum(),
                checkpoint_ms: self.checkpoint_ms(),
            },
            queue: QueueStatus {
                management: node.queue_status(Class::Management),
                transmission: node.queue_status(Class::Transmission),
                reception: node.queue_status(Class::Reception),
            },
            alarms: alarms.collect(),
            disk: DiskStatus { free_bytes: free, full: !node.has_room() },
            vector: VectorStatus { digest: seen.digest(), streams: seen.len(), origins },
            management: self.management_report().map(Box::new),
            process: self.process.read(self.started_ms),
        }
    }

    fn checkpoint_ms(&self) -> Option<u64> {
        let path = self.world.journal.checkpoint_path().ok()??;
        let modified = std::fs::metadata(path).ok()?.modified().ok()?;
        Some(modified.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64)
    }

    fn member_status(&self) -> Vec<MemberStatus> {
        let links: BTreeMap<ServerName, LinkInfo> =
            self.world.mesh.links().into_iter().map(|link| (link.peer.clone(), link)).collect();
        let records = self.node.files().records_of(file::SERVER);
        let mut members: Vec<_> = records.filter_map(|record| self.member(record, &links)).collect();
        members.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
        members
    }

    fn member(&self, record: &Record, links: &BTreeMap<ServerName, LinkInfo>) -> Option<MemberStatus> {
        let name = ServerName::new(record.field(0)).ok()?;
        let own = name == self.config.name;
        let link = links.get(&name);
        let history = self.links.get(&name);
        let peer = self.node.sync().peers().find(|(peer, _)| **peer == name).map(|(_, peer)| peer);
        let sent = self.world.sent.get(&name).copied().unwrap_or_default();
        let seen = self.node.files().seen();
        // Acknowledgements tell only of what this server sent; equal digests tell of all.
        let equal = peer.and_then(|peer| peer.beat.as_ref()).is_some_and(|beat| beat.vector == seen.digest());
        let lag_entries = match peer.and_then(|peer| peer.held()) {
            Some(held) if !equal => seen.iter().map(|(stream, seq)| seq.saturating_sub(held.seq(stream))).sum(),
            _ => 0,
        };
        Some(MemberStatus {
            order: record.field(1).parse::<f64>().ok()? as i64,
            address: record.field(2).to_owned(),
            link: match (own, link) {
                (true, _) => LinkState::Own,
                (false, Some(_)) => LinkState::Up,
                (false, None) => LinkState::Down,
            },
            since_ms: if own { self.started_ms } else { history.map_or(self.started_ms, |history| history.since_ms) },
            round_trip_us: link.map(|link| link.rtt_us),
            lag_entries,
            messages_sent: sent.messages,
            messages_received: history.map_or(0, |history| history.messages_received),
            bytes_sent: sent.bytes,
            bytes_received: history.map_or(0, |history| history.bytes_received),
            lifecycle: if own {
                Some(self.node.lifecycle())
            } else {
                peer.and_then(|peer| peer.beat.as_ref()).map(|beat| beat.lifecycle)
            },
            clock_offset_ms: peer.and_then(|peer| peer.clock_offset_ms),
            load: Condition::of(self.node.files(), &name).map(|row| load(&row)),
            last_refusal: history.and_then(|history| history.last_refusal.clone()),
            name,
        })
    }
}
