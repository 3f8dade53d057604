//! Sweeps of flow tables filled by hand: what goes, what stays, what the counters say after.

use std::time::{Duration, Instant};

use graylb_agent::{
    apply::FlowWatch,
    config::{FlowsConfig, LimitsConfig},
    model::{
        ageing::{End, Rules},
        spec::Protocol,
    },
};
use graylb_common::{
    backend::{Active, MODE_DSR, MODE_IPIP},
    flow::{FLOW_CHALLENGED, FLOW_CLOSED, FLOW_FIN, FLOW_RESET, Flow, HalfOpen},
    maps,
};
use graylb_tests::flow_lab::{FlowLab, NOW_NS, Pair, backend, rules, service};

const BOTH: [bool; 2] = [true, true];
const NEITHER: [bool; 2] = [false, false];

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A lab with one TCP and one UDP service of two backends each: indices 0 and 1, 2 and 3.
fn lab() -> FlowLab {
    let flows = FlowsConfig { tcp: 4096, half_open: 1024, udp: 4096, ..FlowsConfig::default() };
    let mut lab = FlowLab::new(flows, LimitsConfig::default());
    lab.put(service(1, Protocol::Tcp), &[backend(0), backend(1)]);
    lab.put(service(1, Protocol::Udp), &[backend(2), backend(3)]);
    lab
}

fn set_active(lab: &FlowLab, backend: u32, flows: u64) {
    lab.active().set(backend, Active { flows }, 0).expect("set a counter");
}

fn active(lab: &FlowLab) -> [u64; 4] {
    [0, 1, 2, 3].map(|backend| lab.active().get(&backend, 0).expect("counter").flows)
}

#[test]
fn flows_go_when_they_are_over_and_not_before() {
    let closed = FLOW_FIN | FLOW_CLOSED;
    let reset = FLOW_RESET | FLOW_CLOSED;
    let cases = [
        ("established, in use", maps::TCP_V4, 0, 0, BOTH),
        ("established, idle for less than the timeout", maps::TCP_V4, 0, 7439, BOTH),
        ("established, idle for longer", maps::TCP_V4, 0, 7441, NEITHER),
        ("closed just now", maps::TCP_V4, closed, 59, BOTH),
        ("closed a while ago", maps::TCP_V4, closed, 61, NEITHER),
        ("reset just now", maps::TCP_V4, reset, 9, BOTH),
        ("reset a while ago", maps::TCP_V4, reset, 11, NEITHER),
        ("UDP, in use", maps::UDP_V4, 0, 29, BOTH),
        ("UDP, idle", maps::UDP_V4, 0, 31, NEITHER),
    ];
    let mut lab = lab();
    let pairs: Vec<Pair> = (0..)
        .zip(cases)
        .map(|(n, (_, map, state, idle, _))| {
            let pair = Pair::new(n, 0, seconds(idle)).with_state(state);
            pair.insert(&mut lab.table(map));
            pair
        })
        .collect();
    let report = lab.sweep_all(&rules());
    for (pair, (what, map, _, _, left)) in pairs.iter().zip(cases) {
        assert_eq!(pair.is_in(&lab.table(map)), left, "{what}");
    }
    let ended = |end| report.ended.get(&end).copied();
    assert_eq!(
        [ended(End::Idle), ended(End::Closed), ended(End::Reset), ended(End::Alone)],
        [Some(2), Some(1), Some(1), None]
    );
    assert_eq!(report.tables[0].entries, 8, "four TCP flows are left");
}

#[test]
fn half_open_flows_go_and_are_counted() {
    let mut lab = lab();
    let mut table = lab.table::<HalfOpen<[u8; 4]>>(maps::HALF_OPEN_V4);
    for (n, idle, state) in [(1, 5, 0), (2, 61, 0), (3, 11, FLOW_RESET), (4, 5, FLOW_RESET)] {
        let pair = Pair::new(n, 1, seconds(idle)).with_state(state);
        let half = |flow| HalfOpen { flow, client_isn: 1, server_isn: 0 };
        table.insert(pair.key, half(pair.forward), 0).expect("insert");
        table.insert(pair.reply_key, half(pair.reply), 0).expect("insert");
    }
    let report = lab.sweep(&rules());
    assert_eq!(report.ended.get(&End::Unfinished), Some(&1));
    assert_eq!(report.ended.get(&End::Reset), Some(&1));
    assert_eq!(report.backends[&1].half_open, 2, "the one that went is counted once more");
    let report = lab.sweep(&rules());
    let flows = report.backends[&1];
    assert_eq!((flows.half_open, flows.closing, report.tables[1].entries), (1, 1, 4));
    assert_eq!(active(&lab)[1], 1);
}

#[test]
fn both_directions_go_together_or_not_at_all() {
    let mut lab = lab();
    let mut table = lab.table::<Flow<[u8; 4]>>(maps::TCP_V4);
    // The client is silent, the backend is not: a long download.
    let mut download = Pair::new(1, 0, seconds(9000));
    download.reply.last_seen_ns = NOW_NS;
    download.insert(&mut table);
    // The backend's direction was evicted.
    let half = Pair::new(2, 0, seconds(11));
    table.insert(half.key, half.forward, 0).expect("insert");
    // The client's direction was evicted.
    let other_half = Pair::new(3, 0, seconds(11));
    table.insert(other_half.reply_key, other_half.reply, 0).expect("insert");
    // The same, a moment ago.
    let young = Pair::new(4, 0, seconds(9));
    table.insert(young.key, young.forward, 0).expect("insert");
    // Another flow has the place of the backend's direction.
    let (old, new) = (Pair::new(5, 0, seconds(9000)), Pair::new(6, 0, seconds(0)));
    table.insert(old.key, old.forward, 0).expect("insert");
    table.insert(old.reply_key, new.reply, 0).expect("insert");
    let stranger = new.reply;
    // The backend's packets never come by.
    let mut direct = Pair::new(7, 0, seconds(300));
    direct.forward.mode = u32::from(MODE_DSR);
    table.insert(direct.key, direct.forward, 0).expect("insert");

    lab.sweep(&rules());
    assert_eq!(table.get(&old.reply_key, 0).ok(), Some(stranger), "not the old flow's to remove");
    let report = lab.sweep_all(&rules());
    assert_eq!(download.is_in(&table), BOTH);
    assert_eq!(half.is_in(&table), NEITHER);
    assert_eq!(other_half.is_in(&table), NEITHER);
    assert_eq!(young.is_in(&table), [true, false]);
    assert!(!old.is_in(&table)[0]);
    assert_eq!(direct.is_in(&table), [true, false]);
    assert_eq!(report.ended.get(&End::Alone), Some(&2));
}

#[test]
fn a_flow_that_is_about_to_be_taken_over_is_left_alone() {
    let mut lab = lab();
    let mut table = lab.table::<Flow<[u8; 4]>>(maps::TCP_V4);
    let mut half_open = lab.table::<HalfOpen<[u8; 4]>>(maps::HALF_OPEN_V4);
    let pair = Pair::new(1, 0, seconds(9000)).with_state(FLOW_CHALLENGED);
    pair.insert(&mut table);
    let now = Pair::new(1, 1, seconds(1));
    let half = HalfOpen { flow: now.forward, client_isn: 1, server_isn: 0 };
    half_open.insert(pair.key, half, 0).expect("insert");
    lab.sweep(&rules());
    assert_eq!(pair.is_in(&table), BOTH);
    half_open.remove(&pair.key).expect("remove");
    lab.sweep(&rules());
    assert_eq!(pair.is_in(&table), NEITHER);
}

#[test]
fn counters_of_active_flows_are_mended() {
    let mut lab = lab();
    let mut tcp = lab.table::<Flow<[u8; 4]>>(maps::TCP_V4);
    let mut udp = lab.table::<Flow<[u8; 4]>>(maps::UDP_V4);
    for n in 0..10 {
        Pair::new(n, 0, seconds(0)).insert(&mut tcp);
    }
    for n in 10..13 {
        Pair::new(n, 1, seconds(9000)).insert(&mut tcp);
    }
    Pair::new(13, 1, seconds(0)).with_state(FLOW_CLOSED).insert(&mut tcp);
    for n in 0..4 {
        Pair::new(n, 2, seconds(0)).insert(&mut udp);
    }
    // Five were evicted; right; too few; below zero.
    set_active(&lab, 0, 15);
    set_active(&lab, 1, 3);
    set_active(&lab, 2, 1);
    set_active(&lab, 3, u64::MAX - 6);
    let report = lab.sweep(&rules());
    assert_eq!(active(&lab), [10, 0, 4, 0]);
    assert_eq!(report.vanished.get(&0), Some(&5));
    assert_eq!(report.vanished.get(&1), None, "what ages away has not vanished");
    assert_eq!(report.backends[&0].established, 10);
    assert_eq!(report.backends[&2].udp, 4);
    assert_eq!(report.backends[&0].oldest_generation, Some(1));
    let again = lab.sweep(&rules());
    assert_eq!((active(&lab), again.vanished), ([10, 0, 4, 0], report.vanished));
}

/// In modes dsr and ipip the backend's direction has no entry, and is not missed.
#[test]
fn one_way_flows_age_and_count_by_the_clients_direction() {
    let tables = [
        (maps::TCP_V4, 0, seconds(7439), seconds(7441), End::Idle),
        (maps::TCP_V4, FLOW_FIN | FLOW_CLOSED, seconds(59), seconds(61), End::Closed),
        (maps::UDP_V4, 0, seconds(29), seconds(31), End::Idle),
    ];
    for mode in [MODE_DSR, MODE_IPIP] {
        for (name, state, young, old, why) in tables {
            let mut lab = lab();
            let mut table = lab.table(name);
            for (n, idle) in [(1, young), (2, old)] {
                let pair = Pair::new(n, 0, idle).with_state(state);
                let forward = Flow { mode: u32::from(mode), ..pair.forward };
                table.insert(pair.key, forward, 0).expect("insert");
            }
            let open = u64::from(state == 0);
            set_active(&lab, 0, 2 * open);
            let report = lab.sweep_all(&rules());
            assert_eq!(table.keys().count(), 1, "mode {mode}, {name}");
            assert!(table.get(&Pair::new(1, 0, young).key, 0).is_ok());
            assert_eq!(report.ended, [(why, 1)].into(), "mode {mode}, {name}");
            assert_eq!((active(&lab)[0], report.vanished.len()), (open, 0));
            let flows = report.backends[&0];
            assert_eq!((flows.open(), flows.closing), (open, 1 - open));
        }
        let mut lab = lab();
        let mut half_open = lab.table::<HalfOpen<[u8; 4]>>(maps::HALF_OPEN_V4);
        for (n, idle) in [(1, seconds(59)), (2, seconds(61))] {
            let Pair { key, forward, .. } = Pair::new(n, 0, idle);
            let flow = Flow { mode: u32::from(mode), ..forward };
            half_open
                .insert(key, HalfOpen { flow, client_isn: 1, server_isn: 0 }, 0)
                .expect("insert");
        }
        set_active(&lab, 0, 2);
        let report = lab.sweep_all(&rules());
        assert_eq!((report.ended, active(&lab)[0]), ([(End::Unfinished, 1)].into(), 1));
        assert_eq!(report.backends[&0].half_open, 1);
    }
}

#[test]
fn udp_flows_leave_backends_that_are_down() {
    let mut lab = lab();
    let mut udp = lab.table::<Flow<[u8; 4]>>(maps::UDP_V4);
    let mut tcp = lab.table::<Flow<[u8; 4]>>(maps::TCP_V4);
    let (stays, goes) = (Pair::new(1, 2, seconds(0)), Pair::new(2, 3, seconds(0)));
    let connection = Pair::new(3, 3, seconds(0));
    stays.insert(&mut udp);
    goes.insert(&mut udp);
    connection.insert(&mut tcp);
    set_active(&lab, 2, 1);
    set_active(&lab, 3, 2);
    let report = lab.sweep(&Rules { leaving: [3].into(), ..rules() });
    assert_eq!((stays.is_in(&udp), goes.is_in(&udp)), (BOTH, NEITHER));
    assert_eq!(connection.is_in(&tcp), BOTH);
    assert_eq!(report.ended.get(&End::BackendDown), Some(&1));
    assert_eq!(active(&lab)[2..], [1, 1]);
    assert_eq!(lab.sweep(&rules()).vanished.len(), 0);
}

#[test]
fn the_watch_acts_at_once_when_a_backend_goes_down() {
    let lab = lab();
    let mut udp = lab.table::<Flow<[u8; 4]>>(maps::UDP_V4);
    let mut flow = Pair::new(1, 3, seconds(0));
    flow.forward.last_seen_ns = graylb_agent::apply::kernel_clock_ns();
    flow.reply.last_seen_ns = flow.forward.last_seen_ns;
    flow.insert(&mut udp);
    let sweeper = lab.plane.sweeper().expect("sweeper");
    let watch = FlowWatch::start(sweeper, rules().timeouts, seconds(3600)).expect("start");
    let deadline = Instant::now() + seconds(10);
    while watch.report().sweeps == 0 {
        assert!(Instant::now() < deadline, "no first sweep");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(flow.is_in(&udp), BOTH);
    let told = Instant::now();
    watch.set_leaving([3].into());
    while flow.is_in(&udp) != NEITHER {
        assert!(Instant::now() < deadline, "the flow stays");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("a UDP flow left its backend {:?} after that was told", told.elapsed());
}
