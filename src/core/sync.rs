//! What each linked peer has, and what to send it next.
//!
//! Two flows, both bounded by a window of unacknowledged bytes per peer:
//! *push*: the origin sends its own entries to every peer as soon as they are durable, from where the peer is;
//! *repair*: who misses entries of an origin that is out of reach asks any peer that holds them (`Want`). Vectors are exchanged when
//! a link comes up, when one goes down and when beats keep telling different digests. A peer that needs entries which the
//! log no longer holds asks for the checkpoint instead.
//!
//! Nothing here changes the files: `Sync` only decides who is told what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::entry::Sealed;
use super::id::{ServerName, Stream};
use super::io::{Beat, Message, Output, Range};
use super::node::Limits;
use super::version::Vector;

/// How long a wanted range may make no progress before another peer is asked.
const WANT_PATIENCE_US: u64 = 2_000_000;
/// How long entries of a linked origin may be missing before others are asked for them.
const ORIGIN_PATIENCE_US: u64 = 1_500_000;
/// Least time between two vectors to the same peer, unless a link changed.
const VECTOR_INTERVAL_US: u64 = 700_000;
/// Most ranges that one message asks for; what more is missing is asked for with the next beat.
const RANGES_MAX: usize = 1_000;
/// How long a checkpoint may make no progress before another peer is asked.
const CHECKPOINT_PATIENCE_US: u64 = 30_000_000;

/// A linked peer.
#[derive(Default)]
pub struct Peer {
    /// What it is known to hold; `None` until it has told.
    held: Option<Vector>,
    floor: Vector,
    /// The last entry pushed to it, per own stream.
    pushed: BTreeMap<Stream, u64>,
    in_flight: VecDeque<(Stream, u64, usize)>,
    in_flight_bytes: usize,
    /// Ranges it asked for.
    serving: BTreeMap<Stream, Range>,
    /// The read from the log that is under way for it.
    reading: Option<(Stream, u64)>,
    pub beat: Option<Beat>,
    pub clock_offset_ms: Option<i64>,
    vector_sent_us: Option<u64>,
    differs_since_us: Option<u64>,
}

impl Peer {
    pub fn held(&self) -> Option<&Vector> {
        self.held.as_ref()
    }

    /// Bytes sent and not acknowledged.
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    fn raise(&mut self, stream: &Stream, seq: u64) {
        if let Some(held) = &mut self.held {
            held.raise(stream, seq);
        }
    }

    fn sent(&mut self, stream: &Stream, seq: u64, bytes: usize) {
        self.in_flight.push_back((stream.clone(), seq, bytes));
        self.in_flight_bytes += bytes;
    }

    fn acknowledged(&mut self, stream: &Stream, seq: u64) {
        self.raise(stream, seq);
        let bytes = &mut self.in_flight_bytes;
        self.in_flight.retain(|(sent_stream, sent_seq, sent_bytes)| {
            let open = sent_stream != stream || *sent_seq > seq;
            *bytes -= if open { 0 } else { *sent_bytes };
            open
        });
    }
}

/// Where a wanted range was asked for.
struct Wanted {
    peer: ServerName,
    to: u64,
    since_us: u64,
}

/// Who was asked for its checkpoint.
struct CheckpointWanted {
    peer: ServerName,
    /// When it was asked, or sent more of it than ever before.
    progress_us: u64,
    collected_bytes: u64,
}

/// What this server holds, as the flows need to know it.
pub struct Holding<'a> {
    pub durable: &'a Vector,
    /// What is on its way to the disk too.
    pub tip: &'a dyn Fn(&Stream) -> u64,
    pub floor: &'a Vector,
    /// Monotonic time of the input at hand.
    pub now_us: u64,
}

pub struct Sync {
    me: ServerName,
    limits: Limits,
    peers: BTreeMap<ServerName, Peer>,
    wanted: BTreeMap<Stream, Wanted>,
    /// Since when entries of a linked origin have been missing, and how far the stream was then.
    missing: BTreeMap<Stream, (u64, u64)>,
    checkpoint_wanted: Option<CheckpointWanted>,
}

impl Sync {
    pub fn new(me: ServerName, limits: Limits) -> Self {
        Self {
            me,
            limits,
            peers: BTreeMap::new(),
            wanted: BTreeMap::new(),
            missing: BTreeMap::new(),
            checkpoint_wanted: None,
        }
    }

    pub fn peers(&self) -> impl Iterator<Item = (&ServerName, &Peer)> {
        self.peers.iter()
    }

    pub fn peer_mut(&mut self, name: &ServerName) -> Option<&mut Peer> {
        self.peers.get_mut(name)
    }

    pub fn is_linked(&self, name: &ServerName) -> bool {
        self.peers.contains_key(name)
    }

    pub fn link_up(&mut self, name: ServerName, holding: &Holding, out: &mut Vec<Output>) {
        // It has only now got the chance to send what is missing.
        self.missing.retain(|stream, _| stream.origin != name);
        self.peers.insert(name.clone(), Peer::default());
        self.send_vector(&name, holding, out);
    }

    /// A link is gone. Whoever is left is told what is held here, so that entries of the lost peer are passed on.
    pub fn link_down(&mut self, name: &ServerName, holding: &Holding, out: &mut Vec<Output>) {
        if self.peers.remove(name).is_none() {
            return;
        }
        self.wanted.retain(|_, wanted| wanted.peer != *name);
        self.checkpoint_wanted.take_if(|wanted| wanted.peer == *name);
        let others: Vec<_> = self.peers.keys().cloned().collect();
        others.iter().for_each(|other| self.send_vector(other, holding, out));
    }

    /// A peer tells all that it holds.
    pub fn vector(&mut self, name: &ServerName, held: Vector, floor: Vector, holding: &Holding, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.in_flight.retain(|(stream, seq, _)| held.seq(stream) < *seq);
        let before = peer.held.as_ref();
        let progress = |stream: &Stream| before.is_none_or(|before| before.seq(stream) < held.seq(stream));
        if !peer.in_flight.iter().any(|(stream, ..)| progress(stream)) {
            // Sent, not acknowledged, and nothing has moved since the last time it told: dropped over there. Send it again.
            peer.in_flight.clear();
            peer.pushed.clear();
        }
        peer.in_flight_bytes = peer.in_flight.iter().map(|(_, _, bytes)| bytes).sum();
        peer.held = Some(held);
        peer.floor = floor;
        self.forget_unclaimed();
        self.want(name, holding, out);
        self.pump(name, holding, out);
    }

    /// What nobody claims to hold any more is not waited for, so that streams which a peer invents are remembered no longer
    /// than its claim.
    fn forget_unclaimed(&mut self) {
        let Self { peers, wanted, missing, .. } = self;
        let claims = |peer: &Peer, stream: &Stream| peer.held.as_ref().is_some_and(|held| held.seq(stream) > 0);
        missing.retain(|stream, _| peers.values().any(|peer| claims(peer, stream)));
        wanted.retain(|stream, asked| peers.get(&asked.peer).is_some_and(|peer| claims(peer, stream)));
    }

    pub fn acknowledged(&mut self, name: &ServerName, stream: &Stream, seq: u64, holding: &Holding) {
        // Of a stream that is not here nothing was sent, and remembering it would have no bound.
        if (holding.tip)(stream) == 0 {
            return;
        }
        if let Some(peer) = self.peers.get_mut(name) {
            peer.acknowledged(stream, seq);
        }
    }

    /// Entries came from a peer: it holds them.
    pub fn received(&mut self, name: &ServerName, stream: &Stream, seq: u64) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.raise(stream, seq);
        }
    }

    /// Own entries have become durable: pushes them at once to every peer that has all before them.
    pub fn push(&mut self, entries: &[Arc<Sealed>], out: &mut Vec<Output>) {
        let Some((first, last)) = entries.first().zip(entries.last()) else { return };
        let stream = &first.id().stream;
        let bytes: usize = entries.iter().map(|sealed| sealed.entry().weight_bytes()).sum();
        let mut ready = Vec::new();
        for (name, peer) in &mut self.peers {
            let Some(held) = &peer.held else { continue };
            let at = peer.pushed.get(stream).copied().unwrap_or(0).max(held.seq(stream));
            let reading = peer.reading.as_ref().is_some_and(|(read, _)| read == stream);
            if at + 1 != first.id().seq || reading || peer.in_flight_bytes >= self.limits.window_bytes {
                continue;
            }
            peer.pushed.insert(stream.clone(), last.id().seq);
            peer.sent(stream, last.id().seq, bytes);
            ready.push(name.clone());
        }
        if !ready.is_empty() {
            out.push(Output::Send { peers: ready, message: Message::Entries(entries.to_vec()) });
        }
    }

    /// A peer asks for ranges.
    pub fn wanted_by(&mut self, name: &ServerName, ranges: Vec<Range>, holding: &Holding, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        for range in ranges {
            // What is not held here is not worth remembering, and remembering it would have no bound.
            if range.from <= range.to && range.from <= holding.durable.seq(&range.stream) {
                peer.serving.insert(range.stream.clone(), range);
            }
        }
        self.pump(name, holding, out);
    }

    /// The log was read for a peer. Entries after the last signature are left for the next read.
    pub fn read(
        &mut self,
        name: &ServerName,
        stream: Stream,
        from: u64,
        mut entries: Vec<Arc<Sealed>>,
        holding: &Holding,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        if peer.reading.take_if(|reading| *reading == (stream.clone(), from)).is_none() {
            return;
        }
        let signed = entries.iter().rposition(|sealed| sealed.signature().is_some());
        entries.truncate(signed.map_or(0, |last| last + 1));
        let serving = peer.serving.get(&stream).is_some_and(|range| range.from == from);
        let Some(last) = entries.last().map(|sealed| sealed.id().seq) else {
            if serving {
                peer.serving.remove(&stream);
            }
            self.send_vector(name, holding, out);
            return;
        };
        let bytes = entries.iter().map(|sealed| sealed.entry().weight_bytes()).sum();
        peer.sent(&stream, last, bytes);
        if serving {
            let range = peer.serving.get_mut(&stream).expect("it was looked at above");
            range.from = last + 1;
            if range.from > range.to {
                peer.serving.remove(&stream);
            }
        } else if stream.origin == self.me {
            peer.pushed.insert(stream, last);
        }
        out.push(Output::Send { peers: vec![name.clone()], message: Message::Entries(entries) });
        self.pump(name, holding, out);
    }

    /// Starts the next read for a peer, if it lags and there is room in its window.
    pub fn pump(&mut self, name: &ServerName, holding: &Holding, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(held) = &peer.held else { return };
        if peer.reading.is_some() || peer.in_flight_bytes >= self.limits.window_bytes {
            return;
        }
        let next = peer.serving.values().next().cloned().or_else(|| {
            holding.durable.iter().filter(|(stream, _)| stream.origin == self.me).find_map(|(stream, to)| {
                let from = peer.pushed.get(stream).copied().unwrap_or(0).max(held.seq(stream)) + 1;
                let lags = from <= to && from > holding.floor.seq(stream);
                lags.then(|| Range { stream: stream.clone(), from, to })
            })
        });
        let Some(Range { stream, from, to }) = next else { return };
        peer.reading = Some((stream.clone(), from));
        let peer = name.clone();
        out.push(Output::Read { peer, stream, from, to, bytes_max: self.limits.read_bytes });
    }

    /// Compares a beat with what is held here; tells all if the two have differed for more than a beat.
    pub fn beat(&mut self, name: &ServerName, beat: Beat, same_vector: bool, holding: &Holding, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.beat = Some(beat);
        if same_vector {
            peer.differs_since_us = None;
            return;
        }
        let since_us = *peer.differs_since_us.get_or_insert(holding.now_us);
        let sent_us = peer.vector_sent_us.unwrap_or(0);
        if since_us < holding.now_us && holding.now_us.saturating_sub(sent_us) >= VECTOR_INTERVAL_US {
            self.send_vector(name, holding, out);
        }
    }

    /// Asks a peer for what it has and this server lacks.
    pub fn want(&mut self, name: &ServerName, holding: &Holding, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get(name) else { return };
        let Some(held) = &peer.held else { return };
        let mut ranges = Vec::new();
        let mut too_far_behind = false;
        for (stream, to) in held.iter() {
            let tip = (holding.tip)(stream);
            if tip >= to {
                // Nothing is missing of what this peer has; another may have more.
                if self.missing.get(stream).is_some_and(|(at, _)| *at < tip) {
                    self.missing.remove(stream);
                }
                continue;
            }
            if stream.origin != self.me && self.peers.contains_key(&stream.origin) {
                // A linked origin pushes by itself; only if it does not get anywhere are others asked.
                let (at, since_us) = *self.missing.entry(stream.clone()).or_insert((tip, holding.now_us));
                if at != tip {
                    self.missing.insert(stream.clone(), (tip, holding.now_us));
                }
                let stalled = at == tip && holding.now_us.saturating_sub(since_us) > ORIGIN_PATIENCE_US;
                let floored = peer.floor.seq(stream) > tip;
                if !stalled && !floored {
                    continue;
                }
            }
            if peer.floor.seq(stream) > tip {
                // Nobody holds more of a run than its origin, if the origin is here to tell how far it has come.
                let told = self.peers.get(&stream.origin).and_then(Peer::held).map_or(0, |held| held.seq(stream));
                too_far_behind |= told == 0 || told >= peer.floor.seq(stream);
                continue;
            }
            let busy = self.wanted.get(stream).is_some_and(|wanted| {
                tip < wanted.to && holding.now_us.saturating_sub(wanted.since_us) < WANT_PATIENCE_US
            });
            if !busy && ranges.len() < RANGES_MAX {
                self.wanted.insert(stream.clone(), Wanted { peer: name.clone(), to, since_us: holding.now_us });
                ranges.push(Range { stream: stream.clone(), from: tip + 1, to });
            }
        }
        let may_ask = self.checkpoint_wanted.as_ref().is_none_or(|wanted| {
            // Others come first.
            let patiences = if wanted.peer == *name { 2 } else { 1 };
            holding.now_us.saturating_sub(wanted.progress_us) >= patiences * CHECKPOINT_PATIENCE_US
        });
        if too_far_behind && may_ask {
            let wanted = CheckpointWanted { peer: name.clone(), progress_us: holding.now_us, collected_bytes: 0 };
            self.checkpoint_wanted = Some(wanted);
            out.push(Output::Send { peers: vec![name.clone()], message: Message::WantCheckpoint });
        }
        if !ranges.is_empty() {
            out.push(Output::Send { peers: vec![name.clone()], message: Message::Want(ranges) });
        }
    }

    /// Whether this peer was asked for its checkpoint; nobody else's is taken.
    pub fn wants_checkpoint_of(&self, name: &ServerName) -> bool {
        self.checkpoint_wanted.as_ref().is_some_and(|wanted| wanted.peer == *name)
    }

    /// A peer has sent so many bytes of its checkpoint. Only what is more than ever counts as progress: who begins again
    /// and again gets no more patience.
    pub fn checkpoint_progress(&mut self, name: &ServerName, collected_bytes: u64, now_us: u64) {
        if let Some(wanted) = &mut self.checkpoint_wanted
            && wanted.peer == *name
            && wanted.collected_bytes < collected_bytes
        {
            (wanted.progress_us, wanted.collected_bytes) = (now_us, collected_bytes);
        }
    }

    /// A checkpoint has been taken over: everybody may go on from there.
    pub fn checkpoint_installed(&mut self, holding: &Holding, out: &mut Vec<Output>) {
        self.checkpoint_wanted = None;
        let names: Vec<_> = self.peers.keys().cloned().collect();
        names.iter().for_each(|name| self.send_vector(name, holding, out));
    }

    fn send_vector(&mut self, name: &ServerName, holding: &Holding, out: &mut Vec<Output>) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.vector_sent_us = Some(holding.now_us);
            let message = Message::Vector { held: holding.durable.clone(), floor: holding.floor.clone() };
            out.push(Output::Send { peers: vec![name.clone()], message });
        }
    }

    /// The origins that are linked, with their last beats.
    pub fn beats(&self) -> impl Iterator<Item = (&ServerName, &Beat)> {
        self.peers.iter().filter_map(|(name, peer)| Some((name, peer.beat.as_ref()?)))
    }

    pub fn names(&self) -> BTreeSet<ServerName> {
        self.peers.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::Lane;

    /// A server with nothing, and two peers whose logs begin above what it would need.
    fn far_behind() -> (Sync, Vec<ServerName>) {
        let mut sync = Sync::new(ServerName::new("S9").unwrap(), Limits::default());
        let peers: Vec<_> = ["S1", "S2"].map(|name| ServerName::new(name).unwrap()).into();
        let stream = Stream { origin: ServerName::new("S3").unwrap(), run: 1, lane: Lane::Audit };
        let (held, floor): (Vector, Vector) =
            ([(stream.clone(), 9)].into_iter().collect(), [(stream, 5)].into_iter().collect());
        let nothing = Vector::default();
        let holding = Holding { durable: &nothing, tip: &|_| 0, floor: &nothing, now_us: 0 };
        for peer in &peers {
            sync.link_up(peer.clone(), &holding, &mut Vec::new());
            let peer = sync.peer_mut(peer).unwrap();
            (peer.held, peer.floor) = (Some(held.clone()), floor.clone());
        }
        (sync, peers)
    }

    /// Who is asked for its checkpoint when everybody is looked at, as on every beat.
    fn asked(sync: &mut Sync, peers: &[ServerName], now_us: u64) -> Vec<ServerName> {
        let nothing = Vector::default();
        let holding = Holding { durable: &nothing, tip: &|_| 0, floor: &nothing, now_us };
        let mut out = Vec::new();
        peers.iter().for_each(|peer| sync.want(peer, &holding, &mut out));
        let asked = out.into_iter().filter_map(|output| match output {
            Output::Send { peers, message: Message::WantCheckpoint } => Some(peers[0].clone()),
            _ => None,
        });
        asked.collect()
    }

    #[test]
    fn a_slow_checkpoint_is_waited_for_and_a_stuck_one_is_not() {
        let (mut sync, peers) = far_behind();
        assert_eq!(asked(&mut sync, &peers, 1), [peers[0].clone()], "one at a time");
        let mut now_us = 1;
        for part in 1..=20 {
            now_us += CHECKPOINT_PATIENCE_US - 1;
            sync.checkpoint_progress(&peers[0], part * 1000, now_us);
            assert!(asked(&mut sync, &peers, now_us).is_empty(), "it comes, if slowly");
        }
        assert!(asked(&mut sync, &peers, now_us + CHECKPOINT_PATIENCE_US - 1).is_empty());
        assert_eq!(asked(&mut sync, &peers, now_us + CHECKPOINT_PATIENCE_US), [peers[1].clone()]);
        assert!(sync.wants_checkpoint_of(&peers[1]) && !sync.wants_checkpoint_of(&peers[0]));
        let (mut alone, peers) = (sync, &peers[1..]);
        now_us += 2 * CHECKPOINT_PATIENCE_US;
        assert!(asked(&mut alone, peers, now_us).is_empty());
        assert_eq!(asked(&mut alone, peers, now_us + CHECKPOINT_PATIENCE_US), peers, "there is nobody else");
    }

    #[test]
    fn nobody_holds_more_of_a_stream_than_its_origin() {
        let (mut sync, peers) = far_behind();
        let origin = ServerName::new("S3").unwrap();
        let nothing = Vector::default();
        let holding = Holding { durable: &nothing, tip: &|_| 0, floor: &nothing, now_us: 0 };
        sync.link_up(origin.clone(), &holding, &mut Vec::new());
        let stream = Stream { origin: origin.clone(), run: 1, lane: Lane::Audit };
        sync.peer_mut(&origin).unwrap().held = Some([(stream.clone(), 4)].into_iter().collect());
        assert!(asked(&mut sync, &peers, 0).is_empty(), "the log of the others cannot begin above 5");
        sync.peer_mut(&origin).unwrap().held = Some([(stream, 9)].into_iter().collect());
        assert_eq!(asked(&mut sync, &peers, 0), [peers[0].clone()]);
    }

    #[test]
    fn streams_that_a_peer_invents_are_forgotten_with_its_claim() {
        let mut sync = Sync::new(ServerName::new("S9").unwrap(), Limits::default());
        let liar = ServerName::new("S1").unwrap();
        let nothing = Vector::default();
        let holding = Holding { durable: &nothing, tip: &|_| 0, floor: &nothing, now_us: 0 };
        sync.link_up(liar.clone(), &holding, &mut Vec::new());
        for round in 0..5u32 {
            let mut held = Vector::default();
            for run in 0..100 {
                // Of an origin that is linked, and of one that is not.
                for origin in ["S1", "S2"] {
                    let origin = ServerName::new(origin).unwrap();
                    held.raise(&Stream { origin, run: round * 100 + run, lane: Lane::Audit }, 1);
                }
            }
            for (stream, seq) in held.iter() {
                sync.acknowledged(&liar, stream, seq, &holding);
            }
            sync.vector(&liar, held, Vector::default(), &holding, &mut Vec::new());
            assert_eq!((sync.missing.len(), sync.wanted.len()), (100, 100), "in round {round}");
            let known = sync.peers[&liar].held().map_or(0, Vector::len);
            assert_eq!(known, 200, "what it said last is what is known of it");
        }
        let unheard = Stream { origin: liar.clone(), run: 9999, lane: Lane::Audit };
        sync.acknowledged(&liar, &unheard, 7, &holding);
        assert_eq!(sync.peers[&liar].held().map(|held| held.seq(&unheard)), Some(0));
    }

    #[test]
    fn no_more_is_asked_for_at_a_time_than_a_message_takes() {
        let mut sync = Sync::new(ServerName::new("S9").unwrap(), Limits::default());
        let (peer, origin) = (ServerName::new("S1").unwrap(), ServerName::new("S2").unwrap());
        let nothing = Vector::default();
        let holding = Holding { durable: &nothing, tip: &|_| 0, floor: &nothing, now_us: 0 };
        sync.link_up(peer.clone(), &holding, &mut Vec::new());
        let stream = |run| Stream { origin: origin.clone(), run, lane: Lane::Audit };
        sync.peer_mut(&peer).unwrap().held = Some((0..2_500).map(|run| (stream(run), 1)).collect());
        let asked = [(); 4].map(|()| {
            let mut out = Vec::new();
            sync.want(&peer, &holding, &mut out);
            out.iter()
                .map(|output| match output {
                    Output::Send { message: Message::Want(ranges), .. } => ranges.len(),
                    _ => 0,
                })
                .sum::<usize>()
        });
        assert_eq!(asked, [1_000, 1_000, 500, 0]);
    }

    #[test]
    fn beginning_again_is_no_progress() {
        let (mut sync, peers) = far_behind();
        asked(&mut sync, &peers, 0);
        sync.checkpoint_progress(&peers[0], 2000, 1);
        sync.checkpoint_progress(&peers[0], 1000, CHECKPOINT_PATIENCE_US);
        sync.checkpoint_progress(&peers[0], 2000, CHECKPOINT_PATIENCE_US);
        assert_eq!(asked(&mut sync, &peers, CHECKPOINT_PATIENCE_US + 1), [peers[1].clone()]);
    }
}
