//! `/metrics`: the status report as OpenMetrics text.
//!
//! Each metric is one line of [`METRICS`], which docs/metrics.md repeats (a test compares them).

mod table;

use std::fmt;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use self::table::{METRICS, backends};
use super::{Context, error::ApiError};
use crate::daemon::StatusReport;

/// OpenMetrics 1.0.0, section 4.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers a scrape.
pub(super) async fn metrics(State(context): State<Context>) -> Result<Response, ApiError> {
    let report = context.daemon.status().await?;
    // Writing to a String does not fail.
    let text = encode(report).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// One sample: label values in the order of the metric's labels.
struct Sample<'r> {
    labels: Vec<&'r str>,
    value: Value,
}

#[derive(Clone, Copy)]
enum Value {
    Whole(u64),
    Real(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// One metric.
struct Metric {
    /// Without the suffixes for unit and kind.
    name: &'static str,
    kind: Kind,
    /// In seconds.
    seconds: bool,
    labels: &'static [&'static str],
    help: &'static str,
    samples: for<'r> fn(&'r Scrape) -> Vec<Sample<'r>>,
}

/// A report, with what is needed as text in it.
#[derive(Debug)]
struct Scrape {
    report: StatusReport,
    abi: String,
    /// For each service, the addresses of its backends: of the pool in force, then of former pools.
    addresses: Vec<Vec<String>>,
}

fn encode(report: StatusReport) -> Result<String, fmt::Error> {
    let addresses = report
        .services
        .iter()
        .map(|service| backends(service).map(|(_, backend)| backend.address.to_string()).collect());
    let (abi, addresses) = (report.abi.to_string(), addresses.collect());
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { report, abi, addresses }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in METRICS {
            let samples = (metric.samples)(self);
            if samples.is_empty() {
                continue;
            }
            let kind = match metric.kind {
                Kind::Counter => ConstCounter::new(0_u64).metric_type(),
                Kind::Gauge => ConstGauge::new(0_i64).metric_type(),
            };
            let unit = metric.seconds.then_some(&Unit::Seconds);
            let mut family = encoder.encode_descriptor(metric.name, metric.help, unit, kind)?;
            for Sample { labels, value } in samples {
                let labels: Vec<_> = metric.labels.iter().copied().zip(labels).collect();
                let labels = labels.as_slice();
                let one = family.encode_family(&labels)?;
                match (metric.kind, value) {
                    (Kind::Counter, Value::Whole(value)) => ConstCounter::new(value).encode(one)?,
                    (Kind::Counter, Value::Real(value)) => ConstCounter::new(value).encode(one)?,
                    (Kind::Gauge, Value::Whole(value)) => {
                        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(one)?;
                    }
                    (Kind::Gauge, Value::Real(value)) => ConstGauge::new(value).encode(one)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
