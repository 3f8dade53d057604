//! IPv4 and IPv6: what differs between them, as constants and straight functions.

use core::mem::offset_of;

use aya_ebpf::bindings::bpf_fib_lookup as FibParams;
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
    access::{AF_INET, AF_INET6, Frame, random},
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

/// An IP version.
pub trait Family {
    /// An address, in network order.
    type Address: Copy + PartialEq + hash::Address + 'static;
    /// Whether this is IPv6.
    const IPV6: bool;
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
    /// Takes one off the TTL or hop limit.
    #[must_use]
    fn decrement_ttl<F: Frame>(frame: &F) -> bool;
}

/// IPv4 (RFC 791).
pub struct V4;
/// IPv6 (RFC 8200).
pub struct V6;

const V4_START: usize = EthHdr::LEN;

impl Family for V4 {
    type Address = [u8; 4];
    const IPV6: bool = false;

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
    fn decrement_ttl<F: Frame>(frame: &F) -> bool {
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

/// The bytes of an IPv6 address as words in memory order.
#[inline(always)]
fn v6_words(bytes: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

impl Family for V6 {
    type Address = [u8; 16];
    const IPV6: bool = true;

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
        let [a, b, c, d] = v6_words(address);
        let low = (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff);
        csum::fold(low + (a >> 16) + (b >> 16) + (c >> 16) + (d >> 16))
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
    fn decrement_ttl<F: Frame>(frame: &F) -> bool {
        let Some(header) = frame.window::<V6_LEN>(V6_START) else { return false };
        let ttl: u8 = header.get::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>();
        header.set::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(ttl.wrapping_sub(1));
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
