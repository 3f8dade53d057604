//! Service → route → backend → the tuple of a new flow towards it.

use graylb_common::{
    backend::{Backend, MODE_SNAT},
    csum,
    flow::{FLOW_CLOSED, FLOW_REPLY, FlowKey},
    service::{Route, SELECT_LEAST, SELECT_STICKY, SELECT_TUPLE, SELECT_TURNS, Service},
    verdict::Verdict,
};

use crate::{
    access::{Frame, now_ns, random},
    balance, count,
    family::{Family, FlowOf, KeyOf, PortRange, UNUSED_PORTS},
    maps::{self, Draft, FlowTable},
    parse::Packet,
    rewrite::rewritten,
    split, udp,
};

/// How many tuples towards a backend are tried before a new flow is given up.
const TUPLE_TRIES: u32 = 8;

/// How long a backend remembers a connection that has ended (TCP_TIMEWAIT_LEN, include/net/tcp.h), and a
/// client asks for one.
const TIME_WAIT_NS: u64 = 60 * 1_000_000_000;
/// How long an open connection may be silent without losing its tuple to another (RFC 5382, REQ-5).
const IDLE_NS: u64 = (2 * 60 + 4) * 60 * 1_000_000_000;

/// A chosen backend.
pub struct Choice {
    /// Its index in `backends`.
    pub index: u32,
    /// What it says there.
    pub backend: &'static Backend,
}

/// Chooses a backend of the service for the client of a flow with this key; its index in `backends`.
#[inline(always)]
pub fn backend<Fam: Family>(key: &KeyOf<Fam>, service: &Service) -> Result<u32, Verdict> {
    let mut verdict = Verdict::BadTable;
    let index = index::<Fam>(key, service, &mut verdict);
    u32::try_from(index).map_err(|_| count::for_service(service.id, verdict))
}

/// The index of the chosen backend, in a function of its own in the kernel: its stack is not for those who go
/// on with the choice. Below 0 there is none, and `verdict` says why.
#[inline(never)]
fn index<Fam: Family>(key: &KeyOf<Fam>, service: &Service, verdict: &mut Verdict) -> i64 {
    let route = split::route::<Fam>(key, service).ok_or(Verdict::BadTable);
    match route.and_then(|route| on_route::<Fam>(key, service, route)) {
        Ok(choice) => i64::from(choice.index),
        Err(why) => {
            *verdict = why;
            -1
        }
    }
}

/// Chooses a backend of a route.
#[inline(always)]
pub fn on_route<Fam: Family>(
    key: &KeyOf<Fam>,
    service: &Service,
    route: &Route,
) -> Result<Choice, Verdict> {
    if route.slots_count == 0 {
        return Err(Verdict::NoBackend);
    }
    match route.select {
        SELECT_TURNS => at(route, balance::turn(route)?),
        SELECT_TUPLE => at(route, balance::tuple::<Fam>(key, service, route)),
        SELECT_STICKY => at(route, balance::sticky::<Fam>(key, service, route)),
        SELECT_LEAST => {
            let (first, second) = balance::two(route);
            Ok(balance::less_busy(at(route, first)?, at(route, second)?))
        }
        _ => Err(Verdict::BadTable),
    }
}

/// The backend that a route's slot leads to.
#[inline(always)]
fn at(route: &Route, place: u32) -> Result<Choice, Verdict> {
    let slot = maps::slot(route.slots_start.wrapping_add(place)).ok_or(Verdict::BadTable)?;
    let backend = maps::backend(slot.backend).ok_or(Verdict::BadTable)?;
    if backend.family == 0 {
        return Err(Verdict::BadTable);
    }
    Ok(Choice { index: slot.backend, backend })
}

/// Drafts the flow from the packet's client to the backend at an index.
#[inline(always)]
pub fn draft<Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    service: &Service,
    index: u32,
) -> Result<&'static mut Draft<Fam::Address>, Verdict> {
    let draft = Fam::draft().ok_or(Verdict::BadTable)?;
    let backend = maps::backend(index).ok_or(Verdict::BadTable)?;
    if rewritten(u32::from(backend.mode)) {
        claim_tuple::<Fam, F>(frame, packet, backend, &mut draft.reply_key)?;
    } else {
        draft.reply_key = packet.key.reversed();
    }
    fill::<Fam>(draft, &packet.key, service, &Choice { index, backend });
    Ok(draft)
}

/// Finds a tuple towards the backend that no other flow has, and fills its replies' key in: with the
/// client's own address and port if they are to be kept and free, else with another source port.
#[inline(always)]
fn claim_tuple<Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    backend: &Backend,
    reply_key: &mut KeyOf<Fam>,
) -> Result<(), Verdict> {
    let from = source::<Fam, F>(frame, packet, backend)?;
    reply_key.source = *Fam::address(&backend.address, backend.family).ok_or(Verdict::BadTable)?;
    reply_key.source_port = backend.port;
    reply_key.destination = from.address;
    reply_key.destination_port = from.port;
    let mut worn = 0;
    for _ in 0..TUPLE_TRIES {
        match standing::<Fam>(packet, reply_key) {
            Standing::Free => return Ok(()),
            // The client itself uses its port again, and knows what the backend may remember of it.
            Standing::Ended
                if reply_key.destination_port == from.port && backend.mode != MODE_SNAT =>
            {
                return Ok(());
            }
            Standing::Ended | Standing::Idle => worn = reply_key.destination_port,
            Standing::Taken => {}
        }
        reply_key.destination_port = from.others.any();
    }
    if worn == 0 {
        return Err(Verdict::NoTuple);
    }
    reply_key.destination_port = worn;
    Ok(())
}

/// What other flows leave of a tuple.
enum Standing {
    /// One is using it.
    Taken,
    /// One has it that has not been heard of for long: for want of a better one.
    Idle,
    /// One has given it up, but the backend may remember it: the same.
    Ended,
    /// None has anything to do with it.
    Free,
}

/// Where a flow comes from, as the backend sees it.
struct From<A> {
    address: A,
    port: u16,
    /// Ports to try when that one is taken.
    others: PortRange,
}

#[inline(always)]
fn source<Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    backend: &Backend,
) -> Result<From<Fam::Address>, Verdict> {
    let key = &packet.key;
    if backend.mode == MODE_SNAT {
        let place = random().checked_rem(backend.sources_count).ok_or(Verdict::BadTable)?;
        let place = backend.sources_start.wrapping_add(place);
        let source = maps::source(place).ok_or(Verdict::BadTable)?;
        let address = *Fam::address(&source.address, source.family).ok_or(Verdict::BadTable)?;
        let count = u32::from(source.port_high).wrapping_sub(u32::from(source.port_low)) + 1;
        let others = PortRange { low: source.port_low, count };
        return Ok(From { address, port: others.any(), others });
    }
    let (address, port) = if frame.on_loopback() {
        Fam::host_source(key.source, key.source_port)
    } else {
        (key.source, key.source_port)
    };
    Ok(From { address, port, others: UNUSED_PORTS })
}

/// Whether another flow expects replies under `reply_key`.
#[inline(always)]
fn standing<Fam: Family>(packet: &Packet<Fam>, reply_key: &KeyOf<Fam>) -> Standing {
    if packet.tcp.is_some() {
        return tcp_standing::<Fam>(&packet.key, reply_key);
    }
    let free = Fam::udp().find(reply_key).is_none_or(|entry| {
        owned::<Fam>(entry.value(), &packet.key) || udp::expired::<Fam>(entry, now_ns())
    });
    if free { Standing::Free } else { Standing::Taken }
}

/// The same for TCP, in a function of its own in the kernel.
#[inline(never)]
fn tcp_standing<Fam: Family>(key: &KeyOf<Fam>, reply_key: &KeyOf<Fam>) -> Standing {
    let now = now_ns();
    let idle = |flow: &FlowOf<Fam>, limit: u64| now.saturating_sub(flow.last_seen_ns) > limit;
    let mut standing = Standing::Free;
    if let Some(entry) = Fam::half_open().find(reply_key)
        && !owned::<Fam>(&entry.value().flow, key)
    {
        if !idle(&entry.value().flow, TIME_WAIT_NS) {
            return Standing::Taken;
        }
        standing = Standing::Idle;
    }
    if let Some(entry) = Fam::tcp().find(reply_key)
        && !owned::<Fam>(entry.value(), key)
    {
        let closed = entry.value().state & FLOW_CLOSED != 0;
        if closed && idle(entry.value(), TIME_WAIT_NS) {
            return standing;
        }
        if !closed && !idle(entry.value(), IDLE_NS) {
            return Standing::Taken;
        }
        standing = if closed { Standing::Ended } else { Standing::Idle };
    }
    standing
}

/// Whether a backend's direction belongs to the client whose key is `key`.
#[inline(always)]
fn owned<Fam: Family>(reply: &FlowOf<Fam>, key: &KeyOf<Fam>) -> bool {
    same::<Fam>(&reply.rewrite.reversed(), key)
}

/// Whether two tuples are one.
#[inline(always)]
pub fn same<Fam: Family>(a: &KeyOf<Fam>, b: &KeyOf<Fam>) -> bool {
    a.source_port == b.source_port
        && a.destination_port == b.destination_port
        && a.source == b.source
        && a.destination == b.destination
}

/// Fills both directions in from the packet's tuple and the reply's.
#[inline(always)]
fn fill<Fam: Family>(
    draft: &mut Draft<Fam::Address>,
    key: &KeyOf<Fam>,
    service: &Service,
    choice: &Choice,
) {
    let reply_key = &draft.reply_key;
    let addresses = |key: &KeyOf<Fam>| csum::add(Fam::sum(&key.source), Fam::sum(&key.destination));
    let ports = |key: &KeyOf<Fam>| csum::add(key.source_port.to_be(), key.destination_port.to_be());
    let flow = &mut draft.forward.flow;
    flow.last_seen_ns = now_ns();
    flow.rewrite = reply_key.reversed();
    // A sum does not care which end is the source.
    flow.address_delta = csum::sub(addresses(reply_key), addresses(key));
    flow.port_delta = csum::sub(ports(reply_key), ports(key));
    flow.backend = choice.index;
    flow.service = service.id;
    flow.generation = service.generation as u32;
    flow.state = 0;
    flow.mode = u32::from(choice.backend.mode);
    flow.hop.epoch = 0;
    fill_reply::<Fam>(draft, key);
}

/// Fills the backend's direction in from the client's, whose key is `key`.
#[inline(always)]
pub fn fill_reply<Fam: Family>(draft: &mut Draft<Fam::Address>, key: &KeyOf<Fam>) {
    // Field by field: a whole flow on the way would take a fifth of the BPF stack.
    let (forward, reply) = (&draft.forward.flow, &mut draft.reply.flow);
    reply.last_seen_ns = forward.last_seen_ns;
    reply.rewrite.source = key.destination;
    reply.rewrite.destination = key.source;
    reply.rewrite.source_port = key.destination_port;
    reply.rewrite.destination_port = key.source_port;
    // One's-complement negation.
    reply.address_delta = !forward.address_delta;
    reply.port_delta = !forward.port_delta;
    reply.backend = forward.backend;
    reply.service = forward.service;
    reply.generation = forward.generation;
    reply.state = forward.state ^ FLOW_REPLY;
    reply.mode = forward.mode;
    reply.hop.epoch = 0;
}

/// Inserts a drafted flow: both directions, or the client's alone where the backend's never comes by.
#[must_use]
#[inline(always)]
pub fn insert<A, V>(
    table: &'static (impl FlowTable<A, V> + 'static),
    key: &FlowKey<A>,
    forward: &V,
    reply_key: &FlowKey<A>,
    reply: &V,
    mode: u32,
) -> bool {
    (!rewritten(mode) || table.put(reply_key, reply)) && table.put(key, forward)
}
