//! Sockets of this host's own clients, which the socket hook sends to backends.
//!
//! A connected socket carries what it was promised, a [`Steered`], which lives and ends with it. A UDP
//! socket that is not connected names an endpoint with each datagram: each that it talks to is a pair of
//! entries in `socket_pairs`, one for each direction, as flows are in their tables.

/// An address and a port.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketEndpoint {
    /// As [`crate::backend::Backend::address`].
    pub address: [u8; 16],
    /// Port, in host order.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
}

/// What is kept about a socket. Value of the socket storage `sockets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steered {
    /// With [`STEERED_CONNECTED`]: the endpoint that the client asked for.
    pub asked: SocketEndpoint,
    /// With [`STEERED_CONNECTED`]: the backend that it is connected to.
    pub backend: SocketEndpoint,
    /// Index of that backend in `backends`.
    pub index: u32,
    /// [`SocketSettings::epoch`] in which `socket_active` counted it.
    pub epoch: u32,
    /// `STEERED_*` bits.
    pub state: u32,
}

/// The socket was connected to a virtual endpoint.
pub const STEERED_CONNECTED: u32 = 1;
/// The socket has entries in `socket_pairs`.
pub const STEERED_PAIRS: u32 = 1 << 1;

/// Key of the map `socket_pairs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The kernel's number for the socket (SO_COOKIE), never given out again.
    pub cookie: u64,
    /// The far end, as the client or as the wire names it.
    pub endpoint: SocketEndpoint,
    /// [`TO_BACKEND`] or [`FROM_BACKEND`].
    pub direction: u32,
}

/// [`SocketKey::direction`]: the endpoint is a virtual one, the pair's peer is a backend.
pub const TO_BACKEND: u32 = 0;
/// The other way round.
pub const FROM_BACKEND: u32 = 1;

/// Value of the map `socket_pairs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPair {
    /// Kernel clock (CLOCK_MONOTONIC_COARSE) of the last datagram this way, in nanoseconds.
    pub last_seen_ns: u64,
    /// What the endpoint becomes.
    pub peer: SocketEndpoint,
    /// Index into `backends`.
    pub backend: u32,
}

/// Value of the one-element array `socket_settings`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketSettings {
    /// The network namespace (SO_NETNS_COOKIE) whose sockets are steered; 0: none's.
    pub netns_cookie: u64,
    /// Raised when the hook is attached anew: what was counted in `socket_active` before is void.
    pub epoch: u32,
    /// Always zero.
    pub reserved: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{SocketKey, SocketPair, SocketSettings, Steered};
    // SAFETY: repr(C), `Copy`, no padding (sizes asserted in `abi`), every bit pattern valid.
    unsafe impl aya::Pod for Steered {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketPair {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketSettings {}
}
