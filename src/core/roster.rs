//! The group as the decisions leave it: a pure function of the decided chain.
//!
//! Invariants: every server that has decided the same slots has the same roster. An act that does not apply where it was
//! decided changes nothing. At least one server stays an elector. The rules of [`Roster::obstacle`] are part of what old
//! chains mean: they may not change.

use thiserror::Error;

use super::decision::{Act, Decision, Incarnation, Place, Slot};
use super::id::ServerName;
use super::quorum::{Elector, Electorate};

/// A server or witness that has been admitted and not removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    pub name: ServerName,
    pub incarnation: Incarnation,
    pub witness: bool,
    /// Out of the group: somebody plays it, or is to.
    pub recovery: Option<Recovery>,
}

/// Who plays a failed server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    /// The decision, and so the fencing token.
    pub slot: Slot,
    /// `None`: no host was free.
    pub place: Option<Place>,
    pub manager: ServerName,
}

/// Why an act does not apply any more, or never did.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Obstacle {
    #[error("the group has been founded already")]
    Founded,
    #[error("{0} is not in the group")]
    Unknown(ServerName),
    #[error("{0} is a witness")]
    Witness(ServerName),
    #[error("{0} is a server, not a witness")]
    Server(ServerName),
    #[error("{0} is in the group already")]
    Present(ServerName),
    #[error("{target} was recovered by decision {slot}")]
    Recovered { target: ServerName, slot: Slot },
    #[error("{0} plays itself: there is nothing to return from, and no recovery to replace")]
    PlaysItself(ServerName),
    #[error("{0} is out of the group itself")]
    Out(ServerName),
    #[error("original server {} of {} already plays {target}", place.original, place.host)]
    PlaceTaken { place: Place, target: ServerName },
    #[error("decision {slot} placed a stand-in on {host} meanwhile: choose again")]
    HostTaken { host: ServerName, slot: Slot },
    #[error("no server would be left to decide")]
    LastServer,
}

/// All members, in the order in which they were admitted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Roster {
    members: Vec<Member>,
}

impl Roster {
    pub fn of<'a>(decisions: impl IntoIterator<Item = &'a Decision>) -> Self {
        let mut roster = Self::default();
        decisions.into_iter().for_each(|decision| roster.apply(decision));
        roster
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn member(&self, name: &ServerName) -> Option<&Member> {
        self.members.iter().find(|member| member.name == *name)
    }

    /// Who decides the next slot.
    pub fn electorate(&self) -> Electorate {
        Electorate::new(self.members.iter().filter(|member| member.recovery.is_none()).map(|member| Elector {
            name: member.name.clone(),
            incarnation: member.incarnation,
            witness: member.witness,
        }))
    }

    /// What keeps an act from changing anything, if something does.
    pub fn obstacle(&self, act: &Act) -> Option<Obstacle> {
        self.check(act).err()
    }

    pub fn apply(&mut self, decision: &Decision) {
        if self.check(&decision.act).is_err() {
            return;
        }
        match &decision.act {
            Act::Found { founder: name, incarnation } | Act::Admit { server: name, incarnation } => {
                self.admit(name, *incarnation, false);
            }
            Act::Witness { name, incarnation } => self.admit(name, *incarnation, true),
            Act::Remove { server } => self.members.retain(|member| member.name != *server),
            Act::Recover { target, place, manager, .. } => {
                let recovery = Recovery { slot: decision.slot, place: place.clone(), manager: manager.clone() };
                self.update(target, |member| member.recovery = Some(recovery));
            }
            Act::Return { target, incarnation } => self.update(target, |member| {
                member.recovery = None;
                member.incarnation = *incarnation;
            }),
        }
    }

    fn check(&self, act: &Act) -> Result<(), Obstacle> {
        match act {
            Act::Found { .. } if self.members.is_empty() => Ok(()),
            Act::Found { .. } => Err(Obstacle::Founded),
            Act::Admit { server, incarnation } => self.check_admission(server, *incarnation, false),
            Act::Witness { name, incarnation } => self.check_admission(name, *incarnation, true),
            Act::Remove { server } => {
                self.known(server)?;
                self.check_rest(server)
            }
            Act::Recover { target, place, manager, replaces } => {
                self.check_recovery(target, *replaces)?;
                self.check_manages(target, manager)?;
                place.as_ref().map_or(Ok(()), |place| self.check_place(target, place))
            }
            Act::Return { target, .. } => match self.known(target)?.recovery {
                Some(_) => Ok(()),
                None => Err(Obstacle::PlaysItself(target.clone())),
            },
        }
    }

    fn check_admission(&self, name: &ServerName, incarnation: Incarnation, witness: bool) -> Result<(), Obstacle> {
        let Some(member) = self.member(name) else { return Ok(()) };
        match &member.recovery {
            Some(recovery) => Err(Obstacle::Recovered { target: name.clone(), slot: recovery.slot }),
            None if member.witness && !witness => Err(Obstacle::Witness(name.clone())),
            None if witness && !member.witness => Err(Obstacle::Server(name.clone())),
            None if member.incarnation == incarnation => Err(Obstacle::Present(name.clone())),
            None => Ok(()),
        }
    }

    fn check_recovery(&self, target: &ServerName, replaces: Option<Slot>) -> Result<(), Obstacle> {
        let member = self.known(target)?;
        if member.witness {
            return Err(Obstacle::Witness(target.clone()));
        }
        match (&member.recovery, replaces) {
            (None, None) => self.check_rest(target),
            (Some(stands), Some(slot)) if stands.slot == slot => Ok(()),
            (Some(stands), _) => Err(Obstacle::Recovered { target: target.clone(), slot: stands.slot }),
            (None, Some(_)) => Err(Obstacle::PlaysItself(target.clone())),
        }
    }

    fn check_place(&self, target: &ServerName, place: &Place) -> Result<(), Obstacle> {
        self.check_manages(target, &place.host)?;
        let plays = |member: &&Member| {
            let taken = member.recovery.as_ref().and_then(|recovery| recovery.place.as_ref()) == Some(place);
            taken && member.name != *target
        };
        match self.members.iter().find(plays) {
            Some(other) => Err(Obstacle::PlaceTaken { place: place.clone(), target: other.name.clone() }),
            None => Ok(()),
        }
    }

    /// A manager or host is a server that is in the group and is not the one that failed.
    fn check_manages(&self, target: &ServerName, name: &ServerName) -> Result<(), Obstacle> {
        let member = self.known(name)?;
        match member.witness {
            true => Err(Obstacle::Witness(name.clone())),
            false if member.recovery.is_some() || name == target => Err(Obstacle::Out(name.clone())),
            false => Ok(()),
        }
    }

    /// Whether a server stays an elector without this one.
    fn check_rest(&self, without: &ServerName) -> Result<(), Obstacle> {
        let stays = |member: &Member| !member.witness && member.recovery.is_none() && member.name != *without;
        if self.members.iter().any(stays) { Ok(()) } else { Err(Obstacle::LastServer) }
    }

    fn known(&self, name: &ServerName) -> Result<&Member, Obstacle> {
        self.member(name).ok_or_else(|| Obstacle::Unknown(name.clone()))
    }

    fn admit(&mut self, name: &ServerName, incarnation: Incarnation, witness: bool) {
        match self.members.iter_mut().find(|member| member.name == *name) {
            Some(member) => member.incarnation = incarnation,
            None => self.members.push(Member { name: name.clone(), incarnation, witness, recovery: None }),
        }
    }

    fn update(&mut self, name: &ServerName, change: impl FnOnce(&mut Member)) {
        let member = self.members.iter_mut().find(|member| member.name == *name);
        change(member.expect("an act that was checked names a member"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServerName {
        ServerName::new(name).unwrap()
    }

    fn admit(server: &str, incarnation: u64) -> Act {
        Act::Admit { server: name(server), incarnation: Incarnation(incarnation) }
    }

    fn recover(target: &str, host: &str, replaces: Option<Slot>) -> Act {
        let place = Some(Place { host: name(host), original: "a".into() });
        Act::Recover { target: name(target), place, manager: name("S1"), replaces }
    }

    fn roster(acts: &[Act]) -> Roster {
        let found = Act::Found { founder: name("S1"), incarnation: Incarnation(1) };
        let decisions: Vec<Decision> =
            [found].iter().chain(acts).cloned().zip(1..).map(|(act, slot)| decision(slot, act)).collect();
        Roster::of(&decisions)
    }

    fn decision(slot: Slot, act: Act) -> Decision {
        Decision { slot, by: name("S1"), wall_ms: 0, author: String::new(), reason: String::new(), act }
    }

    fn electors(roster: &Roster) -> Vec<String> {
        roster.electorate().names().map(ToString::to_string).collect()
    }

    #[test]
    fn a_recovered_server_leaves_the_electorate_and_comes_back_to_its_place() {
        let mut roster = roster(&[admit("S2", 1), admit("S3", 1), recover("S2", "S3", None)]);
        assert_eq!(electors(&roster), ["S1", "S3"]);
        let back = Act::Return { target: name("S2"), incarnation: Incarnation(2) };
        roster.apply(&decision(5, back.clone()));
        assert_eq!(electors(&roster), ["S1", "S2", "S3"]);
        assert!(roster.electorate().admits(&name("S2"), Incarnation(2)));
        assert_eq!(roster.obstacle(&back), Some(Obstacle::PlaysItself(name("S2"))));
    }

    #[test]
    fn a_recovery_is_decided_once_and_replaced_only_by_name() {
        let roster = roster(&[admit("S2", 1), admit("S3", 1), admit("S4", 1), recover("S2", "S3", None)]);
        let again = Obstacle::Recovered { target: name("S2"), slot: 5 };
        assert_eq!(roster.obstacle(&recover("S2", "S4", None)), Some(again.clone()));
        assert_eq!(roster.obstacle(&recover("S2", "S4", Some(4))), Some(again));
        assert_eq!(roster.obstacle(&recover("S2", "S4", Some(5))), None);
        let taken = Place { host: name("S3"), original: "a".into() };
        let taken = Obstacle::PlaceTaken { place: taken, target: name("S2") };
        assert_eq!(roster.obstacle(&recover("S4", "S3", None)), Some(taken));
        assert_eq!(roster.obstacle(&recover("S4", "S2", None)), Some(Obstacle::Out(name("S2"))));
    }

    #[test]
    fn the_last_server_stays() {
        let witness = Act::Witness { name: name("W"), incarnation: Incarnation(1) };
        let mut roster = roster(&[admit("S2", 1), witness, recover("S2", "S1", None)]);
        let remove = Act::Remove { server: name("S1") };
        assert_eq!(roster.obstacle(&remove), Some(Obstacle::LastServer));
        roster.apply(&decision(5, remove));
        assert_eq!(electors(&roster), ["S1", "W"]);
        assert_eq!(roster.obstacle(&recover("W", "S1", None)), Some(Obstacle::Witness(name("W"))));
    }

    #[test]
    fn a_lost_file_is_another_incarnation() {
        let mut roster = roster(&[admit("S2", 7)]);
        assert_eq!(roster.obstacle(&admit("S2", 7)), Some(Obstacle::Present(name("S2"))));
        roster.apply(&decision(3, admit("S2", 8)));
        assert!(!roster.electorate().admits(&name("S2"), Incarnation(7)));
        assert_eq!(electors(&roster), ["S1", "S2"]);
    }
}
