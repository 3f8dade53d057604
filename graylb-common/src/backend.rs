//! Backends as the packet path sees them: one entry per service × pool × backend, so that counters by
//! index are counters by that triple.

/// [`Backend::family`] of an IPv4 backend.
pub const FAMILY_V4: u8 = 4;
/// [`Backend::family`] of an IPv6 backend.
pub const FAMILY_V6: u8 = 6;

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
    /// Always zero.
    pub reserved: u8,
    /// [`crate::service::Service::id`] of the service that it serves here.
    pub service: u32,
    /// The agent's number for the pool.
    pub pool: u32,
    /// The weight that the agent gave it when it filled the slots; for readers only.
    pub weight: u32,
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
}

impl BackendCounters {
    /// Adds another CPU's counters to these.
    pub const fn add(&mut self, other: &Self) {
        self.opened = self.opened.wrapping_add(other.opened);
        self.established = self.established.wrapping_add(other.established);
        self.refused = self.refused.wrapping_add(other.refused);
        self.closed = self.closed.wrapping_add(other.closed);
    }
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{Backend, BackendCounters};
    // SAFETY: repr(C), `Copy`, no padding (sizes asserted in `abi`), every bit pattern valid.
    unsafe impl aya::Pod for Backend {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BackendCounters {}
}
