//! Tells a peer what is held here when that takes more than one message.
//!
//! Each start of a daemon begins a stream or two, so vectors grow for as long as a group lives. All parts but the last are
//! `VectorPart`s; the last one is the `Vector` that ends them and that the core gets, joined with what came before it on the
//! same link. Whoever sends them sends all of them, or not the last: a whole with a hole would say that something is not there.
//! Parts that nothing ended do no harm to those that follow, for what a peer holds only grows while a link lasts.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::core::id::{ServerName, Stream};
use crate::core::io::Message;
use crate::core::version::Vector;

/// Most streams in one message: with names of 63 bytes two lists of them take 0.8 MiB.
pub const STREAMS_PER_MESSAGE: usize = 5_000;
/// Most streams that are taken from a peer, so that none fills the memory here; a group that has more repairs nothing.
pub const STREAMS_MAX: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it tells of more than {STREAMS_MAX} streams")]
pub struct TooManyStreams;

/// The messages that tell a vector, in their order.
pub fn parts(held: &Vector, floor: &Vector) -> Vec<Message> {
    let (mut held_chunks, mut floor_chunks) = (chunks(held), chunks(floor));
    let count = held_chunks.len().max(floor_chunks.len()).max(1);
    held_chunks.resize(count, Vector::default());
    floor_chunks.resize(count, Vector::default());
    let part = |(number, (held, floor)): (usize, (Vector, Vector))| match number + 1 == count {
        true => Message::Vector { held, floor },
        false => Message::VectorPart { held, floor },
    };
    held_chunks.into_iter().zip(floor_chunks).enumerate().map(part).collect()
}

fn chunks(vector: &Vector) -> Vec<Vector> {
    let streams: Vec<_> = vector.iter().collect();
    let chunk = |streams: &[(&Stream, u64)]| streams.iter().map(|(stream, seq)| ((*stream).clone(), *seq)).collect();
    streams.chunks(STREAMS_PER_MESSAGE).map(chunk).collect()
}

/// Joins what peers send in parts.
#[derive(Default)]
pub struct VectorCollector {
    collecting: BTreeMap<ServerName, (Vector, Vector)>,
}

impl VectorCollector {
    /// Keeps a part.
    ///
    /// # Errors
    /// The peer has told of more than [`STREAMS_MAX`]; nothing of it is kept then.
    pub fn part(&mut self, peer: &ServerName, held: &Vector, floor: &Vector) -> Result<(), TooManyStreams> {
        let (all_held, all_floor) = self.collecting.entry(peer.clone()).or_default();
        all_held.join(held);
        all_floor.join(floor);
        if all_held.len().max(all_floor.len()) > STREAMS_MAX {
            self.forget(peer);
            return Err(TooManyStreams);
        }
        Ok(())
    }

    /// Takes the message that ends the parts, and returns the whole.
    ///
    /// # Errors
    /// As [`VectorCollector::part`].
    pub fn whole(
        &mut self,
        peer: &ServerName,
        held: Vector,
        floor: Vector,
    ) -> Result<(Vector, Vector), TooManyStreams> {
        if !self.collecting.contains_key(peer) {
            return Ok((held, floor));
        }
        self.part(peer, &held, &floor)?;
        Ok(self.collecting.remove(peer).expect("a part of this peer was kept just now"))
    }

    /// A link has ended, and with it what was begun on it.
    pub fn forget(&mut self, peer: &ServerName) {
        self.collecting.remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::Lane;
    use crate::format::encode_message;
    use crate::format::message::MESSAGE_BYTES_MAX;

    /// `count` streams of servers whose names are as long as names get.
    fn vector(count: u64) -> Vector {
        let origin = ServerName::new(&"a".repeat(63)).unwrap();
        let stream = |run: u64| Stream { origin: origin.clone(), run: u32::MAX - run as u32, lane: Lane::Audit };
        (0..count).map(|run| (stream(run), u64::MAX - run)).collect()
    }

    fn send(messages: &[Message]) -> (VectorCollector, Option<(Vector, Vector)>) {
        let (peer, mut collector, mut whole) = (ServerName::new("S1").unwrap(), VectorCollector::default(), None);
        for message in messages.iter().cloned() {
            match message {
                Message::VectorPart { held, floor } => collector.part(&peer, &held, &floor).unwrap(),
                Message::Vector { held, floor } => whole = Some(collector.whole(&peer, held, floor).unwrap()),
                other => panic!("{other:?}"),
            }
        }
        (collector, whole)
    }

    #[test]
    fn a_vector_of_any_length_is_told_in_messages_that_fit() {
        let step = STREAMS_PER_MESSAGE as u64;
        for (held, floor) in [(0, 0), (1, 0), (step, step), (step + 1, step), (3 * step, 1), (0, 2 * step)] {
            let (held, floor) = (vector(held), vector(floor));
            let messages = parts(&held, &floor);
            assert!(messages.iter().all(|message| encode_message(message).len() <= MESSAGE_BYTES_MAX));
            assert!(matches!(messages.last(), Some(Message::Vector { .. })));
            let (collector, whole) = send(&messages);
            assert_eq!(whole, Some((held, floor)));
            assert!(collector.collecting.is_empty());
        }
    }

    #[test]
    fn parts_that_nothing_ended_are_forgotten_with_the_link() {
        let peer = ServerName::new("S1").unwrap();
        let messages = parts(&vector(2 * STREAMS_PER_MESSAGE as u64), &Vector::default());
        let (mut collector, whole) = send(&messages[..1]);
        assert_eq!(whole, None);
        collector.forget(&peer);
        let whole = collector.whole(&peer, vector(1), Vector::default());
        assert_eq!(whole, Ok((vector(1), Vector::default())));
    }

    #[test]
    fn a_peer_cannot_fill_the_memory_with_streams() {
        let (peer, mut collector, none) =
            (ServerName::new("S1").unwrap(), VectorCollector::default(), Vector::default());
        let whole = vector(STREAMS_MAX as u64 + 1);
        let parts = chunks(&whole);
        let (last, first) = parts.split_last().unwrap();
        assert!(first.iter().all(|part| collector.part(&peer, part, &none).is_ok()));
        assert_eq!(collector.part(&peer, last, &none), Err(TooManyStreams));
        assert!(first.iter().all(|part| collector.part(&peer, part, &none).is_ok()));
        assert_eq!(collector.whole(&peer, last.clone(), none), Err(TooManyStreams));
        assert!(collector.collecting.is_empty());
    }
}
