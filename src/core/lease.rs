//! The lease: for how long a server may rely on what it knows of the decisions (Gray & Cheriton, "Leases", 1989).
//!
//! ```text
//! holder                          electors
//!   ├─ Request(number, open slot) ──►│ the same open slot, and nothing accepted in it? then remember when
//!   │◄─ Grant(number) ───────────────┤
//!  a quorum: valid until `lease_ms` after the request was made
//! ```
//! One lease covers all that a server holds: its own service address and those of its stand-ins. Whoever takes an address over waits
//! until `lease_ms` after the decision.
//!
//! Why this is safe: let a lease be requested at time t with open slot n, granted by a quorum G of the electorate of n. Slot n is
//! decided by a quorum D of the same electorate. Some elector is in both, and grants nothing once it has accepted in slot n, so t lies before
//! the decision of n, and before that of any later slot. So at a decision in slot n or later, less than `lease_ms` of
//! any lease that does not know it is left.
//!
//! It may be known to be over sooner: the electors say when they granted last ([`LeaseMessage::Age`]). Those that know the decision grant
//! no old lease any more; a quorum of them shares an elector with G, so the lease was requested before the youngest grant among them.
//! Times are of monotonic clocks, whose rates may differ by [`DRIFT_PERMILLE`].

use std::collections::{BTreeMap, BTreeSet};

use super::chain::Chain;
use super::decision::Slot;
use super::id::ServerName;
use super::quorum::{Electorate, Policy};

/// By how much two monotonic clocks may differ in rate, in thousandths.
pub const DRIFT_PERMILLE: u64 = 10;
/// Requests whose grants are still counted.
const OPEN_MAX: usize = 8;

/// What holders and electors say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseMessage {
    Request {
        number: u64,
        open_slot: Slot,
    },
    Grant {
        number: u64,
    },
    /// When have you granted a lease to this server last? Asked by whoever takes over because of this decision.
    WantAge {
        holder: ServerName,
        slot: Slot,
    },
    /// So long ago at least.
    Age {
        holder: ServerName,
        slot: Slot,
        age_ms: u64,
    },
}

#[derive(Debug, Clone)]
struct Open {
    number: u64,
    requested_us: u64,
    open_slot: Slot,
    granted: BTreeSet<ServerName>,
}

/// This server's own lease.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    open: Vec<Open>,
    numbers: u64,
    /// When the request of the lease that is held was made.
    from_us: Option<u64>,
}

impl Lease {
    /// Asks anew. The request is to be sent to all electors.
    pub fn request(&mut self, open_slot: Slot, now_us: u64) -> LeaseMessage {
        self.numbers += 1;
        if self.open.len() == OPEN_MAX {
            self.open.remove(0);
        }
        self.open.push(Open { number: self.numbers, requested_us: now_us, open_slot, granted: BTreeSet::new() });
        LeaseMessage::Request { number: self.numbers, open_slot }
    }

    /// Counts a grant. Returns whether the lease is longer now.
    pub fn granted(
        &mut self,
        from: ServerName,
        number: u64,
        open_slot: Slot,
        electorate: &Electorate,
        policy: Policy,
        reachable: &BTreeSet<ServerName>,
    ) -> bool {
        // Grants for an older slot came from another electorate.
        self.open.retain(|open| open.open_slot == open_slot);
        let Some(open) = self.open.iter_mut().find(|open| open.number == number) else { return false };
        open.granted.insert(from);
        if !electorate.is_quorum(policy, &open.granted, reachable) {
            return false;
        }
        let requested_us = open.requested_us;
        self.open.retain(|open| open.number > number);
        let longer = self.from_us.is_none_or(|from_us| from_us < requested_us);
        self.from_us = self.from_us.max(Some(requested_us));
        longer
    }

    /// For how long something may be held yet, in milliseconds; 0 when the lease is over.
    pub fn left_ms(&self, lease_ms: u64, now_us: u64) -> u64 {
        self.from_us.map_or(0, |from_us| (from_us + lease_ms * 1000).saturating_sub(now_us) / 1000)
    }
}

/// What an elector remembers of the leases that it has granted.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    /// When this server began: what it granted before is not known.
    since_us: Option<u64>,
    last_us: BTreeMap<ServerName, u64>,
}

impl Grants {
    /// Whether to grant. Whoever is granted is remembered.
    pub fn grants(&mut self, holder: &ServerName, open_slot: Slot, chain: &Chain, now_us: u64) -> bool {
        self.since_us.get_or_insert(now_us);
        let memory = chain.memory();
        let grants = open_slot == memory.open_slot() && memory.acceptor.accepted().is_none() && chain.votes();
        if grants {
            self.last_us.insert(holder.clone(), now_us);
        }
        grants
    }

    /// How long ago the holder was granted a lease last, at least.
    pub fn age_ms(&mut self, holder: &ServerName, now_us: u64) -> u64 {
        let since_us = *self.since_us.get_or_insert(now_us);
        now_us.saturating_sub(self.last_us.get(holder).copied().unwrap_or(since_us)) / 1000
    }
}

/// How long whoever takes over waits for a lease of `lease_ms`.
pub fn wait_ms(lease_ms: u64) -> u64 {
    lease_ms + (lease_ms * DRIFT_PERMILLE).div_ceil(1000)
}
