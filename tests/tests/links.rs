//! Interfaces that appear, go, come back, change their names or refuse: the agent follows.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use aya::programs::{SchedClassifier, TcAttachType};
use graylb_tests::{
    agent::{Agent, Installation},
    backend::HttpBackend,
    client,
    eventually::{SOON, eventually},
    load::Load,
    namespace::Namespace,
    sandbox::Sandbox,
    topology::{self, Family, Routed},
};

const SERVICE: &str = "[services.web]\naddress = \"127.0.0.1:8000\"\ndefault_pool = \"web\"\n\
    [pools.web]\nbackends = [\"127.0.0.1:18081\"]\n";

/// Interfaces where graylb is attached, as `NAME PATTERN HOOK`.
fn attached(agent: &Agent<'_>) -> Vec<String> {
    let status = agent.status();
    let attachments = status["interfaces"].as_array().expect("a list").iter();
    let text = |attachment: &serde_json::Value, key: &str| {
        attachment[key].as_str().expect("a text").to_owned()
    };
    attachments
        .map(|a| ["interface", "pattern", "hook"].map(|key| text(a, key)).join(" "))
        .collect()
}

fn wait_attached(agent: &Agent<'_>, expected: &[&str]) {
    eventually(&format!("attached to {expected:?}"), SOON, || {
        let attached = attached(agent);
        if attached == expected { Ok(()) } else { Err(attached) }
    });
}

/// How many programs the kernel has at the interface's TCX hook on the way in.
fn programs(namespace: &Namespace, interface: &str) -> usize {
    namespace.run(|| {
        let query = SchedClassifier::query_tcx(interface, TcAttachType::Ingress);
        query.unwrap_or_else(|error| panic!("query {interface}: {error}")).1.len()
    })
}

fn pins(installation: &Installation) -> Vec<String> {
    let names = fs::read_dir(installation.pin("links")).expect("read the pins");
    let mut names: Vec<_> = names
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn interfaces_come_and_go() {
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    let config = format!(
        "[interfaces.lo]\n[interfaces.late]\n[interfaces.\"web*\"]\nattach = \"tc\"\n{SERVICE}"
    );
    let installation = Installation::new(&sandbox, &host, &config);
    let agent = installation.launch();
    wait_attached(&agent, &["lo lo tc"]);
    let missing = agent.call("GET", "/readyz", "").expect_err("not ready");
    assert!(missing.contains("there is no interface late yet"), "{missing}");
    assert!(agent.status()["problems"].to_string().contains("no interface late"));

    host.ip("link add late type veth peer name web0");
    agent.wait_ready();
    wait_attached(&agent, &["lo lo tc", "web0 web* tc", "late late tc"]);
    assert_eq!((programs(&host, "late"), programs(&host, "web0")), (1, 1));

    host.ip("link delete late");
    wait_attached(&agent, &["lo lo tc"]);
    assert_eq!(pins(&installation), ["tc_in:lo"]);
    assert!(agent.call("GET", "/readyz", "").is_err());

    // Quicker than the agent looks: another device of the same name.
    host.ip("link add late type veth peer name other");
    wait_attached(&agent, &["lo lo tc", "late late tc"]);
    for _ in 0..10 {
        host.ip("link delete late");
        host.ip("link add late type veth peer name other");
    }
    eventually("the device in place is attached", SOON, || match programs(&host, "late") {
        1 => Ok(()),
        count => Err(count),
    });
    wait_attached(&agent, &["lo lo tc", "late late tc"]);

    // A rename is a going and an appearing.
    host.ip("link set dev other name web.1");
    wait_attached(&agent, &["lo lo tc", "web.1 web* tc", "late late tc"]);
    host.ip("link set dev web.1 name web2");
    wait_attached(&agent, &["lo lo tc", "web2 web* tc", "late late tc"]);
    assert_eq!(programs(&host, "web2"), 1);
    host.ip("link set dev web2 name none");
    wait_attached(&agent, &["lo lo tc", "late late tc"]);
    assert_eq!(programs(&host, "none"), 0);
    assert_eq!(pins(&installation), ["tc_in:late", "tc_in:lo", "tc_out:late"]);
}

#[test]
fn a_reload_adds_and_removes_interfaces() {
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    host.ip("link add a0 type veth peer name a1");
    let installation = Installation::new(&sandbox, &host, &format!("[interfaces.lo]\n{SERVICE}"));
    let agent = installation.start();
    wait_attached(&agent, &["lo lo tc"]);
    for (interfaces, expected) in [
        ("[interfaces.\"a*\"]\n", &["a1 a* tc", "a0 a* tc"][..]),
        ("[interfaces.a0]\n[interfaces.\"?1\"]\n", &["a1 ?1 tc", "a0 a0 tc"]),
        ("[interfaces.a0]\nattach = \"xdp\"\n", &["a0 a0 xdp"]),
        ("[interfaces.a0]\nattach = \"tc\"\n", &["a0 a0 tc"]),
    ] {
        installation.configure(&format!("{interfaces}{SERVICE}"));
        agent.call("POST", "/v1/reload", "{}").expect("reload");
        assert_eq!(attached(&agent), expected);
        let hooks: usize = expected.len() * 2;
        assert_eq!(pins(&installation).len(), hooks, "{:?}", pins(&installation));
    }
    assert_eq!((programs(&host, "a0"), programs(&host, "a1")), (1, 0));
}

#[test]
fn pins_of_a_device_that_lost_its_name_are_not_trusted() {
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    host.ip("link add a0 type veth peer name b0");
    let installation = Installation::new(&sandbox, &host, &format!("[interfaces.a0]\n{SERVICE}"));
    installation.start().stop();
    assert_eq!(programs(&host, "a0"), 1);
    host.ip("link set dev a0 name old");
    host.ip("link add a0 type veth peer name b1");
    let agent = installation.start();
    wait_attached(&agent, &["a0 a0 tc"]);
    assert_eq!((programs(&host, "a0"), programs(&host, "old")), (1, 0));
}

#[test]
fn a_start_fails_when_nothing_can_be_attached() {
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    host.ip("link add br0 type bridge");
    let config = "[interfaces.br0]\nattach = \"xdp\"\n[interfaces.absent]\n";
    let installation = Installation::new(&sandbox, &host, &format!("{config}{SERVICE}"));
    let ran = installation.fail_to_start(&installation.config_file());
    assert_eq!(ran.code, 4, "{ran:?}");
    for words in ["cannot attach to br0 by native XDP", "its driver cannot run XDP", "\"tc\""] {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    assert!(!installation.pin_dir().exists());

    // With another interface that can, it is a problem to show.
    installation.configure(&format!("[interfaces.lo]\n{config}{SERVICE}"));
    let agent = installation.launch();
    wait_attached(&agent, &["lo lo tc"]);
    let missing = agent.call("GET", "/readyz", "").expect_err("not ready");
    assert!(missing.contains("its driver cannot run XDP"), "{missing}");
    // What it was by config before is kept when a reload asks for what cannot be.
    installation.configure(&format!("[interfaces.lo]\n[interfaces.br0]\n{SERVICE}"));
    agent.call("POST", "/v1/reload", "{}").expect("reload");
    wait_attached(&agent, &["lo lo tc", "br0 br0 tc"]);
    installation.configure(&format!("[interfaces.lo]\n{config}{SERVICE}"));
    let notes = agent.call("POST", "/v1/reload", "{}").expect("reload");
    assert!(notes.contains("br0 is still attached by tc"), "{notes}");
    assert_eq!(programs(&host, "br0"), 1);
}

#[test]
fn auto_says_why() {
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    for (name, kind) in [("br", "bridge"), ("v1", "veth peer name v2")] {
        host.ip(&format!("link add name {name} type {kind}"));
    }
    host.ip("tuntap add dev tu mode tun");
    let config = format!("[interfaces.\"??\"]\n{SERVICE}");
    let installation = Installation::new(&sandbox, &host, &config);
    let agent = installation.start();
    for attachment in agent.status()["interfaces"].as_array().expect("a list") {
        let (name, reason) = (&attachment["interface"], attachment["reason"].as_str());
        let kind = match name.as_str().expect("a name") {
            "lo" => "loopback",
            "br" => "bridge device",
            "v1" | "v2" => "veth device",
            "tu" => "tun device",
            other => panic!("{other}"),
        };
        assert_eq!(attachment["hook"], "tc");
        assert!(reason.expect("a reason").starts_with(kind), "{attachment}");
    }
}

#[test]
fn dropped_messages_lead_to_a_fresh_look() {
    /// More than the socket's buffer holds.
    const ROUTES: u32 = 20_000;
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    let config = format!("[interfaces.lo]\n[interfaces.late]\n{SERVICE}");
    let installation = Installation::new(&sandbox, &host, &config);
    let agent = installation.launch();
    let pid = agent.status()["pid"].to_string();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill").success());
    };
    signal("-STOP");
    let batch: String = (0..ROUTES)
        .map(|n| {
            format!("route add blackhole 10.{}.{}.{}/32\n", 100 + (n >> 16), n >> 8 & 255, n & 255)
        })
        .collect();
    let file = sandbox.directory().join("routes");
    fs::write(&file, batch).expect("write a batch");
    batch_ip(&host, &file);
    host.ip("link add late type veth peer name other");
    signal("-CONT");
    agent.wait_ready();
    wait_attached(&agent, &["lo lo tc", "late late tc"]);
    assert!(installation.log().contains("the kernel dropped messages"), "{}", installation.log());
}

fn batch_ip(namespace: &Namespace, file: &Path) {
    let status = namespace
        .command("ip")
        .arg("-batch")
        .arg(file)
        .stdout(Stdio::null())
        .status()
        .expect("run ip");
    assert!(status.success());
}

/// One backend behind `g1`, which goes down and comes up under load. While it is down its route is gone:
/// new connections fail at once with "network is unreachable", whoever balances them. Open ones wait.
fn check_down_and_up(attach: &str) {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    if attach == "xdp" {
        network.face_xdp();
    }
    let endpoint = SocketAddr::new(Routed::virtual_address(Family::V4), 80);
    let backend = Routed::backend_address(Family::V4, 0, 8080);
    let _backend = HttpBackend::start(&network.backends[0], backend, "one");
    let config = format!(
        "[interfaces.\"g?\"]\nattach = \"{attach}\"\n\
         [services.web]\naddress = \"{endpoint}\"\ndefault_pool = \"web\"\n\
         [pools.web]\nbackends = [\"{backend}\"]\n"
    );
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let agent = installation.start();
    let load = Load::long(&network.client, endpoint, 4);
    load.wait_rounds(200);
    for _ in 0..5 {
        network.graylb.ip("link set dev g1 down");
        network.graylb.ip("link set dev g1 up");
        network.graylb.wait_usable();
        let fresh = network.client.run(|| client::ask(endpoint));
        assert_eq!(fresh.expect("an answer").backend, "one");
        load.wait_rounds(200);
    }
    let tally = load.finish();
    eprintln!("{attach}, link down and up five times: {tally}");
    tally.assert_clean();
    assert_eq!(attached(&agent).len(), 3);
}

#[test]
fn a_link_goes_down_and_comes_up_tc() {
    check_down_and_up("tc");
}

#[test]
fn a_link_goes_down_and_comes_up_xdp() {
    check_down_and_up("xdp");
}
