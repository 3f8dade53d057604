//! Backends as the packet path sees them: one entry per service × pool × backend, so that counters by
//! index are counters by that triple.

/// [`Backend::family`] of an IPv4 backend.
pub const FAMILY_V4: u8 = 4;
/// [`Backend::family`] of an IPv6 backend.
pub const FAMILY_V6: u8 = 6;

/// [`Backend::mode`]: destination rewritten on the way in, source on the way back.
pub const MODE_NAT: u8 = 0;
/// [`Backend::mode`]: both addresses rewritten both ways; the backend sees an address of [`Source`].
pub const MODE_SNAT: u8 = 1;
/// [`Backend::mode`]: nothing rewritten but the MAC addresses; the backend answers the client itself.
pub const MODE_DSR: u8 = 2;
/// [`Backend::mode`]: the packet travels inside another one (RFC 2003, RFC 2473); the backend answers the
/// client itself.
pub const MODE_IPIP: u8 = 3;

/// Where a slot leads. Value of the array `backends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address in network order; an IPv4 address in its IPv4-mapped form (RFC 4291, 2.5.5.2), so in the
    /// last four bytes.
    pub address: [u8; 16],
    /// Port, in host order.
    pub port: u16,
    /// [`FAMILY_V4`], [`FAMILY_V6`], or 0 for an entry not in use.
    pub family: u8,
    /// A `MODE_*`.
    pub mode: u8,
    /// [`crate::service::Service::id`] of the service that it serves here.
    pub service: u32,
    /// The agent's number for the pool.
    pub pool: u32,
    /// The weight that the agent gave it when it filled the slots; for readers, and for
    /// [`crate::service::SELECT_LEAST`].
    pub weight: u32,
    /// First of this backend's entries in `sources`, in modes that need a source address.
    pub sources_start: u32,
    /// How many there are.
    pub sources_count: u32,
}

/// An address of this host that packets to backends come from. Value of the array `sources`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// As [`Backend::address`].
    pub address: [u8; 16],
    /// Lowest port that [`MODE_SNAT`] takes, in host order.
    pub port_low: u16,
    /// Highest port.
    pub port_high: u16,
    /// [`FAMILY_V4`], [`FAMILY_V6`], or 0 for an entry not in use.
    pub family: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

/// Flows to a backend that have not ended. Value of the array `active`, same index as `backends`; what the
/// packet path misses (evicted flows) the agent corrects from time to time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Active {
    /// Their number.
    pub flows: u64,
}

/// What happened on flows to one backend. Value of the per-CPU array `backend_stats`, same index as
/// `backends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// New flows sent here (TCP: SYNs that chose it).
    pub opened: u64,
    /// TCP handshakes completed.
    pub established: u64,
    /// SYNs that it answered with a reset.
    pub refused: u64,
    /// Established TCP flows that ended: a reset by either side, or a FIN from both.
    pub closed: u64,
    /// SYNs that came again before it had answered; each flow once.
    pub unanswered: u64,
    /// Answered SYNs by the time that the answer took: bucket b from 2^b to below 2^(b + 1) µs, the first from 0,
    /// the last without end. By the coarse clock, so a few ms more or less.
    pub handshake: [u64; HANDSHAKE_BUCKETS],
}

/// Buckets of [`BackendCounters::handshake`].
pub const HANDSHAKE_BUCKETS: usize = 24;

/// The bucket of a time in nanoseconds.
#[must_use]
#[inline(always)]
pub const fn handshake_bucket(ns: u64) -> usize {
    let bucket = ((ns / 1000) | 1).ilog2() as usize;
    if bucket < HANDSHAKE_BUCKETS { bucket } else { HANDSHAKE_BUCKETS - 1 }
}

impl BackendCounters {
    /// Adds another CPU's counters to these.
    pub const fn add(&mut self, other: &Self) {
        self.opened = self.opened.wrapping_add(other.opened);
        self.established = self.established.wrapping_add(other.established);
        self.refused = self.refused.wrapping_add(other.refused);
        self.closed = self.closed.wrapping_add(other.closed);
        self.unanswered = self.unanswered.wrapping_add(other.unanswered);
        let mut bucket = 0;
        while bucket < HANDSHAKE_BUCKETS {
            self.handshake[bucket] = self.handshake[bucket].wrapping_add(other.handshake[bucket]);
            bucket += 1;
        }
    }
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{Active, Backend, BackendCounters, Source};
    // SAFETY: repr(C), `Copy`, no padding (sizes asserted in `abi`), every bit pattern valid.
    unsafe impl aya::Pod for Backend {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BackendCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Source {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Active {}
}
