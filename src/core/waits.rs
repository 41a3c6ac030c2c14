//! Who waits for which acknowledgement of an edit made here.
//!
//! Acknowledgements are cumulative per stream, so one number per member tells how far it is; an entry has reached `majority`
//! or `all` when enough of these numbers have passed it.

use std::collections::{BTreeMap, BTreeSet};

use super::id::{EntryId, ServerName, Stream};
use super::io::{Committed, Ticket, Wait};

struct Waiting {
    ticket: Ticket,
    entry: EntryId,
    asked: Wait,
    deadline_us: u64,
}

/// Invariant: nothing waits for a level that its entry has reached.
#[derive(Default)]
pub struct Waits {
    waiting: BTreeMap<(Stream, Wait, u64), Vec<Waiting>>,
    acknowledged: BTreeMap<(ServerName, Stream), u64>,
}

impl Waits {
    /// An entry made here is durable here. Returns the reply if that is all that was asked for.
    pub fn begin(
        &mut self,
        ticket: Ticket,
        entry: EntryId,
        asked: Wait,
        deadline_us: u64,
        others: &BTreeSet<ServerName>,
    ) -> Option<Committed> {
        let reached = self.reached(&entry, others);
        if asked <= reached {
            return Some(Committed { entry, reached, asked, lacking: Vec::new() });
        }
        let place = (entry.stream.clone(), asked, entry.seq);
        self.waiting.entry(place).or_default().push(Waiting { ticket, entry, asked, deadline_us });
        None
    }

    /// A member has everything of `stream` up to `seq` on disk. Returns the replies that are due.
    pub fn acknowledge(
        &mut self,
        member: &ServerName,
        stream: &Stream,
        seq: u64,
        others: &BTreeSet<ServerName>,
    ) -> Vec<(Ticket, Committed)> {
        let held = self.acknowledged.entry((member.clone(), stream.clone())).or_insert(0);
        *held = (*held).max(seq);
        self.due(stream, others)
    }

    /// The replies that are due because the members have changed.
    pub fn due_all(&mut self, others: &BTreeSet<ServerName>) -> Vec<(Ticket, Committed)> {
        let streams: BTreeSet<Stream> = self.waiting.keys().map(|(stream, ..)| stream.clone()).collect();
        streams.iter().flat_map(|stream| self.due(stream, others)).collect()
    }

    fn due(&mut self, stream: &Stream, others: &BTreeSet<ServerName>) -> Vec<(Ticket, Committed)> {
        let mut due = Vec::new();
        for asked in [Wait::Majority, Wait::All] {
            let reached = self.reached_seq(stream, asked, others).unwrap_or(u64::MAX);
            let range = (stream.clone(), asked, 0)..=(stream.clone(), asked, reached);
            let places: Vec<_> = self.waiting.range(range).map(|(place, _)| place.clone()).collect();
            for place in places {
                for Waiting { ticket, entry, asked, .. } in self.waiting.remove(&place).unwrap_or_default() {
                    due.push((ticket, Committed { entry, reached: asked, asked, lacking: Vec::new() }));
                }
            }
        }
        due
    }

    /// Gives up on what has passed its deadline and says what was reached.
    pub fn expire(&mut self, now_us: u64, others: &BTreeSet<ServerName>) -> Vec<(Ticket, Committed)> {
        let mut expired = Vec::new();
        for waiting in self.waiting.values_mut() {
            expired.extend(waiting.extract_if(.., |one| one.deadline_us <= now_us));
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        let reply = |Waiting { ticket, entry, asked, .. }| {
            let lacking = others.iter().filter(|other| self.seq(other, &entry.stream) < entry.seq).cloned().collect();
            let reached = self.reached(&entry, others);
            (ticket, Committed { entry, reached, asked, lacking })
        };
        expired.into_iter().map(reply).collect()
    }

    pub fn cancel(&mut self, ticket: Ticket) {
        self.waiting.values_mut().for_each(|waiting| waiting.retain(|one| one.ticket != ticket));
        self.waiting.retain(|_, waiting| !waiting.is_empty());
    }

    /// How far a member is known to be in one of this server's streams.
    pub fn seq(&self, member: &ServerName, stream: &Stream) -> u64 {
        self.acknowledged.get(&(member.clone(), stream.clone())).copied().unwrap_or(0)
    }

    fn reached(&self, entry: &EntryId, others: &BTreeSet<ServerName>) -> Wait {
        let passed = |asked| self.reached_seq(&entry.stream, asked, others).is_none_or(|seq| entry.seq <= seq);
        match () {
            () if passed(Wait::All) => Wait::All,
            () if passed(Wait::Majority) => Wait::Majority,
            () => Wait::Local,
        }
    }

    /// The highest sequence number that has reached a level; `None` if this server alone is enough.
    fn reached_seq(&self, stream: &Stream, asked: Wait, others: &BTreeSet<ServerName>) -> Option<u64> {
        let mut seqs: Vec<u64> = others.iter().map(|other| self.seq(other, stream)).collect();
        seqs.sort_unstable_by(|a, b| b.cmp(a));
        let needed = match asked {
            Wait::Local => 0,
            Wait::Majority => others.len().div_ceil(2),
            Wait::All => others.len(),
        };
        needed.checked_sub(1).map(|last| seqs[last])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::Lane;

    fn name(text: &str) -> ServerName {
        ServerName::new(text).unwrap()
    }

    fn entry(seq: u64) -> EntryId {
        EntryId { stream: Stream { origin: name("S1"), run: 1, lane: Lane::Audit }, seq }
    }

    #[test]
    fn majority_of_six_is_this_server_and_three_others() {
        let others: BTreeSet<_> = ["S2", "S3", "S4", "S5", "S6"].map(name).into();
        let mut waits = Waits::default();
        assert!(waits.begin(7, entry(3), Wait::Majority, 100, &others).is_none());
        assert!(waits.acknowledge(&name("S2"), &entry(3).stream, 3, &others).is_empty());
        assert!(waits.acknowledge(&name("S2"), &entry(3).stream, 9, &others).is_empty());
        assert!(waits.acknowledge(&name("S3"), &entry(3).stream, 2, &others).is_empty());
        assert!(waits.acknowledge(&name("S4"), &entry(3).stream, 3, &others).is_empty());
        let due = waits.acknowledge(&name("S3"), &entry(3).stream, 3, &others);
        assert_eq!((due.len(), due[0].0, due[0].1.reached), (1, 7, Wait::Majority));
    }

    #[test]
    fn a_deadline_tells_what_was_reached_and_who_lacks_it() {
        let others: BTreeSet<_> = ["S2", "S3"].map(name).into();
        let mut waits = Waits::default();
        waits.begin(1, entry(1), Wait::All, 100, &others);
        waits.acknowledge(&name("S3"), &entry(1).stream, 1, &others);
        assert!(waits.expire(99, &others).is_empty());
        let expired = waits.expire(100, &others);
        assert_eq!(expired[0].1.reached, Wait::Majority);
        assert_eq!(expired[0].1.lacking, [name("S2")]);
        assert!(waits.expire(200, &others).is_empty());
    }

    #[test]
    fn a_group_of_one_has_reached_everything() {
        let committed = Waits::default().begin(1, entry(1), Wait::All, 0, &BTreeSet::new());
        assert_eq!(committed.unwrap().reached, Wait::All);
    }
}
