//! Original servers and stand-ins as the core sees them: what a host is told to do with one, and what came of it.
//!
//! ```text
//! Suspended --Resume--> Running --Install--> Installed --TakeAddress--> Serving
//!     ^                    |                     |   ^--ReleaseAddress----|
//!     +-------Reset--------+---------------------+------------------------+
//! ```
//! `Running` and `Installed` without an address are the warm-up. Whatever goes wrong ends in `Broken` until a `Reset` succeeds.
//! Every order carries the fencing token of the decision behind it (0: warm-up, no decision yet); the driver remembers the highest
//! token per original across restarts, as long as its host knows a decision, and refuses older ones. Invariants of [`GuestRecord::judge`]: an order with token 0
//! never touches an original that a decision has put to work, and never takes an address; an order that has been
//! carried out may be repeated, and changes nothing then.

use serde::{Deserialize, Serialize};

use super::decision::{ServiceAddress, Slot};
use super::id::{Digest, ServerName};

/// Names an order until its outcome.
pub type OrderId = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    Suspended,
    Running,
    Installed,
    Serving,
    Broken,
}

/// What a driver knows of one original server of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub original: String,
    pub state: GuestState,
    /// Whom it plays or is being prepared to play.
    pub target: Option<ServerName>,
    pub token: Slot,
    /// Words for people, such as why it is broken.
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestOrder {
    pub id: OrderId,
    pub original: String,
    pub token: Slot,
    pub action: GuestAction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAction {
    Resume {
        target: ServerName,
    },
    /// Push the procedure (a bundle that this host holds) and run it; nobody reaches it at the address.
    Install {
        target: ServerName,
        procedure: Digest,
        /// Where it will answer, if that is known, for a driver that can prepare it for that.
        address: Option<ServiceAddress>,
    },
    /// Give the guest the service address and announce it (gratuitous ARP, unsolicited neighbour advertisement).
    /// It lapses by itself when it is not held again within `lease_ms`.
    TakeAddress {
        address: ServiceAddress,
        lease_ms: u64,
    },
    /// The address stays for another `lease_ms`.
    HoldAddress {
        address: ServiceAddress,
        lease_ms: u64,
    },
    ReleaseAddress {
        address: ServiceAddress,
    },
    /// Back to pristine and suspended, whatever state it is in.
    Reset,
    /// Resume one that is suspended, see that it answers, and put it back.
    Check,
}

/// What came of an order: the guest as it is afterwards, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestOutcome {
    Done(Guest),
    /// It was not done; the guest may be in any state and `Reset` is in order.
    Failed(String),
    /// The order's token is older than one the driver has seen.
    Stale {
        highest: Slot,
    },
}

/// What a driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestReport {
    /// The answer to an order; each order gets one.
    Outcome { id: OrderId, outcome: GuestOutcome },
    /// How an original is: once when the driver starts, then whenever that has changed, by an order or by itself.
    Changed(Guest),
}

/// What a host remembers of one original server. It is on disk before anything is done because of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRecord {
    pub state: GuestState,
    /// The highest token that was ever seen.
    pub highest: Slot,
    /// The token of its present use; 0 while no decision has put it to work.
    pub token: Slot,
    pub target: Option<ServerName>,
    /// The procedure that is installed.
    pub procedure: Option<Digest>,
    /// By what the driver finds it again; empty when there is none.
    pub instance: String,
    /// An order has been begun and is not finished.
    pub unfinished: bool,
    /// Words for people.
    pub note: String,
}

/// What is to become of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It is carried out.
    Do,
    /// All that it asks for is the case.
    Done,
    Stale {
        highest: Slot,
    },
    /// It does not fit the state; the text says why.
    Refused(String),
}

impl GuestRecord {
    /// One that has to be made yet.
    pub fn absent() -> Self {
        Self {
            state: GuestState::Broken,
            highest: 0,
            token: 0,
            target: None,
            procedure: None,
            instance: String::new(),
            unfinished: false,
            note: "it has not been prepared".into(),
        }
    }

    pub fn guest(&self, original: &str) -> Guest {
        Guest {
            original: original.to_owned(),
            state: self.state,
            target: self.target.clone(),
            token: self.token,
            note: self.note.clone(),
        }
    }

    /// Whether an order may be carried out in this state.
    pub fn judge(&self, token: Slot, action: &GuestAction) -> Judgement {
        use GuestState::{Broken, Installed, Running, Serving, Suspended};
        let warm_up = token == 0 && self.token == 0;
        if token < self.highest && !warm_up {
            return Judgement::Stale { highest: self.highest };
        }
        let plays = |target: &ServerName| self.target.as_ref() == Some(target);
        match (action, self.state) {
            (GuestAction::TakeAddress { .. } | GuestAction::HoldAddress { .. }, _) if token == 0 => {
                self.refused("takes no address without a decision")
            }
            (GuestAction::Reset, _) | (GuestAction::Check, Suspended) => Judgement::Do,
            (_, Broken) => self.refused("is broken; reset it"),
            (GuestAction::Resume { .. }, Suspended) => Judgement::Do,
            (GuestAction::Resume { target }, _) if plays(target) => Judgement::Done,
            (GuestAction::Install { target, .. }, Running) if plays(target) => Judgement::Do,
            (GuestAction::Install { target, procedure, .. }, Installed | Serving)
                if plays(target) && self.procedure == Some(*procedure) =>
            {
                Judgement::Done
            }
            (GuestAction::TakeAddress { .. }, Installed | Serving) => Judgement::Do,
            (GuestAction::HoldAddress { .. }, Serving) => Judgement::Do,
            (GuestAction::ReleaseAddress { .. }, Serving) => Judgement::Do,
            (GuestAction::ReleaseAddress { .. }, _) => Judgement::Done,
            _ => self.refused("is not in the state for that; reset it first"),
        }
    }

    fn refused(&self, why: &str) -> Judgement {
        let state = self.state.word();
        let role = self.target.as_ref().map_or(String::new(), |target| format!(" as {target}"));
        Judgement::Refused(format!("the original server, {state}{role}, {why}"))
    }
}

impl GuestState {
    /// As it stands in the file `Original`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Running => "running",
            Self::Installed => "installed",
            Self::Serving => "serving",
            Self::Broken => "broken",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: GuestState, highest: Slot, token: Slot) -> GuestRecord {
        let target = (state != GuestState::Suspended).then(|| ServerName::new("S2").unwrap());
        GuestRecord { state, highest, token, target, ..GuestRecord::absent() }
    }

    fn resume(target: &str) -> GuestAction {
        GuestAction::Resume { target: ServerName::new(target).unwrap() }
    }

    fn take() -> GuestAction {
        let address = ServiceAddress { ip: [10, 0, 0, 2].into(), prefix: 24 };
        GuestAction::TakeAddress { address, lease_ms: 1000 }
    }

    #[test]
    fn old_tokens_are_stale_and_equal_ones_are_not() {
        let held = record(GuestState::Installed, 7, 7);
        assert_eq!(held.judge(6, &take()), Judgement::Stale { highest: 7 });
        assert_eq!(held.judge(6, &GuestAction::Reset), Judgement::Stale { highest: 7 });
        assert_eq!(held.judge(7, &take()), Judgement::Do);
        assert_eq!(held.judge(8, &GuestAction::Reset), Judgement::Do);
    }

    #[test]
    fn a_warm_up_never_disturbs_what_a_decision_began() {
        let held = record(GuestState::Running, 7, 7);
        assert_eq!(held.judge(0, &GuestAction::Reset), Judgement::Stale { highest: 7 });
        let pristine = record(GuestState::Suspended, 7, 0);
        assert_eq!(pristine.judge(0, &resume("S2")), Judgement::Do);
        let warm = record(GuestState::Installed, 7, 0);
        assert!(matches!(warm.judge(0, &take()), Judgement::Refused(_)));
        assert_eq!(warm.judge(0, &GuestAction::Reset), Judgement::Do);
        assert_eq!(warm.judge(8, &resume("S2")), Judgement::Done);
        assert!(matches!(warm.judge(8, &resume("S3")), Judgement::Refused(_)));
    }

    #[test]
    fn broken_takes_a_reset_and_nothing_else() {
        let broken = record(GuestState::Broken, 7, 7);
        assert!(matches!(broken.judge(7, &take()), Judgement::Refused(_)));
        assert!(matches!(broken.judge(7, &GuestAction::Check), Judgement::Refused(_)));
        assert_eq!(broken.judge(7, &GuestAction::Reset), Judgement::Do);
    }
}
