//! Checkpoints: of the own state, and received ones, which are merged with what is here, stored, and only then taken for the
//! state of this server.

use super::{Node, Writing};
use crate::core::clock::Now;
use crate::core::id::{ServerName, Stream};
use crate::core::io::Output;
use crate::core::oplog::{Chains, Checkpoint, Head};
use crate::core::version::Vector;

const CHECKPOINT_ALARM: &str = "checkpoint";

impl Node {
    pub(super) fn install(&mut self, now: Now, peer: ServerName, checkpoint: Checkpoint, out: &mut Vec<Output>) {
        if checkpoint.heads.iter().any(|(stream, head)| self.is_far_future(now, stream, head.time, out)) {
            return;
        }
        if let Some((stream, _)) = checkpoint.heads.iter().find(|(stream, head)| !self.is_proven(stream, head)) {
            let reason = format!("its checkpoint has a key of {stream} that no certificate of this cluster proves");
            out.push(Output::Disconnect { peer, reason });
            return;
        }
        let mut merged = Box::new(self.files.clone());
        let written = merged.merge(&checkpoint.files);
        let mut chains = self.durable.clone();
        chains.join(&checkpoint.heads);
        checkpoint.heads.values().for_each(|head| self.clock.observe(head.time));
        let heads = chains.heads().clone();
        out.push(Output::StoreCheckpoint(Box::new(Checkpoint { files: (*merged).clone(), heads: heads.clone() })));
        self.writing = Some(Writing::Checkpoint { peer, merged, written, heads });
    }

    /// Whether a head of a received checkpoint has the key of its origin. What is held here was proven when it came.
    fn is_proven(&self, stream: &Stream, head: &Head) -> bool {
        self.durable.head(stream).is_some_and(|held| held.public_key == head.public_key)
            || head.is_certified(stream, self.certifier.as_ref())
    }

    pub(super) fn checkpoint_stored(&mut self, now: Now, floor: Vector, out: &mut Vec<Output>) {
        self.floor = floor;
        self.clear_alarm(CHECKPOINT_ALARM, out);
        if self.checkpoints_unanswered > 0 {
            self.checkpoints_unanswered -= 1;
            return;
        }
        match self.writing.take() {
            Some(Writing::Checkpoint { peer, merged, written, heads }) => {
                self.files = *merged;
                self.durable = Chains::new(heads);
                self.tip = self.durable.clone();
                self.files_written(written, out);
                let reached = self.files.seen().clone();
                reached.iter().for_each(|(stream, seq)| self.sync.received(&peer, stream, seq));
                self.with_holding(now, |sync, holding| sync.checkpoint_installed(holding, out));
                self.update_lifecycle(now, out);
            }
            other => self.writing = other,
        }
    }

    /// Keeps a checkpoint if one is due and there is room for it.
    pub(super) fn checkpoint_if_due(&mut self, out: &mut Vec<Output>) {
        if self.bytes_since_checkpoint >= self.config.checkpoint_bytes && !self.checkpoint_lacks_room {
            self.bytes_since_checkpoint = 0;
            self.checkpoints_unanswered += 1;
            out.push(Output::StoreCheckpoint(Box::new(self.checkpoint())));
        }
    }

    pub(super) fn checkpoint_failed(&mut self, out: &mut Vec<Output>) {
        if self.checkpoints_unanswered > 0 {
            self.checkpoints_unanswered -= 1;
            // It is due at once when there is room.
            self.checkpoint_lacks_room = true;
            self.bytes_since_checkpoint = self.bytes_since_checkpoint.max(self.config.checkpoint_bytes);
            let text = "no room for a checkpoint: nothing leaves the log for the archive until there is";
            self.raise_alarm(CHECKPOINT_ALARM, text.into(), out);
        } else if matches!(self.writing, Some(Writing::Checkpoint { .. })) {
            self.writing = None;
            self.room(false, out);
        }
    }
}
