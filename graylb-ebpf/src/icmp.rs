//! ICMP errors about packets of a flow: translated like the flow, and sent to the end that caused them
//! (RFC 5508, 4.2 says what a NAT owes them).
//!
//! An error travels against the packet that it quotes, so the flow's entry for its own direction is the one
//! under the quoted tuple reversed, and says what both become.

use core::mem::offset_of;

use graylb_common::{
    csum,
    flow::{FLOW_REPLY, Flow},
    service::{PROTOCOL_TCP, PROTOCOL_UDP},
    verdict::{Verdict, VerdictKind},
};
use network_types::{eth::EthHdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    access::Frame,
    count,
    emit::{self, Exit},
    family::{Family, FlowOf, KeyOf, Network},
    maps::{Entry, FlowTable},
    parse::Packet,
    pipeline::Direction,
    rewrite::rewritten,
};

/// Length of an ICMP header; the quoted packet follows.
const HEADER: usize = 8;
/// Offset of its checksum.
const CHECK: usize = 2;

/// The flow that an error is about.
struct About<A> {
    flow: Entry<Flow<A>>,
    quoted: Network<A>,
}

/// Translates an error in place and returns its flow; everything else that is neither TCP nor UDP is left
/// alone. A function of its own in the kernel, as [`send`] is: together they do not fit on a BPF stack.
/// Fills `verdict` in where there is no flow.
#[inline(never)]
pub fn translate<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    verdict: &mut Verdict,
) -> Option<Entry<FlowOf<Fam>>> {
    try_translate::<D, Fam, F>(frame).map_err(|why| *verdict = why).ok()
}

#[inline(always)]
fn try_translate<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
) -> Result<Entry<FlowOf<Fam>>, Verdict> {
    let outer = Fam::network(frame, EthHdr::LEN)?;
    if outer.protocol != Fam::ICMP {
        return Err(Verdict::OtherProtocol);
    }
    let kind: u8 =
        frame.window::<HEADER>(outer.transport).ok_or(Verdict::OtherProtocol)?.get::<u8, 0>();
    if !Fam::is_icmp_error(kind) {
        return Err(Verdict::OtherProtocol);
    }
    let about = about::<Fam, F>(frame, outer.transport + HEADER).ok_or(Verdict::OtherProtocol)?;
    let flow = about.flow;
    if !D::IN && flow.value().state & FLOW_REPLY == 0 {
        return Err(Verdict::HostOutput);
    }
    if rewritten(flow.value().mode) && !rewrite::<Fam, F>(frame, &outer, &about) {
        return Err(count::for_service(flow.value().service, Verdict::RewriteFailed));
    }
    Ok(flow)
}

/// Sends a translated error on its way. Returns the action and fills `verdict` in.
#[inline(never)]
pub fn send<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    flow: Entry<FlowOf<Fam>>,
    verdict: &mut Verdict,
) -> i32 {
    let exit = match try_send::<D, Fam, F>(frame, flow) {
        Ok(action) => Exit { verdict: Verdict::IcmpError, action },
        Err(verdict) => Exit::plain::<F>(verdict),
    };
    *verdict = exit.verdict;
    exit.action
}

#[inline(always)]
fn try_send<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    flow: Entry<FlowOf<Fam>>,
) -> Result<i32, Verdict> {
    if !D::IN {
        return Ok(F::action(Verdict::IcmpError));
    }
    let Network { transport, length, ttl, .. } = Fam::network(frame, EthHdr::LEN)?;
    let packet = Packet {
        key: flow.value().rewrite,
        transport,
        length,
        headers: (transport + HEADER - EthHdr::LEN) as u16,
        ttl,
        tcp: None,
    };
    let exit = emit::emit::<Fam, F>(frame, &packet, flow)?;
    // What could not be sent is not relayed.
    if matches!(exit.verdict.kind(), VerdictKind::Forwarded) {
        Ok(exit.action)
    } else {
        Err(exit.verdict)
    }
}

/// The flow of the packet quoted at `at`.
#[inline(always)]
fn about<Fam: Family, F: Frame>(frame: &F, at: usize) -> Option<About<Fam::Address>> {
    let quoted = Fam::network(frame, at).ok()?;
    // The first eight bytes behind the quoted header are always there (RFC 792).
    let ports = frame.window::<8>(quoted.transport)?.get::<[u16; 2], 0>();
    let key = KeyOf::<Fam> {
        source: quoted.destination,
        destination: quoted.source,
        source_port: u16::from_be(ports[1]),
        destination_port: u16::from_be(ports[0]),
    };
    let flow = match quoted.protocol {
        PROTOCOL_TCP => match Fam::tcp().find(&key) {
            Some(flow) => flow,
            None => Fam::half_open().find(&key)?.flow(),
        },
        PROTOCOL_UDP => Fam::udp().find(&key)?,
        _ => return None,
    };
    Some(About { flow, quoted })
}

/// Writes the flow's other tuple into the quoted packet and the error's own addresses, and makes all
/// checksums follow. Every change is made up for by a checksum in the packet, so that a NIC's sum over the
/// whole of it stays right.
#[inline(always)]
fn rewrite<Fam: Family, F: Frame>(
    frame: &mut F,
    outer: &Network<Fam::Address>,
    about: &About<Fam::Address>,
) -> bool {
    let flow = about.flow.value();
    let (to, quoted) = (&flow.rewrite, &about.quoted);
    let Some(transport) = quote_ports::<Fam, F>(frame, quoted, flow) else { return false };
    let at = outer.transport + HEADER;
    if !Fam::write_addresses(frame, at, &to.destination, &to.source, flow.address_delta) {
        return false;
    }
    // An error from the flow's far end comes from there; one from a router on the way keeps its source.
    let from_end = outer.source == quoted.destination;
    let source = if from_end { &to.source } else { &outer.source };
    let change = |new: &Fam::Address, old: &Fam::Address| csum::sub(Fam::sum(new), Fam::sum(old));
    let outer_delta =
        csum::add(change(source, &outer.source), change(&to.destination, &outer.destination));
    if !Fam::write_addresses(frame, EthHdr::LEN, source, &to.destination, outer_delta) {
        return false;
    }
    let Some(check) = frame.window::<2>(outer.transport + CHECK) else { return false };
    let delta = csum::add(transport, Fam::icmp_delta(outer_delta, flow.address_delta));
    check.set::<u16, 0>(csum::updated(check.get::<u16, 0>(), delta));
    true
}

/// Writes the quoted ports, and the quoted transport checksum where the quotation reaches that far. Returns
/// what the sum of the quoted bytes has changed by.
#[inline(always)]
fn quote_ports<Fam: Family, F: Frame>(
    frame: &F,
    quoted: &Network<Fam::Address>,
    flow: &Flow<Fam::Address>,
) -> Option<u16> {
    let to = &flow.rewrite;
    frame
        .window::<4>(quoted.transport)?
        .set::<[u16; 2], 0>([to.destination_port.to_be(), to.source_port.to_be()]);
    let is_udp = quoted.protocol == PROTOCOL_UDP;
    let field = if is_udp { offset_of!(UdpHdr, check) } else { offset_of!(TcpHdr, check) };
    let Some(check) = frame.window::<2>(quoted.transport + field) else {
        return Some(flow.port_delta);
    };
    let old: u16 = check.get::<u16, 0>();
    if is_udp && old == 0 {
        return Some(flow.port_delta);
    }
    let new = csum::updated(old, csum::add(flow.address_delta, flow.port_delta));
    check.set::<u16, 0>(new);
    Some(csum::add(flow.port_delta, csum::sub(new, old)))
}
