//! Decisions as bytes: the records of `Decision.dat` and the messages of the decision chain.
//!
//! A file is a header and frames, as a segment of `Diff.dat` is; the payload of a frame is what was written together.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::entry::ENTRY_ENCODED_MAX;
use super::segment::{End, Scan, append_payload, decode_header, encode_header, scan_payloads};
use super::{FormatError, decode_all, encode_into, versioned};
use crate::core::chain::{Ballot, ChainMessage, ChainRecord, DECISIONS_MAX, Vote};
use crate::core::decision::{Act, Decision, Incarnation, Place, Slot, check_texts};
use crate::core::id::{ClusterId, ServerName};

/// Bytes of the header of `Decision.dat`.
pub const DECISION_HEADER_BYTES: usize = 46;
/// Longest encoding of records that are written together, in bytes.
pub const RECORDS_ENCODED_MAX: usize = ENTRY_ENCODED_MAX;
/// Rounds above this are refused: nobody gets there by counting, and the chain takes no leaps.
const ROUND_MAX: u64 = 1 << 48;

const MAGIC: &[u8; 8] = b"P2PDDEC\n";
const VERSION: u8 = 1;
const WHAT: &str = "a decision";

/// The header of `Decision.dat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecisionHeader {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    /// When the file was first made, Unix time in milliseconds.
    pub created_ms: u64,
}

/// Encodes the header of `Decision.dat`.
pub fn encode_decision_header(header: &DecisionHeader) -> [u8; DECISION_HEADER_BYTES] {
    encode_header(MAGIC, header.cluster, [header.incarnation.0, header.created_ms])
}

/// Decodes the header at the front of `Decision.dat`.
pub fn decode_decision_header(bytes: &[u8]) -> Result<DecisionHeader, FormatError> {
    let (cluster, [incarnation, created_ms]) =
        decode_header::<DECISION_HEADER_BYTES, 2>("the header of Decision.dat", MAGIC, bytes)?;
    Ok(DecisionHeader { cluster, incarnation: Incarnation(incarnation), created_ms })
}

/// Appends records that are written together, as one frame: a crash leaves all of them or none. They stay within
/// [`RECORDS_ENCODED_MAX`] if they are no more than the decisions of one message and two others.
pub fn append_records(records: &[ChainRecord], out: &mut Vec<u8>) {
    append_payload(out, |out| {
        out.push(VERSION);
        encode_into(&records.iter().map(RecordV1::from).collect::<Vec<_>>(), out);
    });
}

/// Decodes the payload of a frame.
pub fn decode_records(bytes: &[u8]) -> Result<Vec<ChainRecord>, FormatError> {
    let records = decode_all::<Vec<RecordV1>, RECORDS_ENCODED_MAX>(WHAT, versioned(WHAT, bytes)?)?;
    records.iter().map(RecordV1::record).collect()
}

/// The records of a file behind its header, and how they end.
pub fn scan_records(bytes: &[u8]) -> Result<(Vec<ChainRecord>, End), FormatError> {
    let Scan { frames, end } = scan_payloads(bytes, DECISION_HEADER_BYTES, |payload| decode_records(payload).is_ok());
    let records = frames.iter().map(|frame| decode_records(frame.payload(bytes))).collect::<Result<Vec<_>, _>>()?;
    Ok((records.concat(), end))
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PlaceV1<'a> {
    host: &'a str,
    original: &'a str,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ActV1<'a> {
    Found {
        founder: &'a str,
        incarnation: u64,
    },
    Admit {
        server: &'a str,
        incarnation: u64,
    },
    Remove {
        server: &'a str,
    },
    Witness {
        name: &'a str,
        incarnation: u64,
    },
    Recover {
        target: &'a str,
        #[serde(borrow)]
        place: Option<PlaceV1<'a>>,
        manager: &'a str,
        replaces: Option<u64>,
    },
    Return {
        target: &'a str,
        incarnation: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DecisionV1<'a> {
    slot: u64,
    by: &'a str,
    wall_ms: u64,
    author: &'a str,
    reason: &'a str,
    #[serde(borrow)]
    act: ActV1<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BallotV1<'a> {
    round: u64,
    proposer: &'a str,
    incarnation: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct VoteV1<'a> {
    #[serde(borrow)]
    ballot: BallotV1<'a>,
    #[serde(borrow)]
    decision: DecisionV1<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
enum RecordV1<'a> {
    Promised {
        slot: u64,
        #[serde(borrow)]
        ballot: BallotV1<'a>,
    },
    Accepted(#[serde(borrow)] VoteV1<'a>),
    Decided(#[serde(borrow)] DecisionV1<'a>),
}

/// A message of the chain, inside a message between servers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChainMessageV1<'a> {
    Prepare {
        slot: u64,
        #[serde(borrow)]
        ballot: BallotV1<'a>,
    },
    Promise {
        slot: u64,
        #[serde(borrow)]
        ballot: BallotV1<'a>,
        #[serde(borrow)]
        accepted: Option<VoteV1<'a>>,
    },
    Accept(#[serde(borrow)] VoteV1<'a>),
    Accepted {
        slot: u64,
        #[serde(borrow)]
        ballot: BallotV1<'a>,
    },
    Refused {
        slot: u64,
        #[serde(borrow)]
        ballot: BallotV1<'a>,
        #[serde(borrow)]
        promised: BallotV1<'a>,
    },
    Abstained {
        slot: u64,
        #[serde(borrow)]
        ballot: BallotV1<'a>,
    },
    Decisions(#[serde(borrow)] Vec<DecisionV1<'a>>),
    WantDecisions {
        from: u64,
    },
}

fn name(text: &str) -> Result<ServerName, FormatError> {
    ServerName::new(text).map_err(|error| FormatError::malformed(WHAT, error))
}

impl<'a> From<&'a Act> for ActV1<'a> {
    fn from(act: &'a Act) -> Self {
        match act {
            Act::Found { founder, incarnation } => {
                Self::Found { founder: founder.as_str(), incarnation: incarnation.0 }
            }
            Act::Admit { server, incarnation } => Self::Admit { server: server.as_str(), incarnation: incarnation.0 },
            Act::Remove { server } => Self::Remove { server: server.as_str() },
            Act::Witness { name, incarnation } => Self::Witness { name: name.as_str(), incarnation: incarnation.0 },
            Act::Recover { target, place, manager, replaces } => Self::Recover {
                target: target.as_str(),
                place: place.as_ref().map(|place| PlaceV1 { host: place.host.as_str(), original: &place.original }),
                manager: manager.as_str(),
                replaces: *replaces,
            },
            Act::Return { target, incarnation } => Self::Return { target: target.as_str(), incarnation: incarnation.0 },
        }
    }
}

impl ActV1<'_> {
    fn act(&self) -> Result<Act, FormatError> {
        Ok(match self {
            Self::Found { founder, incarnation } => {
                Act::Found { founder: name(founder)?, incarnation: Incarnation(*incarnation) }
            }
            Self::Admit { server, incarnation } => {
                Act::Admit { server: name(server)?, incarnation: Incarnation(*incarnation) }
            }
            Self::Remove { server } => Act::Remove { server: name(server)? },
            Self::Witness { name: witness, incarnation } => {
                Act::Witness { name: name(witness)?, incarnation: Incarnation(*incarnation) }
            }
            Self::Recover { target, place, manager, replaces } => {
                let place = place.as_ref().map(|PlaceV1 { host, original }| {
                    Ok::<_, FormatError>(Place { host: name(host)?, original: (*original).to_owned() })
                });
                let (target, manager) = (name(target)?, name(manager)?);
                Act::Recover { target, place: place.transpose()?, manager, replaces: *replaces }
            }
            Self::Return { target, incarnation } => {
                Act::Return { target: name(target)?, incarnation: Incarnation(*incarnation) }
            }
        })
    }
}

impl<'a> From<&'a Decision> for DecisionV1<'a> {
    fn from(decision: &'a Decision) -> Self {
        Self {
            slot: decision.slot,
            by: decision.by.as_str(),
            wall_ms: decision.wall_ms,
            author: &decision.author,
            reason: &decision.reason,
            act: (&decision.act).into(),
        }
    }
}

impl DecisionV1<'_> {
    fn decision(&self) -> Result<Arc<Decision>, FormatError> {
        let act = self.act.act()?;
        check_texts(self.author, self.reason, &act).map_err(|error| FormatError::malformed(WHAT, error))?;
        let (author, reason) = (self.author.to_owned(), self.reason.to_owned());
        Ok(Arc::new(Decision {
            slot: slot(self.slot)?,
            by: name(self.by)?,
            wall_ms: self.wall_ms,
            author,
            reason,
            act,
        }))
    }
}

fn slot(slot: Slot) -> Result<Slot, FormatError> {
    match slot {
        1..=ROUND_MAX => Ok(slot),
        _ => Err(FormatError::malformed(WHAT, format!("there is no slot {slot}"))),
    }
}

impl<'a> From<&'a Ballot> for BallotV1<'a> {
    fn from(ballot: &'a Ballot) -> Self {
        Self { round: ballot.round, proposer: ballot.proposer.as_str(), incarnation: ballot.incarnation.0 }
    }
}

impl BallotV1<'_> {
    fn ballot(&self) -> Result<Ballot, FormatError> {
        if self.round > ROUND_MAX {
            return Err(FormatError::malformed(WHAT, format!("there is no round {}", self.round)));
        }
        let incarnation = Incarnation(self.incarnation);
        Ok(Ballot { round: self.round, proposer: name(self.proposer)?, incarnation })
    }
}

fn vote_v1<'a>(ballot: &'a Ballot, decision: &'a Decision) -> VoteV1<'a> {
    VoteV1 { ballot: ballot.into(), decision: decision.into() }
}

impl VoteV1<'_> {
    fn vote(&self) -> Result<Vote, FormatError> {
        Ok((self.ballot.ballot()?, self.decision.decision()?))
    }
}

impl<'a> From<&'a ChainRecord> for RecordV1<'a> {
    fn from(record: &'a ChainRecord) -> Self {
        match record {
            ChainRecord::Promised { slot, ballot } => Self::Promised { slot: *slot, ballot: ballot.into() },
            ChainRecord::Accepted { ballot, decision } => Self::Accepted(vote_v1(ballot, decision)),
            ChainRecord::Decided(decision) => Self::Decided(decision.as_ref().into()),
        }
    }
}

impl RecordV1<'_> {
    fn record(&self) -> Result<ChainRecord, FormatError> {
        Ok(match self {
            Self::Promised { slot: number, ballot } => {
                ChainRecord::Promised { slot: slot(*number)?, ballot: ballot.ballot()? }
            }
            Self::Accepted(vote) => {
                let (ballot, decision) = vote.vote()?;
                ChainRecord::Accepted { ballot, decision }
            }
            Self::Decided(decision) => ChainRecord::Decided(decision.decision()?),
        })
    }
}

impl<'a> From<&'a ChainMessage> for ChainMessageV1<'a> {
    fn from(message: &'a ChainMessage) -> Self {
        match message {
            ChainMessage::Prepare { slot, ballot } => Self::Prepare { slot: *slot, ballot: ballot.into() },
            ChainMessage::Promise { slot, ballot, accepted } => Self::Promise {
                slot: *slot,
                ballot: ballot.into(),
                accepted: accepted.as_ref().map(|(ballot, decision)| vote_v1(ballot, decision)),
            },
            ChainMessage::Accept { ballot, decision } => Self::Accept(vote_v1(ballot, decision)),
            ChainMessage::Accepted { slot, ballot } => Self::Accepted { slot: *slot, ballot: ballot.into() },
            ChainMessage::Refused { slot, ballot, promised } => {
                Self::Refused { slot: *slot, ballot: ballot.into(), promised: promised.into() }
            }
            ChainMessage::Abstained { slot, ballot } => Self::Abstained { slot: *slot, ballot: ballot.into() },
            ChainMessage::Decisions(decisions) => {
                Self::Decisions(decisions.iter().map(|decision| decision.as_ref().into()).collect())
            }
            ChainMessage::WantDecisions { from } => Self::WantDecisions { from: *from },
        }
    }
}

impl ChainMessageV1<'_> {
    pub(super) fn message(&self) -> Result<ChainMessage, FormatError> {
        Ok(match self {
            Self::Prepare { slot: number, ballot } => {
                ChainMessage::Prepare { slot: slot(*number)?, ballot: ballot.ballot()? }
            }
            Self::Promise { slot: number, ballot, accepted } => ChainMessage::Promise {
                slot: slot(*number)?,
                ballot: ballot.ballot()?,
                accepted: accepted.as_ref().map(VoteV1::vote).transpose()?,
            },
            Self::Accept(vote) => {
                let (ballot, decision) = vote.vote()?;
                ChainMessage::Accept { ballot, decision }
            }
            Self::Accepted { slot: number, ballot } => {
                ChainMessage::Accepted { slot: slot(*number)?, ballot: ballot.ballot()? }
            }
            Self::Refused { slot: number, ballot, promised } => {
                ChainMessage::Refused { slot: slot(*number)?, ballot: ballot.ballot()?, promised: promised.ballot()? }
            }
            Self::Abstained { slot: number, ballot } => {
                ChainMessage::Abstained { slot: slot(*number)?, ballot: ballot.ballot()? }
            }
            Self::Decisions(decisions) if decisions.len() > DECISIONS_MAX => {
                return Err(FormatError::TooLarge { what: WHAT, bytes: decisions.len(), limit: DECISIONS_MAX });
            }
            Self::Decisions(decisions) => {
                ChainMessage::Decisions(decisions.iter().map(DecisionV1::decision).collect::<Result<_, _>>()?)
            }
            Self::WantDecisions { from } => ChainMessage::WantDecisions { from: slot(*from)? },
        })
    }
}
