//! One-time join tokens: the line an operator copies, and the folder that remembers which are good.
//!
//! A token is `p2pdb-join-` and, in base32 (RFC 4648, lower case), 50 bytes: format 1, cluster id (16), secret (21),
//! expiry in ms since the Unix epoch (8, big-endian), first 4 bytes of the BLAKE3 of all before. The folder has one file per token, named by the BLAKE3 of its secret, whose content is the expiry:
//! who reads the folder learns no token.
//!
//! Invariant: a token is taken by renaming its file, which only one taker can do, before anything is issued for it.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::certificate::{fill_random, sync_directory, write_atomically};
use crate::core::id::ClusterId;

/// How long a token is good unless the operator says otherwise, in ms: one hour.
pub const TOKEN_LIFE_MS: u64 = 3600 * 1000;
/// Bytes of a token's secret.
pub const SECRET_BYTES: usize = 21;

const PREFIX: &str = "p2pdb-join-";
const FORMAT: u8 = 1;
const BODY_BYTES: usize = 1 + 16 + SECRET_BYTES + 8;
const TOKEN_BYTES: usize = BODY_BYTES + 4;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

#[derive(Debug, Error)]
pub enum TokenError {
    #[error("a join token begins with '{PREFIX}'; get one with `p2pdb token` on a server of the cluster")]
    Prefix,
    #[error("the join token is damaged or not complete; copy the whole line again")]
    Damaged,
    #[error("the join token is of format {0}, which this version of p2pdb does not know")]
    Format(u8),
    #[error("the join token is not known here: it was used already, has expired, or was made on another server")]
    Unknown,
    #[error("the join token has expired; get a new one with `p2pdb token`")]
    Expired,
    #[error("{path}: {source}")]
    Store { path: PathBuf, source: io::Error },
    #[error("no randomness from the operating system")]
    Randomness,
}

/// What lets one server join one cluster, once. `Display` gives the line to copy; `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub cluster: ClusterId,
    /// In ms since the Unix epoch, by the clock of the server that made it.
    pub expires_ms: u64,
    secret: [u8; SECRET_BYTES],
}

impl Token {
    pub(crate) fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![FORMAT];
        bytes.extend(self.cluster.0);
        bytes.extend(self.secret);
        bytes.extend(self.expires_ms.to_be_bytes());
        bytes.extend(checksum(&bytes));
        write!(out, "{PREFIX}{}", base32(&bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Token({:?}, until {})", self.cluster, self.expires_ms)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = from_base32(digits).ok_or(TokenError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if checksum(body) != *sum {
            return Err(TokenError::Damaged);
        }
        match body.first() {
            Some(&FORMAT) if bytes.len() == TOKEN_BYTES => {}
            Some(&format) if format != FORMAT => return Err(TokenError::Format(format)),
            _ => return Err(TokenError::Damaged),
        }
        let field = |from: usize, bytes: usize| &body[from..from + bytes];
        let whole = "the length was checked";
        Ok(Self {
            cluster: ClusterId(field(1, 16).try_into().expect(whole)),
            secret: field(17, SECRET_BYTES).try_into().expect(whole),
            expires_ms: u64::from_be_bytes(field(17 + SECRET_BYTES, 8).try_into().expect(whole)),
        })
    }
}

/// The folder of tokens that are good: `DIR/certs/tokens`. A running daemon sees what another process adds.
#[derive(Debug, Clone)]
pub struct TokenStore {
    path: PathBuf,
}

impl TokenStore {
    /// Names the folder; nothing is read or made yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes a token that is good for `life_ms` from `now_ms` (wall clock, ms).
    pub fn create(&self, cluster: ClusterId, life_ms: u64, now_ms: u64) -> Result<Token, TokenError> {
        let failed = |source| TokenError::Store { path: self.path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(failed)?;
        let mut secret = [0; SECRET_BYTES];
        fill_random(&mut secret).map_err(|_| TokenError::Randomness)?;
        let token = Token { cluster, expires_ms: now_ms.saturating_add(life_ms), secret };
        write_atomically(&self.file(&secret), format!("{}\n", token.expires_ms).as_bytes(), 0o600).map_err(failed)?;
        Ok(token)
    }

    /// Takes the token with this secret, so that nobody else can. Errors: unknown, expired, trouble with the folder.
    pub fn take(&self, secret: &[u8; SECRET_BYTES], now_ms: u64) -> Result<TakenToken, TokenError> {
        let token = self.file(secret);
        let taken = token.with_extension("taken");
        let failed = |source| TokenError::Store { path: token.clone(), source };
        match fs::rename(&token, &taken) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TokenError::Unknown),
            renamed => renamed.and_then(|()| sync_directory(&self.path)).map_err(failed)?,
        }
        let good = expiry_ms(&taken).is_some_and(|expires_ms| now_ms < expires_ms);
        let held = TakenToken { token, taken };
        if !good {
            held.spend();
            return Err(TokenError::Expired);
        }
        Ok(held)
    }

    /// Removes what expired before `now_ms` (wall clock, ms), and returns how many that were.
    pub fn sweep(&self, now_ms: u64) -> Result<usize, TokenError> {
        let failed = |source| TokenError::Store { path: self.path.clone(), source };
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries.map_err(failed)?,
        };
        let mut removed = 0;
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if expiry_ms(&path).is_some_and(|expires_ms| expires_ms <= now_ms) {
                fs::remove_file(&path).map_err(failed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn file(&self, secret: &[u8; SECRET_BYTES]) -> PathBuf {
        self.path.join(blake3::hash(secret).to_hex().as_str())
    }
}

/// A token in the hands of its one taker. Dropped without a word it stays taken.
#[derive(Debug)]
pub struct TakenToken {
    token: PathBuf,
    taken: PathBuf,
}

impl TakenToken {
    /// Makes it good again, because nothing was given for it.
    pub fn give_back(self) -> Result<(), TokenError> {
        fs::rename(&self.taken, &self.token).map_err(|source| TokenError::Store { path: self.token, source })
    }

    /// Forgets it for good.
    pub fn spend(self) {
        // What stays behind is no token any more, and the sweep takes it.
        let _ = fs::remove_file(&self.taken);
    }
}

fn expiry_ms(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn checksum(body: &[u8]) -> [u8; 4] {
    let digest = blake3::hash(body);
    std::array::from_fn(|index| digest.as_bytes()[index])
}

/// Of a multiple of five bytes.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(ALPHABET[(bits >> count) as usize & 31] as char);
        }
    }
    text
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for digit in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = bits << 5 | u32::try_from(value).ok()?;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn token() -> Token {
        Token { cluster: ClusterId([3; 16]), expires_ms: NOW_MS, secret: [9; SECRET_BYTES] }
    }

    #[test]
    fn golden_text() {
        assert_eq!(
            token().to_string(),
            "p2pdb-join-aebqgaydambqgaydambqgaydambqscijbeeqscijbeeqscijbeeqscijbeeqsaaaagrrqxcqad3vbex3"
        );
    }

    #[test]
    fn a_token_reads_as_it_prints_and_any_slip_is_noticed() {
        let text = token().to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token());
        assert_eq!(format!("  {}\n", text.to_uppercase()).parse::<Token>().unwrap(), token());
        for index in PREFIX.len()..text.len() {
            let mut slip = text.clone().into_bytes();
            slip[index] = if slip[index] == b'a' { b'b' } else { b'a' };
            let slip = String::from_utf8(slip).unwrap();
            assert!(matches!(slip.parse::<Token>(), Err(TokenError::Damaged)), "{slip}");
            assert!(text[..index].parse::<Token>().is_err());
        }
        assert!(matches!("hello".parse::<Token>(), Err(TokenError::Prefix)));
        assert!(!format!("{:?}", token()).contains('9'));
    }

    #[test]
    fn a_token_is_good_once_and_until_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = TokenStore::new(folder.path().join("tokens"));
        assert_eq!(store.sweep(NOW_MS).unwrap(), 0);
        let token = store.create(ClusterId([3; 16]), 1000, NOW_MS).unwrap();
        let taken = store.take(token.secret(), NOW_MS).unwrap();
        assert!(matches!(store.take(token.secret(), NOW_MS), Err(TokenError::Unknown)));
        taken.give_back().unwrap();
        store.take(token.secret(), NOW_MS + 999).unwrap().spend();
        assert!(matches!(store.take(token.secret(), NOW_MS), Err(TokenError::Unknown)));

        let late = store.create(ClusterId([3; 16]), 1000, NOW_MS).unwrap();
        assert!(matches!(store.take(late.secret(), NOW_MS + 1000), Err(TokenError::Expired)));
        store.create(ClusterId([3; 16]), 1000, NOW_MS).unwrap();
        assert_eq!((store.sweep(NOW_MS).unwrap(), store.sweep(NOW_MS + 1000).unwrap()), (0, 1));
        assert_eq!(fs::read_dir(folder.path().join("tokens")).unwrap().count(), 0);
    }
}
