//! Names, acts and a group that has been founded.

use std::sync::Arc;

use p2pdb::core::chain::{ChainConfig, Memory, Wish};
use p2pdb::core::decision::{Act, Decision, Incarnation, Place, Slot};
use p2pdb::core::id::ServerName;
use p2pdb::core::quorum::Policy;

/// `S1` for 0.
pub fn server(index: usize) -> ServerName {
    ServerName::new(&format!("S{}", index + 1)).unwrap()
}

pub fn index(name: &ServerName) -> usize {
    name.as_str()[1..].parse::<usize>().unwrap() - 1
}

/// A server is recovered by `manager`, which also is the host.
pub fn recover(target: usize, manager: usize) -> Act {
    let place = Some(Place { host: server(manager), original: "a".into() });
    Act::Recover { target: server(target), place, manager: server(manager), replaces: None }
}

pub fn admit(index: usize, incarnation: u64) -> Act {
    Act::Admit { server: server(index), incarnation: Incarnation(incarnation) }
}

pub fn wish(act: Act) -> Wish {
    Wish { author: String::new(), reason: String::new(), act }
}

/// What every server of a group of `size` knows once all have been admitted, in incarnation 1.
pub fn founded(size: usize) -> Memory {
    let found = Act::Found { founder: server(0), incarnation: Incarnation(1) };
    let acts = [found].into_iter().chain((1..size).map(|index| admit(index, 1)));
    let mut memory = Memory::default();
    for (slot, act) in (1..).zip(acts) {
        memory.decide(Arc::new(decision(slot, act)));
    }
    memory
}

fn decision(slot: Slot, act: Act) -> Decision {
    Decision { slot, by: server(0), wall_ms: 0, author: String::new(), reason: String::new(), act }
}

pub fn config(index: usize, incarnation: u64, policy: Policy) -> ChainConfig {
    ChainConfig { policy, ask_ms: None, ..ChainConfig::new(server(index), Incarnation(incarnation), index as u64) }
}
