//! Mode ipip with the real agent and real sockets: IPv4 and IPv6 inside both, under TC and XDP, with
//! backends that take the outer header off and answer the client by another link.

use graylb_tests::{
    agent::Installation,
    backend::{HttpBackend, UdpBackend},
    decapsulator::Decapsulator,
    link::OneLink,
    namespace::Namespace,
    sandbox::Sandbox,
    services::{DNS, NAMES, PORT, check, config, endpoint, nothing_was_dropped},
    topology::{Family, Routed},
};

const LENGTH: u64 = 2 << 20;

/// What docs/modes.md asks of a backend in mode ipip.
fn give_virtual_addresses(backend: &Namespace) {
    let device = Decapsulator::DEVICE;
    backend.ip(&format!("address add {}/32 dev {device}", Routed::virtual_address(Family::V4)));
    let address = Routed::virtual_address(Family::V6);
    backend.ip(&format!("-6 address add {address}/128 dev {device} nodad"));
    for device in ["all", device] {
        backend.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0");
    }
}

/// Has the client see at once what graylb sends back by XDP_TX: a veth device wakes its peer for that only
/// where the peer has a program, too (veth_xdp_flush, drivers/net/veth.c). Any will do that lets everything
/// pass, as graylb's own does here.
fn receive_answers(client: &Namespace, installation: &Installation) {
    let mut bpftool = client.command("bpftool");
    bpftool.args(["net", "attach", "xdpdrv", "pinned"]);
    bpftool.arg(installation.pin("programs/graylb_xdp")).args(["dev", "uplink"]);
    let status = bpftool.status().expect("run bpftool");
    assert!(status.success(), "{bpftool:?}: {status}");
}

fn check_ipip(attach: &str, outer: Family) {
    let sandbox = Sandbox::new();
    let network = OneLink::new(&sandbox);
    network.answer_directly();
    network.finish_packets();
    if attach == "xdp" {
        network.face_xdp();
    }
    let (mut http, mut udp, mut tunnels) = (Vec::new(), Vec::new(), Vec::new());
    for (number, name) in NAMES.into_iter().enumerate() {
        let namespace = &network.backends[number];
        tunnels.push(Decapsulator::start(namespace));
        give_virtual_addresses(namespace);
        for family in Family::BOTH {
            http.push(HttpBackend::start(namespace, endpoint(family, PORT), name));
            udp.push(UdpBackend::start(namespace, endpoint(family, DNS), name));
        }
        let address = OneLink::backend_address(outer, number, PORT);
        http.push(HttpBackend::start(namespace, address, name));
        network.introduce(address);
    }
    let [one, two] = OneLink::sources(outer);
    let options = |_| format!("mode = \"ipip\"\nsources = [\"{one}\", \"{two}\"]");
    let backend = |_, number, port| OneLink::backend_address(outer, number, port);
    let config = config(attach, backend, options);
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let agent = installation.start();
    if attach == "xdp" {
        receive_answers(&network.client, &installation);
    }
    for family in Family::BOTH {
        for reply in check(&network.client, family, LENGTH) {
            assert_eq!(reply.client.ip(), Routed::client_address(family), "{reply:?}");
        }
    }
    nothing_was_dropped(&agent);
    if attach == "xdp" {
        // The client's first full segments do not fit; it has been told, and has learnt.
        let told = agent.status()["verdicts"]["too_big"].as_u64();
        assert!(told.is_some_and(|count| (1..1000).contains(&count)), "{told:?}");
    }
}

#[test]
fn inside_ipv4_under_tc() {
    check_ipip("tc", Family::V4);
}

#[test]
fn inside_ipv6_under_tc() {
    check_ipip("tc", Family::V6);
}

#[test]
fn inside_ipv4_under_native_xdp() {
    check_ipip("xdp", Family::V4);
}

#[test]
fn inside_ipv6_under_native_xdp() {
    check_ipip("xdp", Family::V6);
}
