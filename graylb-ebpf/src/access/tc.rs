//! Packets under TC.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_FIB_LOOKUP_SKIP_NEIGH, TC_ACT_SHOT,
        TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh as RedirNeigh,
        bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::generated::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data,
    },
    programs::TcContext,
};
use graylb_common::{
    csum,
    flow::{HOP_GATEWAY_V4, HOP_GATEWAY_V6, NextHop},
    verdict::{Verdict, VerdictKind},
};

use super::{AF_INET, AF_INET6, ChecksumChange, FibParams, Frame, Lengths, gateway, mtu};
use crate::family::Family;

/// Ethernet, the longest plain header of IPv6 or IPv4 with options, and TCP's fixed header.
const HEADERS: u32 = 14 + 60 + 20;

/// Flag bits for checksum updates on IPv6; set at load, see `graylb_common::maps`.
#[unsafe(no_mangle)]
static CSUM_IPV6_FLAG: Global<u64> = Global::new(0);

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
    fn came_from_outside(&self) -> bool {
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
        if !self.replace_checksum(
            offset,
            change.addresses,
            u64::from(BPF_F_PSEUDO_HDR) | zero | family,
        ) {
            return false;
        }
        if change.ipv6 && family == 0 {
            // Without the flag the kernel takes the difference off the sum over the whole packet, as is right
            // for IPv4 (inet_proto_csum_replace_by_diff, net/core/utils.c); here header and checksum balance.
            self.note_change(change.addresses);
        }
        self.replace_checksum(offset, change.ports, zero)
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
