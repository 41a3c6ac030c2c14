//! The lease of this server, and those that it grants as an elector; why they are safe is said in [`crate::core::lease`].

use super::{Management, Turn};
use crate::core::chain::{ChainInput, ChainMessage};
use crate::core::id::ServerName;
use crate::core::io::Message;
use crate::core::lease::LeaseMessage;

/// How often the lease is renewed: so many times in its length.
pub(super) const LEASE_RENEWALS: u64 = 5;
/// The same while this server holds no address: it only has to know that it has missed no decision.
const LEASE_RENEWALS_IDLE: u64 = 2;

impl Management {
    /// Asks for the lease anew when it is time; every server of the group does, for it may have to hold something any moment.
    pub(super) fn keep_lease(&mut self, turn: &mut Turn) {
        if !self.in_group() || turn.now_us() < self.next_lease_us {
            return;
        }
        let now_us = turn.now_us();
        let holds = self.own.held().is_some() || self.stand_ins.holds();
        let renewals = if holds { LEASE_RENEWALS } else { LEASE_RENEWALS_IDLE };
        self.next_lease_us = now_us + self.config.lease_ms * 1000 / renewals;
        let open_slot = self.chain.memory().open_slot();
        let request = self.lease.request(open_slot, now_us);
        let LeaseMessage::Request { number, .. } = request else { return };
        let electors: Vec<ServerName> =
            self.chain.electorate().names().filter(|name| turn.scene.linked.contains(*name)).cloned().collect();
        turn.send(electors, Message::Lease(request));
        let me = self.config.me.clone();
        if self.grants.grants(&me, open_slot, &self.chain, now_us) {
            self.granted(turn, me, number);
        }
    }

    fn granted(&mut self, turn: &mut Turn, from: ServerName, number: u64) {
        let mut reachable = turn.scene.linked.clone();
        reachable.insert(self.config.me.clone());
        let open_slot = self.chain.memory().open_slot();
        let electorate = self.chain.electorate();
        if self.lease.granted(from, number, open_slot, &electorate, self.config.policy, &reachable) {
            self.own.hold_again();
            self.stand_ins.hold_again();
        }
    }

    pub(super) fn lease_left_ms(&self, now_us: u64) -> u64 {
        self.lease.left_ms(self.config.lease_ms, now_us)
    }

    pub(super) fn lease_message(&mut self, turn: &mut Turn, peer: ServerName, message: LeaseMessage) {
        let open = self.chain.memory().open_slot();
        match message {
            LeaseMessage::Request { number, open_slot } => {
                if self.grants.grants(&peer, open_slot, &self.chain, turn.now_us()) {
                    turn.send(vec![peer], Message::Lease(LeaseMessage::Grant { number }));
                } else if open_slot != open {
                    // Whoever is behind is helped, itself included.
                    let message = ChainMessage::WantDecisions { from: open_slot };
                    self.drive_chain(turn, ChainInput::Message { peer, message });
                }
            }
            LeaseMessage::Grant { number } => self.granted(turn, peer, number),
            LeaseMessage::WantAge { holder, slot } if slot < open && self.chain.votes() => {
                let age_ms = self.grants.age_ms(&holder, turn.now_us());
                turn.send(vec![peer], Message::Lease(LeaseMessage::Age { holder, slot, age_ms }));
            }
            LeaseMessage::WantAge { slot, .. } => {
                if slot >= open {
                    let message = ChainMessage::WantDecisions { from: slot.saturating_add(1) };
                    self.drive_chain(turn, ChainInput::Message { peer, message });
                }
            }
            LeaseMessage::Age { holder, slot, age_ms } => self.heard_age(turn, peer, &holder, slot, age_ms),
        }
    }
}
