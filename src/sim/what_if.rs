//! A group as it is, on simulated machines: what would happen if these servers failed now, and when.
//!
//! Taken from the files: `Server`, `Service`, `Check`, `Original`, `Condition`, `Maintenance` and the procedures in `Bundle`. Links take half a
//! millisecond, a sync a few milliseconds, an installation some hundred; a real one takes what it takes.

use super::cluster::{Cluster, Managed, Settings};
use super::machine::Original;
use super::time::{MILLISECOND_US, SECOND_US};
use super::workload::founding_edits;
use crate::core::diff::Change;
use crate::core::id::{ClusterId, FileName, ServerName};
use crate::core::io::Edit;
use crate::core::lifecycle::Lifecycle;
use crate::core::merge::Files;
use crate::core::node::NodeConfig;
use crate::core::placement::READY;
use crate::core::quorum::Policy;
use crate::core::ring::Ring;
use crate::core::schema::file;
use crate::core::service::{PROCEDURE_PREFIX, Service};

/// How long it is looked on after the failure.
const LOOK_ON_US: u64 = 60 * SECOND_US;
/// Nothing new for so long: that was it.
const QUIET_US: u64 = 15 * SECOND_US;
/// Most servers that are simulated.
const SERVERS_MAX: usize = 64;

/// One thing that would happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// After the failure.
    pub after_ms: u64,
    pub what: String,
}

/// Plays it.
///
/// # Errors
/// The files describe no group, or a server is not in it.
pub fn what_if(files: &Files, failing: &[ServerName], policy: Policy, seed: u64) -> Result<Vec<Happening>, String> {
    let names: Vec<ServerName> = Ring::of(files).places().to_vec();
    if names.is_empty() || names.len() > SERVERS_MAX {
        return Err(format!("the file Server names {} servers; 1 to {SERVERS_MAX} can be simulated", names.len()));
    }
    if let Some(unknown) = failing.iter().find(|name| !names.contains(name)) {
        let known: Vec<&str> = names.iter().map(ServerName::as_str).collect();
        return Err(format!("there is no server {unknown}; the file Server names {}", known.join(", ")));
    }
    let mut cluster = begin(files, names, policy, seed);
    let failed_us = cluster.now_us;
    let mut told = cluster.chain.len();
    let mut served: Vec<Option<usize>> =
        (0..cluster.hosts.len()).map(|server| holder(&cluster, files, server)).collect();
    for name in failing {
        let host = cluster.host_of(name).expect("it was looked for above");
        cluster.crash(host, true);
    }
    let mut happenings: Vec<Happening> = Vec::new();
    let mut last_us = failed_us;
    while cluster.now_us < failed_us + LOOK_ON_US && cluster.now_us < last_us + QUIET_US {
        cluster.run_until(cluster.now_us + 10 * MILLISECOND_US);
        let after_ms = (cluster.now_us - failed_us) / 1000;
        let before = happenings.len();
        for decision in cluster.chain.values().skip(told) {
            let what = format!("decision {} by {}: {}: {}", decision.slot, decision.by, decision.act, decision.reason);
            happenings.push(Happening { after_ms, what });
        }
        told = cluster.chain.len();
        for (server, before) in served.iter_mut().enumerate() {
            let now = holder(&cluster, files, server);
            if now == std::mem::replace(before, now) {
                continue;
            }
            let name = cluster.name(server);
            let what = match now {
                Some(host) if host == server => format!("{name} serves itself"),
                Some(host) => format!("{name} is served by its stand-in on {}", cluster.name(host)),
                None => format!("{name} is served by nobody"),
            };
            happenings.push(Happening { after_ms, what });
        }
        if happenings.len() > before {
            last_us = cluster.now_us;
        }
    }
    Ok(happenings)
}

/// The group, at rest.
fn begin(files: &Files, names: Vec<ServerName>, policy: Policy, seed: u64) -> Cluster {
    let servers = names.len();
    let node = NodeConfig::new(names[0].clone(), ClusterId([0; 16]));
    let mut cluster = Cluster::new(Settings {
        seed,
        hosts: servers,
        names,
        node,
        segment_bytes: 64 * 1024,
        keep_segments: None,
        delay_us: (300, 700),
        sync_us: (1_000, 5_000),
        clocks_differ: true,
        timeline: false,
        management: Some(Managed { originals: 0, policy, witness: false }),
    });
    for row in files.records_of(file::ORIGINAL) {
        let host = ServerName::new(row.field(0)).ok().and_then(|name| cluster.host_of(&name));
        if let Some(host) = host.filter(|_| row.field(2) == READY) {
            cluster.hosts[host].machine.originals.insert(row.field(1).to_owned(), Original::pristine(0));
        }
    }
    (0..servers).for_each(|host| cluster.start(host));
    let mut edits = founding_edits(&cluster.hosts);
    let taken = [file::SERVICE, file::CHECK, file::ORIGINAL, file::CONDITION, file::MAINTENANCE, file::BUNDLE];
    for name in taken {
        let file = FileName::new(name).expect("built-in file names are well formed");
        let rows = files.records_of(name);
        let rows = rows.filter(|row| name != file::BUNDLE || row.field(0).starts_with(PROCEDURE_PREFIX));
        edits.extend(rows.map(|row| Edit { file: file.clone(), change: Change::Add(row.clone()), bases: None }));
    }
    cluster.found_with(edits);
    let operates = |cluster: &Cluster| {
        let mut hosts = 0..servers;
        hosts.all(|host| cluster.node(host).is_some_and(|node| node.lifecycle() == Lifecycle::Operating))
    };
    while !operates(&cluster) && cluster.now_us < 30 * SECOND_US {
        cluster.run_until(cluster.now_us + 100 * MILLISECOND_US);
    }
    // Addresses are taken, and nobody is suspected any more.
    cluster.run_until(cluster.now_us + 20 * SECOND_US);
    cluster
}

fn holder(cluster: &Cluster, files: &Files, server: usize) -> Option<usize> {
    let service = Service::of(files, cluster.name(server))?;
    cluster.holders(service.address.ip).first().copied()
}
