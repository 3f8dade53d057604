//! UDP flows, packet by packet: pinning, replies, expiry, and the checksum's special values.

use std::time::Duration;

use graylb_agent::model::spec::Protocol::Udp;
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::Packet,
    case::{
        Case,
        Count::Opened,
        Leaves::{Nothing, Pinned},
        Step, age, backend, client, run_all, switch,
    },
    flows::Table,
    lab::{Lab, udp},
    path::Path,
    run::Hook,
};

const FIRST: Step = client(0).data(20).counts(&[(0, Opened)]).leaves(Pinned(0));

const CASES: &[Case] = &[
    Case {
        name: "a client's datagrams stay with one backend, whose replies come from the service",
        protocol: Udp,
        pool: &[0, 1],
        steps: &[
            FIRST,
            client(0).data(1),
            backend(0, 0).data(512),
            client(0).data(1400),
            backend(0, 0).data(3),
            client(0).leaves(Pinned(0)),
        ],
    },
    Case {
        name: "every length, odd or even, from nothing on",
        protocol: Udp,
        pool: &[0],
        steps: &[
            client(0).counts(&[(0, Opened)]),
            backend(0, 0),
            client(0).data(1),
            backend(0, 0).data(1),
            client(0).data(2),
            client(0).data(3),
            backend(0, 0).data(4),
            backend(0, 0).data(5),
            client(0).data(1451),
            client(0).data(1452),
        ],
    },
    Case {
        name: "no checksum stays no checksum",
        protocol: Udp,
        pool: &[0],
        steps: &[
            client(0).data(9).without_checksum().counts(&[(0, Opened)]).leaves(Pinned(0)),
            backend(0, 0).data(10).without_checksum(),
            client(0).without_checksum(),
        ],
    },
    Case {
        name: "a switch lets the flow be",
        protocol: Udp,
        pool: &[0],
        steps: &[FIRST, switch(&[1]), client(0).data(5).leaves(Pinned(0)), backend(0, 0)],
    },
    Case {
        name: "idle both ways: chosen anew, and the old backend's late reply still finds the client",
        protocol: Udp,
        pool: &[0],
        steps: &[
            FIRST,
            backend(0, 0).data(4),
            switch(&[1]),
            age(true, Some(0)),
            client(0).to(1).data(6).counts(&[(1, Opened)]).leaves(Pinned(1)),
            backend(1, 0).data(7),
            backend(0, 0).data(8),
            client(0).to(1),
        ],
    },
    Case {
        name: "idle both ways, the same pool: its turn, the same backend or another",
        protocol: Udp,
        pool: &[0, 1],
        steps: &[
            FIRST,
            age(true, Some(0)),
            client(0).to(1).counts(&[(1, Opened)]).leaves(Pinned(1)),
            age(true, Some(1)),
            client(0).to(0).counts(&[(0, Opened)]).leaves(Pinned(0)),
            backend(0, 0).data(2),
        ],
    },
    Case {
        name: "idle one way only is not idle",
        protocol: Udp,
        pool: &[0, 1],
        steps: &[
            FIRST,
            age(true, None),
            client(0).leaves(Pinned(0)),
            age(false, Some(0)),
            client(0).leaves(Pinned(0)),
            backend(0, 0),
        ],
    },
    Case {
        name: "a reply keeps an idle flow alive",
        protocol: Udp,
        pool: &[0, 1],
        steps: &[FIRST, age(true, Some(0)), backend(0, 0).data(1), client(0).leaves(Pinned(0))],
    },
    Case {
        name: "a backend that was not asked is nobody's reply",
        protocol: Udp,
        pool: &[0],
        steps: &[FIRST, backend(1, 0).data(2).is_foreign(), client(0).leaves(Pinned(0))],
    },
    Case {
        name: "no backend in force",
        protocol: Udp,
        pool: &[],
        steps: &[client(0).data(2).drops(Verdict::NoBackend).leaves(Nothing)],
    },
    Case {
        name: "no backend in force any more: flows go on until they are idle",
        protocol: Udp,
        pool: &[0],
        steps: &[
            FIRST,
            switch(&[]),
            client(0).leaves(Pinned(0)),
            age(true, Some(0)),
            client(0).drops(Verdict::NoBackend),
        ],
    },
];

#[test]
fn flows() {
    run_all(CASES, &Path::all());
}

/// A sum of zero is sent as 0xffff (RFC 768), also where it becomes zero by the rewriting.
#[test]
fn a_checksum_of_zero_is_sent_as_all_ones() {
    Lab::with(|lab| {
        for path in Path::all() {
            let service = udp(path.service(lab.port()));
            let client = path.client(lab.number());
            lab.put(service, "zero", &[(path.backend(0), 1)]);
            let source = path.source(client);
            let to_client = (path.backend(0), source);
            for (from, to, out_from, out_to, from_client) in [
                (client, service.address, source, path.backend(0), true),
                (to_client.0, to_client.1, service.address, client, false),
            ] {
                let payload = payload_summing_to_zero(out_from, out_to);
                let packet = Packet::udp(from, to).payload(payload);
                let after = packet.clone().readdressed(out_from, out_to).bytes();
                let check = if client.is_ipv4() { 14 + 20 + 6 } else { 14 + 40 + 6 };
                assert_eq!(after[check..check + 2], [0xff, 0xff], "{path}: the payload is made so");
                let name = format!("a sum of zero after the rewriting ({path})");
                let (entry, packet, expected) = if from_client {
                    let packet = path.from_client(packet);
                    (path.client_entry(), packet.clone(), path.carried(&packet, source, 0))
                } else {
                    let packet = path.from_backend(packet, 0);
                    let expected = path.returned(&packet, service.address, client);
                    (path.backend_entry(), packet, expected)
                };
                lab.check(&name, entry, &packet.bytes(), &expected);
            }
        }
    });
}

/// Two bytes of payload by which the datagram's checksum comes out as zero: the checksum that it has
/// with two zeros.
fn payload_summing_to_zero(from: std::net::SocketAddr, to: std::net::SocketAddr) -> Vec<u8> {
    let bytes = Packet::udp(from, to).payload([0, 0]).bytes();
    bytes[bytes.len() - 4..bytes.len() - 2].to_vec()
}

/// The timeout is a setting of the running programs.
#[test]
fn the_timeout_can_be_changed() {
    Lab::with(|lab| {
        for hook in Hook::IN {
            let path = Path { hook, ..Path::all()[0] };
            let service = udp(path.service(lab.port()));
            let client = path.client(lab.number());
            lab.put(service, "a", &[(path.backend(0), 1), (path.backend(1), 1)]);
            let packet = path.from_client(Packet::udp(client, service.address));
            let check = |lab: &Lab, name: &str, number| {
                let expected = path.carried(&packet, client, number);
                lab.check(name, path.client_entry(), &packet.bytes(), &expected);
            };
            check(lab, "the first datagram", 0);
            lab.maps.age((client, service.address));
            lab.maps.age((path.backend(0), client));
            lab.set_udp_timeout(Duration::from_secs(1 << 33));
            check(lab, "idle for less than the longest timeout", 0);
            lab.maps.age((client, service.address));
            lab.maps.age((path.backend(0), client));
            lab.set_udp_timeout(Duration::from_nanos(1));
            check(lab, "idle for longer than the shortest timeout", 1);
            assert!(lab.maps.flow(Table::Udp, (client, service.address)).is_some());
            assert_eq!(lab.active(service), 1, "the flow that was replaced is over");
        }
    });
}
