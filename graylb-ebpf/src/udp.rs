//! UDP flows: a client's address and port stay with their backend while packets come.

use graylb_common::{
    flow::{FLOW_REPLY, Flow},
    service::Service,
    verdict::Verdict,
};

use crate::{
    access::{Frame, now_ns},
    classify, count,
    family::{Family, FlowOf},
    maps::{self, Entry, FlowTable},
    parse::Packet,
    pipeline::Direction,
    select,
};

/// The flow of a UDP packet.
#[inline(always)]
pub fn classify<D: Direction, Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
) -> Result<Entry<Flow<Fam::Address>>, Verdict> {
    let now = now_ns();
    let found = Fam::udp().find(&packet.key);
    if let Some(flow) = found {
        let reply = flow.value().state & FLOW_REPLY != 0;
        if !D::IN && !reply {
            return Err(Verdict::HostOutput);
        }
        if reply || !expired::<Fam>(flow, now) {
            flow.touch(now);
            return Ok(flow);
        }
    }
    let replaced = found.map(|flow| flow.value().backend);
    let service = classify::service::<D, Fam>(packet)?;
    let backend = select::backend::<Fam>(&packet.key, service)?;
    let mut verdict = Verdict::BadTable;
    let flow = open::<Fam, F>(frame, packet, service, backend, &mut verdict)
        .ok_or_else(|| count::for_service(service.id, verdict))?;
    if let Some(backend) = replaced {
        count::replaced(backend);
    }
    Ok(flow)
}

/// A new flow of a service to a backend, perhaps in place of an expired one, in a function of its own in the
/// kernel. Fills `verdict` in where there is none.
#[inline(never)]
fn open<Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    service: &Service,
    backend: u32,
    verdict: &mut Verdict,
) -> Option<Entry<FlowOf<Fam>>> {
    try_open::<Fam, F>(frame, packet, service, backend).map_err(|why| *verdict = why).ok()
}

#[inline(always)]
fn try_open<Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    service: &Service,
    backend: u32,
) -> Result<Entry<FlowOf<Fam>>, Verdict> {
    let draft = select::draft::<Fam, F>(frame, packet, service, backend)?;
    let table = Fam::udp();
    let (forward, reply) = (&draft.forward.flow, &draft.reply.flow);
    if !select::insert(table, &packet.key, forward, &draft.reply_key, reply, forward.mode) {
        return Err(Verdict::FlowTableFull);
    }
    count::opened(backend);
    table.find(&packet.key).ok_or(Verdict::FlowTableFull)
}

/// Whether nothing has gone either way for the timeout.
#[inline(never)]
pub fn expired<Fam: Family>(flow: Entry<FlowOf<Fam>>, now_ns: u64) -> bool {
    let Some(settings) = maps::settings() else { return false };
    let idle = |seen_ns: u64| now_ns.saturating_sub(seen_ns) > settings.udp_timeout_ns;
    if !idle(flow.value().last_seen_ns) {
        return false;
    }
    match Fam::udp().find(&flow.value().rewrite.reversed()) {
        Some(other) => idle(other.value().last_seen_ns),
        None => true,
    }
}
