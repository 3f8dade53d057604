//! How things are, as the API says it and the CLI reads it.

use std::{collections::BTreeMap, net::SocketAddr};

use graylb_common::{
    backend::BackendCounters,
    verdict::{VERDICTS, VerdictCounters},
};
use serde::{Deserialize, Serialize};

use crate::{
    apply::{Attachment, SocketHook},
    model::{
        health::{Health, HealthState},
        spec::{BackendSpec, Protocol},
    },
};

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    /// graylb's version.
    pub version: String,
    /// Version of the maps' layout.
    pub abi: u32,
    /// The agent's process.
    pub pid: u32,
    /// Since the agent started.
    pub uptime_seconds: u64,
    /// The config file.
    pub config: String,
    /// Where maps, programs and links are pinned.
    pub pin_dir: String,
    /// Where graylb is attached.
    pub interfaces: Vec<Attachment>,
    /// Where the socket hook is attached, if it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub socket_hook: Option<SocketHook>,
    /// Services by name.
    pub services: Vec<ServiceReport>,
    /// Pools of the config.
    pub pools: Vec<String>,
    /// What needs somebody's attention.
    pub problems: Vec<String>,
    /// Packets since the maps were made, by verdict.
    pub verdicts: BTreeMap<String, u64>,
}

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// Its virtual endpoint.
    pub address: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// The pool that the config says.
    pub default_pool: String,
    /// The pool in force.
    pub pool: String,
    /// How the pool in force shares its flows, as the config names it.
    pub balance: String,
    /// Whether it was switched to at run time.
    pub overridden: bool,
    /// Number of the data in force; `None`: not in the kernel yet.
    pub generation: Option<u64>,
    /// Nobody is up, and the last set that was good is kept.
    pub last_good_kept: bool,
    /// Why a switch is not followed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// Backends of the pool in force.
    pub backends: Vec<BackendReport>,
}

/// A backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendReport {
    /// Its address.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u16,
    /// Whether it is trusted.
    pub state: HealthState,
    /// Why.
    pub reason: String,
    /// Whether new flows are sent there.
    pub takes_flows: bool,
    /// New flows sent there.
    pub opened: u64,
    /// TCP handshakes completed.
    pub established: u64,
    /// SYNs answered with a reset.
    pub refused: u64,
    /// TCP flows that ended.
    pub closed: u64,
}

/// Whether everything is in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// It is.
    pub ready: bool,
    /// What is not.
    pub missing: Vec<String>,
}

pub(super) fn backend(
    spec: &BackendSpec,
    health: Option<&Health>,
    takes_flows: bool,
    counters: Option<&BackendCounters>,
) -> BackendReport {
    let counters = counters.copied().unwrap_or_default();
    BackendReport {
        address: spec.address,
        weight: spec.weight,
        state: health.map_or(HealthState::Unknown, Health::state),
        reason: health.map_or("", Health::reason).to_owned(),
        takes_flows,
        opened: counters.opened,
        established: counters.established,
        refused: counters.refused,
        closed: counters.closed,
    }
}

pub(super) fn verdicts(counters: &VerdictCounters) -> BTreeMap<String, u64> {
    VERDICTS.iter().map(|info| (info.name.to_owned(), counters.get(info.verdict))).collect()
}
