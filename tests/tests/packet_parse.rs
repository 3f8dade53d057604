//! Packets that are not for graylb, or that it cannot read: handed on byte by byte as they came, each
//! under its own verdict. And the odd ones that it can read.

use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{Packet, SYN},
    lab::{Lab, tcp, udp},
    path::{Path, Place},
    run::{Entry, Expected, Hook},
    topology::{EXT, EXT_MAC, Family, GATEWAY_MAC},
};

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
const AUTHENTICATION: u8 = 51;

/// Port of the services that all packets here are addressed to.
const PORT: u16 = 80;

/// A packet to the service, of this kind.
type Make = fn(Family) -> Vec<u8>;

fn client(family: Family) -> std::net::SocketAddr {
    std::net::SocketAddr::new(family.client(1), 40_000)
}

fn service(family: Family) -> std::net::SocketAddr {
    std::net::SocketAddr::new(family.service(), PORT)
}

/// A SYN to the service.
fn syn(family: Family) -> Packet {
    Packet::tcp(client(family), service(family), SYN).hop(GATEWAY_MAC, EXT_MAC)
}

/// A datagram to the service.
fn datagram(family: Family) -> Packet {
    Packet::udp(client(family), service(family)).hop(GATEWAY_MAC, EXT_MAC).filled(13)
}

fn other(family: Family, protocol: u8) -> Packet {
    let packet = Packet::other(client(family), service(family), protocol);
    // What would be ports, if it were read as TCP or UDP, are the service's.
    packet.hop(GATEWAY_MAC, EXT_MAC).payload([[0x9c, 0x40, 0, 80, 0, 28, 0, 0]; 4].concat())
}

fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&EXT_MAC[..], &GATEWAY_MAC, &ether_type.to_be_bytes(), payload].concat()
}

/// The frame with the byte at `place` changed.
fn patched(mut bytes: Vec<u8>, place: usize, change: fn(u8) -> u8) -> Vec<u8> {
    bytes[place] = change(bytes[place]);
    bytes
}

/// First byte of the network header.
const NETWORK: usize = 14;

const NOT_IP: &[(&str, Make)] = &[
    ("ARP", |_| ethernet(0x0806, &[0; 28])),
    ("ARP, padded", |_| ethernet(0x0806, &[0; 46])),
    ("LLDP", |_| ethernet(0x88cc, &[2, 7, 4, 2, 0, 0, 0, 1, 0])),
    ("IEEE 802.3 with a length", |_| ethernet(38, &[0x42; 38])),
    ("MPLS", |family| ethernet(0x8847, &syn(family).bytes()[NETWORK..])),
    ("PPPoE session", |family| ethernet(0x8864, &syn(family).bytes()[NETWORK..])),
    ("EtherType in the other byte order", |family| {
        ethernet(0x0008, &syn(family).bytes()[NETWORK..])
    }),
    ("nothing behind the Ethernet header", |_| ethernet(0x0806, &[])),
];

const TAGGED: &[(&str, Make)] = &[
    ("VLAN", |family| syn(family).tagged(VLAN, 7).bytes()),
    ("VLAN, UDP", |family| datagram(family).tagged(VLAN, 4094).bytes()),
    ("priority tag", |family| syn(family).tagged(VLAN, 0xe000).bytes()),
    ("QinQ", |family| syn(family).tagged(VLAN, 7).tagged(QINQ, 8).bytes()),
    ("QinQ with an outer tag alone", |family| syn(family).tagged(QINQ, 8).bytes()),
    ("VLAN in VLAN", |family| syn(family).tagged(VLAN, 7).tagged(VLAN, 8).bytes()),
    ("VLAN with ARP", |_| ethernet(VLAN, &[[0, 7, 8, 6], [0; 4]].concat())),
];

const OTHER_PROTOCOLS: &[(&str, Make)] = &[
    ("ICMP echo request", |family| {
        let kind = if family == Family::V4 { 8 } else { 128 };
        Packet::icmp(client(family), service(family), kind).hop(GATEWAY_MAC, EXT_MAC).bytes()
    }),
    ("ICMP unreachable", |family| {
        let kind = if family == Family::V4 { 3 } else { 1 };
        Packet::icmp(client(family), service(family), kind)
            .hop(GATEWAY_MAC, EXT_MAC)
            .payload(&syn(family).bytes()[NETWORK..])
            .bytes()
    }),
    ("IGMP", |family| other(family, 2).bytes()),
    ("IPv4 in IP", |family| other(family, 4).bytes()),
    ("IPv6 in IP", |family| other(family, 41).bytes()),
    ("DCCP", |family| other(family, 33).bytes()),
    ("GRE", |family| other(family, 47).bytes()),
    ("ESP", |family| other(family, 50).bytes()),
    ("no next header", |family| other(family, 59).bytes()),
    ("SCTP", |family| other(family, 132).bytes()),
    ("UDP-Lite", |family| other(family, 136).bytes()),
    ("the last protocol", |family| other(family, 255).bytes()),
    ("another protocol without a byte of it", |family| other(family, 132).payload([]).bytes()),
];

const FRAGMENTS: &[(&str, Make)] = &[
    ("middle fragment", |family| datagram(family).filled(64).fragment(3, true).bytes()),
    ("last fragment", |family| syn(family).filled(11).fragment(185, false).bytes()),
    ("last fragment of one byte", |family| datagram(family).filled(1).fragment(1, false).bytes()),
    ("fragment at the greatest offset", |family| {
        datagram(family).filled(7).fragment(0x1fff, false).bytes()
    }),
    ("fragment of another protocol", |family| other(family, 132).fragment(4, true).bytes()),
];

const MALFORMED_V4: &[(&str, Make)] = &[
    ("version 6", |_| patched(syn(Family::V4).bytes(), NETWORK, |byte| byte & 15 | 0x60)),
    ("version 5", |_| patched(syn(Family::V4).bytes(), NETWORK, |byte| byte & 15 | 0x50)),
    ("version 0", |_| patched(syn(Family::V4).bytes(), NETWORK, |byte| byte & 15)),
    ("version 15", |_| patched(syn(Family::V4).bytes(), NETWORK, |byte| byte | 0xf0)),
    ("header of 0 words", |_| patched(syn(Family::V4).bytes(), NETWORK, |_| 0x40)),
    ("header of 1 word", |_| patched(syn(Family::V4).bytes(), NETWORK, |_| 0x41)),
    ("header of 2 words", |_| patched(syn(Family::V4).bytes(), NETWORK, |_| 0x42)),
    ("header of 3 words", |_| patched(syn(Family::V4).bytes(), NETWORK, |_| 0x43)),
    ("header of 4 words", |_| patched(datagram(Family::V4).bytes(), NETWORK, |_| 0x44)),
    ("total length 0", |_| patched(syn(Family::V4).bytes(), NETWORK + 3, |_| 0)),
    ("total length 19", |_| patched(datagram(Family::V4).bytes(), NETWORK + 3, |_| 19)),
    ("total length one short of the options", |_| {
        patched(syn(Family::V4).option_words(10).bytes(), NETWORK + 3, |_| 59)
    }),
    ("TCP header of 0 words", |_| patched(syn(Family::V4).bytes(), NETWORK + 32, |_| 0)),
    ("TCP header of 1 word", |_| patched(syn(Family::V4).bytes(), NETWORK + 32, |_| 0x1f)),
    ("TCP header of 4 words", |_| patched(syn(Family::V4).bytes(), NETWORK + 32, |_| 0x4f)),
    ("an IPv6 packet", |_| ethernet(0x0800, &syn(Family::V6).bytes()[NETWORK..])),
];

const MALFORMED_V6: &[(&str, Make)] = &[
    ("version 4", |_| patched(syn(Family::V6).bytes(), NETWORK, |byte| byte & 15 | 0x40)),
    ("version 0", |_| patched(syn(Family::V6).bytes(), NETWORK, |byte| byte & 15)),
    ("version 7", |_| patched(datagram(Family::V6).bytes(), NETWORK, |byte| byte | 0x10)),
    ("TCP header of 0 words", |_| patched(syn(Family::V6).bytes(), NETWORK + 52, |_| 0)),
    ("TCP header of 2 words", |_| patched(syn(Family::V6).bytes(), NETWORK + 52, |_| 0x2f)),
    ("TCP header of 4 words", |_| patched(syn(Family::V6).bytes(), NETWORK + 52, |_| 0x4f)),
    ("an IPv4 packet", |_| ethernet(0x86dd, &syn(Family::V4).filled(20).bytes()[NETWORK..])),
];

const EXTENSIONS: &[(&str, Make)] = &[
    ("hop-by-hop options", |family| syn(family).extended(HOP_BY_HOP).bytes()),
    ("routing header", |family| syn(family).extended(ROUTING).bytes()),
    ("destination options", |family| datagram(family).extended(DESTINATION_OPTIONS).bytes()),
    ("two extension headers", |family| {
        syn(family).extended(HOP_BY_HOP).extended(DESTINATION_OPTIONS).bytes()
    }),
    ("hop-by-hop options before a fragment header", |family| {
        datagram(family).extended(HOP_BY_HOP).fragment(0, true).bytes()
    }),
    ("hop-by-hop options before ICMPv6 (MLD)", |family| {
        Packet::icmp(client(family), service(family), 143).extended(HOP_BY_HOP).bytes()
    }),
];

const V6_ONLY: &[(&str, Verdict, Make)] = &[
    ("authentication header", Verdict::OtherProtocol, |family| {
        syn(family).extended(AUTHENTICATION).bytes()
    }),
    ("mobility header", Verdict::OtherProtocol, |family| other(family, 135).bytes()),
    ("fragment header before destination options", Verdict::Fragment, |family| {
        let mut bytes = syn(family).extended(DESTINATION_OPTIONS).bytes();
        bytes[NETWORK + 6] = 44;
        bytes
    }),
];

/// Services of both protocols and families, at one port.
fn prepared(test: impl FnOnce(&mut Lab) + Send) {
    Lab::with(|lab| {
        for family in Family::ALL {
            let path = Path { hook: Hook::Xdp, place: Place::Routed, family };
            for endpoint in [tcp(service(family)), udp(service(family))] {
                lab.put(endpoint, "parse", &[(path.backend(0), 1)]);
            }
        }
        test(lab);
    });
}

fn passes(lab: &Lab, name: &str, verdict: Verdict, packet: &[u8]) {
    for hook in [Hook::Xdp, Hook::Tc, Hook::TcSummed, Hook::TcOut] {
        let name = format!("{name} ({hook:?})");
        let entry = Entry { hook, interface: EXT };
        lab.check(&name, entry, packet, &Expected::unchanged(verdict, packet));
    }
}

#[test]
fn not_ours_or_not_readable_is_handed_on() {
    prepared(|lab| {
        for family in Family::ALL {
            for (verdict, cases) in [
                (Verdict::NotIp, NOT_IP),
                (Verdict::Vlan, TAGGED),
                (Verdict::OtherProtocol, OTHER_PROTOCOLS),
                (Verdict::Fragment, FRAGMENTS),
            ] {
                for (name, make) in cases {
                    passes(lab, &format!("{name}, {family:?}"), verdict, &make(family));
                }
            }
        }
        for (family, verdict, cases) in [
            (Family::V4, Verdict::Malformed, MALFORMED_V4),
            (Family::V6, Verdict::Malformed, MALFORMED_V6),
            (Family::V6, Verdict::Ipv6Extension, EXTENSIONS),
        ] {
            for (name, make) in cases {
                passes(lab, &format!("{name}, {family:?}"), verdict, &make(family));
            }
        }
        for (name, verdict, make) in V6_ONLY {
            passes(lab, name, *verdict, &make(Family::V6));
        }
        for family in Family::ALL {
            for endpoint in [tcp(service(family)), udp(service(family))] {
                let counters = lab.counters(endpoint);
                assert!(counters.values().all(|counters| counters.opened == 0), "{counters:?}");
            }
        }
    });
}

#[test]
fn every_length_of_ipv4_and_tcp_options() {
    prepared(|lab| {
        for path in Path::to(Place::Routed) {
            let words = if path.family == Family::V4 { 0..=10 } else { 0..=0 };
            for ip_words in words {
                for tcp_words in 0..=10 {
                    let client = path.client(lab.number());
                    let options: Vec<u8> = (0..tcp_words * 4).map(|n| n as u8 ^ 0x5a).collect();
                    let packet = Packet::tcp(client, service(path.family), SYN)
                        .tcp_options(&options)
                        .option_words(ip_words)
                        .hop(GATEWAY_MAC, EXT_MAC);
                    let name = format!("{ip_words} and {tcp_words} words of options ({path})");
                    let expected = path.carried(&packet, client, 0);
                    lab.check(&name, path.client_entry(), &packet.bytes(), &expected);
                }
                let client = path.client(lab.number());
                let packet = Packet::udp(client, service(path.family))
                    .filled(ip_words)
                    .option_words(ip_words)
                    .hop(GATEWAY_MAC, EXT_MAC);
                let expected = path.carried(&packet, client, 0);
                let name = format!("{ip_words} words of options, UDP ({path})");
                lab.check(&name, path.client_entry(), &packet.bytes(), &expected);
            }
        }
    });
}

/// Padding behind a short packet (Ethernet's least length) is neither read nor changed.
#[test]
fn padding_stays() {
    prepared(|lab| {
        for path in Path::to(Place::Routed) {
            let client = path.client(lab.number());
            let packet = Packet::udp(client, service(path.family)).hop(GATEWAY_MAC, EXT_MAC);
            let padding = [0xa5; 18];
            let mut expected = path.carried(&packet, client, 0);
            expected.bytes.as_mut().expect("a packet").extend(padding);
            let packet = [packet.bytes(), padding.to_vec()].concat();
            lab.check("a padded datagram", path.client_entry(), &packet, &expected);
        }
    });
}
