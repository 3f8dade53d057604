//! The gates, their limits, and how they are written: `failures=2%`, `handshake_p99=8x`, `expired=off`.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    counts::{BUCKETS, Counts},
    evidence::Part,
};
use crate::model::{spec::SpecError, split::Share};

/// What a canary is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Flows that were refused or not answered, of those opened.
    Failures,
    /// Connections that the backend reset before any data, of those established.
    EarlyResets,
    /// Flows that were forgotten in their handshake, of those opened.
    Expired,
    /// Connections to which the backend never sent data, of those closed.
    ClosedEmpty,
    /// The time that half of the handshakes take at most.
    HandshakeP50,
    /// The time that 90 % of them take at most.
    HandshakeP90,
    /// The time that 99 % of them take at most.
    HandshakeP99,
}

impl Gate {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::Failures,
        Self::EarlyResets,
        Self::Expired,
        Self::ClosedEmpty,
        Self::HandshakeP50,
        Self::HandshakeP90,
        Self::HandshakeP99,
    ];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::EarlyResets => "early_resets",
            Self::Expired => "expired",
            Self::ClosedEmpty => "closed_empty",
            Self::HandshakeP50 => "handshake_p50",
            Self::HandshakeP90 => "handshake_p90",
            Self::HandshakeP99 => "handshake_p99",
        }
    }

    /// Whether the kernel counts what it is about; the others are off, and cannot be turned on.
    #[must_use]
    pub const fn is_counted(self) -> bool {
        matches!(
            self,
            Self::Failures | Self::HandshakeP50 | Self::HandshakeP90 | Self::HandshakeP99
        )
    }

    /// Whether a step waits until there are samples for it. The others come late, or never while connections
    /// stay open: they are heard when they fail.
    #[must_use]
    pub const fn is_waited_for(self) -> bool {
        !matches!(self, Self::Expired | Self::ClosedEmpty)
    }

    /// What happened, of how many; for the gates of handshake times, nothing.
    #[must_use]
    pub fn part(self, counts: &Counts) -> Part {
        match self {
            Self::Failures => Part::new(counts.refused + counts.unanswered, counts.opened),
            Self::EarlyResets => Part::new(counts.reset_early, counts.established),
            Self::Expired => Part::new(counts.expired, counts.opened),
            Self::ClosedEmpty => Part::new(counts.closed_empty, counts.closed),
            Self::HandshakeP50 | Self::HandshakeP90 | Self::HandshakeP99 => Part::new(0, 0),
        }
    }

    /// The quantile of handshake times.
    pub(super) const fn quantile(self) -> f64 {
        match self {
            Self::HandshakeP99 => 0.99,
            Self::HandshakeP90 => 0.9,
            _ => 0.5,
        }
    }

    /// The limit unless another is set.
    fn limit(self) -> Limit {
        let percent = |of_10000| Limit::Rate(Share::new(of_10000).unwrap_or(Share::ALL));
        match self {
            Self::Failures | Self::EarlyResets | Self::Expired => percent(100),
            Self::ClosedEmpty => percent(500),
            Self::HandshakeP50 | Self::HandshakeP90 => Limit::Slower(1),
            Self::HandshakeP99 => Limit::Slower(2),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much worse the canary may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// So much more than the stable pool's rate, as a difference.
    Rate(Share),
    /// So many buckets above the stable pool's: each doubles the time.
    Slower(u8),
}

/// A gate with what an operator sets it to: `None` is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateSetting {
    /// The gate.
    pub gate: Gate,
    /// Its limit.
    pub limit: Option<Limit>,
}

impl FromStr for GateSetting {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let gate = Gate::ALL.into_iter().find(|gate| gate.name() == name).ok_or_else(|| {
            let known = Gate::ALL.map(Gate::name).join(", ");
            SpecError(format!("{text:?}: there is no gate {name:?}; there are {known}"))
        })?;
        if !gate.is_counted() && value != "off" {
            return Err(SpecError(format!("{text:?}: the kernel does not count that yet")));
        }
        if value == "off" {
            return Ok(Self { gate, limit: None });
        }
        let limit = match gate.limit() {
            Limit::Rate(_) => value.parse().map(Limit::Rate).map_err(|_| {
                SpecError(format!(
                    "{text:?}: write how much more is allowed, as in {name}=1%, or {name}=off"
                ))
            }),
            Limit::Slower(_) => slower(value).map(Limit::Slower).ok_or_else(|| {
                SpecError(format!(
                    "{text:?}: write how many times the time is allowed, as in {name}=2x, 4x, 8x … 256x, or {name}=off"
                ))
            }),
        };
        Ok(Self { gate, limit: Some(limit?) })
    }
}

/// `4x`: 2 buckets.
fn slower(text: &str) -> Option<u8> {
    let times: u32 = text.strip_suffix('x')?.parse().ok()?;
    (times.is_power_of_two() && (2..=256).contains(&times)).then(|| times.trailing_zeros() as u8)
}

/// How a rollout is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gates {
    /// The gates that are on.
    limits: BTreeMap<Gate, Limit>,
    /// Samples of each pool that a gate needs to pass.
    pub min_samples: u64,
    /// Failures of the canary's below which no rate fails.
    pub min_failures: u64,
    /// The chance that a canary that is no worse than allowed is taken back, over the whole rollout.
    pub false_alarms: f64,
    /// Handshakes below this are never slow, in µs.
    pub slow_us: u64,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            limits: Gate::ALL
                .into_iter()
                .filter(|gate| gate.is_counted())
                .map(|gate| (gate, gate.limit()))
                .collect(),
            min_samples: 200,
            min_failures: 5,
            false_alarms: 0.01,
            slow_us: 4096,
        }
    }
}

impl Gates {
    /// All gates, with their usual limits.
    #[must_use]
    pub fn all() -> Self {
        Self {
            limits: Gate::ALL.into_iter().map(|gate| (gate, gate.limit())).collect(),
            ..Self::default()
        }
    }

    /// With one set otherwise.
    #[must_use]
    pub fn with(mut self, setting: GateSetting) -> Self {
        match setting.limit {
            Some(limit) => self.limits.insert(setting.gate, limit),
            None => self.limits.remove(&setting.gate),
        };
        self
    }

    /// Those that are on.
    pub fn on(&self) -> impl Iterator<Item = (Gate, Limit)> {
        self.limits.iter().map(|(gate, limit)| (*gate, *limit))
    }

    /// The highest bucket that is never slow.
    pub(super) fn slow_floor(&self) -> usize {
        (self.slow_us.max(2).ilog2() as usize - 1).min(BUCKETS - 1)
    }
}
