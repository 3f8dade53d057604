//! Which backend a new flow gets: turns, weights, generations, and tables that do not hold together.

use std::net::SocketAddr;

use graylb_agent::model::spec::{Endpoint, Protocol};
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{Packet, SYN},
    flows::Table,
    lab::{Lab, tcp, udp},
    path::{Path, Place},
    run::{Entry, Expected, Hook},
    topology::Family,
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

const fn path(hook: Hook, family: Family) -> Path {
    Path { hook, place: Place::Routed, family }
}

const fn first_packet_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "a SYN",
        Protocol::Udp => "a datagram",
    }
}

/// The first packet of a flow.
fn opening(path: Path, protocol: Protocol, client: SocketAddr, service: SocketAddr) -> Packet {
    let packet = match protocol {
        Protocol::Tcp => Packet::tcp(client, service, SYN).numbered(7, 0),
        Protocol::Udp => Packet::udp(client, service).filled(4),
    };
    path.from_client(packet)
}

/// Opens a flow of a new client and checks that it goes to this backend.
fn open(lab: &mut Lab, path: Path, service: Endpoint, backend: u8) -> SocketAddr {
    let client = path.client(lab.number());
    let packet = opening(path, service.protocol, client, service.address);
    let name = format!("{} to {service} ({path})", first_packet_name(service.protocol));
    let expected = path.carried(&packet, client, backend);
    lab.check(&name, path.client_entry(), &packet.bytes(), &expected);
    client
}

/// Checks what becomes of a new client's first packet where it gets no backend.
fn refuse(lab: &mut Lab, path: Path, service: Endpoint, expected: impl Fn(&[u8]) -> Expected) {
    let client = path.client(lab.number());
    let packet = opening(path, service.protocol, client, service.address).bytes();
    lab.check(
        &format!("no backend from {service}"),
        path.client_entry(),
        &packet,
        &expected(&packet),
    );
}

fn each(lab: &mut Lab, test: impl Fn(&mut Lab, Family, Endpoint)) {
    for family in Family::ALL {
        for protocol in PROTOCOLS {
            let address = SocketAddr::new(family.service(), lab.port());
            test(lab, family, Endpoint { address, protocol });
        }
    }
}

fn pool(family: Family, weights: &[u16]) -> Vec<(SocketAddr, u16)> {
    let path = path(Hook::Xdp, family);
    (0..).zip(weights).map(|(number, &weight)| (path.backend(number), weight)).collect()
}

#[test]
fn equal_backends_take_strict_turns_whatever_the_hook() {
    Lab::with(|lab| {
        each(lab, |lab, family, service| {
            lab.put(service, "even", &pool(family, &[1, 1, 1]));
            for turn in 0..18_u8 {
                let hook = Hook::IN[usize::from(turn) % 3];
                open(lab, path(hook, family), service, turn % 3);
                // Turn and hook go apart after each round.
                if turn % 3 == 2 {
                    open(lab, path(Hook::Xdp, family), service, 0);
                    open(lab, path(Hook::Tc, family), service, 1);
                    open(lab, path(Hook::TcSummed, family), service, 2);
                }
            }
        });
    });
}

#[test]
fn weighted_backends_take_turns_without_bursts() {
    Lab::with(|lab| {
        each(lab, |lab, family, service| {
            lab.put(service, "weighted", &pool(family, &[5, 1, 1]));
            for backend in [0, 0, 1, 0, 2, 0, 0].repeat(3) {
                open(lab, path(Hook::Tc, family), service, backend);
            }
            let opened: Vec<u64> = lab.counters(service).values().map(|c| c.opened).collect();
            assert_eq!(opened, [15, 3, 3]);
        });
    });
}

#[test]
fn a_generation_begins_with_its_first_turn_and_marks_its_flows() {
    Lab::with(|lab| {
        each(lab, |lab, family, service| {
            let table =
                if service.protocol == Protocol::Tcp { Table::HalfOpen } else { Table::Udp };
            for generation in 1..6 {
                // A pool that stays as it is goes on with its turns: this is another one each time.
                let name = if generation % 2 == 0 { "even" } else { "odd" };
                let put = lab.put(service, name, &pool(family, &[1, 1, 1]));
                assert_eq!(put, generation);
                for backend in [0, 1] {
                    let client = open(lab, path(Hook::Tc, family), service, backend);
                    let flow = lab.maps.flow(table, (client, service.address)).expect("a flow");
                    assert_eq!(u64::from(flow.generation), generation);
                }
            }
        });
    });
}

#[test]
fn services_have_turns_of_their_own() {
    Lab::with(|lab| {
        for family in Family::ALL {
            let address = SocketAddr::new(family.service(), lab.port());
            // One address and port, two protocols: two services.
            let services =
                [tcp(address), udp(address), tcp(SocketAddr::new(family.service(), lab.port()))];
            for service in services {
                lab.put(service, "apart", &pool(family, &[1, 1]));
            }
            let path = path(Hook::Xdp, family);
            for (place, backend) in
                [(0, 0), (0, 1), (1, 0), (0, 0), (2, 0), (1, 1), (2, 1), (0, 1), (1, 0), (2, 0)]
            {
                open(lab, path, services[place], backend);
            }
        }
    });
}

#[test]
fn a_removed_service_takes_nobody_new() {
    Lab::with(|lab| {
        each(lab, |lab, family, service| {
            let path = path(Hook::Tc, family);
            lab.put(service, "gone soon", &pool(family, &[1]));
            let client = open(lab, path, service, 0);
            lab.remove(service);
            refuse(lab, path, service, |bytes| Expected::unchanged(Verdict::NotService, bytes));
            // The flow that there is goes on: the same first packet again is its own.
            let packet = opening(path, service.protocol, client, service.address);
            let expected = path.carried(&packet, client, 0);
            lab.check(
                "a flow of a service that is gone",
                path.client_entry(),
                &packet.bytes(),
                &expected,
            );
        });
    });
}

#[test]
fn a_table_that_does_not_hold_together_drops() {
    /// Beyond every backend in use, but in the array.
    const UNUSED: u32 = 9999;
    /// Beyond the array.
    const OUTSIDE: u32 = u32::MAX;
    for family in Family::ALL {
        Lab::with(|lab| {
            // The first backend and the first slot of a new data plane, and the second.
            let others = if family == Family::V4 { Family::V6 } else { Family::V4 };
            let other = tcp(SocketAddr::new(others.service(), lab.port()));
            lab.put(other, "of the other family", &pool(others, &[1]));
            for protocol in PROTOCOLS {
                let address = SocketAddr::new(family.service(), lab.port());
                let service = Endpoint { address, protocol };
                lab.put(service, "damaged", &pool(family, &[1]));
            }
            for (slot, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp)] {
                let address = SocketAddr::new(family.service(), 10_001 + slot as u16);
                for backend in [0, UNUSED, OUTSIDE] {
                    lab.maps.damage_slot(slot, backend);
                    for hook in Hook::IN {
                        let service = Endpoint { address, protocol };
                        refuse(lab, path(hook, family), service, |_| {
                            Expected::dropped(Verdict::BadTable)
                        });
                    }
                }
                let service = Endpoint { address, protocol };
                assert!(lab.counters(service).values().all(|counters| counters.opened == 0));
            }
        });
    }
}

/// Packets that never belong to a service, whatever its number.
#[test]
fn near_a_service_is_not_the_service() {
    Lab::with(|lab| {
        each(lab, |lab, family, service| {
            lab.put(service, "near", &pool(family, &[1]));
            let address = service.address;
            let other_protocol = match service.protocol {
                Protocol::Tcp => Protocol::Udp,
                Protocol::Udp => Protocol::Tcp,
            };
            let elsewhere = SocketAddr::new(family.arm(0), address.port());
            let next_door = SocketAddr::new(address.ip(), 1);
            let swapped = SocketAddr::new(address.ip(), address.port().swap_bytes());
            for hook in Hook::IN {
                let path = path(hook, family);
                let entry: Entry = path.client_entry();
                for (name, protocol, to) in [
                    ("another protocol", other_protocol, address),
                    ("another address", service.protocol, elsewhere),
                    ("another port", service.protocol, next_door),
                    ("the port in the other byte order", service.protocol, swapped),
                ] {
                    let client = path.client(lab.number());
                    let packet = opening(path, protocol, client, to).bytes();
                    let expected = Expected::unchanged(Verdict::NotService, &packet);
                    lab.check(&format!("{name} ({path})"), entry, &packet, &expected);
                }
                // From the service, not to it.
                let client = path.client(lab.number());
                let packet = opening(path, service.protocol, address, client).bytes();
                let expected = Expected::unchanged(Verdict::NotService, &packet);
                lab.check(&format!("the other way round ({path})"), entry, &packet, &expected);
            }
        });
    });
}
