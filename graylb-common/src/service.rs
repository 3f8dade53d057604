//! Services and their routing data: what a new flow is looked up in.

/// TCP's protocol number (RFC 9293, IANA protocol numbers).
pub const PROTOCOL_TCP: u8 = 6;
/// UDP's protocol number (RFC 768).
pub const PROTOCOL_UDP: u8 = 17;

/// A virtual endpoint as the wire shows it. Key of the maps `services_v4` and `services_v6`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey<A> {
    /// Address, in network order.
    pub address: A,
    /// Port, in host order.
    pub port: u16,
    /// [`PROTOCOL_TCP`] or [`PROTOCOL_UDP`].
    pub protocol: u8,
    /// Always zero.
    pub reserved: u8,
}

/// A service's generation in force: its slots are `slots[slots_start .. slots_start + slots_count]`.
///
/// The entry is replaced as a whole by one map write; what it points to is never edited in place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Number of this routing decision data; each replacement has a higher one.
    pub generation: u64,
    /// The agent's number for this service, stable while its endpoint exists.
    pub id: u32,
    /// The agent's number for the stable pool.
    pub pool: u32,
    /// First slot.
    pub slots_start: u32,
    /// Number of slots; with 0 there is no backend to choose.
    pub slots_count: u32,
    /// Index into `turns` of the counter that round robin advances.
    pub turn: u32,
    /// How a slot is chosen: a `SELECT_*`.
    pub select: u8,
    /// [`SELECT_STICKY`]: leading bits of the client's address that choose.
    pub prefix: u8,
    /// Always zero.
    pub reserved: u16,
    /// Mixed into every hash, so that services differ: the agent's hash of the endpoint.
    pub salt: u32,
    /// Always zero.
    pub reserved2: u32,
}

/// [`Service::select`]: the slots in turn.
pub const SELECT_TURNS: u8 = 0;
/// [`Service::select`]: the slot at the hash of the tuple.
pub const SELECT_TUPLE: u8 = 1;
/// [`Service::select`]: the slot at the hash of the client's address prefix.
pub const SELECT_STICKY: u8 = 2;
/// [`Service::select`]: of two slots at random, the one whose backend has fewer active flows for its weight.
pub const SELECT_LEAST: u8 = 3;

/// One entry of the flat table `slots`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index into `backends`.
    pub backend: u32,
}

/// A round-robin counter: written by the kernel at each new flow, zeroed by the agent before it puts a
/// new generation in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The turn that the next new flow takes; modulo the slot count it is the slot.
    pub next: u64,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{Service, ServiceKey, Slot, Turn};
    // SAFETY: repr(C), `Copy`, no padding (sizes asserted in `abi`), every bit pattern valid.
    unsafe impl<A: Copy + 'static> aya::Pod for ServiceKey<A> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Turn {}
}
