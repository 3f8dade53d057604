//! The metrics, one by one: name, kind, labels, meaning, and where its samples come from.

use std::collections::BTreeSet;

use graylb_common::verdict::{VERDICTS, VerdictInfo};

use super::{Kind, Metric, Sample, Scrape, Value};
use crate::{
    daemon::{BackendReport, ServiceReport},
    model::health::HealthState,
};

/// A service's backends, with the pool that each is in: of the pools in force, then of former ones.
pub(super) fn backends(service: &ServiceReport) -> impl Iterator<Item = (&str, &BackendReport)> {
    let in_force = service.backends.iter().map(|backend| (service.pool.as_str(), backend));
    let others = service.others.iter();
    let others = others.flat_map(|other| other.backends.iter().map(|b| (other.pool.as_str(), b)));
    let former = service
        .former
        .iter()
        .flat_map(|former| former.backends.iter().map(|backend| (former.pool.as_str(), backend)));
    in_force.chain(others).chain(former)
}

const BACKEND: &[&str] = &["service", "pool", "backend"];

/// A sample for each backend of each service.
fn each_backend<'r>(
    scrape: &'r Scrape,
    value: impl Fn(&BackendReport) -> Option<u64>,
) -> Vec<Sample<'r>> {
    let services = scrape.report.services.iter().zip(&scrape.addresses);
    let samples = services.flat_map(|(service, addresses)| {
        let all = backends(service).zip(addresses);
        all.map(move |((pool, backend), address)| (service, pool, backend, address))
    });
    samples
        .filter_map(|(service, pool, backend, address)| {
            let value = Value::Whole(value(backend)?);
            Some(Sample { labels: vec![&service.name, pool, address], value })
        })
        .collect()
}

fn each<'r, K: AsRef<str> + 'r>(values: impl IntoIterator<Item = (&'r K, u64)>) -> Vec<Sample<'r>> {
    let sample = |(label, value): (&'r K, u64)| Sample {
        labels: vec![label.as_ref()],
        value: Value::Whole(value),
    };
    values.into_iter().map(sample).collect()
}

fn one(value: Value) -> Vec<Sample<'static>> {
    vec![Sample { labels: Vec::new(), value }]
}

fn packets(scrape: &Scrape) -> Vec<Sample<'_>> {
    let of = |name: &str| scrape.report.verdicts.get(name).copied().unwrap_or_default();
    let sample = |info: &'static VerdictInfo| Sample {
        labels: vec![info.name, info.kind.name()],
        value: Value::Whole(of(info.name)),
    };
    VERDICTS.iter().map(sample).collect()
}

fn service_packets(scrape: &Scrape) -> Vec<Sample<'_>> {
    let services = scrape.report.services.iter();
    let samples = services.flat_map(|service| {
        service.drops.iter().map(|(verdict, packets)| Sample {
            labels: vec![service.name.as_str(), verdict.as_str()],
            value: Value::Whole(*packets),
        })
    });
    samples.collect()
}

/// Probes belong to a pool, which services may share.
fn probes(scrape: &Scrape) -> Vec<Sample<'_>> {
    let mut seen = BTreeSet::new();
    let mut samples = Vec::new();
    for (service, addresses) in scrape.report.services.iter().zip(&scrape.addresses) {
        for ((pool, backend), address) in backends(service).zip(addresses) {
            if !seen.insert((pool, backend.address)) {
                continue;
            }
            for (result, count) in [("good", backend.probes_good), ("bad", backend.probes_bad)] {
                let labels = vec![pool, address, result];
                samples.push(Sample { labels, value: Value::Whole(count) });
            }
        }
    }
    samples
}

/// Every metric.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "graylb_build_info",
        kind: Kind::Gauge,
        seconds: false,
        labels: &["version", "abi"],
        help: "1; the agent's version and that of its maps' layout",
        samples: |s| {
            vec![Sample { labels: vec![&s.report.version, &s.abi], value: Value::Whole(1) }]
        },
    },
    Metric {
        name: "graylb_uptime",
        kind: Kind::Gauge,
        seconds: true,
        labels: &[],
        help: "since the agent started",
        samples: |s| one(Value::Whole(s.report.uptime_seconds)),
    },
    Metric {
        name: "graylb_problems",
        kind: Kind::Gauge,
        seconds: false,
        labels: &[],
        help: "things that need somebody's attention; graylb status says what",
        samples: |s| one(Value::Whole(s.report.problems.len() as u64)),
    },
    Metric {
        name: "graylb_packets",
        kind: Kind::Counter,
        seconds: false,
        labels: &["verdict", "kind"],
        help: "packets by what became of them; docs/verdicts.md explains the verdicts",
        samples: packets,
    },
    Metric {
        name: "graylb_service_drops",
        kind: Kind::Counter,
        seconds: false,
        labels: &["service", "verdict"],
        help: "packets of a service that were dropped or, with no_flow, belonged to no flow",
        samples: service_packets,
    },
    Metric {
        name: "graylb_service_generation",
        kind: Kind::Gauge,
        seconds: false,
        labels: &["service"],
        help: "number of the routing data in force; no sample while the service is not in the kernel",
        samples: |s| {
            let services = s.report.services.iter();
            each(services.filter_map(|service| Some((&service.name, service.generation?))))
        },
    },
    Metric {
        name: "graylb_service_pool_info",
        kind: Kind::Gauge,
        seconds: false,
        labels: &["service", "pool"],
        help: "1; the pool in force",
        samples: |s| {
            let sample = |(name, pool)| Sample { labels: vec![name, pool], value: Value::Whole(1) };
            let services = s.report.services.iter();
            services.map(|s| (s.name.as_str(), s.pool.as_str())).map(sample).collect()
        },
    },
    Metric {
        name: "graylb_service_last_good_kept",
        kind: Kind::Gauge,
        seconds: false,
        labels: &["service"],
        help: "1 while nobody is up and the last backends that were good stay in force",
        samples: |s| each(s.report.services.iter().map(|s| (&s.name, u64::from(s.last_good_kept)))),
    },
    Metric {
        name: "graylb_backend_up",
        kind: Kind::Gauge,
        seconds: false,
        labels: BACKEND,
        help: "1 if the backend is trusted, 0 if it is down or not probed yet",
        samples: |s| each_backend(s, |b| Some(u64::from(b.state == HealthState::Up))),
    },
    Metric {
        name: "graylb_backend_takes_flows",
        kind: Kind::Gauge,
        seconds: false,
        labels: BACKEND,
        help: "1 if new flows are sent to the backend",
        samples: |s| each_backend(s, |b| Some(u64::from(b.takes_flows))),
    },
    Metric {
        name: "graylb_probes",
        kind: Kind::Counter,
        seconds: false,
        labels: &["pool", "backend", "result"],
        help: "answers to probes, good or bad",
        samples: probes,
    },
    Metric {
        name: "graylb_flows_opened",
        kind: Kind::Counter,
        seconds: false,
        labels: BACKEND,
        help: "new flows sent to the backend",
        samples: |s| each_backend(s, |b| Some(b.opened)),
    },
    Metric {
        name: "graylb_flows_established",
        kind: Kind::Counter,
        seconds: false,
        labels: BACKEND,
        help: "TCP handshakes completed",
        samples: |s| each_backend(s, |b| Some(b.established)),
    },
    Metric {
        name: "graylb_flows_refused",
        kind: Kind::Counter,
        seconds: false,
        labels: BACKEND,
        help: "SYNs that the backend answered with a reset",
        samples: |s| each_backend(s, |b| Some(b.refused)),
    },
    Metric {
        name: "graylb_flows_closed",
        kind: Kind::Counter,
        seconds: false,
        labels: BACKEND,
        help: "established TCP flows that ended",
        samples: |s| each_backend(s, |b| Some(b.closed)),
    },
    Metric {
        name: "graylb_flows_vanished",
        kind: Kind::Counter,
        seconds: false,
        labels: BACKEND,
        help: "flows that left the tables without being counted as ended, since the agent started: evicted from a full table, or replaced by a new flow on the same tuple",
        samples: |s| each_backend(s, |b| Some(b.vanished)),
    },
    Metric {
        name: "graylb_flows_active",
        kind: Kind::Gauge,
        seconds: false,
        labels: BACKEND,
        help: "flows that have not ended",
        samples: |s| each_backend(s, |b| Some(b.active)),
    },
    Metric {
        name: "graylb_flows_half_open",
        kind: Kind::Gauge,
        seconds: false,
        labels: BACKEND,
        help: "TCP flows in their handshake, when the flow tables were last looked over",
        samples: |s| each_backend(s, |b| Some(b.half_open)),
    },
    Metric {
        name: "graylb_flows_longest_idle",
        kind: Kind::Gauge,
        seconds: true,
        labels: BACKEND,
        help: "the longest that an active flow had no packet from its client, when the flow tables were last looked over",
        samples: |s| each_backend(s, |b| Some(b.longest_idle_seconds)),
    },
    Metric {
        name: "graylb_flows_removed",
        kind: Kind::Counter,
        seconds: false,
        labels: &["reason"],
        help: "flows that the agent removed since it started: closed, reset, idle, unfinished, alone, backend_down",
        samples: |s| each(s.report.flows_ended.iter().map(|(reason, flows)| (reason, *flows))),
    },
    Metric {
        name: "graylb_flow_table_entries",
        kind: Kind::Gauge,
        seconds: false,
        labels: &["table"],
        help: "entries in a flow table, when it was last looked over; two make a flow",
        samples: |s| each(s.report.flow_tables.iter().map(|fill| (&fill.table, fill.entries))),
    },
    Metric {
        name: "graylb_flow_table_size",
        kind: Kind::Gauge,
        seconds: false,
        labels: &["table"],
        help: "entries that fit into a flow table",
        samples: |s| each(s.report.flow_tables.iter().map(|fill| (&fill.table, fill.size))),
    },
    Metric {
        name: "graylb_sweeps",
        kind: Kind::Counter,
        seconds: false,
        labels: &[],
        help: "looks over the flow tables since the agent started",
        samples: |s| one(Value::Whole(s.report.sweep.count)),
    },
    Metric {
        name: "graylb_sweep_duration",
        kind: Kind::Gauge,
        seconds: true,
        labels: &[],
        help: "how long the latest look over the flow tables took, pauses included",
        samples: |s| one(Value::Real(s.report.sweep.seconds)),
    },
    Metric {
        name: "graylb_sweep_busy",
        kind: Kind::Gauge,
        seconds: true,
        labels: &[],
        help: "how much of that was work",
        samples: |s| one(Value::Real(s.report.sweep.busy_seconds)),
    },
];
