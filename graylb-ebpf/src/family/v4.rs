//! IPv4.

use core::mem::offset_of;

use graylb_common::{
    backend::FAMILY_V4,
    csum,
    flow::{Flow, HalfOpen},
    verdict::Verdict,
};
use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv4Hdr},
};

use super::{Family, Header, Network, Piece, TTL, moved_port};
use crate::{
    access::{AF_INET, FibParams, Frame},
    maps::{self, AddressMap, Draft, FlowTable, FragmentMap, RuleMap, ServiceMap},
};

/// IPv4 (RFC 791).
pub struct V4;

const V4_START: usize = EthHdr::LEN;

impl Family for V4 {
    type Address = [u8; 4];
    const IPV6: bool = false;
    const ETHERTYPE: u16 = 0x0800_u16.to_be();
    const HEADER_LEN: u16 = Ipv4Hdr::LEN as u16;
    const INNER: u8 = IpProto::Ipv4 as u8;
    const ICMP: u8 = IpProto::Icmp as u8;
    const ECHO_REQUEST: u16 = u16::from_ne_bytes([8, 0]);
    const ECHO_REPLY: u16 = 0;

    #[inline(always)]
    fn services() -> ServiceMap<[u8; 4]> {
        maps::services_v4()
    }

    #[inline(always)]
    fn addresses() -> AddressMap<[u8; 4]> {
        maps::addresses_v4()
    }

    #[inline(always)]
    fn rules() -> RuleMap<[u8; 4]> {
        maps::rules_v4()
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
    fn network<F: Frame>(frame: &F, at: usize) -> Result<Network<[u8; 4]>, Verdict> {
        let (network, fragment) = header(frame, at)?;
        if fragment & (MORE | OFFSET) != 0 {
            return Err(Verdict::Fragment);
        }
        Ok(network)
    }

    #[inline(always)]
    fn piece<F: Frame>(frame: &F, at: usize) -> Result<Piece<[u8; 4]>, Verdict> {
        let (network, fragment) = header(frame, at)?;
        let header = frame.window::<{ Ipv4Hdr::LEN }>(at).ok_or(Verdict::Truncated)?;
        let id = u32::from(header.get::<u16, { offset_of!(Ipv4Hdr, id) }>());
        Ok(Piece { network, id, offset: (fragment & OFFSET) << 3 })
    }

    #[inline(always)]
    fn fragments() -> FragmentMap<[u8; 4]> {
        maps::fragments_v4()
    }

    #[inline(always)]
    fn address(bytes: &[u8; 16], family: u8) -> Option<&[u8; 4]> {
        if family == FAMILY_V4 { bytes.last_chunk() } else { None }
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
    fn write_addresses<F: Frame>(
        frame: &F,
        at: usize,
        source: &[u8; 4],
        destination: &[u8; 4],
        delta: u16,
    ) -> bool {
        let Some(header) = frame.window::<{ Ipv4Hdr::LEN }>(at) else { return false };
        let check: u16 = header.get::<u16, { offset_of!(Ipv4Hdr, check) }>();
        header.set::<u16, { offset_of!(Ipv4Hdr, check) }>(csum::updated(check, delta));
        header.set::<u32, { offset_of!(Ipv4Hdr, src_addr) }>(u32::from_ne_bytes(*source));
        header.set::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>(u32::from_ne_bytes(*destination));
        true
    }

    #[inline(always)]
    fn traffic_class<F: Frame>(frame: &F) -> u8 {
        frame
            .window::<{ Ipv4Hdr::LEN }>(V4_START)
            .map_or(0, |header| header.get::<u8, { offset_of!(Ipv4Hdr, tos) }>())
    }

    #[inline(always)]
    fn write_header<F: Frame>(frame: &mut F, header: &Header<'_, [u8; 4]>) -> bool {
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

    /// Destination unreachable, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn icmp_delta(_outer: u16, _quoted: u16) -> u16 {
        0
    }

    #[inline(always)]
    fn icmp_pseudo_sum(_header: &Header<'_, [u8; 4]>) -> u16 {
        0
    }

    #[inline(always)]
    fn set_ttl<F: Frame>(frame: &mut F, change: impl FnOnce(u8) -> u8) -> bool {
        let Some(header) = frame.window::<{ Ipv4Hdr::LEN }>(V4_START) else { return false };
        let ttl: u8 = header.get::<u8, { offset_of!(Ipv4Hdr, ttl) }>();
        let new = change(ttl);
        let check: u16 = header.get::<u16, { offset_of!(Ipv4Hdr, check) }>();
        // The TTL is the high byte of its checksum word.
        let delta = csum::sub(u16::from_ne_bytes([new, 0]), u16::from_ne_bytes([ttl, 0]));
        header.set::<u8, { offset_of!(Ipv4Hdr, ttl) }>(new);
        header.set::<u16, { offset_of!(Ipv4Hdr, check) }>(csum::updated(check, delta));
        true
    }

    /// Neither "this network", loopback, multicast nor the broadcast (RFC 1122, 3.2.1.3 and 3.2.2.6).
    #[inline(always)]
    fn is_answerable(source: &[u8; 4]) -> bool {
        !matches!(source[0], 0 | 127 | 224..)
    }
}

/// "More fragments", beside the fragment's offset in units of eight bytes (RFC 791, 3.1).
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Reads a header, and its word about fragments.
#[inline(always)]
fn header<F: Frame>(frame: &F, at: usize) -> Result<(Network<[u8; 4]>, u16), Verdict> {
    let header = frame.window::<{ Ipv4Hdr::LEN }>(at).ok_or(Verdict::Truncated)?;
    let vihl: u8 = header.get::<u8, { offset_of!(Ipv4Hdr, vihl) }>();
    let header_length = usize::from(vihl & 0x0f) * 4;
    let length = u16::from_be(header.get::<u16, { offset_of!(Ipv4Hdr, tot_len) }>());
    if vihl >> 4 != 4 || header_length < Ipv4Hdr::LEN || usize::from(length) < header_length {
        return Err(Verdict::Malformed);
    }
    let network = Network {
        source: header.get::<u32, { offset_of!(Ipv4Hdr, src_addr) }>().to_ne_bytes(),
        destination: header.get::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>().to_ne_bytes(),
        protocol: header.get::<u8, { offset_of!(Ipv4Hdr, proto) }>(),
        transport: at + header_length,
        length,
        ttl: header.get::<u8, { offset_of!(Ipv4Hdr, ttl) }>(),
    };
    Ok((network, u16::from_be(header.get::<u16, { offset_of!(Ipv4Hdr, frags) }>())))
}
