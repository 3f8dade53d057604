//! Large tables: times are printed, not asserted, except that nothing may be quadratic.

use std::time::Duration;

use aya::maps::{Array, Map};
use graylb_agent::{
    apply::DataPlane,
    compile::Change,
    config::{FlowsConfig, LimitsConfig, map_sizes},
    model::{
        mode::{Mode, Sources},
        spec::{Endpoint, Protocol},
    },
};
use graylb_common::{flow::Flow, maps};
use graylb_tests::flow_lab::{FlowLab, Pair, backend, put, rules, service};

/// CPU time of this thread: the machine may be busy with other things.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Fills a table with half as many flows, and sweeps it.
fn sweep(entries: u32) {
    let flows =
        FlowsConfig { tcp: 2 * entries, half_open: 1024, udp: 1024, ..FlowsConfig::default() };
    let mut lab = FlowLab::new(flows, LimitsConfig::default());
    lab.put(service(1, Protocol::Tcp), &[backend(0), backend(1)]);
    let mut table = lab.table::<Flow<[u8; 4]>>(maps::TCP_V4);
    for n in 0..entries / 2 {
        Pair::new(n, n % 2, Duration::from_secs(u64::from(n % 3600))).insert(&mut table);
    }
    let (mut slices, mut longest) = (0, Duration::ZERO);
    let began = cpu_time();
    let report = lab.sweeper.sweep(&rules(), graylb_tests::flow_lab::NOW_NS, &mut |took| {
        slices += 1;
        longest = longest.max(took);
    });
    let work = cpu_time() - began;
    let found = report.expect("sweep").tables[0].entries;
    println!(
        "{found} entries: {work:.1?} of CPU in {slices} slices, the longest {longest:.1?} by the clock"
    );
    assert_eq!(found, u64::from(entries));
    let over = graylb_agent::model::ageing::Rules {
        timeouts: graylb_agent::model::ageing::Timeouts { tcp: Duration::ZERO, ..rules().timeouts },
        ..rules()
    };
    let began = cpu_time();
    let report = lab.sweep(&over);
    println!(
        "{} entries removed: {:.1?} of CPU",
        u64::from(entries) - report.tables[0].entries,
        cpu_time() - began
    );
}

#[test]
fn a_hundred_thousand_entries_are_swept() {
    sweep(100_000);
}

#[test]
#[ignore = "takes 700 MB of kernel memory and a while; run with --ignored --nocapture"]
fn a_million_entries_are_swept() {
    sweep(1_000_000);
}

/// Puts so many services of two backends each in force; returns how long that took and how long one
/// switch takes then (the median of a few).
fn apply(services: u32) -> (Duration, Duration) {
    let limits = LimitsConfig {
        services,
        slots: 4 * services,
        backends: 4 * services,
        routes: 4 * services,
        ..LimitsConfig::default()
    };
    let flows = FlowsConfig { tcp: 1024, half_open: 1024, udp: 1024, ..FlowsConfig::default() };
    let mut lab = FlowLab::new(flows, limits);
    let began = cpu_time();
    for n in 0..services {
        lab.put(service(n, Protocol::Tcp), &[backend(2 * n), backend(2 * n + 1)]);
    }
    let all = cpu_time() - began;
    let mut switches: Vec<Duration> = (0..9)
        .map(|n| {
            let n = n * services / 9;
            let change = put(service(n, Protocol::Tcp), 2, &[backend(2 * n), backend(2 * n + 1)]);
            let began = cpu_time();
            lab.plane.apply(&change).expect("switch");
            cpu_time() - began
        })
        .collect();
    switches.sort();
    let began = cpu_time();
    assert_eq!(lab.plane.counters().expect("counters").len() as u32, 2 * services + 18);
    let counters = cpu_time() - began;
    println!(
        "CPU time: {services} services applied in {all:.1?}, a switch takes {:.1?}, reading all counters {counters:.1?}",
        switches[4]
    );
    (all, switches[4])
}

#[test]
fn ten_thousand_services_are_put_in_force() {
    let (few, switch_among_few) = apply(1000);
    let (many, switch_among_many) = apply(10_000);
    // Ten times as many; quadratic would be a hundred times.
    assert!(many < few * 40, "{many:?} after {few:?}");
    assert!(switch_among_many < switch_among_few * 10 + Duration::from_millis(1));
}

#[test]
fn memory_is_as_check_says() {
    let (flows, limits) = (FlowsConfig::default(), LimitsConfig::default());
    let lab = FlowLab::new(flows.clone(), limits.clone());
    let cpus = graylb_agent::apply::possible_cpus() as u64;
    let sizes = map_sizes(&flows, &limits);
    for size in &sizes {
        let map = lab.map(size.name);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(map.fd()));
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
        let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        let memlock: u64 = memlock.expect("memlock").trim().parse().expect("number");
        // Nothing is in them yet.
        let said = if size.grows() { 0 } else { size.memory(cpus) };
        println!("{:<14} {memlock:>10} bytes, said {said}", size.name);
        assert!(
            said.abs_diff(memlock) <= memlock / 10 + 8192,
            "{}: {memlock}, said {said}",
            size.name
        );
    }
}

#[test]
fn an_index_is_not_given_away_while_flows_lead_to_it() {
    let limits = LimitsConfig { backends: 4, ..LimitsConfig::default() };
    let mut lab = FlowLab::new(FlowsConfig::default(), limits);
    let endpoint = service(1, Protocol::Tcp);
    for pool in [1, 2] {
        let change = put(endpoint, pool, &[backend(0), backend(1)]);
        lab.plane.apply(&change).expect("put");
    }
    let flows = |flows| graylb_common::backend::Active { flows };
    lab.active().set(0, flows(1), 0).expect("set");
    let mut sockets = Array::try_from(Map::Array(lab.map(maps::SOCKET_ACTIVE))).expect("an array");
    sockets.set(1, flows(1), 0).expect("set");
    let counted = lab.plane.counters().expect("counters");
    assert_eq!((counted[0].active, counted[1].active), (1, 1), "sockets count like flows");
    let third = put(endpoint, 3, &[backend(2), backend(3)]);
    let error = lab.plane.apply(&third).expect_err("no index is free").to_string();
    assert!(error.contains("limits.backends"), "{error}");
    assert_eq!(lab.plane.generation(&endpoint), Some(2), "what was in force still is");
    lab.active().set(0, flows(0), 0).expect("set");
    sockets.set(1, flows(0), 0).expect("set");
    assert_eq!(lab.plane.apply(&third).expect("put"), 3);
    let indices: Vec<u32> = lab.plane.backend_indices(&endpoint).map(|(_, _, i)| i).collect();
    assert_eq!(indices, [2, 3, 0, 1], "pool 2 keeps its own, pool 3 has those of pool 1");
}

#[test]
fn one_change_gives_no_index_twice() {
    let limits = LimitsConfig { backends: 3, ..LimitsConfig::default() };
    let mut lab = FlowLab::new(FlowsConfig::default(), limits);
    let endpoint = service(1, Protocol::Tcp);
    for n in 0..3 {
        lab.plane.apply(&put(endpoint, n, &[backend(n)])).expect("put");
    }
    lab.active().set(1, graylb_common::backend::Active { flows: 1 }, 0).expect("set");
    // One index is free: that of pool 0.
    let error = lab.plane.apply(&put(endpoint, 3, &[backend(3), backend(4)])).expect_err("full");
    assert!(error.to_string().contains("limits.backends"), "{error}");
    assert_eq!(lab.plane.apply(&put(endpoint, 4, &[backend(5)])).expect("put"), 4);
}

/// A service whose backend packets reach in a tunnel from this address.
fn tunnelled(endpoint: Endpoint, pool: u32, source: &str) -> Change {
    let sources = vec![source.parse().expect("address")];
    let mode = Mode::Ipip(Sources::new(sources, (1, 1)).expect("sources"));
    match put(endpoint, pool, &[backend(0)]) {
        Change::Put(endpoint, mut image) => {
            image.stable.mode = mode;
            Change::Put(endpoint, image)
        }
        remove @ Change::Remove(_) => remove,
    }
}

fn refused(plane: &mut DataPlane, change: &Change) -> String {
    plane.apply(change).expect_err("no source is free").to_string()
}

/// Tunnels look their source up for each packet, also after a switch, and after their service is gone.
#[test]
fn a_source_is_not_given_away_while_flows_come_from_it() {
    let limits = LimitsConfig { sources: 1, ..LimitsConfig::default() };
    let flows = FlowsConfig::default();
    let FlowLab { mut plane, sandbox, sweeper } = FlowLab::new(flows.clone(), limits.clone());
    drop(sweeper);
    let active = |sandbox: &_, flows| {
        let mut active = graylb_tests::flow_lab::active(sandbox);
        active.set(0, graylb_common::backend::Active { flows }, 0).expect("set");
    };
    let endpoint = service(1, Protocol::Tcp);
    plane.apply(&tunnelled(endpoint, 1, "10.0.0.1")).expect("put");
    active(&sandbox, 1);
    plane.apply(&put(endpoint, 2, &[backend(1)])).expect("switch");
    let other = tunnelled(service(2, Protocol::Tcp), 3, "10.0.0.2");
    assert!(refused(&mut plane, &other).contains("limits.sources"), "switched away");
    plane.apply(&Change::Remove(endpoint)).expect("remove");
    assert!(refused(&mut plane, &other).contains("limits.sources"), "its service is gone");
    drop(plane);
    let mut plane = graylb_tests::flow_lab::open(&sandbox, flows, limits);
    assert!(refused(&mut plane, &other).contains("limits.sources"), "after a restart");
    active(&sandbox, 0);
    plane.apply(&other).expect("nobody needs the other source any more");
}
