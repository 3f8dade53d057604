//! Where a rewritten packet goes: next hops, TTL, MTU, and what is left to the host's stack.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{Packet, SYN},
    lab::{Lab, tcp},
    path::{Path, Place},
    run::{Action, Expected, Hook},
    topology::{INT_MAC, MTU, backend_mac},
};

/// A client's SYN to a new service with one backend.
fn syn(lab: &mut Lab, path: Path, backend: SocketAddr) -> (Packet, Packet) {
    let service = tcp(path.service(lab.port()));
    let client = path.client(lab.number());
    lab.put(service, "route", &[(backend, 1)]);
    let packet = path.from_client(Packet::tcp(client, service.address, SYN).numbered(1, 0));
    let rewritten = packet.clone().readdressed(path.source(client), backend);
    (packet, rewritten)
}

fn check(lab: &Lab, name: &str, path: Path, packet: &Packet, expected: &Expected) {
    lab.check(&format!("{name} ({path})"), path.client_entry(), &packet.bytes(), expected);
}

/// A backend at this address, on every path through a router.
fn each_towards(
    lab: &mut Lab,
    address: fn(Path) -> IpAddr,
    test: impl Fn(&mut Lab, Path, SocketAddr),
) {
    for path in Path::to(Place::Routed) {
        test(lab, path, SocketAddr::new(address(path), 8080));
    }
}

fn handed_on(verdict: Verdict, packet: &Packet) -> Expected {
    Expected::new(verdict, Action::Pass, packet.bytes())
}

#[test]
fn a_hop_costs_one_and_the_last_one_ends_here() {
    Lab::with(|lab| {
        let paths = Path::to(Place::Routed).into_iter().chain(Path::to(Place::OneArmed));
        for path in paths {
            for ttl in [0, 1, 2, 3, 64, 128, 255] {
                let (packet, _) = syn(lab, path, path.backend(0));
                let packet = packet.ttl(ttl);
                let expected = match ttl {
                    0 | 1 => Expected::dropped(Verdict::TtlExceeded),
                    _ => path.carried(&packet, packet.source, 0),
                };
                check(lab, &format!("ttl {ttl}"), path, &packet, &expected);
                let service = tcp(packet.destination);
                assert_eq!(lab.drops(service).ttl_exceeded, u64::from(ttl < 2), "ttl {ttl}");
            }
        }
    });
}

#[test]
fn no_hop_costs_nothing() {
    Lab::with(|lab| {
        for path in Path::to(Place::Local).into_iter().chain(Path::to(Place::Loopback)) {
            for ttl in [0, 1, 2, 255] {
                let (packet, rewritten) = syn(lab, path, path.backend(0));
                let (packet, rewritten) = (packet.ttl(ttl), rewritten.ttl(ttl));
                let expected = handed_on(Verdict::Delivered, &rewritten);
                check(lab, &format!("ttl {ttl}"), path, &packet, &expected);
            }
        }
    });
}

/// TC has the kernel resolve the neighbour; XDP cannot, and leaves the rewritten packet to the stack,
/// which then takes the hop off.
#[test]
fn a_neighbour_not_known_yet() {
    Lab::with(|lab| {
        each_towards(
            lab,
            |path| path.family.silent(),
            |lab, path, backend| {
                for ttl in [1, 2, 64] {
                    let (packet, rewritten) = syn(lab, path, backend);
                    let (packet, rewritten) = (packet.ttl(ttl), rewritten.ttl(ttl));
                    let expected = if path.hook == Hook::Xdp {
                        handed_on(Verdict::HandedToStack, &rewritten)
                    } else if ttl > 1 {
                        let bytes = rewritten.ttl(ttl - 1).bytes();
                        Expected::new(Verdict::Redirected, Action::Redirect, bytes)
                    } else {
                        Expected::dropped(Verdict::TtlExceeded)
                    };
                    check(lab, &format!("unresolved, ttl {ttl}"), path, &packet, &expected);
                }
            },
        );
    });
}

/// The kernel tells "for this host" and "no route" alike (BPF_FIB_LKUP_RET_NOT_FWDED): both are handed up.
#[test]
fn no_route_is_left_to_the_stack() {
    Lab::with(|lab| {
        each_towards(
            lab,
            |path| path.family.nowhere(),
            |lab, path, backend| {
                let (packet, rewritten) = syn(lab, path, backend);
                check(lab, "no route", path, &packet, &handed_on(Verdict::Delivered, &rewritten));
            },
        );
        each_towards(
            lab,
            |path| path.family.unreachable(),
            |lab, path, backend| {
                let (packet, rewritten) = syn(lab, path, backend);
                let expected = handed_on(Verdict::HandedToStack, &rewritten);
                check(lab, "a route that refuses", path, &packet, &expected);
            },
        );
    });
}

#[test]
fn a_host_that_does_not_forward_is_handed_the_packet() {
    Lab::with(|lab| {
        for family in ["ipv4", "ipv6"] {
            fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "0")
                .expect("switch forwarding off");
        }
        for path in Path::to(Place::Routed) {
            let (packet, rewritten) = syn(lab, path, path.backend(0));
            let expected = handed_on(Verdict::Delivered, &rewritten);
            check(lab, "forwarding off", path, &packet, &expected);
        }
    });
}

/// What does not fit the next link is left to the stack, which fragments or answers "too big".
#[test]
fn a_packet_over_the_mtu() {
    Lab::with(|lab| {
        for path in Path::to(Place::Routed) {
            let headers =
                if path.family == graylb_tests::packet::topology::Family::V4 { 40 } else { 60 };
            for (over, fits) in [(0, true), (1, false), (500, false)] {
                let (packet, rewritten) = syn(lab, path, path.backend(0));
                let length = MTU - headers + over;
                let (packet, rewritten) = (packet.filled(length), rewritten.filled(length));
                let expected = if fits {
                    path.redirected(&rewritten, INT_MAC, backend_mac(0))
                } else {
                    handed_on(Verdict::HandedToStack, &rewritten)
                };
                check(lab, &format!("{over} over the MTU"), path, &packet, &expected);
            }
        }
    });
}

/// The next hop is looked up for each packet: backends of one pool have different neighbours.
#[test]
fn every_backend_has_its_own_next_hop() {
    Lab::with(|lab| {
        let paths = Path::to(Place::Routed).into_iter().chain(Path::to(Place::OneArmed));
        for path in paths {
            let service = tcp(path.service(lab.port()));
            let pool = [0, 1, 2].map(|number| (path.backend(number), 1));
            lab.put(service, "neighbours", &pool);
            for number in [0, 1, 2, 0] {
                let client = path.client(lab.number());
                let packet = path.from_client(Packet::tcp(client, service.address, SYN));
                let expected = path.carried(&packet, client, number);
                check(lab, "the next backend", path, &packet, &expected);
            }
        }
    });
}
