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

/// A service's generation in force: which of its routes a new flow takes.
///
/// The entry is replaced as a whole by one map write; what it points to is never edited in place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Number of this routing decision data; each replacement has a higher one.
    pub generation: u64,
    /// When the canary's share ends unless the agent has renewed it: the kernel's monotonic clock, in ns; 0: never.
    pub lease_ns: u64,
    /// The agent's number for this service, stable while its endpoint exists.
    pub id: u32,
    /// Mixed into the hashes that choose slots, so that services differ: the agent's hash of the endpoint.
    pub salt: u32,
    /// The same for the hash that chooses between the stable and the canary pool.
    pub split_salt: u32,
    /// Index into `routes` of [`ROUTE_STABLE`]; the others follow.
    pub routes: u32,
    /// Number of this service's client rules in `rules_v4` or `rules_v6`; 0: there are none.
    pub rules: u32,
    /// How many of [`SHARES`] buckets of clients go to the canary pool.
    pub share: u16,
    /// What has a bucket: a `SPLIT_*`.
    pub split_by: u8,
    /// [`SPLIT_CLIENT`]: leading bits of the client's address that say who it is.
    pub split_prefix: u8,
}

/// Buckets of clients: [`Service::share`] counts in these.
pub const SHARES: u32 = 10_000;

/// [`Service::split_by`]: the client's address.
pub const SPLIT_CLIENT: u8 = 0;
/// [`Service::split_by`]: the client's address and port.
pub const SPLIT_FLOW: u8 = 1;

/// Place of the stable pool's route among a service's.
pub const ROUTE_STABLE: u32 = 0;
/// Place of the canary pool's.
pub const ROUTE_CANARY: u32 = 1;
/// Place of the first of the pools that client rules lead to.
pub const ROUTE_RULES: u32 = 2;
/// Most routes of a service.
pub const MAX_ROUTES: u32 = 66;

/// A pool of a service: its slots are `slots[slots_start .. slots_start + slots_count]`. Value of the array
/// `routes`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The agent's number for the pool.
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
}

impl Route {
    /// Of no pool.
    pub const NONE: Self = Self {
        pool: 0,
        slots_start: 0,
        slots_count: 0,
        turn: 0,
        select: SELECT_TURNS,
        prefix: 0,
        reserved: 0,
    };
}

/// Clients of a service. Key of the tries `rules_v4` and `rules_v6`, behind the length of the prefix: that of
/// the client's addresses and [`RULE_SET_BITS`].
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleKey<A> {
    /// [`Service::rules`].
    pub rules: u32,
    /// Address, in network order.
    pub address: A,
}

/// Bits of [`RuleKey::rules`], which all must match.
pub const RULE_SET_BITS: u32 = 32;

/// Where such clients go. Value of the tries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Place of the route among the service's.
    pub route: u32,
}

/// [`Route::select`]: the slots in turn.
pub const SELECT_TURNS: u8 = 0;
/// [`Route::select`]: the slot at the hash of the tuple.
pub const SELECT_TUPLE: u8 = 1;
/// [`Route::select`]: the slot at the hash of the client's address prefix.
pub const SELECT_STICKY: u8 = 2;
/// [`Route::select`]: of two slots at random, the one whose backend has fewer active flows for its weight.
pub const SELECT_LEAST: u8 = 3;

/// One entry of the flat table `slots`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index into `backends`.
    pub backend: u32,
}

/// A round-robin counter: written by the kernel at each new flow, zeroed by the agent before it puts new
/// slots in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The turn that the next new flow takes; modulo the slot count it is the slot.
    pub next: u64,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{Route, Rule, RuleKey, Service, ServiceKey, Slot, Turn};
    // SAFETY: repr(C), `Copy`, no padding (sizes asserted in `abi`), every bit pattern valid.
    unsafe impl<A: Copy + 'static> aya::Pod for ServiceKey<A> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Route {}
    // SAFETY: as above.
    unsafe impl<A: Copy + 'static> aya::Pod for RuleKey<A> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Rule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Turn {}
}
