//! Who writes next: one writer, three classes of transaction (the paper, section 4, Fig. 11).
//!
//! Management goes before Transmission, Transmission before Reception, as lp2p goes before ltra and lrec in the paper; within a
//! class, first come first served. So that the lowest cannot starve, work that has waited longer than the ageing
//! time goes before everything younger, whatever its class. With priorities off it is one queue.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The class of a transaction, highest priority first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// The management program's own transactions: membership, problems, recoveries.
    Management,
    /// Edits by operators, scripts and editors on this server.
    Transmission,
    /// Entries that other servers sent.
    Reception,
}

impl Class {
    pub const ALL: [Class; 3] = [Class::Management, Class::Transmission, Class::Reception];

    pub fn name(self) -> &'static str {
        match self {
            Class::Management => "management",
            Class::Transmission => "transmission",
            Class::Reception => "reception",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriorityConfig {
    /// Off: first come first served over all classes.
    pub enabled: bool,
    /// How long work may wait before it goes before younger work of any class.
    pub ageing_ms: u64,
}

impl Default for PriorityConfig {
    fn default() -> Self {
        Self { enabled: true, ageing_ms: 200 }
    }
}

/// Depth and waiting times of one class, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClassStatus {
    pub waiting: usize,
    pub waiting_bytes: usize,
    pub served: u64,
    /// Sum and maximum of the times that served work waited, in microseconds.
    pub waited_us: u64,
    pub waited_us_max: u64,
}

struct Waiting<T> {
    work: T,
    bytes: usize,
    since_us: u64,
    arrival: u64,
}

/// The queue of the one writer.
pub struct PriorityQueue<T> {
    config: PriorityConfig,
    classes: [VecDeque<Waiting<T>>; 3],
    status: [ClassStatus; 3],
    arrivals: u64,
}

impl<T> PriorityQueue<T> {
    pub fn new(config: PriorityConfig) -> Self {
        Self { config, classes: Default::default(), status: Default::default(), arrivals: 0 }
    }

    pub fn push(&mut self, class: Class, work: T, bytes: usize, now_us: u64) {
        self.arrivals += 1;
        let status = &mut self.status[class as usize];
        status.waiting += 1;
        status.waiting_bytes += bytes;
        self.classes[class as usize].push_back(Waiting { work, bytes, since_us: now_us, arrival: self.arrivals });
    }

    /// Takes the next piece of work.
    pub fn pop(&mut self, now_us: u64) -> Option<(Class, T)> {
        let class = self.next_class(now_us)?;
        let Waiting { work, bytes, since_us, .. } = self.classes[class as usize].pop_front()?;
        let status = &mut self.status[class as usize];
        let waited_us = now_us.saturating_sub(since_us);
        status.waiting -= 1;
        status.waiting_bytes -= bytes;
        status.served += 1;
        status.waited_us += waited_us;
        status.waited_us_max = status.waited_us_max.max(waited_us);
        Some((class, work))
    }

    fn next_class(&self, now_us: u64) -> Option<Class> {
        let heads = || Class::ALL.into_iter().filter_map(|class| Some((class, self.classes[class as usize].front()?)));
        let oldest = heads().min_by_key(|(_, head)| head.arrival);
        if !self.config.enabled {
            return oldest.map(|(class, _)| class);
        }
        let aged = oldest.filter(|(_, head)| now_us.saturating_sub(head.since_us) > self.config.ageing_ms * 1000);
        aged.or_else(|| heads().next()).map(|(class, _)| class)
    }

    pub fn status(&self, class: Class) -> ClassStatus {
        self.status[class as usize]
    }

    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(VecDeque::is_empty)
    }

    /// Removes the waiting work of one class that does not pass.
    pub fn retain(&mut self, class: Class, mut keep: impl FnMut(&T) -> bool) {
        let status = &mut self.status[class as usize];
        self.classes[class as usize].retain(|waiting| {
            let kept = keep(&waiting.work);
            if !kept {
                status.waiting -= 1;
                status.waiting_bytes -= waiting.bytes;
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(config: PriorityConfig, work: &[(Class, u64)], now_us: u64) -> Vec<u64> {
        let mut queue = PriorityQueue::new(config);
        for &(class, since_us) in work {
            queue.push(class, since_us, 1, since_us);
        }
        std::iter::from_fn(|| queue.pop(now_us).map(|(_, work)| work)).collect()
    }

    #[test]
    fn management_goes_first_then_transmission_then_reception() {
        let work = [(Class::Reception, 1), (Class::Transmission, 2), (Class::Management, 3), (Class::Management, 4)];
        assert_eq!(order(PriorityConfig::default(), &work, 10), [3, 4, 2, 1]);
    }

    #[test]
    fn aged_work_is_not_overtaken() {
        let work = [(Class::Reception, 1), (Class::Management, 300_000)];
        assert_eq!(order(PriorityConfig::default(), &work, 300_001), [1, 300_000]);
    }

    #[test]
    fn without_priorities_it_is_one_queue() {
        let config = PriorityConfig { enabled: false, ..PriorityConfig::default() };
        let work = [(Class::Reception, 1), (Class::Management, 2), (Class::Transmission, 3)];
        assert_eq!(order(config, &work, 10), [1, 2, 3]);
    }

    #[test]
    fn depth_and_waiting_times_are_counted() {
        let mut queue = PriorityQueue::new(PriorityConfig::default());
        queue.push(Class::Reception, 'a', 10, 100);
        queue.push(Class::Reception, 'b', 20, 100);
        queue.retain(Class::Reception, |work| *work != 'b');
        assert_eq!(queue.status(Class::Reception).waiting_bytes, 10);
        queue.pop(150);
        let status = queue.status(Class::Reception);
        assert_eq!((status.waiting, status.served, status.waited_us_max), (0, 1, 50));
    }
}
