//! Virtual addresses: those that services are at, whatever their ports.

/// Key of the hashes `addresses_v4` and `addresses_v6`. `A` is `[u8; 4]` or `[u8; 16]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressKey<A> {
    /// The address, in network order.
    pub address: A,
}

/// Value of the hashes `addresses_v4` and `addresses_v6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// How many services are at it; for readers only.
    pub services: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{Address, AddressKey};
    // SAFETY: repr(C), `Copy`, no padding (sizes asserted in `abi`), every bit pattern valid.
    unsafe impl<A: Copy + 'static> aya::Pod for AddressKey<A> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Address {}
}
