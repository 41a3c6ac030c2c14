//! Where each entry of the live log is.
//!
//! Four bytes per entry: for each stream and segment the number of the first entry and the offsets of all. Of each
//! stream the index holds one row without gaps, the newest; older entries are only in archives, or nowhere.

use std::collections::{BTreeMap, VecDeque};

use crate::core::id::Stream;
use crate::core::oplog::Head;
use crate::core::version::Vector;

#[derive(Debug)]
struct Piece {
    segment: u64,
    first: u64,
    offsets: Vec<u32>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.first + self.offsets.len() as u64
    }
}

#[derive(Debug, Default)]
struct Row {
    pieces: VecDeque<Piece>,
    /// The last number of the stream that is durable here, in the log or in a checkpoint.
    head: u64,
}

/// Entries of one stream that lie in one segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Located {
    pub segment: u64,
    pub offsets: Vec<u32>,
}

#[derive(Debug, Default)]
pub struct Index {
    rows: BTreeMap<Stream, Row>,
}

impl Index {
    pub fn head(&self, stream: &Stream) -> u64 {
        self.rows.get(stream).map_or(0, |row| row.head)
    }

    /// Takes note of what a checkpoint holds.
    pub fn raise<'a>(&mut self, heads: impl IntoIterator<Item = (&'a Stream, &'a Head)>) {
        for (stream, head) in heads {
            let row = self.rows.entry(stream.clone()).or_default();
            row.head = row.head.max(head.seq);
        }
    }

    /// The last number in the row of a stream, 0 if the row is empty.
    pub fn last(&self, stream: &Stream) -> u64 {
        let last = self.rows.get(stream).and_then(|row| row.pieces.back());
        last.map_or(0, |piece| piece.end() - 1)
    }

    /// Adds an entry behind those of its stream; a gap starts the row anew.
    pub fn push(&mut self, stream: &Stream, seq: u64, segment: u64, offset: u32) {
        if !self.rows.contains_key(stream) {
            self.rows.insert(stream.clone(), Row::default());
        }
        let row = self.rows.get_mut(stream).expect("it was put there if it was missing");
        if row.pieces.back().is_some_and(|piece| piece.end() != seq) {
            row.pieces.clear();
        }
        row.head = row.head.max(seq);
        match row.pieces.back_mut() {
            Some(piece) if piece.segment == segment => piece.offsets.push(offset),
            last => {
                if let Some(full) = last {
                    full.offsets.shrink_to_fit();
                }
                row.pieces.push_back(Piece { segment, first: seq, offsets: vec![offset] });
            }
        }
    }

    /// Where the entries of a stream from `from` to `to` are, as far as they lie in the same segment as the first.
    pub fn locate(&self, stream: &Stream, from: u64, to: u64) -> Option<Located> {
        let pieces = &self.rows.get(stream)?.pieces;
        let piece = pieces.get(pieces.partition_point(|piece| piece.end() <= from))?;
        let first = usize::try_from(from.checked_sub(piece.first)?).ok()?;
        let end = piece.end().min(to.saturating_add(1)).checked_sub(piece.first)? as usize;
        Some(Located { segment: piece.segment, offsets: piece.offsets.get(first..end)?.to_vec() })
    }

    /// The last number of each stream in a segment.
    pub fn last_in(&self, segment: u64) -> impl Iterator<Item = (&Stream, u64)> {
        self.rows.iter().filter_map(move |(stream, row)| {
            let piece = row.pieces.iter().find(|piece| piece.segment == segment)?;
            Some((stream, piece.end() - 1))
        })
    }

    /// Forgets a segment, the oldest.
    pub fn drop_segment(&mut self, segment: u64) {
        for row in self.rows.values_mut() {
            while row.pieces.front().is_some_and(|piece| piece.segment <= segment) {
                row.pieces.pop_front();
            }
        }
    }

    /// Follows the frames of a segment to their new offsets.
    pub fn move_frames(&mut self, segment: u64, moved: &BTreeMap<u32, u32>) {
        let pieces = self.rows.values_mut().flat_map(|row| &mut row.pieces);
        for offset in pieces.filter(|piece| piece.segment == segment).flat_map(|piece| &mut piece.offsets) {
            *offset = moved.get(offset).copied().unwrap_or(*offset);
        }
    }

    /// For each stream the highest number that the live log no longer holds.
    pub fn floor(&self) -> Vector {
        let gone = |row: &Row| row.pieces.front().map_or(row.head, |piece| piece.first - 1);
        self.rows.iter().map(|(stream, row)| (stream.clone(), gone(row))).collect()
    }

    pub fn entries(&self) -> u64 {
        self.rows.values().flat_map(|row| &row.pieces).map(|piece| piece.offsets.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::{Lane, ServerName};

    fn stream(origin: &str) -> Stream {
        Stream { origin: ServerName::new(origin).unwrap(), run: 1, lane: Lane::Audit }
    }

    #[test]
    fn entries_are_located_segment_by_segment() {
        let mut index = Index::default();
        for seq in 1..=10 {
            index.push(&stream("a"), seq, 1 + seq / 5, seq as u32 * 100);
        }
        let located = |from, to| index.locate(&stream("a"), from, to);
        assert_eq!(located(2, 100), Some(Located { segment: 1, offsets: vec![200, 300, 400] }));
        assert_eq!(located(6, 7), Some(Located { segment: 2, offsets: vec![600, 700] }));
        assert_eq!(located(10, 10), Some(Located { segment: 3, offsets: vec![1000] }));
        assert_eq!(
            (located(11, 20), located(0, 5), located(5, 4).map(|held| held.offsets)),
            (None, None, Some(vec![]))
        );
        assert_eq!(index.locate(&stream("b"), 1, 1), None);
    }

    #[test]
    fn the_floor_follows_dropped_segments_and_checkpoints() {
        let mut index = Index::default();
        for seq in 1..=10 {
            index.push(&stream("a"), seq, 1 + seq / 5, 0);
        }
        assert_eq!(index.floor().seq(&stream("a")), 0);
        index.drop_segment(2);
        assert_eq!(index.floor().seq(&stream("a")), 9);
        index.drop_segment(3);
        assert_eq!(index.floor().seq(&stream("a")), 10);
        index.push(&stream("a"), 50, 4, 0);
        assert_eq!((index.floor().seq(&stream("a")), index.head(&stream("a"))), (49, 50));
    }
}
