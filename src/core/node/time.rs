//! Time: what is due at a tick, what peers tell of themselves in a beat, and whose clock is wrong.
//!
//! A server whose clock is far off by the judgement of the others refuses edits, and so does one whose clock is more than a day behind the newest
//! entry that it holds. Entries from the future raise an alarm; from more than a day
//! ahead they are not taken.

use super::{ClockAnchor, Node};
use crate::core::clock::{Now, Timestamp};
use crate::core::id::{Digest, ServerName, Stream};
use crate::core::io::{Beat, Message, Output};
use crate::core::oplog::Head;

/// Entries that are further ahead of this server's clock are not taken: they would carry the clocks of all away for good.
pub(super) const FUTURE_MS_MAX: u64 = 24 * 3600 * 1000;

impl Node {
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Output>) {
        for (ticket, committed) in self.waits.expire(now.monotonic_us, &self.others) {
            self.reply(ticket, committed, out);
        }
        if now.monotonic_us >= self.next_beat_us {
            self.next_beat_us = now.monotonic_us + self.config.beat_ms * 1000;
            let (vector, files) = self.digests();
            let beat = Beat { wall_ms: now.wall_ms, vector, files, lifecycle: self.lifecycle };
            let peers: Vec<_> = self.sync.names().into_iter().collect();
            if !peers.is_empty() {
                out.push(Output::Send { peers: peers.clone(), message: Message::Beat(beat) });
            }
            for peer in peers {
                self.with_holding(now, |sync, holding| {
                    sync.want(&peer, holding, out);
                    sync.pump(&peer, holding, out);
                });
            }
            self.give_flags(now);
            self.forget_future(now, out);
        }
        self.update_lifecycle(now, out);
    }

    pub(super) fn digests(&mut self) -> (Digest, Digest) {
        *self.digests.get_or_insert_with(|| (self.files.seen().digest(), self.files.digest()))
    }

    pub(super) fn beat(&mut self, now: Now, peer: ServerName, beat: Beat, out: &mut Vec<Output>) {
        let (vector, files) = self.digests();
        let same_vector = beat.vector == vector;
        let name = format!("divergence {peer}");
        if same_vector && beat.files != files {
            let text = format!(
                "{peer} holds the same entries and other files (digest {} there, {} here); \
                 run 'p2pdb replay --check' on both, the one that differs from its log is damaged",
                beat.files.short(),
                files.short()
            );
            self.raise_alarm(&name, text, out);
        } else if same_vector {
            self.clear_alarm(&name, out);
        }
        let offset_ms = beat.wall_ms.wrapping_sub(now.wall_ms).cast_signed();
        if let Some(held) = self.sync.peer_mut(&peer) {
            held.clock_offset_ms = Some(offset_ms);
        }
        self.with_holding(now, |sync, holding| {
            sync.beat(&peer, beat, same_vector, holding, out);
        });
        self.judge_clock(out);
        self.update_lifecycle(now, out);
    }

    /// Notices that the wall clock has jumped: what peers said of it before does not count any more.
    pub(super) fn watch_clock(&mut self, now: Now, out: &mut Vec<Output>) {
        let reading = ClockAnchor { wall_ms: now.wall_ms, monotonic_us: now.monotonic_us };
        let anchor = *self.anchor.get_or_insert(reading);
        let elapsed_ms = now.monotonic_us.saturating_sub(anchor.monotonic_us) / 1000;
        let jump_ms = now.wall_ms as i64 - (anchor.wall_ms + elapsed_ms) as i64;
        // From one reading to the next: a clock that merely drifts has not jumped.
        self.anchor = Some(reading);
        if jump_ms.unsigned_abs() <= self.config.clock_offset_ms_max {
            return;
        }
        self.jumped_ms = jump_ms;
        for peer in self.sync.names() {
            if let Some(peer) = self.sync.peer_mut(&peer) {
                peer.clock_offset_ms = None;
            }
        }
        let text = format!("the wall clock of this server has jumped by {jump_ms} ms");
        self.raise_alarm("clock jump", text, out);
    }

    /// How far this server's clock is off, if it is too far for edits. With fewer than two peers nobody can tell
    /// whose clock is wrong, and edits go on.
    pub fn clock_off(&self) -> Option<i64> {
        let linked = self.sync.peers().count();
        if linked < 2 {
            return None;
        }
        let mut offsets: Vec<i64> = self.sync.peers().filter_map(|(_, peer)| peer.clock_offset_ms).collect();
        if offsets.len() < 2 {
            return (self.jumped_ms != 0).then_some(self.jumped_ms);
        }
        // This server has a vote too, and in doubt it is right: one wrong clock must not stop the others.
        offsets.push(0);
        offsets.sort_unstable();
        let middle = [offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]];
        let median = middle.into_iter().min_by_key(|offset| offset.unsigned_abs()).unwrap_or(0);
        (median.unsigned_abs() > self.config.clock_offset_ms_max).then_some(-median)
    }

    /// How far this server's clock is behind the newest entry it holds, in milliseconds, if the others would not take what it writes by the
    /// time that they have: entries are dated after all that was seen.
    pub(super) fn clock_behind(&self, now: Now) -> Option<u64> {
        let behind_ms = self.clock.last().wall_ms().saturating_sub(now.wall_ms);
        (behind_ms > FUTURE_MS_MAX).then_some(behind_ms)
    }

    fn judge_clock(&mut self, out: &mut Vec<Output>) {
        match self.clock_off() {
            Some(offset_ms) => {
                let text = format!(
                    "this server's clock is {offset_ms} ms off from the other servers' clocks; edits are refused here until it is set right"
                );
                self.raise_alarm("clock", text, out);
            }
            None => {
                self.jumped_ms = 0;
                self.clear_alarm("clock", out);
                self.clear_alarm("clock jump", out);
            }
        }
    }

    /// An entry from the future is taken, for others may hold it already, but not in silence. Whoever has seen it
    /// makes entries that are ahead as well, for time goes on from there; only the first one is to blame.
    pub(super) fn watch_future(&mut self, now: Now, stream: &Stream, head: &Head, out: &mut Vec<Output>) {
        let ahead_ms = head.time.wall_ms().saturating_sub(now.wall_ms);
        if ahead_ms <= self.config.clock_offset_ms_max || head.time.wall_ms() <= self.clock.last().wall_ms() {
            return;
        }
        let text = format!("entries of {} are {ahead_ms} ms ahead of this server's clock", stream.origin);
        self.raise_alarm(&future_alarm(&stream.origin), text, out);
        self.ahead.insert(stream.origin.clone(), head.time);
    }

    /// An entry from far in the future is not taken before its time, and not in silence.
    pub(super) fn is_far_future(&mut self, now: Now, stream: &Stream, time: Timestamp, out: &mut Vec<Output>) -> bool {
        let ahead_ms = time.wall_ms().saturating_sub(now.wall_ms);
        if ahead_ms <= FUTURE_MS_MAX {
            return false;
        }
        let text =
            format!("entries of {} are {ahead_ms} ms ahead of this server's clock; they are not taken", stream.origin);
        self.raise_alarm(&future_alarm(&stream.origin), text, out);
        self.ahead.insert(stream.origin.clone(), time);
        true
    }

    /// Takes back what was said of entries from the future that time has caught up with.
    fn forget_future(&mut self, now: Now, out: &mut Vec<Output>) {
        let limit_ms = now.wall_ms + self.config.clock_offset_ms_max;
        let caught_up: Vec<_> = self.ahead.extract_if(.., |_, time| time.wall_ms() <= limit_ms).collect();
        caught_up.iter().for_each(|(origin, _)| self.clear_alarm(&future_alarm(origin), out));
    }
}

fn future_alarm(origin: &ServerName) -> String {
    format!("clock of {origin}")
}
