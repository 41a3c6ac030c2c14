//! How decisions become known: told by whoever has them, in order, each slot once.

use std::sync::Arc;

use super::Chain;
use super::io::{ChainOutput, WishOutcome};
use super::message::{ChainMessage, ChainRecord, DECISIONS_MAX};
use super::wishes::OpenWish;
use crate::core::clock::Now;
use crate::core::decision::{Decision, Slot};
use crate::core::id::ServerName;

impl Chain {
    /// The open slot is decided.
    pub(super) fn learn(&mut self, now: Now, decision: Arc<Decision>, out: &mut Vec<ChainOutput>) {
        self.records.push(ChainRecord::Decided(decision.clone()));
        self.roster.apply(&decision);
        self.memory.decide(decision.clone());
        self.attempt = None;
        self.round = 0;
        self.timers.decided();
        self.timers.ask_at = self.config.ask_ms.map(|ask_ms| now.monotonic_us + ask_ms * 1000);
        out.push(ChainOutput::Decided(decision.clone()));
        let fulfilled = |wish: &OpenWish| wish.decision(decision.slot, &self.config.me) == *decision;
        if let Some(at) = self.wishes.iter().position(fulfilled) {
            let ticket = self.wishes.remove(at).expect("it was found there").ticket;
            out.push(ChainOutput::WishDone { ticket, outcome: WishOutcome::Decided(decision.slot) });
        }
        // What was shown for this slot and not decided never will be.
        self.wishes.iter_mut().for_each(|wish| wish.shown = false);
    }

    pub(super) fn told(
        &mut self,
        now: Now,
        peer: ServerName,
        decisions: Vec<Arc<Decision>>,
        out: &mut Vec<ChainOutput>,
    ) {
        let many = decisions.len() >= DECISIONS_MAX;
        for decision in decisions {
            let open = self.memory.open_slot();
            match decision.slot {
                slot if slot == open => self.learn(now, decision, out),
                slot if slot > open => {
                    out.push(self.want(&peer, open));
                    return;
                }
                slot => {
                    let held = slot.checked_sub(1).and_then(|at| self.memory.decisions.get(at as usize));
                    if let Some(held) = held.filter(|held| **held != decision).cloned() {
                        self.forked.insert(peer.clone());
                        out.push(ChainOutput::Forked { peer, held, told: decision });
                        return;
                    }
                }
            }
        }
        if many {
            out.push(self.want(&peer, self.memory.open_slot()));
        }
    }

    pub(super) fn want(&self, peer: &ServerName, from: Slot) -> ChainOutput {
        ChainOutput::Send { peers: vec![peer.clone()], message: ChainMessage::WantDecisions { from } }
    }

    pub(super) fn tell(&self, peer: &ServerName, from: Slot) -> Option<ChainOutput> {
        let known = self.memory.decisions.iter().skip(from.saturating_sub(1) as usize);
        let decisions: Vec<_> = known.take(DECISIONS_MAX).cloned().collect();
        let message = ChainMessage::Decisions(decisions);
        (from < self.memory.open_slot()).then(|| ChainOutput::Send { peers: vec![peer.clone()], message })
    }
}
