//! Addresses and endpoints ↔ how the maps hold them. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use graylb_common::{
    backend::{FAMILY_V4, FAMILY_V6},
    service::{PROTOCOL_TCP, PROTOCOL_UDP, ServiceKey},
};

use crate::model::spec::{Endpoint, Protocol};

const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
    }
}

/// The key of a service.
pub(super) const fn key<A>(address: A, endpoint: &Endpoint) -> ServiceKey<A> {
    ServiceKey {
        address,
        port: endpoint.address.port(),
        protocol: protocol_number(endpoint.protocol),
        reserved: 0,
    }
}

/// The endpoint that a key is of; `None` if its protocol is none that graylb knows.
pub(super) fn endpoint(address: IpAddr, port: u16, protocol: u8) -> Option<Endpoint> {
    let protocol = match protocol {
        PROTOCOL_TCP => Protocol::Tcp,
        PROTOCOL_UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Endpoint { address: SocketAddr::new(address, port), protocol })
}

/// An address as the maps hold it.
pub(super) const fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// An address that the maps hold.
pub(super) fn ip_address(bytes: &[u8; 16], family: u8) -> Option<IpAddr> {
    let address = Ipv6Addr::from(*bytes);
    match family {
        FAMILY_V4 => address.to_ipv4_mapped().map(IpAddr::V4),
        FAMILY_V6 => Some(IpAddr::V6(address)),
        _ => None,
    }
}
