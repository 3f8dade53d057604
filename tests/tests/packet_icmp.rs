//! ICMP errors about packets of a flow: to the end that caused them, in its own words. Everything else of
//! ICMP is left alone.

use std::net::{IpAddr, SocketAddr};

use graylb_agent::model::spec::{Endpoint, Protocol};
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{ACK, Packet, SYN},
    lab::Lab,
    path::{Path, Place},
    run::{Action, Expected},
    topology::{EXT_MAC, Family, GATEWAY_MAC, INT_MAC, arm_mac, backend_mac},
};

const ISN: u32 = 99;
const SERVER_ISN: u32 = 700;

/// A flow with one backend, and how both ends see its packets.
struct Flow {
    path: Path,
    protocol: Protocol,
    client: SocketAddr,
    service: SocketAddr,
    backend: SocketAddr,
    /// The client, as the backend sees it.
    source: SocketAddr,
}

impl Flow {
    fn open(lab: &mut Lab, path: Path, protocol: Protocol) -> Self {
        let service = path.service(lab.port());
        lab.put(Endpoint { address: service, protocol }, "icmp", &[(path.backend(0), 1)]);
        let client = path.client(lab.number());
        let flow = Self {
            path,
            protocol,
            client,
            service,
            backend: path.backend(0),
            source: path.source(client),
        };
        flow.client_sends(lab, SYN, ISN, 0);
        flow
    }

    fn establish(&self, lab: &Lab) {
        let syn_ack = self.packet(self.backend, self.source, SYN | ACK, SERVER_ISN, ISN + 1);
        let syn_ack = self.path.from_backend(syn_ack, 0);
        let expected = self.path.returned(&syn_ack, self.service, self.client);
        lab.check("a SYN-ACK", self.path.backend_entry(), &syn_ack.bytes(), &expected);
        self.client_sends(lab, ACK, ISN + 1, SERVER_ISN + 1);
    }

    fn client_sends(&self, lab: &Lab, flags: u8, seq: u32, ack: u32) {
        let packet = self.packet(self.client, self.service, flags, seq, ack);
        let packet = self.path.from_client(packet);
        let expected = self.path.carried(&packet, self.source, 0);
        lab.check("a client's packet", self.path.client_entry(), &packet.bytes(), &expected);
    }

    fn packet(&self, from: SocketAddr, to: SocketAddr, flags: u8, seq: u32, ack: u32) -> Packet {
        match self.protocol {
            Protocol::Tcp => Packet::tcp(from, to, flags).numbered(seq, ack).filled(24),
            Protocol::Udp => Packet::udp(from, to).filled(24),
        }
    }

    /// An error about a packet that the client sent, from `from`, quoted up to `length` bytes.
    fn about_request(&self, lab: &Lab, case: &str, from: IpAddr, kind: u8, length: usize) {
        let quoted = |a, b| self.packet(a, b, ACK, ISN + 1, SERVER_ISN + 1);
        let seen = quoted(self.source, self.backend);
        let error = Packet::icmp_error(from, self.source.ip(), kind, &seen, length);
        let error = self.path.from_backend(error, 0);
        let far = if from == self.backend.ip() { self.service.ip() } else { from };
        let meant = quoted(self.client, self.service);
        let relayed = Packet::icmp_error(far, self.client.ip(), kind, &meant, length);
        let relayed = self.path.from_backend(relayed, 0);
        let expected = self.relayed(&relayed, EXT_MAC, GATEWAY_MAC);
        lab.check(case, self.path.backend_entry(), &error.bytes(), &expected);
    }

    /// An error about a packet that the backend sent.
    fn about_reply(&self, lab: &Lab, case: &str, from: IpAddr, kind: u8, length: usize) {
        let quoted = |a, b| self.packet(a, b, ACK, SERVER_ISN + 1, ISN + 1);
        let seen = quoted(self.service, self.client);
        let error = Packet::icmp_error(from, self.service.ip(), kind, &seen, length);
        let error = self.path.from_client(error);
        let far = if from == self.client.ip() { self.source.ip() } else { from };
        let meant = quoted(self.backend, self.source);
        let relayed = Packet::icmp_error(far, self.backend.ip(), kind, &meant, length);
        let relayed = self.path.from_client(relayed);
        let (own, next) = match self.path.place {
            Place::OneArmed => (EXT_MAC, arm_mac(0)),
            Place::Routed | Place::Local | Place::Loopback => (INT_MAC, backend_mac(0)),
        };
        lab.check(
            case,
            self.path.client_entry(),
            &error.bytes(),
            &self.relayed(&relayed, own, next),
        );
    }

    /// Sent on, or handed up, or passed on its way out.
    fn relayed(&self, packet: &Packet, own: [u8; 6], next: [u8; 6]) -> Expected {
        match self.path.place {
            Place::Local | Place::Loopback => {
                Expected::new(Verdict::IcmpError, Action::Pass, packet.bytes())
            }
            Place::Routed | Place::OneArmed => {
                Expected { verdict: Verdict::IcmpError, ..self.path.redirected(packet, own, next) }
            }
        }
    }
}

/// Types of errors, by family.
const fn errors(family: Family) -> &'static [u8] {
    match family {
        Family::V4 => &[3, 11, 12],
        Family::V6 => &[1, 2, 3, 4],
    }
}

/// The shortest quotation: the network header and eight bytes.
const fn shortest(family: Family) -> usize {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

#[test]
fn errors_go_to_the_end_that_caused_them() {
    Lab::with(|lab| {
        for path in Path::all() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let flow = Flow::open(lab, path, protocol);
                let router = path.family.client(77);
                for round in 0..2 {
                    for &kind in errors(path.family) {
                        for length in [shortest(path.family), shortest(path.family) + 7, 1000] {
                            let case =
                                format!("{path} {protocol} round {round}, type {kind}, {length}");
                            flow.about_request(lab, &case, flow.backend.ip(), kind, length);
                            flow.about_request(lab, &case, router, kind, length);
                            flow.about_reply(lab, &case, router, kind, length);
                        }
                    }
                    if round == 0 && protocol == Protocol::Tcp {
                        flow.establish(lab);
                    }
                }
            }
        }
    });
}

/// A datagram without a checksum has none in the quotation either.
#[test]
fn a_quoted_checksum_of_zero_stays_zero() {
    Lab::with(|lab| {
        for path in Path::to(Place::Routed).into_iter().filter(|path| path.family == Family::V4) {
            let flow = Flow::open(lab, path, Protocol::Udp);
            let quoted = |a, b| Packet::udp(a, b).filled(5).without_checksum();
            let (from, to) = (flow.backend.ip(), flow.source.ip());
            let seen = quoted(flow.source, flow.backend);
            let error = path.from_backend(Packet::icmp_error(from, to, 3, &seen, 1000), 0);
            let meant = quoted(flow.client, flow.service);
            let relayed = Packet::icmp_error(flow.service.ip(), flow.client.ip(), 3, &meant, 1000);
            let expected = flow.relayed(&path.from_backend(relayed, 0), EXT_MAC, GATEWAY_MAC);
            lab.check("no checksum", path.backend_entry(), &error.bytes(), &expected);
        }
    });
}

#[test]
fn other_icmp_is_left_alone() {
    Lab::with(|lab| {
        for path in Path::all() {
            let flow = Flow::open(lab, path, Protocol::Udp);
            let alone = |case: &str, packet: &Packet| {
                let bytes = packet.bytes();
                let expected = Expected::unchanged(Verdict::OtherProtocol, &bytes);
                lab.check(case, path.client_entry(), &bytes, &expected);
            };
            let router = path.family.client(77);
            let seen = Packet::udp(flow.service, flow.client).filled(30);
            let error = |kind, quoted: &Packet, length| {
                let to = flow.service.ip();
                path.from_client(Packet::icmp_error(router, to, kind, quoted, length))
            };
            for kind in [0, 5, 8, 13, 128, 129, 133, 135, 200] {
                alone(&format!("{path} type {kind}"), &error(kind, &seen, 1000));
            }
            let kind = errors(path.family)[0];
            for length in 0..shortest(path.family) {
                alone(
                    &format!("{path} a quotation of {length} bytes"),
                    &error(kind, &seen, length),
                );
            }
            let stranger = SocketAddr::new(flow.client.ip(), 9);
            let unknown = Packet::udp(flow.service, stranger).filled(30);
            alone("about no flow", &error(kind, &unknown, 1000));
            let other = Packet::other(flow.service, flow.client, 132).filled(30);
            alone("about another protocol", &error(kind, &other, 1000));
            let fragment = seen.clone().fragment(8, true);
            alone("about a fragment", &error(kind, &fragment, 1000));
        }
    });
}
