//! Packets under XDP.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_action,
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use graylb_common::{
    csum,
    flow::{HOP_MACS, NextHop},
    verdict::{Verdict, VerdictKind},
};

use super::{ChecksumChange, FibParams, Frame, Lengths, mtu};
use crate::family::Family;

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
    fn came_from_outside(&self) -> bool {
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
