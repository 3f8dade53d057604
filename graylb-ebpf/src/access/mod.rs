//! Packet access: the only place that touches packet pointers and packet helpers.
//!
//! In: a program's context. Out: [`Frame`], by which the pipeline reads and writes a packet without
//! knowing whether XDP or TC runs it. A [`Window`] is a stretch of the packet whose bounds have been
//! checked; it borrows the frame, because helpers that may move the packet take `&mut`.

mod tc;
mod xdp;

use core::{marker::PhantomData, mem::MaybeUninit};

pub use aya_ebpf::bindings::bpf_fib_lookup as FibParams;
use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS,
    },
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, generated::bpf_fib_lookup},
};
use graylb_common::{flow::NextHop, verdict::Verdict};

pub use self::{tc::TcFrame, xdp::XdpFrame};
use crate::family::Family;

/// A type that any bytes are a valid value of.
///
/// # Safety
///
/// Every bit pattern is valid, there is no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: integers and arrays of them.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u16; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u32; N] {}

/// `LEN` bytes of the packet, bounds checked.
pub struct Window<'frame, const LEN: usize> {
    start: *mut u8,
    frame: PhantomData<&'frame ()>,
}

impl<const LEN: usize> Window<'_, LEN> {
    /// The value at byte `AT`, in memory order.
    #[inline(always)]
    pub fn get<T: Plain, const AT: usize>(&self) -> T {
        const { assert!(AT + size_of::<T>() <= LEN) };
        // SAFETY: `AT + size_of::<T>() <= LEN` (above) and LEN bytes from `start` are inside the packet
        // (`Frame::window`). BPF loads have no alignment requirement where the kernel has efficient
        // unaligned access, and elsewhere the verifier, not the compiler, refuses the program: so the
        // load is written as an aligned one, which compiles to one instruction.
        unsafe { *self.start.add(AT).cast::<T>() }
    }

    /// Writes `value` at byte `AT`, in memory order.
    #[inline(always)]
    pub fn set<T: Plain, const AT: usize>(&self, value: T) {
        const { assert!(AT + size_of::<T>() <= LEN) };
        // SAFETY: as in `get`; XDP and TC packets are writable, TC's after the kernel's own prologue has
        // unshared the header, and nothing else refers to these bytes while a program runs.
        unsafe { *self.start.add(AT).cast::<T>() = value }
    }
}

/// The kernel's number for IPv4 (include/linux/socket.h).
pub const AF_INET: u8 = 2;
/// The same for IPv6.
pub const AF_INET6: u8 = 10;

/// Where a packet goes next, from the kernel's routing tables.
pub enum Route {
    /// Out of an interface, to a neighbour, which has been filled in.
    Neighbour,
    /// Out of an interface, to a neighbour whose MAC address is not known yet and that this hook cannot
    /// ask for.
    Unresolved,
    /// To this host, or wherever its own stack says.
    Host { fits: bool },
}

/// What the length of a packet on the wire depends on.
pub struct Lengths {
    /// The IP packet's own.
    pub packet: u16,
    /// Of its IP and transport headers.
    pub headers: u16,
    /// Of the header that a tunnel puts before it.
    pub tunnel: u16,
    /// Whether it is TCP.
    pub tcp: bool,
}

/// A packet under XDP or TC.
pub trait Frame: EbpfContext {
    /// `BPF_FIB_LOOKUP_*` flags with which this hook asks the routing tables.
    const ROUTE_FLAGS: u32;
    /// First byte of the packet.
    fn start(&self) -> usize;
    /// First byte behind it (behind its linear part, under TC).
    fn end(&self) -> usize;
    /// Makes the headers reachable by [`Frame::window`], as far as the packet has them.
    fn pull_headers(&mut self);
    /// Interface that the packet is on.
    fn interface(&self) -> u32;
    /// Whether the packet came from outside, not from a socket of this host.
    fn came_from_outside(&self) -> bool;
    /// Length of the longest IP packet that this one is on the wire: itself, or its longest segment.
    fn wire_length(&self, lengths: &Lengths) -> u16;
    /// Whether the packet has a VLAN tag beside its bytes.
    fn has_tag_aside(&self) -> bool;
    /// What this hook makes of an answer of the routing tables: `params` holds interface and next hop, and
    /// the neighbour's MAC address if it is `resolved`. False where the hook cannot use it.
    fn next_hop(params: &FibParams, resolved: bool, hop: &mut NextHop) -> bool;
    /// Whether a cached next hop is of the kind that this hook uses.
    fn uses(hop: &NextHop) -> bool;
    /// Updates the transport checksum, `offset` bytes into the frame, by the deltas of what it covers.
    /// Returns false where the kernel refuses.
    #[must_use]
    fn update_transport_checksum(&mut self, offset: usize, change: &ChecksumChange) -> bool;
    /// Tells the kernel of a change of `delta` that no checksum in the packet makes up for: a NIC may have
    /// summed the whole packet (CHECKSUM_COMPLETE).
    fn note_change(&mut self, delta: u16);
    /// Sends the packet to its next hop; the returned action is final. `None` where the frame has no
    /// room for an Ethernet header.
    fn redirect(&mut self, hop: &NextHop) -> Option<i32>;
    /// Makes room between the Ethernet header and the packet; what the Ethernet header says is lost.
    /// False where the kernel refuses.
    #[must_use]
    fn make_room(&mut self, length: u16) -> bool;
    /// Makes room like [`Frame::make_room`], for a network header that carries the packet.
    #[must_use]
    fn encapsulate<Outer: Family>(&mut self, tcp: bool) -> bool;
    /// Cuts the frame to its first `length` bytes, or makes it that long. False where the kernel refuses.
    #[must_use]
    fn resize(&mut self, length: u32) -> bool;
    /// Sends the frame out of the interface that it came in by.
    fn reflect(&mut self) -> i32;
    /// The action of a verdict other than [`Verdict::Redirected`].
    fn action(verdict: Verdict) -> i32;

    /// `LEN` bytes at `offset`, or `None` where the packet ends before.
    #[inline(always)]
    fn window<const LEN: usize>(&self, offset: usize) -> Option<Window<'_, LEN>> {
        let start = self.start() + offset;
        if start + LEN > self.end() {
            return None;
        }
        Some(Window { start: start as *mut u8, frame: PhantomData })
    }

    /// Whether the packet is on this host's loopback interface, which has the same index in every
    /// network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
    #[inline(always)]
    fn on_loopback(&self) -> bool {
        self.interface() == 1
    }

    /// Asks the kernel's routing tables; `params` has family, addresses and length.
    #[inline(always)]
    fn route(&self, params: &mut FibParams, hop: &mut NextHop) -> Route {
        params.ifindex = self.interface();
        // SAFETY: `params` is an initialised bpf_fib_lookup and its size is passed with it.
        let result = unsafe {
            bpf_fib_lookup(
                self.as_ptr(),
                core::ptr::from_mut(params),
                size_of::<FibParams>() as i32,
                Self::ROUTE_FLAGS,
            )
        };
        match result as u32 {
            answer @ (BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH) => {
                if Self::next_hop(params, answer == BPF_FIB_LKUP_RET_SUCCESS, hop) {
                    Route::Neighbour
                } else {
                    Route::Unresolved
                }
            }
            // Local, no route, forwarding off, prohibited: the stack delivers, forwards or answers.
            BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED => {
                Route::Host { fits: true }
            }
            _ => Route::Host { fits: false },
        }
    }
}

/// What a transport checksum must follow.
pub struct ChecksumChange {
    /// Change of the pseudo-header.
    pub addresses: u16,
    /// Change of the transport header.
    pub ports: u16,
    /// UDP: a zero checksum means none (RFC 768), and a sum of zero is sent as 0xffff.
    pub zero_means_none: bool,
    /// The pseudo-header is IPv6's.
    pub ipv6: bool,
}

/// The bytes of an IPv6 address as words in memory order. Written as four loads: taken byte by byte, each
/// byte would have a word of the BPF stack to itself.
#[inline(always)]
pub const fn v6_words(bytes: &[u8; 16]) -> [u32; 4] {
    // SAFETY: 16 bytes, any values; alignment as in `Window::get`. On the stack, where the verifier insists
    // on it, addresses lie in flow keys, which are aligned to four bytes.
    unsafe { *core::ptr::from_ref(bytes).cast::<[u32; 4]>() }
}

/// The next hop's address in an answer of the routing tables.
#[inline(always)]
fn gateway(params: &FibParams) -> [u32; 4] {
    // SAFETY: a union of integers, all of which were initialised (`empty_fib_params`).
    unsafe { params.__bindgen_anon_4.ipv6_dst }
}

/// Longest packet that fits, in an answer of the routing tables.
#[inline(always)]
fn mtu(params: &FibParams) -> u16 {
    // SAFETY: as above.
    unsafe { params.__bindgen_anon_1.mtu_result }
}

/// All zero, for filling in.
#[inline(always)]
pub fn empty_fib_params() -> FibParams {
    // SAFETY: a struct of integers and unions of integers, for which zero is valid.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// CLOCK_MONOTONIC_COARSE in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}
