//! IPv4 and IPv6: what differs between them, as constants and straight functions.

use core::mem::offset_of;

use graylb_common::{
    backend::{FAMILY_V4, FAMILY_V6},
    csum,
    flow::{Flow, FlowKey, HalfOpen},
    hash,
    service::ServiceKey,
    verdict::Verdict,
};
use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    access::{AF_INET, AF_INET6, FibParams, Frame, random, v6_words},
    maps::{self, Draft, FlowTable, ServiceMap},
};

/// Linux's default range of ephemeral ports (net.ipv4.ip_local_port_range).
const EPHEMERAL: core::ops::RangeInclusive<u16> = 32768..=60999;
/// Moves the ephemeral ports, one by one, below themselves and above the privileged ones.
const BELOW_EPHEMERAL: u16 = 32768 - 1024;
/// The ports between the privileged and the ephemeral ones.
pub const UNUSED_PORTS: PortRange = PortRange { low: 1024, count: BELOW_EPHEMERAL as u32 };

/// Source ports that a flow may be given.
#[derive(Clone, Copy)]
pub struct PortRange {
    /// The lowest.
    pub low: u16,
    /// How many; at most as many as there are from `low` on, and at least one.
    pub count: u32,
}

impl PortRange {
    /// One of them.
    #[inline(always)]
    pub fn any(self) -> u16 {
        // A count of 0 is a damaged entry.
        self.low.wrapping_add(random().checked_rem(self.count).unwrap_or(0) as u16)
    }
}

/// What the network header says.
pub struct Network<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Transport protocol number.
    pub protocol: u8,
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Length of the IP packet by its own header.
    pub length: u16,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// What a new network header says.
pub struct Header<'a, A> {
    /// Source address.
    pub source: &'a A,
    /// Destination address.
    pub destination: &'a A,
    /// Protocol number of what follows.
    pub protocol: u8,
    /// Length of what follows.
    pub payload: u16,
    /// DSCP and ECN bits.
    pub class: u8,
}

/// TTL and hop limit of packets that graylb makes (RFC 1700, "IP TIME TO LIVE PARAMETER").
const TTL: u8 = 64;

/// An IP version.
pub trait Family {
    /// An address, in network order.
    type Address: Copy + PartialEq + hash::Address + 'static;
    /// Whether this is IPv6.
    const IPV6: bool;
    /// Its EtherType, in memory order.
    const ETHERTYPE: u16;
    /// Length of a header without options.
    const HEADER_LEN: u16;
    /// Protocol number of a packet of this family inside another one (RFC 2003, RFC 2473).
    const INNER: u8;
    /// Protocol number of its ICMP.
    const ICMP: u8;
    /// Virtual endpoints.
    fn services() -> ServiceMap<Self::Address>;
    /// Established TCP flows.
    fn tcp() -> &'static (impl FlowTable<Self::Address, Flow<Self::Address>> + 'static);
    /// TCP flows in their handshake.
    fn half_open() -> &'static (impl FlowTable<Self::Address, HalfOpen<Self::Address>> + 'static);
    /// UDP flows.
    fn udp() -> &'static (impl FlowTable<Self::Address, Flow<Self::Address>> + 'static);
    /// This CPU's draft for a new flow.
    fn draft() -> Option<&'static mut Draft<Self::Address>>;
    /// Reads the network header, or says why the packet is left alone.
    fn network<F: Frame>(frame: &F) -> Result<Network<Self::Address>, Verdict>;
    /// An address as `backends` and `sources` hold it, `None` where it is of the other family.
    fn address(bytes: &[u8; 16], family: u8) -> Option<Self::Address>;
    /// Folded sum of an address, for checksums.
    fn sum(address: &Self::Address) -> u16;
    /// The tuple's source for a client on this host.
    ///
    /// Client and backend share the host here, and a client may use one port for a connection through
    /// the virtual endpoint and for one to the backend itself. With the source left as it is both would
    /// be the same connection to the backend.
    fn host_source(client: Self::Address, port: u16) -> (Self::Address, u16);
    /// Fills family and addresses in.
    fn fill_route(params: &mut FibParams, source: &Self::Address, destination: &Self::Address);
    /// Writes both addresses, and the header checksum where there is one.
    #[must_use]
    fn write_addresses<F: Frame>(frame: &F, key: &FlowKey<Self::Address>, delta: u16) -> bool;
    /// DSCP and ECN bits (RFC 2474, RFC 3168).
    fn traffic_class<F: Frame>(frame: &F) -> u8;
    /// Writes a whole header without options behind the Ethernet header.
    #[must_use]
    fn write_header<F: Frame>(frame: &F, header: &Header<'_, Self::Address>) -> bool;
    /// The first eight bytes of an ICMP message that says "at most `mtu` bytes", checksum zero.
    fn too_big(mtu: u16) -> [u32; 2];
    /// The sum of the pseudo-header that an ICMP message's checksum covers; 0 where there is none.
    fn icmp_pseudo_sum(header: &Header<'_, Self::Address>) -> u16;
    /// Takes one off the TTL or hop limit.
    #[must_use]
    fn decrement_ttl<F: Frame>(frame: &mut F) -> bool;
}

/// IPv4 (RFC 791).
pub struct V4;
/// IPv6 (RFC 8200).
pub struct V6;

const V4_START: usize = EthHdr::LEN;

impl Family for V4 {
    type Address = [u8; 4];
    const IPV6: bool = false;
    const ETHERTYPE: u16 = 0x0800_u16.to_be();
    const HEADER_LEN: u16 = Ipv4Hdr::LEN as u16;
    const INNER: u8 = IpProto::Ipv4 as u8;
    const ICMP: u8 = IpProto::Icmp as u8;

    #[inline(always)]
    fn services() -> ServiceMap<[u8; 4]> {
        maps::services_v4()
    }

    #[inline(always)]
    fn tcp() -> &'static (impl FlowTable<[u8; 4], Flow<[u8; 4]>> + 'static) {
        maps::tcp_v4()
    }

    #[inline(always)]
    fn half_open() -> &'static (impl FlowTable<[u8; 4], HalfOpen<[u8; 4]>> + 'static) {
        maps::half_open_v4()
    }

    #[inline(always)]
    fn udp() -> &'static (impl FlowTable<[u8; 4], Flow<[u8; 4]>> + 'static) {
        maps::udp_v4()
    }

    #[inline(always)]
    fn draft() -> Option<&'static mut Draft<[u8; 4]>> {
        maps::draft(maps::draft_v4())
    }

    #[inline(always)]
    fn network<F: Frame>(frame: &F) -> Result<Network<[u8; 4]>, Verdict> {
        /// "More fragments" and the fragment offset.
        const FRAGMENT: u16 = 0x3fff;
        let header = frame.window::<{ Ipv4Hdr::LEN }>(V4_START).ok_or(Verdict::Truncated)?;
        let vihl: u8 = header.get::<u8, { offset_of!(Ipv4Hdr, vihl) }>();
        let header_length = usize::from(vihl & 0x0f) * 4;
        let length = u16::from_be(header.get::<u16, { offset_of!(Ipv4Hdr, tot_len) }>());
        if vihl >> 4 != 4 || header_length < Ipv4Hdr::LEN || usize::from(length) < header_length {
            return Err(Verdict::Malformed);
        }
        if u16::from_be(header.get::<u16, { offset_of!(Ipv4Hdr, frags) }>()) & FRAGMENT != 0 {
            return Err(Verdict::Fragment);
        }
        Ok(Network {
            source: header.get::<u32, { offset_of!(Ipv4Hdr, src_addr) }>().to_ne_bytes(),
            destination: header.get::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>().to_ne_bytes(),
            protocol: header.get::<u8, { offset_of!(Ipv4Hdr, proto) }>(),
            transport: V4_START + header_length,
            length,
            ttl: header.get::<u8, { offset_of!(Ipv4Hdr, ttl) }>(),
        })
    }

    #[inline(always)]
    fn address(bytes: &[u8; 16], family: u8) -> Option<[u8; 4]> {
        let [.., a, b, c, d] = *bytes;
        (family == FAMILY_V4).then_some([a, b, c, d])
    }

    #[inline(always)]
    fn sum(address: &[u8; 4]) -> u16 {
        let word = u32::from_ne_bytes(*address);
        csum::fold((word & 0xffff) + (word >> 16))
    }

    /// 127.0.0.1 becomes 127.64.0.1: a loopback address too, and one that nobody uses. The exclusive or
    /// keeps different clients different.
    #[inline(always)]
    fn host_source(client: [u8; 4], port: u16) -> ([u8; 4], u16) {
        match client {
            [127, b, c, d] => ([127, b ^ 64, c, d], port),
            _ => (client, moved_port(port)),
        }
    }

    #[inline(always)]
    fn fill_route(params: &mut FibParams, source: &[u8; 4], destination: &[u8; 4]) {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(*source);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(*destination);
    }

    #[inline(always)]
    fn write_addresses<F: Frame>(frame: &F, key: &FlowKey<[u8; 4]>, delta: u16) -> bool {
        let Some(header) = frame.window::<{ Ipv4Hdr::LEN }>(V4_START) else { return false };
        let check: u16 = header.get::<u16, { offset_of!(Ipv4Hdr, check) }>();
        header.set::<u16, { offset_of!(Ipv4Hdr, check) }>(csum::updated(check, delta));
        header.set::<u32, { offset_of!(Ipv4Hdr, src_addr) }>(u32::from_ne_bytes(key.source));
        header.set::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>(u32::from_ne_bytes(key.destination));
        true
    }

    #[inline(always)]
    fn traffic_class<F: Frame>(frame: &F) -> u8 {
        frame
            .window::<{ Ipv4Hdr::LEN }>(V4_START)
            .map_or(0, |header| header.get::<u8, { offset_of!(Ipv4Hdr, tos) }>())
    }

    #[inline(always)]
    fn write_header<F: Frame>(frame: &F, header: &Header<'_, [u8; 4]>) -> bool {
        /// Version 4, five words.
        const VIHL: u8 = 0x45;
        /// Don't fragment.
        const DF: u16 = 0x4000;
        let length = header.payload.saturating_add(Self::HEADER_LEN).to_be_bytes();
        let mut words = [
            u32::from_ne_bytes([VIHL, header.class, length[0], length[1]]),
            // The identification of a packet that is never fragmented means nothing (RFC 6864, 4.1).
            u32::from(DF).to_be(),
            u32::from_ne_bytes([TTL, header.protocol, 0, 0]),
            u32::from_ne_bytes(*header.source),
            u32::from_ne_bytes(*header.destination),
        ];
        let [a, b, c, d, e] = words;
        let sum = csum::add(csum::words([a, b, c, d]), csum::words([e, 0, 0, 0]));
        words[2] = u32::from_ne_bytes([TTL, header.protocol, 0, 0])
            | u32::from(!sum) << if cfg!(target_endian = "little") { 16 } else { 0 };
        let Some(window) = frame.window::<{ Ipv4Hdr::LEN }>(V4_START) else { return false };
        window.set::<[u32; 5], 0>(words);
        true
    }

    /// Destination unreachable, fragmentation needed (RFC 1191, section 4).
    #[inline(always)]
    fn too_big(mtu: u16) -> [u32; 2] {
        [u32::from_ne_bytes([3, 4, 0, 0]), u32::from(mtu).to_be()]
    }

    #[inline(always)]
    fn icmp_pseudo_sum(_header: &Header<'_, [u8; 4]>) -> u16 {
        0
    }

    #[inline(always)]
    fn decrement_ttl<F: Frame>(frame: &mut F) -> bool {
        let Some(header) = frame.window::<{ Ipv4Hdr::LEN }>(V4_START) else { return false };
        let ttl: u8 = header.get::<u8, { offset_of!(Ipv4Hdr, ttl) }>();
        let check: u16 = header.get::<u16, { offset_of!(Ipv4Hdr, check) }>();
        // The TTL is the high byte of its checksum word.
        let delta =
            csum::sub(u16::from_ne_bytes([ttl.wrapping_sub(1), 0]), u16::from_ne_bytes([ttl, 0]));
        header.set::<u8, { offset_of!(Ipv4Hdr, ttl) }>(ttl.wrapping_sub(1));
        header.set::<u16, { offset_of!(Ipv4Hdr, check) }>(csum::updated(check, delta));
        true
    }
}

const V6_START: usize = EthHdr::LEN;
const V6_LEN: usize = Ipv6Hdr::LEN;

/// The words of an IPv6 address as bytes.
#[inline(always)]
const fn v6_bytes(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words;
    let value = a as u128 | (b as u128) << 32 | (c as u128) << 64 | (d as u128) << 96;
    value.to_le_bytes()
}

impl Family for V6 {
    type Address = [u8; 16];
    const IPV6: bool = true;
    const ETHERTYPE: u16 = 0x86dd_u16.to_be();
    const HEADER_LEN: u16 = Ipv6Hdr::LEN as u16;
    const INNER: u8 = IpProto::Ipv6 as u8;
    const ICMP: u8 = IpProto::Ipv6Icmp as u8;

    #[inline(always)]
    fn services() -> ServiceMap<[u8; 16]> {
        maps::services_v6()
    }

    #[inline(always)]
    fn tcp() -> &'static (impl FlowTable<[u8; 16], Flow<[u8; 16]>> + 'static) {
        maps::tcp_v6()
    }

    #[inline(always)]
    fn half_open() -> &'static (impl FlowTable<[u8; 16], HalfOpen<[u8; 16]>> + 'static) {
        maps::half_open_v6()
    }

    #[inline(always)]
    fn udp() -> &'static (impl FlowTable<[u8; 16], Flow<[u8; 16]>> + 'static) {
        maps::udp_v6()
    }

    #[inline(always)]
    fn draft() -> Option<&'static mut Draft<[u8; 16]>> {
        maps::draft(maps::draft_v6())
    }

    #[inline(always)]
    fn network<F: Frame>(frame: &F) -> Result<Network<[u8; 16]>, Verdict> {
        let header = frame.window::<V6_LEN>(V6_START).ok_or(Verdict::Truncated)?;
        if header.get::<u8, 0>() >> 4 != 6 {
            return Err(Verdict::Malformed);
        }
        let protocol: u8 = header.get::<u8, { offset_of!(Ipv6Hdr, next_hdr) }>();
        match protocol {
            p if p == IpProto::Ipv6Frag as u8 => return Err(Verdict::Fragment),
            p if p == IpProto::HopOpt as u8
                || p == IpProto::Ipv6Route as u8
                || p == IpProto::Ipv6Opts as u8 =>
            {
                return Err(Verdict::Ipv6Extension);
            }
            _ => {}
        }
        let payload = u16::from_be(header.get::<u16, { offset_of!(Ipv6Hdr, payload_len) }>());
        Ok(Network {
            source: v6_bytes(header.get::<[u32; 4], { offset_of!(Ipv6Hdr, src_addr) }>()),
            destination: v6_bytes(header.get::<[u32; 4], { offset_of!(Ipv6Hdr, dst_addr) }>()),
            protocol,
            transport: V6_START + V6_LEN,
            length: payload.saturating_add(V6_LEN as u16),
            ttl: header.get::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(),
        })
    }

    #[inline(always)]
    fn address(bytes: &[u8; 16], family: u8) -> Option<[u8; 16]> {
        (family == FAMILY_V6).then_some(*bytes)
    }

    #[inline(always)]
    fn sum(address: &[u8; 16]) -> u16 {
        csum::words(v6_words(address))
    }

    /// IPv6 has one loopback address, so the port moves.
    #[inline(always)]
    fn host_source(client: [u8; 16], port: u16) -> ([u8; 16], u16) {
        (client, moved_port(port))
    }

    #[inline(always)]
    fn fill_route(params: &mut FibParams, source: &[u8; 16], destination: &[u8; 16]) {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = v6_words(source);
        params.__bindgen_anon_4.ipv6_dst = v6_words(destination);
    }

    #[inline(always)]
    fn write_addresses<F: Frame>(frame: &F, key: &FlowKey<[u8; 16]>, _delta: u16) -> bool {
        let Some(header) = frame.window::<V6_LEN>(V6_START) else { return false };
        header.set::<[u32; 4], { offset_of!(Ipv6Hdr, src_addr) }>(v6_words(&key.source));
        header.set::<[u32; 4], { offset_of!(Ipv6Hdr, dst_addr) }>(v6_words(&key.destination));
        true
    }

    #[inline(always)]
    fn traffic_class<F: Frame>(frame: &F) -> u8 {
        // Between four bits of version and twenty of flow label.
        frame
            .window::<V6_LEN>(V6_START)
            .map_or(0, |header| (u32::from_be(header.get::<u32, 0>()) >> 20) as u8)
    }

    #[inline(always)]
    fn write_header<F: Frame>(frame: &F, header: &Header<'_, [u8; 16]>) -> bool {
        let Some(window) = frame.window::<V6_LEN>(V6_START) else { return false };
        let length = header.payload.to_be_bytes();
        window.set::<u32, 0>((6 << 28 | u32::from(header.class) << 20).to_be());
        window.set::<u32, 4>(u32::from_ne_bytes([length[0], length[1], header.protocol, TTL]));
        window.set::<[u32; 4], { offset_of!(Ipv6Hdr, src_addr) }>(v6_words(header.source));
        window.set::<[u32; 4], { offset_of!(Ipv6Hdr, dst_addr) }>(v6_words(header.destination));
        true
    }

    /// Packet too big (RFC 4443, 3.2).
    #[inline(always)]
    fn too_big(mtu: u16) -> [u32; 2] {
        [u32::from_ne_bytes([2, 0, 0, 0]), u32::from(mtu).to_be()]
    }

    /// RFC 4443, 2.3.
    #[inline(always)]
    fn icmp_pseudo_sum(header: &Header<'_, [u8; 16]>) -> u16 {
        let addresses = csum::add(Self::sum(header.source), Self::sum(header.destination));
        let rest = csum::add(header.payload.to_be(), u16::from(header.protocol).to_be());
        csum::add(addresses, rest)
    }

    #[inline(always)]
    fn decrement_ttl<F: Frame>(frame: &mut F) -> bool {
        let Some(header) = frame.window::<V6_LEN>(V6_START) else { return false };
        let ttl: u8 = header.get::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>();
        header.set::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(ttl.wrapping_sub(1));
        // The hop limit is the low byte of its checksum word.
        let delta =
            csum::sub(u16::from_ne_bytes([0, ttl.wrapping_sub(1)]), u16::from_ne_bytes([0, ttl]));
        frame.note_change(delta);
        true
    }
}

/// A port outside the range that the kernel gives to clients, so that none of them has it.
#[inline(always)]
fn moved_port(port: u16) -> u16 {
    if EPHEMERAL.contains(&port) { port - BELOW_EPHEMERAL } else { UNUSED_PORTS.any() }
}

/// The key under which a packet's service would be found.
#[inline(always)]
pub const fn service_key<A: Copy>(key: &FlowKey<A>, protocol: u8) -> ServiceKey<A> {
    ServiceKey { address: key.destination, port: key.destination_port, protocol, reserved: 0 }
}

/// Types of the maps' entries, by family.
pub type FlowOf<Fam> = Flow<<Fam as Family>::Address>;
/// As above.
pub type HalfOpenOf<Fam> = HalfOpen<<Fam as Family>::Address>;
/// As above.
pub type KeyOf<Fam> = FlowKey<<Fam as Family>::Address>;
