//! Names and identifiers: what a server, a file, a cluster and an entry are called.
//!
//! Every name that came from outside is checked once, here, and carried as its own type from then on.
//! An entry is named by its *stream* (origin, run, lane) and its sequence number in that stream. A run is one
//! life of a daemon: a restarted origin opens a new run, so a sequence number can never come to mean another
//! entry, whatever the disk forgot. Sequence numbers of a stream start at 1 and have no gaps.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest server or file name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name '{0}' has {1} bytes; at most {NAME_BYTES_MAX} are allowed")]
    TooLong(String, usize),
    #[error(
        "the name '{0}' has the character {1:?}; letters, digits, '-', '_' and '.' are allowed, and it starts with a letter or a digit"
    )]
    Character(String, char),
    #[error("'{0}' is not {1}")]
    Form(String, &'static str),
}

fn checked_name(name: &str) -> Result<Arc<str>, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        let shown = name.chars().take(NAME_BYTES_MAX).collect();
        return Err(NameError::TooLong(shown, name.len()));
    }
    for (index, character) in name.chars().enumerate() {
        let plain = character.is_ascii_alphanumeric();
        if !plain && (index == 0 || !matches!(character, '-' | '_' | '.')) {
            return Err(NameError::Character(name.to_owned(), character));
        }
    }
    Ok(name.into())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn new(name: &str) -> Result<Self, NameError> {
                checked_name(name).map(Self)
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a server: 1 to 63 bytes of letters, digits, `-`, `_`, `.`.
    ServerName
);
name_type!(
    /// The name of a management file, which is also its name in the plain-file view.
    FileName
);

/// A 32-byte BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub const ZERO: Digest = Digest([0; 32]);

    /// The sum of a set of digests in which the order does not count; adding twice removes.
    pub fn toggle(&mut self, other: &Digest) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine ^= theirs;
        }
    }

    /// The first eight hexadecimal digits: enough for a person to compare.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(out, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(out, &self.0[..4])
    }
}

impl FromStr for Digest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_hex(text).map(Self).ok_or_else(|| NameError::Form(text.into(), "a digest of 64 hexadecimal digits"))
    }
}

/// Which cluster a log, a certificate or a connection belongs to: the first 16 bytes of the BLAKE3 digest
/// of the cluster CA's public key (subject public key info, DER).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        let digest = blake3::hash(spki_der);
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_bytes()[..16]);
        Self(id)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(out, &self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(out, &self.0[..4])
    }
}

impl FromStr for ClusterId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_hex(text).map(Self).ok_or_else(|| NameError::Form(text.into(), "a cluster id of 32 hexadecimal digits"))
    }
}

fn write_hex(out: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The two lanes of an origin. Entries that touch only volatile files (`Condition`) travel in a lane of their
/// own, so that retention can drop them without breaking the hash chain of the audit trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lane {
    Audit,
    Volatile,
}

/// One hash chain of entries: one lane of one run of one origin.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stream {
    pub origin: ServerName,
    /// The second (Unix time) in which the origin's daemon started, made larger than any run known of it.
    pub run: u32,
    pub lane: Lane,
}

impl fmt::Display for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.lane {
            Lane::Audit => ':',
            Lane::Volatile => '~',
        };
        write!(out, "{}{mark}{:08x}", self.origin, self.run)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// The name of one entry, printed as `mail:6a91f3c2:12` (audit lane) or `mail~6a91f3c2:12` (volatile lane).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId {
    pub stream: Stream,
    /// 1 for the first entry of its stream.
    pub seq: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.stream, self.seq)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for EntryId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let form = || NameError::Form(text.into(), "an entry id such as mail:6a91f3c2:12");
        let (head, seq) = text.rsplit_once(':').ok_or_else(form)?;
        let seq = seq.parse().map_err(|_| form())?;
        let at = head.rfind([':', '~']).ok_or_else(form)?;
        let lane = if head[at..].starts_with('~') { Lane::Volatile } else { Lane::Audit };
        let run = u32::from_str_radix(&head[at + 1..], 16).map_err(|_| form())?;
        let origin = ServerName::new(&head[..at])?;
        Ok(EntryId { stream: Stream { origin, run, lane }, seq })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_id_reads_as_it_prints() {
        for text in ["mail:6a91f3c2:12", "web-1.example~00000001:18446744073709551615"] {
            assert_eq!(text.parse::<EntryId>().unwrap().to_string(), text);
        }
        for text in ["", "mail", "mail:12", "mail:zz:1", "ma il:6a91f3c2:1", "mail:6a91f3c2:-1"] {
            assert!(text.parse::<EntryId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_refuse_what_would_be_a_path_or_a_surprise() {
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "é", "a\n", "-x"] {
            assert!(ServerName::new(name).is_err(), "{name:?}");
        }
        assert!(ServerName::new(&"x".repeat(63)).is_ok());
        assert!(ServerName::new(&"x".repeat(64)).is_err());
    }
}
