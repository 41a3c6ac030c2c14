//! Archives: the audit-lane frames of a segment that has left the live log, compressed with zstd.
//!
//! Inside the compression lies an archive header and then frames as in a segment, without zeros behind them.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::error::JournalError;
use super::segment_files;
use crate::core::id::{ClusterId, Lane};
use crate::format::segment::{
    ARCHIVE_HEADER_BYTES, ArchiveHeader, End, Frame, decode_archive_header, encode_archive_header, scan_frames,
};
use crate::format::{FormatError, peek_entry};

/// Most bytes that an archive may hold when it is unpacked.
pub const ARCHIVE_BYTES_MAX: u64 = 1 << 30;

/// An archive in memory.
pub struct Content {
    pub header: ArchiveHeader,
    pub bytes: Vec<u8>,
    pub frames: Vec<Frame>,
    /// Where the frames end.
    pub end: End,
}

/// Reads an archive; with a cluster given, only one of that cluster.
pub fn read(path: &Path, cluster: Option<ClusterId>) -> Result<Content, JournalError> {
    let file = fs::File::open(path).map_err(JournalError::io("read", path))?;
    let mut bytes = Vec::new();
    let unpacked = zstd::stream::read::Decoder::new(file)
        .and_then(|decoder| decoder.take(ARCHIVE_BYTES_MAX).read_to_end(&mut bytes));
    // What could be unpacked before the damage still counts: the frames have their own checksums.
    let unpacked = unpacked.map_err(JournalError::io("unpack", path));
    let header = match decode_archive_header(&bytes) {
        Ok(header) => header,
        Err(source) => {
            unpacked?;
            return Err(JournalError::Format { path: path.to_owned(), source });
        }
    };
    if let Some(expected) = cluster.filter(|&cluster| cluster != header.cluster) {
        return Err(JournalError::Foreign { path: path.to_owned(), found: header.cluster, expected });
    }
    let scan = scan_frames(&bytes, ARCHIVE_HEADER_BYTES);
    let end = match (scan.end, unpacked) {
        (End::Clean { at }, Err(_)) => End::Torn { at },
        (end, _) => end,
    };
    Ok(Content { header, bytes, frames: scan.frames, end })
}

/// Keeps the audit-lane frames of some segment bytes as an archive. Returns the bytes of the archive, 0 if there was nothing
/// to keep and no archive was made.
pub fn write(
    path: &Path,
    header: &ArchiveHeader,
    segment: &[u8],
    frames: &[Frame],
    level: i32,
) -> Result<u64, JournalError> {
    let mut content = encode_archive_header(header).to_vec();
    for frame in frames {
        if is_audit(frame.payload(segment)).unwrap_or(true) {
            content.extend_from_slice(frame.whole(segment));
        }
    }
    if content.len() == ARCHIVE_HEADER_BYTES {
        return Ok(0);
    }
    let packed = zstd::bulk::compress(&content, level).map_err(JournalError::io("pack", path))?;
    segment_files::write_durably(path, |file| std::io::Write::write_all(file, &packed))?;
    Ok(packed.len() as u64)
}

fn is_audit(payload: &[u8]) -> Result<bool, FormatError> {
    Ok(peek_entry(payload)?.id()?.stream.lane == Lane::Audit)
}
