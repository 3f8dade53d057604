//! TCP flows: followed as far as pinning needs it.
//!
//! A SYN always selects anew, into the half-open table; what the tuple's established flow does is left
//! alone until the new handshake is complete, so that a forged SYN disturbs nobody. A flow is promoted
//! by the client's acknowledgement of the backend's SYN-ACK (RFC 9293, 3.5), which a sender of forged
//! addresses never sees.

use graylb_common::{
    flow::{
        FLOW_CHALLENGED, FLOW_CLOSED, FLOW_FIN, FLOW_REPLY, FLOW_RESET, FLOW_SYN_ACK,
        FLOW_UNANSWERED, Flow,
    },
    service::Service,
    verdict::Verdict,
};

use crate::{
    access::{Frame, now_ns},
    classify, count,
    family::{Family, FlowOf, HalfOpenOf},
    maps::{Draft, Entry, FlowTable},
    parse::{ACK, FIN, Packet, RST, SYN, Segment},
    pipeline::Direction,
    rewrite::rewritten,
    select,
};

/// Most data that a SYN carries (TCP Fast Open, RFC 7413) and its answer acknowledges.
const MAX_SYN_DATA: u32 = 0xffff;

type Found<Fam> = Result<Entry<Flow<<Fam as Family>::Address>>, Verdict>;

/// The flow of a TCP packet.
#[inline(always)]
pub fn classify<D: Direction, Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    segment: Segment,
) -> Found<Fam> {
    if segment.flags & SYN == 0
        && let Some(flow) = Fam::tcp().find(&packet.key)
        && flow.value().state & FLOW_CHALLENGED == 0
    {
        return seen::<D, Fam>(flow, segment);
    }
    if segment.flags & (SYN | ACK) == SYN {
        return syn::<D, Fam, F>(frame, packet, segment);
    }
    let mut verdict = Verdict::NoFlow;
    unusual::<D, Fam>(packet, segment, &mut verdict).ok_or(verdict)
}

/// What is neither a packet of an established flow and nothing else, nor a SYN: a function of its own in the
/// kernel, so that the others do not pay for its stack. Fills `verdict` in where there is no flow.
#[inline(never)]
fn unusual<D: Direction, Fam: Family>(
    packet: &Packet<Fam>,
    segment: Segment,
    verdict: &mut Verdict,
) -> Option<Entry<FlowOf<Fam>>> {
    let found = match segment.flags & (SYN | ACK) {
        flags if flags == SYN | ACK => syn_ack::<D, Fam>(packet, segment),
        _ => data::<D, Fam>(packet, segment),
    };
    found.map_err(|why| *verdict = why).ok()
}

/// A client asks for a connection.
///
/// Looking the service up, choosing a backend and drafting the flow are functions of their own in the kernel,
/// one after the other: none has the others on its stack.
#[inline(always)]
fn syn<D: Direction, Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
    segment: Segment,
) -> Found<Fam> {
    if !D::IN {
        return Err(Verdict::HostOutput);
    }
    if let Some(half_open) = Fam::half_open().find(&packet.key)
        && half_open.value().client_isn == segment.sequence
        && half_open.value().flow.state & FLOW_REPLY == 0
    {
        // The same SYN again: its answer may be on its way.
        if half_open.value().flow.state & (FLOW_SYN_ACK | FLOW_UNANSWERED) == 0 {
            half_open.flow().mark(FLOW_UNANSWERED);
            count::unanswered(half_open.value().flow.backend);
        }
        return Ok(half_open.flow());
    }
    let service = classify::service::<D, Fam>(packet)?;
    let backend = select::backend::<Fam>(&packet.key, service)?;
    let mut verdict = Verdict::BadTable;
    open::<Fam, F>(frame, packet, service, backend, &mut verdict)
        .ok_or_else(|| count::for_service(service.id, verdict))
}

/// A new half-open flow of a service to a backend. Fills `verdict` in where there is none.
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
) -> Found<Fam> {
    let Some(segment) = packet.tcp else { return Err(Verdict::NoFlow) };
    if let Some(established) = Fam::tcp().find(&packet.key) {
        established.mark(FLOW_CHALLENGED);
    }
    let draft = select::draft::<Fam, F>(frame, packet, service, backend)?;
    if let Some(established) = Fam::tcp().find(&draft.reply_key) {
        // The same backend again, or a flow that has ended: what answers this SYN is none of its packets.
        established.mark(FLOW_CHALLENGED);
    }
    draft.forward.client_isn = segment.sequence;
    draft.reply.client_isn = segment.sequence;
    let table = Fam::half_open();
    let mode = draft.forward.flow.mode;
    let Draft { forward, reply, reply_key } = draft;
    if !select::insert(table, &packet.key, forward, reply_key, reply, mode) {
        return Err(Verdict::FlowTableFull);
    }
    count::opened(backend);
    table.find(&packet.key).map(|entry| entry.flow()).ok_or(Verdict::FlowTableFull)
}

/// A backend accepts.
#[inline(always)]
fn syn_ack<D: Direction, Fam: Family>(packet: &Packet<Fam>, segment: Segment) -> Found<Fam> {
    let Some(reply) = Fam::half_open().find(&packet.key).filter(is_ours::<D, Fam>) else {
        // Perhaps sent again, after the flow was promoted.
        return reply_of_established::<D, Fam>(packet);
    };
    let client = reply.value().flow.rewrite.reversed();
    if let Some(forward) = Fam::half_open().find(&client)
        && segment.acknowledgement == forward.value().client_isn.wrapping_add(1)
    {
        if forward.value().flow.state & FLOW_SYN_ACK == 0 {
            let took_ns = now_ns().saturating_sub(forward.value().flow.last_seen_ns);
            count::answered(forward.value().flow.backend, took_ns);
        }
        forward.set_server_isn(segment.sequence);
        forward.flow().mark(FLOW_SYN_ACK);
    }
    Ok(reply.flow())
}

/// Whether packets of a half-open flow's direction are followed here: on the way out only the backend's.
#[inline(always)]
fn is_ours<D: Direction, Fam: Family>(half_open: &Entry<HalfOpenOf<Fam>>) -> bool {
    D::IN || half_open.value().flow.state & FLOW_REPLY != 0
}

#[inline(always)]
fn reply_of_established<D: Direction, Fam: Family>(packet: &Packet<Fam>) -> Found<Fam> {
    match Fam::tcp().find(&packet.key) {
        Some(flow) if flow.value().state & FLOW_REPLY != 0 => Ok(flow),
        _ => Err(no_flow::<D, Fam>(packet)),
    }
}

/// Everything else: data, acknowledgements, FIN, RST.
#[inline(always)]
fn data<D: Direction, Fam: Family>(packet: &Packet<Fam>, segment: Segment) -> Found<Fam> {
    let established = Fam::tcp().find(&packet.key);
    if let Some(half_open) = Fam::half_open().find(&packet.key).filter(is_ours::<D, Fam>) {
        if refuses::<Fam>(half_open.value(), segment) {
            if half_open.value().flow.state & FLOW_RESET == 0 {
                half_open.flow().mark(FLOW_RESET);
                count::refused(half_open.value().flow.backend);
            }
            return Ok(half_open.flow());
        }
        let promoted = promote::<Fam>(packet, segment, half_open, established);
        if promoted.is_some() || established.is_none_or(|flow| gives_way::<Fam>(flow, half_open)) {
            let flow = promoted.unwrap_or(half_open.flow());
            flow.touch(now_ns());
            return Ok(flow);
        }
    }
    match established {
        Some(flow) => seen::<D, Fam>(flow, segment),
        None => Err(no_flow::<D, Fam>(packet)),
    }
}

/// Whether a packet of an established flow's tuple belongs to the half-open flow beside it. As long as the
/// old connection is open it does not; once that has ended, or the backend's tuple is another client's, it
/// does: a backend that remembers the old connection acknowledges that instead of the SYN, and forgets it
/// when the client of the new one answers by a reset (RFC 9293, 3.10.7.3).
#[inline(always)]
fn gives_way<Fam: Family>(flow: Entry<FlowOf<Fam>>, half_open: Entry<HalfOpenOf<Fam>>) -> bool {
    let (old, new) = (flow.value(), &half_open.value().flow);
    old.state & FLOW_CLOSED != 0
        || new.state & FLOW_REPLY != 0 && !select::same::<Fam>(&old.rewrite, &new.rewrite)
}

/// A packet of an established flow.
#[inline(always)]
fn seen<D: Direction, Fam: Family>(flow: Entry<FlowOf<Fam>>, segment: Segment) -> Found<Fam> {
    if !D::IN && flow.value().state & FLOW_REPLY == 0 {
        return Err(Verdict::HostOutput);
    }
    flow.touch(now_ns());
    if segment.flags & (FIN | RST) != 0 {
        end::<Fam>(flow, segment);
    }
    Ok(flow)
}

/// Follows the end of a flow, seldom enough for a function of its own in the kernel: closed by a reset, or by a FIN each way (from the client alone where the
/// backend's does not come by); counted once.
#[inline(never)]
fn end<Fam: Family>(flow: Entry<FlowOf<Fam>>, segment: Segment) {
    let reset = segment.flags & RST != 0;
    flow.mark(if reset { FLOW_RESET } else { FLOW_FIN });
    if flow.value().state & FLOW_CLOSED != 0 {
        return;
    }
    if rewritten(flow.value().mode) {
        let Some(other) = Fam::tcp().find(&flow.value().rewrite.reversed()) else { return };
        if !reset && other.value().state & FLOW_FIN == 0 {
            return;
        }
        other.mark(FLOW_CLOSED);
    }
    flow.mark(FLOW_CLOSED);
    count::closed(flow.value().backend);
}

/// Whether this is the backend's reset in answer to the SYN. It acknowledges the SYN; without that the
/// client would not take it (RFC 9293, 3.10.7.3), and anybody could have sent it.
#[inline(always)]
fn refuses<Fam: Family>(half: &HalfOpenOf<Fam>, segment: Segment) -> bool {
    half.flow.state & FLOW_REPLY != 0
        && segment.flags & (ACK | RST) == ACK | RST
        && follows_syn(segment.acknowledgement, half.client_isn)
}

/// Whether a sequence number is the first behind the SYN and what it may have carried.
#[inline(always)]
const fn follows_syn(number: u32, client_isn: u32) -> bool {
    number.wrapping_sub(client_isn).wrapping_sub(1) <= MAX_SYN_DATA
}

/// Makes a half-open flow an established one if this packet completes its handshake.
#[inline(always)]
fn promote<Fam: Family>(
    packet: &Packet<Fam>,
    segment: Segment,
    half_open: Entry<HalfOpenOf<Fam>>,
    predecessor: Option<Entry<FlowOf<Fam>>>,
) -> Option<Entry<FlowOf<Fam>>> {
    let half = half_open.value();
    let answers = if rewritten(half.flow.mode) {
        half.flow.state & FLOW_SYN_ACK != 0
            && segment.acknowledgement == half.server_isn.wrapping_add(1)
    } else {
        // Where the SYN-ACK does not come by, the client's own number must do: a SYN that somebody else
        // forged on an open connection's tuple is not followed by what that connection sends.
        follows_syn(segment.sequence, half.client_isn)
    };
    let completes =
        half.flow.state & FLOW_REPLY == 0 && segment.flags & (ACK | RST) == ACK && answers;
    if !completes {
        return None;
    }
    let draft = Fam::draft()?;
    draft.forward.flow = half.flow;
    draft.forward.flow.last_seen_ns = now_ns();
    draft.forward.flow.state = 0;
    select::fill_reply::<Fam>(draft, &packet.key);
    // Of one that has ended the backend's tuple is kept, and with it from others: see `select::draft`.
    if let Some(old) = predecessor.filter(|old| old.value().state & FLOW_CLOSED == 0) {
        draft.reply_key = old.value().rewrite.reversed();
        Fam::tcp().forget(&draft.reply_key);
    }
    draft.reply_key = draft.forward.flow.rewrite.reversed();
    let table = Fam::tcp();
    let (forward, reply) = (&draft.forward.flow, &draft.reply.flow);
    if !select::insert(table, &packet.key, forward, &draft.reply_key, reply, forward.mode) {
        // The half-open entries serve on, until there is room or they are evicted.
        return None;
    }
    Fam::half_open().forget(&draft.reply_key);
    Fam::half_open().forget(&packet.key);
    count::established(draft.forward.flow.backend);
    table.find(&packet.key)
}

/// A packet of no flow: none of ours, or of a connection that only this host's own stack may know.
#[inline(always)]
fn no_flow<D: Direction, Fam: Family>(packet: &Packet<Fam>) -> Verdict {
    match classify::service::<D, Fam>(packet) {
        Ok(service) => count::for_service(service.id, Verdict::NoFlow),
        Err(verdict) => verdict,
    }
}
