//! The application hello: the first frame on a link in each direction, and the ready note that follows it.
//!
//! Fixed layout, all integers little-endian. Hello:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `P2PDBHLO` |
//! | 8 | 2 | format of this hello: 1 |
//! | 10 | 2 | lowest protocol version spoken |
//! | 12 | 2 | highest protocol version spoken |
//! | 14 | 16 | cluster id |
//! | 30 | 8 | instance: a random number drawn when the daemon started |
//! | 38 | 8 | wall clock of the sender, ms since the Unix epoch |
//! | 46 | 1 | n: bytes of the name, 1 to 63 |
//! | 47 | n | name of the sender |
//! | 47+n | 4 | p: bytes of the payload, at most 1 MiB |
//! | 51+n | p | payload, opaque here |
//!
//! Ready: magic `P2PDBRDY`, then the wall clock as above. A format 2 that an old server must understand may only add
//! fields inside the payload; anything else is a new format number and is refused by old servers with that reason.

use bytes::{Buf, BufMut};
use thiserror::Error;

use crate::core::id::{ClusterId, NAME_BYTES_MAX, ServerName};

/// Largest payload of a hello, in bytes.
pub const HELLO_PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// Largest hello, in bytes.
pub const HELLO_BYTES_MAX: usize = 51 + NAME_BYTES_MAX + HELLO_PAYLOAD_BYTES_MAX;

const HELLO_MAGIC: &[u8; 8] = b"P2PDBHLO";
const READY_MAGIC: &[u8; 8] = b"P2PDBRDY";
const FORMAT: u16 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HelloError {
    #[error("this is no hello of p2pdb")]
    Magic,
    #[error("a hello of format {0}; this server reads format {FORMAT}")]
    Format(u16),
    #[error("the hello is cut short, too long or has a bad name")]
    Malformed,
}

/// What each side says of itself before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub cluster: ClusterId,
    pub name: ServerName,
    /// Lowest and highest protocol version spoken.
    pub versions: (u16, u16),
    /// Tells two lives of one server apart.
    pub instance: u64,
    /// The sender's wall clock, in ms since the Unix epoch.
    pub wall_ms: u64,
    /// At most `HELLO_PAYLOAD_BYTES_MAX` bytes.
    pub payload: Vec<u8>,
}

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(51 + NAME_BYTES_MAX + self.payload.len());
        out.put_slice(HELLO_MAGIC);
        out.put_u16_le(FORMAT);
        out.put_u16_le(self.versions.0);
        out.put_u16_le(self.versions.1);
        out.put_slice(&self.cluster.0);
        out.put_u64_le(self.instance);
        out.put_u64_le(self.wall_ms);
        let name = self.name.as_str().as_bytes();
        out.put_u8(u8::try_from(name.len()).expect("a server name has at most 63 bytes"));
        out.put_slice(name);
        out.put_u32_le(u32::try_from(self.payload.len()).expect("the payload is bounded to 1 MiB"));
        out.put_slice(&self.payload);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let mut rest = bytes.strip_prefix(HELLO_MAGIC).ok_or(HelloError::Magic)?;
        let format = rest.try_get_u16_le().map_err(|_| HelloError::Malformed)?;
        if format != FORMAT {
            return Err(HelloError::Format(format));
        }
        decode_fields(&mut rest).filter(|_| rest.is_empty()).ok_or(HelloError::Malformed)
    }

    /// The version both sides speak: the lower of the two highest, if neither side is too new for it.
    pub fn common_version(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
        let version = ours.1.min(theirs.1);
        (version >= ours.0 && version >= theirs.0).then_some(version)
    }
}

/// The dialler's word that it took the acceptor's hello.
pub fn encode_ready(wall_ms: u64) -> Vec<u8> {
    let mut out = READY_MAGIC.to_vec();
    out.put_u64_le(wall_ms);
    out
}

/// The dialler's wall clock in a ready note, in ms since the Unix epoch.
pub fn decode_ready(bytes: &[u8]) -> Result<u64, HelloError> {
    let wall_ms = bytes.strip_prefix(READY_MAGIC).ok_or(HelloError::Magic)?;
    Ok(u64::from_le_bytes(wall_ms.try_into().map_err(|_| HelloError::Malformed)?))
}

fn decode_fields(rest: &mut &[u8]) -> Option<Hello> {
    let versions = (rest.try_get_u16_le().ok()?, rest.try_get_u16_le().ok()?);
    let (cluster, after) = rest.split_first_chunk::<16>()?;
    *rest = after;
    let instance = rest.try_get_u64_le().ok()?;
    let wall_ms = rest.try_get_u64_le().ok()?;
    let name_bytes = usize::from(rest.try_get_u8().ok()?);
    let name = ServerName::new(std::str::from_utf8(rest.split_off(..name_bytes)?).ok()?).ok()?;
    let payload_bytes = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
    if payload_bytes > HELLO_PAYLOAD_BYTES_MAX {
        return None;
    }
    let payload = rest.split_off(..payload_bytes)?.to_vec();
    Some(Hello { cluster: ClusterId(*cluster), name, versions, instance, wall_ms, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            cluster: ClusterId(std::array::from_fn(|index| index as u8)),
            name: ServerName::new("mail").unwrap(),
            versions: (1, 3),
            instance: 0x1122_3344_5566_7788,
            wall_ms: 1_800_000_000_123,
            payload: b"hi".to_vec(),
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = hello().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "5032504442484c4f010001000300000102030405060708090a0b0c0d0e0f8877665544332211\
             7b505c18a3010000046d61696c020000006869"
        );
        assert_eq!(encode_ready(1), b"P2PDBRDY\x01\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_hello_reads_as_it_was_written_and_nothing_else_does() {
        let bytes = hello().encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello()));
        for length in 0..bytes.len() {
            assert!(Hello::decode(&bytes[..length]).is_err());
        }
        assert_eq!(Hello::decode(&[&bytes[..], b"x"].concat()), Err(HelloError::Malformed));
        assert_eq!(Hello::decode(b"GET / HTTP/1.1\r\n"), Err(HelloError::Magic));
        let mut newer = bytes.clone();
        newer[8] = 2;
        assert_eq!(Hello::decode(&newer), Err(HelloError::Format(2)));
        assert_eq!(decode_ready(&encode_ready(77)), Ok(77));
        assert!(decode_ready(b"P2PDBRDY").is_err());
    }

    proptest::proptest! {
        #[test]
        fn decoding_never_panics(flips in proptest::collection::vec((0usize..80, proptest::num::u8::ANY), 0..8)) {
            let mut bytes = hello().encode();
            for (index, value) in flips {
                let index = index % bytes.len();
                bytes[index] = value;
            }
            if let Ok(read) = Hello::decode(&bytes) {
                proptest::prop_assert_eq!(read.encode(), bytes);
            }
        }
    }

    #[test]
    fn both_sides_find_the_same_version() {
        for (ours, theirs, version) in [
            ((1, 1), (1, 1), Some(1)),
            ((1, 3), (2, 5), Some(3)),
            ((1, 1), (2, 3), None),
            ((4, 5), (1, 3), None),
            ((3, 3), (1, 3), Some(3)),
        ] {
            assert_eq!(Hello::common_version(ours, theirs), version);
            assert_eq!(Hello::common_version(theirs, ours), version);
        }
    }
}
