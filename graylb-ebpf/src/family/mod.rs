//! IPv4 and IPv6: what differs between them, as constants and straight functions.

mod v4;
mod v6;

use graylb_common::{
    flow::{Flow, FlowKey, HalfOpen},
    hash,
    service::ServiceKey,
    verdict::Verdict,
};

pub use self::{v4::V4, v6::V6};
use crate::{
    access::{FibParams, Frame, random},
    maps::{AddressMap, Draft, FlowTable, FragmentMap, RuleMap, ServiceMap},
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

/// A fragment of a datagram.
pub struct Piece<A> {
    /// What its headers say; the transport header is there in the first one only.
    pub network: Network<A>,
    /// The datagram's identification, in memory order.
    pub id: u32,
    /// Where in the datagram it begins, in bytes.
    pub offset: u16,
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
pub const TTL: u8 = 64;

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
    /// Type and code of its echo request, in memory order (RFC 792; RFC 4443, 4.1).
    const ECHO_REQUEST: u16;
    /// The same of the reply.
    const ECHO_REPLY: u16;
    /// Virtual endpoints.
    fn services() -> ServiceMap<Self::Address>;
    /// Addresses of services.
    fn addresses() -> AddressMap<Self::Address>;
    /// Client rules.
    fn rules() -> RuleMap<Self::Address>;
    /// Established TCP flows.
    fn tcp() -> &'static (impl FlowTable<Self::Address, Flow<Self::Address>> + 'static);
    /// TCP flows in their handshake.
    fn half_open() -> &'static (impl FlowTable<Self::Address, HalfOpen<Self::Address>> + 'static);
    /// UDP flows.
    fn udp() -> &'static (impl FlowTable<Self::Address, Flow<Self::Address>> + 'static);
    /// This CPU's draft for a new flow.
    fn draft() -> Option<&'static mut Draft<Self::Address>>;
    /// Reads the network header at an offset, or says why the packet is left alone.
    fn network<F: Frame>(frame: &F, at: usize) -> Result<Network<Self::Address>, Verdict>;
    /// Reads the headers of a packet that [`Family::network`] says is a fragment.
    fn piece<F: Frame>(frame: &F, at: usize) -> Result<Piece<Self::Address>, Verdict>;
    /// Datagrams in fragments.
    fn fragments() -> FragmentMap<Self::Address>;
    /// Whether an ICMP message of this type is an error about a packet, which it quotes.
    fn is_icmp_error(kind: u8) -> bool;
    /// An address as `backends` and `sources` hold it, `None` where it is of the other family.
    fn address(bytes: &[u8; 16], family: u8) -> Option<&Self::Address>;
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
    /// Writes both addresses into the header at an offset, and its checksum where there is one.
    #[must_use]
    fn write_addresses<F: Frame>(
        frame: &F,
        at: usize,
        source: &Self::Address,
        destination: &Self::Address,
        delta: u16,
    ) -> bool;
    /// How the checksum of an ICMP message changes with what its pseudo-header and the addresses in the
    /// quoted header change by; the quoted header's own checksum makes up for its addresses where it has
    /// one.
    fn icmp_delta(outer: u16, quoted: u16) -> u16;
    /// DSCP and ECN bits (RFC 2474, RFC 3168).
    fn traffic_class<F: Frame>(frame: &F) -> u8;
    /// Writes a whole header without options into the room made for it behind the Ethernet header.
    #[must_use]
    fn write_header<F: Frame>(frame: &mut F, header: &Header<'_, Self::Address>) -> bool;
    /// The first eight bytes of an ICMP message that says "at most `mtu` bytes", checksum zero.
    fn too_big(mtu: u16) -> [u32; 2];
    /// The sum of the pseudo-header that an ICMP message's checksum covers; 0 where there is none.
    fn icmp_pseudo_sum(header: &Header<'_, Self::Address>) -> u16;
    /// Writes TTL or hop limit, and the header's checksum where there is one.
    #[must_use]
    fn set_ttl<F: Frame>(frame: &mut F, change: impl FnOnce(u8) -> u8) -> bool;
    /// Whether a packet from this address may be answered: it is one host's, and not this one's.
    fn is_answerable(source: &Self::Address) -> bool;
    /// Takes one off the TTL or hop limit.
    #[inline(always)]
    #[must_use]
    fn decrement_ttl<F: Frame>(frame: &mut F) -> bool {
        Self::set_ttl(frame, |ttl| ttl.wrapping_sub(1))
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
