//! Datagrams in fragments: the first one is steered and remembered, later ones follow it, and none is misread.

use graylb_agent::model::spec::Protocol;
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{Packet, SYN},
    lab::{Lab, tcp, udp},
    path::{Path, Place},
    run::{Action, Expected},
};

/// A fragment's place in its datagram, in units of eight bytes, and whether more follow.
const FIRST: (u16, bool) = (0, true);
const MIDDLE: (u16, bool) = (5, true);
const LAST: (u16, bool) = (185, false);

fn piece(packet: Packet, (offset, more): (u16, bool)) -> Packet {
    packet.fragment(offset, more)
}

/// Every path, and both protocols.
fn each(test: fn(&mut Lab, Path, Protocol)) {
    Lab::with(|lab| {
        for path in Path::all() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                test(lab, path, protocol);
            }
        }
    });
}

/// A client, a service with one backend, and packets between them.
struct Talk {
    path: Path,
    protocol: Protocol,
    client: std::net::SocketAddr,
    service: std::net::SocketAddr,
}

impl Talk {
    fn new(lab: &mut Lab, path: Path, protocol: Protocol) -> Self {
        let service = path.service(lab.port());
        let endpoint = if protocol == Protocol::Tcp { tcp(service) } else { udp(service) };
        lab.put(endpoint, "pool", &[(path.backend(0), 1)]);
        Self { path, protocol, client: path.client(lab.number()), service }
    }

    fn asking(&self) -> Packet {
        let packet = match self.protocol {
            Protocol::Tcp => Packet::tcp(self.client, self.service, SYN).numbered(7, 0),
            Protocol::Udp => Packet::udp(self.client, self.service),
        };
        self.path.from_client(packet.filled(40))
    }

    fn answering(&self) -> Packet {
        let (from, to) = (self.path.backend(0), self.path.source(self.client));
        let packet = match self.protocol {
            Protocol::Tcp => Packet::tcp(from, to, SYN | 0x10).numbered(70, 8),
            Protocol::Udp => Packet::udp(from, to),
        };
        self.path.from_backend(packet.filled(40), 0)
    }

    fn name(&self, what: &str) -> String {
        format!("{what} ({}, {:?})", self.path, self.protocol)
    }

    fn carried(&self, lab: &Lab, what: &str, packet: &Packet) {
        let expected = self.path.carried(packet, self.path.source(self.client), 0);
        lab.check(&self.name(what), self.path.client_entry(), &packet.bytes(), &expected);
    }

    fn returned(&self, lab: &Lab, what: &str, packet: &Packet) {
        let expected = self.path.returned(packet, self.service, self.client);
        lab.check(&self.name(what), self.path.backend_entry(), &packet.bytes(), &expected);
    }

    fn alone(&self, lab: &Lab, what: &str, packet: &[u8]) {
        let expected = Expected::unchanged(Verdict::Fragment, packet);
        lab.check(&self.name(what), self.path.client_entry(), packet, &expected);
    }

    fn dropped(&self, lab: &Lab, what: &str, packet: &[u8]) {
        let expected = Expected::new(Verdict::FragmentShort, Action::Drop, packet.to_vec());
        lab.check(&self.name(what), self.path.client_entry(), packet, &expected);
    }
}

#[test]
fn later_fragments_follow_the_first_both_ways() {
    each(|lab, path, protocol| {
        let talk = Talk::new(lab, path, protocol);
        // On loopback all cases' clients have one address, and the builder's packets one identification.
        if path.place != Place::Loopback {
            talk.alone(lab, "before the first", &piece(talk.asking(), MIDDLE).bytes());
        }
        talk.carried(lab, "the first", &piece(talk.asking(), FIRST));
        talk.carried(lab, "a middle one", &piece(talk.asking(), MIDDLE));
        talk.carried(lab, "the last", &piece(talk.asking(), LAST));
        talk.carried(lab, "the last, again", &piece(talk.asking(), LAST));
        talk.returned(lab, "the answer's first", &piece(talk.answering(), FIRST));
        talk.returned(lab, "the answer's last", &piece(talk.answering(), LAST));
        // Whole packets of the flow are as ever.
        talk.carried(lab, "a whole one", &talk.asking());
    });
}

#[test]
fn a_fragment_is_led_by_its_own_datagram_alone() {
    each(|lab, path, protocol| {
        let talk = Talk::new(lab, path, protocol);
        talk.carried(lab, "the first", &piece(talk.asking(), FIRST));
        if path.place == Place::Loopback {
            // All clients there have one address.
            return;
        }
        let other = Talk { client: path.client(lab.number()), ..Talk::new(lab, path, protocol) };
        talk.alone(lab, "another client's", &piece(other.asking(), LAST).bytes());
        let mut bytes = piece(talk.asking(), LAST).bytes();
        let id = if talk.service.is_ipv4() { 14 + 4 } else { 14 + 40 + 4 };
        bytes[id] ^= 1;
        talk.alone(lab, "another datagram's", &bytes);
        let stranger = Packet::other(talk.client, talk.service, 132).filled(30);
        talk.alone(lab, "another protocol's", &piece(path.from_client(stranger), LAST).bytes());
    });
}

/// What reaches into the header that the first fragment had, or leaves some of it to the next.
#[test]
fn overlaps_and_tiny_fragments_are_dropped() {
    each(|lab, path, protocol| {
        let talk = Talk::new(lab, path, protocol);
        let tiny = |packet: Packet, transport: u16| {
            let mut bytes = piece(packet, FIRST).bytes();
            let v4 = talk.service.is_ipv4();
            let (at, length) = if v4 { (16, 20 + transport) } else { (18, 8 + transport) };
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
            bytes
        };
        let needed = if protocol == Protocol::Tcp { 20 } else { 8 };
        for length in (0..needed).step_by(4) {
            talk.dropped(lab, "a tiny first one", &tiny(talk.asking(), length));
        }
        talk.carried(lab, "the first", &piece(talk.asking(), FIRST));
        if protocol == Protocol::Tcp {
            for offset in [1, 2] {
                let over = piece(talk.asking(), (offset, true)).bytes();
                talk.dropped(lab, "over the header", &over);
            }
            talk.carried(lab, "behind the header", &piece(talk.asking(), (3, true)));
        } else {
            talk.carried(lab, "behind the header", &piece(talk.asking(), (1, true)));
        }
    });
}

/// One that goes nowhere: no service, so the host gets all of its fragments.
#[test]
fn fragments_to_others_are_left_alone() {
    each(|lab, path, protocol| {
        let mut talk = Talk::new(lab, path, protocol);
        talk.service = path.service(lab.port());
        let first = piece(talk.asking(), FIRST).bytes();
        let expected = Expected::unchanged(Verdict::NotService, &first);
        lab.check(&talk.name("to no service"), path.client_entry(), &first, &expected);
        if path.place != Place::Loopback {
            talk.alone(lab, "the last", &piece(talk.asking(), LAST).bytes());
        }
    });
}
