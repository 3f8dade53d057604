//! The source that a backend sees: the client's own, except on loopback and where that tuple is taken.

use std::net::SocketAddr;

use graylb_agent::model::spec::{Endpoint, Protocol};
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{ACK, Packet, RST, SYN},
    flows::{Table, Tuple},
    lab::{Lab, tcp},
    path::{Path, Place},
    run::{Action, Expected},
    topology::Family,
};

/// Ports that graylb gives where a client cannot keep its own: above the privileged, below the range of
/// Linux's clients.
const GIVEN: std::ops::Range<u16> = 1024..32768;
const ISN: u32 = 99;
const SERVER_ISN: u32 = 5;
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn table(protocol: Protocol) -> Table {
    if protocol == Protocol::Tcp { Table::HalfOpen } else { Table::Udp }
}

fn first(protocol: Protocol, (source, destination): Tuple) -> Packet {
    match protocol {
        Protocol::Tcp => Packet::tcp(source, destination, SYN).numbered(ISN, 0),
        Protocol::Udp => Packet::udp(source, destination).filled(3),
    }
}

fn answer(protocol: Protocol, (source, destination): Tuple) -> Packet {
    match protocol {
        Protocol::Tcp => Packet::tcp(source, destination, SYN | ACK).numbered(SERVER_ISN, ISN + 1),
        Protocol::Udp => Packet::udp(source, destination).filled(4),
    }
}

/// A new service on this path, with one backend.
fn service(lab: &mut Lab, path: Path, protocol: Protocol) -> Endpoint {
    let service = Endpoint { address: path.service(lab.port()), protocol };
    lab.put(service, "shared", &[(path.backend(0), 1)]);
    service
}

/// Sends the first packet of a flow that must be seen from `source`, and the answer.
fn open_seen_from(
    lab: &Lab,
    path: Path,
    service: Endpoint,
    client: SocketAddr,
    source: SocketAddr,
) {
    let packet = path.from_client(first(service.protocol, (client, service.address)));
    let name = format!("{client} to {service} ({path})");
    let expected = path.carried(&packet, source, 0);
    lab.check(&name, path.client_entry(), &packet.bytes(), &expected);
    answered(lab, path, service, client, source);
}

/// Sends the first packet of a flow that must be seen from a port given to it, and the answer.
fn open_given(lab: &Lab, path: Path, service: Endpoint, client: SocketAddr) -> SocketAddr {
    let packet = path.from_client(first(service.protocol, (client, service.address)));
    let name = format!("{client} to {service}, its port taken ({path})");
    let before = lab.verdicts();
    let outcome = lab.programs().run(path.client_entry(), &packet.bytes()).expect(&name);
    // The port is drawn at random: the flow says which it is, the packet must agree.
    let flow = lab.maps.flow(table(service.protocol), (client, service.address)).expect(&name);
    let source = flow.rewrite.0;
    assert_eq!(source.ip(), path.source_ip(client), "{name}");
    assert!(GIVEN.contains(&source.port()), "{name}: seen from {source}");
    let expected = path.carried(&packet, source, 0);
    lab.compare(&name, &before, &packet.bytes(), &outcome, &expected);
    answered(lab, path, service, client, source);
    source
}

fn answered(lab: &Lab, path: Path, service: Endpoint, client: SocketAddr, source: SocketAddr) {
    let packet = path.from_backend(answer(service.protocol, (path.backend(0), source)), 0);
    let name = format!("the answer to {client} from {service} ({path})");
    let expected = path.returned(&packet, service.address, client);
    lab.check(&name, path.backend_entry(), &packet.bytes(), &expected);
}

/// One more packet of a TCP connection, which a backend sees from `source`.
fn segment(
    lab: &Lab,
    path: Path,
    service: Endpoint,
    client: SocketAddr,
    source: SocketAddr,
    flags: u8,
) {
    let packet = Packet::tcp(client, service.address, flags).numbered(ISN + 1, SERVER_ISN + 1);
    let packet = path.from_client(packet);
    let expected = path.carried(&packet, source, 0);
    lab.check("a segment", path.client_entry(), &packet.bytes(), &expected);
}

#[test]
fn one_port_to_two_services_with_one_backend() {
    Lab::with(|lab| {
        for path in Path::all() {
            for protocol in PROTOCOLS {
                let services = [0; 4].map(|_| service(lab, path, protocol));
                let client = path.client(lab.number());
                let own = path.source(client);
                open_seen_from(lab, path, services[0], client, own);
                let mut sources = vec![own];
                for service in &services[1..] {
                    sources.push(open_given(lab, path, *service, client));
                }
                sources.sort_unstable();
                sources.dedup();
                assert_eq!(sources.len(), services.len(), "every flow has a source of its own");
                answered(lab, path, services[0], client, own);
            }
        }
    });
}

#[test]
fn the_port_of_an_established_connection_is_taken_until_it_ends() {
    Lab::with(|lab| {
        for path in Path::all() {
            let [one, two, three] = [0; 3].map(|_| service(lab, path, Protocol::Tcp));
            let client = path.client(lab.number());
            let own = path.source(client);
            open_seen_from(lab, path, one, client, own);
            segment(lab, path, one, client, own, ACK);
            let given = open_given(lab, path, two, client);
            segment(lab, path, two, client, given, ACK);
            segment(lab, path, one, client, own, ACK);
            segment(lab, path, one, client, own, RST);
            // The first has ended: its port is free again.
            open_seen_from(lab, path, three, client, own);
            segment(lab, path, three, client, own, ACK);
            segment(lab, path, two, client, given, ACK);
        }
    });
}

/// The reset once met the ended connection's entry first and went to the client in its name.
#[test]
fn a_refusal_comes_from_the_service_that_was_asked() {
    Lab::with(|lab| {
        for path in Path::all() {
            let [one, two] = [0; 2].map(|_| service(lab, path, Protocol::Tcp));
            let client = path.client(lab.number());
            let own = path.source(client);
            open_seen_from(lab, path, one, client, own);
            segment(lab, path, one, client, own, ACK);
            segment(lab, path, one, client, own, RST);
            let packet = path.from_client(first(Protocol::Tcp, (client, two.address)));
            let expected = path.carried(&packet, own, 0);
            lab.check("a SYN", path.client_entry(), &packet.bytes(), &expected);
            let reset = Packet::tcp(path.backend(0), own, RST | ACK).numbered(0, ISN + 1);
            let reset = path.from_backend(reset, 0);
            let expected = path.returned(&reset, two.address, client);
            let name = format!("a refusal ({path})");
            lab.check(&name, path.backend_entry(), &reset.bytes(), &expected);
            assert_eq!(lab.counters(two)[&path.backend(0)].refused, 1, "{name}");
        }
    });
}

#[test]
fn an_idle_udp_flow_does_not_keep_its_port() {
    Lab::with(|lab| {
        for path in Path::all() {
            let [one, two] = [0; 2].map(|_| service(lab, path, Protocol::Udp));
            let client = path.client(lab.number());
            let own = path.source(client);
            open_seen_from(lab, path, one, client, own);
            lab.maps.age((client, one.address));
            lab.maps.age((path.backend(0), own));
            open_seen_from(lab, path, two, client, own);
        }
    });
}

#[test]
fn a_new_flow_is_dropped_where_every_port_is_taken() {
    /// Room for all ports that can be given, and no eviction.
    const ENTRIES: u32 = 1 << 17;
    Lab::sized(ENTRIES, |lab| {
        for family in Family::ALL {
            for protocol in PROTOCOLS {
                let paths = Path::to(Place::Routed).into_iter();
                let paths: Vec<_> = paths.filter(|path| path.family == family).collect();
                let path = paths[0];
                let client = path.client(lab.number());
                let stranger = (path.client(0), path.service(1));
                for port in GIVEN.chain([client.port()]) {
                    let reply = (path.backend(0), SocketAddr::new(client.ip(), port));
                    lab.maps.occupy(table(protocol), reply, (stranger.1, stranger.0));
                }
                for path in paths {
                    let service = service(lab, path, protocol);
                    let packet = path.from_client(first(protocol, (client, service.address)));
                    let name = format!("every port taken, {protocol} ({path})");
                    let expected = Expected::dropped(Verdict::NoTuple);
                    lab.check(&name, path.client_entry(), &packet.bytes(), &expected);
                    assert_eq!(lab.counters(service)[&path.backend(0)].opened, 0, "{name}");
                }
            }
        }
    });
}

/// On loopback a client may use one port through the service and, at the same time, straight to the
/// backend: the backend must see two connections.
#[test]
fn straight_to_a_backend_on_loopback_is_left_alone() {
    Lab::with(|lab| {
        for path in Path::to(Place::Loopback) {
            for protocol in PROTOCOLS {
                let service = service(lab, path, protocol);
                let client = path.client(lab.number());
                let straight = |lab: &Lab| {
                    for packet in [
                        first(protocol, (client, path.backend(0))),
                        answer(protocol, (path.backend(0), client)),
                    ] {
                        let bytes = packet.bytes();
                        let expected = Expected::unchanged(Verdict::NotService, &bytes);
                        lab.check("straight", path.client_entry(), &bytes, &expected);
                    }
                };
                straight(lab);
                open_seen_from(lab, path, service, client, path.source(client));
                straight(lab);
                answered(lab, path, service, client, path.source(client));
                straight(lab);
            }
        }
    });
}

/// What a client on this host looks like to a backend on this host, by its address and port.
#[test]
fn sources_on_loopback() {
    let v4: &[(&str, &str)] = &[
        ("127.0.0.1:40000", "127.64.0.1:40000"),
        ("127.0.0.1:80", "127.64.0.1:80"),
        ("127.1.2.3:1234", "127.65.2.3:1234"),
        ("127.64.0.1:40000", "127.0.0.1:40000"),
        ("127.255.255.254:65535", "127.191.255.254:65535"),
        // An address of this host's own: the port moves.
        ("10.2.0.1:32768", "10.2.0.1:1024"),
        ("10.2.0.1:60999", "10.2.0.1:29255"),
    ];
    let v6: &[(&str, &str)] = &[
        ("[::1]:32768", "[::1]:1024"),
        ("[::1]:60999", "[::1]:29255"),
        ("[fd00:2::1]:50000", "[fd00:2::1]:18256"),
    ];
    // Outside the range of Linux's clients there is nothing to move to: any free port.
    let drawn = ["[::1]:1024", "[::1]:32767", "[::1]:61000", "[::1]:65535", "10.2.0.1:9"];
    Lab::with(|lab| {
        for path in Path::to(Place::Loopback) {
            let same_family =
                |address: &SocketAddr| address.is_ipv4() == (path.family == Family::V4);
            for (client, source) in v4.iter().chain(v6) {
                let client: SocketAddr = client.parse().expect("an address");
                let source = source.parse().expect("an address");
                if same_family(&client) {
                    for protocol in PROTOCOLS {
                        let service = service(lab, path, protocol);
                        lab.put(service, "apart", &[(path.backend(0), 1)]);
                        apart(lab, path, service, client, source);
                    }
                }
            }
            for client in drawn.map(|text| text.parse().expect("an address")) {
                if same_family(&client) {
                    let service = service(lab, path, Protocol::Tcp);
                    open_given(lab, path, service, client);
                }
            }
        }
    });
}

/// Each with a backend port of its own, as hooks come one after another with the same client.
fn apart(lab: &mut Lab, path: Path, service: Endpoint, client: SocketAddr, source: SocketAddr) {
    let backend = SocketAddr::new(path.backend(0).ip(), lab.port());
    lab.put(service, "own port", &[(backend, 1)]);
    let packet = first(service.protocol, (client, service.address));
    let out = packet.clone().readdressed(source, backend).bytes();
    let expected = Expected::new(Verdict::Delivered, Action::Pass, out);
    let name = format!("{client} seen as {source} ({path})");
    lab.check(&name, path.client_entry(), &packet.bytes(), &expected);
    let packet = answer(service.protocol, (backend, source));
    let back = packet.clone().readdressed(service.address, client).bytes();
    let expected = Expected::new(Verdict::Delivered, Action::Pass, back);
    lab.check(&name, path.backend_entry(), &packet.bytes(), &expected);
}

/// A virtual endpoint that is its own backend: the flow's two directions stay apart.
#[test]
fn a_service_that_is_its_own_backend() {
    Lab::with(|lab| {
        for path in Path::to(Place::Routed) {
            // The backend's address and port, as a service.
            let service = tcp(SocketAddr::new(path.family.backend(0), 8080));
            lab.put(service, "itself", &[(path.backend(0), 1)]);
            let client = path.client(lab.number());
            open_seen_from(lab, path, service, client, client);
            segment(lab, path, service, client, client, ACK);
            lab.remove(service);
        }
    });
}
