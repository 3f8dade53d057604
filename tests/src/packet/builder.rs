//! A packet as readable fields. [`Packet::bytes`] gives the frame, with every length and checksum as the
//! RFCs say and none of them taken from the code under test.

use std::net::{IpAddr, SocketAddr};

use super::wire;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Length of an Ethernet header without tags.
const ETHERNET: usize = 14;

/// FIN flag (RFC 9293, 3.1).
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// PSH flag.
pub const PSH: u8 = 0x08;
/// ACK flag.
pub const ACK: u8 = 0x10;
/// URG flag.
pub const URG: u8 = 0x20;
/// ECE flag (RFC 3168).
pub const ECE: u8 = 0x40;
/// CWR flag (RFC 3168).
pub const CWR: u8 = 0x80;

/// What follows the network header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp {
        /// The flags byte.
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Options; a multiple of four bytes, at most 40.
        options: Vec<u8>,
    },
    /// UDP (RFC 768).
    Udp {
        /// Whether it carries a checksum; without one the field is zero.
        checksum: bool,
    },
    /// An ICMP or ICMPv6 message of eight bytes.
    Icmp {
        /// Its type.
        kind: u8,
    },
    /// No header, only payload.
    Other {
        /// The protocol number.
        protocol: u8,
    },
}

/// A place in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in units of eight bytes. A fragment that is not the first has no transport header.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// An Ethernet frame with an IP packet. The addresses' family is the packet's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Destination and source of the frame.
    pub macs: (Mac, Mac),
    /// VLAN tags, outermost first: EtherType and tag control information.
    pub tags: Vec<(u16, u16)>,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 options; a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6 extension headers of eight bytes each, by protocol number.
    pub extensions: Vec<u8>,
    /// Set in a fragment.
    pub fragment: Option<Fragment>,
    /// The transport header.
    pub transport: Transport,
    /// What follows it.
    pub payload: Vec<u8>,
}

impl Packet {
    fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "one packet, one family");
        Self {
            macs: Default::default(),
            tags: Vec::new(),
            source,
            destination,
            ttl: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            transport,
            payload: Vec::new(),
        }
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        let options = Vec::new();
        let tcp = Transport::Tcp { flags, sequence: 0, acknowledgement: 0, options };
        Self::new(source, destination, tcp)
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Transport::Udp { checksum: true })
    }

    /// An ICMP or ICMPv6 message.
    #[must_use]
    pub fn icmp(source: SocketAddr, destination: SocketAddr, kind: u8) -> Self {
        Self::new(source, destination, Transport::Icmp { kind })
    }

    /// An ICMP or ICMPv6 error from one address to another that quotes a packet up to `length` bytes.
    #[must_use]
    pub fn icmp_error(from: IpAddr, to: IpAddr, kind: u8, quoted: &Self, length: usize) -> Self {
        let quoted = quoted.bytes();
        let packet = &quoted[ETHERNET..quoted.len().min(ETHERNET + length)];
        Self::icmp(SocketAddr::new(from, 0), SocketAddr::new(to, 0), kind).payload(packet)
    }

    /// A packet of another protocol.
    #[must_use]
    pub fn other(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Self {
        Self::new(source, destination, Transport::Other { protocol })
    }

    /// With these TCP numbers.
    ///
    /// # Panics
    ///
    /// It is no TCP segment.
    #[must_use]
    pub fn numbered(mut self, seq: u32, ack: u32) -> Self {
        let Transport::Tcp { sequence, acknowledgement, .. } = &mut self.transport else {
            panic!("sequence numbers are TCP's");
        };
        (*sequence, *acknowledgement) = (seq, ack);
        self
    }

    /// With these TCP options.
    ///
    /// # Panics
    ///
    /// It is no TCP segment.
    #[must_use]
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        let Transport::Tcp { options, .. } = &mut self.transport else {
            panic!("these options are TCP's");
        };
        *options = bytes.to_vec();
        self
    }

    /// A UDP datagram without a checksum.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        self.transport = Transport::Udp { checksum: false };
        self
    }

    /// With this payload.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// With `length` bytes of payload, no two next to each other alike.
    #[must_use]
    pub fn filled(self, length: usize) -> Self {
        self.payload((0..length).map(|place| (place * 7 + 1) as u8).collect::<Vec<_>>())
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub const fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// From one Ethernet address to another.
    #[must_use]
    pub const fn hop(mut self, from: Mac, to: Mac) -> Self {
        self.macs = (to, from);
        self
    }

    /// What a router makes of it: one hop further.
    #[must_use]
    pub const fn routed(mut self, from: Mac, to: Mac) -> Self {
        self.ttl -= 1;
        self.hop(from, to)
    }

    /// With another source and destination.
    #[must_use]
    pub const fn readdressed(mut self, source: SocketAddr, destination: SocketAddr) -> Self {
        self.source = source;
        self.destination = destination;
        self
    }

    /// With a VLAN tag outside of what it has.
    #[must_use]
    pub fn tagged(mut self, ether_type: u16, tag: u16) -> Self {
        self.tags.insert(0, (ether_type, tag));
        self
    }

    /// With `words` four-byte words of IPv4 options: record route (RFC 791), the rest no-operations.
    #[must_use]
    pub fn option_words(mut self, words: usize) -> Self {
        self.options = vec![1; words * 4];
        if words > 1 {
            self.options[..3].copy_from_slice(&[7, 7, 4]);
        }
        self
    }

    /// With this IPv6 extension header before what follows the last one.
    #[must_use]
    pub fn extended(mut self, protocol: u8) -> Self {
        self.extensions.push(protocol);
        self
    }

    /// As a fragment: an IPv4 header field, or an IPv6 header behind the other extensions.
    #[must_use]
    pub const fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { offset, more });
        self
    }

    /// The frame.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        wire::frame(self)
    }
}
