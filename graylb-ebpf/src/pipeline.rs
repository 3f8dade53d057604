//! The choreography: what happens to a packet, in order. Every packet leaves with one verdict, and each
//! verdict is counted here.

use aya_log_ebpf::info;
use graylb_common::verdict::Verdict;
use network_types::eth::EthHdr;

use crate::{
    access::Frame,
    classify, count, echo,
    emit::{self, Exit},
    family::{Family, FlowOf, V4, V6},
    fragment, icmp,
    maps::{self, Entry},
    parse::{self, Packet},
    rewrite,
};

/// EtherTypes in memory order.
const VLAN: u16 = 0x8100_u16.to_be();
const QINQ: u16 = 0x88a8_u16.to_be();

/// Which way packets pass the hook.
pub trait Direction {
    /// Into this host: services are looked up, packets are sent to their next hop.
    const IN: bool;
}

/// Packets on their way in.
pub struct In;
/// Packets on their way out.
pub struct Out;

impl Direction for In {
    const IN: bool = true;
}

impl Direction for Out {
    const IN: bool = false;
}

/// One packet, from frame to action.
#[inline(always)]
pub fn run<D: Direction, F: Frame>(frame: &mut F) -> i32 {
    if !D::IN && frame.came_from_outside() {
        return leave(frame, Exit::plain::<F>(Verdict::HostOutput));
    }
    if frame.has_tag_aside() {
        return leave(frame, Exit::plain::<F>(Verdict::Vlan));
    }
    frame.pull_headers();
    let Some(ethernet) = frame.window::<{ EthHdr::LEN }>(0) else {
        return leave(frame, Exit::plain::<F>(Verdict::Truncated));
    };
    match ethernet.get::<u16, 12>() {
        V4::ETHERTYPE => of_family::<D, V4, F>(frame),
        V6::ETHERTYPE => of_family::<D, V6, F>(frame),
        VLAN | QINQ => leave(frame, Exit::plain::<F>(Verdict::Vlan)),
        _ => leave(frame, Exit::plain::<F>(Verdict::NotIp)),
    }
}

/// One IP packet, from frame to action.
#[inline(always)]
fn of_family<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> i32 {
    match tcp_or_udp::<D, Fam, F>(frame) {
        NEITHER => icmp::<D, Fam, F>(frame),
        FRAGMENT if maps::follows_fragments() => match first_fragment::<D, Fam, F>(frame) {
            FRAGMENT => later_fragment::<D, Fam, F>(frame),
            action => action,
        },
        FRAGMENT => leave(frame, Exit::plain::<F>(Verdict::Fragment)),
        action => action,
    }
}

/// What [`tcp_or_udp`] returns for another protocol; no action.
const NEITHER: i32 = i32::MIN;
/// What it returns for a fragment, and [`first_fragment`] for a later one.
const FRAGMENT: i32 = i32::MIN + 1;

/// A TCP or UDP packet. A function of its own in the kernel, too: each family has a BPF stack to itself.
#[inline(never)]
fn tcp_or_udp<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> i32 {
    let exit = match steer::<D, Fam, F>(frame) {
        Ok(exit) => exit,
        Err(Verdict::OtherProtocol) => return NEITHER,
        Err(Verdict::Fragment) => return FRAGMENT,
        Err(verdict) => Exit::plain::<F>(verdict),
    };
    leave(frame, exit)
}

/// The first fragment of a TCP or UDP datagram, apart for the same reason.
#[inline(never)]
fn first_fragment<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> i32 {
    let exit = match fragment::first::<D, Fam, F>(frame) {
        Ok(Some(exit)) => exit,
        Ok(None) => return FRAGMENT,
        Err(verdict) => Exit::plain::<F>(verdict),
    };
    leave(frame, exit)
}

/// A later fragment, apart for the same reason.
#[inline(never)]
fn later_fragment<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> i32 {
    let mut verdict = Verdict::Fragment;
    let Some(flow) = fragment::later::<D, Fam, F>(frame, &mut verdict) else {
        return leave(frame, Exit::plain::<F>(verdict));
    };
    let action = fragment::send::<D, Fam, F>(frame, flow, &mut verdict);
    leave(frame, Exit { verdict, action })
}

/// A packet that is neither, apart for the same reason.
#[inline(never)]
fn icmp<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> i32 {
    let mut verdict = Verdict::OtherProtocol;
    let Some(flow) = icmp::translate::<D, Fam, F>(frame, &mut verdict) else {
        let action = if D::IN && matches!(verdict, Verdict::OtherProtocol) {
            echo::answer::<Fam, F>(frame, &mut verdict)
        } else {
            F::action(verdict)
        };
        return leave(frame, Exit { verdict, action });
    };
    let action = icmp::send::<D, Fam, F>(frame, flow, &mut verdict);
    leave(frame, Exit { verdict, action })
}

/// Counts how the packet leaves.
#[inline(always)]
fn leave<F: Frame>(frame: &F, exit: Exit) -> i32 {
    count::verdict(exit.verdict);
    if count::is_rare(exit.verdict) {
        info!(
            frame,
            "packet dropped: verdict {} on interface {}",
            exit.verdict as u32,
            frame.interface()
        );
    }
    exit.action
}

#[inline(always)]
fn steer<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> Result<Exit, Verdict> {
    let packet: Packet<Fam> = parse::parse(frame)?;
    let flow = classify::classify::<D, Fam, F>(frame, &packet)?;
    send::<D, Fam, F>(frame, &packet, flow)
}

/// Rewrites a packet of a flow and puts it on its way.
#[inline(always)]
pub fn send<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: Entry<FlowOf<Fam>>,
) -> Result<Exit, Verdict> {
    rewrite::rewrite::<Fam, F>(frame, packet, flow.value())
        .map_err(|verdict| count::for_service(flow.value().service, verdict))?;
    if D::IN {
        emit::emit::<Fam, F>(frame, packet, flow)
    } else {
        Ok(Exit::plain::<F>(Verdict::Replied))
    }
}
