//! Flow → packet: addresses, ports and checksums.

use core::mem::offset_of;

use graylb_common::{
    backend::{MODE_NAT, MODE_SNAT},
    flow::Flow,
    verdict::Verdict,
};
use network_types::{eth::EthHdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    access::{ChecksumChange, Frame},
    family::Family,
    parse::Packet,
};

/// Whether a mode rewrites tuples. In the others the backend answers the client itself, so that its
/// packets are never seen here.
#[inline(always)]
pub const fn rewritten(mode: u32) -> bool {
    mode == MODE_NAT as u32 || mode == MODE_SNAT as u32
}

/// Rewrites the packet's tuple as the flow says, in the modes that do.
#[inline(always)]
pub fn rewrite<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    flow: &Flow<Fam::Address>,
) -> Result<(), Verdict> {
    if !rewritten(flow.mode) {
        return Ok(());
    }
    let key = &flow.rewrite;
    let (source, destination) = (&key.source, &key.destination);
    if !Fam::write_addresses(frame, EthHdr::LEN, source, destination, flow.address_delta) {
        return Err(Verdict::RewriteFailed);
    }
    let Some(ports) = frame.window::<4>(packet.transport) else {
        return Err(Verdict::RewriteFailed);
    };
    ports.set::<[u16; 2], 0>([key.source_port.to_be(), key.destination_port.to_be()]);
    let is_udp = packet.tcp.is_none();
    let field = if is_udp { offset_of!(UdpHdr, check) } else { offset_of!(TcpHdr, check) };
    let change = ChecksumChange {
        addresses: flow.address_delta,
        ports: flow.port_delta,
        zero_means_none: is_udp,
        ipv6: Fam::IPV6,
    };
    if frame.update_transport_checksum(packet.transport + field, &change) {
        Ok(())
    } else {
        Err(Verdict::RewriteFailed)
    }
}
