//! IP in IP (RFC 2003, RFC 2473): a packet to the virtual endpoint travels unchanged inside another one to
//! its backend.

use graylb_common::{
    backend::{Backend, FAMILY_V4},
    csum,
    flow::Flow,
    verdict::Verdict,
};

use network_types::eth::EthHdr;

use crate::{
    access::{FibParams, Frame},
    emit::Way,
    family::{Family, Header, V4, V6},
    maps,
    parse::Packet,
};

/// The way through the tunnel.
#[derive(Clone, Copy)]
pub struct Tunnel {
    backend: &'static Backend,
    /// Which of the pool's sources the outer packet comes from: by the client, so that flows spread over
    /// them, and over the receiver's queues.
    spread: u32,
}

impl Tunnel {
    /// The tunnel of a flow in mode ipip.
    #[inline(always)]
    pub fn of<Fam: Family>(flow: &Flow<Fam::Address>) -> Result<Self, Verdict> {
        let backend = maps::backend(flow.backend).ok_or(Verdict::BadTable)?;
        let client = csum::add(Fam::sum(&flow.rewrite.source), flow.rewrite.source_port);
        Ok(Self { backend, spread: u32::from(client) })
    }

    #[inline(always)]
    fn wrap<Fam: Family, Outer: Family, F: Frame>(
        &self,
        frame: &mut F,
        packet: &Packet<Fam>,
    ) -> Result<(), Verdict> {
        let (source, destination) = self.ends::<Outer>()?;
        let header = Header {
            source,
            destination,
            protocol: Fam::INNER,
            payload: packet.length,
            // Congestion marks must survive the tunnel (RFC 6040, 4.1).
            class: Fam::traffic_class(frame),
        };
        // The MAC addresses come with the next hop.
        if frame.encapsulate::<Outer>(packet.tcp.is_some())
            && frame
                .window::<{ EthHdr::LEN }>(0)
                .map(|ethernet| ethernet.set::<u16, 12>(Outer::ETHERTYPE))
                .is_some()
            && Outer::write_header(frame, &header)
        {
            Ok(())
        } else {
            Err(Verdict::RewriteFailed)
        }
    }

    /// Source and destination of the outer packet.
    #[inline(always)]
    fn ends<Outer: Family>(
        &self,
    ) -> Result<(&'static Outer::Address, &'static Outer::Address), Verdict> {
        let Backend { address, family, sources_start, sources_count, .. } = self.backend;
        let place = self.spread.checked_rem(*sources_count).ok_or(Verdict::BadTable)?;
        let source = maps::source(sources_start.wrapping_add(place)).ok_or(Verdict::BadTable)?;
        let source = Outer::address(&source.address, source.family).ok_or(Verdict::BadTable)?;
        let destination = Outer::address(address, *family).ok_or(Verdict::BadTable)?;
        Ok((source, destination))
    }
}

impl Way for Tunnel {
    #[inline(always)]
    fn overhead(self) -> u16 {
        if self.backend.family == FAMILY_V4 { V4::HEADER_LEN } else { V6::HEADER_LEN }
    }

    #[inline(always)]
    fn fill_route<Fam: Family>(
        self,
        _flow: &Flow<Fam::Address>,
        params: &mut FibParams,
    ) -> Result<(), Verdict> {
        if self.backend.family == FAMILY_V4 {
            let (source, destination) = self.ends::<V4>()?;
            V4::fill_route(params, source, destination);
        } else {
            let (source, destination) = self.ends::<V6>()?;
            V6::fill_route(params, source, destination);
        }
        Ok(())
    }

    #[inline(always)]
    fn enter<Fam: Family, F: Frame>(
        self,
        frame: &mut F,
        packet: &Packet<Fam>,
    ) -> Result<(), Verdict> {
        if self.backend.family == FAMILY_V4 {
            self.wrap::<Fam, V4, F>(frame, packet)
        } else {
            self.wrap::<Fam, V6, F>(frame, packet)
        }
    }
}
