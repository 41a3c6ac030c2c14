//! Messages between servers: a version byte, then the message. The transport adds the length in front.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::decision::ChainMessageV1;
use super::entry::{decode_next, encode_sealed};
use super::management::{LeaseMessageV1, ManagementMessageV1, OpinionV1};
use super::v1::{BytesV1, LifecycleV1, StreamV1, VectorV1, vector, vector_v1};
use super::{FormatError, decode_all, encode_into, versioned};
use crate::core::entry::Sealed;
use crate::core::id::Digest;
use crate::core::io::{Beat, Message, Range};

/// Longest message, in bytes, version byte included. A longer one is refused before it is decoded.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

const VERSION: u8 = 1;
const WHAT: &str = "a message";

#[derive(Debug, Serialize, Deserialize)]
struct RangeV1<'a> {
    #[serde(borrow)]
    stream: StreamV1<'a>,
    from: u64,
    to: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct BeatV1 {
    wall_ms: u64,
    vector: [u8; 32],
    files: [u8; 32],
    lifecycle: LifecycleV1,
}

#[derive(Debug, Serialize, Deserialize)]
enum MessageV1<'a> {
    Entries(#[serde(borrow)] Vec<BytesV1<'a>>),
    Ack(#[serde(borrow)] VectorV1<'a>),
    Beat(BeatV1),
    Vector {
        #[serde(borrow)]
        held: VectorV1<'a>,
        #[serde(borrow)]
        floor: VectorV1<'a>,
    },
    Want(#[serde(borrow)] Vec<RangeV1<'a>>),
    WantCheckpoint,
    CheckpointPart {
        digest: [u8; 32],
        total: u64,
        offset: u64,
        #[serde(borrow)]
        bytes: BytesV1<'a>,
    },
    WantBundle {
        digest: [u8; 32],
        offset: u64,
    },
    BundlePart {
        digest: [u8; 32],
        total: u64,
        offset: u64,
        #[serde(borrow)]
        bytes: BytesV1<'a>,
    },
    NoBundle {
        digest: [u8; 32],
    },
    WantCertificate {
        #[serde(borrow)]
        request: BytesV1<'a>,
    },
    Certificate(#[serde(borrow)] BytesV1<'a>),
    NoCertificate(&'a str),
    Chain(#[serde(borrow)] ChainMessageV1<'a>),
    Opinion(#[serde(borrow)] OpinionV1<'a>),
    Lease(#[serde(borrow)] LeaseMessageV1<'a>),
    Management(#[serde(borrow)] ManagementMessageV1<'a>),
    VectorPart {
        #[serde(borrow)]
        held: VectorV1<'a>,
        #[serde(borrow)]
        floor: VectorV1<'a>,
    },
}

/// Encodes a message. Whoever builds messages keeps them below [`MESSAGE_BYTES_MAX`]; the receiver insists.
pub fn encode_message(message: &Message) -> Vec<u8> {
    let mut out = vec![VERSION];
    let entries: Vec<Vec<u8>> = match message {
        Message::Entries(entries) => entries.iter().map(|sealed| encode_sealed(sealed)).collect(),
        _ => Vec::new(),
    };
    out.reserve(entries.iter().map(|bytes| bytes.len() + 4).sum::<usize>() + 64);
    let form = match message {
        Message::Entries(_) => MessageV1::Entries(entries.iter().map(|bytes| BytesV1(bytes)).collect()),
        Message::Ack(seqs) => MessageV1::Ack(seqs.iter().map(|(stream, seq)| (stream.into(), *seq)).collect()),
        Message::Beat(beat) => MessageV1::Beat(BeatV1 {
            wall_ms: beat.wall_ms,
            vector: beat.vector.0,
            files: beat.files.0,
            lifecycle: beat.lifecycle.into(),
        }),
        Message::Vector { held, floor } => MessageV1::Vector { held: vector_v1(held), floor: vector_v1(floor) },
        Message::Want(ranges) => {
            let form = ranges.iter();
            let form = form.map(|Range { stream, from, to }| RangeV1 { stream: stream.into(), from: *from, to: *to });
            MessageV1::Want(form.collect())
        }
        Message::WantCheckpoint => MessageV1::WantCheckpoint,
        Message::CheckpointPart { digest, total, offset, bytes } => {
            MessageV1::CheckpointPart { digest: digest.0, total: *total, offset: *offset, bytes: BytesV1(bytes) }
        }
        Message::WantBundle { digest, offset } => MessageV1::WantBundle { digest: digest.0, offset: *offset },
        Message::BundlePart { digest, total, offset, bytes } => {
            MessageV1::BundlePart { digest: digest.0, total: *total, offset: *offset, bytes: BytesV1(bytes) }
        }
        Message::NoBundle { digest } => MessageV1::NoBundle { digest: digest.0 },
        Message::WantCertificate { request } => MessageV1::WantCertificate { request: BytesV1(request) },
        Message::Certificate { result: Ok(certificate) } => MessageV1::Certificate(BytesV1(certificate)),
        Message::Certificate { result: Err(why) } => MessageV1::NoCertificate(why),
        Message::Chain(message) => MessageV1::Chain(message.into()),
        Message::Opinion(opinion) => MessageV1::Opinion(opinion.into()),
        Message::Lease(message) => MessageV1::Lease(message.into()),
        Message::Management(message) => MessageV1::Management(message.into()),
        Message::VectorPart { held, floor } => MessageV1::VectorPart { held: vector_v1(held), floor: vector_v1(floor) },
    };
    encode_into(&form, &mut out);
    out
}

/// Decodes a message: bounded, and all of it well formed, or an error.
pub fn decode_message(bytes: &[u8]) -> Result<Message, FormatError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(FormatError::TooLarge { what: WHAT, bytes: bytes.len(), limit: MESSAGE_BYTES_MAX });
    }
    let form = decode_all::<MessageV1, MESSAGE_BYTES_MAX>(WHAT, versioned(WHAT, bytes)?)?;
    Ok(match form {
        MessageV1::Entries(entries) => {
            let mut decoded: Vec<Arc<Sealed>> = Vec::with_capacity(entries.len());
            for bytes in &entries {
                let sealed = decode_next(bytes.0, decoded.last().map(Arc::as_ref))?;
                decoded.push(Arc::new(sealed));
            }
            Message::Entries(decoded)
        }
        MessageV1::Ack(seqs) => {
            let decode = |(stream, seq): &(StreamV1, u64)| Ok((stream.stream(WHAT)?, *seq));
            Message::Ack(seqs.iter().map(decode).collect::<Result<_, FormatError>>()?)
        }
        MessageV1::Beat(beat) => Message::Beat(Beat {
            wall_ms: beat.wall_ms,
            vector: Digest(beat.vector),
            files: Digest(beat.files),
            lifecycle: beat.lifecycle.into(),
        }),
        MessageV1::Vector { held, floor } => {
            Message::Vector { held: vector(WHAT, &held)?, floor: vector(WHAT, &floor)? }
        }
        MessageV1::Want(ranges) => {
            let decode =
                |range: &RangeV1| Ok(Range { stream: range.stream.stream(WHAT)?, from: range.from, to: range.to });
            Message::Want(ranges.iter().map(decode).collect::<Result<_, FormatError>>()?)
        }
        MessageV1::WantCheckpoint => Message::WantCheckpoint,
        MessageV1::CheckpointPart { digest, total, offset, bytes } => {
            Message::CheckpointPart { digest: Digest(digest), total, offset, bytes: bytes.0.to_vec() }
        }
        MessageV1::WantBundle { digest, offset } => Message::WantBundle { digest: Digest(digest), offset },
        MessageV1::BundlePart { digest, total, offset, bytes } => {
            Message::BundlePart { digest: Digest(digest), total, offset, bytes: bytes.0.to_vec() }
        }
        MessageV1::NoBundle { digest } => Message::NoBundle { digest: Digest(digest) },
        MessageV1::WantCertificate { request } => Message::WantCertificate { request: request.0.to_vec() },
        MessageV1::Certificate(certificate) => Message::Certificate { result: Ok(certificate.0.to_vec()) },
        MessageV1::NoCertificate(why) => Message::Certificate { result: Err(why.to_owned()) },
        MessageV1::Chain(message) => Message::Chain(message.message()?),
        MessageV1::Opinion(opinion) => Message::Opinion(opinion.opinion()?),
        MessageV1::Lease(message) => Message::Lease(message.message()?),
        MessageV1::Management(message) => Message::Management(message.message()?),
        MessageV1::VectorPart { held, floor } => {
            Message::VectorPart { held: vector(WHAT, &held)?, floor: vector(WHAT, &floor)? }
        }
    })
}
