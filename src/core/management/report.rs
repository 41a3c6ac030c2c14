//! What management knows and what it waits for, as data: for `status` and `why`.

use serde::{Deserialize, Serialize};

use super::stand_ins::waits_for;
use super::{Management, RecoveryRow, Scene};
use crate::core::chain::Standing;
use crate::core::clock::Now;
use crate::core::decision::{Place, Slot};
use crate::core::id::ServerName;
use crate::core::load::Condition;
use crate::core::placement::{self, Capacity};
use crate::core::quorum::Policy;
use crate::core::takeover::Obstacle;
use crate::core::watch::TargetReport;

/// Management as one server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagementReport {
    /// What this server is to the chain, in words.
    pub standing: String,
    /// How many decisions it knows.
    pub decisions: Slot,
    pub policy: Policy,
    /// `false`: it only looks on.
    pub acts: bool,
    pub electors: Vec<ElectorReport>,
    /// What a quorum needs, in words.
    pub quorum_needs: String,
    /// For how long this server may hold exclusive addresses yet.
    pub lease_left_ms: u64,
    /// The service address that this server holds for its own service.
    pub holds: Option<String>,
    /// Servers that are out of the group, and who plays them.
    pub recovered: Vec<RecoveredReport>,
    /// The servers that this server watches.
    pub targets: Vec<TargetReport>,
    /// What this server does for others or for itself now, and what each waits for.
    pub work: Vec<WorkReport>,
    pub capacity: Capacity,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectorReport {
    pub name: ServerName,
    pub witness: bool,
    /// Whether this server reaches it.
    pub linked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredReport {
    pub target: ServerName,
    /// The decision.
    pub slot: Slot,
    /// `None`: no host was free.
    pub place: Option<Place>,
    pub manager: ServerName,
    /// As in the file `Recovery`.
    pub phase: String,
    pub note: String,
}

/// One thing that is under way on this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkReport {
    /// The server that it is about.
    pub server: ServerName,
    /// What is done, such as `takes the address 10.0.0.2/24`.
    pub work: String,
    /// What it waits for, if it waits.
    pub waits_for: Option<String>,
    /// The command that would end the waiting, if there is one.
    pub unblock: Option<String>,
}

impl Management {
    pub(in crate::core) fn report(&self, now: Now, scene: &Scene) -> ManagementReport {
        let is_linked = |name: &ServerName| *name == self.config.me || scene.linked.contains(name);
        let electorate = self.chain.electorate();
        let electors = electorate.electors().iter().map(|elector| ElectorReport {
            name: elector.name.clone(),
            witness: elector.witness,
            linked: is_linked(&elector.name),
        });
        let recovered = self.chain.roster().members().iter().filter_map(|member| {
            let recovery = member.recovery.as_ref()?;
            let row = RecoveryRow::of(scene.files, &member.name);
            Some(RecoveredReport {
                target: member.name.clone(),
                slot: recovery.slot,
                place: recovery.place.clone(),
                manager: recovery.manager.clone(),
                phase: row.as_ref().map_or("decided", |row| row.phase.word()).to_owned(),
                note: row.map(|row| row.note).unwrap_or_default(),
            })
        });
        ManagementReport {
            standing: self.standing_words(),
            decisions: self.chain.decisions().len() as Slot,
            policy: self.config.policy,
            acts: self.config.act,
            electors: electors.collect(),
            quorum_needs: electorate.needs(self.config.policy),
            lease_left_ms: self.lease_left_ms(now.monotonic_us),
            holds: self.own.held().map(|address| address.to_string()),
            recovered: recovered.collect(),
            targets: self.watch.reports(now.monotonic_us),
            work: self.work(now.monotonic_us),
            capacity: self.capacity(scene),
        }
    }

    fn standing_words(&self) -> String {
        match self.chain.standing() {
            Standing::NothingKnown => "it knows no decision: the group only shares files, until p2pdb found".into(),
            Standing::Elector if self.config.witness => "a witness".into(),
            Standing::Elector => "in the group".into(),
            Standing::Recovered { slot } => format!("out of the group by decision {slot}"),
            Standing::Forgotten => "it has lost its Decision.dat and waits to be admitted again".into(),
            Standing::Stranger => "not admitted yet".into(),
        }
    }

    fn work(&self, now_us: u64) -> Vec<WorkReport> {
        let mut work = Vec::new();
        let progress = self.chain.progress();
        for (target, ticket) in self.verdicts.wished() {
            let waits_for = progress.iter().find(|(wish, _)| *wish == ticket).map(|(_, progress)| progress.to_string());
            let what = "wants a recovery to be decided".into();
            work.push(WorkReport { server: target.clone(), work: what, waits_for, unblock: None });
        }
        for (target, until_us) in self.verdicts.borne_with() {
            let left_s = until_us.saturating_sub(now_us) as f64 / 1e6;
            let what = "has a stand-in whose service fails".into();
            let waits_for = Some(format!("for {left_s:.1} s more, for it may only be slow"));
            let unblock = Some(format!("p2pdb recover {target}"));
            work.push(WorkReport { server: target.clone(), work: what, waits_for, unblock });
        }
        for (target, obstacle) in &self.stand_ins.waits {
            let unblock = match obstacle {
                Obstacle::Lease { holder, .. } => Some(format!("p2pdb confirm-dead {holder}")),
                _ => None,
            };
            let what = "takes its address over for the stand-in".into();
            work.push(WorkReport { server: target.clone(), work: what, waits_for: Some(waits_for(obstacle)), unblock });
        }
        let me = &self.config.me;
        for (guest, until_us) in self.stand_ins.resting(now_us) {
            let left_s = until_us.saturating_sub(now_us).div_ceil(1_000_000);
            let what = format!("makes the broken {} anew", guest.original);
            let waits_for = Some(format!("for {left_s} s, for that has just failed"));
            let unblock = Some("p2pdb original prepare".into());
            work.push(WorkReport { server: me.clone(), work: what, waits_for, unblock });
        }
        if let Some(obstacle) = &self.own.waits {
            let what = "takes its own address".into();
            let waits_for = Some(waits_for(obstacle));
            work.push(WorkReport { server: me.clone(), work: what, waits_for, unblock: None });
        }
        if let Some(waits) = &self.standing.back.waits {
            let unblock = self.standing.back.operator_ends.then(|| format!("p2pdb failback {me}"));
            let what = "comes back into the group".into();
            work.push(WorkReport { server: me.clone(), work: what, waits_for: Some(waits.clone()), unblock });
        }
        work
    }

    fn capacity(&self, scene: &Scene) -> Capacity {
        let mut linked = scene.linked.clone();
        linked.insert(self.config.me.clone());
        let mut placed: Vec<(Slot, ServerName, Place)> = self
            .chain
            .roster()
            .members()
            .iter()
            .filter_map(|member| {
                let recovery = member.recovery.as_ref()?;
                Some((recovery.slot, member.name.clone(), recovery.place.clone()?))
            })
            .collect();
        placed.sort();
        let placed: Vec<(ServerName, Place)> = placed.into_iter().map(|(_, name, place)| (name, place)).collect();
        let candidates = placement::candidates(scene.files, &self.ring, &linked, &placed);
        placement::capacity(&self.ring, &candidates, |server| Condition::of(scene.files, server))
    }
}
