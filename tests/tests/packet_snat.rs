//! Mode snat, packet by packet: the backend sees an address of this host, the client the virtual endpoint,
//! and no two flows towards a backend look alike.

use std::{collections::BTreeSet, net::SocketAddr};

use graylb_agent::model::{mode::Mode, spec::Protocol};
use graylb_common::{backend::BackendCounters, flow::FLOW_REPLY, verdict::Verdict};
use graylb_tests::packet::{
    builder::{ACK, FIN, PSH, Packet, SYN},
    flows::Table,
    lab::Lab,
    path::{Path, Place},
    run::Expected,
    talk::{C, PROTOCOLS, S, Talk, sources},
};

const PORTS: (u16, u16) = (20_000, 20_999);

/// Runs `test` for every hook, family, place of the backends, and protocol.
fn each(protocols: &[Protocol], mut test: impl FnMut(&mut Lab, Talk) + Send) {
    Lab::with(|lab| {
        let paths = Path::to(Place::Routed).into_iter().chain(Path::to(Place::OneArmed));
        for path in paths {
            for protocol in protocols {
                let talk = Talk::new(lab, path, *protocol);
                test(lab, talk);
            }
        }
    });
}

fn put(lab: &mut Lab, talk: &Talk, ports: (u16, u16), number: u8) {
    let mode = Mode::Snat(sources(talk.path.family, ports));
    talk.put(lab, mode, talk.path.backend(number));
}

/// Opens a flow; returns how backend `number` sees the client.
fn open(lab: &Lab, talk: &Talk, ports: (u16, u16), number: u8) -> SocketAddr {
    let packet = talk.first();
    let before = lab.verdicts();
    let bytes = packet.bytes();
    let outcome = lab.programs().run(talk.path.client_entry(), &bytes).expect("a right sum");
    let name = talk.name("a new flow");
    let (source, backend) = match talk.flow(lab, talk.first_table()) {
        Some(flow) => flow.rewrite,
        None => panic!("{name}: no flow; verdicts {:?}", lab.verdicts()),
    };
    assert_eq!(backend, talk.path.backend(number), "{name}");
    let sources = sources(talk.path.family, ports);
    assert!(sources.addresses.contains(&source.ip()), "{name}: {source}");
    assert!((ports.0..=ports.1).contains(&source.port()), "{name}: {source}");
    let expected = talk.path.carried(&packet, source, number);
    lab.compare(&name, &before, &bytes, &outcome, &expected);
    let reply = lab.maps.flow(talk.first_table(), (backend, source)).expect(&name);
    assert_eq!(reply.rewrite, (talk.service.address, talk.client), "{name}");
    assert_eq!(reply.state & FLOW_REPLY, FLOW_REPLY, "{name}");
    source
}

/// The backend's packet to the client.
fn answer(lab: &Lab, talk: &Talk, name: &str, packet: &Packet) {
    talk.answer(lab, name, &talk.path.from_backend(packet.clone(), 0));
}

#[test]
fn a_connection_from_its_syn_to_its_end() {
    each(&[Protocol::Tcp], |lab, talk| {
        put(lab, &talk, PORTS, 0);
        let source = open(lab, &talk, PORTS, 0);
        let backend = talk.path.backend(0);
        let carry = |lab: &Lab, name: &str, packet: &Packet| {
            talk.send(lab, name, packet, &talk.path.carried(packet, source, 0));
        };
        let reply = |flags, length| {
            let numbers = if flags & SYN == 0 { (S.wrapping_add(1), C + 1) } else { (S, C + 1) };
            Packet::tcp(backend, source, flags).numbered(numbers.0, numbers.1).filled(length)
        };
        carry(lab, "SYN again", &talk.segment(SYN, 0));
        answer(lab, &talk, "SYN-ACK", &reply(SYN | ACK, 0));
        carry(lab, "the handshake's end", &talk.segment(ACK, 0));
        for table in [Table::HalfOpen, Table::Tcp] {
            let there = table == Table::Tcp;
            assert_eq!(talk.flow(lab, table).is_some(), there, "{}", talk.name("promoted"));
            assert_eq!(lab.maps.flow(table, (backend, source)).is_some(), there);
        }
        // Another pool is for new connections.
        put(lab, &talk, PORTS, 1);
        for length in [1, 2, 999, 1400] {
            carry(lab, "data", &talk.segment(ACK | PSH, length));
            answer(lab, &talk, "data back", &reply(ACK | PSH, length));
        }
        carry(lab, "FIN", &talk.segment(FIN | ACK, 0));
        assert_eq!(talk.counters(lab).closed, 0);
        answer(lab, &talk, "FIN back", &reply(FIN | ACK, 0));
        carry(lab, "the last acknowledgement", &talk.segment(ACK, 0));
        let counters = BackendCounters { opened: 1, established: 1, refused: 0, closed: 1 };
        assert_eq!(talk.counters(lab), counters, "{}", talk.name("counters"));
    });
}

#[test]
fn datagrams_both_ways() {
    each(&[Protocol::Udp], |lab, talk| {
        put(lab, &talk, PORTS, 0);
        let source = open(lab, &talk, PORTS, 0);
        let backend = talk.path.backend(0);
        for length in [0, 1, 2, 1400] {
            let packet = talk.datagram(length);
            talk.send(lab, "a datagram", &packet, &talk.path.carried(&packet, source, 0));
            answer(lab, &talk, "an answer", &Packet::udp(backend, source).filled(length));
        }
        let packet = talk.datagram(9).without_checksum();
        talk.send(lab, "without a checksum", &packet, &talk.path.carried(&packet, source, 0));
        let packet = Packet::udp(backend, source).filled(9).without_checksum();
        answer(lab, &talk, "an answer without a checksum", &packet);
    });
}

/// Clients with one port, at different addresses, are told apart by the ports that they are given.
#[test]
fn equal_clients_get_different_sources() {
    each(&PROTOCOLS, |lab, talk| {
        put(lab, &talk, PORTS, 0);
        let mut seen = BTreeSet::new();
        for number in 1..=40 {
            let client = SocketAddr::new(talk.path.family.client(number), talk.client.port());
            let source = open(lab, &Talk { client, ..talk }, PORTS, 0);
            assert!(seen.insert(source), "{}: {source} twice", talk.name("sources"));
        }
        let addresses: BTreeSet<_> = seen.iter().map(SocketAddr::ip).collect();
        assert_eq!(addresses.len(), 2, "{}", talk.name("both sources are used"));
    });
}

/// With every tuple taken a new flow is dropped, the old ones go on, and another backend has its own.
#[test]
fn no_tuple_is_left() {
    each(&PROTOCOLS, |lab, talk| {
        // Of this service alone: backends and sources are the same in the whole lab.
        let low = 2 * talk.service.address.port();
        let few = (low, low + 1);
        put(lab, &talk, few, 0);
        let mut open_flows = Vec::new();
        let mut dropped = 0;
        // Two addresses with two ports each: tried at random, so a few more clients than that.
        for number in 1..=60 {
            let client = SocketAddr::new(talk.path.family.client(number), talk.client.port());
            let talk = Talk { client, ..talk };
            let before = lab.verdicts().get(Verdict::NoTuple);
            let outcome = lab.programs().run(talk.path.client_entry(), &talk.first().bytes());
            let _checked_below = outcome.expect("a right sum");
            match talk.flow(lab, talk.first_table()) {
                Some(flow) => open_flows.push((talk, flow.rewrite.0)),
                None => dropped += lab.verdicts().get(Verdict::NoTuple) - before,
            }
        }
        let sources: BTreeSet<_> = open_flows.iter().map(|(_, source)| *source).collect();
        assert_eq!(
            (open_flows.len(), sources.len(), dropped),
            (4, 4, 56),
            "{}",
            talk.name("flows")
        );
        let late = talk.another(lab);
        let packet = late.first();
        talk.send(lab, "too late", &packet, &Expected::dropped(Verdict::NoTuple));
        for (talk, source) in &open_flows {
            let packet = talk.first();
            talk.send(lab, "goes on", &packet, &talk.path.carried(&packet, *source, 0));
        }
        put(lab, &talk, few, 1);
        let _source = open(lab, &late, few, 1);
    });
}

#[test]
fn the_last_hop_ends_here() {
    each(&PROTOCOLS, |lab, talk| {
        put(lab, &talk, PORTS, 0);
        let source = open(lab, &talk, PORTS, 0);
        for ttl in [2, 1, 0, 255] {
            let packet = talk.first().ttl(ttl);
            let expected = if ttl > 1 {
                talk.path.carried(&packet, source, 0)
            } else {
                Expected::dropped(Verdict::TtlExceeded)
            };
            talk.send(lab, &format!("ttl {ttl}"), &packet, &expected);
        }
    });
}

/// A damaged table costs new flows alone, and says so.
#[test]
fn no_source_any_more() {
    each(&PROTOCOLS, |lab, talk| {
        // A list of its own: each lies in the map once for the whole lab, and this one is not mended.
        let ports = (talk.service.address.port(), 30_000);
        put(lab, &talk, ports, 0);
        let source = open(lab, &talk, ports, 0);
        lab.maps.lose_sources();
        let late = talk.another(lab);
        late.send(lab, "no source", &late.first(), &Expected::dropped(Verdict::BadTable));
        let packet = talk.first();
        talk.send(lab, "an open flow", &packet, &talk.path.carried(&packet, source, 0));
    });
}
