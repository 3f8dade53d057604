//! Modes snat and dsr with the real agent and real sockets: backends that do not answer through graylb,
//! under TC and XDP, IPv4 and IPv6, TCP and UDP.

use std::{net::SocketAddr, time::Instant};

use graylb_common::verdict::{VERDICTS, VerdictKind};
use graylb_tests::{
    agent::{Agent, Installation},
    backend::{HttpBackend, UdpBackend},
    client::{Connection, Reply, UdpClient},
    link::OneLink,
    namespace::Namespace,
    sandbox::Sandbox,
    topology::{Family, Routed},
    transfer::{Direction, transfer},
};

const PORT: u16 = 80;
const DNS: u16 = 53;
const LENGTH: u64 = 64 << 20;
const NAMES: [&str; 2] = ["one", "two"];

fn endpoint(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(Routed::virtual_address(family), port)
}

/// A service in each family over TCP and UDP, whose backends listen on the ports that `port` makes of the
/// service's, with the pool options that `options` gives for the family.
fn config(attach: &str, port: fn(u16) -> u16, options: impl Fn(Family) -> String) -> String {
    let mut text: String = OneLink::INTERFACES
        .map(|name| format!("[interfaces.{name}]\nattach = \"{attach}\"\n"))
        .concat();
    for family in Family::BOTH {
        for (protocol, service_port) in [("tcp", PORT), ("udp", DNS)] {
            let name = format!("{protocol}_{}", family.name());
            let [one, two] =
                [0, 1].map(|number| OneLink::backend_address(family, number, port(service_port)));
            text.push_str(&format!(
                "[services.{name}]\naddress = \"{}\"\nprotocol = \"{protocol}\"\n\
                 default_pool = \"{name}\"\n[pools.{name}]\nbackends = [\"{one}\", \"{two}\"]\n{}\n",
                endpoint(family, service_port),
                options(family)
            ));
        }
    }
    text
}

/// Requests over both protocols in strict turns, then a transfer each way; who the backends saw.
fn check_service(client: &Namespace, family: Family) -> Vec<Reply> {
    let replies = client.run(|| {
        let tcp = endpoint(family, PORT);
        let mut open: Vec<Connection> =
            (0..4).map(|_| Connection::open(tcp).expect("connect")).collect();
        let udp: Vec<UdpClient> =
            (0..4).map(|_| UdpClient::open(endpoint(family, DNS)).expect("a socket")).collect();
        let mut replies = Vec::new();
        for round in 0..3 {
            for (connection, name) in open.iter_mut().zip(NAMES.into_iter().cycle()) {
                let reply = connection.ask().unwrap_or_else(|e| panic!("{tcp}: {e}"));
                assert_eq!(reply.backend, name, "{tcp}");
                assert_eq!(connection.stream().peer_addr().expect("peer"), tcp);
                replies.push(reply);
            }
            for (client, name) in udp.iter().zip(NAMES.into_iter().cycle()) {
                let payload = "x".repeat(round * 600);
                let reply = client.ask(&payload).unwrap_or_else(|e| panic!("UDP {family:?}: {e}"));
                assert_eq!(reply.backend, name, "UDP {family:?}, round {round}");
                replies.push(reply);
            }
        }
        replies
    });
    for direction in [Direction::Down, Direction::Up] {
        check_transfer(client, family, direction);
    }
    replies
}

fn check_transfer(client: &Namespace, family: Family, direction: Direction) {
    let started = Instant::now();
    let (sent, came) = client.run(|| {
        let connection = Connection::open(endpoint(family, PORT)).expect("connect");
        transfer(connection.stream(), direction, LENGTH)
            .unwrap_or_else(|error| panic!("{family:?} {direction:?}: {error}"))
    });
    assert_eq!(sent, came, "{family:?} {direction:?}: the hashes differ");
    println!("{family:?} {direction:?}: {LENGTH} bytes in {:.1?}", started.elapsed());
}

/// Nothing was dropped.
fn check_verdicts(agent: &Agent<'_>) {
    let verdicts = &agent.status()["verdicts"];
    for dropped in VERDICTS.iter().filter(|info| info.kind == VerdictKind::Dropped) {
        assert_eq!(verdicts[dropped.name], 0, "{verdicts}");
    }
}

fn check_snat(attach: &str) {
    let sandbox = Sandbox::new();
    let network = OneLink::new(&sandbox);
    if attach == "xdp" {
        network.face_xdp();
    }
    let (mut http, mut udp) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        for (number, name) in NAMES.into_iter().enumerate() {
            let at = |port| OneLink::backend_address(family, number, port);
            http.push(HttpBackend::start(&network.backends[number], at(8000 + PORT), name));
            udp.push(UdpBackend::start(&network.backends[number], at(8000 + DNS), name));
            network.introduce(at(8000 + PORT));
        }
    }
    let options = |family| {
        let [one, two] = OneLink::sources(family);
        format!("mode = \"snat\"\nsources = [\"{one}\", \"{two}\"]\nsource_ports = \"20000-29999\"")
    };
    let config = config(attach, |port| 8000 + port, options);
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let agent = installation.start();
    for family in Family::BOTH {
        for reply in check_service(&network.client, family) {
            assert!(OneLink::sources(family).contains(&reply.client.ip()), "{reply:?}");
            assert!((20000..30000).contains(&reply.client.port()), "{reply:?}");
        }
    }
    check_verdicts(&agent);
}

#[test]
fn snat_under_tc() {
    check_snat("tc");
}

#[test]
fn snat_under_native_xdp() {
    check_snat("xdp");
}

/// What docs/modes.md asks of a backend in mode dsr.
fn give_virtual_addresses(backend: &Namespace) {
    backend.sysctl("net/ipv4/conf/all/arp_ignore", "1");
    backend.sysctl("net/ipv4/conf/all/arp_announce", "2");
    backend.ip(&format!("address add {}/32 dev lo", Routed::virtual_address(Family::V4)));
    let address = Routed::virtual_address(Family::V6);
    backend.ip(&format!("-6 address add {address}/128 dev lo nodad"));
}

fn check_dsr(attach: &str) {
    let sandbox = Sandbox::new();
    let network = OneLink::new(&sandbox);
    network.answer_directly();
    if attach == "xdp" {
        network.face_xdp();
    }
    let (mut http, mut udp) = (Vec::new(), Vec::new());
    for (namespace, name) in network.backends.iter().zip(NAMES) {
        give_virtual_addresses(namespace);
        for family in Family::BOTH {
            http.push(HttpBackend::start(namespace, endpoint(family, PORT), name));
            udp.push(UdpBackend::start(namespace, endpoint(family, DNS), name));
        }
    }
    for family in Family::BOTH {
        for (number, name) in NAMES.into_iter().enumerate() {
            let address = OneLink::backend_address(family, number, PORT);
            http.push(HttpBackend::start(&network.backends[number], address, name));
            network.introduce(address);
        }
    }
    let config = config(attach, |port| port, |_| "mode = \"dsr\"".to_owned());
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let agent = installation.start();
    for family in Family::BOTH {
        for reply in check_service(&network.client, family) {
            assert_eq!(reply.client.ip(), Routed::client_address(family), "{reply:?}");
        }
    }
    check_verdicts(&agent);
    for service in agent.status()["services"].as_array().expect("services") {
        if service["protocol"] == "tcp" {
            for backend in service["backends"].as_array().expect("backends") {
                // Four connections and two transfers, of which this backend had half.
                let seen = (&backend["opened"], &backend["established"]);
                assert_eq!((seen.0.as_u64(), seen.1.as_u64()), (Some(3), Some(3)), "{service}");
            }
        }
    }
}

#[test]
fn dsr_under_tc() {
    check_dsr("tc");
}

#[test]
fn dsr_under_native_xdp() {
    check_dsr("xdp");
}
