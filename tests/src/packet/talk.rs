//! One client, one service and a pool of any mode: what the client sends, and what the tables hold of it.

use std::net::{IpAddr, SocketAddr};

use graylb_agent::model::{
    mode::{Mode, Sources},
    spec::{Endpoint, Protocol},
};
use graylb_common::{backend::BackendCounters, verdict::Verdict};

use super::{
    around,
    builder::{ACK, FIN, PSH, Packet, SYN},
    flows::{Seen, Table, Tuple},
    lab::Lab,
    path::Path,
    run::{Action, Entry, Expected, Hook},
    topology::{EXT_MAC, Family, GATEWAY_MAC, INT_MAC, backend_mac},
};

/// Sequence number of the client's SYN.
pub const C: u32 = 1000;
/// Sequence number of the backend's SYN-ACK.
pub const S: u32 = 0xffff_fff0;
/// Both protocols.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Two addresses of the router, and these ports.
///
/// # Panics
///
/// The ports are none.
#[must_use]
pub fn sources(family: Family, ports: (u16, u16)) -> Sources {
    let addresses = vec![family.local(0), family.local(1)];
    Sources::new(addresses, ports).expect("sources")
}

/// A client of a service.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// The way that its packets take.
    pub path: Path,
    /// What it talks to.
    pub service: Endpoint,
    /// Its address.
    pub client: SocketAddr,
}

impl Talk {
    /// A client and a service that nobody else in this lab has.
    pub fn new(lab: &mut Lab, path: Path, protocol: Protocol) -> Self {
        let address = path.service(lab.port());
        let client = path.client(lab.number());
        Self { path, service: Endpoint { address, protocol }, client }
    }

    /// Another client of the service.
    #[must_use]
    pub fn another(&self, lab: &mut Lab) -> Self {
        Self { client: self.path.client(lab.number()), ..*self }
    }

    /// Puts a pool of one backend in force.
    pub fn put(&self, lab: &mut Lab, mode: Mode, backend: SocketAddr) {
        lab.put_in(self.service, mode, "talk", &[(backend, 1)]);
    }

    /// The tuple of the client's packets.
    #[must_use]
    pub const fn tuple(&self) -> Tuple {
        (self.client, self.service.address)
    }

    /// The table that the first packet's flow is in.
    #[must_use]
    pub const fn first_table(&self) -> Table {
        match self.service.protocol {
            Protocol::Tcp => Table::HalfOpen,
            Protocol::Udp => Table::Udp,
        }
    }

    /// The client's flow.
    #[must_use]
    pub fn flow(&self, lab: &Lab, table: Table) -> Option<Seen> {
        lab.maps.flow(table, self.tuple())
    }

    /// The client's first packet: a SYN, or a datagram.
    #[must_use]
    pub fn first(&self) -> Packet {
        match self.service.protocol {
            Protocol::Tcp => self.segment(SYN, 0),
            Protocol::Udp => self.datagram(20),
        }
    }

    /// The first packet of a flow that can be long: TCP's comes in an established flow.
    #[must_use]
    pub fn sized(&self, length: usize) -> Packet {
        let headers = if self.client.is_ipv4() { 20 } else { 40 };
        match self.service.protocol {
            Protocol::Tcp => self.segment(ACK | PSH, length - headers - 20),
            Protocol::Udp => self.datagram(length - headers - 8),
        }
    }

    /// A datagram.
    #[must_use]
    pub fn datagram(&self, length: usize) -> Packet {
        let packet = Packet::udp(self.client, self.service.address).filled(length);
        self.path.from_client(packet)
    }

    /// A segment, with the numbers that it has in its place of the handshake or behind it.
    #[must_use]
    pub fn segment(&self, flags: u8, length: usize) -> Packet {
        let numbers = match flags {
            SYN => (C, 0),
            flags if flags & FIN != 0 => (C + 101, S.wrapping_add(201)),
            _ => (C + 1, S.wrapping_add(1)),
        };
        let packet = Packet::tcp(self.client, self.service.address, flags)
            .numbered(numbers.0, numbers.1)
            .filled(length);
        self.path.from_client(packet)
    }

    /// Sends a packet of the client, which must have this fate.
    pub fn send(&self, lab: &Lab, name: &str, packet: &Packet, expected: &Expected) {
        let mut entry = self.path.client_entry();
        if expected.verdict == Verdict::TooBig && entry.hook == Hook::TcSummed {
            // The kernel forgets the sum of a packet that is cut (__skb_trim_rcsum, skbuff.h), but the
            // test run would compare it all the same.
            entry.hook = Hook::Tc;
        }
        lab.check(&self.name(name), entry, &packet.bytes(), expected);
    }

    /// Sends a packet of the client of which only verdict and action are known yet; what came out.
    #[must_use]
    pub fn send_for(&self, lab: &Lab, name: &str, packet: &Packet, verdict: Verdict) -> Vec<u8> {
        let before = lab.verdicts();
        let bytes = packet.bytes();
        let outcome = lab
            .programs()
            .run(self.path.client_entry(), &bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name(name)));
        let action = if verdict == Verdict::Redirected { Action::Redirect } else { Action::Drop };
        let expected = Expected { verdict, action, bytes: None };
        lab.compare(&self.name(name), &before, &bytes, &outcome, &expected);
        outcome.bytes
    }

    /// Sends a backend's packet.
    pub fn answer(&self, lab: &Lab, name: &str, packet: &Packet) {
        let entry: Entry = self.path.backend_entry();
        let expected = self.path.returned(packet, self.service.address, self.client);
        lab.check(&self.name(name), entry, &packet.bytes(), &expected);
    }

    /// `name`, and on what it runs.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("{name} ({} {:?})", self.path, self.service.protocol)
    }

    /// The packet one hop on, otherwise unchanged, on its way to backend `number`.
    #[must_use]
    pub fn unchanged(&self, packet: &Packet, number: u8) -> Expected {
        self.path.redirected(packet, INT_MAC, backend_mac(number))
    }

    /// The packet in a tunnel to backend `number`, which has the destination address.
    #[must_use]
    pub fn tunnelled(&self, packet: &Packet, ends: (IpAddr, IpAddr), number: u8) -> Expected {
        let mut expected = self.path.redirected(packet, INT_MAC, backend_mac(number));
        expected.bytes = expected.bytes.map(|bytes| around::tunnelled(&bytes, ends.0, ends.1));
        expected
    }

    /// The packet answered by "too big".
    #[must_use]
    pub fn too_big(&self, packet: &Packet, mtu: usize) -> Expected {
        let action = if self.path.hook == Hook::Xdp { Action::Transmit } else { Action::Redirect };
        let bytes = around::too_big(&packet.bytes(), mtu as u16);
        assert_eq!(bytes[..12], [GATEWAY_MAC, EXT_MAC].concat(), "back to the gateway");
        Expected::new(Verdict::TooBig, action, bytes)
    }

    /// The counters of the service's backends, all together.
    #[must_use]
    pub fn counters(&self, lab: &Lab) -> BackendCounters {
        let mut total = BackendCounters::default();
        lab.counters(self.service).values().for_each(|counters| total.add(counters));
        total
    }
}
