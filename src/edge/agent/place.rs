//! Where an address is held: on an interface, or in a virtual machine behind a gate.
//!
//! A guest of libvirt has the address on its own interface, and whether others reach it there is decided by its *gate*, the end of its
//! network that is on the host: an interface of a bridge, up or down. So an address lapses on time whatever becomes of the guest.

use std::io;
use std::net::IpAddr;

use crate::core::decision::ServiceAddress;
use crate::edge::iproute;
use crate::edge::link_layer::{self, Mac};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// An interface here; `None`: there is no service network.
    Interface { name: Option<String>, gateway: Option<IpAddr> },
    /// The gate of a guest with this hardware address, and the bridge that it leads to.
    Gate { gate: String, bridge: String, mac: Mac },
}

impl Place {
    /// # Errors
    /// There is no service network here.
    pub fn is_there(&self) -> io::Result<()> {
        self.interface().map(drop)
    }

    /// Makes this host answer at the address. The kernel takes it away after `seconds` whatever becomes of this process, where
    /// it is on an interface; a gate stays as it is.
    pub fn put(&self, address: ServiceAddress, seconds: u64) -> io::Result<()> {
        match self {
            Self::Interface { gateway, .. } => {
                let interface = self.interface()?;
                iproute::set_address(interface, address, seconds)?;
                use_gateway(interface, address, *gateway)
            }
            Self::Gate { gate, .. } => iproute::set_up(gate),
        }
    }

    /// Lengthens what `put` began.
    pub fn keep(&self, address: ServiceAddress, seconds: u64) -> io::Result<()> {
        match self {
            Self::Interface { .. } => iproute::set_address(self.interface()?, address, seconds),
            Self::Gate { .. } => Ok(()),
        }
    }

    /// When this returns, nobody answers at the address any more because of it.
    pub fn remove(&self, address: ServiceAddress) -> io::Result<()> {
        match self {
            Self::Interface { .. } => iproute::remove_address(self.interface()?, address),
            Self::Gate { gate, .. } => iproute::set_down(gate),
        }
    }

    /// Tells the network that the address is here.
    pub fn announce(&self, ip: IpAddr) -> io::Result<()> {
        match self {
            Self::Interface { .. } => link_layer::announce(self.interface()?, ip),
            Self::Gate { bridge, mac, .. } => link_layer::announce_for(bridge, *mac, ip),
        }
    }

    fn interface(&self) -> io::Result<&str> {
        let missing = "there is no service network here; set service.interface in p2pdb.toml and run as root";
        match self {
            Self::Interface { name, .. } => name.as_deref().ok_or_else(|| io::Error::other(missing)),
            Self::Gate { bridge, .. } => Ok(bridge),
        }
    }
}

fn use_gateway(interface: &str, address: ServiceAddress, gateway: Option<IpAddr>) -> io::Result<()> {
    match gateway {
        Some(gateway) if gateway.is_ipv4() == address.ip.is_ipv4() => {
            let gateway = gateway.to_string();
            iproute::ip(&["route", "replace", "default", "via", &gateway, "dev", interface]).map(drop)
        }
        _ => Ok(()),
    }
}
