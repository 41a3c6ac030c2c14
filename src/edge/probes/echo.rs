//! ICMP echo (RFC 792, RFC 4443), by a datagram socket that needs no privilege where `net.ipv4.ping_group_range` allows it, and by
//! a raw socket otherwise.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{Answer, exchange, outcome_of};
use crate::core::probe::{ProbeId, ProbeOutcome};

const HEADER_BYTES: usize = 8;

pub(super) async fn ask(address: IpAddr, id: ProbeId, again: Duration) -> Answer {
    let (socket, raw) = open(address)?;
    let (request, reply) = if address.is_ipv4() { (8, 0) } else { (128, 129) };
    // The payload tells this echo from those of others: a raw socket gets them all.
    let mut payload = [0; 12];
    payload[..4].copy_from_slice(&std::process::id().to_be_bytes());
    payload[4..].copy_from_slice(&id.to_be_bytes());
    let packet = packet(request, &payload);
    exchange(&socket, &packet, again, |bytes| {
        let skip = if raw && address.is_ipv4() { usize::from(bytes.first()? & 0xf) * 4 } else { 0 };
        let message = bytes.get(skip..)?;
        let ours = message.first() == Some(&reply) && message.get(HEADER_BYTES..) == Some(&payload);
        ours.then_some(Ok(()))
    })
    .await
}

/// A socket for echoes to this address alone, and whether it is a raw one.
fn open(address: IpAddr) -> Result<(UdpSocket, bool), ProbeOutcome> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let (socket, raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Ok(socket) => (socket, false),
        Err(_) => match Socket::new(domain, Type::RAW, Some(protocol)) {
            Ok(socket) => (socket, true),
            Err(error) => return Err(unable(&error)),
        },
    };
    let ready = || {
        socket.set_nonblocking(true)?;
        socket.connect(&SocketAddr::from((address, 0)).into())
    };
    ready().map_err(|error| outcome_of(&error))?;
    let socket = UdpSocket::from_std(socket.into()).map_err(|error| unable(&error))?;
    Ok((socket, raw))
}

fn unable(error: &io::Error) -> ProbeOutcome {
    ProbeOutcome::Unable(format!(
        "no socket for ICMP ({error}); set sysctl net.ipv4.ping_group_range='0 2147483647', or give the daemon CAP_NET_RAW"
    ))
}

/// An echo request. The kernel puts its own identifier into those of datagram sockets, and the checksum of ICMPv6.
fn packet(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    packet.extend_from_slice(payload);
    let checksum = checksum(&packet);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
