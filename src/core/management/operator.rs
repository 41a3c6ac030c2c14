//! What operators want: checked, wished, and answered when it is decided or cannot be. A server that is to come back is told so again and
//! again: what is said while links come and go may be lost, and who has just been linked does not know yet that it is out.

use std::collections::{BTreeMap, VecDeque};

use super::{Management, ManagementMessage, ManagementOutput, OperatorCommand, Turn};
use crate::core::chain::{ChainInput, Standing, Wish, WishOutcome};
use crate::core::decision::{Act, Place, Slot};
use crate::core::id::ServerName;
use crate::core::io::Ticket;
use crate::core::roster::Member;
use crate::core::schema::file;

/// Between two times that a server is told to come back, in microseconds.
const TELL_US: u64 = 500_000;

#[derive(Default)]
pub(super) struct Operator {
    /// Wishes of operators, and who waits for each.
    wishes: BTreeMap<Ticket, (Ticket, String)>,
    /// Who is to come back.
    failbacks: BTreeMap<ServerName, Failback>,
    drains: Vec<Drain>,
}

struct Failback {
    author: String,
    /// The decision by which it is out; another one ends this.
    slot: Slot,
    next_us: u64,
}

/// The stand-ins of a host, moved away one after the other: where one goes depends on where the others went.
struct Drain {
    ticket: Ticket,
    author: String,
    host: ServerName,
    /// Whose stand-ins are still to be moved.
    left: VecDeque<ServerName>,
    /// For the first of them, and how many decisions were known then.
    wish: Option<(Ticket, usize)>,
    moving: Vec<String>,
    /// Why others stay.
    staying: Vec<String>,
}

impl Management {
    pub(super) fn command(&mut self, turn: &mut Turn, ticket: Ticket, author: String, command: OperatorCommand) {
        let result = match command {
            OperatorCommand::Found => self.command_found(turn, ticket, author),
            OperatorCommand::Recover { target, host } => self.command_recover(turn, ticket, author, &target, host),
            OperatorCommand::Failback { target } => self.command_failback(turn, author, &target).map(Some),
            OperatorCommand::ConfirmDead { target } => self.command_confirm_dead(turn, &author, &target).map(Some),
            OperatorCommand::Drain { host } => self.command_drain(ticket, author, host),
        };
        // `Ok(None)`: answered when the wish is.
        if let Some(result) = result.transpose() {
            turn.out(ManagementOutput::Answer { ticket, result });
        }
    }

    pub(super) fn operator_wish_done(&mut self, turn: &mut Turn, wish: Ticket, outcome: &WishOutcome) {
        let result = |what: &str| match outcome {
            WishOutcome::Decided(slot) => Ok(format!("{what}: decision {slot}")),
            WishOutcome::Overtaken(obstacle) => Err(format!("{what}: {obstacle}")),
            WishOutcome::Withdrawn { .. } => Err(format!("{what}: it was withdrawn")),
            WishOutcome::Refused(error) => Err(format!("{what}: {error}")),
        };
        if let Some((ticket, what)) = self.operator.wishes.remove(&wish) {
            turn.out(ManagementOutput::Answer { ticket, result: result(&what) });
        }
        let is_it = |drain: &&mut Drain| drain.wish.is_some_and(|(it, _)| it == wish);
        let Some(drain) = self.operator.drains.iter_mut().find(is_it) else { return };
        let known = drain.wish.take().map(|(_, known)| known);
        // What another decision has overtaken is placed anew.
        if known == Some(self.chain.decisions().len())
            && let Some(target) = drain.left.pop_front()
            && let Err(why) = result(&format!("the stand-in of {target} is moved"))
        {
            drain.staying.push(why);
        }
    }

    fn command_found(&mut self, turn: &mut Turn, ticket: Ticket, author: String) -> Result<Option<String>, String> {
        if self.chain.standing() != Standing::NothingKnown {
            return Err("the group makes decisions already: see p2pdb decisions".into());
        }
        if self.config.witness {
            return Err("a witness founds no group: do it on a server".into());
        }
        let (founder, incarnation) = (self.config.me.clone(), self.config.incarnation);
        let wish = self.number();
        self.operator.wishes.insert(wish, (ticket, "the group looks after itself".into()));
        let act = Act::Found { founder, incarnation };
        let reason = "an operator wants the group to look after itself".into();
        self.drive_chain(turn, ChainInput::Wish { ticket: wish, wish: Wish { author, reason, act } });
        Ok(None)
    }

    fn command_recover(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        author: String,
        target: &ServerName,
        host: Option<ServerName>,
    ) -> Result<Option<String>, String> {
        self.check_can_decide()?;
        let member = self.member(target)?;
        if member.witness {
            return Err(format!("{target} is a witness: it serves nothing that could be recovered"));
        }
        let replaces = member.recovery.as_ref().map(|recovery| recovery.slot);
        let not = member.recovery.as_ref().and_then(|recovery| recovery.place.clone());
        let why = format!("{author} wants {target} to be recovered");
        let (place, reason) = match host {
            None => match self.placed(turn, target, not.as_ref(), &why) {
                // The same again, if there is no other.
                (None, _) => self.placed(turn, target, None, &why),
                found => found,
            },
            Some(host) => {
                let not = not.filter(|not| self.free_original(turn, target, &host, Some(not)).is_some());
                let placement = self.place_for(turn, target, not.as_ref());
                let figure = placement.figures.iter().find(|figure| figure.server == host);
                let figure = figure.ok_or_else(|| format!("{host} is not in the group"))?;
                if figure.refused.is_some() {
                    return Err(format!("{figure}: it takes no stand-in now"));
                }
                let original = self.free_original(turn, target, &host, not.as_ref());
                let original = original.ok_or_else(|| format!("{host} has no original server ready"))?;
                (Some(Place { host: host.clone(), original }), format!("{why}, on {host}; {placement}"))
            }
        };
        if place.is_none() && replaces.is_some() {
            return Err(format!("no other host can take {target}: {reason}"));
        }
        let wish = self.number();
        self.operator.wishes.insert(wish, (ticket, format!("{target} is recovered")));
        self.wish(turn, wish, &author, target, place, replaces, reason);
        Ok(None)
    }

    fn free_original(
        &self,
        turn: &Turn,
        target: &ServerName,
        host: &ServerName,
        not: Option<&Place>,
    ) -> Option<String> {
        let taken: Vec<Place> = self
            .chain
            .roster()
            .members()
            .iter()
            .filter(|member| member.name != *target)
            .filter_map(|member| member.recovery.as_ref()?.place.clone())
            .chain(not.cloned())
            .collect();
        let rows = turn.scene.files.records_of(file::ORIGINAL);
        rows.filter(|row| row.field(0) == host.as_str() && row.field(2) == crate::core::placement::READY)
            .map(|row| row.field(1).to_owned())
            .find(|original| !taken.contains(&Place { host: host.clone(), original: original.clone() }))
    }

    fn command_failback(&mut self, turn: &mut Turn, author: String, target: &ServerName) -> Result<String, String> {
        self.check_can_decide()?;
        let Some(slot) = self.member(target)?.recovery.as_ref().map(|recovery| recovery.slot) else {
            return Err(format!("{target} plays itself: there is nothing to return from"));
        };
        if *target == self.config.me {
            self.failback(author);
        } else if turn.scene.linked.contains(target) {
            self.operator.failbacks.insert(target.clone(), Failback { author, slot, next_us: 0 });
        } else {
            return Err(format!("{target} is not linked: start its daemon, then say failback again"));
        }
        Ok(format!("{target} takes its place as soon as its service is in order: see p2pdb why {target}"))
    }

    pub(super) fn keep_failbacks(&mut self, turn: &mut Turn) {
        let Self { operator, chain, .. } = self;
        operator.failbacks.retain(|target, failback| {
            let recovery = chain.roster().member(target).and_then(|member| member.recovery.as_ref());
            if recovery.is_none_or(|recovery| recovery.slot != failback.slot) {
                return false;
            }
            if turn.scene.linked.contains(target) && turn.now_us() >= failback.next_us {
                failback.next_us = turn.now_us() + TELL_US;
                turn.say(target, ManagementMessage::Failback { author: failback.author.clone() });
            }
            true
        });
    }

    fn command_confirm_dead(&mut self, turn: &mut Turn, author: &str, target: &ServerName) -> Result<String, String> {
        if self.member(target)?.recovery.is_none() {
            return Err(format!("{target} is in the group: let it be recovered first, with p2pdb recover {target}"));
        }
        self.tell_fenced(turn, target, "confirmed", author);
        Ok(format!("nobody waits for the lease of {target} any more"))
    }

    fn command_drain(&mut self, ticket: Ticket, author: String, host: ServerName) -> Result<Option<String>, String> {
        self.check_can_decide()?;
        self.member(&host)?;
        let members = self.chain.roster().members().iter();
        let plays = |member: &&Member| {
            let place = member.recovery.as_ref().and_then(|recovery| recovery.place.as_ref());
            place.is_some_and(|place| place.host == host)
        };
        let left = members.filter(plays).map(|member| member.name.clone()).collect();
        let (moving, staying) = (Vec::new(), Vec::new());
        self.operator.drains.push(Drain { ticket, author, host, left, wish: None, moving, staying });
        Ok(None)
    }

    pub(super) fn keep_drains(&mut self, turn: &mut Turn) {
        let waits = |drain: &Drain| drain.wish.is_some();
        let (waiting, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.operator.drains).into_iter().partition(waits);
        self.operator.drains = waiting;
        others.into_iter().for_each(|drain| self.drain(turn, drain));
    }

    /// Moves the next one; answers when there is none.
    fn drain(&mut self, turn: &mut Turn, mut drain: Drain) {
        while let Some(target) = drain.left.front().cloned() {
            let recovery = self.chain.roster().member(&target).and_then(|member| member.recovery.clone());
            match recovery.and_then(|recovery| Some((recovery.slot, recovery.place?))) {
                Some((slot, place)) if place.host == drain.host => {
                    let why = format!("{} drains {}", drain.author, drain.host);
                    let (to, reason) = self.placed(turn, &target, Some(&place), &why);
                    if let Some(to) = to.filter(|to| to.host != drain.host) {
                        let (wish, author) = (self.number(), drain.author.clone());
                        drain.wish = Some((wish, self.chain.decisions().len()));
                        self.operator.drains.push(drain);
                        return self.wish(turn, wish, &author, &target, Some(to), Some(slot), reason);
                    }
                    drain.staying.push(format!("no other host can take the stand-in of {target}: {reason}"));
                }
                Some((_, place)) => drain.moving.push(format!("{target} to {}", place.host)),
                // It is back.
                None => {}
            }
            drain.left.pop_front();
        }
        let moving = (!drain.moving.is_empty()).then(|| format!("moving {}", drain.moving.join(", ")));
        let result = match drain.staying.is_empty() {
            true => Ok(moving.unwrap_or_else(|| format!("{} has no stand-ins", drain.host))),
            false => Err(drain.staying.into_iter().chain(moving).collect::<Vec<_>>().join("; ")),
        };
        turn.out(ManagementOutput::Answer { ticket: drain.ticket, result });
    }

    fn check_can_decide(&self) -> Result<(), String> {
        match self.chain.standing() {
            Standing::NothingKnown => {
                Err("the group makes no decisions yet: p2pdb found lets it look after itself".into())
            }
            _ => Ok(()),
        }
    }

    fn member(&self, name: &ServerName) -> Result<Member, String> {
        let names = || {
            let names: Vec<&str> = self.chain.roster().members().iter().map(|member| member.name.as_str()).collect();
            names.join(", ")
        };
        self.chain.roster().member(name).cloned().ok_or_else(|| format!("{name} is no member; members are {}", names()))
    }
}
