//! The frozen types of version 1, and their conversions from and to the core's types.
//!
//! Nothing here may change but by adding a variant at the end of an enum: the order and the kinds of the fields are the
//! bytes. Decoded values borrow from the input; conversion into core types goes through the checking constructors.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::FormatError;
use super::guest::NOTE_BYTES_MAX;
use crate::core::clock::Timestamp;
use crate::core::diff::{Change, Diff};
use crate::core::entry::{Entry, Sealed};
use crate::core::guest::{GuestRecord, GuestState};
use crate::core::id::{Digest, EntryId, FileName, Lane, ServerName, Stream};
use crate::core::lifecycle::Lifecycle;
use crate::core::merge::{Leaf, Register};
use crate::core::oplog::Head;
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::core::version::{Vector, Version};

/// A byte string: a length and the bytes.
#[derive(Debug, Clone, Copy)]
pub struct BytesV1<'a>(pub &'a [u8]);

impl Serialize for BytesV1<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for BytesV1<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'a [u8]>::deserialize(deserializer).map(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum LaneV1 {
    Audit,
    Volatile,
}

impl From<Lane> for LaneV1 {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Audit => Self::Audit,
            Lane::Volatile => Self::Volatile,
        }
    }
}

impl From<LaneV1> for Lane {
    fn from(lane: LaneV1) -> Self {
        match lane {
            LaneV1::Audit => Self::Audit,
            LaneV1::Volatile => Self::Volatile,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum ClassV1 {
    Management,
    Transmission,
    Reception,
}

impl From<Class> for ClassV1 {
    fn from(class: Class) -> Self {
        match class {
            Class::Management => Self::Management,
            Class::Transmission => Self::Transmission,
            Class::Reception => Self::Reception,
        }
    }
}

impl From<ClassV1> for Class {
    fn from(class: ClassV1) -> Self {
        match class {
            ClassV1::Management => Self::Management,
            ClassV1::Transmission => Self::Transmission,
            ClassV1::Reception => Self::Reception,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum LifecycleV1 {
    Standby,
    Acquiring,
    Ready,
    Operating,
}

impl From<Lifecycle> for LifecycleV1 {
    fn from(lifecycle: Lifecycle) -> Self {
        match lifecycle {
            Lifecycle::Standby => Self::Standby,
            Lifecycle::Acquiring => Self::Acquiring,
            Lifecycle::Ready => Self::Ready,
            Lifecycle::Operating => Self::Operating,
        }
    }
}

impl From<LifecycleV1> for Lifecycle {
    fn from(lifecycle: LifecycleV1) -> Self {
        match lifecycle {
            LifecycleV1::Standby => Self::Standby,
            LifecycleV1::Acquiring => Self::Acquiring,
            LifecycleV1::Ready => Self::Ready,
            LifecycleV1::Operating => Self::Operating,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StreamV1<'a> {
    pub origin: &'a str,
    pub run: u32,
    pub lane: LaneV1,
}

impl<'a> From<&'a Stream> for StreamV1<'a> {
    fn from(stream: &'a Stream) -> Self {
        Self { origin: stream.origin.as_str(), run: stream.run, lane: stream.lane.into() }
    }
}

impl StreamV1<'_> {
    /// The stream; `known` itself, whose name is checked and shared, if it is that one.
    fn stream_or(&self, what: &'static str, known: Option<&Stream>) -> Result<Stream, FormatError> {
        match known.filter(|known| StreamV1::from(*known) == *self) {
            Some(known) => Ok(known.clone()),
            None => self.stream(what),
        }
    }

    pub fn stream(&self, what: &'static str) -> Result<Stream, FormatError> {
        let origin = ServerName::new(self.origin).map_err(|error| FormatError::malformed(what, error))?;
        Ok(Stream { origin, run: self.run, lane: self.lane.into() })
    }
}

/// A vector: its streams in order.
pub type VectorV1<'a> = Vec<(StreamV1<'a>, u64)>;

pub fn vector_v1(vector: &Vector) -> VectorV1<'_> {
    vector.iter().map(|(stream, seq)| (stream.into(), seq)).collect()
}

pub fn vector(what: &'static str, entries: &VectorV1<'_>) -> Result<Vector, FormatError> {
    entries.iter().map(|(stream, seq)| Ok((stream.stream(what)?, *seq))).collect()
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct VersionV1<'a> {
    pub time: u64,
    #[serde(borrow)]
    pub stream: StreamV1<'a>,
    pub seq: u64,
}

impl<'a> From<&'a Version> for VersionV1<'a> {
    fn from(version: &'a Version) -> Self {
        Self { time: version.time.0, stream: (&version.entry.stream).into(), seq: version.entry.seq }
    }
}

impl VersionV1<'_> {
    fn version(&self, what: &'static str, known: Option<&Stream>) -> Result<Version, FormatError> {
        let entry = EntryId { stream: self.stream.stream_or(what, known)?, seq: self.seq };
        Ok(Version { time: Timestamp(self.time), entry })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct RecordV1<'a>(#[serde(borrow)] pub Vec<&'a str>);

impl<'a> From<&'a Record> for RecordV1<'a> {
    fn from(record: &'a Record) -> Self {
        Self(record.fields().collect())
    }
}

impl RecordV1<'_> {
    fn record(&self, what: &'static str) -> Result<Record, FormatError> {
        Record::new(self.0.iter().copied()).map_err(|error| FormatError::malformed(what, error))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ChangeV1<'a> {
    Add(#[serde(borrow)] RecordV1<'a>),
    Del(#[serde(borrow)] RecordV1<'a>),
    Mod {
        #[serde(borrow)]
        before: RecordV1<'a>,
        #[serde(borrow)]
        after: RecordV1<'a>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct DiffV1<'a> {
    pub file: &'a str,
    pub key: &'a str,
    #[serde(borrow)]
    pub change: ChangeV1<'a>,
    #[serde(borrow)]
    pub bases: Vec<VersionV1<'a>>,
}

impl<'a> From<&'a Diff> for DiffV1<'a> {
    fn from(diff: &'a Diff) -> Self {
        let change = match &diff.change {
            Change::Add(record) => ChangeV1::Add(record.into()),
            Change::Del(record) => ChangeV1::Del(record.into()),
            Change::Mod { before, after } => ChangeV1::Mod { before: before.into(), after: after.into() },
        };
        let bases = diff.bases.iter().map(VersionV1::from).collect();
        Self { file: diff.file.as_str(), key: &diff.key, change, bases }
    }
}

impl DiffV1<'_> {
    fn diff(&self, what: &'static str, stream: &Stream, before: Option<&Diff>) -> Result<Diff, FormatError> {
        let change = match &self.change {
            ChangeV1::Add(record) => Change::Add(record.record(what)?),
            ChangeV1::Del(record) => Change::Del(record.record(what)?),
            ChangeV1::Mod { before, after } => Change::Mod { before: before.record(what)?, after: after.record(what)? },
        };
        let bases = self.bases.iter().map(|base| base.version(what, Some(stream))).collect::<Result<_, _>>()?;
        let file = match before.filter(|before| before.file.as_str() == self.file) {
            Some(before) => before.file.clone(),
            None => FileName::new(self.file).map_err(|error| FormatError::malformed(what, error))?,
        };
        Ok(Diff { file, key: self.key.to_owned(), change, bases })
    }
}

/// What an entry begins with, so that it can be told which one it is without decoding the rest.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct EntryFrontV1<'a> {
    #[serde(borrow)]
    pub stream: StreamV1<'a>,
    pub seq: u64,
    pub time: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SealedV1<'a> {
    #[serde(borrow)]
    pub front: EntryFrontV1<'a>,
    /// The two halves of the Ed25519 signature.
    pub signature: Option<([u8; 32], [u8; 32])>,
    pub class: ClassV1,
    pub author: &'a str,
    pub reason: &'a str,
    pub previous: [u8; 32],
    #[serde(borrow)]
    pub certificate: Option<BytesV1<'a>>,
    #[serde(borrow)]
    pub diffs: Vec<DiffV1<'a>>,
}

impl<'a> From<&'a Sealed> for SealedV1<'a> {
    fn from(sealed: &'a Sealed) -> Self {
        let entry = sealed.entry();
        Self {
            front: EntryFrontV1 { stream: (&entry.id.stream).into(), seq: entry.id.seq, time: entry.time.0 },
            signature: sealed.signature().map(|bytes| {
                let (mut first, mut second) = ([0; 32], [0; 32]);
                first.copy_from_slice(&bytes[..32]);
                second.copy_from_slice(&bytes[32..]);
                (first, second)
            }),
            class: entry.class.into(),
            author: &entry.author,
            reason: &entry.reason,
            previous: entry.previous.0,
            certificate: entry.certificate.as_deref().map(BytesV1),
            diffs: entry.diffs.iter().map(DiffV1::from).collect(),
        }
    }
}

impl SealedV1<'_> {
    /// The entry. Names that `before` has too are shared with it.
    pub fn sealed(&self, what: &'static str, before: Option<&Entry>) -> Result<Sealed, FormatError> {
        let stream = self.front.stream.stream_or(what, before.map(|before| &before.id.stream))?;
        let diff_before = before.and_then(|before| before.diffs.first());
        let diffs = self.diffs.iter().map(|diff| diff.diff(what, &stream, diff_before)).collect::<Result<_, _>>()?;
        let entry = Entry {
            id: EntryId { stream, seq: self.front.seq },
            time: Timestamp(self.front.time),
            class: self.class.into(),
            author: self.author.to_owned(),
            reason: self.reason.to_owned(),
            previous: Digest(self.previous),
            certificate: self.certificate.map(|bytes| Arc::from(bytes.0)),
            diffs,
        };
        let signature = self.signature.map(|(first, second)| {
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(&first);
            bytes[32..].copy_from_slice(&second);
            bytes
        });
        Ok(Sealed::new(entry, signature))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct LeafV1<'a> {
    #[serde(borrow)]
    pub version: VersionV1<'a>,
    #[serde(borrow)]
    pub value: Option<RecordV1<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct RegisterV1<'a> {
    #[serde(borrow)]
    pub leaves: Vec<LeafV1<'a>>,
    #[serde(borrow)]
    pub early: Vec<VersionV1<'a>>,
}

impl<'a> From<&'a Register> for RegisterV1<'a> {
    fn from(register: &'a Register) -> Self {
        let leaf =
            |leaf: &'a Leaf| LeafV1 { version: (&leaf.version).into(), value: leaf.value.as_ref().map(RecordV1::from) };
        Self {
            leaves: register.leaves.iter().map(leaf).collect(),
            early: register.early.iter().map(VersionV1::from).collect(),
        }
    }
}

impl RegisterV1<'_> {
    /// The register, if its parts are in the order that the core relies on.
    pub fn register(&self, what: &'static str) -> Result<Register, FormatError> {
        let mut register = Register::default();
        for LeafV1 { version, value } in &self.leaves {
            let value = value.as_ref().map(|record| record.record(what)).transpose()?;
            register.leaves.push(Leaf { version: version.version(what, None)?, value });
        }
        for version in &self.early {
            register.early.push(version.version(what, None)?);
        }
        let newest_first = register.leaves.windows(2).all(|pair| pair[0].version > pair[1].version);
        let sorted = register.early.windows(2).all(|pair| pair[0] < pair[1]);
        match newest_first && sorted {
            true => Ok(register),
            false => Err(FormatError::malformed(what, "the versions of a register are out of order")),
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct HeadV1<'a> {
    #[serde(borrow)]
    pub stream: StreamV1<'a>,
    pub seq: u64,
    pub hash: [u8; 32],
    pub time: u64,
    pub public_key: [u8; 32],
}

impl<'a> HeadV1<'a> {
    pub fn new(stream: &'a Stream, head: &Head) -> Self {
        Self { stream: stream.into(), seq: head.seq, hash: head.hash.0, time: head.time.0, public_key: head.public_key }
    }

    /// The head; its certificate is not part of this form.
    pub fn head(&self, what: &'static str) -> Result<(Stream, Head), FormatError> {
        let Self { seq, hash, time, public_key, .. } = *self;
        let head = Head { seq, hash: Digest(hash), time: Timestamp(time), public_key, certificate: None };
        Ok((self.stream.stream(what)?, head))
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum GuestStateV1 {
    Suspended,
    Running,
    Installed,
    Serving,
    Broken,
}

impl From<GuestState> for GuestStateV1 {
    fn from(state: GuestState) -> Self {
        match state {
            GuestState::Suspended => Self::Suspended,
            GuestState::Running => Self::Running,
            GuestState::Installed => Self::Installed,
            GuestState::Serving => Self::Serving,
            GuestState::Broken => Self::Broken,
        }
    }
}

impl From<GuestStateV1> for GuestState {
    fn from(state: GuestStateV1) -> Self {
        match state {
            GuestStateV1::Suspended => Self::Suspended,
            GuestStateV1::Running => Self::Running,
            GuestStateV1::Installed => Self::Installed,
            GuestStateV1::Serving => Self::Serving,
            GuestStateV1::Broken => Self::Broken,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct GuestRecordV1<'a> {
    pub state: GuestStateV1,
    pub highest: u64,
    pub token: u64,
    pub target: Option<&'a str>,
    pub procedure: Option<[u8; 32]>,
    pub instance: &'a str,
    pub unfinished: bool,
    pub note: &'a str,
}

impl<'a> From<&'a GuestRecord> for GuestRecordV1<'a> {
    fn from(record: &'a GuestRecord) -> Self {
        Self {
            state: record.state.into(),
            highest: record.highest,
            token: record.token,
            target: record.target.as_ref().map(ServerName::as_str),
            procedure: record.procedure.map(|digest| digest.0),
            instance: &record.instance,
            unfinished: record.unfinished,
            note: &record.note[..record.note.floor_char_boundary(NOTE_BYTES_MAX)],
        }
    }
}

impl GuestRecordV1<'_> {
    pub fn record(&self, what: &'static str) -> Result<GuestRecord, FormatError> {
        let target = self.target.map(ServerName::new).transpose();
        Ok(GuestRecord {
            state: self.state.into(),
            highest: self.highest,
            token: self.token,
            target: target.map_err(|error| FormatError::malformed(what, error))?,
            procedure: self.procedure.map(Digest),
            instance: self.instance.to_owned(),
            unfinished: self.unfinished,
            note: self.note.to_owned(),
        })
    }
}
