//! Echo requests to virtual addresses: answered where nobody else has the address, else left to the host.

use std::net::{IpAddr, SocketAddr};

use graylb_agent::config::AddressesConfig;
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::Packet,
    lab::{Lab, tcp, udp},
    run::{Action, Entry, Expected, Hook},
    topology::{EXT, EXT_MAC, Family, GATEWAY_MAC, LO},
};

const ON: AddressesConfig = AddressesConfig { echo: true };
const OFF: AddressesConfig = AddressesConfig { echo: false };

const fn request(family: Family) -> u8 {
    if matches!(family, Family::V4) { 8 } else { 128 }
}

const fn reply(family: Family) -> u8 {
    if matches!(family, Family::V4) { 0 } else { 129 }
}

fn icmp(from: IpAddr, to: IpAddr, kind: u8) -> Packet {
    let packet = Packet::icmp(SocketAddr::new(from, 0), SocketAddr::new(to, 0), kind);
    packet.hop(GATEWAY_MAC, EXT_MAC)
}

/// An echo request from a client to an address.
fn ping(family: Family, to: IpAddr) -> Packet {
    icmp(family.client(1), to, request(family))
}

/// Addresses that services are at: on no interface, on this host's own, behind no route that helps.
fn put(lab: &mut Lab) {
    for family in Family::ALL {
        let backend = SocketAddr::new(family.backend(0), 8080);
        for ip in [family.service(), family.local(0), family.nowhere(), family.unreachable()] {
            lab.put(tcp(SocketAddr::new(ip, 80)), "echo", &[(backend, 1)]);
        }
    }
}

fn each(mut check: impl FnMut(Family, Entry)) {
    for family in Family::ALL {
        for hook in Hook::IN {
            check(family, Entry { hook, interface: EXT });
        }
    }
}

/// The reply to `packet`, and how it leaves.
fn answered(entry: Entry, packet: &Packet, kind: u8) -> Expected {
    let reply = icmp(packet.destination.ip(), packet.source.ip(), kind)
        .payload(packet.payload.clone())
        .hop(EXT_MAC, GATEWAY_MAC)
        .ttl(64);
    let action = if entry.hook == Hook::Xdp { Action::Transmit } else { Action::Redirect };
    Expected::new(Verdict::EchoAnswered, action, reply.bytes())
}

#[test]
fn echo_requests_are_answered() {
    Lab::with(|lab| {
        put(lab);
        lab.plane.set_addresses(&ON).expect("change a setting");
        each(|family, entry| {
            for to in [family.service(), family.unreachable()] {
                for (length, ttl) in
                    [(0, 64), (1, 64), (56, 1), (57, 0), (57, 255), (1400, 63), (1401, 64)]
                {
                    let packet = ping(family, to).filled(length).ttl(ttl);
                    let name = format!("ping of {length} bytes, TTL {ttl}, to {to} ({entry:?})");
                    let expected = answered(entry, &packet, reply(family));
                    lab.check(&name, entry, &packet.bytes(), &expected);
                }
            }
        });
    });
}

/// A case of which the host is to decide.
type Case = (&'static str, fn(Family) -> Packet);

const LEFT_TO_THE_HOST: &[Case] = &[
    ("an address of this host", |family| ping(family, family.local(0))),
    ("an address without a route", |family| ping(family, family.nowhere())),
    ("an address that no service is at", |family| ping(family, family.backend(1))),
    ("an echo reply", |family| icmp(family.client(1), family.service(), reply(family))),
    ("another type", |family| icmp(family.client(1), family.service(), 13)),
    ("from the loopback address", |family| {
        icmp(family.loopback(), family.service(), request(family))
    }),
    ("from a group", |family| {
        let group = match family {
            Family::V4 => "224.0.0.1",
            Family::V6 => "ff02::1",
        };
        icmp(group.parse().expect("an address"), family.service(), request(family))
    }),
    ("from no address", |family| {
        let none = match family {
            Family::V4 => "0.0.0.0",
            Family::V6 => "::",
        };
        icmp(none.parse().expect("an address"), family.service(), request(family))
    }),
    ("to every station", |family| ping(family, family.service()).hop(GATEWAY_MAC, [0xff; 6])),
    ("the other family's request", |family| {
        icmp(family.client(1), family.service(), request(family) ^ 8 ^ 128)
    }),
];

#[test]
fn what_is_not_for_us_to_answer() {
    Lab::with(|lab| {
        put(lab);
        lab.plane.set_addresses(&ON).expect("change a setting");
        let passes = |name: &str, entry, packet: &Packet| {
            let bytes = packet.bytes();
            let expected = Expected::unchanged(Verdict::OtherProtocol, &bytes);
            lab.check(&format!("{name} ({entry:?})"), entry, &bytes, &expected);
        };
        each(|family, entry| {
            for (name, make) in LEFT_TO_THE_HOST {
                passes(name, entry, &make(family).filled(20));
            }
            let loopback = Entry { interface: LO, ..entry };
            passes("on loopback", loopback, &ping(family, family.service()));
            let out = Entry { hook: Hook::TcOut, ..entry };
            passes("on the way out", out, &ping(family, family.service()));
        });
        for hook in Hook::IN {
            let entry = Entry { hook, interface: EXT };
            let record_route = ping(Family::V4, Family::V4.service()).option_words(3);
            passes("with IPv4 options", entry, &record_route);
            let mut coded = ping(Family::V4, Family::V4.service()).bytes();
            coded[14 + 20 + 1] = 1;
            let expected = Expected::unchanged(Verdict::OtherProtocol, &coded);
            lab.check("with another code", entry, &coded, &expected);
        }
    });
}

#[test]
fn an_address_is_virtual_as_long_as_a_service_is_at_it() {
    Lab::with(|lab| {
        lab.plane.set_addresses(&ON).expect("change a setting");
        each_removed(lab, Family::V4);
        each_removed(lab, Family::V6);
    });
}

fn each_removed(lab: &mut Lab, family: Family) {
    let entry = Entry { hook: Hook::Tc, interface: EXT };
    let packet = ping(family, family.service());
    let endpoints = [81, 82].map(|port| SocketAddr::new(family.service(), port));
    let [first, second] = [tcp(endpoints[0]), udp(endpoints[1])];
    let backend = SocketAddr::new(family.backend(0), 8080);
    let left = Expected::unchanged(Verdict::OtherProtocol, &packet.bytes());
    let answer = answered(entry, &packet, reply(family));
    lab.check("no service yet", entry, &packet.bytes(), &left);
    lab.put(first, "echo", &[(backend, 1)]);
    lab.put(second, "echo", &[(backend, 1)]);
    lab.put(second, "echo", &[(backend, 2)]);
    lab.check("two services", entry, &packet.bytes(), &answer);
    lab.remove(first);
    lab.check("one of two services", entry, &packet.bytes(), &answer);
    lab.plane.set_addresses(&OFF).expect("change a setting");
    lab.check("switched off", entry, &packet.bytes(), &left);
    lab.plane.set_addresses(&ON).expect("change a setting");
    lab.remove(second);
    lab.check("no service any more", entry, &packet.bytes(), &left);
}
