//! DNS (RFC 1035): one question for the address of a name, by UDP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use tokio::net::UdpSocket;

use super::{Answer, exchange, outcome_of, wrong};
use crate::core::probe::{ProbeId, ProbeOutcome};

pub(super) async fn ask(server: SocketAddr, name: &str, id: ProbeId, again: Duration) -> Answer {
    let id = id as u16;
    let question = question(id, name).map_err(|error| ProbeOutcome::Unable(format!("the name {name}: {error}")))?;
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(|error| outcome_of(&error))?;
    socket.connect(server).await.map_err(|error| outcome_of(&error))?;
    exchange(&socket, &question, again, |bytes| judge(id, bytes)).await
}

fn question(id: u16, name: &str) -> simple_dns::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name)?, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec()
}

/// `None` for an answer to an earlier question.
fn judge(id: u16, bytes: &[u8]) -> Option<Answer> {
    let Ok(packet) = Packet::parse(bytes) else {
        return Some(Err(wrong("a DNS response", bytes)));
    };
    if !packet.has_flags(PacketFlag::RESPONSE) {
        return Some(Err(wrong("a DNS response", bytes)));
    }
    if packet.id() != id {
        return None;
    }
    Some(match packet.rcode() {
        RCODE::ServerFailure => Err(ProbeOutcome::Refused("it answers with a server failure".to_owned())),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_comes_back_is_judged(bytes in proptest::collection::vec(any::<u8>(), 0..600), records in 0u8..4) {
            let _ = judge(7, &bytes);
            // With a header that fits, so that the records behind it are read.
            let mut plausible = vec![0, 7, 0x80, 0, 0, 1, 0, records, 0, records, 0, records];
            plausible.extend(bytes);
            let _ = judge(7, &plausible);
        }
    }

    #[test]
    fn names_that_point_at_themselves_end() {
        for target in [12u8, 13, 0] {
            let mut bytes = vec![0, 7, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, target, 0, 1, 0, 1];
            bytes.extend([0xc0, target, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]);
            let _ = judge(7, &bytes);
        }
    }
}
