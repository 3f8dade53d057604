//! The choreography: what happens to a packet, in order. Every packet leaves with one verdict, and each
//! verdict is counted here.

use aya_log_ebpf::info;
use graylb_common::verdict::Verdict;

use crate::{
    access::Frame,
    classify, count,
    emit::{self, Exit},
    family::{Family, V4, V6},
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
        Err(verdict) => Exit { verdict, action: F::action(verdict) },
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
    if frame.has_tag_aside() {
        return Err(Verdict::Vlan);
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
    rewrite::rewrite::<Fam, F>(frame, &packet, flow.value())?;
    if D::IN {
        Ok(emit::emit::<Fam, F>(frame, &packet, &flow.value().rewrite)?)
    } else {
        Ok(Exit { verdict: Verdict::Replied, action: F::action(Verdict::Replied) })
    }
}
