//! The socket hook's maps, and the only place that follows pointers into them.
//!
//! These programs run in the context of the process that makes the system call. A packet may interrupt
//! them, so what both count they count atomically.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    btf_maps::{Array, LruHashMap, SkStorage},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
    programs::SockContext,
};
use graylb_common::{
    backend::Active,
    maps::{DEFAULT_BACKENDS, MAX_SOCKET_PAIRS},
    socket::{SocketKey, SocketPair, SocketSettings, Steered},
};

use crate::{access_socket::Socket, maps::fetch_add};

#[btf_map(name = "sockets")]
static SOCKETS: SkStorage<Steered> = SkStorage::new();
#[btf_map(name = "socket_pairs")]
static SOCKET_PAIRS: LruHashMap<SocketKey, SocketPair, { MAX_SOCKET_PAIRS as usize }> =
    LruHashMap::new();
#[btf_map(name = "socket_active")]
static SOCKET_ACTIVE: Array<Active, { DEFAULT_BACKENDS as usize }> = Array::new();
#[btf_map(name = "socket_settings")]
static SOCKET_SETTINGS: Array<SocketSettings, 1> = Array::new();

/// What the agent told the hook.
#[inline(always)]
pub fn settings() -> Option<&'static SocketSettings> {
    SOCKET_SETTINGS.get(0)
}

/// What is kept about a socket.
pub struct Kept(*mut Steered);

impl Kept {
    /// What it says.
    #[inline(always)]
    pub const fn value(&self) -> &Steered {
        // SAFETY: the pointer came, not null, from this socket's storage, which stays while the program
        // runs on the socket.
        unsafe { &*self.0 }
    }

    /// Replaces it.
    #[inline(always)]
    pub const fn set(&self, steered: &Steered) {
        // SAFETY: as in `value`. Threads that use one socket at the same time may see a mixture, as they
        // may see either of two addresses that they connect it to at the same time.
        unsafe { *self.0 = *steered }
    }

    /// Replaces the state bits.
    #[inline(always)]
    pub const fn set_state(&self, state: u32) {
        // SAFETY: as in `value`; an aligned word.
        unsafe { (*self.0).state = state }
    }
}

/// What is kept about a socket, if anything is.
#[inline(always)]
pub fn kept<const IPV6: bool>(socket: &Socket<IPV6>) -> Option<Kept> {
    // SAFETY: the context's socket is valid while the program runs.
    let found = unsafe { SOCKETS.get_ptr_mut(socket.context()) };
    (!found.is_null()).then_some(Kept(found))
}

/// The same, made if it is not there; `None` where the kernel has no memory for it.
#[inline(always)]
pub fn keep<const IPV6: bool>(socket: &Socket<IPV6>) -> Option<Kept> {
    // SAFETY: as in `kept`; a value is not needed, the kernel fills with zeros.
    let made = unsafe { SOCKETS.get_or_insert_ptr_mut(socket.context(), None) };
    (!made.is_null()).then_some(Kept(made))
}

/// What is kept about a socket that ends, if anything is.
#[inline(always)]
pub fn kept_at_end(context: &SockContext) -> Option<Kept> {
    let map = (&raw const SOCKETS).cast_mut();
    // SAFETY: a map of socket storage, and the context of a program at sockets.
    let found = unsafe {
        bpf_sk_storage_get(map.cast(), context.as_ptr(), core::ptr::null_mut(), 0).cast::<Steered>()
    };
    (!found.is_null()).then_some(Kept(found))
}

/// One connected socket more at a backend, or (with -1) one less.
#[inline(always)]
pub fn add_active(backend: u32, change: i64) {
    if let Some(active) = SOCKET_ACTIVE.get_ptr_mut(backend) {
        // SAFETY: array elements live as long as the map and are 8-byte aligned.
        let _before = unsafe { fetch_add(&raw mut (*active).flows, change.cast_unsigned()) };
    }
}

/// Connected sockets at a backend. Below zero when a backend's place was given to another one.
#[inline(always)]
pub fn active(backend: u32) -> i64 {
    SOCKET_ACTIVE.get(backend).map_or(0, |active| active.flows.cast_signed())
}

/// One direction of a pair.
pub struct Pair(*mut SocketPair);

impl Pair {
    /// What it says.
    #[inline(always)]
    pub const fn value(&self) -> &SocketPair {
        // SAFETY: the pointer came, not null, from a look-up in a preallocated map in this run of the
        // program; its memory stays a SocketPair until the program ends.
        unsafe { &*self.0 }
    }

    /// Notes a datagram at `now_ns`.
    #[inline(always)]
    pub const fn touch(&self, now_ns: u64) {
        // SAFETY: as in `value`; an aligned word.
        unsafe { (*self.0).last_seen_ns = now_ns }
    }
}

/// Finds one direction of a pair.
#[inline(always)]
pub fn pair(key: &SocketKey) -> Option<Pair> {
    SOCKET_PAIRS.get_ptr_mut(key).map(Pair)
}

/// Inserts or replaces; false where the kernel has no memory for it.
#[must_use]
#[inline(always)]
pub fn put_pair(key: &SocketKey, pair: &SocketPair) -> bool {
    SOCKET_PAIRS.insert(key, pair, u64::from(BPF_ANY)).is_ok()
}
