//! Rewritten packet → its next hop: cached in the flow, or asked of the kernel's routing tables.

use graylb_common::{
    flow::{Flow, NextHop},
    verdict::Verdict,
};

use crate::{
    access::{Frame, Route, empty_fib_params},
    family::Family,
    maps::{self, Entry},
    parse::Packet,
    rewrite::rewritten,
};

/// How a packet leaves: what is counted, and what the kernel is told.
#[must_use]
pub struct Exit {
    /// What is counted.
    pub verdict: Verdict,
    /// The hook's return value.
    pub action: i32,
}

impl Exit {
    /// The verdict's own action.
    #[inline(always)]
    pub fn plain<F: Frame>(verdict: Verdict) -> Self {
        Self { verdict, action: F::action(verdict) }
    }
}

/// Sends a packet of `flow`, rewritten already, on its way.
#[inline(always)]
pub fn emit<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: Entry<Flow<Fam::Address>>,
) -> Result<Exit, Verdict> {
    if frame.on_loopback() {
        return Ok(Exit::plain::<F>(Verdict::Delivered));
    }
    let length = frame.wire_length(packet.length, packet.headers);
    let epoch = epoch(flow.value().last_seen_ns);
    if let Some(hop) = flow.hop(epoch)
        && (hop.ifindex == 0 || F::uses(&hop) && length <= hop.mtu)
    {
        return leave::<Fam, F>(frame, packet, &hop);
    }
    let mut params = empty_fib_params();
    if !fill_route::<Fam>(&mut params, flow.value()) {
        return Err(Verdict::BadTable);
    }
    params.__bindgen_anon_1.tot_len = frame.length_for_mtu(packet.length);
    match frame.route(&mut params) {
        Route::Neighbour(hop) if length <= hop.mtu => {
            let hop = NextHop { epoch, ..hop };
            flow.set_hop(&hop);
            leave::<Fam, F>(frame, packet, &hop)
        }
        Route::Host { fits: true } if rewritten(flow.value().mode) => {
            flow.set_hop(&NextHop { epoch, ..NextHop::NONE });
            Ok(Exit::plain::<F>(Verdict::Delivered))
        }
        // The host's own forwarding takes over where graylb cannot, unless the packet is still addressed
        // to the virtual endpoint: it would stay here.
        _ if rewritten(flow.value().mode) => Ok(Exit::plain::<F>(Verdict::HandedToStack)),
        _ => Err(Verdict::NoRoute),
    }
}

/// The epoch in which a next hop is found and good: the agent's, and about a second of the clock, so that
/// a change that nobody told the agent of is noticed too. Never 0, and never the same again after either
/// has moved on.
#[inline(always)]
fn epoch(now_ns: u64) -> u32 {
    let told = maps::settings().map_or(0, |settings| settings.route_epoch);
    told.wrapping_add((now_ns >> 30) as u32) << 1 | 1
}

/// Asks for the way to the flow's destination: the backend where the packet still names the virtual
/// endpoint.
#[inline(always)]
fn fill_route<Fam: Family>(
    params: &mut aya_ebpf::bindings::bpf_fib_lookup,
    flow: &Flow<Fam::Address>,
) -> bool {
    let key = &flow.rewrite;
    if rewritten(flow.mode) {
        Fam::fill_route(params, &key.source, &key.destination);
        return true;
    }
    let Some(backend) = maps::backend(flow.backend) else { return false };
    let Some(address) = Fam::address(&backend.address, backend.family) else { return false };
    Fam::fill_route(params, &key.source, &address);
    true
}

/// Does what a router does to a packet that it forwards, and hands it to the interface.
#[inline(always)]
fn leave<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    hop: &NextHop,
) -> Result<Exit, Verdict> {
    if hop.ifindex == 0 {
        return Ok(Exit::plain::<F>(Verdict::Delivered));
    }
    if packet.ttl <= 1 {
        return Err(Verdict::TtlExceeded);
    }
    if !Fam::decrement_ttl(frame) {
        return Err(Verdict::RewriteFailed);
    }
    let action = frame.redirect(hop).ok_or(Verdict::RewriteFailed)?;
    Ok(Exit { verdict: Verdict::Redirected, action })
}
