//! From a config file to a running daemon. A start that fails leaves things as it found them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    Daemon, Handle,
    handle::{Command, QUEUE},
    interfaces::Interfaces,
    kernel_log,
    local::LocalClients,
    rollout::Rollouts,
};
use crate::{
    apply::{ApplyError, DataPlane, Effort, FlowWatch, Options},
    config::Config,
    model::{drain::Drained, state::State},
    netlink::{NetlinkError, Seen, Watcher},
    privileges,
    probe::{Observation, Probes},
    store::{Store, StoreError, boot_id},
};

/// Observations that wait for the daemon, at most; further probes wait for room.
const OBSERVATIONS: usize = 1024;
/// Changes of links and routes that wait for the daemon, at most; further ones become one.
const SEEN: usize = 4;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state file cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data plane cannot be brought up.
    #[error(transparent)]
    DataPlane(#[from] ApplyError),
    /// The kernel's links cannot be followed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel did not take the privileges back that are not needed any more.
    #[error("cannot give up privileges: {0}")]
    Privileges(rustix::io::Errno),
    /// No interface could be attached, and not because there is none yet; or the socket hook could not.
    #[error("cannot start: {}", .0.join("; "))]
    Attach(Vec<String>),
}

/// A daemon that is ready to run, with what feeds it.
pub struct Started {
    /// The owner.
    pub daemon: Daemon,
    /// For the API.
    pub handle: Handle,
    /// Commands to the owner.
    pub commands: mpsc::Receiver<Command>,
    /// Answers of probes.
    pub observations: mpsc::Receiver<Observation>,
    /// Changes of links and routes.
    pub network: mpsc::Receiver<Seen>,
}

/// Loads, attaches, puts in force what is known, and starts probing.
///
/// # Errors
///
/// See [`StartError`]; what this start made is gone again, what an earlier agent left is at work.
pub fn start(config: Config, config_path: PathBuf) -> Result<Started, StartError> {
    let (store, stored, notes) = Store::open(&config.agent.state_file)?;
    notes.iter().for_each(|note| warn!("{note}"));
    let watcher = Watcher::open()?;
    let mut plane = DataPlane::open(&Options {
        pin_dir: config.agent.pin_dir.clone(),
        flows: config.flows.clone(),
        limits: config.limits.clone(),
        kernel_log: config.agent.kernel_log,
        clsact: false,
    })?;
    plane.set_addresses(&config.addresses)?;
    plane.notes().iter().for_each(|note| info!("{note}"));
    // What follows can do without the others; no other thread has been started.
    privileges::reduce().map_err(StartError::Privileges)?;
    let flows =
        FlowWatch::start(plane.sweeper()?, config.flows.timeouts(), config.flows.sweep_interval)
            .map_err(|error| ApplyError::new("cannot start the thread that sweeps flows", error))?;
    let known = if stored.boot_id == boot_id() { stored.health } else { BTreeMap::new() };
    let state =
        State::new(config.spec.clone(), stored.changes, Drained::new(stored.drained), &known);
    let (commands_in, commands) = mpsc::channel(QUEUE);
    let (observations_in, observations) = mpsc::channel(OBSERVATIONS);
    let (network_in, network) = mpsc::channel(SEEN);
    let (hosts_in, hosts) = watch::channel(Arc::default());
    let mut daemon = Daemon {
        state,
        plane,
        flows,
        store,
        probes: Probes::new(observations_in),
        interfaces: Interfaces::new(watcher.devices()),
        local: LocalClients::default(),
        rollouts: Rollouts::new(stored.rollouts),
        save_again: None,
        started: Instant::now(),
        hosts: hosts_in,
        config_path: absolute(&config_path),
        config,
    };
    daemon.bring_up()?;
    tokio::spawn(watcher.run(network_in));
    let handle = Handle { commands: commands_in, hosts };
    Ok(Started { daemon, handle, commands, observations, network })
}

impl Daemon {
    fn bring_up(&mut self) -> Result<(), StartError> {
        let config = self.config.clone();
        self.attach(&config.interfaces, Effort::Everything);
        let failed = &mut self.interfaces.failed;
        if self.interfaces.attached.is_empty() && !failed.is_empty() {
            self.plane.abandon();
            return Err(StartError::Attach(std::mem::take(failed)));
        }
        self.give_up_leases();
        self.attach_socket_hook(&config.socket_hook);
        if let Some(failed) = self.local.failed.take() {
            self.plane.abandon();
            return Err(StartError::Attach(vec![failed]));
        }
        if config.agent.kernel_log {
            tokio::spawn(kernel_log::forward(self.plane.take_logger()?));
        }
        for failure in self.settle_all() {
            warn!("{failure}");
        }
        for name in self.state.spec().services.keys() {
            for problem in self.state.split(name).map(|split| split.problems).unwrap_or_default() {
                warn!("{name} {problem}");
            }
        }
        self.publish_hosts();
        self.probes.set(&self.state.targets());
        self.lead_flows_away();
        Ok(())
    }
}

/// The agent may be asked to read the file again from another directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
