//! Every way through graylb: TC and XDP between namespaces, and loopback; IPv4 and IPv6; TCP and UDP.
//! New flows take strict turns, the client sees the virtual endpoint, the backend sees the client.

use std::net::SocketAddr;

use graylb_tests::{
    agent::{Agent, Installation},
    backend::{HttpBackend, UdpBackend},
    client::{Connection, Reply, UdpClient, turns},
    namespace::Namespace,
    sandbox::Sandbox,
    topology::{Family, Routed, host},
};

const PORT: u16 = 80;
const DNS: u16 = 53;

/// A service and its two backends, in both families, over TCP and UDP.
fn config(
    interfaces: &[&str],
    attach: &str,
    endpoint: impl Fn(Family, u16) -> SocketAddr,
    backend: impl Fn(Family, usize, u16) -> SocketAddr,
) -> String {
    let mut text = String::new();
    for interface in interfaces {
        text.push_str(&format!("[interfaces.{interface}]\nattach = \"{attach}\"\n"));
    }
    for family in Family::BOTH {
        for (protocol, port) in [("tcp", PORT), ("udp", DNS)] {
            let name = format!("{protocol}_{}", family.name());
            let (one, two) = (backend(family, 0, port), backend(family, 1, port));
            text.push_str(&format!(
                "[services.{name}]\naddress = \"{}\"\nprotocol = \"{protocol}\"\ndefault_pool = \"{name}\"\n\
                 [pools.{name}]\nbackends = [\"{one}\", \"{two}\"]\n",
                endpoint(family, port)
            ));
        }
    }
    text
}

/// Strict turns from the first connection on, and a client that talks to the virtual endpoint.
fn check_tcp(client: &Namespace, endpoint: SocketAddr, names: [&str; 2]) -> Vec<Reply> {
    let expected: Vec<&str> = names.into_iter().cycle().take(8).collect();
    assert_eq!(turns(client, endpoint, 8), expected, "{endpoint}");
    client.run(|| {
        let mut replies = Vec::new();
        let mut open: Vec<Connection> =
            (0..2).map(|_| Connection::open(endpoint).expect("connect")).collect();
        for _ in 0..3 {
            for (connection, name) in open.iter_mut().zip(names) {
                let reply = connection.ask().unwrap_or_else(|failure| panic!("{failure}"));
                assert_eq!(reply.backend, name, "an open connection stays");
                assert_eq!(connection.stream().peer_addr().expect("peer"), endpoint);
                replies.push(reply);
            }
        }
        replies
    })
}

/// The same for UDP: a client's port stays with its backend.
fn check_udp(client: &Namespace, endpoint: SocketAddr, names: [&str; 2]) -> Vec<Reply> {
    client.run(|| {
        // All open at once, so that no two have one port.
        let clients: Vec<UdpClient> =
            (0..6).map(|_| UdpClient::open(endpoint).expect("a socket")).collect();
        let mut replies = Vec::new();
        for round in 0..3 {
            for (client, name) in clients.iter().zip(names.into_iter().cycle()) {
                // The largest travels in fragments.
                let payload = format!("{round} {}", "x".repeat(round * round * 1000));
                let reply = client.ask(&payload).unwrap_or_else(|e| panic!("{endpoint}: {e}"));
                assert_eq!(reply.backend, name, "{endpoint}, round {round}");
                replies.push(reply);
            }
        }
        replies
    })
}

fn routed_endpoint(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(Routed::virtual_address(family), port)
}

/// Sends everything through graylb between namespaces.
fn check_routed(attach: &str) {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    if attach == "xdp" {
        network.face_xdp();
    }
    let (mut http, mut udp) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        for (number, name) in ["one", "two"].into_iter().enumerate() {
            let namespace = &network.backends[number];
            let at = |port| Routed::backend_address(family, number, port);
            http.push(HttpBackend::start(namespace, at(PORT), name));
            udp.push(UdpBackend::start(namespace, at(DNS), name));
        }
    }
    let config = config(&Routed::INTERFACES, attach, routed_endpoint, Routed::backend_address);
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let agent = installation.start();
    for family in Family::BOTH {
        let mut replies = check_tcp(&network.client, routed_endpoint(family, PORT), ["one", "two"]);
        replies.extend(check_udp(&network.client, routed_endpoint(family, DNS), ["one", "two"]));
        for reply in replies {
            assert_eq!(reply.client.ip(), Routed::client_address(family), "nat keeps the client");
        }
    }
    check_status(&agent, attach);
}

/// What the agent says of itself: where it hangs, and that it dropped nothing.
fn check_status(agent: &Agent<'_>, hook: &str) {
    let status = agent.status();
    for interface in status["interfaces"].as_array().expect("interfaces") {
        assert_eq!(interface["hook"], hook, "{interface}");
    }
    let verdicts = &status["verdicts"];
    for dropped in graylb_common::verdict::VERDICTS {
        if dropped.kind == graylb_common::verdict::VerdictKind::Dropped {
            assert_eq!(verdicts[dropped.name], 0, "{verdicts}");
        }
    }
    for service in status["services"].as_array().expect("services") {
        for backend in service["backends"].as_array().expect("backends") {
            let opened = if service["protocol"] == "tcp" { 5 } else { 3 };
            assert_eq!(backend["opened"], opened, "{service}");
        }
    }
}

#[test]
fn tc_between_namespaces() {
    check_routed("tc");
}

#[test]
fn native_xdp_between_namespaces() {
    check_routed("xdp");
}

#[test]
fn loopback() {
    let sandbox = Sandbox::new();
    let host = host(&sandbox);
    let endpoint = |family: Family, port: u16| family.loopback(8000 + port);
    let backend =
        |family: Family, number: usize, port: u16| family.loopback(18081 + port + number as u16);
    let (mut http, mut udp) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        for (number, name) in ["81", "82"].into_iter().enumerate() {
            http.push(HttpBackend::start(&host, backend(family, number, PORT), name));
            udp.push(UdpBackend::start(&host, backend(family, number, DNS), name));
        }
    }
    let installation =
        Installation::new(&sandbox, &host, &config(&["lo"], "auto", endpoint, backend));
    let agent = installation.start();
    for family in Family::BOTH {
        let _neither_the_clients_address = check_tcp(&host, endpoint(family, PORT), ["81", "82"]);
        let _nor_its_port_is_kept = check_udp(&host, endpoint(family, DNS), ["81", "82"]);
    }
    check_status(&agent, "tc");
}
