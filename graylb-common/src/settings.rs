//! What the agent may change in a loaded program without loading it again.

/// Echo requests to virtual addresses that are not this host's own are answered.
pub const ADDRESS_ECHO: u32 = 1;

/// Value of the one-element array `settings`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A UDP flow without a packet for this long chooses its backend anew, in nanoseconds.
    pub udp_timeout_ns: u64,
    /// Raised by the agent when routes, neighbours or links change: cached next hops of before are void.
    pub route_epoch: u32,
    /// `ADDRESS_*` bits.
    pub addresses: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::Settings;
    // SAFETY: repr(C), `Copy`, no padding (size asserted in `abi`), every bit pattern valid.
    unsafe impl aya::Pod for Settings {}
}
