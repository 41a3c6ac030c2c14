//! A network of its own for each server, and a switch between them that can be told to lose, delay, reorder or repeat packets
//! in each direction on its own.
//!
//! Every server gets a network namespace with one TUN device; the switch is a thread of the test that moves IP packets between
//! them by user-space rules. So nothing is needed but root and `/dev/net/tun`: no bridge, no `tc`, no firewall, and a
//! namespace is gone with the last thread or process in it, whatever becomes of the test.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What happens to packets from one server to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rule {
    /// Of 100 packets, this many are lost.
    pub loss_percent: u32,
    /// Least and most delay; packets overtake each other within it.
    pub delay_ms: (u64, u64),
    /// Of 100 packets, this many arrive twice.
    pub repeat_percent: u32,
}

impl Rule {
    pub const CUT: Self = Self { loss_percent: 100, delay_ms: (0, 0), repeat_percent: 0 };
}

type Job = Box<dyn FnOnce() + Send>;

/// Cheap to clone; ends with its last clone.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    namespaces: Vec<Mutex<mpsc::Sender<Job>>>,
    rules: Arc<Mutex<BTreeMap<(usize, usize), Rule>>>,
    stop: Arc<AtomicBool>,
}

/// The address of a server by its index.
pub fn address(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, index as u8 + 1))
}

impl Network {
    /// Namespaces for `count` servers. `Err`: why that is not possible here.
    pub fn of(count: usize) -> io::Result<Self> {
        let mut namespaces = Vec::new();
        let mut devices = Vec::new();
        for index in 0..count {
            let (jobs, inbox) = mpsc::channel::<Job>();
            let (made, answer) = mpsc::channel();
            thread::spawn(move || {
                let device = namespace_with_device(index);
                let good = device.is_ok();
                let _ = made.send(device);
                if good {
                    inbox.iter().for_each(|job| job());
                }
            });
            devices.push(answer.recv().expect("the thread answers")?);
            namespaces.push(Mutex::new(jobs));
        }
        let rules = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let switch = Switch {
            devices,
            rules: rules.clone(),
            stop: stop.clone(),
            waiting: BinaryHeap::new(),
            count: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        thread::spawn(move || switch.run());
        Ok(Self { shared: Arc::new(Shared { namespaces, rules, stop }) })
    }

    /// Runs something in the namespace of a server: what it starts is there too.
    pub fn within<T: Send + 'static>(&self, index: usize, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = done.send(job());
        });
        super::lock(&self.shared.namespaces[index]).send(job).expect("the namespace is there");
        answer.recv().expect("the job ends")
    }

    /// Packets from one server to another, by index; not those back.
    pub fn rule(&self, from: usize, to: usize, rule: Rule) {
        super::lock(&self.shared.rules).insert((from, to), rule);
    }

    /// Every packet of every server.
    pub fn rule_for_all(&self, rule: Rule) {
        let count = self.shared.namespaces.len();
        for from in 0..count {
            (0..count).filter(|to| *to != from).for_each(|to| self.rule(from, to, rule));
        }
    }

    /// No packet between the sides, in neither direction.
    pub fn cut_between(&self, one: &[usize], other: &[usize]) {
        for &a in one {
            for &b in other {
                self.rule(a, b, Rule::CUT);
                self.rule(b, a, Rule::CUT);
            }
        }
    }

    pub fn heal(&self) {
        super::lock(&self.shared.rules).clear();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Packet {
    to: usize,
    bytes: Vec<u8>,
}

/// When it is due, which it was, for whom, the packet.
type Delayed = (Instant, u64, usize, Vec<u8>);

struct Switch {
    devices: Vec<File>,
    rules: Arc<Mutex<BTreeMap<(usize, usize), Rule>>>,
    stop: Arc<AtomicBool>,
    /// By the time at which they are due, then by arrival.
    waiting: BinaryHeap<Reverse<Delayed>>,
    count: u64,
    random: u64,
}

impl Switch {
    #[allow(unsafe_code)]
    fn run(mut self) {
        let mut buffer = vec![0; 65536];
        while !self.stop.load(Ordering::Relaxed) {
            let due = self.waiting.peek().map(|Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
            let patience_ms = due.map_or(50, |wait| wait.as_millis().min(50) as i32);
            let mut polled: Vec<libc::pollfd> = self
                .devices
                .iter()
                .map(|device| libc::pollfd { fd: device.as_raw_fd(), events: libc::POLLIN, revents: 0 })
                .collect();
            // SAFETY: the array is valid for its length and lives through the call.
            unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, patience_ms) };
            for (from, polled) in polled.iter().enumerate() {
                if polled.revents & libc::POLLIN != 0 {
                    while let Ok(length) = self.devices[from].read(&mut buffer) {
                        self.route(from, &buffer[..length]);
                    }
                }
            }
            while self.waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
                let Reverse((_, _, to, bytes)) = self.waiting.pop().expect("it was looked at");
                self.deliver(&Packet { to, bytes });
            }
        }
    }

    fn route(&mut self, from: usize, bytes: &[u8]) {
        // IPv4 only; the last byte of the destination is the server's index and one.
        if bytes.len() < 20 || bytes[0] >> 4 != 4 {
            return;
        }
        let Some(to) = usize::from(bytes[19]).checked_sub(1).filter(|to| *to < self.devices.len()) else { return };
        let rule = super::lock(&self.rules).get(&(from, to)).copied().unwrap_or_default();
        if self.chance(rule.loss_percent) {
            return;
        }
        let copies = 1 + usize::from(self.chance(rule.repeat_percent));
        for _ in 0..copies {
            let (least, most) = rule.delay_ms;
            let bytes = bytes.to_vec();
            if most == 0 {
                self.deliver(&Packet { to, bytes });
                continue;
            }
            let delay_ms = least + self.next_random() % (most - least + 1);
            self.count += 1;
            let due = Instant::now() + Duration::from_millis(delay_ms);
            self.waiting.push(Reverse((due, self.count, to, bytes)));
        }
    }

    fn deliver(&mut self, packet: &Packet) {
        // A full or missing device loses the packet, as a network does.
        let _ = self.devices[packet.to].write(&packet.bytes);
    }

    fn chance(&mut self, percent: u32) -> bool {
        percent > 0 && self.next_random() % 100 < u64::from(percent)
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Moves this thread into a namespace of its own and makes its device there.
#[allow(unsafe_code)]
fn namespace_with_device(index: usize) -> io::Result<File> {
    let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: it concerns this thread only, and no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"p2p0") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call; both descriptors below are open.
    unsafe {
        check(libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request))?;
        check(libc::fcntl(device.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK))?;
    }
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let IpAddr::V4(ip) = address(index) else { unreachable!("addresses are IPv4") };
    let of_ip = |ip: Ipv4Addr| {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: both are 16 bytes of plain data, and this is what a sockaddr of this family is.
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
    };
    let up = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: each request reads one ifreq, which outlives the call.
    unsafe {
        request.ifr_ifru.ifru_addr = of_ip(ip);
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &raw mut request))?;
        request.ifr_ifru.ifru_netmask = of_ip(Ipv4Addr::new(255, 255, 255, 0));
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFNETMASK as _, &raw mut request))?;
        request.ifr_ifru.ifru_flags = up;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request))?;
        let mut loopback: libc::ifreq = std::mem::zeroed();
        loopback.ifr_name[0] = b'l' as libc::c_char;
        loopback.ifr_name[1] = b'o' as libc::c_char;
        loopback.ifr_ifru.ifru_flags = up;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut loopback))?;
    }
    Ok(device)
}
