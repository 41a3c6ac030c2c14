//! Addresses on their way to this server: for a stand-in that it hosts, or for itself when it returns.
//!
//! Asks whoever held the address whether it has let go, the electors how old the leases are, and two servers to look. What
//! comes of it is judged in [`crate::core::takeover`].

use std::collections::{BTreeMap, BTreeSet};

use super::{LookId, Management, ManagementMessage, ManagementOutput, Turn};
use crate::core::decision::{Act, ServiceAddress, Slot};
use crate::core::flaw::Flaw;
use crate::core::id::ServerName;
use crate::core::io::Message;
use crate::core::lease::{LeaseMessage, wait_ms};
use crate::core::roster::Roster;
use crate::core::schema::file;
use crate::core::service::Service;
use crate::core::takeover::{Gone, Step, Takeover};

/// How often holders and electors are asked while a takeover waits, in microseconds.
const ASK_EVERY_US: u64 = 200_000;
/// How often one peer may have this server look, in microseconds.
const LOOK_EVERY_US: u64 = 20_000;
/// Looks for others that may be under way.
const LOOKS_MAX: usize = 64;

/// The takeovers that are under way, by target, and the looks for all of them.
#[derive(Default)]
pub(super) struct Takeovers {
    under_way: BTreeMap<ServerName, UnderWay>,
    looks: BTreeMap<LookId, Look>,
    /// The number of the last round of looks: what comes late must not count for another.
    rounds: u64,
    served_us: BTreeMap<ServerName, u64>,
}

struct UnderWay {
    takeover: Takeover,
    /// As the file `Service` had it when this began.
    service: Service,
    /// Who held the address before, and the decision that took it away.
    holders: Vec<(ServerName, Slot)>,
    /// When each elector granted a lease to a holder last, by this server's clock.
    granted_us: BTreeMap<(ServerName, Slot), BTreeMap<ServerName, u64>>,
    next_ask_us: u64,
}

/// Whom a look is for.
enum Look {
    Own { slot: Slot, round: u64 },
    Other { peer: ServerName, slot: Slot, round: u64 },
}

impl Takeovers {
    pub fn looked(&mut self, slot: Slot, round: u64, looker: &ServerName, outcome: Result<bool, String>) {
        for it in self.under_way.values_mut().filter(|it| it.takeover.slot == slot) {
            it.takeover.looked(round, looker, outcome.clone());
        }
    }

    /// A holder has let go because of this decision or a later one.
    pub fn let_go(&mut self, target: &ServerName, slot: Slot, holder: &ServerName) {
        let Some(it) = self.under_way.get_mut(target) else { return };
        // It may hold the address again because of a decision that it has not heard of when it said so.
        if it.holders.iter().filter(|(name, _)| name == holder).all(|(_, taken)| *taken <= slot) {
            it.takeover.gone(holder, Gone::LetGo);
        }
    }

    pub fn end(&mut self, target: &ServerName) {
        self.under_way.remove(target);
    }

    /// Ends those whose target or decision is not among these.
    pub fn keep(&mut self, wanted: &BTreeSet<(ServerName, Slot)>) {
        self.under_way.retain(|target, it| wanted.contains(&(target.clone(), it.takeover.slot)));
    }
}

impl Management {
    /// Takes the next step of the takeover of a target's address because of a decision.
    pub(super) fn take_over(&mut self, turn: &mut Turn, target: &ServerName, service: &Service, slot: Slot) -> Step {
        let now_us = turn.now_us();
        let me = self.config.me.clone();
        let before = self.takeovers.under_way.get(target).filter(|it| it.takeover.slot == slot);
        if before.is_none_or(|it| it.service != *service) {
            let moves = before.is_some_and(|it| it.service.address != service.address);
            let mut begun = self.begin_takeover(target, service, slot, now_us);
            if moves {
                begun.takeover.must_look();
            }
            self.takeovers.under_way.insert(target.clone(), begun);
        }
        self.apply_fences(turn, target);
        let second = self.second_looker(turn, target);
        let Some(it) = self.takeovers.under_way.get_mut(target) else { return Step::Take };
        let step = it.takeover.step(&me, second.as_ref(), now_us);
        if matches!(step, Step::Take) {
            return step;
        }
        if now_us >= it.next_ask_us {
            it.next_ask_us = now_us + ASK_EVERY_US;
            self.ask_holders(turn, target);
        }
        if let Step::Look { round, lookers } = &step {
            self.takeovers.rounds = *round;
            for looker in lookers {
                if *looker == me {
                    let id = self.number();
                    self.takeovers.looks.insert(id, Look::Own { slot, round: *round });
                    let patience_ms = self.config.look_ms;
                    turn.out(ManagementOutput::Look { id, address: service.address, patience_ms });
                } else {
                    turn.say(looker, ManagementMessage::WantLook { slot, round: *round, address: service.address });
                }
            }
        }
        step
    }

    fn begin_takeover(&self, target: &ServerName, service: &Service, slot: Slot, now_us: u64) -> UnderWay {
        let wait_us = match self.config.flaw {
            Some(Flaw::SkipLeaseWait) => 0,
            _ => wait_ms(self.config.lease_ms) * 1000,
        };
        let mut holders = self.holders_before(target, slot);
        let last = holders.last().cloned();
        // Of those before the last one, only a lease that may not be over yet counts.
        holders.retain(|it| Some(it) == last.as_ref() || self.learned_us(it.1) + wait_us > now_us);
        let mut takeover = Takeover::new(slot, service.exclusive, self.config.look_ms, self.takeovers.rounds);
        for (holder, taken) in &holders {
            takeover.held_by(holder.clone(), *taken, self.learned_us(*taken) + wait_us);
        }
        UnderWay { takeover, service: *service, holders, granted_us: BTreeMap::new(), next_ask_us: 0 }
    }

    /// Who may have held the address of a target, and the decision that took it away from them; without this server, which knows
    /// what it holds.
    fn holders_before(&self, target: &ServerName, slot: Slot) -> Vec<(ServerName, Slot)> {
        let mut holders = Vec::new();
        let mut holder = Some(target.clone());
        for decision in self.chain.decisions().iter().take_while(|decision| decision.slot <= slot) {
            let next = match &decision.act {
                Act::Recover { target: it, place, .. } if it == target => {
                    Some(place.as_ref().map(|place| place.host.clone()))
                }
                Act::Return { target: it, .. } | Act::Admit { server: it, .. } if it == target => {
                    Some(Some(target.clone()))
                }
                _ => None,
            };
            let Some(next) = next.filter(|next| *next != holder) else { continue };
            if let Some(before) = std::mem::replace(&mut holder, next) {
                holders.push((before, decision.slot));
            }
        }
        holders.retain(|(name, _)| *name != self.config.me);
        holders
    }

    fn ask_holders(&mut self, turn: &mut Turn, target: &ServerName) {
        let Some(it) = self.takeovers.under_way.get(target) else { return };
        let me = self.config.me.clone();
        let linked = &turn.scene.linked;
        let waits: Vec<ServerName> = it.takeover.waits_for(turn.now_us()).cloned().collect();
        let asked: Vec<(ServerName, Slot)> = it
            .holders
            .iter()
            .filter(|(name, _)| it.takeover.has_not_let_go().any(|held| held == name))
            .cloned()
            .collect();
        let electors: Vec<ServerName> =
            self.chain.electorate().names().filter(|name| linked.contains(*name)).cloned().collect();
        let now_us = turn.now_us();
        for (holder, slot) in asked {
            if linked.contains(&holder) {
                turn.say(&holder, ManagementMessage::WantLetGo { target: target.clone(), slot });
            }
            if waits.contains(&holder) {
                let message = LeaseMessage::WantAge { holder: holder.clone(), slot };
                turn.send(electors.clone(), Message::Lease(message));
                if self.chain.votes() {
                    let age_ms = self.grants.age_ms(&holder, now_us);
                    self.heard_age(turn, me.clone(), &holder, slot, age_ms);
                }
            }
        }
    }

    /// An elector has said when it granted a lease to a holder last.
    pub(super) fn heard_age(
        &mut self,
        turn: &mut Turn,
        elector: ServerName,
        holder: &ServerName,
        slot: Slot,
        age_ms: u64,
    ) {
        let now_us = turn.now_us();
        let asks = |it: &&mut UnderWay| it.holders.iter().any(|(name, taken)| name == holder && *taken == slot);
        let Some(target) = self.takeovers.under_way.iter_mut().find_map(|(target, it)| {
            asks(&it).then(|| {
                // What it says is a moment old when it arrives, so the grant was no later than this.
                let granted_us = now_us.saturating_sub(age_ms.saturating_mul(1000));
                it.granted_us.entry((holder.clone(), slot)).or_default().insert(elector.clone(), granted_us);
                target.clone()
            })
        }) else {
            return;
        };
        let wait_us = wait_ms(self.config.lease_ms) * 1000;
        let heard = &self.takeovers.under_way[&target].granted_us[&(holder.clone(), slot)];
        let voted: BTreeSet<ServerName> = heard.keys().cloned().collect();
        let Some(last_us) = heard.values().max().copied() else { return };
        let mut reachable = turn.scene.linked.clone();
        reachable.insert(self.config.me.clone());
        // A lease from before a decision that was learned long ago is over; any younger one was granted by one of these electorates.
        let decisions = self.chain.decisions();
        let covers = (1..=slot).rev().take_while(|&open| {
            let later = open < slot;
            !later || self.learned_us(open) + wait_us > now_us
        });
        let is_enough = covers.into_iter().all(|open| {
            let before = &decisions[..open as usize - 1];
            let electorate = Roster::of(before.iter().map(AsRef::as_ref)).electorate();
            electorate.is_quorum(self.config.policy, &voted, &reachable)
        });
        if is_enough && let Some(it) = self.takeovers.under_way.get_mut(&target) {
            it.takeover.lease_over(holder, slot, last_us + wait_us);
        }
    }

    /// What the file `Fence` says of holders.
    fn apply_fences(&mut self, turn: &Turn, target: &ServerName) {
        let Some(it) = self.takeovers.under_way.get_mut(target) else { return };
        for (holder, _) in it.holders.clone() {
            let Some(fence) = turn.record(file::FENCE, &holder) else { continue };
            let out_since = self.chain.roster().member(&holder).and_then(|member| member.recovery.as_ref());
            // A fence from before the server was back the last time says nothing.
            if out_since.is_some()
                && fence.field(1).parse::<Slot>().is_ok_and(|slot| slot >= first_out(&self.chain, &holder))
            {
                let gone = if fence.field(2) == "fenced" { Gone::Fenced } else { Gone::Confirmed };
                it.takeover.gone(&holder, gone);
            }
        }
    }

    /// The next member of the ring that is linked looks too.
    fn second_looker(&self, turn: &Turn, target: &ServerName) -> Option<ServerName> {
        let linked = self.ring.members().filter(|name| turn.scene.linked.contains(*name) && *name != target);
        linked.min_by_key(|name| self.ring.distance(&self.config.me, name)).cloned()
    }

    // ---- looks ----

    pub(super) fn look_for(
        &mut self,
        turn: &mut Turn,
        peer: ServerName,
        slot: Slot,
        round: u64,
        address: ServiceAddress,
    ) {
        let now_us = turn.now_us();
        let too_often = self.takeovers.served_us.get(&peer).is_some_and(|at| now_us < at + LOOK_EVERY_US);
        if !self.config.service_network || too_often || self.takeovers.looks.len() >= LOOKS_MAX {
            return turn.say(&peer, ManagementMessage::Look { slot, round, answers: None });
        }
        self.takeovers.served_us.insert(peer.clone(), now_us);
        let id = self.number();
        self.takeovers.looks.insert(id, Look::Other { peer, slot, round });
        turn.out(ManagementOutput::Look { id, address, patience_ms: self.config.look_ms });
    }

    pub(super) fn looked(&mut self, turn: &mut Turn, id: LookId, outcome: Result<bool, String>) {
        match self.takeovers.looks.remove(&id) {
            Some(Look::Own { slot, round }) => {
                let me = self.config.me.clone();
                self.takeovers.looked(slot, round, &me, outcome);
            }
            Some(Look::Other { peer, slot, round }) => {
                turn.say(&peer, ManagementMessage::Look { slot, round, answers: outcome.ok() });
            }
            None => self.standing_looked(id, outcome),
        }
    }
}

/// The decision that took a server out of the group, if it is out.
pub(super) fn first_out(chain: &crate::core::chain::Chain, target: &ServerName) -> Slot {
    let mut first = 0;
    for decision in chain.decisions() {
        match &decision.act {
            Act::Recover { target: it, replaces: None, .. } if it == target => first = decision.slot,
            Act::Return { target: it, .. } if it == target => first = 0,
            _ => {}
        }
    }
    first
}
