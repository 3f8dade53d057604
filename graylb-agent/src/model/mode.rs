//! How packets get to a pool's backends and back.

use std::net::{IpAddr, SocketAddr};

use super::spec::{SpecError, check_address};

/// How packets get to a pool's backends and back.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The destination is rewritten on the way in, the source on the way back; the backend sees the
    /// client's address and sends its replies back through this host.
    #[default]
    Nat,
    /// Both addresses are rewritten; the backend sees one of these sources.
    Snat(Sources),
    /// Only the MAC addresses change: the backend has the virtual address itself, and answers the client.
    Dsr,
    /// Like [`Mode::Dsr`], but inside a packet from one of these sources to the backend.
    Ipip(Sources),
}

impl Mode {
    /// Its name in the config.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Snat(_) => "snat",
            Self::Dsr => "dsr",
            Self::Ipip(_) => "ipip",
        }
    }

    /// Whether packets reach the backend with the virtual address and port unchanged.
    #[must_use]
    pub const fn keeps_destination(&self) -> bool {
        matches!(self, Self::Dsr | Self::Ipip(_))
    }

    /// The addresses that packets to the backends come from, where that is not the client's.
    #[must_use]
    pub const fn sources(&self) -> Option<&Sources> {
        match self {
            Self::Nat | Self::Dsr => None,
            Self::Snat(sources) | Self::Ipip(sources) => Some(sources),
        }
    }
}

/// Addresses of this host that packets to backends come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sources {
    /// Unicast addresses of one family; 1 to [`MAX_SOURCES`], none twice.
    pub addresses: Vec<IpAddr>,
    /// Lowest and highest port that a flow is given, both in use.
    pub ports: (u16, u16),
}

/// Most source addresses of one pool.
pub const MAX_SOURCES: usize = 64;
/// Ports that flows are given unless the config says otherwise: below Linux's ephemeral ports
/// (net.ipv4.ip_local_port_range), which this host's own connections have.
pub const DEFAULT_SOURCE_PORTS: (u16, u16) = (10_240, 32_767);

impl Sources {
    /// Checks what the fields promise.
    ///
    /// # Errors
    ///
    /// None or too many addresses, one twice, two families, no unicast address, no port.
    pub fn new(addresses: Vec<IpAddr>, ports: (u16, u16)) -> Result<Self, SpecError> {
        if addresses.is_empty() || addresses.len() > MAX_SOURCES {
            return Err(SpecError(format!(
                "1 to {MAX_SOURCES} source addresses are needed, found {}",
                addresses.len()
            )));
        }
        for (place, address) in addresses.iter().enumerate() {
            check_address(SocketAddr::new(*address, 1))?;
            if addresses[..place].contains(address) {
                return Err(SpecError(format!("source address {address} is listed twice")));
            }
            if address.is_ipv4() != addresses[0].is_ipv4() {
                return Err(SpecError(format!(
                    "source addresses {} and {address} are of different IP families",
                    addresses[0]
                )));
            }
        }
        if ports.0 == 0 || ports.0 > ports.1 {
            return Err(SpecError(format!(
                "source ports {}-{}: write a range from 1 to 65535, the lower port first",
                ports.0, ports.1
            )));
        }
        Ok(Self { addresses, ports })
    }
}
