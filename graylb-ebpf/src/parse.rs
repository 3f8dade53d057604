//! Frame → packet: the tuple and what else the later stages ask of a TCP or UDP packet.

use core::mem::offset_of;

use graylb_common::{
    service::{PROTOCOL_TCP, PROTOCOL_UDP},
    verdict::Verdict,
};
use network_types::{eth::EthHdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    access::Frame,
    family::{Family, KeyOf, Network},
};

/// FIN flag (RFC 9293, 3.1).
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// ACK flag.
pub const ACK: u8 = 0x10;

/// Offset of the flags byte in the TCP header.
const TCP_FLAGS: usize = 13;

/// A TCP or UDP packet.
pub struct Packet<Fam: Family> {
    /// Its tuple.
    pub key: KeyOf<Fam>,
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Length of the IP packet.
    pub length: u16,
    /// Length of its headers, transport's included.
    pub headers: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP's part, `None` for UDP.
    pub tcp: Option<Segment>,
}

/// What flow tracking asks of a TCP segment.
#[derive(Clone, Copy)]
pub struct Segment {
    /// The flags byte.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Length of the header.
    pub header: u8,
}

/// Reads the headers, or says why the packet is left alone.
#[inline(always)]
pub fn parse<Fam: Family, F: Frame>(frame: &F) -> Result<Packet<Fam>, Verdict> {
    behind::<Fam, F>(frame, &Fam::network(frame, EthHdr::LEN)?)
}

/// Reads the transport header behind a network header.
#[inline(always)]
pub fn behind<Fam: Family, F: Frame>(
    frame: &F,
    network: &Network<Fam::Address>,
) -> Result<Packet<Fam>, Verdict> {
    let tcp = match network.protocol {
        PROTOCOL_TCP => Some(segment(frame, network.transport)?),
        PROTOCOL_UDP => None,
        _ => return Err(Verdict::OtherProtocol),
    };
    // TCP's and UDP's headers both begin with the ports.
    let ports = frame
        .window::<{ UdpHdr::LEN }>(network.transport)
        .ok_or(Verdict::Truncated)?
        .get::<[u16; 2], 0>();
    Ok(Packet {
        key: KeyOf::<Fam> {
            source: network.source,
            destination: network.destination,
            source_port: u16::from_be(ports[0]),
            destination_port: u16::from_be(ports[1]),
        },
        transport: network.transport,
        length: network.length,
        headers: (network.transport - EthHdr::LEN) as u16
            + match tcp {
                Some(segment) => u16::from(segment.header),
                None => UdpHdr::LEN as u16,
            },
        ttl: network.ttl,
        tcp,
    })
}

#[inline(always)]
fn segment<F: Frame>(frame: &F, transport: usize) -> Result<Segment, Verdict> {
    let header = frame.window::<{ TcpHdr::LEN }>(transport).ok_or(Verdict::Truncated)?;
    let data_offset: u8 = header.get::<u8, { TCP_FLAGS - 1 }>();
    let length = (data_offset >> 4) * 4;
    if usize::from(length) < TcpHdr::LEN {
        return Err(Verdict::Malformed);
    }
    Ok(Segment {
        header: length,
        flags: header.get::<u8, TCP_FLAGS>(),
        sequence: u32::from_be(header.get::<u32, { offset_of!(TcpHdr, seq) }>()),
        acknowledgement: u32::from_be(header.get::<u32, { offset_of!(TcpHdr, ack_seq) }>()),
    })
}
