//! Fields → bytes. Checksums are summed in full, in wide arithmetic over big-endian words, without
//! graylb's own checksum code: this is the oracle that it is measured by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::builder::{Fragment, Packet, Transport};

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(super) const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_FRAGMENT: u8 = 44;
pub(super) const PROTOCOL_ICMPV6: u8 = 58;
/// Identification of fragments, and of everything else: nothing may change it.
const IDENTIFICATION: u16 = 0x1234;
/// DSCP and ECN of IPv4, traffic class and flow label of IPv6: not zero, so that a loss shows.
pub(super) const TYPE_OF_SERVICE: u8 = 0xb9;
const FLOW_LABEL: u32 = 0x5_4321;

/// The Internet checksum of `bytes` (RFC 1071).
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u64::from(high) << 8 | u64::from(low),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The frame.
pub(super) fn frame(packet: &Packet) -> Vec<u8> {
    let mut bytes = [packet.macs.0, packet.macs.1].concat();
    for (ether_type, tag) in &packet.tags {
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(tag.to_be_bytes());
    }
    let (source, destination) = (packet.source.ip(), packet.destination.ip());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend(ETHERTYPE_IPV4.to_be_bytes());
            bytes.extend(ipv4(packet, source, destination));
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend(ETHERTYPE_IPV6.to_be_bytes());
            bytes.extend(ipv6(packet, source, destination));
        }
        _ => panic!("one packet, one family"),
    }
    bytes
}

/// An IPv4 packet (RFC 791, 3.1).
fn ipv4(packet: &Packet, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    assert!(packet.options.len().is_multiple_of(4) && packet.options.len() <= 40);
    assert!(packet.extensions.is_empty(), "extension headers are IPv6's");
    let protocol = protocol(packet, PROTOCOL_ICMP);
    let body = body(packet, |length| {
        let mut pseudo = [source.octets(), destination.octets()].concat();
        pseudo.extend([0, protocol]);
        pseudo.extend((length as u16).to_be_bytes());
        pseudo
    });
    let header_length = 20 + packet.options.len();
    let fragment = match packet.fragment {
        Some(Fragment { offset, more }) => u16::from(more) << 13 | offset,
        None => 1 << 14, // don't fragment
    };
    let mut header = vec![0x40 | (header_length / 4) as u8, TYPE_OF_SERVICE];
    header.extend(((header_length + body.len()) as u16).to_be_bytes());
    header.extend(IDENTIFICATION.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([packet.ttl, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    header.extend(&packet.options);
    let check = checksum(&header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    [header, body].concat()
}

/// An IPv6 packet (RFC 8200, 3).
fn ipv6(packet: &Packet, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    assert!(packet.options.is_empty(), "header options are IPv4's");
    let protocol = protocol(packet, PROTOCOL_ICMPV6);
    let body = body(packet, |length| {
        let mut pseudo = [source.octets(), destination.octets()].concat();
        pseudo.extend((length as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, protocol]);
        pseudo
    });
    let mut chain = packet.extensions.clone();
    chain.extend(packet.fragment.map(|_| PROTOCOL_FRAGMENT));
    chain.push(protocol);
    let mut extensions = Vec::new();
    for pair in chain.windows(2) {
        match packet.fragment {
            Some(Fragment { offset, more }) if pair[0] == PROTOCOL_FRAGMENT => {
                extensions.extend([pair[1], 0]);
                extensions.extend((offset << 3 | u16::from(more)).to_be_bytes());
                extensions.extend(u32::from(IDENTIFICATION).to_be_bytes());
            }
            // PadN of four bytes: what a hop-by-hop or destination options header may hold.
            _ => extensions.extend([pair[1], 0, 1, 4, 0, 0, 0, 0]),
        }
    }
    let class = u32::from(TYPE_OF_SERVICE) << 20;
    let mut header = (6 << 28 | class | FLOW_LABEL).to_be_bytes().to_vec();
    header.extend(((extensions.len() + body.len()) as u16).to_be_bytes());
    header.extend([chain[0], packet.ttl]);
    header.extend(source.octets());
    header.extend(destination.octets());
    [header, extensions, body].concat()
}

const fn protocol(packet: &Packet, icmp: u8) -> u8 {
    match packet.transport {
        Transport::Tcp { .. } => PROTOCOL_TCP,
        Transport::Udp { .. } => PROTOCOL_UDP,
        Transport::Icmp { .. } => icmp,
        Transport::Other { protocol } => protocol,
    }
}

/// Transport header and payload; `pseudo` makes the pseudo-header for their length.
fn body(packet: &Packet, pseudo: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    if packet.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return packet.payload.clone();
    }
    let ports = [packet.source.port().to_be_bytes(), packet.destination.port().to_be_bytes()];
    let length = packet.payload.len();
    let (mut header, check_at) = match &packet.transport {
        Transport::Tcp { flags, sequence, acknowledgement, options } => {
            assert!(options.len().is_multiple_of(4) && options.len() <= 40);
            let mut header = ports.concat();
            header.extend(sequence.to_be_bytes());
            header.extend(acknowledgement.to_be_bytes());
            header.extend([((20 + options.len()) / 4) as u8 * 16, *flags]);
            header.extend([0xfa, 0xf0, 0, 0, 0, 0]); // window, checksum, urgent pointer
            header.extend(options);
            (header, Some(16))
        }
        Transport::Udp { checksum } => {
            let mut header = ports.concat();
            header.extend(((8 + length) as u16).to_be_bytes());
            header.extend([0, 0]);
            (header, checksum.then_some(6))
        }
        Transport::Icmp { kind } => (vec![*kind, 0, 0, 0, 0, 1, 0, 2], Some(2)),
        Transport::Other { .. } => (Vec::new(), None),
    };
    header.extend(&packet.payload);
    if let Some(at) = check_at {
        // ICMP (v4) alone has no pseudo-header (RFC 792).
        let bare = matches!(packet.transport, Transport::Icmp { .. }) && packet.source.is_ipv4();
        let mut covered = if bare { Vec::new() } else { pseudo(header.len()) };
        covered.extend(&header);
        let mut check = checksum(&covered);
        if check == 0 && matches!(packet.transport, Transport::Udp { .. }) {
            check = 0xffff; // RFC 768: zero is "no checksum"
        }
        header[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1071_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    /// The IPv4 header of a widely quoted worked example.
    #[test]
    fn known_ipv4_header() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0x00,
            0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
    }

    #[test]
    fn every_built_checksum_verifies() {
        let v4 = ("192.0.2.1:1000", "192.0.2.2:2000");
        let v6 = ("[2001:db8::1]:1000", "[2001:db8::2]:2000");
        for (source, destination) in [v4, v6] {
            let source = source.parse().expect("an address");
            let destination = destination.parse().expect("an address");
            for length in 0..5 {
                let bytes = Packet::udp(source, destination).filled(length).bytes();
                let (start, address_length) = if source.is_ipv4() { (34, 4) } else { (54, 16) };
                let addresses = start - 2 * address_length..start;
                let mut covered = bytes[addresses].to_vec();
                covered.extend(((8 + length) as u32).to_be_bytes());
                covered.extend([0, 0, 0, 17]);
                covered.extend(&bytes[start..]);
                assert_eq!(checksum(&covered), 0);
            }
        }
    }
}
