//! How things are, as the API says it and the CLI reads it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use graylb_common::verdict::{ServiceDrops, VERDICTS, VerdictCounters};
use serde::{Deserialize, Serialize};

use crate::{
    apply::{Attachment, BackendFlows, BackendTotals, FlowReport, SocketHook, TableFill},
    model::{
        ageing::End,
        health::{Health, HealthState},
        spec::{BackendSpec, Endpoint, Protocol},
        split::Share,
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
    /// How full the flow tables are.
    pub flow_tables: Vec<TableFill>,
    /// Flows that the agent removed since it started, by reason.
    pub flows_ended: BTreeMap<String, u64>,
    /// The latest look over the flow tables.
    pub sweep: SweepReport,
}

/// A look over the flow tables.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SweepReport {
    /// How many there were since the agent started.
    pub count: u64,
    /// How long the latest took, pauses included.
    pub seconds: f64,
    /// How much of that was work.
    pub busy_seconds: f64,
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
    /// Where its new flows go, in words.
    pub split: String,
    /// Number of changes that the split has seen, by operators and by the config.
    pub revision: u64,
    /// The canary, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub canary: Option<CanaryReport>,
    /// Number of client rules that are followed.
    pub rules: usize,
    /// Number of the data in force; `None`: not in the kernel yet.
    pub generation: Option<u64>,
    /// Nobody is up, and the last set that was good is kept.
    pub last_good_kept: bool,
    /// Why a switch is not followed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// Backends of the pool in force.
    pub backends: Vec<BackendReport>,
    /// The other pools that flows go to: the canary's and those of client rules.
    pub others: Vec<PoolReport>,
    /// Pools that were in force before, as far as something is known of their backends.
    pub former: Vec<FormerPool>,
    /// Packets of the service that did not go on their way, by verdict.
    pub drops: BTreeMap<String, u64>,
}

/// A canary.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CanaryReport {
    /// Its pool.
    pub pool: String,
    /// The part of the clients that is to go there.
    pub share: Share,
    /// Nobody in it is up, and its part stays with the stable pool.
    pub starved: bool,
}

/// A pool beside the stable one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolReport {
    /// The pool.
    pub pool: String,
    /// How it shares its flows, as the config names it.
    pub balance: String,
    /// Its backends.
    pub backends: Vec<BackendReport>,
}

/// A pool that was in force before, and may have flows left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FormerPool {
    /// The pool; its number where the name is not known any more.
    pub pool: String,
    /// Those of its backends that had flows.
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
    /// Whether an operator wants none there.
    pub drained: bool,
    /// New flows sent there.
    pub opened: u64,
    /// TCP handshakes completed.
    pub established: u64,
    /// SYNs answered with a reset.
    pub refused: u64,
    /// TCP flows that ended.
    pub closed: u64,
    /// Flows that have not ended.
    pub active: u64,
    /// TCP flows in their handshake, when the flow tables were last looked over.
    pub half_open: u64,
    /// The longest that an active flow had no packet from its client then.
    pub longest_idle_seconds: u64,
    /// Low half of the oldest generation that chose this backend for a flow that was active then.
    pub oldest_generation: Option<u32>,
    /// Flows that left the tables without being counted as ended, since the agent started.
    pub vanished: u64,
    /// Good answers to probes since the agent started or the pool changed.
    pub probes_good: u64,
    /// Bad ones.
    pub probes_bad: u64,
}

/// Whether everything is in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// It is.
    pub ready: bool,
    /// What is not.
    pub missing: Vec<String>,
}

/// What was counted, read once for a whole report.
pub(super) struct Counted {
    pub(super) backends: Vec<BackendTotals>,
    pub(super) drops: BTreeMap<Endpoint, ServiceDrops>,
    pub(super) flows: Arc<FlowReport>,
}

impl Counted {
    /// A backend's report. `indices` say where it is counted.
    pub(super) fn backend(
        &self,
        spec: BackendSpec,
        health: Option<&Health>,
        takes_flows: bool,
        indices: &[u32],
    ) -> BackendReport {
        let mut totals = BackendTotals::default();
        let mut flows = BackendFlows::default();
        let mut vanished = 0;
        for index in indices {
            let counted = self.backends.get(*index as usize);
            totals.add(&counted.copied().unwrap_or_default());
            flows.add(&self.flows.backends.get(index).copied().unwrap_or_default());
            vanished += self.flows.vanished.get(index).copied().unwrap_or_default();
        }
        let BackendTotals { counters, active } = totals;
        let answers = health.map(Health::answers).unwrap_or_default();
        BackendReport {
            address: spec.address,
            weight: spec.weight,
            state: health.map_or(HealthState::Unknown, Health::state),
            reason: health.map_or("", Health::reason).to_owned(),
            takes_flows,
            drained: false,
            opened: counters.opened,
            established: counters.established,
            refused: counters.refused,
            closed: counters.closed,
            active,
            half_open: flows.half_open,
            longest_idle_seconds: flows.longest_idle.as_secs(),
            oldest_generation: flows.oldest_generation,
            vanished,
            probes_good: answers.good,
            probes_bad: answers.bad,
        }
    }

    /// A service's drops by verdict.
    pub(super) fn drops(&self, endpoint: &Endpoint) -> BTreeMap<String, u64> {
        let drops = self.drops.get(endpoint).copied().unwrap_or_default();
        let counted =
            VERDICTS.iter().filter_map(|info| Some((info.name, drops.get(info.verdict)?)));
        counted.map(|(name, packets)| (name.to_owned(), packets)).collect()
    }

    pub(super) fn ended(&self) -> BTreeMap<String, u64> {
        let ended = |end: End| self.flows.ended.get(&end).copied().unwrap_or_default();
        End::ALL.into_iter().map(|end| (end.name().to_owned(), ended(end))).collect()
    }

    pub(super) fn sweep(&self) -> SweepReport {
        SweepReport {
            count: self.flows.sweeps,
            seconds: self.flows.took.as_secs_f64(),
            busy_seconds: self.flows.busy.as_secs_f64(),
        }
    }
}

pub(super) fn verdicts(counters: &VerdictCounters) -> BTreeMap<String, u64> {
    VERDICTS.iter().map(|info| (info.name.to_owned(), counters.get(info.verdict))).collect()
}
