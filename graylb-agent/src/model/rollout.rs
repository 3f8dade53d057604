//! A rollout: a series of canary shares with gates between them, ending in promotion or back at the stable pool.
//!
//! In: commands, and what is seen from time to time ([`Seen`]); time comes in as data. Out: what is to be done next
//! ([`Step`]); the caller does it, and then says so ([`Rollout::did`]): what could not be done has not happened, and
//! is asked for again. No step is skipped, nothing is promoted on a breach or without samples, and the way back is
//! open from each step.

mod plan;
mod record;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::{
    plan::{LEASE_MS, MAX_STEPS, Plan},
    record::{Event, Record},
};
use super::{
    judge::{Finding, Ruling, Window, counts::Counts, judge},
    split::Share,
};

/// Where a rollout is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// The share of this step is to be put in force.
    Entering {
        /// Place among the plan's steps.
        step: usize,
    },
    /// At a step: its time runs, and then it waits for samples.
    Holding {
        /// Place among the plan's steps.
        step: usize,
        /// For how long, in ms.
        held_ms: u64,
    },
    /// At a step, until an operator resumes it; breaches are looked for as before.
    Paused {
        /// Place among the plan's steps.
        step: usize,
        /// Why.
        why: String,
    },
    /// On the way back, as fast as the stable pool can take it.
    GoingBack {
        /// Why.
        why: String,
        /// Whether an operator wanted it.
        aborted: bool,
    },
    /// The canary is the stable pool now.
    Promoted,
    /// Back at the stable pool, since the canary was worse.
    RolledBack {
        /// Why.
        why: String,
    },
    /// Back at the stable pool, since an operator wanted it.
    Aborted {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entering { .. } => f.write_str("entering"),
            Self::Holding { .. } => f.write_str("holding"),
            Self::Paused { why, .. } => write!(f, "paused: {why}"),
            Self::GoingBack { why, .. } => write!(f, "going back: {why}"),
            Self::Promoted => f.write_str("promoted"),
            Self::RolledBack { why } => write!(f, "rolled back: {why}"),
            Self::Aborted { why } => write!(f, "aborted: {why}"),
        }
    }
}

/// What a pool's backends can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Weight of those that are up.
    pub up: u32,
    /// Of all.
    pub all: u32,
}

/// What is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Since what was seen before, in ms.
    pub elapsed_ms: u64,
    /// Everything that was ever counted of both pools.
    pub totals: Window,
    /// The canary's backends.
    pub canary: Capacity,
    /// The stable pool's.
    pub stable: Capacity,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Put this share in force.
    Share(Share),
    /// Make the canary the stable pool.
    Promote,
    /// End the canary.
    Back,
}

/// A command that cannot be carried out. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    /// It is over.
    #[error("the rollout is over ({0}); start another")]
    Over(String),
    /// It is on its way back.
    #[error("the rollout is going back already")]
    GoingBack,
    /// It is not paused.
    #[error("the rollout is not paused; it is {0}")]
    NotPaused(String),
}

/// A rollout of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// What was asked for.
    pub plan: Plan,
    /// Where it is.
    pub phase: Phase,
    /// The canary's share in force.
    pub share: Share,
    /// What had been counted when the step began.
    since: Window,
    /// What was counted of the stable pool at the last step at which it had flows.
    baseline: Counts,
    /// What was judged last.
    pub window: Window,
    /// And what was found.
    pub findings: Vec<Finding>,
}

impl Rollout {
    /// Begins one; nothing is in force yet.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            phase: Phase::Entering { step: 0 },
            share: Share::NONE,
            since: Window::default(),
            baseline: Counts::default(),
            window: Window::default(),
            findings: Vec::new(),
        }
    }

    /// Whether nothing will happen any more.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Promoted | Phase::RolledBack { .. } | Phase::Aborted { .. })
    }

    /// Takes in what is seen, and says what is to be done.
    pub fn look(&mut self, seen: &Seen) -> Option<Step> {
        match self.phase.clone() {
            Phase::Entering { step } => {
                // The step before is in force as long as this one cannot be put in force.
                if self.share > Share::NONE
                    && let Some(why) = self.breach(seen)
                {
                    return self.go_back(why, false, seen);
                }
                self.plan.steps.get(step).copied().map(Step::Share)
            }
            Phase::Holding { step, held_ms } => {
                if let Some(why) = self.breach(seen) {
                    return self.go_back(why, false, seen);
                }
                let held_ms = held_ms.saturating_add(seen.elapsed_ms);
                self.phase = Phase::Holding { step, held_ms };
                self.after(step, held_ms)
            }
            Phase::Paused { .. } => {
                let why = self.breach(seen)?;
                self.go_back(why, false, seen)
            }
            Phase::GoingBack { .. } => self.way_back(seen),
            Phase::Promoted | Phase::RolledBack { .. } | Phase::Aborted { .. } => None,
        }
    }

    /// What follows on a step that has had its time.
    fn after(&mut self, step: usize, held_ms: u64) -> Option<Step> {
        if held_ms < self.plan.hold_ms {
            return None;
        }
        let open: Vec<String> = self
            .findings
            .iter()
            .filter(|finding| finding.gate.is_waited_for() && finding.ruling != Ruling::Pass)
            .map(ToString::to_string)
            .collect();
        if open.is_empty() {
            let next = step + 1;
            let Some(&share) = self.plan.steps.get(next) else { return Some(Step::Promote) };
            self.phase = Phase::Entering { step: next };
            return Some(Step::Share(share));
        }
        if held_ms - self.plan.hold_ms >= self.plan.patience_ms {
            let why = format!("nothing is certain after {} s: {}", held_ms / 1000, open.join("; "));
            self.phase = Phase::Paused { step, why };
        }
        None
    }

    /// Judges the window, and says what is wrong with the canary.
    fn breach(&mut self, seen: &Seen) -> Option<String> {
        let canary = seen.totals.canary.since(&self.since.canary);
        let mut stable = seen.totals.stable.since(&self.since.stable);
        if self.share == Share::ALL {
            // Nobody is left to compare with at the same time.
            stable = self.baseline;
        }
        self.window = Window { canary, stable };
        self.findings = judge(&self.window, &self.plan.gates, self.plan.steps.len());
        let failed = self.findings.iter().filter(|finding| finding.ruling == Ruling::Fail);
        let failed: Vec<String> = failed.map(ToString::to_string).collect();
        dead(seen.canary).or_else(|| (!failed.is_empty()).then(|| failed.join("; ")))
    }

    fn go_back(&mut self, why: String, aborted: bool, seen: &Seen) -> Option<Step> {
        self.phase = Phase::GoingBack { why, aborted };
        self.way_back(seen)
    }

    /// The next stretch of the way back: only as much as the stable pool can take, unless the canary takes
    /// nothing anyway.
    fn way_back(&self, seen: &Seen) -> Option<Step> {
        let Capacity { up, all } = seen.stable;
        let enough = u64::from(up) * 100 >= u64::from(all) * u64::from(self.plan.enough_percent);
        if seen.canary.up == 0 || (enough && up > 0) || self.share == Share::NONE {
            return Some(Step::Back);
        }
        // A stable pool with a third of its backends gets a third of the clients.
        let can_take = u64::from(Share::ALL.of_10000()) * u64::from(up) / u64::from(all.max(1));
        let share = Share::new(Share::ALL.of_10000() - can_take as u16).unwrap_or(Share::ALL);
        (share < self.share).then_some(Step::Share(share))
    }

    /// Whether it waits for the stable pool to get well.
    #[must_use]
    pub fn is_ramping(&self) -> bool {
        matches!(self.phase, Phase::GoingBack { .. }) && self.share > Share::NONE
    }

    /// A step was done; `totals` is what is counted since ever.
    pub fn did(&mut self, done: &Step, totals: &Window) {
        match (done, self.phase.clone()) {
            (Step::Share(share), phase) => {
                if self.share < Share::ALL && self.window.stable.opened > 0 {
                    self.baseline = self.window.stable;
                }
                self.share = *share;
                if let Phase::Entering { step } = phase {
                    self.since = *totals;
                    self.window = Window::default();
                    self.findings.clear();
                    self.phase = Phase::Holding { step, held_ms: 0 };
                }
            }
            (Step::Promote, _) => self.phase = Phase::Promoted,
            (Step::Back, phase) => {
                self.share = Share::NONE;
                self.phase = match phase {
                    Phase::GoingBack { why, aborted: true } => Phase::Aborted { why },
                    Phase::GoingBack { why, .. } => Phase::RolledBack { why },
                    other => other,
                };
            }
        }
    }

    /// The lease ran out, and all clients have been at the stable pool for a while: the step begins anew.
    pub fn lapsed(&mut self, totals: &Window) {
        if let Phase::Holding { step, .. } = self.phase {
            self.phase = Phase::Holding { step, held_ms: 0 };
        }
        self.since = *totals;
    }

    /// Stays at its step until it is resumed.
    ///
    /// # Errors
    ///
    /// It is over or going back.
    pub fn pause(&mut self, why: &str) -> Result<(), RolloutError> {
        self.is_at_a_step()?;
        let step = self.step().unwrap_or(0);
        if !matches!(self.phase, Phase::Paused { .. }) {
            // A step that has not been entered is entered when the rollout goes on.
            let step = if matches!(self.phase, Phase::Entering { .. }) {
                step.saturating_sub(1)
            } else {
                step
            };
            self.phase = Phase::Paused { step, why: why.to_owned() };
        }
        Ok(())
    }

    /// Goes on with a step that was paused, with its full time anew and the samples that there are.
    ///
    /// # Errors
    ///
    /// It is not paused.
    pub fn resume(&mut self) -> Result<(), RolloutError> {
        self.is_at_a_step()?;
        let Phase::Paused { step, .. } = self.phase else {
            return Err(RolloutError::NotPaused(self.phase.to_string()));
        };
        self.phase = if self.plan.steps.get(step) == Some(&self.share) {
            Phase::Holding { step, held_ms: 0 }
        } else {
            Phase::Entering { step }
        };
        Ok(())
    }

    /// Promotes the canary now: an operator knows better than the gates.
    ///
    /// # Errors
    ///
    /// It is over or going back.
    pub fn promote(&self) -> Result<Step, RolloutError> {
        self.is_at_a_step()?;
        Ok(Step::Promote)
    }

    /// Goes back to the stable pool.
    ///
    /// # Errors
    ///
    /// It is over.
    pub fn abort(&mut self, why: &str) -> Result<(), RolloutError> {
        if self.is_over() {
            return Err(RolloutError::Over(self.phase.to_string()));
        }
        if !matches!(self.phase, Phase::GoingBack { .. }) {
            self.phase = Phase::GoingBack { why: why.to_owned(), aborted: true };
        }
        Ok(())
    }

    /// Ends without doing anything: the split was changed by somebody else.
    pub fn give_up(&mut self, why: &str) {
        if !self.is_over() {
            self.phase = Phase::Aborted { why: why.to_owned() };
        }
    }

    /// The step that it is at.
    #[must_use]
    pub const fn step(&self) -> Option<usize> {
        match self.phase {
            Phase::Entering { step } | Phase::Holding { step, .. } | Phase::Paused { step, .. } => {
                Some(step)
            }
            _ => None,
        }
    }

    fn is_at_a_step(&self) -> Result<(), RolloutError> {
        match self.phase {
            Phase::GoingBack { .. } => Err(RolloutError::GoingBack),
            _ if self.is_over() => Err(RolloutError::Over(self.phase.to_string())),
            _ => Ok(()),
        }
    }
}

/// Why a canary of which nobody is up goes back at once.
fn dead(canary: Capacity) -> Option<String> {
    (canary.up == 0).then(|| "none of the canary's backends is up".to_owned())
}

#[cfg(test)]
mod tests;
