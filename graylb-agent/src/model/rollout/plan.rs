//! What a rollout is to do.

use serde::{Deserialize, Serialize};

use crate::model::{choice::PoolChoice, judge::Gates, spec::SpecError, split::Share};

/// Most steps of a plan.
pub const MAX_STEPS: usize = 100;

/// A plan: valid once made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pool that is to get the traffic.
    pub to: PoolChoice,
    /// The canary's shares, growing, up to everybody.
    pub steps: Vec<Share>,
    /// How long each is held at least, in ms.
    pub hold_ms: u64,
    /// How much longer it is held for want of samples before the rollout pauses, in ms.
    pub patience_ms: u64,
    /// How the canary is judged.
    pub gates: Gates,
    /// Part of the stable pool's weight that must be up to take everybody back at once, in percent.
    pub enough_percent: u8,
    /// How long the kernel keeps the canary's share without hearing of the agent, in ms.
    pub lease_ms: u64,
}

/// [`Plan::lease_ms`] unless told otherwise.
pub const LEASE_MS: u64 = 10_000;

impl Plan {
    /// A plan with the usual patience and gates.
    ///
    /// # Errors
    ///
    /// The steps are none, too many, do not grow or do not end with everybody.
    pub fn new(to: PoolChoice, steps: Vec<Share>, hold_ms: u64) -> Result<Self, SpecError> {
        let text = steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let wrong =
            |why: &str| Err(SpecError(format!("steps {text}: {why}, as in 1%,5%,25%,100%")));
        if steps.is_empty() || steps.len() > MAX_STEPS {
            return wrong(&format!("1 to {MAX_STEPS} are allowed"));
        }
        if steps[0] == Share::NONE || !steps.is_sorted_by(|a, b| a < b) {
            return wrong("each must be more than the one before");
        }
        if steps.last() != Some(&Share::ALL) {
            return wrong("the last one must be 100%");
        }
        let patience_ms = hold_ms.saturating_mul(10).max(600_000);
        Ok(Self {
            to,
            steps,
            hold_ms,
            patience_ms,
            gates: Gates::default(),
            enough_percent: 50,
            lease_ms: LEASE_MS,
        })
    }
}
