//! Drives rollouts: looks at what the kernel counted, does what [`crate::model::rollout`] says, and renews the leases
//! that bring clients back by themselves should it stop doing so.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    CommandError, Daemon, ServiceRef,
    handle::{Prepared, Reply},
};
use crate::{
    apply::{ApplyError, kernel_clock_ns},
    compile::pool_number,
    model::{
        changes::SplitChange,
        health::{Answer, Target},
        judge::{Gates, Window, counts::Counts},
        rollout::{Capacity, Event, Phase, Plan, Record, Rollout, Seen, Step},
        spec::{Endpoint, Name},
        split::{Canary, Share},
        state::{InForce, SwitchError},
    },
};

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(250);

/// A plan as it is asked for.
#[derive(Clone, Debug)]
pub struct PlanAsked {
    /// The pool that is to get the traffic: a name, or addresses separated by commas.
    pub to: String,
    /// The shares.
    pub steps: Vec<Share>,
    /// How long each is held at least.
    pub hold: Duration,
    /// How much longer for want of samples; the plan's own unless given.
    pub patience: Option<Duration>,
    /// How long the kernel keeps the share without the agent; the plan's own unless given.
    pub lease: Option<Duration>,
    /// How the canary is judged.
    pub gates: Gates,
}

/// What is to become of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Say how it is.
    Status,
    /// Stay at the step.
    Pause,
    /// Go on.
    Resume,
    /// Make the canary the stable pool now.
    Promote,
    /// Go back.
    Abort,
}

/// How a rollout is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutReport {
    /// The service.
    pub service: String,
    /// The pool that is to get the traffic.
    pub to: String,
    /// Where it is, in words.
    pub state: String,
    /// Whether nothing will happen any more.
    pub over: bool,
    /// The canary's share in force.
    pub share: Share,
    /// The plan's shares.
    pub steps: Vec<Share>,
    /// The step that it is at, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<usize>,
    /// For how long, in ms.
    pub held_ms: u64,
    /// How long a step is held at least, in ms.
    pub hold_ms: u64,
    /// What the gates say, a line each.
    pub gates: Vec<String>,
    /// What was judged.
    pub window: Window,
    /// What happened, oldest first.
    pub events: VecDeque<Event>,
}

/// Every rollout: the latest of each service.
pub(super) struct Rollouts {
    pub(super) records: BTreeMap<Name, Record>,
    looked: Instant,
}

impl Rollouts {
    pub(super) fn new(records: BTreeMap<Name, Record>) -> Self {
        Self { records, looked: Instant::now() }
    }

    /// When to look again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let active = self.records.values().any(|record| !record.rollout.is_over());
        active.then(|| self.looked + LOOK)
    }

    /// The service's rollout, if it is not over.
    fn active(&mut self, name: &Name) -> Option<&mut Record> {
        self.records.get_mut(name).filter(|record| !record.rollout.is_over())
    }
}

fn refused(why: impl ToString) -> SwitchError {
    SwitchError::Rollout(why.to_string())
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Daemon {
    /// Whether an operator may make a change: what a rollout decides is the rollout's as long as it lasts.
    pub(super) fn may_change(&self, prepared: &Prepared) -> Reply<()> {
        let Prepared { name, change, .. } = prepared;
        let record = self.rollouts.records.get(name);
        match record.filter(|record| !record.rollout.is_over()) {
            Some(Record { rollout, .. }) if !matches!(change, SplitChange::Rules(_)) => {
                Err(refused(format!(
                    "a rollout of {name} to {} is under way ({}); abort or promote it first",
                    rollout.plan.to, rollout.phase
                ))
                .into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn start_rollout(
        &mut self,
        prepared: &Prepared,
        answers: &[(Target, Answer)],
        asked: PlanAsked,
        expected: Option<u64>,
        by: &str,
    ) -> Reply<RolloutReport> {
        let Prepared { name, change, .. } = prepared;
        self.may_change(prepared)?;
        let (SplitChange::Canary(Some(canary)), Some(endpoint)) = (change, self.endpoint(name))
        else {
            return Err(self.state.unknown_service(name.as_str()).into());
        };
        let PlanAsked { steps, hold, patience, lease, gates, .. } = asked;
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut plan = Plan::new(canary.pool.clone(), steps, ms(hold)).map_err(refused)?;
        plan.patience_ms = patience.map_or(plan.patience_ms, ms);
        plan.lease_ms = lease.map_or(plan.lease_ms, ms);
        plan.gates = gates;
        let rollout = Rollout::new(plan);
        let totals = self.totals(name, &rollout);
        self.renew(endpoint, &rollout);
        if let Err(error) = self.change(prepared, answers, false, expected, by) {
            self.give_up_lease(endpoint);
            return Err(error);
        }
        let mut record = Record::new(rollout);
        record.rollout.did(&Step::Share(canary.share), &totals);
        record
            .note(unix_seconds(), format!("started by {by}: {} to {}", canary.share, canary.pool));
        self.rollouts.looked = Instant::now();
        self.rollouts.records.insert(name.clone(), record);
        self.save_or_retry();
        self.rollout_report(name)
    }

    pub(super) fn order(
        &mut self,
        service: &ServiceRef,
        order: Order,
        by: &str,
    ) -> Reply<RolloutReport> {
        let name = self.find(service)?;
        let Some(record) = self.rollouts.records.get_mut(&name) else {
            return Err(refused(format!("{name} has had no rollout")).into());
        };
        let rollout = &mut record.rollout;
        match order {
            Order::Status => return self.rollout_report(&name),
            Order::Pause => rollout.pause(&format!("by {by}")).map_err(refused)?,
            Order::Resume => rollout.resume().map_err(refused)?,
            Order::Abort => rollout.abort(&format!("by {by}")).map_err(refused)?,
            Order::Promote => {
                let step = rollout.promote().map_err(refused)?;
                self.take(&name, &step, &Window::default())?;
            }
        }
        self.note(&name, format!("{order:?} by {by}").to_lowercase());
        self.look_at(&name, Duration::ZERO);
        self.save_or_retry();
        self.rollout_report(&name)
    }

    /// Looks at each rollout that is not over.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        let elapsed = now - self.rollouts.looked;
        self.rollouts.looked = now;
        let names: Vec<Name> = self.rollouts.records.keys().cloned().collect();
        names.iter().for_each(|name| self.look_at(name, elapsed));
    }

    fn look_at(&mut self, name: &Name, elapsed: Duration) {
        let Some(record) = self.rollouts.active(name) else { return };
        let rollout = record.rollout.clone();
        let Some(endpoint) = self.endpoint(name) else {
            self.rollouts.active(name).into_iter().for_each(|record| {
                record.rollout.give_up("the service is not in the config any more");
            });
            return self.save_or_retry();
        };
        let lapsed = rollout.share > Share::NONE && self.plane.lease(&endpoint) < kernel_clock_ns();
        self.renew(endpoint, &rollout);
        let seen = self.seen(name, &rollout, elapsed);
        let before = phase_of(&rollout);
        let Some(record) = self.rollouts.active(name) else { return };
        if lapsed {
            record.rollout.lapsed(&seen.totals);
            self.note(name, "the lease had run out: the step begins anew".into());
        }
        let Some(record) = self.rollouts.active(name) else { return };
        let step = record.rollout.look(&seen);
        let going_back = matches!(record.rollout.phase, Phase::GoingBack { .. });
        if let Some(step) = step
            && let Err(error) = self.take(name, &step, &seen.totals)
        {
            self.give_way(name, &error);
        }
        let Some(record) = self.rollouts.records.get(name) else { return };
        let (phase, share) = (&record.rollout.phase, record.rollout.share);
        if phase_of(&record.rollout) == before && share == rollout.share {
            return;
        }
        let ramping = if going_back && record.rollout.is_ramping() {
            "; the stable pool cannot take everybody yet"
        } else {
            ""
        };
        let what = format!("{phase}, {share} to {}{ramping}", record.rollout.plan.to);
        self.note(name, what);
        self.save_or_retry();
    }

    /// A step could not be done. Forward it waits for an operator; the way back is tried again at each look.
    fn give_way(&mut self, name: &Name, error: &CommandError) {
        error!("{name}: the rollout cannot go on: {error}");
        if let Some(record) = self.rollouts.active(name) {
            let _on_its_way_back = record.rollout.pause(&format!("it cannot go on: {error}"));
        }
    }

    /// Does a step, and says so to the rollout.
    fn take(&mut self, name: &Name, step: &Step, totals: &Window) -> Reply<()> {
        let Some(record) = self.rollouts.active(name) else { return Ok(()) };
        let pool = record.rollout.plan.to.clone();
        let change = match step {
            Step::Share(share) => SplitChange::Canary(Some(Canary { pool, share: *share })),
            Step::Promote => SplitChange::Stable(pool),
            Step::Back => SplitChange::Canary(None),
        };
        let prepared = Prepared { name: name.clone(), change, to_ask: Vec::new(), endpoint: None };
        self.change(&prepared, &[], false, None, "its rollout")?;
        if let Some(record) = self.rollouts.active(name) {
            record.rollout.did(step, totals);
            if record.rollout.is_over()
                && let Some(endpoint) = self.endpoint(name)
            {
                self.give_up_lease(endpoint);
            }
        }
        Ok(())
    }

    fn note(&mut self, name: &Name, what: String) {
        info!("rollout of {name}: {what}");
        if let Some(record) = self.rollouts.records.get_mut(name) {
            record.note(unix_seconds(), what);
        }
    }

    fn endpoint(&self, name: &Name) -> Option<Endpoint> {
        self.state.spec().services.get(name).map(|service| service.endpoint)
    }

    /// From now on the kernel keeps the share for the plan's lease without hearing of the agent.
    fn renew(&mut self, endpoint: Endpoint, rollout: &Rollout) {
        let until = kernel_clock_ns() + rollout.plan.lease_ms.saturating_mul(1_000_000);
        if let Err(error) = self.plane.set_lease(endpoint, until) {
            warn!("{endpoint}: the lease of its rollout cannot be renewed: {error}");
        }
    }

    fn give_up_lease(&mut self, endpoint: Endpoint) {
        if let Err(error) = self.plane.set_lease(endpoint, 0) {
            warn!("{endpoint}: a lease cannot be ended: {error}");
        }
    }

    /// Ends leases that an earlier agent left and no rollout needs.
    pub(super) fn give_up_leases(&mut self) {
        let installed: Vec<Endpoint> = self.plane.installed().keys().copied().collect();
        for endpoint in installed {
            let active = self.rollouts.records.iter().any(|(name, record)| {
                !record.rollout.is_over() && self.endpoint(name) == Some(endpoint)
            });
            if !active && self.plane.lease(&endpoint) != 0 {
                self.give_up_lease(endpoint);
            }
        }
    }

    fn seen(&self, name: &Name, rollout: &Rollout, elapsed: Duration) -> Seen {
        let split = self.state.split(name);
        let capacity = |pool: &InForce| Capacity {
            up: pool.takers(&self.state).map(|backend| u32::from(backend.weight)).sum(),
            all: pool.pool.backends.iter().map(|backend| u32::from(backend.weight)).sum(),
        };
        let canary = split.as_ref().and_then(|split| split.canary.as_ref());
        Seen {
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            totals: self.totals(name, rollout),
            canary: canary.map_or_else(Capacity::default, |(_, pool)| capacity(pool)),
            stable: split.as_ref().map_or_else(Capacity::default, |split| capacity(&split.stable)),
        }
    }

    /// What the kernel has counted of both pools.
    fn totals(&self, name: &Name, rollout: &Rollout) -> Window {
        let counted = || -> Result<Window, ApplyError> {
            let (Some(endpoint), Some(split)) = (self.endpoint(name), self.state.split(name))
            else {
                return Ok(Window::default());
            };
            let canary = pool_number(&rollout.plan.to.to_string());
            let stable = pool_number(&split.stable.choice.to_string());
            let mut window = Window::default();
            for (pool, _, counters) in self.plane.backend_counters(&endpoint)? {
                let counts: &mut Counts = match pool {
                    pool if pool == canary => &mut window.canary,
                    pool if pool == stable => &mut window.stable,
                    _ => continue,
                };
                counts.opened += counters.opened;
                counts.established += counters.established;
                counts.refused += counters.refused;
                counts.unanswered += counters.unanswered;
                counts.closed += counters.closed;
                let buckets = counts.handshake.iter_mut().zip(counters.handshake);
                buckets.for_each(|(count, more)| *count += more);
            }
            Ok(window)
        };
        counted().unwrap_or_else(|error| {
            warn!("{name}: nothing to judge its rollout by: {error}");
            Window::default()
        })
    }

    fn rollout_report(&self, name: &Name) -> Reply<RolloutReport> {
        let Some(Record { rollout, events }) = self.rollouts.records.get(name) else {
            return Err(refused(format!("{name} has had no rollout")).into());
        };
        let held_ms = match rollout.phase {
            Phase::Holding { held_ms, .. } => held_ms,
            _ => 0,
        };
        Ok(RolloutReport {
            service: name.to_string(),
            to: rollout.plan.to.to_string(),
            state: rollout.phase.to_string(),
            over: rollout.is_over(),
            share: rollout.share,
            steps: rollout.plan.steps.clone(),
            step: rollout.step().map(|step| step + 1),
            held_ms,
            hold_ms: rollout.plan.hold_ms,
            gates: rollout.findings.iter().map(ToString::to_string).collect(),
            window: rollout.window,
            events: events.clone(),
        })
    }
}

/// The phase, but for the time that runs.
fn phase_of(rollout: &Rollout) -> Phase {
    match rollout.phase {
        Phase::Holding { step, .. } => Phase::Holding { step, held_ms: 0 },
        ref phase => phase.clone(),
    }
}
