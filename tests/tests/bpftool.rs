//! bpftool shows what is in the kernel: maps with the names of their fields, programs by their names.

use std::process::Command;

use graylb_common::maps;
use graylb_tests::{
    agent::Installation,
    backend::{HttpBackend, UdpBackend},
    client::{self, Connection, UdpClient},
    sandbox::Sandbox,
    topology::{Family, host},
};
use serde_json::Value;

fn bpftool(arguments: &[&str]) -> String {
    let output = Command::new("bpftool").args(arguments).output().expect("run bpftool");
    assert!(
        output.status.success(),
        "bpftool {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// For each family: a TCP and a UDP service that work, and one whose backend refuses, so that a
/// half-open flow stays.
fn config() -> String {
    let mut text = "[interfaces.lo]\n".to_owned();
    for family in Family::BOTH {
        for (name, protocol, port, backend) in
            [("web", "tcp", 8000, 18081), ("dns", "udp", 8000, 18081), ("shut", "tcp", 8001, 18089)]
        {
            let name = format!("{name}_{}", family.name());
            let (endpoint, backend) = (family.loopback(port), family.loopback(backend));
            text.push_str(&format!(
                "[services.{name}]\naddress = \"{endpoint}\"\nprotocol = \"{protocol}\"\n\
                 default_pool = \"{name}\"\n[pools.{name}]\nbackends = [\"{backend}\"]\n"
            ));
        }
    }
    text
}

/// Fields that a map's dump must name; none for maps that may be empty.
fn fields(map: &str) -> &'static [&'static str] {
    const FLOW: &[&str] = &[
        "source",
        "destination_port",
        "rewrite",
        "backend",
        "generation",
        "last_seen_ns",
        "state",
    ];
    match map {
        maps::SERVICES_V4 | maps::SERVICES_V6 => {
            &["address", "port", "protocol", "generation", "routes", "rules", "share", "split_by"]
        }
        maps::ROUTES => &["pool", "slots_start", "slots_count", "turn", "select"],
        maps::SLOTS => &["backend"],
        maps::TURNS => &["next"],
        maps::BACKENDS => &["address", "port", "family", "mode", "service", "pool", "weight"],
        maps::BACKEND_STATS => &["opened", "established", "refused", "closed"],
        maps::ACTIVE => &["flows"],
        maps::SOURCES => &["address", "port_low", "port_high"],
        maps::TCP_V4 | maps::TCP_V6 | maps::UDP_V4 | maps::UDP_V6 => FLOW,
        maps::HALF_OPEN_V4 | maps::HALF_OPEN_V6 => {
            &["source", "rewrite", "flow", "client_isn", "server_isn"]
        }
        maps::VERDICTS => &["redirected", "delivered", "not_service", "no_backend"],
        maps::SETTINGS => &["udp_timeout_ns", "route_epoch"],
        _ => &[],
    }
}

#[test]
fn maps_and_programs_have_names() {
    let sandbox = Sandbox::new();
    let host = host(&sandbox);
    let installation = Installation::new(&sandbox, &host, &config());
    let backends = Family::BOTH.map(|family| {
        let address = family.loopback(18081);
        (HttpBackend::start(&host, address, "81"), UdpBackend::start(&host, address, "81"))
    });
    let agent = installation.start();
    host.run(|| {
        for family in Family::BOTH {
            let mut open = Connection::open(family.loopback(8000)).expect("connect");
            open.ask().expect("an answer");
            let udp = UdpClient::open(family.loopback(8000)).expect("a socket");
            udp.ask("x").expect("an answer");
            let refused = client::ask(family.loopback(8001)).expect_err("nobody listens");
            assert!(refused.why.contains("refused"), "{refused}");
        }
    });
    // Socket storage has no keys to go through: bpftool shows it, but cannot dump it.
    for map in maps::ALL.into_iter().filter(|map| *map != maps::SOCKETS) {
        let pin = installation.pin("maps").join(map);
        let text = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()]);
        // By its types a map is printed as JSON, else as bytes.
        assert!(text.starts_with('['), "{map}: {}", &text[..text.len().min(400)]);
        for field in fields(map) {
            assert!(text.contains(&format!("\"{field}\": ")), "{map} has no {field}");
        }
    }
    for program in maps::PROGRAMS {
        let pin = installation.pin("programs").join(program);
        let text = bpftool(&["--json", "prog", "show", "pinned", &pin.to_string_lossy()]);
        let shown: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(shown["name"], program);
        assert!(shown["map_ids"].as_array().is_some_and(|maps| maps.len() >= 10), "{shown}");
        let listed = bpftool(&["prog", "list"]);
        let line = format!("{}: ", shown["id"]);
        let line = listed.lines().find(|l| l.starts_with(&line)).expect("its line");
        assert!(line.contains(&format!("name {program} ")), "{line}");
    }
    drop((agent, backends));
}
