//! Probes: asks backends whether they are well, and reports what they answer. Decides nothing.

mod ask;
mod schedule;

use std::time::Duration;

pub use self::{ask::Prober, schedule::Probes};
use crate::model::health::{Answer, Target};

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What was probed.
    pub target: Target,
    /// What it answered.
    pub answer: Answer,
    /// How long it took.
    pub took: Duration,
}
