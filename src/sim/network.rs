//! The simulated network: a mesh of links that behave as QUIC connections do.
//!
//! While a link is up, what is sent arrives, in order. What breaks a link loses everything that was under way.
//! Where one way of a pair is *blocked*, frames are held back; if that lasts, the receiving end notices the silence,
//! gives the link up and tells the other end, if its own way is open. Each end has its own belief of
//! whether the link is up; an *epoch* tells one link of a pair from the next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::random::Random;
use super::time::MILLISECOND_US;

/// An encoded message on its way.
#[derive(Debug, Clone)]
pub struct Frame {
    pub from: usize,
    pub to: usize,
    pub epoch: u32,
    pub bytes: Arc<[u8]>,
}

/// One way from a host to another.
#[derive(Debug, Default)]
struct Way {
    blocked: bool,
    /// Counts the blocks, so that a late alarm about an earlier one is recognised.
    block: u32,
    /// The receiver reads nothing from it for now; that is no silence.
    stalled: bool,
    arrives_us: u64,
    held_back: VecDeque<Frame>,
}

/// What became of a frame at the place it was sent to.
#[derive(Debug)]
pub enum Arrival {
    Delivered(Frame),
    HeldBack,
    /// The receiver knows no such link; the sender is told, if the way back is open.
    Unknown,
}

/// Which silence an end waits out before it gives the link up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The way to it was blocked, for the so-many-th time.
    Blocked(u32),
    /// The other host has died.
    Dead,
    /// The other host was stopped by a signal, and may go on before the link is given up.
    Frozen,
}

/// All ways and ends between `hosts` hosts.
#[derive(Debug)]
pub struct Network {
    hosts: usize,
    ways: Vec<Way>,
    /// The epoch of the link that an end believes is up.
    ends: Vec<Option<u32>>,
    epochs: u32,
    /// Shortest and longest delay of a frame.
    pub delay_us: (u64, u64),
}

impl Network {
    pub fn new(hosts: usize, delay_us: (u64, u64)) -> Self {
        let ways = (0..hosts * hosts).map(|_| Way::default()).collect();
        Self { hosts, ways, ends: vec![None; hosts * hosts], epochs: 0, delay_us }
    }

    fn at(&self, from: usize, to: usize) -> usize {
        from * self.hosts + to
    }

    /// The link that `host` believes it has with `peer`.
    pub fn end(&self, host: usize, peer: usize) -> Option<u32> {
        self.ends[self.at(host, peer)]
    }

    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.ways[self.at(from, to)].blocked
    }

    /// Whether both ends agree that there is a link.
    pub fn is_linked(&self, host: usize, peer: usize) -> bool {
        self.end(host, peer).is_some() && self.end(host, peer) == self.end(peer, host)
    }

    /// Makes a new link of a pair.
    pub fn establish(&mut self, one: usize, other: usize) -> u32 {
        self.epochs += 1;
        for (from, to) in [(one, other), (other, one)] {
            let at = self.at(from, to);
            self.ends[at] = Some(self.epochs);
            self.ways[at].held_back.clear();
            self.ways[at].stalled = false;
        }
        self.epochs
    }

    /// An end gives its link up. Returns the epoch that it had.
    pub fn give_up(&mut self, host: usize, peer: usize) -> Option<u32> {
        let at = self.at(host, peer);
        self.ends[at].take()
    }

    /// Puts a frame on its way; returns it with the time at which it arrives.
    pub fn send(
        &mut self,
        now_us: u64,
        from: usize,
        to: usize,
        bytes: Arc<[u8]>,
        random: &mut Random,
    ) -> Option<(u64, Frame)> {
        let epoch = self.end(from, to)?;
        let delay_us = random.between(self.delay_us.0, self.delay_us.1);
        let at = self.at(from, to);
        let way = &mut self.ways[at];
        way.arrives_us = (now_us + delay_us).max(way.arrives_us + 1);
        Some((way.arrives_us, Frame { from, to, epoch, bytes }))
    }

    /// A frame has come to the end of its way.
    pub fn arrive(&mut self, frame: Frame) -> Arrival {
        let known = self.end(frame.to, frame.from) == Some(frame.epoch);
        let at = self.at(frame.from, frame.to);
        let way = &mut self.ways[at];
        if way.blocked || (way.stalled && known) {
            way.held_back.push_back(frame);
            Arrival::HeldBack
        } else if known {
            Arrival::Delivered(frame)
        } else {
            Arrival::Unknown
        }
    }

    /// Blocks one way. Returns the link and the silence that its receiving end will notice.
    pub fn block(&mut self, from: usize, to: usize) -> Option<(u32, Silence)> {
        let at = self.at(from, to);
        let way = &mut self.ways[at];
        if way.blocked {
            return None;
        }
        way.blocked = true;
        way.block += 1;
        let block = way.block;
        self.end(to, from).map(|epoch| (epoch, Silence::Blocked(block)))
    }

    /// Opens one way. Returns the frames that were held back: they come first, and now.
    pub fn open(&mut self, from: usize, to: usize) -> VecDeque<Frame> {
        let at = self.at(from, to);
        let way = &mut self.ways[at];
        way.blocked = false;
        std::mem::take(&mut way.held_back)
    }

    /// The receiver does not want a frame now, nor any that follows.
    pub fn stall(&mut self, frame: Frame) {
        let at = self.at(frame.from, frame.to);
        self.ways[at].stalled = true;
        self.ways[at].held_back.push_back(frame);
    }

    /// The receiver reads again. Returns the frames that have waited.
    pub fn resume(&mut self, from: usize, to: usize) -> VecDeque<Frame> {
        let at = self.at(from, to);
        let way = &mut self.ways[at];
        if !std::mem::take(&mut way.stalled) || way.blocked {
            return VecDeque::new();
        }
        std::mem::take(&mut way.held_back)
    }

    /// Whether an end that has waited out a silence has a reason to give up.
    pub fn is_silent(&self, host: usize, peer: usize, epoch: u32, silence: Silence) -> bool {
        let way = &self.ways[self.at(peer, host)];
        let still = match silence {
            Silence::Blocked(block) => way.blocked && way.block == block,
            Silence::Dead | Silence::Frozen => true,
        };
        still && self.end(host, peer) == Some(epoch)
    }

    /// How long a control packet takes.
    pub fn delay(&self, random: &mut Random) -> u64 {
        random.between(self.delay_us.0, self.delay_us.1)
    }

    /// How long an end hears nothing before it gives a link up.
    pub fn idle_us(&self, random: &mut Random) -> u64 {
        1_000 * MILLISECOND_US + random.below(200 * MILLISECOND_US)
    }
}
