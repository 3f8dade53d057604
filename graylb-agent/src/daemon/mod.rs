//! The single owner: commands and observations come in, one at a time; desired state, kernel and state
//! file follow.
//!
//! A switch is answered after the kernel has it. What cannot be applied changes nothing.

mod change;
mod drain;
mod flows;
mod handle;
mod interfaces;
mod kernel_log;
mod local;
mod report;
mod rollout;
mod start;
mod status;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};
use tracing::{error, info, warn};

pub use self::{
    drain::{DrainReport, DrainRequest, Draining},
    handle::{Asked, ChangeRequest, Changed, CommandError, Handle, Reload, ServiceRef},
    report::{
        BackendReport, CanaryReport, FormerPool, PoolReport, Readiness, ServiceReport,
        StatusReport, SweepReport,
    },
    rollout::{Order, PlanAsked, RolloutReport},
    start::{StartError, Started, start},
};
use self::{handle::Command, interfaces::Interfaces, local::LocalClients, rollout::Rollouts};
use crate::{
    apply::{DataPlane, Effort, FlowWatch},
    compile::{Change, compile, compile_service, diff},
    config::Config,
    model::{
        health::{Answer, HealthState},
        spec::{Name, ServiceSpec},
        state::State,
    },
    netlink::Seen,
    probe::{Observation, Probes},
    store::{Store, Stored, boot_id},
    trust,
};

/// How soon a failed write of the state file is tried again.
const SAVE_RETRY: Duration = Duration::from_secs(5);

/// Everything the agent owns.
pub struct Daemon {
    config: Config,
    config_path: PathBuf,
    state: State,
    plane: DataPlane,
    store: Store,
    probes: Probes,
    flows: FlowWatch,
    interfaces: Interfaces,
    local: LocalClients,
    rollouts: Rollouts,
    /// When to try the state file again.
    save_again: Option<Instant>,
    started: Instant,
    hosts: watch::Sender<Arc<Vec<String>>>,
}

/// How long a select waits when there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);

impl Daemon {
    /// Runs until every [`Handle`] is gone or `stop` ends, then saves and returns. Links and maps stay.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut observations: mpsc::Receiver<Observation>,
        mut network: mpsc::Receiver<Seen>,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        loop {
            let idle = Instant::now() + IDLE;
            let save_at = self.save_again.unwrap_or(idle);
            let look_at = self.rollouts.next_look().unwrap_or(idle);
            let attach_at = self.interfaces.again.unwrap_or(idle);
            // Attaching takes milliseconds; who waits for an answer goes first.
            let nobody_waits = commands.is_empty();
            tokio::select! {
                () = &mut stop => break,
                command = commands.recv() => match command {
                    Some(command) => self.execute(command),
                    None => break,
                },
                Some(observation) = observations.recv() => self.observe(&observation),
                Some(seen) = network.recv() => self.see(seen),
                () = time::sleep_until(save_at) => self.save_or_retry(),
                () = time::sleep_until(look_at) => self.look(),
                () = time::sleep_until(attach_at), if nobody_waits => self.attach_again(),
            }
        }
        self.save_or_retry();
        info!("stopped; programs and maps stay in the kernel and go on moving traffic");
    }

    fn execute(&mut self, command: Command) {
        // A client that has gone away does not stop what it asked for.
        match command {
            Command::Prepare { service, asked, reply } => {
                let _gone = reply.send(self.prepare(&service, asked));
            }
            Command::Change { prepared, answers, force, expected, by, reply } => {
                let free = self.may_change(&prepared);
                let done =
                    free.and_then(|()| self.change(&prepared, &answers, force, expected, &by));
                let _gone = reply.send(done);
            }
            Command::StartRollout { prepared, answers, plan, expected, by, reply } => {
                let started = self.start_rollout(&prepared, &answers, plan, expected, &by);
                let _gone = reply.send(started);
            }
            Command::Rollout { service, order, by, reply } => {
                let _gone = reply.send(self.order(&service, order, &by));
            }
            Command::Drain { request, reply } => {
                let _gone = reply.send(self.drain(&request));
            }
            Command::Drained { pool, backends, reply } => {
                let _gone = reply.send(self.drained(&pool, &backends));
            }
            Command::Rules { service, reply } => {
                let _gone = reply.send(self.rules(&service));
            }
            Command::Reload { reply } => {
                let _gone = reply.send(self.reload());
            }
            Command::Status { reply } => {
                let _gone = reply.send(self.status());
            }
            Command::Ready { reply } => {
                let _gone = reply.send(self.readiness());
            }
        }
    }

    fn observe(&mut self, observation: &Observation) {
        let Observation { target, answer, took } = observation;
        let Some(change) = self.state.observe(target, answer) else { return };
        let why = match answer {
            Answer::Good => format!("answered its probe in {took:.1?}"),
            Answer::Bad(why) => why.clone(),
        };
        match change.to {
            HealthState::Up => info!("{} in {} is up: {why}", target.address, target.pool),
            _ => warn!("{} in {} is down: {why}", target.address, target.pool),
        }
        for name in self.state.users_of(&target.pool) {
            self.settle(&name);
        }
        self.lead_flows_away();
        self.save_or_retry();
    }

    /// Brings one service's data in the kernel in line.
    fn settle(&mut self, name: &Name) {
        let Some(service) = self.state.spec().services.get(name).cloned() else { return };
        let Some(wanted) = compile_service(&self.state, name, &service, self.plane.installed())
        else {
            return;
        };
        if self.is_starved(name) {
            warn!("{name}: no backend is up, the last good set stays in force");
        }
        let same = |there: &crate::compile::ServiceImage| there.routes_like(&wanted);
        if !self.plane.installed().get(&service.endpoint).is_some_and(same)
            && let Err(error) = self.plane.apply(&Change::Put(service.endpoint, Box::new(wanted)))
        {
            error!("{name}: {error}");
        }
    }

    /// Whether nobody in the pool in force is up.
    fn is_starved(&self, name: &Name) -> bool {
        self.state.split(name).is_none_or(|split| split.stable.is_starved(&self.state))
    }

    /// Brings the kernel in line with the desired state. Returns what could not be done.
    fn settle_all(&mut self) -> Vec<String> {
        let wanted = compile(&self.state, self.plane.installed());
        let mut failed = Vec::new();
        for change in diff(self.plane.installed(), &wanted) {
            if let Err(error) = self.plane.apply(&change) {
                failed.push(error.to_string());
            }
        }
        failed
    }

    fn reload(&mut self) -> Result<Reload, CommandError> {
        trust::check(&self.config_path).map_err(|error| {
            CommandError::Config(format!("the config cannot be trusted: {error}"))
        })?;
        let (config, warnings) = Config::load(&self.config_path)
            .map_err(|errors| CommandError::Config(errors.to_string()))?;
        let mut notes: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let restart = config.needs_restart(&self.config);
        if !restart.is_empty() {
            notes.push(format!("in force after a restart only: {}", restart.join(", ")));
        }
        if config.interfaces != self.config.interfaces {
            self.attach(&config.interfaces, Effort::Everything);
            notes.extend(self.interfaces.problems());
        }
        if config.socket_hook != self.config.socket_hook || self.local.failed.is_some() {
            self.attach_socket_hook(&config.socket_hook);
            notes.extend(self.local.failed.clone());
        }
        if config.flows.udp_timeout != self.config.flows.udp_timeout
            && let Err(error) = self.plane.set_udp_timeout(config.flows.udp_timeout)
        {
            notes.push(error.to_string());
        }
        if config.addresses != self.config.addresses
            && let Err(error) = self.plane.set_addresses(&config.addresses)
        {
            notes.push(error.to_string());
        }
        self.flows.set_timing(config.flows.timeouts(), config.flows.sweep_interval);
        self.state.set_spec(config.spec.clone());
        notes.append(&mut self.settle_all());
        self.probes.set(&self.state.targets());
        self.publish_hosts();
        self.config = config;
        self.lead_flows_away();
        self.save_or_retry();
        info!("config {} is in force", self.config_path.display());
        notes.iter().for_each(|note| warn!("{note}"));
        Ok(Reload { notes })
    }

    /// Tells the API which host names are ours.
    fn publish_hosts(&self) {
        let services = self.state.spec().services.values();
        let hosts = services.flat_map(|service: &ServiceSpec| service.aliases.iter().cloned());
        self.hosts.send_replace(Arc::new(hosts.collect()));
    }

    fn save(&mut self) -> Result<(), crate::store::StoreError> {
        self.store.save(&Stored {
            changes: self.state.changes().clone(),
            rollouts: self.rollouts.records.clone(),
            drained: self.state.drained().kept().clone(),
            health: self.state.known_health(),
            boot_id: boot_id(),
        })
    }

    fn save_or_retry(&mut self) {
        self.save_again = match self.save() {
            Ok(()) => None,
            Err(error) => {
                warn!("{error}; trying again in {SAVE_RETRY:?}");
                Some(Instant::now() + SAVE_RETRY)
            }
        };
    }

    /// Where graylb should be attached and is not, a sentence each.
    fn unattached(&self) -> Vec<String> {
        self.interfaces.problems().chain(self.local.failed.clone()).collect()
    }

    fn readiness(&self) -> Readiness {
        let mut missing = self.unattached();
        for (name, service) in &self.state.spec().services {
            if self.plane.generation(&service.endpoint).is_none() {
                missing.push(format!("service {name} has no backend that answered its probe yet"));
            }
        }
        Readiness { ready: missing.is_empty(), missing }
    }
}
