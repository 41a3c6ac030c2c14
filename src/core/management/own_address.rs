//! This server's own service address: taken when it is in the group and its lease allows it, held, and released as soon as it
//! knows that somebody else is to have it.
//!
//! ```text
//! Unknown ─report─► Free ─takeover─► (taking) ─► Held ─lapses─► Free
//!                    ^──────────── releasing ◄────┘ out of the group, or the record of `Service` has changed
//! ```
//! Invariant: one order at a time. A server that does not know what it holds takes nothing and says nothing.

use super::{AddressAction, AddressOrder, Management, ManagementOutput, Phase, RecoveryRow, Turn};
use crate::core::decision::{ServiceAddress, Slot};
use crate::core::guest::OrderId;
use crate::core::lifecycle::Lifecycle;
use crate::core::service::Service;
use crate::core::takeover::{Obstacle, Step};

/// How long after a failure an order is given again, in microseconds.
const RETRY_US: u64 = 500_000;

#[derive(Default)]
pub(super) struct OwnAddress {
    /// `None`: not known yet.
    held: Option<Option<ServiceAddress>>,
    order: Option<(OrderId, AddressAction)>,
    retry_us: u64,
    hold_us: u64,
    /// What the taking of the address waits for.
    pub waits: Option<Obstacle>,
    /// The last order that failed.
    pub failure: Option<String>,
}

impl OwnAddress {
    pub fn held(&self) -> Option<ServiceAddress> {
        self.held.flatten()
    }

    /// Whether the address may be held here, as far as is known.
    pub fn may_hold(&self) -> bool {
        self.order.is_some() || self.held != Some(None)
    }

    /// The lease is longer: the address is held again at once.
    pub fn hold_again(&mut self) {
        self.hold_us = 0;
    }
}

impl Management {
    /// The decision by which this server may have its own address: its last return or admission, or 0.
    pub(super) fn own_slot(&self) -> Slot {
        self.came(&self.config.me).map_or(0, |decision| decision.slot)
    }

    pub(super) fn keep_own_address(&mut self, turn: &mut Turn) {
        if !self.config.service_network {
            self.own.held = Some(None);
            return;
        }
        if self.own.order.is_some() || turn.now_us() < self.own.retry_us {
            return;
        }
        let Some(held) = self.own.held else {
            // What an earlier daemon has left is asked for before anything else.
            return self.address_order(turn, AddressAction::Report);
        };
        let ready = turn.scene.lifecycle >= Lifecycle::Ready && self.in_group();
        let service = Service::of(turn.scene.files, &self.config.me).filter(|_| ready);
        // A daemon that has just started leaves alone what the one before held, unless its decisions say otherwise.
        let is_out = !self.chain.decisions().is_empty() && !self.in_group();
        match (held, service) {
            (None, None) => self.own.waits = None,
            (Some(address), Some(service)) if address == service.address => self.hold(turn, &service),
            (Some(address), _) if turn.scene.lifecycle >= Lifecycle::Ready || is_out => {
                self.address_order(turn, AddressAction::Release { address });
            }
            // It lapses by itself if nothing is learned in time.
            (Some(_), _) => {}
            (None, Some(service)) => self.take(turn, &service),
        }
    }

    fn hold(&mut self, turn: &mut Turn, service: &Service) {
        self.own.waits = None;
        let me = self.config.me.clone();
        self.takeovers.end(&me);
        self.tell_back(turn, service);
        let now_us = turn.now_us();
        let lease_ms = self.lease_for(service, now_us);
        if lease_ms == 0 || now_us < self.own.hold_us {
            return;
        }
        self.own.hold_us = now_us + lease_ms * 1000 / super::leases::LEASE_RENEWALS;
        self.address_order(turn, AddressAction::Hold { address: service.address, lease_ms });
    }

    fn take(&mut self, turn: &mut Turn, service: &Service) {
        let lease_ms = self.lease_for(service, turn.now_us());
        if lease_ms == 0 {
            return;
        }
        let me = self.config.me.clone();
        match self.take_over(turn, &me, service, self.own_slot()) {
            Step::Take => self.address_order(turn, AddressAction::Take { address: service.address, lease_ms }),
            Step::Wait(obstacle) => self.own.waits = Some(obstacle),
            Step::Look { .. } => {}
        }
    }

    /// Says in the file `Recovery` that this server has its address again.
    fn tell_back(&mut self, turn: &mut Turn, service: &Service) {
        let row = RecoveryRow::of(turn.scene.files, &self.config.me).filter(|row| row.phase == Phase::Returning);
        if let Some(row) = row {
            let note = format!("{} answers at {} itself", self.config.me, service.address);
            self.want_recovery(turn, RecoveryRow { phase: Phase::Back, note, ..row });
        }
    }

    fn address_order(&mut self, turn: &mut Turn, action: AddressAction) {
        let id = self.number();
        self.own.order = Some((id, action));
        turn.out(ManagementOutput::Address(AddressOrder { id, action }));
    }

    pub(super) fn address_outcome(
        &mut self,
        turn: &mut Turn,
        id: OrderId,
        outcome: Result<Option<ServiceAddress>, String>,
    ) {
        let Some((_, action)) = self.own.order.take_if(|(order, _)| *order == id) else { return };
        match outcome {
            Ok(held) => {
                self.own.held = Some(held);
                self.own.failure = None;
                if held.is_none() && matches!(action, AddressAction::Release { .. }) {
                    let me = self.config.me.clone();
                    let peers = turn.scene.linked.iter().cloned().collect();
                    self.tell_let_go(turn, &me, self.chain.decisions().len() as Slot, peers);
                }
            }
            Err(why) => {
                // What is held now is asked for before the next step.
                self.own.held = None;
                self.own.failure = Some(why);
                self.own.retry_us = turn.now_us() + RETRY_US;
            }
        }
        let failure = self.own.failure.clone();
        self.alarm(turn, "service address".into(), failure.map(|why| format!("the own service address: {why}")));
    }
}
