//! Packet access: the only place that touches packet pointers and packet helpers.
//!
//! In: a program's context. Out: [`Frame`], by which the pipeline reads and writes a packet without
//! knowing whether XDP or TC runs it. A [`Window`] is a stretch of the packet whose bounds have been
//! checked; it borrows the frame, because helpers that may move the packet take `&mut`.

use core::{ffi::c_void, marker::PhantomData, mem::MaybeUninit};

pub use aya_ebpf::bindings::bpf_fib_lookup as FibParams;
use aya_ebpf::{
    EbpfContext, Global,
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_SKIP_NEIGH, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_redir_neigh as RedirNeigh, bpf_redir_neigh__bindgen_ty_1, xdp_action,
    },
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_coarse_ns,
        generated::{
            bpf_csum_update, bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
            bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data, bpf_xdp_adjust_head,
            bpf_xdp_adjust_tail,
        },
    },
    programs::{TcContext, XdpContext},
};

use crate::family::Family;
use graylb_common::{
    csum,
    flow::{HOP_GATEWAY_V4, HOP_GATEWAY_V6, HOP_MACS, NextHop},
    verdict::{Verdict, VerdictKind},
};

/// Ethernet, the longest plain header of IPv6 or IPv4 with options, and TCP's fixed header.
const HEADERS: u32 = 14 + 60 + 20;

/// Flag bits for checksum updates on IPv6; set at load, see `graylb_common::maps`.
#[unsafe(no_mangle)]
static CSUM_IPV6_FLAG: Global<u64> = Global::new(0);

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
    fn from_outside(&self) -> bool;
    /// Length of the longest IP packet that this one is on the wire: itself, or its longest segment.
    fn wire_length(&self, lengths: &Lengths) -> u16;
    /// Whether the packet has a VLAN tag beside its bytes.
    fn has_tag_aside(&self) -> bool;
    /// Length for the route's MTU check, 0 where the kernel knows better (GSO).
    fn length_for_mtu(&self, ip_length: u16) -> u16;
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

/// A packet under XDP: contiguous, its checksums complete.
pub struct XdpFrame {
    context: XdpContext,
}

impl XdpFrame {
    /// Wraps a program's context.
    #[inline(always)]
    pub const fn new(context: XdpContext) -> Self {
        Self { context }
    }
}

impl EbpfContext for XdpFrame {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.context.as_ptr()
    }
}

impl Frame for XdpFrame {
    const ROUTE_FLAGS: u32 = 0;

    #[inline(always)]
    fn start(&self) -> usize {
        self.context.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.context.data_end()
    }

    #[inline(always)]
    fn pull_headers(&mut self) {}

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn from_outside(&self) -> bool {
        true
    }

    #[inline(always)]
    fn has_tag_aside(&self) -> bool {
        false
    }

    #[inline(always)]
    fn wire_length(&self, lengths: &Lengths) -> u16 {
        lengths.packet.saturating_add(lengths.tunnel)
    }

    #[inline(always)]
    fn length_for_mtu(&self, ip_length: u16) -> u16 {
        ip_length
    }

    #[inline(always)]
    fn update_transport_checksum(&mut self, offset: usize, change: &ChecksumChange) -> bool {
        let Some(field) = self.window::<2>(offset) else { return false };
        let old: u16 = field.get::<u16, 0>();
        if change.zero_means_none && old == 0 {
            return true;
        }
        let new = csum::updated(old, csum::add(change.addresses, change.ports));
        field.set::<u16, 0>(if change.zero_means_none && new == 0 { 0xffff } else { new });
        true
    }

    /// XDP has no way to such a sum: a driver that runs a program may not report one.
    #[inline(always)]
    fn note_change(&mut self, _delta: u16) {}

    #[inline(always)]
    fn next_hop(params: &FibParams, resolved: bool, hop: &mut NextHop) -> bool {
        // SAFETY: `dmac` and `smac` are the last 12 bytes of the struct, at an even offset.
        let [smac, dmac] = unsafe {
            let macs: *const [u8; 6] = &raw const params.smac;
            [*macs.cast::<[u16; 3]>(), *macs.add(1).cast::<[u16; 3]>()]
        };
        let word = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        hop.ifindex = params.ifindex;
        hop.mtu = mtu(params);
        hop.kind = HOP_MACS;
        hop.reserved = 0;
        hop.link = [word(dmac[0], dmac[1]), word(dmac[2], smac[0]), word(smac[1], smac[2]), 0];
        resolved
    }

    #[inline(always)]
    fn uses(hop: &NextHop) -> bool {
        hop.kind == HOP_MACS
    }

    #[inline(always)]
    fn redirect(&mut self, hop: &NextHop) -> Option<i32> {
        let [a, b, c, _] = hop.link;
        self.window::<12>(0)?.set::<[u32; 3], 0>([a, b, c]);
        if hop.ifindex == self.interface() {
            return Some(xdp_action::XDP_TX.cast_signed());
        }
        // SAFETY: plain integers.
        Some(unsafe { bpf_redirect(hop.ifindex, 0) as i32 })
    }

    #[inline(always)]
    fn make_room(&mut self, length: u16) -> bool {
        // SAFETY: the context of an XDP program; the kernel checks the room before the packet.
        unsafe { bpf_xdp_adjust_head(self.context.ctx, -i32::from(length)) == 0 }
    }

    #[inline(always)]
    fn encapsulate<Outer: Family>(&mut self, _tcp: bool) -> bool {
        self.make_room(Outer::HEADER_LEN)
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> bool {
        let delta = length as i32 - (self.end() - self.start()) as i32;
        // SAFETY: the context of an XDP program; the kernel checks the length.
        unsafe { bpf_xdp_adjust_tail(self.context.ctx, delta) == 0 }
    }

    #[inline(always)]
    fn reflect(&mut self) -> i32 {
        xdp_action::XDP_TX.cast_signed()
    }

    #[inline(always)]
    fn action(verdict: Verdict) -> i32 {
        match verdict.kind() {
            VerdictKind::Dropped | VerdictKind::Answered => xdp_action::XDP_DROP.cast_signed(),
            VerdictKind::Forwarded | VerdictKind::Passed => xdp_action::XDP_PASS.cast_signed(),
        }
    }
}

/// A packet under TC: perhaps many segments in one, its checksum perhaps left to the NIC.
pub struct TcFrame {
    context: TcContext,
}

impl TcFrame {
    /// Wraps a program's context.
    #[inline(always)]
    pub const fn new(context: TcContext) -> Self {
        Self { context }
    }

    #[inline(always)]
    fn replace_checksum(&mut self, offset: usize, delta: u16, flags: u64) -> bool {
        // SAFETY: the kernel checks the offset; a size of 0 in `flags` makes `to` the difference
        // (bpf_l4_csum_replace, net/core/filter.c).
        let result = unsafe {
            bpf_l4_csum_replace(self.context.skb.skb, offset as u32, 0, u64::from(delta), flags)
        };
        result == 0
    }
}

impl TcFrame {
    #[inline(always)]
    fn adjust_room(&mut self, length: u16, flags: u32) -> bool {
        // SAFETY: the context of a TC program; the kernel checks length and flags.
        let result = unsafe {
            bpf_skb_adjust_room(
                self.context.skb.skb,
                i32::from(length),
                BPF_ADJ_ROOM_MAC,
                u64::from(flags),
            )
        };
        result == 0
    }
}

impl EbpfContext for TcFrame {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.context.as_ptr()
    }
}

impl Frame for TcFrame {
    /// The kernel finds the neighbour when it sends. A neighbour that is not known yet would end the
    /// look-up before it says how long a packet may be.
    const ROUTE_FLAGS: u32 = BPF_FIB_LOOKUP_SKIP_NEIGH;

    #[inline(always)]
    fn start(&self) -> usize {
        self.context.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.context.data_end()
    }

    #[inline(always)]
    fn pull_headers(&mut self) {
        if self.start() + HEADERS as usize > self.end() {
            let length = self.context.len();
            let wanted = if length < HEADERS { length } else { HEADERS };
            // SAFETY: the kernel checks the length. A failure leaves the packet as it is, and the
            // bounds checks to come decide by what is there.
            let _unreachable_headers_are_seen_by_window =
                unsafe { bpf_skb_pull_data(self.context.skb.skb, wanted) };
        }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context of a TC program is a valid __sk_buff.
        unsafe { (*self.context.skb.skb).ifindex }
    }

    #[inline(always)]
    fn from_outside(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.context.skb.skb).ingress_ifindex != 0 }
    }

    /// The kernel takes a tag out of the frame before TC sees it (skb_vlan_untag, net/core/dev.c).
    #[inline(always)]
    fn has_tag_aside(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.context.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn wire_length(&self, lengths: &Lengths) -> u16 {
        // SAFETY: the context of a TC program is a valid __sk_buff.
        let segment = unsafe { (*self.context.skb.skb).gso_size } as u16;
        match segment {
            0 => lengths.packet.saturating_add(lengths.tunnel),
            // The kernel makes TCP's segments shorter by what a tunnel adds (bpf_skb_net_grow).
            _ if lengths.tcp => lengths.headers.saturating_add(segment),
            _ => lengths.headers.saturating_add(segment).saturating_add(lengths.tunnel),
        }
    }

    #[inline(always)]
    fn length_for_mtu(&self, _ip_length: u16) -> u16 {
        0
    }

    #[inline(always)]
    fn update_transport_checksum(&mut self, offset: usize, change: &ChecksumChange) -> bool {
        let Some(field) = self.window::<2>(offset) else { return false };
        if change.zero_means_none && field.get::<u16, 0>() == 0 {
            // The IPv4 header checksum makes up for the addresses.
            let addresses = if change.ipv6 { change.addresses } else { 0 };
            self.note_change(csum::add(addresses, change.ports));
            return true;
        }
        let zero = if change.zero_means_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let family = if change.ipv6 { CSUM_IPV6_FLAG.load() } else { 0 };
        // The addresses are in the pseudo-header, which an unfinished checksum holds already; the ports
        // are not, so one call cannot do both.
        self.replace_checksum(offset, change.addresses, u64::from(BPF_F_PSEUDO_HDR) | zero | family)
            && self.replace_checksum(offset, change.ports, zero)
    }

    #[inline(always)]
    fn note_change(&mut self, delta: u16) {
        // SAFETY: plain integers beside the context.
        let _refused_where_there_is_no_sum =
            unsafe { bpf_csum_update(self.context.skb.skb, u32::from(delta)) };
    }

    #[inline(always)]
    fn next_hop(params: &FibParams, _resolved: bool, hop: &mut NextHop) -> bool {
        hop.ifindex = params.ifindex;
        hop.mtu = mtu(params);
        hop.kind = if params.family == AF_INET { HOP_GATEWAY_V4 } else { HOP_GATEWAY_V6 };
        hop.reserved = 0;
        hop.link = gateway(params);
        true
    }

    #[inline(always)]
    fn uses(hop: &NextHop) -> bool {
        hop.kind == HOP_GATEWAY_V4 || hop.kind == HOP_GATEWAY_V6
    }

    #[inline(always)]
    fn redirect(&mut self, hop: &NextHop) -> Option<i32> {
        let family = if hop.kind == HOP_GATEWAY_V4 { AF_INET } else { AF_INET6 };
        let mut neighbour = RedirNeigh {
            nh_family: u32::from(family),
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: hop.link },
        };
        let size = size_of::<RedirNeigh>() as i32;
        // SAFETY: an initialised bpf_redir_neigh, whose size is passed with it.
        Some(unsafe { bpf_redirect_neigh(hop.ifindex, &raw mut neighbour, size, 0) as i32 })
    }

    #[inline(always)]
    fn make_room(&mut self, length: u16) -> bool {
        self.adjust_room(length, 0)
    }

    #[inline(always)]
    fn encapsulate<Outer: Family>(&mut self, tcp: bool) -> bool {
        let family =
            if Outer::IPV6 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
        // Only TCP's segments may be made shorter: UDP's are datagrams.
        let segments = if tcp { 0 } else { BPF_F_ADJ_ROOM_FIXED_GSO };
        self.adjust_room(Outer::HEADER_LEN, family | segments)
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> bool {
        // SAFETY: the context of a TC program; the kernel checks the length.
        unsafe { bpf_skb_change_tail(self.context.skb.skb, length, 0) == 0 }
    }

    #[inline(always)]
    fn reflect(&mut self) -> i32 {
        // SAFETY: plain integers.
        unsafe { bpf_redirect(self.interface(), 0) as i32 }
    }

    #[inline(always)]
    fn action(verdict: Verdict) -> i32 {
        match verdict.kind() {
            VerdictKind::Dropped | VerdictKind::Answered => TC_ACT_SHOT,
            // The next program, if there is one, sees what this one leaves.
            VerdictKind::Forwarded | VerdictKind::Passed => TC_ACT_UNSPEC,
        }
    }
}
