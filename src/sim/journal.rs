//! The simulated journal: the same contract as the daemon's, over a simulated disk that holds real bytes.
//!
//! Opening reads every frame that is whole, keeps of each stream what continues the checkpoint without a gap and is
//! vouched for by a signature, and puts the rest aside: entries behind a damaged place come again from peers, and
//! an unsigned end was never acknowledged. The *floor* of a stream is the highest number that the
//! checkpoint covers and the log no longer holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::disk::Disk;
use crate::core::entry::Sealed;
use crate::core::id::{ClusterId, EntryId, Stream};
use crate::core::node::Recovered;
use crate::core::oplog::{Certifier, Checkpoint, Head, follow};
use crate::core::version::Vector;
use crate::format::segment::{
    End, SEGMENT_HEADER_BYTES, SegmentHeader, append_frame, decode_segment_header, encode_segment_header, scan_frames,
};
use crate::format::{decode_checkpoint, decode_sealed, encode_checkpoint};
use crate::ports::LogRead;

/// What was being written when it was interrupted or finished.
struct Batch {
    entries: Vec<Arc<Sealed>>,
    segment: u64,
    length_before: usize,
}

/// The open log of one host.
#[derive(Default)]
pub struct Journal {
    cluster: Option<ClusterId>,
    segment_bytes: usize,
    /// The entries in the log and the segment that each is in.
    index: BTreeMap<Stream, BTreeMap<u64, (u64, Arc<Sealed>)>>,
    writing: Option<Batch>,
    /// What the durable checkpoint covers.
    covered: Vector,
    /// Everything that is durable, by the checkpoint or by the log.
    durable: Vector,
}

/// What opening a log came to.
pub struct Opened {
    pub journal: Journal,
    pub recovered: Recovered,
    /// The checkpoint that the log goes on from, as it was read.
    pub checkpoint: Checkpoint,
    /// What was put aside or cut off, in words.
    pub put_aside: Vec<String>,
}

impl Journal {
    /// Opens the log, repairing what is torn or damaged.
    pub fn open(disk: &mut Disk, segment_bytes: usize, cluster: ClusterId, certifier: &dyn Certifier) -> Opened {
        let mut put_aside = Vec::new();
        let checkpoint = disk.checkpoint.as_ref().map(|bytes| decode_checkpoint(bytes, cluster));
        let checkpoint = match checkpoint {
            Some(Ok(checkpoint)) => checkpoint,
            Some(Err(error)) => {
                put_aside.push(error.to_string());
                disk.checkpoint = None;
                Checkpoint::default()
            }
            None => Checkpoint::default(),
        };
        let found = scan(disk, &mut put_aside);
        let whole = found.len();
        let (kept, heads) = admissible(found, &checkpoint.heads, certifier);
        if kept.len() < whole {
            put_aside.push(format!("{} entries do not continue their streams", whole - kept.len()));
        }
        let mut files = checkpoint.files.clone();
        let mut bytes_since_checkpoint = 0;
        for (_, sealed) in &kept {
            if !files.seen().holds(sealed.id()) {
                files.apply(sealed.entry());
                bytes_since_checkpoint += sealed.entry().weight_bytes() as u64;
            }
        }
        let mut journal = Journal {
            cluster: Some(cluster),
            segment_bytes,
            covered: checkpoint.files.seen().clone(),
            durable: files.seen().clone(),
            ..Self::default()
        };
        if !put_aside.is_empty() {
            rewrite(disk, cluster, &kept);
        }
        for (segment, sealed) in kept {
            journal.insert(segment, sealed);
        }
        let recovered = Recovered { files, heads, floor: journal.floor(), bytes_since_checkpoint };
        Opened { journal, recovered, checkpoint, put_aside }
    }

    /// Writes entries, which are durable only once the disk has synced.
    pub fn write(&mut self, disk: &mut Disk, entries: Vec<Arc<Sealed>>, wall_ms: u64) {
        debug_assert!(self.writing.is_none(), "one batch is written at a time");
        let mut bytes = Vec::new();
        entries.iter().for_each(|sealed| {
            append_frame(sealed, &mut bytes);
        });
        let cluster = self.cluster.expect("an open journal knows its cluster");
        let length_before = disk.written();
        let segments = disk.segments.len();
        let segment = disk.append(&bytes, self.segment_bytes, cluster, wall_ms);
        let length_before = if disk.segments.len() > segments { SEGMENT_HEADER_BYTES } else { length_before };
        self.writing = Some(Batch { entries, segment, length_before });
    }

    /// The disk has synced the batch: it is part of the log. Returns its entries.
    pub fn written(&mut self) -> Vec<Arc<Sealed>> {
        let Some(batch) = self.writing.take() else { return Vec::new() };
        for sealed in &batch.entries {
            self.durable.raise(&sealed.id().stream, sealed.id().seq);
            self.insert(batch.segment, sealed.clone());
        }
        batch.entries
    }

    /// There was no room: takes the batch back.
    pub fn write_failed(&mut self, disk: &mut Disk) {
        if let Some(batch) = self.writing.take() {
            disk.truncate(batch.length_before);
        }
    }

    /// Consecutive entries from the one asked for.
    pub fn read(&self, request: &LogRead) -> Vec<Arc<Sealed>> {
        let Some(entries) = self.index.get(&request.stream) else { return Vec::new() };
        if request.from > request.to {
            return Vec::new();
        }
        let mut read: Vec<Arc<Sealed>> = Vec::new();
        let mut bytes = 0;
        for (next, (&seq, (_, sealed))) in (request.from..).zip(entries.range(request.from..=request.to)) {
            bytes += sealed.entry().weight_bytes();
            if seq != next || (bytes > request.bytes_max && !read.is_empty()) {
                break;
            }
            read.push(sealed.clone());
        }
        read
    }

    /// The checkpoint has reached the disk. Returns the new floor.
    pub fn checkpoint_stored(&mut self, disk: &mut Disk, bytes: Vec<u8>, seen: &Vector) -> Vector {
        disk.checkpoint = Some(bytes);
        self.covered = seen.clone();
        self.durable.join(seen);
        self.floor()
    }

    /// Drops the oldest segments that the checkpoint covers, all but `keep` of them. Returns the floor if any went.
    pub fn archive(&mut self, disk: &mut Disk, keep: usize) -> Option<Vector> {
        let before = disk.segments.len();
        while disk.segments.len() > keep.max(1) {
            let number = disk.segments[0].number;
            let needed = self.index.iter().any(|(stream, entries)| {
                let above = self.covered.seq(stream) + 1;
                entries.range(above..).any(|(_, (segment, _))| *segment == number)
            });
            if needed {
                break;
            }
            disk.segments.remove(0);
            for entries in self.index.values_mut() {
                entries.retain(|_, (segment, _)| *segment != number);
            }
        }
        (disk.segments.len() < before).then(|| self.floor())
    }

    /// Everything that is durable here.
    pub fn durable(&self) -> &Vector {
        &self.durable
    }

    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Encodes a checkpoint for this journal's cluster.
    pub fn encode(&self, checkpoint: &Checkpoint) -> Vec<u8> {
        encode_checkpoint(checkpoint, self.cluster.expect("an open journal knows its cluster"))
    }

    fn insert(&mut self, segment: u64, sealed: Arc<Sealed>) {
        let EntryId { stream, seq } = sealed.id().clone();
        self.index.entry(stream).or_default().insert(seq, (segment, sealed));
    }

    fn floor(&self) -> Vector {
        let reaches = |(stream, head): (&Stream, u64)| {
            let held = self.index.get(stream);
            let mut floor = head;
            while floor > 0 && held.is_some_and(|entries| entries.contains_key(&floor)) {
                floor -= 1;
            }
            (stream.clone(), floor)
        };
        self.durable.iter().map(reaches).collect()
    }
}

/// Every entry that can be read from a disk, with the number of its segment, in the order of the log.
pub fn scan(disk: &Disk, put_aside: &mut Vec<String>) -> Vec<(u64, Arc<Sealed>)> {
    let mut found = Vec::new();
    for segment in &disk.segments {
        if let Err(error) = decode_segment_header(&segment.bytes) {
            put_aside.push(format!("segment {}: {error}", segment.number));
        }
        let mut from = SEGMENT_HEADER_BYTES;
        loop {
            let scan = scan_frames(&segment.bytes, from);
            for frame in &scan.frames {
                match decode_sealed(frame.payload(&segment.bytes)) {
                    Ok(sealed) => found.push((segment.number, Arc::new(sealed))),
                    Err(error) => put_aside.push(format!("segment {}: {error}", segment.number)),
                }
            }
            match scan.end {
                End::Clean { .. } => break,
                End::Torn { at } => {
                    put_aside.push(format!("segment {}: torn at {at}", segment.number));
                    break;
                }
                End::Damaged { at, resumes_at } => {
                    put_aside.push(format!("segment {}: damaged from {at} to {resumes_at}", segment.number));
                    from = resumes_at;
                }
            }
        }
    }
    found
}

/// An entry with the number of the segment that it is in.
type Placed = (u64, Arc<Sealed>);

/// Of each stream the entries that the checkpoint covers, and those that continue it without a gap up to a signature.
fn admissible(
    found: Vec<Placed>,
    covered: &BTreeMap<Stream, Head>,
    certifier: &dyn Certifier,
) -> (Vec<Placed>, BTreeMap<Stream, Head>) {
    let mut at = covered.clone();
    let mut signed = covered.clone();
    let mut fits: BTreeSet<EntryId> = BTreeSet::new();
    for (_, sealed) in &found {
        let EntryId { stream, seq } = sealed.id();
        let head = at.get(stream);
        if *seq != head.map_or(0, |head| head.seq) + 1 {
            continue;
        }
        let Ok(head) = follow(head.cloned(), sealed, certifier) else { continue };
        if sealed.signature().is_some() {
            signed.insert(stream.clone(), head.clone());
        }
        at.insert(stream.clone(), head);
        fits.insert(sealed.id().clone());
    }
    let kept = found.into_iter().filter(|(_, sealed)| {
        let id = sealed.id();
        let head = signed.get(&id.stream).map_or(0, |head| head.seq);
        id.seq <= covered.get(&id.stream).map_or(0, |head| head.seq) || (id.seq <= head && fits.remove(id))
    });
    (kept.collect(), signed)
}

/// Writes the log anew from what was kept.
fn rewrite(disk: &mut Disk, cluster: ClusterId, kept: &[Placed]) {
    for segment in &mut disk.segments {
        let header = SegmentHeader { cluster, number: segment.number, created_ms: 0 };
        segment.bytes = encode_segment_header(&header).to_vec();
        for (_, sealed) in kept.iter().filter(|(number, _)| *number == segment.number) {
            append_frame(sealed, &mut segment.bytes);
        }
    }
    disk.sync();
}
