//! Deliberate faults: each breaks one promise, and the simulator or the model checker has to find it, or it is worth nothing.
//!
//! Only tests set one; the daemon has no way to.

/// A fault put back on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// The journal says "durable" before anything is (breaks P1).
    SkipSync,
    /// Entries are applied and acknowledged before they are on disk (breaks P1).
    ApplyBeforeAppend,
    /// A restarted server goes on with the sequence numbers its disk remembers (breaks P2).
    ReuseSequence,
    /// Deletions are forgotten once applied (breaks P2).
    DropTombstone,
    /// A losing edit is dropped instead of being kept as a conflict (breaks P3).
    DropConflict,
    /// Entries are taken without a look at their signatures (breaks P7).
    SkipVerify,
    /// What is received is acknowledged before it is on disk (breaks P1).
    AcknowledgeEarly,
    /// A base that is named before its entry has arrived is not remembered (breaks P2 and P3).
    ForgetEarly,
    /// A promise is given without being kept on disk: after a crash it is forgotten (breaks P4 and P5).
    ForgetPromise,
    /// A slot counts its votes in the electorate that its own act would leave (breaks P4 and P5).
    ChangeElectorateWithoutQuorum,
    /// An elector that has lost its file votes as if it had never voted (breaks P4 and P5).
    VoteAfterAmnesia,
    /// An address is taken over without waiting for the end of its holder's lease (breaks P4).
    SkipLeaseWait,
    /// Who recovers whom is decided by each server alone (breaks P4 and P5).
    PlaceWithoutChain,
}

impl Flaw {
    /// Those of the files plane.
    pub const ALL: [Flaw; 8] = [
        Flaw::SkipSync,
        Flaw::ApplyBeforeAppend,
        Flaw::ReuseSequence,
        Flaw::DropTombstone,
        Flaw::DropConflict,
        Flaw::SkipVerify,
        Flaw::AcknowledgeEarly,
        Flaw::ForgetEarly,
    ];

    /// Those that whole groups must show.
    pub const OF_MANAGEMENT: [Flaw; 3] =
        [Flaw::SkipLeaseWait, Flaw::PlaceWithoutChain, Flaw::ChangeElectorateWithoutQuorum];

    /// Those of the decision chain that its model checker has to find.
    pub const OF_CHAIN: [Flaw; 3] = [Flaw::ForgetPromise, Flaw::ChangeElectorateWithoutQuorum, Flaw::VoteAfterAmnesia];
}
