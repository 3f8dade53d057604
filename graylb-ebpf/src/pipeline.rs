//! The choreography: what happens to a packet, in order. Every packet leaves with one verdict, and each
//! verdict is counted here.

use aya_log_ebpf::info;
use graylb_common::{flow::Flow, verdict::Verdict};

use crate::{
    access::Frame,
    classify, count,
    emit::{self, Exit},
    family::{Family, V4, V6},
    maps::Entry,
    parse::{self, Packet},
    rewrite,
};

/// EtherTypes in memory order.
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
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
    let exit = match steer::<D, F>(frame) {
        Ok(exit) => exit,
        Err(verdict) => Exit::plain::<F>(verdict),
    };
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
fn steer<D: Direction, F: Frame>(frame: &mut F) -> Result<Exit, Verdict> {
    if !D::IN && frame.from_outside() {
        return Err(Verdict::HostOutput);
    }
    frame.pull_headers();
    let ethernet = frame.window::<14>(0).ok_or(Verdict::Truncated)?;
    match ethernet.get::<u16, 12>() {
        IPV4 => steer_family::<D, V4, F>(frame),
        IPV6 => steer_family::<D, V6, F>(frame),
        VLAN | QINQ => Err(Verdict::Vlan),
        _ => Err(Verdict::NotIp),
    }
}

#[inline(always)]
fn steer_family<D: Direction, Fam: Family, F: Frame>(frame: &mut F) -> Result<Exit, Verdict> {
    let packet: Packet<Fam> = parse::parse(frame)?;
    let flow = classify::classify::<D, Fam, F>(frame, &packet)?;
    forward::<D, Fam, F>(frame, &packet, flow)
        .map_err(|verdict| count::for_service(flow.value().service, verdict))
}

/// Sends a packet the way of its flow.
#[inline(always)]
fn forward<D: Direction, Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: Entry<Flow<Fam::Address>>,
) -> Result<Exit, Verdict> {
    rewrite::rewrite::<Fam, F>(frame, packet, flow.value())?;
    if D::IN {
        emit::emit::<Fam, F>(frame, packet, flow)
    } else {
        Ok(Exit::plain::<F>(Verdict::Replied))
    }
}
