//! Reads how busy this machine is. Processes are not looked at: that would cost twenty times as much as all the rest.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Instant;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, Networks, RefreshKind, System};
use thiserror::Error;

use crate::core::load::LoadSample;

/// What a network is taken to carry when no interface says: 1 Gbit/s, in bytes per second.
const NETWORK_TOTAL: u64 = 125_000_000;

#[derive(Debug, Error)]
#[error("the load of this machine cannot be read: {0}; is /proc mounted?")]
pub struct LoadError(sysinfo::Error);

/// The meters of this machine.
pub struct LoadReader {
    system: System,
    networks: Networks,
    read_at: Instant,
}

impl LoadReader {
    /// # Errors
    /// When `/proc` is not there.
    pub fn new() -> Result<Self, LoadError> {
        let wanted = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Ok(Self {
            system: System::new_with_specifics(wanted).map_err(LoadError)?,
            networks: Networks::new_with_refreshed_list().map_err(LoadError)?,
            read_at: Instant::now(),
        })
    }

    /// What was used since the last reading. Readings less than 200 ms apart repeat the use of the processors.
    pub fn read(&mut self) -> LoadSample {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        self.networks.refresh(true);
        let elapsed_us = self.read_at.elapsed().as_micros().max(1);
        self.read_at = Instant::now();
        let total: u64 = self.networks.keys().filter_map(|name| speed(name)).sum();
        // Where some interfaces have a speed, the others (bridges, tunnels) carry the same bytes once more.
        let counts = |name: &OsStr| if total == 0 { name != "lo" } else { speed(name).is_some() };
        let counted = self.networks.iter().filter(|(name, _)| counts(name));
        let bytes: u64 = counted.map(|(_, network)| network.received() + network.transmitted()).sum();
        LoadSample {
            cpu: f64::from(self.system.global_cpu_usage()) / 100.0,
            memory_used: self.system.used_memory(),
            memory_total: self.system.total_memory(),
            network: (u128::from(bytes) * 1_000_000 / elapsed_us) as u64,
            network_total: if total == 0 { NETWORK_TOTAL } else { total },
            processors: self.system.cpus().len() as u32,
        }
    }
}

/// The speed of an interface in bytes per second; virtual ones have none.
fn speed(interface: &OsStr) -> Option<u64> {
    let megabits: i64 =
        fs::read_to_string(Path::new("/sys/class/net").join(interface).join("speed")).ok()?.trim().parse().ok()?;
    u64::try_from(megabits).ok().filter(|megabits| *megabits > 0).map(|megabits| megabits * 125_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_load() {
        let mut reader = LoadReader::new().unwrap();
        let sample = reader.read();
        assert!((0.0..=1.0).contains(&sample.cpu), "{sample:?}");
        assert!(sample.memory_used > 0 && sample.memory_used < sample.memory_total, "{sample:?}");
        assert!(sample.processors > 0 && sample.network_total > 0, "{sample:?}");
    }
}
