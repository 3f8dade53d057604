//! Next hops whose link-layer address is not known, or is forgotten while connections are open: packets
//! find their way again, in both directions.

use std::net::SocketAddr;

use graylb_tests::{
    agent::Installation,
    backend::HttpBackend,
    client::{self, Connection},
    sandbox::Sandbox,
    topology::{Family, Routed},
};

fn check(attach: &str, family: Family) {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    if attach == "xdp" {
        network.face_xdp();
        // XDP cannot ask for a neighbour: it hands such a reply to the host's own forwarding, which
        // takes a source address of its own for forged unless it is told otherwise.
        network.graylb.sysctl("net/ipv4/conf/g1/accept_local", "1");
    }
    let endpoint = SocketAddr::new(Routed::virtual_address(family), 80);
    let backend = Routed::backend_address(family, 0, 8080);
    let _backend = HttpBackend::start(&network.backends[0], backend, "one");
    let interfaces = Routed::INTERFACES
        .map(|name| format!("[interfaces.{name}]\nattach = \"{attach}\"\n"))
        .concat();
    let config = format!(
        "{interfaces}[services.web]\naddress = \"{endpoint}\"\ndefault_pool = \"web\"\n\
         [pools.web]\nbackends = [\"{backend}\"]\n"
    );
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let _agent = installation.start();
    let mut old = network.client.run(|| Connection::open(endpoint)).expect("connect");
    for _ in 0..3 {
        old.ask().expect("an answer");
        // graylb's own neighbours only: client and backend know their router and need not ask for it, so
        // nothing tells graylb who they are but its own questions.
        for device in ["gc", "g1"] {
            network.graylb.ip(&format!("neighbour flush dev {device}"));
        }
        old.ask().expect("an answer over the open connection");
        network.graylb.ip("neighbour flush dev gc");
        let fresh = network.client.run(|| client::ask(endpoint));
        assert_eq!(fresh.expect("an answer over a new connection").backend, "one");
    }
}

#[test]
fn tc_ipv4() {
    check("tc", Family::V4);
}

#[test]
fn tc_ipv6() {
    check("tc", Family::V6);
}

#[test]
fn native_xdp_ipv4() {
    check("xdp", Family::V4);
}

#[test]
fn native_xdp_ipv6() {
    check("xdp", Family::V6);
}
