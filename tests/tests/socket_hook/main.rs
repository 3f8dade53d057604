//! The socket hook: clients on this host are connected to backends directly, and see the endpoint that
//! they asked for.

mod stage;

use std::{
    fs,
    io::{self, Read as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use graylb_common::maps::SOCKET_PROGRAMS;
use graylb_tests::sandbox::Sandbox;
use stage::{BOTH, HOOK_ALONE, MAPPED, SERVICES, Stage, VIRTUAL, VIRTUAL_V6, address, eventually};

fn started(config: &str) -> (Sandbox, Stage) {
    let sandbox = Sandbox::new();
    let stage = Stage::new(&sandbox, "host");
    stage.configure(&format!("{config}{SERVICES}"));
    stage.serve("");
    (sandbox, stage)
}

/// Sockets connected to the backends by what the kernel counts, all together.
fn active(stage: &Stage) -> i64 {
    let map = stage.pin("maps/socket_active");
    let output = std::process::Command::new("bpftool")
        .args(["--json", "map", "dump", "pinned"])
        .arg(map)
        .output()
        .expect("run bpftool");
    let entries: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let flows = |entry: &serde_json::Value| entry["formatted"]["value"]["flows"].as_i64();
    entries.as_array().expect("entries").iter().map(|e| flows(e).expect("a number")).sum()
}

#[test]
fn connections_go_to_backends_in_turns_and_show_the_virtual_endpoint() {
    let (_sandbox, stage) = started(BOTH);
    let _agent = stage.start();
    assert_eq!(stage.turns(VIRTUAL, 4), ["81", "82", "81", "82"]);
    assert_eq!(stage.turns(VIRTUAL_V6, 4), ["81", "82", "81", "82"]);
    assert_eq!(stage.turns(MAPPED, 3), ["81", "82", "81"]);
    // The backend sees the client itself, and no packet of the connection is graylb's.
    assert_eq!(stage.ask(VIRTUAL).expect("an answer").0, "82 127.0.0.1");
    for (verdict, count) in [("socket_steered", 12), ("delivered", 0), ("no_flow", 0)] {
        assert_eq!(stage.verdict(verdict), count, "{verdict}");
    }
    assert_eq!((stage.opened("tcp4", 0), stage.opened("tcp4", 1)), (4, 4));
    // The backend's own address is nobody's business.
    assert_eq!(stage.turns("127.0.0.1:18082", 1), ["82"]);
    assert_eq!(stage.verdict("socket_steered"), 12);
}

#[test]
fn sockets_are_counted_until_they_end() {
    let (_sandbox, stage) = started(BOTH);
    let _agent = stage.start();
    let streams: Vec<TcpStream> =
        stage.run(|| (0..3).map(|_| TcpStream::connect(VIRTUAL).expect("connect")).collect());
    let udp = stage.udp("127.0.0.1:0");
    udp.0.connect(VIRTUAL).expect("connect");
    assert_eq!(active(&stage), 4);
    udp.0.connect("127.0.0.1:18083").expect("connect");
    assert_eq!(udp.0.peer_addr().expect("a peer"), address("127.0.0.1:18083"));
    assert_eq!(udp.ask(), ("83".to_owned(), address("127.0.0.1:18083")));
    assert_eq!(active(&stage), 3);
    drop(streams);
    assert_eq!(active(&stage), 0);
}

#[test]
fn datagrams_stay_with_their_backend_and_replies_come_from_the_virtual_endpoint() {
    let (_sandbox, stage) = started(BOTH);
    let _agent = stage.start();
    for (local, target) in [
        ("127.0.0.1:0", VIRTUAL),
        ("[::1]:0", VIRTUAL_V6),
        ("[::]:0", MAPPED),
        ("0.0.0.0:0", VIRTUAL),
    ] {
        // Two sockets of either kind take turns; each stays where it is.
        let clients = [stage.udp(local), stage.udp(local)];
        let expected = ["81", "82"].map(|name| (name.to_owned(), address(target)));
        for _ in 0..3 {
            assert_eq!(
                clients.each_ref().map(|client| client.ask_at(target)),
                expected,
                "{target}"
            );
        }
        let clients = [stage.udp(local), stage.udp(local)];
        for client in &clients {
            client.0.connect(target).expect("connect");
            assert_eq!(client.0.peer_addr().expect("a peer"), address(target));
        }
        for _ in 0..3 {
            assert_eq!(clients.each_ref().map(stage::Udp::ask), expected, "{target}");
        }
    }
    // For each of the four: 6 datagrams and 2 connections.
    assert_eq!((stage.verdict("socket_steered"), stage.verdict("delivered")), (32, 0));
}

#[test]
fn a_pair_of_datagrams_ends_when_it_is_idle() {
    let (_sandbox, stage) = started(HOOK_ALONE);
    let _agent = stage.start();
    let client = stage.udp("127.0.0.1:0");
    let names: Vec<String> = (0..3)
        .map(|_| {
            let (name, _) = client.ask_at(VIRTUAL);
            thread::sleep(Duration::from_millis(1200)); // udp_timeout and a tick of the coarse clock
            name
        })
        .collect();
    assert_eq!(names, ["81", "82", "81"]);
}

#[test]
fn one_socket_and_two_services_with_the_same_backend_are_told_apart() {
    let (_sandbox, stage) = started(BOTH);
    let agent = stage.start();
    stage.cli(&["switch", "udp4", "green4"]);
    let client = stage.udp("127.0.0.1:0");
    for target in ["127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8000", "127.0.0.1:8001"] {
        assert_eq!(client.ask_at(target), ("83".to_owned(), address(target)));
    }
    // What the hook could not tell apart went the packets' way.
    assert_eq!((stage.verdict("socket_steered"), stage.verdict("delivered")), (2, 4));
    drop(agent);
}

#[test]
fn a_switch_is_for_the_next_connection() {
    let (_sandbox, stage) = started(HOOK_ALONE);
    let _agent = stage.start();
    let mut before = stage.run(|| TcpStream::connect(VIRTUAL)).expect("connect");
    let pinned = stage.udp("127.0.0.1:0");
    assert_eq!(pinned.ask_at(VIRTUAL).0, "81");
    for service in ["tcp4", "udp4"] {
        stage.cli(&["switch", service, "green4"]);
    }
    assert_eq!(stage.turns(VIRTUAL, 3), ["83", "83", "83"]);
    assert_eq!(stage.udp("127.0.0.1:0").ask_at(VIRTUAL).0, "83");
    assert_eq!(pinned.ask_at(VIRTUAL).0, "81");
    let mut text = String::new();
    before.read_to_string(&mut text).expect("an answer");
    assert_eq!(text, "81 127.0.0.1");
}

/// A service on an address of the host's own that is not a loopback one, with pools of two modes.
const MODES: &str = r#"
[services.far]
address = "192.0.2.10:8000"
default_pool = "direct"
[pools.direct]
backends = ["192.0.2.20:18081", "192.0.2.20:18082"]
mode = "snat"
sources = ["192.0.2.30"]
[pools.nat]
backends = ["127.0.0.1:18083"]
"#;

#[test]
fn a_pool_whose_mode_is_about_packets_is_left_to_them() {
    let (_sandbox, stage) = started(&format!("{BOTH}{MODES}"));
    for host in ["192.0.2.10", "192.0.2.20", "192.0.2.30"] {
        stage::ip(&["-n", stage.name(), "address", "add", host, "dev", "lo"]);
    }
    let _agent = stage.start();
    let target = "192.0.2.10:8000";
    for _ in 0..4 {
        // Whether packets get there is not the hook's business.
        let _either_way =
            stage.run(|| TcpStream::connect_timeout(&address(target), Duration::from_millis(100)));
    }
    // The packets' turns are as strict as without the hook.
    assert_eq!((stage.opened("far", 0), stage.opened("far", 1)), (2, 2));
    assert_eq!(stage.verdict("socket_steered"), 0);
    stage.cli(&["switch", "far", "nat"]);
    assert_eq!(stage.turns(target, 2), ["83", "83"]);
    assert_eq!(stage.verdict("socket_steered"), 2);
}

/// Connects all the time until told to stop; how often.
fn connect_until(stage: &Stage, stop: &AtomicBool) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) || count < 10 {
        // Nobody listens at the virtual endpoint: a connection that the hook misses fails.
        stage.turns(VIRTUAL, 1);
        count += 1;
    }
    count
}

#[test]
fn the_hook_outlives_its_agent_and_is_replaced_in_place() {
    let (_sandbox, stage) = started(HOOK_ALONE);
    stage.start().kill();
    assert_eq!(stage.socket_links().len(), SOCKET_PROGRAMS.len());
    assert_eq!(stage.turns(VIRTUAL, 4), ["81", "82", "81", "82"]);
    let open = stage.run(|| TcpStream::connect(VIRTUAL)).expect("connect");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = scope.spawn(|| connect_until(&stage, &stop));
        for _ in 0..5 {
            stage.start().kill();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(clients.join().expect("no connection fails") >= 10);
    });
    assert_eq!(open.peer_addr().expect("a peer"), address(VIRTUAL));
    // Counting went on over all restarts.
    assert_eq!(active(&stage), 1);
    drop(open);
    assert_eq!(active(&stage), 0);

    let pin_dir = stage.pin("").parent().expect("a parent").to_owned();
    let unloaded = stage.cli(&["unload", "--pin-dir", pin_dir.to_str().expect("a path")]);
    assert!(unloaded.contains("detached graylb_connect4:cgroup-"), "{unloaded}");
    let refused = stage.ask(VIRTUAL).expect_err("nobody is there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(!pin_dir.exists());
}

#[test]
fn agents_in_two_namespaces_do_not_meet() {
    let sandboxes = [Sandbox::new(), Sandbox::new()];
    let stages = sandboxes.each_ref().map(|sandbox| Stage::new(sandbox, "host"));
    let mut agents = Vec::new();
    for (stage, mark) in stages.iter().zip(["a", "b"]) {
        stage.configure(&format!("{HOOK_ALONE}{SERVICES}"));
        stage.serve(mark);
        agents.push(stage.start());
    }
    assert_eq!(stages[0].turns(VIRTUAL, 2), ["a81", "a82"]);
    assert_eq!(stages[1].turns(VIRTUAL_V6, 2), ["b81", "b82"]);
    assert_eq!(stages[0].verdict("socket_steered"), 2);
    assert_eq!(stages[1].verdict("socket_steered"), 2);
    // A third namespace, where no agent is.
    let elsewhere = Stage::new(&sandboxes[0], "elsewhere");
    for target in [VIRTUAL, VIRTUAL_V6] {
        let error = elsewhere.ask(target).expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
    elsewhere.serve("c");
    assert_eq!(elsewhere.turns("127.0.0.1:18081", 1), ["c81"]);
    drop(agents.remove(0));
    drop(sandboxes); // with the first agent's pins
}

#[test]
fn a_dead_backend_refuses_its_client_until_its_probe_takes_it_out() {
    let sandbox = Sandbox::new();
    let stage = Stage::new(&sandbox, "host");
    let services = SERVICES.replace("127.0.0.1:18082", "127.0.0.1:18099");
    stage.configure(&format!("{HOOK_ALONE}{services}"));
    stage.serve("");
    let agent = stage.start();
    let mut refused = 0;
    for _ in 0..4 {
        match stage.ask(VIRTUAL) {
            Ok((text, _)) => assert_eq!(text, "81 127.0.0.1"),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 2);
    drop(agent);
    let probe =
        "probe = { type = \"tcp\", interval = \"50ms\", rise = 1, fall = 1 }\n[pools.blue6]";
    stage.configure(&format!("{HOOK_ALONE}{}", services.replace("[pools.blue6]", probe)));
    let _agent = stage.start();
    eventually("the dead one is out", || {
        let status = stage.status();
        let service = status["services"].as_array()?.iter().find(|s| s["name"] == "tcp4")?.clone();
        let takes = |n: usize| service["backends"][n]["takes_flows"].as_bool();
        (takes(0) == Some(true) && takes(1) == Some(false)).then_some(())
    });
    assert_eq!(stage.turns(VIRTUAL, 4), ["81"; 4]);
}

#[test]
fn a_reload_turns_the_hook_on_and_off() {
    let (_sandbox, stage) = started("[interfaces.lo]\n");
    let _agent = stage.start();
    assert!(stage.status().get("socket_hook").is_none());
    for _ in 0..2 {
        assert_eq!(
            stage.ask(VIRTUAL).expect("an answer").0.split_once(' ').expect("two").1,
            "127.64.0.1"
        );
        assert_eq!(stage.socket_links(), Vec::<String>::new());
        stage.configure(&format!("{BOTH}{SERVICES}"));
        stage.cli(&["reload"]);
        assert_eq!(
            stage.ask(VIRTUAL).expect("an answer").0.split_once(' ').expect("two").1,
            "127.0.0.1"
        );
        assert_eq!(stage.socket_links().len(), SOCKET_PROGRAMS.len());
        assert!(stage.cli(&["status"]).contains("socket hook at /"));
        stage.configure(&format!("[interfaces.lo]\n{SERVICES}"));
        stage.cli(&["reload"]);
    }
    // What cannot be: said, and what is in force stays.
    stage.configure(&format!(
        "[socket_hook]\nenabled = true\ncgroup = \"/proc\"\n[interfaces.lo]\n{SERVICES}"
    ));
    let notes = stage.cli(&["reload"]);
    assert!(notes.contains("/proc, which is on no cgroup2 file system"), "{notes}");
    let status = stage.status();
    assert!(status["problems"][0].as_str().expect("a problem").contains("cgroup2"), "{status}");
    assert_eq!(stage.turns(VIRTUAL, 2).len(), 2);
}

#[test]
fn a_start_without_its_cgroup_is_refused_and_leaves_nothing() {
    let (sandbox, stage) =
        started("[socket_hook]\nenabled = true\ncgroup = \"/nonexistent\"\n[interfaces.lo]\n");
    let config = stage.config_file();
    let refused = stage.graylb(&["run", "--config", config.to_str().expect("a path")]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{why}");
    assert!(why.contains("cannot open the socket hook's cgroup /nonexistent"), "{why}");
    assert!(!sandbox.pin_dir().exists());
}

/// A cgroup below the root; dropped, it is removed.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let root = line.and_then(|line| line.split(' ').nth(1)).expect("a cgroup2 mount");
        let path = Path::new(root).join(name);
        fs::create_dir(&path).expect("make a cgroup");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _busy = fs::remove_dir(&self.0);
    }
}

/// What a connection from a process in `cgroup`, or in this one's, says.
fn ask_in(stage: &Stage, cgroup: Option<&Cgroup>) -> String {
    let join = cgroup.map_or_else(String::new, |cgroup| {
        format!("echo $$ >{}; ", cgroup.0.join("cgroup.procs").display())
    });
    let script = format!("{join}exec 3<>/dev/tcp/127.0.0.1/8000 && cat <&3");
    let output = stage.command("bash").args(["-c", &script]).output().expect("run bash");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_configured_cgroup_limits_the_hook_to_its_processes() {
    let (sandbox, stage) = started(HOOK_ALONE);
    let cgroup = Cgroup::new(sandbox.name());
    let hook = format!("[socket_hook]\nenabled = true\ncgroup = {:?}\n", cgroup.0);
    stage.configure(&format!("{hook}[interfaces.elsewhere]\n{SERVICES}"));
    let agent = stage.start();
    assert_eq!(stage.status()["socket_hook"]["cgroup"], *cgroup.0.to_str().expect("a path"));
    assert_eq!(ask_in(&stage, Some(&cgroup)), "81 127.0.0.1");
    assert_eq!(ask_in(&stage, None), "");
    agent.kill();
    // Another cgroup at the next start: the old links go.
    stage.configure(&format!("{HOOK_ALONE}{SERVICES}"));
    let agent = stage.start();
    assert_eq!(stage.socket_links().len(), SOCKET_PROGRAMS.len());
    assert_eq!(ask_in(&stage, None), "82 127.0.0.1");
    agent.kill();
    // And a cgroup that is removed takes the links to it along.
    stage.configure(&format!("{hook}[interfaces.elsewhere]\n{SERVICES}"));
    stage.start().kill();
    drop(cgroup);
    assert_eq!(ask_in(&stage, None), "");
}
