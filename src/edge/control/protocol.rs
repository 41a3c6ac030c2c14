//! The requests and responses of the control socket. Variants and fields are only ever added.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::PART_BYTES_MAX;
use super::status::{Status, as_text};
use crate::core::diff::Change;
use crate::core::id::{Digest, EntryId, FileName, ServerName};
use crate::core::io::{Committed, Edit, Refusal, Wait};
use crate::core::management::{ManagementReport, OperatorCommand};
use crate::core::merge::{File, Files, Leaf, Register};
use crate::core::record::Record;
use crate::core::schema::file;

/// What a client can ask. One that changes something is refused to a peer that is not an operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered by `Response::Status`.
    Status,
    /// Answered by `Response::Files`.
    FilesList,
    /// A whole file as it is at one moment. Answered by a stream of `Response::File`, one at least.
    FileRead { file: FileName },
    /// One atomic transaction. Answered by `Response::Edited` or `Response::Refused`.
    FileEdit(FileEdit),
    /// The open conflicts of one file or of all. Answered by a stream of `Response::Conflicts`, one at least.
    Conflicts { file: Option<FileName> },
    /// Settles the conflict of one record. Answered by `Response::Edited` or `Response::Refused`.
    Resolve(Resolve),
    /// The next part of a bundle; parts come in order, each begins where the one before ended, the first at 0 drops
    /// what there was of this digest. Answered by `Response::BundleReceived`, after the last part by
    /// `Response::Edited` or `Response::Refused`.
    BundlePut(BundlePart),
    /// A part of a bundle from `offset`. Answered by `Response::BundlePart`.
    BundleGet { name: String, offset: u64 },
    /// Answered by `Response::Bundles`.
    BundleList,
    /// A one-time token with which a server joins. Answered by `Response::Token`.
    Token { life_s: u64 },
    /// Takes a server out of the cluster and revokes its certificates. Answered by `Response::Edited` or `Refused`.
    MemberRemove { name: ServerName, on_behalf_of: Option<String>, reason: String },
    /// A new key and certificate for this server, without a restart. Answered by `Response::Certificate`.
    CertificateRotate,
    /// Answered by `Response::Certificate`.
    CertificateShow,
    /// Answered by `Response::Stopping`; the daemon then ends as on SIGTERM.
    Shutdown,
    /// What becomes readable here from now on, until the client goes; no files: all of them. Answered by `Response::Watching`,
    /// then by `Response::Change`, each with `more`.
    Watch { files: Vec<FileName> },
    /// The original servers of all hosts. Answered by `Response::Originals`.
    Originals,
    /// Makes those of this host anew that are broken and free. Answered by `Response::Originals`.
    OriginalsPrepare,
    /// Tries every original of this host that is suspended. Answered by `Response::OriginalsChecked`.
    OriginalsCheck,
    /// Runs a server's procedure in an original of this host, without the address. Answered by `Response::ProcedureTested`.
    ProcedureTest { server: ServerName },
    /// What this server knows of watching, deciding and recovering. Answered by `Response::Management`.
    Management,
    /// What an operator wants of management. Answered by `Response::Operated` or `Response::Failed`.
    Operator { command: OperatorCommand, on_behalf_of: Option<String> },
}

impl Request {
    /// Whether only an operator may ask this.
    pub fn needs_operator(&self) -> bool {
        match self {
            Request::Status
            | Request::FilesList
            | Request::FileRead { .. }
            | Request::Conflicts { .. }
            | Request::BundleGet { .. }
            | Request::BundleList
            | Request::CertificateShow
            | Request::Watch { .. }
            | Request::Originals
            | Request::Management => false,
            Request::FileEdit(_)
            | Request::Resolve(_)
            | Request::BundlePut(_)
            | Request::Token { .. }
            | Request::MemberRemove { .. }
            | Request::CertificateRotate
            | Request::Shutdown
            | Request::OriginalsPrepare
            | Request::OriginalsCheck
            | Request::ProcedureTest { .. }
            | Request::Operator { .. } => true,
        }
    }

    /// Whether the answer is a stream.
    pub fn is_streamed(&self) -> bool {
        matches!(self, Request::FileRead { .. } | Request::Conflicts { .. } | Request::Watch { .. })
    }

    /// What is asked, for a message to a person.
    pub fn describe(&self) -> String {
        match self {
            Request::Status => "show the status".into(),
            Request::FilesList => "list the files".into(),
            Request::FileRead { file } => format!("read {file}"),
            Request::FileEdit(edit) => match edit.edits.as_slice() {
                [one] => format!("change {}", one.file),
                many => format!("make {} changes", many.len()),
            },
            Request::Conflicts { .. } => "list conflicts".into(),
            Request::Resolve(resolve) => format!("settle a conflict of {}", resolve.file),
            Request::BundlePut(part) => format!("put the bundle '{}'", part.name),
            Request::BundleGet { name, .. } => format!("get the bundle '{name}'"),
            Request::BundleList => "list the bundles".into(),
            Request::Token { .. } => "make a join token".into(),
            Request::MemberRemove { name, .. } => format!("remove {name} from the cluster"),
            Request::CertificateRotate => "rotate the certificate".into(),
            Request::CertificateShow => "show the certificate".into(),
            Request::Shutdown => "stop the daemon".into(),
            Request::Watch { .. } => "watch the files".into(),
            Request::Originals => "list the original servers".into(),
            Request::OriginalsPrepare => "prepare the original servers".into(),
            Request::OriginalsCheck => "check the original servers".into(),
            Request::ProcedureTest { server } => format!("test the procedure of {server}"),
            Request::Management => "show what is watched and recovered".into(),
            Request::Operator { command, .. } => command.describe(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileEdit {
    pub edits: Vec<Edit>,
    /// Whom the peer says it acts for; the author is made from this and the peer's user, see `Peer::author`.
    pub on_behalf_of: Option<String>,
    pub reason: String,
    pub wait: Wait,
    /// How long to wait for `wait` to be reached. The edit stands even if it is not.
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolve {
    pub file: FileName,
    pub key: String,
    pub keep: Keep,
    pub on_behalf_of: Option<String>,
    pub reason: String,
    pub wait: Wait,
    pub timeout_ms: u64,
}

/// Which value a settled record gets.
impl Resolve {
    /// The transaction that settles the conflict as asked: it builds on every leaf of the register.
    ///
    /// # Errors
    /// What is asked for is not there (any more), for a person.
    pub fn edit(&self, register: Option<&Register>) -> Result<Edit, String> {
        let gone = || format!("{} has no conflict at '{}' (any more); list them again", self.file, self.key);
        let register = register.filter(|register| register.conflicts().next().is_some()).ok_or_else(gone)?;
        let conflict = Conflict::of(&self.file, &self.key, register);
        let held = register.value();
        let wanted = match &self.keep {
            Keep::Winner => held.cloned(),
            Keep::Record(record) => Some(record.clone()),
            Keep::Leaf { index, entry } => {
                let leaf = conflict.leaves.get(*index).filter(|leaf| leaf.entry == *entry).ok_or_else(gone)?;
                leaf.record.clone()
            }
        };
        let change = match (held, wanted) {
            (Some(before), Some(after)) => Change::Mod { before: before.clone(), after },
            (Some(before), None) => Change::Del(before.clone()),
            (None, Some(after)) => Change::Add(after),
            // Gone it is, and gone it shall stay: any of the records that lost says which one is meant.
            (None, None) => {
                let lost = conflict.leaves.iter().find_map(|leaf| leaf.record.clone()).ok_or_else(gone)?;
                Change::Del(lost)
            }
        };
        Ok(Edit { file: self.file.clone(), change, bases: Some(register.newest_leaves()) })
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The one that it has.
    Winner,
    /// The one with this index in `Conflict::leaves`; 0 is the winner.
    Leaf {
        index: usize,
        /// The leaf's entry as it was shown: the list may have changed since.
        #[serde(with = "as_text")]
        entry: EntryId,
    },
    /// A new one.
    Record(Record),
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Files(Vec<FileSummary>),
    File(FilePart),
    Edited(Edited),
    /// The transaction was not taken; nothing has changed.
    Refused(Refusal),
    Conflicts(Vec<Conflict>),
    /// So many bytes of the bundle are here now.
    BundleReceived {
        bytes: u64,
    },
    BundlePart(BundlePart),
    Bundles(Vec<Bundle>),
    Token(Token),
    Certificate(CertificateView),
    Stopping,
    /// From here on every change is told.
    Watching,
    Change(FileChange),
    /// The peer may not ask this. `who` and `what` are for people.
    Denied {
        who: String,
        what: String,
        why: String,
    },
    /// The request could not be carried out; `hint` says what to do, and may be empty.
    Failed {
        what: String,
        hint: String,
    },
    Originals(Vec<OriginalView>),
    OriginalsChecked(Vec<OriginalCheck>),
    ProcedureTested(ProcedureTest),
    Management(Box<ManagementReport>),
    /// It is done, or under way: in words.
    Operated {
        what: String,
    },
}

impl Response {
    pub fn failed(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Response::Failed { what: what.into(), hint: hint.into() }
    }
}

/// An edit that is on disk here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Edited {
    #[serde(with = "as_text")]
    pub entry: EntryId,
    /// The level that was reached in time.
    pub reached: Wait,
    pub asked: Wait,
    /// Members that have not acknowledged yet.
    pub lacking: Vec<ServerName>,
}

impl FileSummary {
    pub fn of(name: &FileName, held: &File) -> Self {
        let conflicts = held.registers().filter(|(_, register)| register.conflicts().next().is_some()).count();
        Self { file: name.clone(), records: held.len(), digest: held.digest(), conflicts }
    }
}

impl From<Committed> for Edited {
    fn from(Committed { entry, reached, asked, lacking }: Committed) -> Self {
        Self { entry, reached, asked, lacking }
    }
}

impl From<Result<Committed, Refusal>> for Response {
    fn from(result: Result<Committed, Refusal>) -> Self {
        match result {
            Ok(committed) => Response::Edited(committed.into()),
            Err(refusal) => Response::Refused(refusal),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSummary {
    pub file: FileName,
    pub records: usize,
    #[serde(with = "as_text")]
    pub digest: Digest,
    /// Records with an open conflict.
    pub conflicts: usize,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FilePart {
    pub file: FileName,
    /// Of the whole file.
    #[serde(with = "as_text")]
    pub digest: Digest,
    /// The record of the file `Schema` that is in force for this file.
    pub schema: Option<Record>,
    /// In order of their keys; deleted records are there, too, without a value. One that is long goes on under the same
    /// key, in the next part if need be.
    pub registers: Vec<KeyedRegister>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyedRegister {
    pub key: String,
    pub register: Register,
}

/// Most versions of one record in one piece of it.
const PIECE_VERSIONS_MAX: usize = 256;

impl KeyedRegister {
    /// A register in pieces, each short enough for one response.
    fn pieces(key: &str, register: &Register) -> impl Iterator<Item = Self> {
        let count = register.leaves.len().max(register.early.len()).div_ceil(PIECE_VERSIONS_MAX).max(1);
        (0..count).map(move |number| Self {
            key: key.to_owned(),
            register: Register {
                leaves: piece(&register.leaves, number).to_vec(),
                early: piece(&register.early, number).to_vec(),
            },
        })
    }

    /// About its bytes in a response.
    fn bytes(&self) -> usize {
        let leaf_bytes = |leaf: &Leaf| leaf.value.as_ref().map_or(0, |value| value.to_string().len()) + 160;
        let Register { leaves, early } = &self.register;
        self.key.len() + 32 + leaves.iter().map(leaf_bytes).sum::<usize>() + early.len() * 128
    }
}

fn piece<T>(all: &[T], number: usize) -> &[T] {
    let from = all.len().min(number * PIECE_VERSIONS_MAX);
    &all[from..all.len().min(from + PIECE_VERSIONS_MAX)]
}

/// A file at one moment. It holds on to the file's records, whatever happens to the file afterwards.
#[derive(Debug, Clone)]
pub struct FileSnapshot {
    file: FileName,
    schema: Option<Record>,
    held: Arc<File>,
}

impl FileSnapshot {
    /// The file as it is now; one that nobody has written is empty.
    pub fn of(files: &Files, file: &FileName) -> Self {
        let schema = files.builtin(file::SCHEMA).and_then(|schemas| schemas.record(file.as_str())).cloned();
        Self { file: file.clone(), schema, held: files.file(file).cloned().unwrap_or_default() }
    }

    /// The parts that make the whole file, one at least.
    pub fn parts(&self) -> impl Iterator<Item = FilePart> {
        let mut pieces =
            self.held.registers().flat_map(|(key, register)| KeyedRegister::pieces(key, register)).peekable();
        let mut began = false;
        std::iter::from_fn(move || {
            if std::mem::replace(&mut began, true) && pieces.peek().is_none() {
                return None;
            }
            let (mut registers, mut bytes) = (Vec::new(), 0);
            while bytes < PART_BYTES_MAX
                && let Some(piece) = pieces.next()
            {
                bytes += piece.bytes();
                registers.push(piece);
            }
            let (file, schema) = (self.file.clone(), self.schema.clone());
            Some(FilePart { file, digest: self.held.digest(), schema, registers })
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    pub file: FileName,
    pub key: String,
    /// The winner first, then what lost against it, the newest [`CONFLICT_LEAVES_MAX`] of them.
    pub leaves: Vec<ConflictLeaf>,
    /// How many more lost.
    #[serde(default)]
    pub further: usize,
}

/// Most leaves that are told of one conflict.
pub const CONFLICT_LEAVES_MAX: usize = 200;

impl Conflict {
    /// The conflict of a register that has one.
    pub fn of(file: &FileName, key: &str, register: &Register) -> Self {
        let winner = register.leaves.first();
        let leaves =
            winner.into_iter().chain(register.conflicts().take(CONFLICT_LEAVES_MAX)).map(|leaf| ConflictLeaf {
                record: leaf.value.clone(),
                entry: leaf.version.entry.clone(),
                time_ms: leaf.version.time.wall_ms(),
            });
        let further = register.conflicts().skip(CONFLICT_LEAVES_MAX).count();
        Self { file: file.clone(), key: key.to_owned(), leaves: leaves.collect(), further }
    }

    /// Conflicts in lots short enough for one response each, one lot at least.
    pub fn lots(all: Vec<Self>) -> Vec<Vec<Self>> {
        let (mut lots, mut bytes) = (vec![Vec::new()], 0);
        for conflict in all {
            if bytes > PART_BYTES_MAX {
                lots.push(Vec::new());
                bytes = 0;
            }
            bytes += conflict.bytes();
            lots.last_mut().expect("there is one from the start").push(conflict);
        }
        lots
    }

    /// About its bytes in a response.
    fn bytes(&self) -> usize {
        let leaf_bytes = |leaf: &ConflictLeaf| leaf.record.as_ref().map_or(0, |record| record.to_string().len()) + 160;
        self.key.len() + 96 + self.leaves.iter().map(leaf_bytes).sum::<usize>()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictLeaf {
    /// `None`: the record is gone.
    pub record: Option<Record>,
    #[serde(with = "as_text")]
    pub entry: EntryId,
    /// By the clock of the entry's origin, in ms since the Unix epoch.
    pub time_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub name: String,
    pub size_bytes: u64,
    #[serde(with = "as_text")]
    pub digest: Digest,
    /// Whether its content is on this server.
    pub here: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundlePart {
    pub name: String,
    /// BLAKE3 of the whole content.
    #[serde(with = "as_text")]
    pub digest: Digest,
    pub total_bytes: u64,
    pub offset: u64,
    /// At most `BUNDLE_PART_BYTES_MAX`; base64 in JSON.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub bytes: Vec<u8>,
    /// In a request, whom the peer says it acts for; see `FileEdit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub token: String,
    /// In ms since the Unix epoch.
    pub expires_ms: u64,
    /// Where the joining server finds this one.
    pub address: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    pub name: ServerName,
    pub issued_ms: u64,
    pub expires_ms: u64,
    pub serial: String,
    #[serde(with = "as_text")]
    pub fingerprint: Digest,
}

/// An original server: one of this host as it is, one of another host as the file `Original` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalView {
    pub host: String,
    pub original: String,
    pub state: String,
    /// Whom it plays, where that is known.
    pub target: Option<ServerName>,
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalCheck {
    pub original: String,
    /// `None`: it resumed, answered and was put back.
    pub failure: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcedureTest {
    pub server: ServerName,
    pub original: String,
    /// How long it took to resume the original; then, to put the procedure into it and run it with its checks.
    pub resumed_ms: Option<u64>,
    pub installed_ms: Option<u64>,
    /// The end of what the procedure printed.
    pub output: String,
    /// `None`: it is installed and its checks succeeded.
    pub failure: Option<String>,
}

/// Something that has become readable on this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    #[serde(with = "as_text")]
    pub entry: EntryId,
    pub files: Vec<FileName>,
    /// CLOCK_MONOTONIC when it was durable and readable here.
    pub readable_ns: u64,
}

/// One line from the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub id: u64,
    /// Whether further replies with this id follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    pub response: Response,
}

/// One line from a client.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Call {
    #[serde(default)]
    pub version: u32,
    pub id: u64,
    pub request: Request,
}

/// `Call` as it is sent.
#[derive(Debug, Clone, Serialize)]
pub(super) struct OutgoingCall<'a> {
    pub version: u32,
    pub id: u64,
    pub request: &'a Request,
}

/// What is read of a line whose request is not understood: another version may have changed it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct CallHead {
    #[serde(default)]
    pub version: u32,
    #[serde(default)]
    pub id: u64,
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(de::Error::custom)
}
