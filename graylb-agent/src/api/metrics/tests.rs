//! A report as OpenMetrics text, and its documentation.

use std::collections::BTreeMap;

use super::*;
use crate::{
    apply::TableFill,
    daemon::{BackendReport, FormerPool, PoolReport, ServiceReport, SweepReport},
    model::{health::HealthState, spec::Protocol},
};

fn backend(address: &str, active: u64) -> BackendReport {
    BackendReport {
        address: address.parse().expect("address"),
        weight: 1,
        state: HealthState::Up,
        reason: String::new(),
        takes_flows: true,
        drained: false,
        opened: 10,
        established: 9,
        refused: 1,
        closed: 4,
        active,
        half_open: 1,
        longest_idle_seconds: 30,
        oldest_generation: Some(1),
        vanished: 0,
        probes_good: 7,
        probes_bad: 2,
    }
}

fn report() -> StatusReport {
    let service = |name: &str| ServiceReport {
        name: name.into(),
        address: "10.0.0.1:80".parse().expect("address"),
        protocol: Protocol::Tcp,
        aliases: Vec::new(),
        default_pool: "blue".into(),
        pool: "green".into(),
        balance: "round_robin".into(),
        overridden: true,
        split: "green, 5% to red".into(),
        revision: 4,
        canary: None,
        rules: 0,
        others: vec![PoolReport {
            pool: "red".into(),
            balance: "round_robin".into(),
            backends: vec![backend("10.1.0.2:8080", 1)],
        }],
        generation: Some(3),
        last_good_kept: false,
        problem: None,
        backends: vec![backend("10.1.0.1:8080", 5)],
        former: vec![FormerPool {
            pool: "blue".into(),
            backends: vec![backend("10.1.0.1:8080", 2)],
        }],
        drops: BTreeMap::from([("no_backend".into(), 6)]),
    };
    StatusReport {
        version: "1.2.3".into(),
        abi: 2,
        pid: 1,
        uptime_seconds: 60,
        config: String::new(),
        pin_dir: String::new(),
        interfaces: Vec::new(),
        socket_hook: None,
        services: vec![service("shop"), service("a\"b")],
        pools: Vec::new(),
        problems: Vec::new(),
        verdicts: BTreeMap::from([("redirected".into(), 1000)]),
        flow_tables: vec![TableFill { table: "tcp_v4".into(), entries: 20, size: 1024 }],
        flows_ended: BTreeMap::from([("idle".into(), 3)]),
        sweep: SweepReport { count: 2, seconds: 0.5, busy_seconds: 0.05 },
    }
}

/// The name that a sample carries.
fn full_name(metric: &Metric) -> String {
    let unit = if metric.seconds { "_seconds" } else { "" };
    let suffix = if metric.kind == Kind::Counter { "_total" } else { "" };
    format!("{}{unit}{suffix}", metric.name)
}

#[test]
fn a_report_becomes_text() {
    let text = encode(report()).expect("text");
    for line in [
        "graylb_build_info{version=\"1.2.3\",abi=\"2\"} 1",
        "graylb_uptime_seconds 60",
        "graylb_packets_total{verdict=\"redirected\",kind=\"forwarded\"} 1000",
        "graylb_packets_total{verdict=\"no_backend\",kind=\"dropped\"} 0",
        "graylb_service_drops_total{service=\"shop\",verdict=\"no_backend\"} 6",
        "graylb_service_pool_info{service=\"shop\",pool=\"green\"} 1",
        "graylb_flows_active{service=\"shop\",pool=\"green\",backend=\"10.1.0.1:8080\"} 5",
        "graylb_flows_active{service=\"shop\",pool=\"blue\",backend=\"10.1.0.1:8080\"} 2",
        "graylb_flow_table_entries{table=\"tcp_v4\"} 20",
        "graylb_sweep_duration_seconds 0.5",
        "graylb_service_generation{service=\"a\\\"b\"} 3",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn no_sample_comes_twice() {
    let text = encode(report()).expect("text");
    let mut samples: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(sample, _)| sample)
        .collect();
    let all = samples.len();
    samples.sort_unstable();
    samples.dedup();
    assert_eq!(samples.len(), all);
}

#[test]
fn every_metric_is_there_and_documented() {
    let text = encode(report()).expect("text");
    let docs = include_str!("../../../../docs/metrics.md");
    let mut table = String::new();
    for metric in METRICS {
        let name = full_name(metric);
        assert!(text.contains(&format!("\n{name}")), "{name} has no sample");
        let kind = if metric.kind == Kind::Counter { "counter" } else { "gauge" };
        let labels = metric.labels.join(", ");
        table.push_str(&format!("| `{name}` | {kind} | {labels} | {} |\n", metric.help));
    }
    assert!(docs.contains(&table), "docs/metrics.md lacks or differs from this table:\n{table}");
    let lines =
        docs.lines().filter(|line| line.contains("| gauge |") || line.contains("| counter |"));
    assert_eq!(lines.count(), METRICS.len(), "a line too many");
}
