//! Connections that go straight to a backend's own port are left alone, also when they come from the
//! very port that a connection through the virtual endpoint comes from.

use std::net::{SocketAddr, UdpSocket};

use graylb_tests::{
    agent::Installation,
    backend::{HttpBackend, UdpBackend},
    client::Connection,
    sandbox::Sandbox,
    topology::{Family, Routed, host},
};

/// One service over TCP and one over UDP, each with one backend.
fn config(interfaces: &[&str], endpoint: SocketAddr, backend: SocketAddr) -> String {
    let interfaces: String =
        interfaces.iter().map(|name| format!("[interfaces.{name}]\n")).collect();
    let service = |protocol: &str| {
        format!(
            "[services.{protocol}]\naddress = \"{endpoint}\"\nprotocol = \"{protocol}\"\n\
             default_pool = \"pool\"\n"
        )
    };
    format!(
        "{interfaces}{}{}[pools.pool]\nbackends = [\"{backend}\"]\n",
        service("tcp"),
        service("udp")
    )
}

/// From one port, to the virtual endpoint and to the backend, in both orders, at the same time.
fn check_tcp(source: impl Fn(u16) -> SocketAddr, endpoint: SocketAddr, backend: SocketAddr) {
    let orders = [(40000, [endpoint, backend]), (40001, [backend, endpoint])];
    for (port, order) in orders {
        let open = |target| {
            Connection::open_from(source(port), target)
                .unwrap_or_else(|failure| panic!("{port} to {target}: {failure}"))
        };
        let mut connections = order.map(open);
        for _ in 0..3 {
            for connection in &mut connections {
                let target = connection.stream().peer_addr().expect("peer");
                let reply =
                    connection.ask().unwrap_or_else(|failure| panic!("{target}: {failure}"));
                assert_eq!(reply.backend, "backend");
                if target == backend {
                    assert_eq!(reply.client, source(port), "a direct connection is as it was");
                }
            }
        }
    }
}

/// The same with one UDP socket.
fn check_udp(source: SocketAddr, endpoint: SocketAddr, backend: SocketAddr) {
    let socket = UdpSocket::bind(source).expect("bind");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("set a timeout");
    let mut buffer = [0; 1024];
    for round in 0..6 {
        let target = [endpoint, backend][round % 2];
        socket.send_to(round.to_string().as_bytes(), target).expect("send");
        let (length, from) =
            socket.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{target}: {e}"));
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert_eq!(from, target, "{text}");
        assert!(text.starts_with("backend ") && text.ends_with(&format!(" {round}")), "{text}");
        if target == backend {
            assert_eq!(text, format!("backend {source} {round}"));
        }
    }
}

fn check_loopback(family: Family) {
    let sandbox = Sandbox::new();
    let host = host(&sandbox);
    let (endpoint, backend) = (family.loopback(8000), family.loopback(18081));
    let _http = HttpBackend::start(&host, backend, "backend");
    let _udp = UdpBackend::start(&host, backend, "backend");
    let installation = Installation::new(&sandbox, &host, &config(&["lo"], endpoint, backend));
    let _agent = installation.start();
    host.run(|| {
        check_tcp(|port| family.loopback(port), endpoint, backend);
        check_udp(family.loopback(40002), endpoint, backend);
    });
}

#[test]
fn loopback_ipv4() {
    check_loopback(Family::V4);
}

#[test]
fn loopback_ipv6() {
    check_loopback(Family::V6);
}

/// Between hosts a direct connection passes graylb's interfaces, and stays as it is.
fn check_routed(family: Family) {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    let endpoint = SocketAddr::new(Routed::virtual_address(family), 80);
    let backend = Routed::backend_address(family, 0, 8080);
    let _http = HttpBackend::start(&network.backends[0], backend, "backend");
    let config = config(&Routed::INTERFACES, endpoint, backend);
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let _agent = installation.start();
    network.client.run(|| {
        let source = SocketAddr::new(Routed::client_address(family), 0);
        let mut direct = Connection::open_from(source, backend).expect("connect");
        let own = direct.stream().local_addr().expect("local address");
        assert_eq!(direct.ask().expect("an answer").client, own);
    });
}

#[test]
fn between_namespaces() {
    Family::BOTH.into_iter().for_each(check_routed);
}
