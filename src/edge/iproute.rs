//! Calls of `ip` (iproute2): interfaces and addresses. Each takes about 2 ms.
//!
//! What could not be tried is not done: whoever is told that something is gone gives it to somebody else.

use std::io;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use socket2::{Domain, Socket, Type};

use crate::core::decision::ServiceAddress;

/// Runs `ip` with these words.
///
/// # Errors
/// `ip` is not there, or says no: its own words, and the call.
pub fn ip(words: &[&str]) -> io::Result<String> {
    let call = || format!("ip {}", words.join(" "));
    let run = Command::new("ip").args(words).stdin(Stdio::null()).output();
    let output = run.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), "the program 'ip' is missing; install iproute2"),
        kind => io::Error::new(kind, format!("'{}' cannot be run: {error}", call())),
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("'{}' failed: {}", call(), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives an interface an address that the kernel itself takes away after `seconds`, whatever becomes of the processes.
pub fn set_address(interface: &str, address: ServiceAddress, seconds: u64) -> io::Result<()> {
    let (address_text, seconds) = (address.to_string(), seconds.to_string());
    let mut words = vec!["address", "replace", &address_text, "dev", interface];
    words.extend(["valid_lft", &seconds, "preferred_lft", &seconds]);
    if address.ip.is_ipv6() {
        // Whether somebody else has it was asked before; duplicate detection would cost a second.
        words.push("nodad");
    }
    ip(&words).map(drop)
}

/// Takes an address away; one that is not there is none.
pub fn remove_address(interface: &str, address: ServiceAddress) -> io::Result<()> {
    ip(&["address", "delete", &address.to_string(), "dev", interface]).map(drop).or_else(|error| {
        // What it was that `ip` did not like differs between its versions; what counts is what is there.
        let listed = || ip(&["-oneline", "address", "show", "dev", interface, "to", &address.ip.to_string()]);
        if !exists(interface)? || listed().is_ok_and(|listed| listed.trim().is_empty()) { Ok(()) } else { Err(error) }
    })
}

/// Lets an interface carry traffic.
pub fn set_up(interface: &str) -> io::Result<()> {
    ip(&["link", "set", "dev", interface, "up"]).map(drop)
}

/// Lets an interface carry nothing; one that is not there carries nothing.
pub fn set_down(interface: &str) -> io::Result<()> {
    ip(&["link", "set", "dev", interface, "down"])
        .map(drop)
        .or_else(|error| if exists(interface)? { Err(error) } else { Ok(()) })
}

/// Removes an interface; one that is not there is none.
pub fn remove_interface(interface: &str) -> io::Result<()> {
    ip(&["link", "delete", interface]).map(drop).or_else(|error| if exists(interface)? { Err(error) } else { Ok(()) })
}

/// Whether the network of this thread has the interface. `/sys` may show another network, and `ip` may not run.
fn exists(interface: &str) -> io::Result<bool> {
    match name_to_index(&Socket::new(Domain::UNIX, Type::DGRAM, None)?, interface) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
