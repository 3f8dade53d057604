//! IPv6.

use core::mem::offset_of;

use graylb_common::{
    backend::FAMILY_V6,
    csum,
    flow::{Flow, HalfOpen},
    verdict::Verdict,
};
use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv6Hdr},
};

use super::{Family, Header, Network, Piece, TTL, moved_port};
use crate::{
    access::{AF_INET6, FibParams, Frame, v6_words},
    maps::{self, AddressMap, Draft, FlowTable, FragmentMap, RuleMap, ServiceMap},
};

/// IPv6 (RFC 8200).
pub struct V6;

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
    const ECHO_REQUEST: u16 = u16::from_ne_bytes([128, 0]);
    const ECHO_REPLY: u16 = u16::from_ne_bytes([129, 0]);

    #[inline(always)]
    fn services() -> ServiceMap<[u8; 16]> {
        maps::services_v6()
    }

    #[inline(always)]
    fn addresses() -> AddressMap<[u8; 16]> {
        maps::addresses_v6()
    }

    #[inline(always)]
    fn rules() -> RuleMap<[u8; 16]> {
        maps::rules_v6()
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
    fn network<F: Frame>(frame: &F, at: usize) -> Result<Network<[u8; 16]>, Verdict> {
        let network = header(frame, at)?;
        if network.protocol == IpProto::Ipv6Frag as u8 {
            return Err(Verdict::Fragment);
        }
        without_extension(network)
    }

    #[inline(always)]
    fn piece<F: Frame>(frame: &F, at: usize) -> Result<Piece<[u8; 16]>, Verdict> {
        let mut network = header(frame, at)?;
        let fragment = frame.window::<FRAGMENT_LEN>(network.transport).ok_or(Verdict::Truncated)?;
        network.protocol = fragment.get::<u8, 0>();
        network.transport += FRAGMENT_LEN;
        // The low three bits are flags.
        let offset = u16::from_be(fragment.get::<u16, 2>()) & !7;
        Ok(Piece { network: without_extension(network)?, id: fragment.get::<u32, 4>(), offset })
    }

    #[inline(always)]
    fn fragments() -> FragmentMap<[u8; 16]> {
        maps::fragments_v6()
    }

    #[inline(always)]
    fn address(bytes: &[u8; 16], family: u8) -> Option<&[u8; 16]> {
        (family == FAMILY_V6).then_some(bytes)
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
    fn write_addresses<F: Frame>(
        frame: &F,
        at: usize,
        source: &[u8; 16],
        destination: &[u8; 16],
        _delta: u16,
    ) -> bool {
        let Some(header) = frame.window::<V6_LEN>(at) else { return false };
        header.set::<[u32; 4], { offset_of!(Ipv6Hdr, src_addr) }>(v6_words(source));
        header.set::<[u32; 4], { offset_of!(Ipv6Hdr, dst_addr) }>(v6_words(destination));
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
    fn write_header<F: Frame>(frame: &mut F, header: &Header<'_, [u8; 16]>) -> bool {
        let Some(window) = frame.window::<V6_LEN>(V6_START) else { return false };
        let length = header.payload.to_be_bytes();
        let version = (6 << 28 | u32::from(header.class) << 20).to_be();
        let rest = u32::from_ne_bytes([length[0], length[1], header.protocol, TTL]);
        window.set::<u32, 0>(version);
        window.set::<u32, 4>(rest);
        window.set::<[u32; 4], { offset_of!(Ipv6Hdr, src_addr) }>(v6_words(header.source));
        window.set::<[u32; 4], { offset_of!(Ipv6Hdr, dst_addr) }>(v6_words(header.destination));
        // The room was zero, and this header has no checksum that would make its sum so again.
        let addresses = csum::add(Self::sum(header.source), Self::sum(header.destination));
        frame.note_change(csum::add(addresses, csum::words([version, rest, 0, 0])));
        true
    }

    /// Packet too big (RFC 4443, 3.2).
    #[inline(always)]
    fn too_big(mtu: u16) -> [u32; 2] {
        [u32::from_ne_bytes([2, 0, 0, 0]), u32::from(mtu).to_be()]
    }

    /// Errors have the high bit clear (RFC 4443, 2.1); 1 to 4 quote the packet.
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn icmp_delta(outer: u16, quoted: u16) -> u16 {
        csum::add(outer, quoted)
    }

    /// RFC 4443, 2.3.
    #[inline(always)]
    fn icmp_pseudo_sum(header: &Header<'_, [u8; 16]>) -> u16 {
        let addresses = csum::add(Self::sum(header.source), Self::sum(header.destination));
        let rest = csum::add(header.payload.to_be(), u16::from(header.protocol).to_be());
        csum::add(addresses, rest)
    }

    #[inline(always)]
    fn set_ttl<F: Frame>(frame: &mut F, change: impl FnOnce(u8) -> u8) -> bool {
        let Some(header) = frame.window::<V6_LEN>(V6_START) else { return false };
        let ttl: u8 = header.get::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>();
        let new = change(ttl);
        header.set::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(new);
        // The hop limit is the low byte of its checksum word.
        let delta = csum::sub(u16::from_ne_bytes([0, new]), u16::from_ne_bytes([0, ttl]));
        frame.note_change(delta);
        true
    }

    /// Neither unspecified, loopback, IPv4-mapped nor multicast (RFC 4443, 2.4).
    #[inline(always)]
    fn is_answerable(source: &[u8; 16]) -> bool {
        source[0] != 0xff && v6_words(source)[..2] != [0, 0]
    }
}

/// Length of a Fragment header (RFC 8200, 4.5).
const FRAGMENT_LEN: usize = 8;

/// Reads the fixed header.
#[inline(always)]
fn header<F: Frame>(frame: &F, at: usize) -> Result<Network<[u8; 16]>, Verdict> {
    let header = frame.window::<V6_LEN>(at).ok_or(Verdict::Truncated)?;
    if header.get::<u8, 0>() >> 4 != 6 {
        return Err(Verdict::Malformed);
    }
    let payload = u16::from_be(header.get::<u16, { offset_of!(Ipv6Hdr, payload_len) }>());
    Ok(Network {
        source: v6_bytes(header.get::<[u32; 4], { offset_of!(Ipv6Hdr, src_addr) }>()),
        destination: v6_bytes(header.get::<[u32; 4], { offset_of!(Ipv6Hdr, dst_addr) }>()),
        protocol: header.get::<u8, { offset_of!(Ipv6Hdr, next_hdr) }>(),
        transport: at + V6_LEN,
        length: payload.saturating_add(V6_LEN as u16),
        ttl: header.get::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(),
    })
}

/// The same, unless another extension header follows.
#[inline(always)]
fn without_extension(network: Network<[u8; 16]>) -> Result<Network<[u8; 16]>, Verdict> {
    match network.protocol {
        p if p == IpProto::HopOpt as u8
            || p == IpProto::Ipv6Route as u8
            || p == IpProto::Ipv6Opts as u8
            || p == IpProto::Ipv6Frag as u8 =>
        {
            Err(Verdict::Ipv6Extension)
        }
        _ => Ok(network),
    }
}
