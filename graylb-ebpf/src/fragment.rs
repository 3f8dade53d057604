//! Datagrams in fragments: the first fragment is steered like any packet and remembered; the later ones, which have
//! no ports, go where it went.

use graylb_common::{
    flow::{FLOW_REPLY, Flow},
    fragment::{FRAGMENT_NS, FragmentKey, Fragmented},
    service::{PROTOCOL_TCP, PROTOCOL_UDP},
    verdict::Verdict,
};
use network_types::{eth::EthHdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    access::{Frame, now_ns},
    classify, count,
    emit::{self, Exit},
    family::{Family, FlowOf, Piece},
    maps::{self, Entry, FlowTable},
    parse::{self, Packet},
    pipeline::{self, Direction},
    rewrite::rewritten,
};

/// A first fragment, like a whole packet; [`None`]: it is a later one.
#[inline(always)]
pub fn first<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> Result<Option<Exit>, Verdict> {
    let Piece { network, id, offset } = Fam::piece(frame, EthHdr::LEN)?;
    if offset > 0 {
        return Ok(None);
    }
    let packet = parse::behind::<Fam, F>(frame, &network)?;
    if packet.headers > packet.length {
        return Err(Verdict::FragmentShort);
    }
    // Before it is known whether there is a flow: the identification then needs no stack any more.
    remember::<Fam>(&packet, id);
    let flow = classify::classify::<D, Fam, F>(frame, &packet)?;
    pipeline::send::<D, Fam, F>(frame, &packet, flow).map(Some)
}

/// Remembers which datagram this is the first fragment of.
#[inline(never)]
fn remember<Fam: Family>(packet: &Packet<Fam>, id: u32) -> i32 {
    let protocol = if packet.tcp.is_some() { PROTOCOL_TCP } else { PROTOCOL_UDP };
    let key = FragmentKey {
        source: packet.key.source,
        destination: packet.key.destination,
        id,
        protocol: u32::from(protocol),
    };
    let value = Fragmented { seen_ns: now_ns(), key: packet.key, reserved: 0 };
    maps::remember_fragment(Fam::fragments(), &key, &value);
    0
}

/// Rewrites a later fragment and returns its flow. A function of its own in the kernel, as [`send`] is. Fills
/// `verdict` in where there is no flow.
#[inline(never)]
pub fn later<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    verdict: &mut Verdict,
) -> Option<Entry<FlowOf<Fam>>> {
    try_later::<D, Fam, F>(frame).map_err(|why| *verdict = why).ok()
}

#[inline(always)]
fn try_later<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
) -> Result<Entry<FlowOf<Fam>>, Verdict> {
    let piece = Fam::piece(frame, EthHdr::LEN)?;
    let flow = led::<Fam>(&piece).ok_or(Verdict::Fragment)?;
    let Flow { mode, service, state, .. } = *flow.value();
    if !D::IN && state & FLOW_REPLY == 0 {
        return Err(Verdict::HostOutput);
    }
    let header = if piece.network.protocol == PROTOCOL_TCP { TcpHdr::LEN } else { UdpHdr::LEN };
    if usize::from(piece.offset) < header {
        return Err(count::for_service(service, Verdict::FragmentShort));
    }
    if rewritten(mode) {
        let (to, delta) = (&flow.value().rewrite, flow.value().address_delta);
        if !Fam::write_addresses(frame, EthHdr::LEN, &to.source, &to.destination, delta) {
            return Err(count::for_service(service, Verdict::RewriteFailed));
        }
        if Fam::IPV6 {
            // No checksum in this packet makes up for the addresses.
            frame.note_change(delta);
        }
    }
    Ok(flow)
}

/// The flow that a datagram's first fragment belonged to.
#[inline(always)]
fn led<Fam: Family>(piece: &Piece<Fam::Address>) -> Option<Entry<FlowOf<Fam>>> {
    let key = FragmentKey {
        source: piece.network.source,
        destination: piece.network.destination,
        id: piece.id,
        protocol: u32::from(piece.network.protocol),
    };
    let first = maps::fragmented(Fam::fragments(), &key)?;
    if now_ns().saturating_sub(first.seen_ns) > FRAGMENT_NS {
        return None;
    }
    match piece.network.protocol {
        PROTOCOL_TCP => match Fam::tcp().find(&first.key) {
            Some(flow) => Some(flow),
            None => Fam::half_open().find(&first.key).map(|half_open| half_open.flow()),
        },
        PROTOCOL_UDP => Fam::udp().find(&first.key),
        _ => None,
    }
}

/// Sends a later fragment on its flow's way. Returns the action and fills `verdict` in.
#[inline(never)]
pub fn send<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    flow: Entry<FlowOf<Fam>>,
    verdict: &mut Verdict,
) -> i32 {
    let exit = match try_send::<D, Fam, F>(frame, flow) {
        Ok(exit) => exit,
        Err(verdict) => Exit::plain::<F>(verdict),
    };
    *verdict = exit.verdict;
    exit.action
}

#[inline(always)]
fn try_send<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    flow: Entry<FlowOf<Fam>>,
) -> Result<Exit, Verdict> {
    if !D::IN {
        return Ok(Exit::plain::<F>(Verdict::Replied));
    }
    let Piece { network, .. } = Fam::piece(frame, EthHdr::LEN)?;
    let packet = Packet {
        key: flow.value().rewrite,
        transport: network.transport,
        length: network.length,
        headers: (network.transport - EthHdr::LEN) as u16,
        ttl: network.ttl,
        tcp: None,
    };
    emit::emit::<Fam, F>(frame, &packet, flow)
}
