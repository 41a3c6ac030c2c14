//! The host's side: original servers of this host become the stand-ins that were decided, and pristine again afterwards.
//!
//! ```text
//! decided here ─► Resume ─► Install ─► takeover ─► TakeAddress ─► HoldAddress, again and again
//! not wanted any more ─► ReleaseAddress ─► LetGo ─► Reset          (a warm-up: Reset, once nobody wants it)
//! ```
//! Invariants: one order at a time for each original. The token of an order is the slot of the decision behind it. Warm-ups carry
//! token 0 and are forgotten after [`WARM_UP_US`] without news. An original in which a step has failed does nothing more for that
//! decision; it is made anew, so that another decision may choose it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Management, ManagementMessage, ManagementOutput, Phase, RecoveryRow, Turn};
use crate::core::decision::Slot;
use crate::core::guest::{Guest, GuestAction, GuestOrder, GuestOutcome, GuestState, OrderId};
use crate::core::id::ServerName;
use crate::core::lease::wait_ms;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::core::service::{Service, procedure_of};
use crate::core::takeover::{Obstacle, Step};

/// How long a warm-up waits for its decision, in microseconds.
const WARM_UP_US: u64 = 15_000_000;
/// How long after a failure an order is given again, in microseconds.
const RETRY_US: u64 = 1_000_000;
/// How long after an attempt to make a broken original anew the next one follows, in microseconds. Each that fails doubles it, up
/// to the longest: an attempt may cost a boot, and what it lacks may be lacking for long.
const MEND_US: u64 = 10_000_000;
const MEND_LONGEST_US: u64 = 300_000_000;
/// So often an original may fail to take the address, which may be a matter of the moment, before it is given up.
const REFUSALS_MAX: u32 = 5;
/// How long a host tries to get what it lacks for an address, a look or a lease, before it has failed, in microseconds. Another one
/// may have it.
const LACKING_US: u64 = 30_000_000;
/// So long the row that tells of the decision is left to the scribe, in microseconds.
const SCRIBE_US: u64 = 1_000_000;
/// Most of an original's note that is told, in characters.
const NOTE_CHARS_MAX: usize = 160;

/// The original servers of this host, as they were told last, and what is under way.
#[derive(Default)]
pub(super) struct StandIns {
    guests: BTreeMap<String, Guest>,
    orders: BTreeMap<OrderId, (String, GuestAction, Slot)>,
    warm: BTreeMap<String, Warm>,
    /// What failed, by original and decision, and when it may be tried again.
    failed: BTreeMap<String, (Slot, String)>,
    retry_us: BTreeMap<String, u64>,
    /// How often each has failed to take the address because of a decision.
    refusals: BTreeMap<String, (Slot, u32)>,
    /// Since when each has been ready for the address because of a decision, and this host has not.
    lacking: BTreeMap<String, (Slot, u64)>,
    /// When each was last made anew because it was broken, and how often since it was last suspended.
    mended: BTreeMap<String, (u64, u32)>,
    /// When an address has to be held again.
    hold_us: BTreeMap<String, u64>,
    /// What each takeover waits for.
    pub waits: BTreeMap<ServerName, Obstacle>,
}

struct Warm {
    target: ServerName,
    until_us: u64,
}

impl StandIns {
    /// The lease is longer: addresses are held again at once.
    pub fn hold_again(&mut self) {
        self.hold_us.clear();
    }

    pub fn cool_down(&mut self, target: &ServerName, original: &str) {
        if let Some(warm) = self.warm.get_mut(original).filter(|warm| warm.target == *target) {
            warm.until_us = 0;
        }
    }

    pub fn holds(&self) -> bool {
        self.guests.values().any(|guest| guest.state == GuestState::Serving)
    }

    /// Counts that an address could not be taken. Returns whether to give up.
    fn refused(&mut self, original: &str, token: Slot) -> bool {
        let refusals = self.refusals.entry(original.to_owned()).or_insert((token, 0));
        *refusals = (token, if refusals.0 == token { refusals.1 + 1 } else { 1 });
        refusals.1 >= REFUSALS_MAX
    }

    /// Whether it is time to make a broken original anew; if so, that is counted.
    fn mends(&mut self, original: &str, now_us: u64) -> bool {
        let is_time = now_us >= self.mends_at_us(original);
        if is_time {
            let times = self.mended.get(original).map_or(1, |(_, times)| times.saturating_add(1));
            self.mended.insert(original.to_owned(), (now_us, times));
        }
        is_time
    }

    fn mends_at_us(&self, original: &str) -> u64 {
        let Some((last_us, times)) = self.mended.get(original) else { return 0 };
        let pause_us = MEND_US << times.saturating_sub(1).min(10);
        last_us + pause_us.min(MEND_LONGEST_US)
    }

    /// Broken originals that rest until they are made anew, why, and until when.
    pub fn resting(&self, now_us: u64) -> impl Iterator<Item = (&Guest, u64)> {
        let broken =
            self.guests.values().filter(|guest| guest.state == GuestState::Broken && !self.is_busy(&guest.original));
        broken.map(|guest| (guest, self.mends_at_us(&guest.original))).filter(move |(_, at_us)| *at_us > now_us)
    }

    fn installs(&self, original: &str, target: &ServerName) -> bool {
        let is_it = |action: &GuestAction| matches!(action, GuestAction::Install { target: it, .. } if it == target);
        self.orders.values().any(|(busy, action, _)| busy == original && is_it(action))
    }

    fn knows(&mut self, guest: Guest) {
        if guest.state == GuestState::Suspended
            && let Some((_, times)) = self.mended.get_mut(&guest.original)
        {
            *times = 0;
        }
        self.guests.insert(guest.original.clone(), guest);
    }

    fn is_busy(&self, original: &str) -> bool {
        self.orders.values().any(|(busy, ..)| busy == original)
    }
}

/// What an original of this host has to be.
struct Wanted {
    target: ServerName,
    slot: Slot,
    manager: ServerName,
}

impl Management {
    pub(super) fn keep_stand_ins(&mut self, turn: &mut Turn) {
        let wanted = self.wanted_here();
        let mut keep: BTreeSet<(ServerName, Slot)> =
            wanted.values().map(|wanted| (wanted.target.clone(), wanted.slot)).collect();
        keep.insert((self.config.me.clone(), self.own_slot()));
        self.takeovers.keep(&keep);
        self.stand_ins.waits.retain(|target, _| wanted.values().any(|wanted| wanted.target == *target));
        let originals: Vec<String> = self.stand_ins.guests.keys().cloned().collect();
        for original in originals {
            let retry_us = self.stand_ins.retry_us.get(&original).copied().unwrap_or(0);
            let wanted = wanted.get(&original);
            if let Some(wanted) = wanted.filter(|wanted| self.stand_ins.installs(&original, &wanted.target)) {
                // Perhaps the warm-up has begun it.
                self.tell_phase(turn, wanted, Phase::Resumed, original.clone());
            }
            if self.stand_ins.is_busy(&original) || turn.now_us() < retry_us {
                continue;
            }
            match wanted {
                Some(wanted) => self.play(turn, &original, wanted),
                None => self.put_back(turn, &original),
            }
        }
        for (original, wanted) in &wanted {
            if !self.stand_ins.guests.contains_key(original) && self.knows_all_guests() {
                let why = format!("{} has no original server {original}", self.config.me);
                self.step_failed(turn, original, wanted, why);
            }
        }
    }

    /// What was decided of the originals of this host. A server that is out of the group hosts nothing, and once it is back,
    /// nothing of what was decided before.
    fn wanted_here(&self) -> BTreeMap<String, Wanted> {
        if !self.in_group() || self.began_us.is_none() {
            return BTreeMap::new();
        }
        let since = self.own_slot();
        let members = self.chain.roster().members().iter();
        members
            .filter_map(|member| {
                let recovery = member.recovery.as_ref().filter(|recovery| recovery.slot > since)?;
                let place = recovery.place.as_ref().filter(|place| place.host == self.config.me)?;
                let (slot, manager) = (recovery.slot, recovery.manager.clone());
                Some((place.original.clone(), Wanted { target: member.name.clone(), slot, manager }))
            })
            .collect()
    }

    fn play(&mut self, turn: &mut Turn, original: &str, wanted: &Wanted) {
        let guest = self.stand_ins.guests[original].clone();
        if guest.token >= wanted.slot {
            // What was suspected is decided: it is not warmed up anew when it has been put back.
            self.stand_ins.warm.remove(original);
        }
        if guest.token > wanted.slot {
            return;
        }
        if guest.state == GuestState::Broken {
            let failed = self.stand_ins.failed.entry(original.to_owned()).or_default();
            // What is known of the same decision says more.
            if failed.0 != wanted.slot {
                *failed = (wanted.slot, format!("it is broken: {}", guest.note));
            }
        }
        if let Some((_, why)) = self.stand_ins.failed.get(original).filter(|(slot, _)| *slot == wanted.slot) {
            let why = why.clone();
            self.step_failed(turn, original, wanted, why);
            if guest.state != GuestState::Suspended && self.stand_ins.mends(original, turn.now_us()) {
                self.order(turn, original, wanted.slot, GuestAction::Reset);
            }
            return;
        }
        let plays = guest.target.as_ref() == Some(&wanted.target);
        match guest.state {
            // Told above.
            GuestState::Broken => {}
            GuestState::Suspended => {
                let action = GuestAction::Resume { target: wanted.target.clone() };
                self.order(turn, original, wanted.slot, action);
            }
            _ if !plays => self.order(turn, original, wanted.slot, GuestAction::Reset),
            GuestState::Running => {
                self.tell_phase(turn, wanted, Phase::Resumed, original.to_owned());
                match procedure_of(turn.scene.files, &wanted.target) {
                    Some(procedure) => {
                        let target = wanted.target.clone();
                        let address = Service::of(turn.scene.files, &target).map(|service| service.address);
                        let action = GuestAction::Install { target, procedure, address };
                        self.order(turn, original, wanted.slot, action);
                    }
                    None => {
                        let why = format!("{} has no installation procedure: p2pdb procedure put", wanted.target);
                        self.step_failed(turn, original, wanted, why);
                    }
                }
            }
            GuestState::Installed => self.take_for(turn, original, wanted),
            GuestState::Serving if guest.token < wanted.slot => self.take_for(turn, original, wanted),
            GuestState::Serving => self.serve(turn, original, wanted),
        }
    }

    fn take_for(&mut self, turn: &mut Turn, original: &str, wanted: &Wanted) {
        let Some(service) = Service::of(turn.scene.files, &wanted.target) else {
            let note = format!("{original} is ready; {} has no address in the file Service", wanted.target);
            return self.tell_phase(turn, wanted, Phase::Installed, note);
        };
        if self.plays_beside(turn.now_us(), original, wanted) {
            // The looks do not tell: whoever has let go himself is believed without them.
            let obstacle = Obstacle::StillAnswers { seen_by: vec![self.config.me.clone()] };
            self.stand_ins.waits.insert(wanted.target.clone(), obstacle);
            return;
        }
        let lease_ms = self.lease_for(&service, turn.now_us());
        let step = self.take_over(turn, &wanted.target, &service, wanted.slot);
        if !matches!(step, Step::Wait(_)) {
            self.stand_ins.waits.remove(&wanted.target);
        }
        // Between two looks nothing is known.
        if !matches!(step, Step::Take | Step::Look { .. } | Step::Wait(Obstacle::Looking | Obstacle::Blind(_))) {
            self.stand_ins.lacking.remove(original);
        }
        match step {
            Step::Take if lease_ms > 0 => {
                self.stand_ins.lacking.remove(original);
                let action = GuestAction::TakeAddress { address: service.address, lease_ms };
                self.order(turn, original, wanted.slot, action);
            }
            Step::Take => {
                let note = format!("{original} is ready; {} has no lease of its own yet", self.config.me);
                self.lacks(turn, original, wanted, note, "its host has no lease".into());
            }
            Step::Look { .. } => self.tell_phase(turn, wanted, Phase::Installed, original.to_owned()),
            Step::Wait(Obstacle::Blind(why)) => {
                let obstacle = Obstacle::Blind(why.clone());
                let note = waits_for(&obstacle);
                self.stand_ins.waits.insert(wanted.target.clone(), obstacle);
                self.lacks(turn, original, wanted, note, format!("nobody can look at the address: {why}"));
            }
            Step::Wait(obstacle) => {
                let phase = match &obstacle {
                    Obstacle::Looking => Phase::Installed,
                    _ => Phase::Waiting,
                };
                let note = match &obstacle {
                    Obstacle::Looking => original.to_owned(),
                    // The figure changes all the time; `why` asks for it.
                    Obstacle::Lease { holder, .. } => format!("for the lease of {holder} to end"),
                    other => waits_for(other),
                };
                self.stand_ins.waits.insert(wanted.target.clone(), obstacle);
                self.tell_phase(turn, wanted, phase, note);
            }
        }
    }

    /// Waits for what another host may have, but not for ever.
    fn lacks(&mut self, turn: &mut Turn, original: &str, wanted: &Wanted, note: String, why: String) {
        let begun = (wanted.slot, turn.now_us());
        let lacking = self.stand_ins.lacking.entry(original.to_owned()).or_insert(begun);
        if lacking.0 != wanted.slot {
            *lacking = begun;
        }
        if turn.now_us() < lacking.1 + LACKING_US {
            self.tell_phase(turn, wanted, Phase::Waiting, note);
        } else {
            self.step_failed(turn, original, wanted, format!("for {} s, {why}", LACKING_US / 1_000_000));
        }
    }

    /// Whether another original of this host may still hold the address, for a decision before.
    fn plays_beside(&self, now_us: u64, original: &str, wanted: &Wanted) -> bool {
        let may_hold = |guest: &Guest| {
            guest.original != original
                && guest.target.as_ref() == Some(&wanted.target)
                && (guest.state == GuestState::Serving || self.stand_ins.is_busy(&guest.original))
        };
        // It is not held for longer since the decision was learned.
        let over_us = self.learned_us(wanted.slot) + wait_ms(self.config.lease_ms) * 1000;
        now_us < over_us && self.stand_ins.guests.values().any(may_hold)
    }

    fn serve(&mut self, turn: &mut Turn, original: &str, wanted: &Wanted) {
        let me = self.config.me.clone();
        self.takeovers.end(&wanted.target);
        self.stand_ins.waits.remove(&wanted.target);
        let name = wanted.target.as_str();
        let stand_in = format!("{name}b");
        let row = Record::of([&stand_in, name, me.as_str()]);
        let reason = format!("{name} is played by {original} on {me}");
        self.want_record(turn, file::PROBLEM, name, Some(row), &reason);
        let Some(service) = Service::of(turn.scene.files, &wanted.target) else { return };
        let note = format!("{original} on {me} answers at {}", service.address);
        self.tell_phase(turn, wanted, Phase::Serving, note);
        let now_us = turn.now_us();
        let lease_ms = self.lease_for(&service, now_us);
        if lease_ms == 0 || self.stand_ins.hold_us.get(original).is_some_and(|at| now_us < *at) {
            return;
        }
        self.stand_ins.hold_us.insert(original.to_owned(), now_us + lease_ms * 1000 / super::leases::LEASE_RENEWALS);
        let action = GuestAction::HoldAddress { address: service.address, lease_ms };
        self.order(turn, original, wanted.slot, action);
    }

    /// For how long an address may be held from now on.
    pub(super) fn lease_for(&self, service: &Service, now_us: u64) -> u64 {
        if service.exclusive { self.lease_left_ms(now_us) } else { self.config.lease_ms }
    }

    /// Puts an original back that no decision wants.
    fn put_back(&mut self, turn: &mut Turn, original: &str) {
        self.stand_ins.failed.remove(original);
        let guest = self.stand_ins.guests[original].clone();
        if guest.token == 0 && guest.state == GuestState::Broken {
            if self.stand_ins.mends(original, turn.now_us()) {
                self.order(turn, original, 0, GuestAction::Reset);
            }
            return;
        }
        if guest.token == 0 {
            return self.keep_warm(turn, original, &guest);
        }
        // A decision that this server has not heard of yet is not undone.
        let known = self.chain.decisions().len() as Slot;
        if known < guest.token || self.began_us.is_none() {
            return;
        }
        let service = guest.target.as_ref().and_then(|target| Service::of(turn.scene.files, target));
        match (guest.state, service) {
            (GuestState::Suspended, _) => {}
            (GuestState::Serving, Some(service)) => {
                self.order(turn, original, known, GuestAction::ReleaseAddress { address: service.address });
            }
            _ => self.order(turn, original, known, GuestAction::Reset),
        }
    }

    // ---- warm-ups ----

    /// A manager suspects a target: prepares an original for it.
    pub(super) fn warm_up(&mut self, turn: &mut Turn, target: ServerName, original: String) {
        let is_free = self.stand_ins.guests.get(&original).is_some_and(|guest| {
            guest.token == 0 && (guest.state == GuestState::Suspended || guest.target.as_ref() == Some(&target))
        });
        let is_wanted = self.stand_ins.warm.get(&original).is_some_and(|warm| warm.target != target);
        if is_free && !is_wanted && self.in_group() && !self.wanted_here().contains_key(&original) {
            let until_us = turn.now_us() + WARM_UP_US;
            self.stand_ins.warm.insert(original, Warm { target, until_us });
        }
    }

    fn keep_warm(&mut self, turn: &mut Turn, original: &str, guest: &Guest) {
        let Some(warm) = self.stand_ins.warm.get(original) else { return };
        let target = warm.target.clone();
        let plays = guest.target.as_ref() == Some(&target);
        if turn.now_us() >= warm.until_us {
            self.stand_ins.warm.remove(original);
            if plays && matches!(guest.state, GuestState::Running | GuestState::Installed) {
                self.order(turn, original, 0, GuestAction::Reset);
            }
            return;
        }
        match (guest.state, procedure_of(turn.scene.files, &target)) {
            (GuestState::Suspended, _) => self.order(turn, original, 0, GuestAction::Resume { target }),
            (GuestState::Running, Some(procedure)) if plays => {
                let address = Service::of(turn.scene.files, &target).map(|service| service.address);
                self.order(turn, original, 0, GuestAction::Install { target, procedure, address });
            }
            _ => {}
        }
    }

    // ---- orders and reports ----

    fn order(&mut self, turn: &mut Turn, original: &str, token: Slot, action: GuestAction) {
        let id = self.number();
        self.stand_ins.orders.insert(id, (original.to_owned(), action.clone(), token));
        turn.out(ManagementOutput::Guest(GuestOrder { id, original: original.to_owned(), token, action }));
    }

    pub(super) fn guest_changed(&mut self, turn: &Turn, guest: Guest) {
        let is_new = !self.stand_ins.guests.contains_key(&guest.original);
        // What an earlier daemon had warmed up, nobody else puts back.
        if let (true, 0, GuestState::Running | GuestState::Installed, Some(target)) =
            (is_new, guest.token, guest.state, &guest.target)
        {
            let warm = Warm { target: target.clone(), until_us: turn.now_us() + WARM_UP_US };
            self.stand_ins.warm.insert(guest.original.clone(), warm);
        }
        self.stand_ins.knows(guest);
    }

    pub(super) fn guest_outcome(&mut self, turn: &mut Turn, id: OrderId, outcome: GuestOutcome) {
        let Some((original, action, token)) = self.stand_ins.orders.remove(&id) else { return };
        match outcome {
            GuestOutcome::Done(guest) => {
                self.stand_ins.refusals.remove(&original);
                if let (GuestAction::ReleaseAddress { .. } | GuestAction::Reset, Some(before)) =
                    (&action, self.stand_ins.guests.get(&original))
                    && before.state == GuestState::Serving
                    && let Some(target) = before.target.clone()
                {
                    self.stand_ins.knows(guest);
                    let peers = turn.scene.linked.iter().cloned().collect();
                    return self.tell_let_go(turn, &target, self.chain.decisions().len() as Slot, peers);
                }
                self.stand_ins.knows(guest);
            }
            GuestOutcome::Failed(why) => {
                self.stand_ins.retry_us.insert(original.clone(), turn.now_us() + RETRY_US);
                // An address that could not be held is taken again; what could not be resumed or installed has failed.
                let gives_up = match action {
                    GuestAction::Resume { .. } | GuestAction::Install { .. } => true,
                    GuestAction::TakeAddress { .. } => self.stand_ins.refused(&original, token),
                    _ => false,
                };
                if token != 0 && gives_up {
                    self.stand_ins.failed.insert(original, (token, why));
                }
            }
            GuestOutcome::Stale { .. } => {
                self.stand_ins.retry_us.insert(original, turn.now_us() + RETRY_US);
            }
        }
    }

    /// Tells that no stand-in here holds the target's address, if that is so and the decision is known.
    pub(super) fn tell_let_go(&mut self, turn: &mut Turn, target: &ServerName, slot: Slot, peers: Vec<ServerName>) {
        let known = self.chain.decisions().len() as Slot;
        let wanted_here = self.wanted_here().values().any(|wanted| wanted.target == *target);
        let holds_here = self.stand_ins.guests.values().any(|guest| {
            guest.target.as_ref() == Some(target)
                && (guest.state == GuestState::Serving || self.stand_ins.is_busy(&guest.original))
        });
        let holds_own = *target == self.config.me && (self.own.may_hold() || self.in_group());
        if slot > known || wanted_here || holds_here || holds_own || !self.knows_all_guests() {
            return;
        }
        let message = ManagementMessage::LetGo { target: target.clone(), slot: known };
        turn.send(peers, crate::core::io::Message::Management(message));
    }

    /// Whether every original has told how it is since this server began.
    fn knows_all_guests(&self) -> bool {
        self.config.originals.iter().all(|original| self.stand_ins.guests.contains_key(original))
    }

    fn step_failed(&mut self, turn: &mut Turn, original: &str, wanted: &Wanted, why: String) {
        let note: String = format!("{original}: {why}").chars().take(NOTE_CHARS_MAX).collect();
        self.tell_phase(turn, wanted, Phase::Failed, note);
    }

    /// Writes how far a stand-in is; never back from what was written of the same decision, but for failures.
    fn tell_phase(&mut self, turn: &mut Turn, wanted: &Wanted, phase: Phase, note: String) {
        let written = RecoveryRow::of(turn.scene.files, &wanted.target);
        let now_us = turn.now_us();
        let is_written = written.as_ref().is_some_and(|row| row.slot >= wanted.slot);
        if !is_written && now_us < self.learned_us(wanted.slot) + SCRIBE_US {
            // Two rows at the same time would be a conflict.
            return;
        }
        if let Some(row) = written {
            let is_later =
                row.slot > wanted.slot || row.slot == wanted.slot && row.phase > phase && phase < Phase::Serving;
            if is_later
                || (row.slot, row.phase) == (wanted.slot, phase) && (row.note == note || phase != Phase::Waiting)
            {
                return;
            }
        }
        let row = RecoveryRow {
            target: wanted.target.clone(),
            phase,
            host: Some(self.config.me.clone()),
            manager: Some(wanted.manager.clone()),
            slot: wanted.slot,
            note,
        };
        self.want_recovery(turn, row);
    }
}

/// What an obstacle is, in words that follow "waits".
pub(super) fn waits_for(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Lease { holder, left_ms } => format!("for the lease of {holder} to end, {left_ms} ms more"),
        Obstacle::Looking => "for the looks at the address".into(),
        Obstacle::StillAnswers { seen_by } => {
            let names: Vec<&str> = seen_by.iter().map(ServerName::as_str).collect();
            format!("because somebody still answers at the address, as {} sees", names.join(" and "))
        }
        Obstacle::Blind(why) => format!("because nobody can look at the address: {why}"),
    }
}
