//! A gigabyte each way through graylb arrives as it was sent.

use std::{net::SocketAddr, time::Instant};

use graylb_tests::{
    agent::Installation,
    backend::HttpBackend,
    client::Connection,
    namespace::Namespace,
    sandbox::Sandbox,
    topology::{Family, Routed, host},
    transfer::{Direction, transfer},
};

const LENGTH: u64 = 1 << 30;

fn check_both_ways(client: &Namespace, endpoint: SocketAddr, length: u64) {
    for direction in [Direction::Down, Direction::Up] {
        let started = Instant::now();
        let (sent, came) = client.run(|| {
            let connection = Connection::open(endpoint).expect("connect");
            transfer(connection.stream(), direction, length)
                .unwrap_or_else(|error| panic!("{endpoint} {direction:?}: {error}"))
        });
        assert_eq!(sent, came, "{endpoint} {direction:?}: the hashes differ");
        let rate = length as f64 / started.elapsed().as_secs_f64() / 1e9;
        println!("{endpoint} {direction:?}: {length} bytes, {rate:.2} GB/s");
    }
}

/// A service for each family with one backend each.
fn config(
    interfaces: &[&str],
    attach: &str,
    endpoint: impl Fn(Family) -> SocketAddr,
    backend: impl Fn(Family) -> SocketAddr,
) -> String {
    let interfaces: String = interfaces
        .iter()
        .map(|name| format!("[interfaces.{name}]\nattach = \"{attach}\"\n"))
        .collect();
    let service = |family: Family| {
        let (name, endpoint, backend) = (family.name(), endpoint(family), backend(family));
        format!(
            "[services.{name}]\naddress = \"{endpoint}\"\ndefault_pool = \"{name}\"\n\
             [pools.{name}]\nbackends = [\"{backend}\"]\n"
        )
    };
    format!("{interfaces}{}", Family::BOTH.map(service).concat())
}

fn check_routed(attach: &str, length: impl Fn(Family) -> u64) {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    if attach == "xdp" {
        network.face_xdp();
    }
    let endpoint = |family| SocketAddr::new(Routed::virtual_address(family), 80);
    let backend = |family| Routed::backend_address(family, 0, 8080);
    let _backends =
        Family::BOTH.map(|family| HttpBackend::start(&network.backends[0], backend(family), "one"));
    let config = config(&Routed::INTERFACES, attach, endpoint, backend);
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let _agent = installation.start();
    for family in Family::BOTH {
        check_both_ways(&network.client, endpoint(family), length(family));
    }
}

#[test]
fn a_gigabyte_between_namespaces() {
    check_routed("tc", |family| if family == Family::V4 { LENGTH } else { LENGTH / 4 });
}

/// Less of it: without segmentation offload each packet is one segment.
#[test]
fn native_xdp_between_namespaces() {
    check_routed("xdp", |_| LENGTH / 8);
}

#[test]
fn a_gigabyte_over_loopback() {
    let sandbox = Sandbox::new();
    let host = host(&sandbox);
    let endpoint = |family: Family| family.loopback(8000);
    let backend = |family: Family| family.loopback(18081);
    let _backends = Family::BOTH.map(|family| HttpBackend::start(&host, backend(family), "81"));
    let config = config(&["lo"], "auto", endpoint, backend);
    let installation = Installation::new(&sandbox, &host, &config);
    let _agent = installation.start();
    for family in Family::BOTH {
        let length = if family == Family::V4 { LENGTH } else { LENGTH / 4 };
        check_both_ways(&host, endpoint(family), length);
    }
}
