//! Mode ipip, packet by packet: both families inside both, the outer header byte by byte, the packet in
//! it unchanged but for its TTL.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use graylb_agent::model::{mode::Mode, spec::Protocol};
use graylb_common::{backend::BackendCounters, verdict::Verdict};
use graylb_tests::packet::{
    around,
    builder::{ACK, FIN, PSH, Packet},
    flows::Table,
    lab::Lab,
    path::{Path, Place},
    run::Expected,
    talk::{PROTOCOLS, Talk, sources},
    topology::{Family, MTU},
};

/// A client, and the family that its packets travel in.
#[derive(Clone, Copy)]
struct Tunnel {
    talk: Talk,
    outer: Family,
}

/// Runs `test` for every hook, family inside and outside, and protocol.
fn each(protocols: &[Protocol], mut test: impl FnMut(&mut Lab, Tunnel) + Send) {
    Lab::with(|lab| {
        for path in Path::to(Place::Routed) {
            for outer in Family::ALL {
                for protocol in protocols {
                    let talk = Talk::new(lab, path, *protocol);
                    test(lab, Tunnel { talk, outer });
                }
            }
        }
    });
}

impl Tunnel {
    /// Puts a pool of backend `number` in force.
    fn put(&self, lab: &mut Lab, number: u8) {
        self.put_at(lab, self.outer.backend(number));
    }

    fn put_at(&self, lab: &mut Lab, backend: IpAddr) {
        let mode = Mode::Ipip(sources(self.outer, (1, 1)));
        self.talk.put(lab, mode, SocketAddr::new(backend, self.talk.service.address.port()));
    }

    fn name(&self, name: &str) -> String {
        format!("{name} in {:?}", self.outer)
    }

    /// The source that a flow's first packet comes from.
    fn source(&self, lab: &Lab, first: &Packet) -> IpAddr {
        let (source, _) = around::ends(&self.talk.send_only(lab, first).bytes);
        let sources = sources(self.outer, (1, 1));
        assert!(sources.addresses.contains(&source), "{source}");
        source
    }

    /// Sends a packet, which must leave in the tunnel to backend `number`.
    fn send(&self, lab: &Lab, name: &str, packet: &Packet, source: IpAddr, number: u8) {
        let ends = (source, self.outer.backend(number));
        self.talk.send(lab, &self.name(name), packet, &self.talk.tunnelled(packet, ends, number));
    }

    /// The longest packet that fits.
    const fn room(&self) -> usize {
        match self.outer {
            Family::V4 => MTU - 20,
            Family::V6 => MTU - 40,
        }
    }
}

#[test]
fn a_connection_from_its_syn_to_its_end() {
    each(&[Protocol::Tcp], |lab, tunnel| {
        let talk = tunnel.talk;
        tunnel.put(lab, 0);
        let syn = talk.first();
        let source = tunnel.source(lab, &syn);
        for name in ["SYN again", "SYN once more"] {
            tunnel.send(lab, name, &syn, source, 0);
        }
        let flow = talk.flow(lab, Table::HalfOpen).expect("a handshake");
        assert_eq!(flow.rewrite, talk.tuple(), "nothing is rewritten");
        for (flags, length) in [(ACK, 0), (ACK | PSH, 1), (ACK | PSH, 1000), (ACK, 0)] {
            tunnel.send(lab, "a segment", &talk.segment(flags, length), source, 0);
        }
        tunnel.put(lab, 1);
        tunnel.send(lab, "after a switch", &talk.segment(ACK | PSH, 9), source, 0);
        tunnel.send(lab, "FIN", &talk.segment(FIN | ACK, 0), source, 0);
        let counters = BackendCounters {
            opened: 1,
            established: 1,
            closed: 1,
            unanswered: 1,
            ..BackendCounters::default()
        };
        assert_eq!(talk.counters(lab), counters, "{}", tunnel.name("counters"));
        assert_eq!(talk.flow(lab, Table::HalfOpen), None, "promoted");
        let (client, service) = talk.tuple();
        assert_eq!(lab.maps.flow(Table::Tcp, (service, client)), None, "no reply is expected");
    });
}

#[test]
fn datagrams_of_every_length() {
    each(&[Protocol::Udp], |lab, tunnel| {
        let talk = tunnel.talk;
        tunnel.put(lab, 0);
        let source = tunnel.source(lab, &talk.first());
        for length in [0, 1, 2, 3, 63, 64, 65, 1000, 1399] {
            tunnel.send(lab, &format!("{length}"), &talk.datagram(length), source, 0);
        }
        tunnel.send(lab, "no checksum", &talk.datagram(5).without_checksum(), source, 0);
    });
}

/// A flow keeps its source; flows of many clients come from all of them.
#[test]
fn sources_are_shared_out() {
    each(&PROTOCOLS, |lab, tunnel| {
        tunnel.put(lab, 0);
        let mut seen = BTreeSet::new();
        for _ in 0..16 {
            let other = Tunnel { talk: tunnel.talk.another(lab), ..tunnel };
            let first = other.talk.first();
            let source = other.source(lab, &first);
            seen.insert(source);
            other.send(lab, "the same flow", &first, source, 0);
        }
        assert_eq!(seen.len(), 2, "{}", tunnel.name("sources"));
    });
}

#[test]
fn what_does_not_fit_is_answered() {
    each(&PROTOCOLS, |lab, tunnel| {
        let talk = tunnel.talk;
        tunnel.put(lab, 0);
        let source = tunnel.source(lab, &talk.first());
        if talk.service.protocol == Protocol::Tcp {
            tunnel.send(lab, "the handshake's end", &talk.segment(ACK, 0), source, 0);
        }
        let room = tunnel.room();
        for length in [room, room + 1, room, room + 2, MTU, MTU + 1, MTU + 30, 2 * MTU, room] {
            let packet = talk.sized(length);
            let name = format!("{length} bytes");
            if length > room {
                let expected = talk.too_big(&packet, room);
                talk.send(lab, &tunnel.name(&name), &packet, &expected);
            } else {
                tunnel.send(lab, &name, &packet, source, 0);
            }
        }
    });
}

#[test]
fn the_last_hop_ends_here() {
    each(&PROTOCOLS, |lab, tunnel| {
        let talk = tunnel.talk;
        tunnel.put(lab, 0);
        let source = tunnel.source(lab, &talk.first());
        for ttl in [2, 255, 1, 0] {
            let packet = talk.first().ttl(ttl);
            if ttl > 1 {
                tunnel.send(lab, &format!("ttl {ttl}"), &packet, source, 0);
            } else {
                let expected = Expected::dropped(Verdict::TtlExceeded);
                talk.send(lab, &tunnel.name(&format!("ttl {ttl}")), &packet, &expected);
            }
        }
    });
}

#[test]
fn no_way_to_the_backend() {
    each(&PROTOCOLS, |lab, tunnel| {
        for backend in [tunnel.outer.nowhere(), tunnel.outer.unreachable()] {
            let talk = tunnel.talk.another(lab);
            tunnel.put_at(lab, backend);
            for name in ["no route", "no route again"] {
                let expected = Expected::dropped(Verdict::NoRoute);
                talk.send(lab, &tunnel.name(name), &talk.first(), &expected);
            }
        }
    });
}

/// A damaged table costs the packets that it would have served, and says so.
#[test]
fn no_source_any_more() {
    each(&PROTOCOLS, |lab, tunnel| {
        let talk = tunnel.talk;
        tunnel.put(lab, 0);
        // Each list of sources lies in the map once for the whole lab: this is the last test to use it.
        lab.maps.lose_sources();
        let expected = Expected::dropped(Verdict::BadTable);
        talk.send(lab, &tunnel.name("no source"), &talk.first(), &expected);
    });
}
