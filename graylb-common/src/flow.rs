//! Flows: connections (TCP) and address pairs (UDP) pinned to their backend.
//!
//! Each flow has two entries in the same map, one for each direction, keyed by the packet's own tuple:
//! an established packet costs one look-up whichever way it goes. Each entry says what the tuple
//! becomes, so the key of the other direction is the rewritten tuple reversed.

/// A packet's tuple. Key of the flow maps; the map says family and protocol.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Source address, in network order.
    pub source: A,
    /// Destination address, in network order.
    pub destination: A,
    /// Source port, in host order.
    pub source_port: u16,
    /// Destination port, in host order.
    pub destination_port: u16,
}

impl<A: Copy> FlowKey<A> {
    /// The tuple of a packet that goes the other way.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// One direction of a flow. Value of `tcp_v4`, `tcp_v6`, `udp_v4`, `udp_v6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// Kernel clock (CLOCK_MONOTONIC_COARSE) of the last packet this way, in nanoseconds.
    pub last_seen_ns: u64,
    /// What the packet's tuple becomes.
    pub rewrite: FlowKey<A>,
    /// One's-complement difference of the addresses, new minus old: for the IPv4 header checksum and
    /// the pseudo-header. In memory order, see [`crate::csum`].
    pub address_delta: u16,
    /// The same for the ports: for the TCP or UDP checksum alone.
    pub port_delta: u16,
    /// Index into `backends`.
    pub backend: u32,
    /// [`crate::service::Service::id`].
    pub service: u32,
    /// Low half of the generation that chose the backend.
    pub generation: u32,
    /// `FLOW_*` bits.
    pub state: u32,
    /// The pool's mode, a `MODE_*` of [`crate::backend`].
    pub mode: u32,
    /// Where the next packet this way goes, as far as it is known.
    pub hop: NextHop,
}

/// A cached answer of the kernel's routing tables. Written by the program without a lock, `epoch` last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// The epoch that it was found in; it is good in no other. 0: there is none.
    pub epoch: u32,
    /// The interface that the packet leaves by; 0: it stays on this host.
    pub ifindex: u32,
    /// Longest IP packet that fits, in bytes.
    pub mtu: u16,
    /// A `HOP_*`.
    pub kind: u8,
    /// Always zero.
    pub reserved: u8,
    /// By `kind`, in memory order: the neighbour's IP address (its first word alone for IPv4), or
    /// destination and source MAC address in the first twelve bytes.
    pub link: [u32; 4],
}

impl NextHop {
    /// None; with an epoch, this host.
    pub const NONE: Self =
        Self { epoch: 0, ifindex: 0, mtu: 0, kind: 0, reserved: 0, link: [0; 4] };
}

/// [`NextHop::link`] is an IPv4 address: TC lets the kernel find its MAC address, which keeps the
/// neighbour table up to date.
pub const HOP_GATEWAY_V4: u8 = 1;
/// The same with an IPv6 address.
pub const HOP_GATEWAY_V6: u8 = 2;
/// [`NextHop::link`] is a pair of MAC addresses, for XDP.
pub const HOP_MACS: u8 = 3;

/// The entry is the backend's direction, towards the client.
pub const FLOW_REPLY: u32 = 1;
/// Half-open: the backend has answered the SYN.
pub const FLOW_SYN_ACK: u32 = 1 << 1;
/// A FIN went this way.
pub const FLOW_FIN: u32 = 1 << 2;
/// The flow ended by a reset.
pub const FLOW_RESET: u32 = 1 << 3;
/// A SYN has been seen on this tuple since: a half-open flow may be about to take it over.
pub const FLOW_CHALLENGED: u32 = 1 << 4;
/// The end of the flow has been counted.
pub const FLOW_CLOSED: u32 = 1 << 5;
/// Half-open: the client has sent its SYN again, and there was no answer yet.
pub const FLOW_UNANSWERED: u32 = 1 << 6;

impl<A: Copy> Flow<A> {
    /// The entry for the other direction of the flow that this entry, stored under `key`, belongs to;
    /// its own key is `self.rewrite.reversed()`.
    #[inline(always)]
    #[must_use]
    pub const fn counterpart(&self, key: &FlowKey<A>) -> Self {
        Self {
            last_seen_ns: self.last_seen_ns,
            rewrite: key.reversed(),
            // One's-complement negation.
            address_delta: !self.address_delta,
            port_delta: !self.port_delta,
            backend: self.backend,
            service: self.service,
            generation: self.generation,
            state: self.state ^ FLOW_REPLY,
            mode: self.mode,
            hop: NextHop::NONE,
        }
    }
}

/// A TCP flow whose handshake is not complete. Value of `half_open_v4`, `half_open_v6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen<A> {
    /// The flow as it will be when established.
    pub flow: Flow<A>,
    /// Sequence number of the client's SYN.
    pub client_isn: u32,
    /// Sequence number of the backend's SYN-ACK, valid with [`FLOW_SYN_ACK`].
    pub server_isn: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{Flow, FlowKey, HalfOpen};
    // SAFETY: repr(C), `Copy`, no padding for the two address types in use (sizes asserted in `abi`),
    // every bit pattern valid.
    unsafe impl<A: Copy + 'static> aya::Pod for FlowKey<A> {}
    // SAFETY: as above.
    unsafe impl<A: Copy + 'static> aya::Pod for Flow<A> {}
    // SAFETY: as above.
    unsafe impl<A: Copy + 'static> aya::Pod for HalfOpen<A> {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counterpart_of_the_counterpart_is_the_flow() {
        let key = FlowKey {
            source: [10, 0, 0, 1],
            destination: [10, 0, 0, 2],
            source_port: 4000,
            destination_port: 80,
        };
        let rewrite = FlowKey { destination: [10, 0, 0, 3], destination_port: 8080, ..key };
        let flow = Flow {
            last_seen_ns: 7,
            rewrite,
            address_delta: 1,
            port_delta: 2,
            backend: 3,
            service: 4,
            generation: 5,
            state: 0,
            mode: 0,
            hop: NextHop::NONE,
        };
        let reply = flow.counterpart(&key);
        assert_eq!(reply.rewrite, key.reversed());
        assert_eq!(reply.state, FLOW_REPLY);
        assert_eq!(reply.counterpart(&rewrite.reversed()), flow);
    }
}
