//! What the management files say of a server's service: its address, its exclusiveness, its installation procedure.

use super::decision::ServiceAddress;
use super::id::{Digest, ServerName};
use super::merge::Files;
use super::schema::file;

/// What the name of the bundle with a server's installation procedure begins with.
pub const PROCEDURE_PREFIX: &str = "procedure.";

/// One record of the file `Service`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    pub address: ServiceAddress,
    /// Whether two servers must never answer at the address, whatever it costs in availability.
    pub exclusive: bool,
}

impl Service {
    /// The service of a server, if it has one that can be read.
    pub fn of(files: &Files, server: &ServerName) -> Option<Self> {
        let record = files.builtin(file::SERVICE)?.record(server.as_str())?;
        let exclusive = match record.field(2) {
            "exclusive" => true,
            "shared" => false,
            _ => return None,
        };
        Some(Self { address: parse_address(record.field(1))?, exclusive })
    }
}

/// The installation procedure of a server, if there is one.
pub fn procedure_of(files: &Files, server: &ServerName) -> Option<Digest> {
    let name = format!("{PROCEDURE_PREFIX}{server}");
    files.builtin(file::BUNDLE)?.record(&name)?.field(2).parse().ok()
}

/// Reads `10.0.0.2/24`; in a record from when the length could be left out, the address alone is meant.
pub fn parse_address(text: &str) -> Option<ServiceAddress> {
    let (ip, prefix) = match text.split_once('/') {
        Some((ip, prefix)) => (ip, Some(prefix)),
        None => (text, None),
    };
    let ip: std::net::IpAddr = ip.parse().ok()?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        Some(prefix) => prefix.parse().ok().filter(|prefix| (1..=bits).contains(prefix))?,
        None => bits,
    };
    Some(ServiceAddress { ip, prefix })
}

impl std::fmt::Display for ServiceAddress {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.ip, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for text in ["10.0.0.2/24", "10.0.0.2/32", "fd00::2/64"] {
            assert_eq!(parse_address(text).unwrap().to_string(), text);
        }
        assert_eq!(parse_address("10.0.0.2").unwrap().to_string(), "10.0.0.2/32");
        for text in ["", "10.0.0", "10.0.0.2/0", "10.0.0.2/33", "10.0.0.2/x", "fd00::2/129"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
