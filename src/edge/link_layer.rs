//! Announcing an address on a network, and asking whether somebody answers there.
//!
//! IPv4: ARP frames on a packet socket: announcement and probe of RFC 5227. IPv6: unsolicited neighbour advertisement and
//! neighbour solicitation of RFC 4861 on a raw ICMPv6 socket; the kernel fills in the checksum.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use rustix::net::netdevice::name_to_index;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// A hardware address.
pub type Mac = [u8; 6];

/// Reads `52:54:00:12:34:56`.
pub fn read_mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

const BROADCAST: Mac = [0xff; 6];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const FRAME_BYTES: usize = 42;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Its number as the next header of an IPv6 packet.
const ICMPV6: u8 = 58;
/// In an advertisement: what is known of the address is replaced.
const OVERRIDE: u8 = 0x20;
/// A probe is sent again after this long: packets get lost.
const PROBE_EVERY: Duration = Duration::from_millis(60);

/// Tells everybody on the network that the address is here: gratuitous ARP, or an unsolicited neighbour advertisement.
/// The interface must have the address.
///
/// # Errors
/// No such interface, not an Ethernet, or not permitted (CAP_NET_RAW).
pub fn announce(interface: &str, ip: IpAddr) -> io::Result<()> {
    let link = Link::open(interface)?;
    match ip {
        IpAddr::V4(ip) => {
            // Some take notice of requests only, some of replies only.
            for operation in [ARP_REQUEST, ARP_REPLY] {
                link.send(&arp(operation, link.mac, ip, ip))?;
            }
            Ok(())
        }
        IpAddr::V6(ip) => {
            let socket = icmp(link.index)?;
            socket.bind(&SocketAddrV6::new(ip, 0, 0, link.index).into())?;
            let message = neighbour(ADVERTISEMENT, OVERRIDE, ip, 2, link.mac);
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            socket.send_to(&message, &SocketAddrV6::new(all_nodes, 0, 0, link.index).into()).map(drop)
        }
    }
}

/// Announces an address on behalf of a guest with this hardware address, through the bridge that its network leads to.
///
/// # Errors
/// As `announce`.
pub fn announce_for(bridge: &str, mac: Mac, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(ip) => {
            let link = Link::open(bridge)?;
            for operation in [ARP_REQUEST, ARP_REPLY] {
                link.send(&arp(operation, mac, ip, ip))?;
            }
            Ok(())
        }
        IpAddr::V6(ip) => Link::open_for(bridge, libc::ETH_P_IPV6 as u16)?.send(&advertisement_frame(mac, ip)),
    }
}

/// Asks whether another machine on the network has the address, until `patience` is over: the first one that says so, or none.
///
/// # Errors
/// No such interface, not an Ethernet, or not permitted (CAP_NET_RAW): then nothing is known.
pub fn probe(interface: &str, ip: IpAddr, patience: Duration) -> io::Result<Option<Mac>> {
    let link = Link::open(interface)?;
    let deadline = Instant::now() + patience;
    match ip {
        IpAddr::V4(ip) => {
            let question = arp(ARP_REQUEST, link.mac, Ipv4Addr::UNSPECIFIED, ip);
            let is_answer = |frame: &[u8]| arp_sender(frame, ip).filter(|mac| *mac != link.mac);
            ask(&link.socket, deadline, || link.send(&question), is_answer)
        }
        IpAddr::V6(ip) => {
            let socket = icmp(link.index)?;
            let question = neighbour(SOLICITATION, 0, ip, 1, link.mac);
            let [.., a, b, c] = ip.octets();
            let low = u16::from_be_bytes([b, c]);
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low);
            let group: SockAddr = SocketAddrV6::new(group, 0, 0, link.index).into();
            let is_answer = |message: &[u8]| advertiser(message, ip).filter(|mac| *mac != link.mac);
            ask(&socket, deadline, || socket.send_to(&question, &group).map(drop), is_answer)
        }
    }
}

fn ask(
    socket: &Socket,
    deadline: Instant,
    question: impl Fn() -> io::Result<()>,
    is_answer: impl Fn(&[u8]) -> Option<Mac>,
) -> io::Result<Option<Mac>> {
    let mut next_question = Instant::now();
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Ok(None);
        }
        if now >= next_question {
            question()?;
            next_question = now + PROBE_EVERY;
        }
        let wait = next_question.min(deadline).saturating_duration_since(now);
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let mut buffer = [MaybeUninit::uninit(); 256];
        match socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(mac) = is_answer(&filled(&buffer, length)) {
                    return Ok(Some(mac));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A packet socket for ARP, bound to one interface.
struct Link {
    socket: Socket,
    index: u32,
    mac: Mac,
}

impl Link {
    fn open(interface: &str) -> io::Result<Self> {
        Self::open_for(interface, libc::ETH_P_ARP as u16)
    }

    /// For frames of one protocol.
    fn open_for(interface: &str, protocol: u16) -> io::Result<Self> {
        let within = |error: io::Error| io::Error::new(error.kind(), format!("interface {interface}: {error}"));
        let number = i32::from(protocol.to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(number))).map_err(within)?;
        let index = name_to_index(&socket, interface).map_err(|error| within(error.into()))?;
        socket.bind(&packet_address(index, protocol)).map_err(within)?;
        let mac = hardware_address(&socket.local_addr().map_err(within)?)
            .ok_or_else(|| within(io::Error::other("it is not an Ethernet")))?;
        Ok(Self { socket, index, mac })
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }
}

#[allow(unsafe_code)]
fn packet_address(index: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a sockaddr_ll is plain data of a family's address, smaller than the storage, and all of it is set or zero.
    unsafe {
        let link = storage.view_as::<libc::sockaddr_ll>();
        link.sll_family = libc::AF_PACKET as libc::sa_family_t;
        link.sll_protocol = protocol.to_be();
        link.sll_ifindex = index as i32;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }
}

#[allow(unsafe_code)]
fn hardware_address(local: &SockAddr) -> Option<Mac> {
    if local.domain() != Domain::PACKET || (local.len() as usize) < size_of::<libc::sockaddr_ll>() - 2 {
        return None;
    }
    let mut storage = local.clone().as_storage();
    // SAFETY: the kernel has filled in a sockaddr_ll, as the family says.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    let ethernet = link.sll_hatype == libc::ARPHRD_ETHER && link.sll_halen == 6;
    ethernet.then(|| link.sll_addr[..6].try_into().expect("it has six bytes"))
}

fn filled(buffer: &[MaybeUninit<u8>], length: usize) -> Vec<u8> {
    #[allow(unsafe_code)]
    // SAFETY: the kernel has written the first `length` bytes.
    buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect()
}

fn icmp(index: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_if_v6(index)?;
    // Neighbour discovery is believed with this hop limit only: it proves that no router was passed.
    socket.set_multicast_hops_v6(255)?;
    socket.set_unicast_hops_v6(255)?;
    Ok(socket)
}

fn arp(operation: u16, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[0..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&(libc::ETH_P_ARP as u16).to_be_bytes());
    // Ethernet, IPv4, and the lengths of their addresses.
    frame[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&sender.octets());
    if operation == ARP_REPLY {
        frame[32..38].copy_from_slice(&mac);
    }
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

/// Who says of itself that it has the address.
fn arp_sender(frame: &[u8], ip: Ipv4Addr) -> Option<Mac> {
    let arp = frame.get(..FRAME_BYTES)?.get(14..)?;
    let is_of_address = arp[..6] == [0, 1, 8, 0, 6, 4] && arp[14..18] == ip.octets();
    is_of_address.then(|| arp[8..14].try_into().expect("it has six bytes"))
}

fn neighbour(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> [u8; 32] {
    let mut message = [0; 32];
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[option, 1]);
    message[26..32].copy_from_slice(&mac);
    message
}

/// An unsolicited neighbour advertisement as a whole Ethernet frame.
fn advertisement_frame(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = neighbour(ADVERTISEMENT, OVERRIDE, ip, 2, mac);
    let length = message.len() as u16;
    let mut summed = Vec::from(ip.octets());
    summed.extend(all_nodes.octets());
    summed.extend([0, 0]);
    summed.extend(length.to_be_bytes());
    summed.extend([0, 0, 0, ICMPV6]);
    summed.extend(message);
    message[2..4].copy_from_slice(&internet_checksum(&summed).to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend((libc::ETH_P_IPV6 as u16).to_be_bytes());
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // Neighbour discovery is believed with this hop limit only.
    frame.extend([ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

/// RFC 1071, of an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

fn advertiser(message: &[u8], ip: Ipv6Addr) -> Option<Mac> {
    let message = message.get(..32)?;
    let is_of_address = message[0] == ADVERTISEMENT && message[8..24] == ip.octets() && message[24..26] == [2, 1];
    is_of_address.then(|| message[26..32].try_into().expect("it has six bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn a_frame_names_its_sender() {
        let ip = Ipv4Addr::new(10, 0, 0, 2);
        let frame = arp(ARP_REPLY, MAC, ip, ip);
        assert_eq!(arp_sender(&frame, ip), Some(MAC));
        assert_eq!(arp_sender(&frame, Ipv4Addr::new(10, 0, 0, 3)), None);
        assert_eq!(arp_sender(&frame[..41], ip), None);
        // A probe by a third party does not claim the address.
        assert_eq!(arp_sender(&arp(ARP_REQUEST, MAC, Ipv4Addr::UNSPECIFIED, ip), ip), None);
    }

    #[test]
    fn a_frame_made_by_hand_has_the_checksum_that_its_receiver_computes() {
        let frame = advertisement_frame(MAC, "fd00::2".parse().unwrap());
        assert_eq!(frame.len(), 14 + 40 + 32);
        let mut summed = frame[14 + 8..14 + 40].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, ICMPV6]);
        summed.extend(&frame[14 + 40..]);
        // With the checksum in its place the sum is all ones.
        assert_eq!(internet_checksum(&summed), 0);
    }

    #[test]
    fn an_advertisement_names_its_sender() {
        let ip: Ipv6Addr = "fd00::2".parse().unwrap();
        assert_eq!(advertiser(&neighbour(ADVERTISEMENT, OVERRIDE, ip, 2, MAC), ip), Some(MAC));
        assert_eq!(advertiser(&neighbour(SOLICITATION, 0, ip, 1, MAC), ip), None);
    }
}
