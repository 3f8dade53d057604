//! Whether a canary is as good as the stable pool, by what the kernel counted of both over the same window.
//!
//! In: the counts of both and the gates' limits. Out: for each gate pass, fail or inconclusive, with the numbers.
//! No clock and no memory: the same window is judged alike, and one may look as often as one likes
//! ([`evidence`]). docs/judging.md explains it to users.

pub mod counts;
pub mod evidence;
mod gate;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::gate::{Gate, GateSetting, Gates, Limit};
use self::{
    counts::{Counts, Histogram},
    evidence::{Part, bucket_of, ln_more, ln_slower},
};

/// What is judged: both pools, over the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The canary's.
    pub canary: Counts,
    /// The stable pool's.
    pub stable: Counts,
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ruling {
    /// There are samples enough, and what was seen is within the limit.
    Pass,
    /// Certainly worse than the limit allows.
    Fail,
    /// Neither.
    Inconclusive,
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
        })
    }
}

/// A gate's ruling and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The gate.
    pub gate: Gate,
    /// What it says.
    pub ruling: Ruling,
    /// In words: what was seen of both, and what is allowed.
    pub numbers: String,
    /// The natural logarithm of the e-value against "no worse than allowed".
    pub evidence: f64,
    /// The same at which it fails.
    pub needed: f64,
}

impl fmt::Display for Finding {
    /// `failures: fail, 14 of 210 (6.67%) against 3 of 4102 (0.07%), 1% more is allowed`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.gate, self.ruling, self.numbers)
    }
}

/// Judges a window by every gate that is not off. `looks` is how many windows there will be, at most: the
/// chance of one false alarm is divided among them and the gates.
#[must_use]
pub fn judge(window: &Window, gates: &Gates, looks: usize) -> Vec<Finding> {
    let on: Vec<(Gate, Limit)> = gates.on().collect();
    let needed = ((on.len().max(1) * looks.max(1)) as f64 / gates.false_alarms).ln();
    on.into_iter().map(|(gate, limit)| find(window, gates, gate, limit, needed)).collect()
}

fn find(window: &Window, gates: &Gates, gate: Gate, limit: Limit, needed: f64) -> Finding {
    let measured = match limit {
        Limit::Rate(share) => {
            let (canary, stable) = (gate.part(&window.canary), gate.part(&window.stable));
            rates(canary, stable, f64::from(share.of_10000()) / 10_000.0, gates.min_failures)
        }
        Limit::Slower(buckets) => {
            let (canary, stable) = (&window.canary.handshake, &window.stable.handshake);
            times(canary, stable, gate.quantile(), usize::from(buckets), gates.slow_floor())
        }
    };
    let enough = measured.samples.0 >= gates.min_samples && measured.samples.1 >= gates.min_samples;
    let ruling = match (measured.bad, enough) {
        (true, _) if measured.evidence >= needed => Ruling::Fail,
        (false, true) => Ruling::Pass,
        _ => Ruling::Inconclusive,
    };
    let mut numbers = measured.numbers;
    if ruling == Ruling::Inconclusive && !enough {
        numbers += &format!("; {} of each are needed", gates.min_samples);
    }
    Finding { gate, ruling, numbers, evidence: measured.evidence, needed }
}

/// What was seen.
struct Measured {
    /// Of the canary and of the stable pool.
    samples: (u64, u64),
    /// Whether it is beyond the limit, by chance or not.
    bad: bool,
    evidence: f64,
    numbers: String,
}

fn rates(canary: Part, stable: Part, margin: f64, min_failures: u64) -> Measured {
    let text =
        |part: Part| format!("{} of {} ({:.2}%)", part.hits(), part.of(), part.rate() * 100.0);
    Measured {
        samples: (canary.of(), stable.of()),
        bad: canary.rate() > stable.rate() + margin,
        // A handful proves nothing, whatever the rates.
        evidence: if canary.hits() < min_failures { 0.0 } else { ln_more(canary, stable, margin) },
        numbers: format!(
            "{} against {}, {}% more is allowed",
            text(canary),
            text(stable),
            margin * 100.0
        ),
    }
}

fn times(
    canary: &Histogram,
    stable: &Histogram,
    quantile: f64,
    allowed: usize,
    floor: usize,
) -> Measured {
    let bucket = |histogram: &Histogram| bucket_of(histogram, quantile);
    let text = |histogram: &Histogram| {
        let total: u64 = histogram.iter().sum();
        bucket(histogram).map_or_else(|| "none".into(), |b| format!("{} of {total}", below(b)))
    };
    let bad = match (bucket(canary), bucket(stable)) {
        (Some(canary), Some(stable)) => canary > (stable + allowed).max(floor),
        _ => false,
    };
    Measured {
        samples: (canary.iter().sum(), stable.iter().sum()),
        bad,
        evidence: ln_slower(canary, stable, quantile, allowed, floor),
        numbers: format!(
            "{} against {}, {} times and up to {} is allowed",
            text(canary),
            text(stable),
            1_u64 << allowed,
            below(floor)
        ),
    }
}

/// A bucket's upper end.
fn below(bucket: usize) -> String {
    match 1_u64 << (bucket + 1) {
        us @ 0..1000 => format!("{us} µs"),
        us @ 1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        us => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
