//! Packet → flow: the one it belongs to, or a new one for a service.

use graylb_common::{
    flow::Flow,
    service::{PROTOCOL_TCP, PROTOCOL_UDP, Service},
    verdict::Verdict,
};

use crate::{
    access::Frame,
    family::{Family, service_key},
    maps::{self, Entry},
    parse::Packet,
    pipeline::Direction,
    tcp, udp,
};

/// The flow of a packet, or why there is none.
#[inline(always)]
pub fn classify<D: Direction, Fam: Family, F: Frame>(
    frame: &F,
    packet: &Packet<Fam>,
) -> Result<Entry<Flow<Fam::Address>>, Verdict> {
    match packet.tcp {
        Some(segment) => tcp::classify::<D, Fam, F>(frame, packet, segment),
        None => udp::classify::<D, Fam, F>(frame, packet),
    }
}

/// The service that a packet of no flow is addressed to.
#[inline(always)]
pub fn service<D: Direction, Fam: Family>(
    packet: &Packet<Fam>,
) -> Result<&'static Service, Verdict> {
    if !D::IN {
        return Err(Verdict::HostOutput);
    }
    service_at::<Fam>(packet).ok_or(Verdict::NotService)
}

/// The same, in a function of its own in the kernel: its key is not on the stack of who goes on.
#[inline(never)]
fn service_at<Fam: Family>(packet: &Packet<Fam>) -> Option<&'static Service> {
    let protocol = if packet.tcp.is_some() { PROTOCOL_TCP } else { PROTOCOL_UDP };
    maps::service(Fam::services(), &service_key(&packet.key, protocol))
}
