//! How many connections each source has that have not proven who they are: none is to take all the room.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by source: [`network_of`] an address, or the address of somebody who is known.
#[derive(Clone, Default)]
pub(crate) struct Sources(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One that counts until it is dropped.
pub(crate) struct Counted {
    sources: Sources,
    source: IpAddr,
}

impl Sources {
    /// Counts one more of this source; `None`: it has `most` already, at least one.
    pub fn enter(&self, source: IpAddr, most: usize) -> Option<Counted> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { sources: self.clone(), source })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// An address of IPv4, or a network of 64 bits of IPv6, for one machine may have all addresses of one.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_part_and_gives_it_back() {
        let sources = Sources::default();
        let enter = |address: &str| sources.enter(network_of(address.parse().unwrap()), 2);
        let held = [enter("10.0.0.1"), enter("::ffff:10.0.0.1"), enter("fd00::1"), enter("fd00::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(enter("10.0.0.1").is_none() && enter("fd00::ffff:3").is_none());
        assert!(enter("10.0.0.2").is_some() && enter("fd00:0:0:1::1").is_some());
        drop(held);
        assert!(sources.0.lock().unwrap().is_empty());
        assert!(enter("10.0.0.1").is_some());
    }
}
