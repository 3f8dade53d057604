//! How things are, gathered.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use super::{
    BackendReport, CanaryReport, CommandError, Daemon, FormerPool, PoolReport, ServiceReport,
    StatusReport,
    report::{self, Counted},
};
use crate::{
    apply::ApplyError,
    compile::{ServiceImage, pool_number},
    model::{
        spec::{BackendSpec, Name},
        state::InForce,
    },
};

/// Pool numbers and the names that they stand for.
type PoolNames = HashMap<u32, String>;
/// Where backends are counted: an address has several places after the pool's mode changed.
type Indices = BTreeMap<SocketAddr, Vec<u32>>;

impl Daemon {
    pub(super) fn status(&self) -> Result<StatusReport, CommandError> {
        let kernel = |error: ApplyError| CommandError::Kernel(error.to_string());
        let verdicts = self.plane.verdicts().map_err(kernel)?;
        let counted = Counted {
            backends: self.plane.counters().map_err(kernel)?,
            drops: self.plane.service_drops().map_err(kernel)?,
            flows: self.flows.report(),
        };
        let pools = self.pool_names();
        let names = self.state.spec().services.keys();
        let services: Result<Vec<_>, _> =
            names.map(|name| self.service_report(name, &counted, &pools)).collect();
        let mut problems = self.unattached();
        if self.save_again.is_some() {
            problems.push("the state file could not be written; trying again".to_owned());
        }
        Ok(StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: graylb_common::abi::ABI_VERSION,
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config: self.config_path.display().to_string(),
            pin_dir: self.config.agent.pin_dir.display().to_string(),
            interfaces: self.interfaces.attached.clone(),
            socket_hook: self.local.hook.clone(),
            services: services?,
            pools: self.state.spec().pools.keys().map(ToString::to_string).collect(),
            problems,
            verdicts: report::verdicts(&verdicts),
            flow_tables: counted.flows.tables.clone(),
            flows_ended: counted.ended(),
            sweep: counted.sweep(),
        })
    }

    fn pool_names(&self) -> PoolNames {
        let pools = self.state.spec().pools.keys().map(ToString::to_string);
        let probed = self.state.health_states().map(|(target, _)| target.pool.clone());
        pools.chain(probed).map(|pool| (pool_number(&pool), pool)).collect()
    }

    fn service_report(
        &self,
        name: &Name,
        counted: &Counted,
        pools: &PoolNames,
    ) -> Result<ServiceReport, CommandError> {
        let spec = self.state.spec().services.get(name);
        let (Some(service), Some(split)) = (spec, self.state.split(name)) else {
            return Err(self.state.unknown_service(name.as_str()).into());
        };
        let mut indices: BTreeMap<u32, Indices> = BTreeMap::new();
        for (pool, address, index) in self.plane.backend_indices(&service.endpoint) {
            indices.entry(pool).or_default().entry(address).or_default().push(index);
        }
        let installed = self.plane.installed().get(&service.endpoint);
        let mut reported: BTreeMap<String, PoolReport> = BTreeMap::new();
        for pool in split.pools() {
            reported
                .entry(pool.choice.to_string())
                .or_insert_with(|| self.pool_report(pool, installed, &mut indices, counted));
        }
        let pool = split.stable.choice.to_string();
        let stable = reported.remove(&pool).map(|report| report.backends).unwrap_or_default();
        let former = indices
            .into_iter()
            .map(|(number, backends)| self.former_pool(number, &backends, counted, pools));
        let canary = split.canary.as_ref().map(|(share, canary)| CanaryReport {
            pool: canary.choice.to_string(),
            share: *share,
            starved: canary.is_starved(&self.state),
        });
        Ok(ServiceReport {
            name: name.to_string(),
            address: service.endpoint.address,
            protocol: service.endpoint.protocol,
            aliases: service.aliases.clone(),
            default_pool: service.default_pool.to_string(),
            balance: split.stable.pool.balance.to_string(),
            backends: stable,
            others: reported.into_values().collect(),
            former: former.collect(),
            drops: counted.drops(&service.endpoint),
            overridden: split.overridden,
            split: split.to_string(),
            revision: self.state.revision(name),
            canary,
            rules: split.rules.len(),
            problem: Some(split.problems.join("; ")).filter(|problems| !problems.is_empty()),
            generation: self.plane.generation(&service.endpoint),
            last_good_kept: installed.is_some()
                && self.is_starved(name)
                && !split.stable.is_drained(&self.state),
            pool,
        })
    }

    /// A pool in force. Takes its backends out of `indices`, but for those that it has no more.
    fn pool_report(
        &self,
        in_force: &InForce,
        installed: Option<&ServiceImage>,
        indices: &mut BTreeMap<u32, Indices>,
        counted: &Counted,
    ) -> PoolReport {
        let pool = in_force.choice.to_string();
        let number = pool_number(&pool);
        let mine = indices.remove(&number).unwrap_or_default();
        // Backends that have left the pool in the config are former ones of it.
        let listed = |address| in_force.pool.backends.iter().any(|b| b.address == address);
        let (mine, left): (Indices, Indices) =
            mine.into_iter().partition(|(address, _)| listed(*address));
        if !left.is_empty() {
            indices.insert(number, left);
        }
        let backends = in_force.pool.backends.iter().map(|backend| {
            let health = self.state.health(&pool, backend.address);
            let taking = installed.is_some_and(|image| image.leads_to(number, backend.address));
            let places = mine.get(&backend.address).map_or(&[][..], Vec::as_slice);
            let drained = self.state.drained().contains(&pool, backend.address);
            BackendReport { drained, ..counted.backend(*backend, health, taking, places) }
        });
        let backends = backends.collect();
        PoolReport { balance: in_force.pool.balance.to_string(), backends, pool }
    }

    fn former_pool(
        &self,
        number: u32,
        backends: &Indices,
        counted: &Counted,
        pools: &PoolNames,
    ) -> FormerPool {
        let pool = pools.get(&number).cloned().unwrap_or_else(|| format!("number {number:#010x}"));
        let backends = backends.iter().map(|(&address, indices)| {
            let health = self.state.health(&pool, address);
            counted.backend(BackendSpec { address, weight: 0 }, health, false, indices)
        });
        FormerPool { backends: backends.collect(), pool }
    }
}
