//! Service → backend → the tuple of a new flow towards it.

use graylb_common::{
    backend::Backend,
    csum,
    flow::{FLOW_CLOSED, Flow},
    service::Service,
    verdict::Verdict,
};

use crate::{
    access::{Frame, now_ns},
    family::{Family, KeyOf, random_port},
    maps::{self, Draft, FlowTable},
    parse::Packet,
    udp,
};

/// How many tuples towards a backend are tried before a new flow is given up.
const TUPLE_TRIES: u32 = 4;

/// A chosen backend.
pub struct Choice<Fam: Family> {
    /// Its index in `backends`.
    pub index: u32,
    /// Its address.
    pub address: Fam::Address,
    /// Its port.
    pub port: u16,
}

/// Whose turn it is.
#[inline(always)]
pub fn backend<Fam: Family>(service: &Service) -> Result<Choice<Fam>, Verdict> {
    if service.slots_count == 0 {
        return Err(Verdict::NoBackend);
    }
    let turn = maps::take_turn(service.turn).ok_or(Verdict::BadTable)?;
    let place = (turn % u64::from(service.slots_count)) as u32;
    let slot = maps::slot(service.slots_start.wrapping_add(place)).ok_or(Verdict::BadTable)?;
    let index = slot.backend;
    let backend: &Backend = maps::backend(index).ok_or(Verdict::BadTable)?;
    let address = Fam::backend(backend).ok_or(Verdict::BadTable)?;
    Ok(Choice { index, address, port: backend.port })
}

/// Drafts the flow from the packet's client to the backend: with the client's own address and port where
/// no other flow has that tuple at that backend, else with another source port.
#[inline(always)]
pub fn draft<Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    service: &Service,
    choice: &Choice<Fam>,
) -> Result<&'static mut Draft<Fam::Address>, Verdict> {
    let draft = Fam::draft().ok_or(Verdict::BadTable)?;
    let key = &packet.key;
    let (source, source_port) = if frame.on_loopback() {
        Fam::host_source(key.source, key.source_port)
    } else {
        (key.source, key.source_port)
    };
    draft.reply_key.source = choice.address;
    draft.reply_key.source_port = choice.port;
    draft.reply_key.destination = source;
    draft.reply_key.destination_port = source_port;
    for _ in 0..TUPLE_TRIES {
        if is_free::<Fam>(packet, &draft.reply_key) {
            fill::<Fam>(draft, key, service, choice.index);
            return Ok(draft);
        }
        draft.reply_key.destination_port = random_port();
    }
    Err(Verdict::NoTuple)
}

/// Whether no other living flow expects replies under `reply_key`.
#[inline(always)]
fn is_free<Fam: Family>(packet: &Packet<Fam>, reply_key: &KeyOf<Fam>) -> bool {
    let owned = |flow: &Flow<Fam::Address>| same::<Fam>(&flow.rewrite.reversed(), &packet.key);
    if packet.tcp.is_none() {
        return match Fam::udp().find(reply_key) {
            Some(entry) => owned(entry.value()) || udp::expired::<Fam>(entry, now_ns()),
            None => true,
        };
    }
    let established = Fam::tcp()
        .find(reply_key)
        .is_none_or(|entry| owned(entry.value()) || entry.value().state & FLOW_CLOSED != 0);
    established && Fam::half_open().find(reply_key).is_none_or(|entry| owned(&entry.value().flow))
}

#[inline(always)]
fn same<Fam: Family>(a: &KeyOf<Fam>, b: &KeyOf<Fam>) -> bool {
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
    backend: u32,
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
    flow.backend = backend;
    flow.service = service.id;
    flow.generation = service.generation as u32;
    flow.state = 0;
    fill_reply::<Fam>(draft, key);
}

/// Fills the backend's direction in from the client's, whose key is `key`.
#[inline(always)]
pub fn fill_reply<Fam: Family>(draft: &mut Draft<Fam::Address>, key: &KeyOf<Fam>) {
    draft.reply.flow = draft.forward.flow.counterpart(key);
}
