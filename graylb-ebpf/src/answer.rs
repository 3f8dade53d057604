//! Packets that graylb answers itself: ICMP's "too big" where no other part of the host would say it.

use graylb_common::{csum, verdict::Verdict};
use network_types::eth::EthHdr;

use crate::{
    access::Frame,
    emit::Exit,
    family::{Family, Header},
    parse::Packet,
};

/// Bytes of the packet that the answer quotes: the longest IPv4 header, or IPv6's, and what its receiver
/// needs to find the connection (RFC 792; RFC 4443, 3.2). A packet that is too big has as many.
const QUOTE: usize = 68;
/// ICMP's own header.
const ICMP: usize = 8;

/// Turns a packet that is longer than `mtu` into the answer to its sender: fragmentation needed (RFC 1191)
/// or packet too big (RFC 4443, 3.2).
///
/// An IPv4 sender that allows fragments is told, too: its packets would be cut inside the tunnel, and
/// its kernel learns the shorter way all the same.
#[inline(always)]
pub fn too_big<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    mtu: u16,
) -> Result<Exit, Verdict> {
    answer::<Fam, F>(frame, packet, mtu).ok_or(Verdict::RewriteFailed)?;
    Ok(Exit { verdict: Verdict::TooBig, action: frame.reflect() })
}

#[inline(always)]
fn answer<Fam: Family, F: Frame>(frame: &mut F, packet: &Packet<Fam>, mtu: u16) -> Option<()> {
    let header = Header {
        source: &packet.key.destination,
        destination: &packet.key.source,
        protocol: Fam::ICMP,
        payload: (ICMP + QUOTE) as u16,
        class: 0,
    };
    let ethernet = frame.window::<{ EthHdr::LEN }>(0)?;
    let [a, b, c, d, e, f, kind] = ethernet.get::<[u16; 7], 0>();
    // The packet stays where it is and becomes its own quotation.
    if !frame.resize((EthHdr::LEN + QUOTE) as u32)
        || !frame.make_room(Fam::HEADER_LEN + ICMP as u16)
    {
        return None;
    }
    // The sender becomes the receiver.
    frame.window::<{ EthHdr::LEN }>(0)?.set::<[u16; 7], 0>([d, e, f, a, b, c, kind]);
    if !Fam::write_header(frame, &header) {
        return None;
    }
    let body = frame.window::<{ ICMP + QUOTE }>(EthHdr::LEN + Fam::HEADER_LEN as usize)?;
    let icmp = Fam::too_big(mtu);
    body.set::<[u32; 2], 0>(icmp);
    let mut covered = Fam::icmp_pseudo_sum(&header);
    covered = csum::add(covered, csum::words(body.get::<[u32; 4], { ICMP }>()));
    covered = csum::add(covered, csum::words(body.get::<[u32; 4], { ICMP + 16 }>()));
    covered = csum::add(covered, csum::words(body.get::<[u32; 4], { ICMP + 32 }>()));
    covered = csum::add(covered, csum::words(body.get::<[u32; 4], { ICMP + 48 }>()));
    covered = csum::add(covered, csum::words([body.get::<u32, { ICMP + 64 }>(), 0, 0, 0]));
    body.set::<u16, 2>(!csum::add(covered, csum::words([icmp[0], icmp[1], 0, 0])));
    // ICMP's header and checksum make up for the quotation and the pseudo-header.
    frame.note_change(!covered);
    Some(())
}
