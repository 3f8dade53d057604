//! A frame's bytes → what is put around its packet: a tunnel's outer header, or the ICMP answer that
//! quotes it. Built from the RFCs, like the frames themselves.

use std::net::IpAddr;

use super::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, TYPE_OF_SERVICE, checksum,
};

/// Length of an Ethernet header without tags.
const ETHERNET: usize = 14;
/// IPv4 inside another packet (RFC 2003).
const PROTOCOL_IPV4: u8 = 4;
/// IPv6 inside another packet (RFC 2473).
const PROTOCOL_IPV6: u8 = 41;
/// TTL and hop limit of what graylb makes itself.
const TTL: u8 = 64;
/// Bytes of a packet that an ICMP answer quotes.
const QUOTE: usize = 68;

/// Bytes that an outer header of this family takes.
#[must_use]
pub const fn overhead(outer: IpAddr) -> usize {
    if outer.is_ipv4() { 20 } else { 40 }
}

/// The frame with its packet inside another one. The MAC addresses stay.
#[must_use]
pub fn tunnelled(frame: &[u8], source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let (ethernet, packet) = frame.split_at(ETHERNET);
    let protocol = if is_ipv4(frame) { PROTOCOL_IPV4 } else { PROTOCOL_IPV6 };
    // DSCP and ECN are the packet's own (RFC 6040, 4.1): of these frames, always the same.
    let header = header((source, destination), protocol, packet.len(), TYPE_OF_SERVICE);
    [&ethernet[..12], &ether_type(source), &header, packet].concat()
}

/// The answer to a frame's sender: its packet is longer than `mtu` (RFC 1191, 4; RFC 4443, 3.2).
#[must_use]
pub fn too_big(frame: &[u8], mtu: u16) -> Vec<u8> {
    let (ethernet, packet) = frame.split_at(ETHERNET);
    let (client, service) = ends(frame);
    let [high, low] = mtu.to_be_bytes();
    let (protocol, mut message) = if client.is_ipv4() {
        (PROTOCOL_ICMP, vec![3, 4, 0, 0, 0, 0, high, low])
    } else {
        (PROTOCOL_ICMPV6, vec![2, 0, 0, 0, 0, 0, high, low])
    };
    message.extend(&packet[..QUOTE]);
    let mut covered = Vec::new();
    if let (IpAddr::V6(service), IpAddr::V6(client)) = (service, client) {
        covered.extend([service.octets(), client.octets()].concat());
        covered.extend((message.len() as u32).to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
    }
    covered.extend(&message);
    let check = checksum(&covered);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let header = header((service, client), protocol, message.len(), 0);
    [&ethernet[6..12], &ethernet[..6], &ethernet[12..], &header, &message].concat()
}

/// Source and destination of the packet in a frame.
///
/// # Panics
///
/// It is no IP packet.
#[must_use]
pub fn ends(frame: &[u8]) -> (IpAddr, IpAddr) {
    let packet = &frame[ETHERNET..];
    if is_ipv4(frame) {
        let address = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes");
        (address(12).into(), address(16).into())
    } else {
        let address = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes");
        (address(8).into(), address(24).into())
    }
}

fn is_ipv4(frame: &[u8]) -> bool {
    frame[12..ETHERNET] == ETHERTYPE_IPV4.to_be_bytes()
}

const fn ether_type(ip: IpAddr) -> [u8; 2] {
    if ip.is_ipv4() { ETHERTYPE_IPV4.to_be_bytes() } else { ETHERTYPE_IPV6.to_be_bytes() }
}

/// A header without options; IPv4's forbids fragments and identifies nothing (RFC 6864, 4.1).
fn header((from, to): (IpAddr, IpAddr), protocol: u8, payload: usize, class: u8) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, class];
            header.extend(((20 + payload) as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            header.extend([from.octets(), to.octets()].concat());
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = (6 << 28 | u32::from(class) << 20).to_be_bytes().to_vec();
            header.extend((payload as u16).to_be_bytes());
            header.extend([protocol, TTL]);
            header.extend([from.octets(), to.octets()].concat());
            header
        }
        _ => panic!("one packet, one family"),
    }
}
