//! Mode dsr, packet by packet: nothing changes but MAC addresses and TTL, the backend's packets are never
//! seen, and what does not fit is answered here.

use std::net::{IpAddr, SocketAddr};

use graylb_agent::model::{mode::Mode, spec::Protocol};
use graylb_common::{backend::BackendCounters, flow::FLOW_CLOSED, verdict::Verdict};
use graylb_tests::packet::{
    builder::{ACK, FIN, PSH, RST, SYN},
    flows::Table,
    lab::Lab,
    path::{Path, Place},
    run::{Expected, Hook},
    talk::{C, PROTOCOLS, Talk},
    topology::{MTU, NARROW_MTU},
};

/// Runs `test` for every hook, family and protocol.
fn each(protocols: &[Protocol], mut test: impl FnMut(&mut Lab, Talk) + Send) {
    Lab::with(|lab| {
        for path in Path::to(Place::Routed) {
            for protocol in protocols {
                let talk = Talk::new(lab, path, *protocol);
                test(lab, talk);
            }
        }
    });
}

/// Backend `number`, on the service's port.
fn backend(talk: &Talk, number: u8) -> SocketAddr {
    SocketAddr::new(talk.path.family.backend(number), talk.service.address.port())
}

/// A flow of one entry, under the client's own tuple.
fn check_flow(lab: &Lab, talk: &Talk, table: Table, number: u8) {
    let flow = talk.flow(lab, table).unwrap_or_else(|| panic!("{}", talk.name("no flow")));
    assert_eq!(flow.rewrite, talk.tuple(), "nothing is rewritten");
    assert_eq!(flow.backend, backend(talk, number));
    for table in [Table::Tcp, Table::HalfOpen, Table::Udp] {
        let (client, service) = talk.tuple();
        for other_end in [service, backend(talk, number)] {
            assert_eq!(lab.maps.flow(table, (other_end, client)), None, "no reply is expected");
        }
    }
}

#[test]
fn a_connection_from_its_syn_to_its_end() {
    each(&[Protocol::Tcp], |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        let send = |lab: &Lab, name: &str, flags, length| {
            let packet = talk.segment(flags, length);
            talk.send(lab, name, &packet, &talk.unchanged(&packet, 0));
        };
        send(lab, "SYN", SYN, 0);
        check_flow(lab, &talk, Table::HalfOpen, 0);
        send(lab, "SYN again", SYN, 0);
        send(lab, "the handshake's end", ACK, 0);
        check_flow(lab, &talk, Table::Tcp, 0);
        assert_eq!(talk.flow(lab, Table::HalfOpen), None, "promoted");
        for length in [1, 100, 1400] {
            send(lab, "data", ACK | PSH, length);
        }
        // Another pool is for new connections.
        talk.put(lab, Mode::Dsr, backend(&talk, 1));
        send(lab, "data after a switch", ACK | PSH, 7);
        assert_eq!(talk.counters(lab).closed, 0);
        send(lab, "FIN", FIN | ACK, 0);
        send(lab, "FIN again", FIN | ACK, 0);
        send(lab, "the last acknowledgement", ACK, 0);
        let counters = BackendCounters {
            opened: 1,
            established: 1,
            closed: 1,
            unanswered: 1,
            ..BackendCounters::default()
        };
        assert_eq!(talk.counters(lab), counters, "{}", talk.name("counters"));
        let flow = talk.flow(lab, Table::Tcp).expect("a flow that has ended");
        assert_ne!(flow.state & FLOW_CLOSED, 0);
    });
}

#[test]
fn a_reset_ends_a_connection() {
    each(&[Protocol::Tcp], |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        for (flags, closed) in [(SYN, 0), (ACK, 0), (RST | ACK, 1), (RST, 1)] {
            let packet = talk.segment(flags, 0);
            talk.send(lab, "a segment", &packet, &talk.unchanged(&packet, 0));
            assert_eq!(talk.counters(lab).closed, closed, "{}", talk.name("closed"));
        }
    });
}

#[test]
fn data_that_ends_the_handshake() {
    each(&[Protocol::Tcp], |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        for packet in [talk.segment(SYN, 0), talk.segment(ACK | PSH, 300)] {
            talk.send(lab, "a segment", &packet, &talk.unchanged(&packet, 0));
        }
        check_flow(lab, &talk, Table::Tcp, 0);
    });
}

/// Whoever forges a SYN on somebody's tuple does not know where the connection's numbers are.
#[test]
fn a_forged_syn_moves_no_connection() {
    each(&[Protocol::Tcp], |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        for flags in [SYN, ACK] {
            let packet = talk.segment(flags, 0);
            talk.send(lab, "the handshake", &packet, &talk.unchanged(&packet, 0));
        }
        talk.put(lab, Mode::Dsr, backend(&talk, 1));
        let forged = talk.segment(SYN, 0).numbered(C.wrapping_sub(0x4000_0000), 0);
        talk.send(lab, "a forged SYN", &forged, &talk.unchanged(&forged, 1));
        for flags in [ACK, ACK | PSH, ACK] {
            let packet = talk.segment(flags, 10);
            talk.send(lab, "the connection goes on", &packet, &talk.unchanged(&packet, 0));
        }
        check_flow(lab, &talk, Table::Tcp, 0);
        assert_eq!(talk.counters(lab).established, 1, "{}", talk.name("established"));
    });
}

/// A client that uses its port again is served by the pool then in force.
#[test]
fn a_new_connection_on_an_old_tuple() {
    each(&[Protocol::Tcp], |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        for flags in [SYN, ACK, FIN | ACK] {
            let packet = talk.segment(flags, 0);
            talk.send(lab, "the old connection", &packet, &talk.unchanged(&packet, 0));
        }
        talk.put(lab, Mode::Dsr, backend(&talk, 1));
        let anew = C + 0x0100_0000;
        for (flags, numbers) in [(SYN, (anew, 0)), (ACK, (anew + 1, 1)), (ACK, (anew + 90, 1))] {
            let packet = talk.segment(flags, 0).numbered(numbers.0, numbers.1);
            talk.send(lab, "the new connection", &packet, &talk.unchanged(&packet, 1));
        }
        check_flow(lab, &talk, Table::Tcp, 1);
    });
}

#[test]
fn datagrams_stay_with_their_backend() {
    each(&[Protocol::Udp], |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        for length in [0, 1, 500, 1400] {
            let packet = talk.datagram(length);
            talk.send(lab, "a datagram", &packet, &talk.unchanged(&packet, 0));
            check_flow(lab, &talk, Table::Udp, 0);
            talk.put(lab, Mode::Dsr, backend(&talk, 1));
        }
        let packet = talk.datagram(33).without_checksum();
        talk.send(lab, "without a checksum", &packet, &talk.unchanged(&packet, 0));
        lab.maps.age(talk.tuple());
        let packet = talk.datagram(20);
        talk.send(lab, "after the timeout", &packet, &talk.unchanged(&packet, 1));
        check_flow(lab, &talk, Table::Udp, 1);
    });
}

#[test]
fn what_does_not_fit_is_answered() {
    each(&PROTOCOLS, |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        if talk.service.protocol == Protocol::Tcp {
            for flags in [SYN, ACK] {
                let packet = talk.segment(flags, 0);
                talk.send(lab, "the handshake", &packet, &talk.unchanged(&packet, 0));
            }
        }
        for length in [MTU, MTU + 1, MTU, MTU + 2, MTU + 5, MTU + 100, 2 * MTU + 1, MTU] {
            let packet = talk.sized(length);
            let expected =
                if length > MTU { talk.too_big(&packet, MTU) } else { talk.unchanged(&packet, 0) };
            talk.send(lab, &format!("{length} bytes"), &packet, &expected);
        }
    });
}

/// A route may be narrower than its interface.
#[test]
fn what_does_not_fit_the_route_is_answered() {
    each(&[Protocol::Udp], |lab, talk| {
        let port = talk.service.address.port();
        talk.put(lab, Mode::Dsr, SocketAddr::new(talk.path.family.narrow(), port));
        for length in [NARROW_MTU, NARROW_MTU + 1, NARROW_MTU, MTU, MTU + 1] {
            let packet = talk.sized(length);
            let expected = if length > NARROW_MTU {
                talk.too_big(&packet, NARROW_MTU)
            } else {
                talk.unchanged(&packet, 0)
            };
            talk.send(lab, &format!("{length} bytes"), &packet, &expected);
        }
    });
}

/// A backend at this address; what must become of the client's packets.
fn check_towards(lab: &mut Lab, talk: &Talk, ip: IpAddr, expected: &Expected) {
    talk.put(lab, Mode::Dsr, SocketAddr::new(ip, talk.service.address.port()));
    let packet = talk.first();
    for name in [format!("towards {ip}"), format!("towards {ip} again")] {
        talk.send(lab, &name, &packet, expected);
    }
}

#[test]
fn no_way_to_the_backend() {
    each(&PROTOCOLS, |lab, talk| {
        let family = talk.path.family;
        check_towards(lab, &talk, family.nowhere(), &Expected::dropped(Verdict::NoRoute));
        let other = talk.another(lab);
        check_towards(lab, &other, family.unreachable(), &Expected::dropped(Verdict::NoRoute));
        let other = talk.another(lab);
        // TC has the kernel ask for the neighbour; XDP cannot.
        let expected = match talk.path.hook {
            Hook::Xdp => Expected::dropped(Verdict::NoRoute),
            Hook::Tc | Hook::TcSummed | Hook::TcOut => other.unchanged(&other.first(), 0),
        };
        check_towards(lab, &other, family.silent(), &expected);
    });
}

#[test]
fn the_last_hop_ends_here() {
    each(&PROTOCOLS, |lab, talk| {
        talk.put(lab, Mode::Dsr, backend(&talk, 0));
        for ttl in [2, 1, 0, 255] {
            let packet = talk.first().ttl(ttl);
            let expected = if ttl > 1 {
                talk.unchanged(&packet, 0)
            } else {
                Expected::dropped(Verdict::TtlExceeded)
            };
            talk.send(lab, &format!("ttl {ttl}"), &packet, &expected);
        }
    });
}
