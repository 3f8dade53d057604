//! Datagrams that arrive in fragments: what their first fragment said. These maps live as long as the programs
//! that are loaded with them.

use crate::flow::FlowKey;

/// A datagram in fragments (RFC 791, 3.2; RFC 8200, 4.5). Key of the maps `fragments_v4` and `fragments_v6`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey<A> {
    /// Source address, in network order.
    pub source: A,
    /// Destination address, in network order.
    pub destination: A,
    /// Identification, in memory order.
    pub id: u32,
    /// Protocol number.
    pub protocol: u32,
}

/// What its first fragment said. Value of the maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmented<A> {
    /// Kernel clock (CLOCK_MONOTONIC_COARSE) when it came, in nanoseconds.
    pub seen_ns: u64,
    /// The datagram's tuple.
    pub key: FlowKey<A>,
    /// Always zero: the size is a multiple of eight bytes.
    pub reserved: u32,
}

/// How long a first fragment leads the others: what the kernel waits for them (IP_FRAG_TIME, include/net/ip.h).
pub const FRAGMENT_NS: u64 = 30 * 1_000_000_000;
