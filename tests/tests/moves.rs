//! Backends that move under load, to another MAC address or behind another interface: cached next hops
//! are forgotten when, and only when, they may be others.

use std::{
    fs,
    net::SocketAddr,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use graylb_common::settings::Settings;
use graylb_tests::{
    agent::Installation,
    backend::HttpBackend,
    eventually::{SOON, eventually},
    load::Load,
    namespace::Namespace,
    sandbox::Sandbox,
    topology::{Family, Routed},
};

/// How often something moves in a test.
const MOVES: u8 = 20;
/// The kernel's clock alone makes a next hop void after about a second: what is followed by then proves
/// nothing.
const UNTOLD: Duration = Duration::from_secs(1);

fn epoch(installation: &Installation) -> u32 {
    let map = MapData::from_pin(installation.pin("maps/settings")).expect("open the settings");
    let settings: Array<_, Settings> = Map::Array(map).try_into().expect("an array");
    settings.get(&0, 0).expect("read the settings").route_epoch
}

/// Waits for a new epoch; returns how long it took.
fn wait_epoch(installation: &Installation, old: u32) -> Duration {
    let started = Instant::now();
    eventually("next hops are forgotten", SOON, || {
        if epoch(installation) == old { Err("not yet") } else { Ok(()) }
    });
    started.elapsed()
}

struct Scene {
    sandbox: Sandbox,
    network: Routed,
    endpoint: SocketAddr,
}

impl Scene {
    fn new(attach: &str) -> Self {
        let sandbox = Sandbox::new();
        let network = Routed::new(&sandbox);
        if attach == "xdp" {
            network.face_xdp();
        }
        let endpoint = SocketAddr::new(Routed::virtual_address(Family::V4), 80);
        Self { sandbox, network, endpoint }
    }

    fn installation(&self, attach: &str, backend: SocketAddr) -> Installation {
        let config = format!(
            "[interfaces.\"g?\"]\nattach = \"{attach}\"\n\
             [services.web]\naddress = \"{}\"\ndefault_pool = \"web\"\n\
             [pools.web]\nbackends = [\"{backend}\"]\n",
            self.endpoint
        );
        Installation::new(&self.sandbox, &self.network.graylb, &config)
    }
}

/// The backend's device gets another MAC address, and says so by gratuitous ARP. What is under way to the
/// old address at that moment is lost and sent again by its TCP.
fn check_mac(attach: &str) {
    let scene = Scene::new(attach);
    let network = &scene.network;
    let backend = Routed::backend_address(Family::V4, 0, 8080);
    let _backend = HttpBackend::start(&network.backends[0], backend, "one");
    network.backends[0].sysctl("net/ipv4/conf/uplink/arp_notify", "1");
    let installation = scene.installation(attach, backend);
    let _agent = installation.start();
    let long = Load::long(&network.client, scene.endpoint, 4);
    let short = Load::short(&network.client, scene.endpoint, 2);
    long.wait_rounds(200);
    let mut told = Vec::new();
    for number in 0..MOVES {
        let old = epoch(&installation);
        let mac = format!("02:00:00:00:01:{number:02x}");
        network.backends[0].ip(&format!("link set dev uplink address {mac}"));
        told.push(wait_epoch(&installation, old));
        long.wait_rounds(50);
        short.wait_rounds(50);
    }
    let (long, short) = (long.finish(), short.finish());
    let slowest = told.iter().max().expect("some");
    eprintln!("{attach}, MAC changed {MOVES} times, told within {slowest:.1?}");
    eprintln!("  open connections: {long}\n  new connections: {short}");
    long.assert_clean();
    short.assert_clean();
    assert!(*slowest < UNTOLD, "{told:?}");
}

#[test]
fn a_backend_changes_its_mac_tc() {
    check_mac("tc");
}

#[test]
fn a_backend_changes_its_mac_xdp() {
    check_mac("xdp");
}

/// Packets that a device has received.
fn received(namespace: &Namespace, device: &str) -> u64 {
    // /proc/net is of the process's first thread.
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("read");
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
    let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    packets.unwrap_or_else(|| panic!("{device}: {table}"))
}

/// A backend with two ways to it; the route to it moves from one to the other. Both go on working, so
/// nothing is lost.
fn check_route(attach: &str) {
    /// Stray packets, of neighbour discovery.
    const STRAY: u64 = 20;
    let scene = Scene::new(attach);
    let (graylb, host) = (&scene.network.graylb, &scene.network.backends[0]);
    host.connect("second", graylb, "g3");
    graylb.address("g3", "10.2.3.1/24");
    host.address("second", "10.2.3.2/24");
    host.address("lo", "10.3.0.1/32");
    graylb.ip("route add 10.3.0.1/32 via 10.2.1.2");
    if attach == "xdp" {
        host.face_xdp("second");
    }
    host.wait_usable();
    let backend: SocketAddr = "10.3.0.1:8080".parse().expect("an address");
    let _backend = HttpBackend::start(host, backend, "one");
    let installation = scene.installation(attach, backend);
    let _agent = installation.start();
    let long = Load::long(&scene.network.client, scene.endpoint, 4);
    let short = Load::short(&scene.network.client, scene.endpoint, 2);
    long.wait_rounds(100);
    let mut told = Vec::new();
    for number in 0..MOVES {
        let (via, from, to) = match number % 2 {
            0 => ("10.2.3.2", "uplink", "second"),
            _ => ("10.2.1.2", "second", "uplink"),
        };
        let old = epoch(&installation);
        graylb.ip(&format!("route replace 10.3.0.1/32 via {via}"));
        told.push(wait_epoch(&installation, old));
        let (left, taken) = (received(host, from), received(host, to));
        long.wait_rounds(100);
        short.wait_rounds(20);
        let (left, taken) = (received(host, from) - left, received(host, to) - taken);
        assert!(left <= STRAY && taken >= 120, "{from} {left}, {to} {taken}");
    }
    let (long, short) = (long.finish(), short.finish());
    let slowest = told.iter().max().expect("some");
    eprintln!("{attach}, route moved {MOVES} times, told within {slowest:.1?}");
    eprintln!("  open connections: {long}\n  new connections: {short}");
    long.assert_clean();
    short.assert_clean();
    assert!(*slowest < UNTOLD, "{told:?}");
}

#[test]
fn a_route_moves_to_another_interface_tc() {
    check_route("tc");
}

#[test]
fn a_route_moves_to_another_interface_xdp() {
    check_route("xdp");
}

/// Epochs that a change costs; the route that is added last has been told of when its own one is there.
fn epochs(installation: &Installation, graylb: &Namespace, change: impl FnOnce()) -> u32 {
    // Reports are apart by 20 ms: what comes in between would count as one.
    let settle = || thread::sleep(Duration::from_millis(100));
    settle();
    let before = epoch(installation);
    change();
    settle();
    let changed = epoch(installation);
    graylb.ip("route add blackhole 10.77.0.0/16");
    let _took = wait_epoch(installation, changed);
    graylb.ip("route delete blackhole 10.77.0.0/16");
    changed.wrapping_sub(before)
}

#[test]
fn what_changes_no_next_hop_costs_nothing() {
    let scene = Scene::new("xdp");
    let graylb = &scene.network.graylb;
    let backend = Routed::backend_address(Family::V4, 0, 8080);
    let installation = scene.installation("tc", backend);
    let _agent = installation.launch();
    let neighbour = |state: &str| {
        graylb.ip(&format!("neighbour replace 10.2.1.9 dev g1 {state}"));
    };
    let cost = |change: &dyn Fn()| epochs(&installation, graylb, change);
    let mac = "lladdr 02:00:00:00:00:09";
    assert_eq!(cost(&|| neighbour(&format!("{mac} nud reachable"))), 0, "a new neighbour");
    let chatter = || {
        for state in ["stale", "reachable", "delay", "probe", "reachable", "permanent", "stale"] {
            neighbour(&format!("{mac} nud {state}"));
        }
    };
    assert_eq!(cost(&chatter), 0, "reachability alone");
    assert_eq!(cost(&|| neighbour("lladdr 02:00:00:00:00:0a nud reachable")), 1, "a MAC address");
    assert_eq!(cost(&|| neighbour("nud failed")), 1, "out of reach");
    assert_eq!(cost(&|| graylb.ip("neighbour delete 10.2.1.9 dev g1")), 0, "already so");
    assert_eq!(cost(&|| graylb.ip("link set dev g1 mtu 1400")), 1, "an MTU");
    assert_eq!(cost(&|| graylb.ip("link set dev g1 txqueuelen 77")), 0, "a queue's length");
    let rule = cost(&|| graylb.ip("rule add to 10.66.0.0/16 lookup 66"));
    assert_eq!(rule, 1, "a rule");
}

#[test]
fn a_burst_costs_little() {
    let scene = Scene::new("tc");
    let graylb = &scene.network.graylb;
    let backend = Routed::backend_address(Family::V4, 0, 8080);
    let installation = scene.installation("tc", backend);
    let _agent = installation.launch();
    let batch: String = (0..5000)
        .map(|n| format!("route add blackhole 10.100.{}.{}/32\n", n >> 8, n & 255))
        .collect();
    let file = scene.sandbox.directory().join("routes");
    fs::write(&file, batch).expect("write a batch");
    let (before, started) = (epoch(&installation), Instant::now());
    let mut ip = graylb.command("ip");
    let status = ip.arg("-batch").arg(&file).stdout(Stdio::null()).status();
    assert!(status.expect("run ip").success());
    thread::sleep(Duration::from_millis(50));
    let took = started.elapsed();
    let cost = epoch(&installation).wrapping_sub(before);
    eprintln!("5000 routes in {took:.1?}: {cost} epochs");
    assert!(cost >= 1 && u128::from(cost) <= took.as_millis() / 20 + 2, "{cost} in {took:?}");
}
