//! Rewritten packet → its next hop: cached in the flow, or asked of the kernel's routing tables.

use graylb_common::{
    backend::MODE_IPIP,
    flow::{Flow, NextHop},
    verdict::Verdict,
};

use crate::{
    access::{FibParams, Frame, Lengths, Route},
    answer, count,
    family::Family,
    maps::{self, Entry, RouteQuery},
    parse::Packet,
    rewrite::rewritten,
    tunnel::Tunnel,
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

/// How packets travel to the flow's other end.
pub trait Way: Copy {
    /// Bytes that it adds to a packet.
    fn overhead(self) -> u16;
    /// Asks for the route to the other end.
    fn fill_route<Fam: Family>(
        self,
        flow: &Flow<Fam::Address>,
        params: &mut FibParams,
    ) -> Result<(), Verdict>;
    /// Puts the packet on its way, when its next hop is known.
    fn enter<Fam: Family, F: Frame>(
        self,
        frame: &mut F,
        packet: &Packet<Fam>,
    ) -> Result<(), Verdict>;
}

/// As it is.
#[derive(Clone, Copy)]
struct Direct;

impl Way for Direct {
    #[inline(always)]
    fn overhead(self) -> u16 {
        0
    }

    /// To the packet's destination, or to the backend where it still names the virtual endpoint.
    #[inline(always)]
    fn fill_route<Fam: Family>(
        self,
        flow: &Flow<Fam::Address>,
        params: &mut FibParams,
    ) -> Result<(), Verdict> {
        let key = &flow.rewrite;
        if rewritten(flow.mode) {
            Fam::fill_route(params, &key.source, &key.destination);
            return Ok(());
        }
        let backend = maps::backend(flow.backend).ok_or(Verdict::BadTable)?;
        let address = Fam::address(&backend.address, backend.family).ok_or(Verdict::BadTable)?;
        Fam::fill_route(params, &key.source, address);
        Ok(())
    }

    #[inline(always)]
    fn enter<Fam: Family, F: Frame>(
        self,
        _frame: &mut F,
        _packet: &Packet<Fam>,
    ) -> Result<(), Verdict> {
        Ok(())
    }
}

/// Sends a packet of `flow`, rewritten already, on its way; counts for its service where it cannot.
#[inline(always)]
pub fn emit<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: Entry<Flow<Fam::Address>>,
) -> Result<Exit, Verdict> {
    if frame.on_loopback() {
        return Ok(Exit::plain::<F>(Verdict::Delivered));
    }
    let mut verdict = Verdict::BadTable;
    if flow.value().mode == u32::from(MODE_IPIP) {
        let action = through_tunnel::<Fam, F>(frame, packet, flow, &mut verdict);
        return Ok(Exit { verdict, action });
    }
    if let Some(hop) = known_hop::<Fam, F, _>(frame, packet, flow, Direct) {
        return leave::<Fam, F, _>(frame, packet, Direct, &hop)
            .map_err(|verdict| count::for_service(flow.value().service, verdict));
    }
    let action = find_way::<Fam, F>(frame, packet, flow, &mut verdict);
    Ok(Exit { verdict, action })
}

/// The cached next hop, if it is good for this packet.
#[inline(always)]
fn known_hop<Fam: Family, F: Frame, W: Way>(
    frame: &F,
    packet: &Packet<Fam>,
    flow: Entry<Flow<Fam::Address>>,
    way: W,
) -> Option<NextHop> {
    let hop = flow.hop(epoch(flow.value().last_seen_ns))?;
    (hop.ifindex == 0 || F::uses(&hop) && wire_length(frame, packet, way) <= hop.mtu).then_some(hop)
}

#[inline(always)]
fn wire_length<Fam: Family, F: Frame, W: Way>(frame: &F, packet: &Packet<Fam>, way: W) -> u16 {
    frame.wire_length(&Lengths {
        packet: packet.length,
        headers: packet.headers,
        tunnel: way.overhead(),
        tcp: packet.tcp.is_some(),
    })
}

/// Asks the routing tables and sends the packet: a function of its own in the kernel, so that packets whose
/// next hop is known do not pay for its stack. Returns the action and fills `verdict` in: a BPF function
/// returns one word, and one that returns nothing may leave a pointer there, which the verifier refuses.
#[inline(never)]
fn find_way<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: Entry<Flow<Fam::Address>>,
    verdict: &mut Verdict,
) -> i32 {
    let exit = route::<Fam, F, _>(frame, packet, flow, Direct)
        .unwrap_or_else(|verdict| lost::<Fam, F>(flow.value(), verdict));
    *verdict = exit.verdict;
    exit.action
}

/// A packet that does not go its flow's way, counted for its service.
#[inline(always)]
fn lost<Fam: Family, F: Frame>(flow: &Flow<Fam::Address>, verdict: Verdict) -> Exit {
    Exit::plain::<F>(count::for_service(flow.service, verdict))
}

/// Sends the packet in a tunnel: a function of its own in the kernel for the same reason.
#[inline(never)]
fn through_tunnel<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: Entry<Flow<Fam::Address>>,
    verdict: &mut Verdict,
) -> i32 {
    let sent = match Tunnel::of::<Fam>(flow.value()) {
        Ok(tunnel) => match known_hop::<Fam, F, _>(frame, packet, flow, tunnel) {
            Some(hop) => leave::<Fam, F, _>(frame, packet, tunnel, &hop),
            None => route::<Fam, F, _>(frame, packet, flow, tunnel),
        },
        Err(verdict) => Err(verdict),
    };
    let exit = sent.unwrap_or_else(|verdict| lost::<Fam, F>(flow.value(), verdict));
    *verdict = exit.verdict;
    exit.action
}

#[inline(always)]
fn route<Fam: Family, F: Frame, W: Way>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: Entry<Flow<Fam::Address>>,
    way: W,
) -> Result<Exit, Verdict> {
    let rewritten = rewritten(flow.value().mode);
    let length = wire_length(frame, packet, way);
    let epoch = epoch(flow.value().last_seen_ns);
    let RouteQuery { params, hop } = maps::route_query().ok_or(Verdict::BadTable)?;
    way.fill_route::<Fam>(flow.value(), params)?;
    // Any length that fits: it is compared here. Without one TC is told of the interface's MTU alone, not
    // of the route's, and of neither where the packet is longer.
    params.__bindgen_anon_1.tot_len = 1;
    match frame.route(params, hop) {
        Route::Neighbour if length <= hop.mtu => {
            flow.set_hop(epoch, hop);
            leave::<Fam, F, _>(frame, packet, way, hop)
        }
        Route::Neighbour if !rewritten => {
            answer::too_big::<Fam, F>(frame, packet, hop.mtu.saturating_sub(way.overhead()))
        }
        Route::Host { fits: true } if rewritten => {
            flow.set_hop(epoch, &NextHop::NONE);
            Ok(Exit::plain::<F>(Verdict::Delivered))
        }
        // The host's own forwarding takes over where graylb cannot, unless the packet is still addressed
        // to the virtual endpoint: it would stay here.
        _ if rewritten => Ok(Exit::plain::<F>(Verdict::HandedToStack)),
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

/// Does what a router does to a packet that it forwards, and hands it to the interface.
#[inline(always)]
fn leave<Fam: Family, F: Frame, W: Way>(
    frame: &mut F,
    packet: &Packet<Fam>,
    way: W,
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
    way.enter::<Fam, F>(frame, packet)?;
    let action = frame.redirect(hop).ok_or(Verdict::RewriteFailed)?;
    Ok(Exit { verdict: Verdict::Redirected, action })
}
