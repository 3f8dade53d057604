//! Mode snat, packet by packet: the backend sees an address of this host, the client the virtual endpoint,
//! and no two flows towards a backend look alike.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use graylb_agent::model::{
    mode::{Mode, Sources},
    spec::Protocol,
};
use graylb_common::{
    backend::{BackendCounters, handshake_bucket},
    flow::FLOW_REPLY,
    verdict::Verdict,
};
use graylb_tests::packet::{
    builder::{ACK, FIN, PSH, Packet, RST, SYN},
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
    let outcome = talk.send_only(lab, &packet);
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
    lab.compare(&name, &before, &packet.bytes(), &outcome, &expected);
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
        let found = talk.counters(lab);
        assert_eq!(found.handshake.iter().sum::<u64>(), 1, "{}", talk.name("the SYN's answer"));
        let counters = BackendCounters {
            opened: 1,
            established: 1,
            closed: 1,
            unanswered: 1,
            handshake: found.handshake,
            ..BackendCounters::default()
        };
        assert_eq!(found, counters, "{}", talk.name("counters"));
    });
}

#[test]
fn a_late_answer_is_counted_as_late() {
    const LATE: Duration = Duration::from_millis(50);
    each(&[Protocol::Tcp], |lab, talk| {
        put(lab, &talk, PORTS, 0);
        let source = open(lab, &talk, PORTS, 0);
        thread::sleep(LATE);
        let syn_ack = Packet::tcp(talk.path.backend(0), source, SYN | ACK).numbered(S, C + 1);
        for name in ["SYN-ACK", "SYN-ACK again"] {
            answer(lab, &talk, name, &syn_ack);
        }
        // By a coarse clock, and on a busy machine.
        let handshake = talk.counters(lab).handshake;
        let late: u64 = handshake[handshake_bucket(40_000_000)..].iter().sum();
        let all: u64 = handshake.iter().sum();
        assert_eq!((late, all), (1, 1), "{}: {handshake:?}", talk.name("late"));
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

/// The backend's segment to `source`.
fn segment(talk: &Talk, source: SocketAddr, flags: u8) -> Packet {
    let numbers = if flags & SYN == 0 { (S.wrapping_add(1), C + 1) } else { (S, C + 1) };
    Packet::tcp(talk.path.backend(0), source, flags).numbered(numbers.0, numbers.1)
}

/// The rest of a connection after its SYN, up to both FINs.
fn finish(lab: &Lab, talk: &Talk, source: SocketAddr) {
    let carry = |flags| {
        let packet = talk.segment(flags, 0);
        talk.send(lab, "a segment", &packet, &talk.path.carried(&packet, source, 0));
    };
    answer(lab, talk, "SYN-ACK", &segment(talk, source, SYN | ACK));
    carry(ACK);
    answer(lab, talk, "FIN", &segment(talk, source, FIN | ACK));
    carry(FIN | ACK);
    answer(lab, talk, "the last acknowledgement", &segment(talk, source, ACK));
}

/// The backend remembers the connection that had the tuple before, and says so; the client's reset makes
/// it forget, and the SYN sent again is taken.
fn open_in_time_wait(lab: &Lab, talk: &Talk, source: SocketAddr) {
    answer(lab, talk, "an acknowledgement instead of SYN-ACK", &segment(talk, source, ACK));
    for flags in [RST, SYN] {
        let packet = talk.segment(flags, 0);
        let expected = talk.path.carried(&packet, source, 0);
        talk.send(lab, "the client's reset, and its SYN again", &packet, &expected);
    }
    finish(lab, talk, source);
}

/// A port is used again only when there is no other, and then the new connection gets through.
#[test]
fn ports_are_used_again() {
    each(&[Protocol::Tcp], |lab, talk| {
        // A hundred ports of this service alone: backends and sources are the same in the whole lab.
        let port = 10_000 + talk.service.address.port() % 100 * 100;
        let one_source = |ports| {
            Mode::Snat(Sources::new(vec![talk.path.family.local(0)], ports).expect("sources"))
        };
        talk.put(lab, one_source((port, port)), talk.path.backend(0));
        let source = open(lab, &talk, (port, port), 0);
        finish(lab, &talk, source);
        let second = talk.another(lab);
        assert_eq!(open(lab, &second, (port, port), 0), source, "the only one there is");
        open_in_time_wait(lab, &second, source);
        let many = (port, port + 99);
        talk.put(lab, one_source(many), talk.path.backend(0));
        for _ in 0..20 {
            let other = talk.another(lab);
            assert_ne!(open(lab, &other, many, 0), source, "there are others");
        }
    });
}

/// A client that uses its own port again: what it says is of its new connection, through the new tuple.
#[test]
fn a_client_uses_its_port_again() {
    each(&[Protocol::Tcp], |lab, talk| {
        put(lab, &talk, PORTS, 0);
        let old = open(lab, &talk, PORTS, 0);
        finish(lab, &talk, old);
        // A SYN with another number chooses anew.
        let syn = talk.segment(SYN, 0).numbered(C + 77, 0);
        let _new_source_is_random = talk.send_only(lab, &syn);
        let source = talk.flow(lab, Table::HalfOpen).expect("a handshake").rewrite.0;
        answer(lab, &talk, "an acknowledgement", &segment(&talk, source, ACK));
        let reset = talk.segment(RST, 0);
        talk.send(lab, "reset", &reset, &talk.path.carried(&reset, source, 0));
        talk.send(lab, "SYN again", &syn, &talk.path.carried(&syn, source, 0));
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
            let _what_came_of_it_shows_below = talk.send_only(lab, &talk.first());
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
