//! What this server wants decided: one wish after the other, each as long as it makes sense.

use std::sync::Arc;

use super::Chain;
use super::io::{ChainOutput, Wish, WishOutcome};
use super::proposer::{OwnAttempt, Phase};
use crate::core::clock::Now;
use crate::core::decision::{Act, Decision, Slot, check_texts};
use crate::core::id::ServerName;
use crate::core::io::Ticket;
use crate::core::roster::Obstacle;

/// A wish that has not been answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpenWish {
    pub ticket: Ticket,
    wish: Wish,
    wall_ms: u64,
    /// The last decision that its author knew.
    made_at: Slot,
    /// Whether others have been asked to accept it.
    pub shown: bool,
}

impl OpenWish {
    pub fn decision(&self, slot: Slot, by: &ServerName) -> Decision {
        let Wish { author, reason, act } = self.wish.clone();
        Decision { slot, by: by.clone(), wall_ms: self.wall_ms, author, reason, act }
    }
}

impl Chain {
    pub(super) fn wish(&mut self, now: Now, ticket: Ticket, wish: Wish, out: &mut Vec<ChainOutput>) {
        if let Err(error) = check_texts(&wish.author, &wish.reason, &wish.act) {
            out.push(ChainOutput::WishDone { ticket, outcome: WishOutcome::Refused(error) });
            return;
        }
        let founds = matches!(&wish.act, Act::Found { founder, incarnation }
            if *founder == self.config.me && *incarnation == self.config.incarnation);
        self.founding |= founds && self.memory.decisions.is_empty();
        let made_at = self.memory.decisions.len() as Slot;
        self.wishes.push_back(OpenWish { ticket, wish, wall_ms: now.wall_ms, made_at, shown: false });
    }

    pub(super) fn cancel(&mut self, ticket: Ticket, out: &mut Vec<ChainOutput>) {
        let Some(at) = self.wishes.iter().position(|wish| wish.ticket == ticket) else { return };
        let wish = self.wishes.remove(at).expect("it was found there");
        // Nobody but this server knows the value before the second phase; after it began, it has to be settled.
        let of_wish = |own: &OwnAttempt| own.ticket == Some(ticket) && own.attempt.phase == Phase::Prepare;
        if self.attempt.take_if(|own| of_wish(own)).is_some() {
            self.timers.resend_at = None;
        }
        let outcome = WishOutcome::Withdrawn { may_be_decided: wish.shown };
        out.push(ChainOutput::WishDone { ticket, outcome });
    }

    /// Whether a wish still makes sense as the next decision of this server.
    pub(super) fn obstacle(&self, wish: &OpenWish) -> Option<Obstacle> {
        let act = &wish.wish.act;
        if let Some(obstacle) = self.roster.obstacle(act) {
            return Some(obstacle);
        }
        let me = &self.config.me;
        let about_me = matches!(act, Act::Found { founder: name, .. } | Act::Admit { server: name, .. }
            | Act::Witness { name, .. } | Act::Return { target: name, .. } if name == me);
        if !about_me && !self.electorate().contains(me) {
            return Some(Obstacle::Out(me.clone()));
        }
        // The host was chosen before somebody else chose it too.
        let Act::Recover { place: Some(place), .. } = act else { return None };
        let mut since = self.memory.decisions.iter().skip(wish.made_at as usize);
        let taken = since.find(|decision| match &decision.act {
            Act::Recover { place: Some(other), .. } => other.host == place.host,
            _ => false,
        })?;
        Some(Obstacle::HostTaken { host: place.host.clone(), slot: taken.slot })
    }

    /// Begins an attempt, if there is something to be decided and nothing under way.
    pub(super) fn next_attempt(&mut self, now: Now, out: &mut Vec<ChainOutput>) {
        while self.attempt.is_none() && self.timers.pause_until.is_none() {
            let known = self.founding || !self.memory.decisions.is_empty();
            let Some(wish) = self.wishes.front().filter(|_| known) else { return };
            let ticket = wish.ticket;
            match self.obstacle(wish) {
                Some(obstacle) => {
                    self.wishes.pop_front();
                    out.push(ChainOutput::WishDone { ticket, outcome: WishOutcome::Overtaken(obstacle) });
                }
                None => {
                    let decision = Arc::new(wish.decision(self.memory.open_slot(), &self.config.me));
                    self.begin(now, Some(decision), Some(ticket));
                }
            }
        }
    }
}
