//! The agent is killed, stopped and started under load: traffic goes on as last told, nothing fails, and
//! the next agent takes over in place.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use graylb_tests::{
    agent::{Agent, Installation},
    api::Api,
    backend::HttpBackend,
    client::{self, Connection},
    eventually::{SOON, eventually},
    load::Load,
    namespace::Namespace,
    sandbox::Sandbox,
    stage::Stage,
    topology::{Family, Routed},
};

/// A pinned link's number and its program's, from bpftool.
fn link(pin: &Path) -> (u64, u64) {
    let output = Command::new("bpftool")
        .args(["--json", "link", "show", "pinned"])
        .arg(pin)
        .output()
        .expect("run bpftool");
    let text = String::from_utf8_lossy(&output.stdout);
    let link: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (link["id"].as_u64().expect("id"), link["prog_id"].as_u64().expect("prog_id"))
}

/// What is restarted, and what must not notice.
struct Scene<'i> {
    client: &'i Namespace,
    endpoint: SocketAddr,
    installation: &'i Installation,
    /// A pool to switch to, and its backends.
    other: (&'i str, &'i [&'i str]),
    /// One of the links.
    link: &'i str,
}

/// Ends the agent and starts it again, again and again, under load, after a switch.
fn check_restarts<'i>(scene: &Scene<'i>, end: fn(Agent<'i>)) {
    let &Scene { client, endpoint, installation, other: (pool, switched), link: link_pin } = scene;
    let is_switched = || {
        let reply = client.run(|| client::ask(endpoint)).unwrap_or_else(|e| panic!("{e}"));
        assert!(switched.contains(&reply.backend.as_str()), "{} answered", reply.backend);
    };
    let mut agent = installation.start();
    let mut old = client.run(|| Connection::open(endpoint)).expect("connect");
    let home = old.ask().expect("an answer").backend;
    assert!(!switched.contains(&home.as_str()));
    installation.api().switch("demo", pool);
    is_switched();
    let (link_before, mut program) = link(&installation.pin(link_pin));
    let short = Load::short(client, endpoint, 2);
    let long = Load::long(client, endpoint, 1);
    for _ in 0..4 {
        short.wait_rounds(50);
        end(agent);
        short.wait_rounds(150);
        long.wait_rounds(50);
        is_switched();
        assert_eq!(old.ask().expect("the old connection, without an agent").backend, home);
        agent = installation.start();
        short.wait_rounds(150);
        is_switched();
        assert_eq!(old.ask().expect("the old connection, with the next agent").backend, home);
        let (link_after, program_after) = link(&installation.pin(link_pin));
        assert_eq!(link_after, link_before, "the link is taken over in place");
        assert_ne!(program_after, program, "the program is the new agent's");
        program = program_after;
    }
    let (short, long) = (short.finish(), long.finish());
    println!("4 restarts; short: {short}; long: {long}");
    short.assert_clean();
    long.assert_clean();
    let service = &agent.status()["services"][0];
    assert_eq!((&service["pool"], &service["overridden"]), (&pool.into(), &true.into()));
}

fn check_routed(attach: &str, link: &str) {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    if attach == "xdp" {
        network.face_xdp();
    }
    let endpoint = SocketAddr::new(Routed::virtual_address(Family::V6), 80);
    let [blue, green] = [0, 1].map(|number| Routed::backend_address(Family::V6, number, 8080));
    let _backends = [
        HttpBackend::start(&network.backends[0], blue, "blue1"),
        HttpBackend::start(&network.backends[1], green, "green1"),
    ];
    let interfaces = Routed::INTERFACES
        .map(|name| format!("[interfaces.{name}]\nattach = \"{attach}\"\n"))
        .concat();
    let config = format!(
        "{interfaces}[services.demo]\naddress = \"{endpoint}\"\ndefault_pool = \"blue\"\n\
         [pools.blue]\nbackends = [\"{blue}\"]\n[pools.green]\nbackends = [\"{green}\"]\n"
    );
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let scene = Scene {
        client: &network.client,
        endpoint,
        installation: &installation,
        other: ("green", &["green1"]),
        link,
    };
    check_restarts(&scene, Agent::kill);
}

fn on_loopback(stage: &Stage) -> Scene<'_> {
    Scene {
        client: &stage.host,
        endpoint: Stage::endpoint(),
        installation: &stage.installation,
        other: ("lua_upstream", &["83", "84"]),
        link: "links/tc_in:lo",
    }
}

#[test]
fn killed_on_loopback() {
    let stage = Stage::new(Some(r#"{ type = "http", interval = "100ms" }"#));
    check_restarts(&on_loopback(&stage), Agent::kill);
}

#[test]
fn stopped_on_loopback() {
    let stage = Stage::new(None);
    check_restarts(&on_loopback(&stage), Agent::stop);
}

#[test]
fn killed_between_namespaces_on_tc() {
    check_routed("tc", "links/tc_in:gc");
}

#[test]
fn killed_between_namespaces_on_native_xdp() {
    check_routed("xdp", "links/xdp:gc");
}

/// Three places to switch to, and who answers there.
const TARGETS: [(&str, [&str; 2]); 3] = [
    ("default_upstream", ["81", "82"]),
    ("lua_upstream", ["83", "84"]),
    ("127.0.0.1:18082,127.0.0.1:18083", ["82", "83"]),
];

/// Switches to one target after another until the agent is gone; the number of the last one answered.
fn switch_until_it_ends(mut api: Api, answered: &AtomicUsize) -> usize {
    let number = (0..).find(|number| {
        let failed = api.try_switch("demo", TARGETS[number % 3].0).is_err();
        answered.fetch_add(usize::from(!failed), Ordering::Relaxed);
        failed
    });
    number.expect("the agent is gone").checked_sub(1).expect("one switch at least")
}

/// Kills the agent at any moment of a switch. What was answered is kept, what was not is whole or not
/// there at all.
#[test]
fn killed_in_the_middle_of_switches() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let mut agent = installation.start();
    let short = Load::short(&stage.host, Stage::endpoint(), 2);
    for round in 0..8_u64 {
        let api = installation.api();
        let answered = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&answered);
        let switching = thread::spawn(move || switch_until_it_ends(api, &counter));
        eventually("some switches", SOON, || match answered.load(Ordering::Relaxed) {
            count @ ..3 => Err(count),
            _ => Ok(()),
        });
        // Each time another part of the next one.
        thread::sleep(Duration::from_micros(371 * round));
        agent.kill();
        let answered = switching.join().expect("the switches");
        short.wait_rounds(50);
        agent = installation.start();
        let pool = agent.status()["services"][0]["pool"].clone();
        let (last, next) = (TARGETS[answered % 3], TARGETS[(answered + 1) % 3]);
        let in_force = [last, next].into_iter().find(|(name, _)| pool == *name);
        let Some((_, backends)) = in_force else {
            panic!("{pool} is in force after {} was answered", last.0)
        };
        let strangers = stage.turns(4).into_iter().find(|name| !backends.contains(&name.as_str()));
        assert_eq!(strangers, None, "{pool} is in force");
    }
    let short = short.finish();
    println!("8 times killed while switching: {short}");
    short.assert_clean();
}
