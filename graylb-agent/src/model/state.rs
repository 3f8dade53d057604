//! The desired state: the operator's intent, what was overridden at run time, and what is known of the
//! backends. Pure: commands and observations in, decisions out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    changes::Changes,
    choice::PoolChoice,
    drain::Drained,
    health::{Answer, Health, HealthState, Target, Transition},
    probe::ProbeSpec,
    spec::{BackendSpec, Name, PoolSpec, ServiceSpec, Spec, check_address, check_use},
};

/// Why a switch is refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// No service by that name, alias or address.
    #[error("there is no service {asked:?}; there are: {}", .known.join(", "))]
    UnknownService {
        /// What was asked for.
        asked: String,
        /// The services' names.
        known: Vec<String>,
    },
    /// No pool by that name, and no list of addresses.
    #[error("there is no pool {asked:?}; there are: {}", .known.join(", "))]
    UnknownPool {
        /// What was asked for.
        asked: String,
        /// The pools' names.
        known: Vec<String>,
    },
    /// The pool is there, but not for this service.
    #[error("{0}")]
    Unfit(String),
    /// The service has changed since the operator looked.
    #[error(
        "{service} is at revision {now}, not {expected}: somebody has changed it meanwhile, nothing was changed now; look at it and try again"
    )]
    Outdated {
        /// The service.
        service: Name,
        /// The revision that was expected.
        expected: u64,
        /// The one in force.
        now: u64,
    },
    /// A rollout of the service decides about that, or there is none to command.
    #[error("{0}")]
    Rollout(String),
    /// There is nothing to go back to.
    #[error("{service} has no revision {asked} to go back to; known are: {known}")]
    UnknownRevision {
        /// The service.
        service: Name,
        /// What was asked for.
        asked: String,
        /// Those that are.
        known: String,
    },
    /// Nobody would be left to take a service's new flows.
    #[error(
        "{pool} would have nobody left for {services}, nothing changed: switch first, or let it be so with --force"
    )]
    LastOnes {
        /// The pool.
        pool: String,
        /// The services.
        services: String,
    },
    /// The pool has no such backend.
    #[error("{pool} has no backend {asked}; it has: {}", .known.join(", "))]
    UnknownBackend {
        /// The pool.
        pool: String,
        /// What was asked for.
        asked: SocketAddr,
        /// Those that it has.
        known: Vec<String>,
    },
    /// Nobody in the pool would answer.
    #[error("{pool} cannot take {service}'s traffic, nothing changed: {why}")]
    NotHealthy {
        /// The service.
        service: Name,
        /// The pool.
        pool: String,
        /// What its backends answered.
        why: String,
    },
}

/// A pool that a service's new flows go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// What was chosen.
    pub choice: PoolChoice,
    /// Its backends and probe.
    pub pool: PoolSpec,
}

impl InForce {
    /// The backends that take new flows.
    pub fn takers<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a BackendSpec> {
        let pool = self.choice.to_string();
        self.pool.backends.iter().filter(move |backend| {
            backend.weight > 0
                && state.health_of(&pool, backend.address) == HealthState::Up
                && !state.drained.contains(&pool, backend.address)
        })
    }

    /// Whether the operator has drained every backend that has a weight.
    #[must_use]
    pub fn is_drained(&self, state: &State) -> bool {
        let pool = self.choice.to_string();
        let mut weighty = self.pool.backends.iter().filter(|backend| backend.weight > 0);
        weighty.all(|backend| state.drained.contains(&pool, backend.address))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_starved(&self, state: &State) -> bool {
        self.takers(state).next().is_none()
    }
}

/// The desired state.
#[derive(Clone, Debug, Default)]
pub struct State {
    spec: Spec,
    changes: BTreeMap<Name, Changes>,
    drained: Drained,
    health: BTreeMap<Target, Health>,
}

impl State {
    /// Starts from the config, what was changed before, and what an earlier agent of the same boot knew.
    #[must_use]
    pub fn new(
        spec: Spec,
        changes: BTreeMap<Name, Changes>,
        drained: Drained,
        known: &BTreeMap<String, BTreeMap<SocketAddr, HealthState>>,
    ) -> Self {
        let mut state = Self { spec, changes, drained, health: BTreeMap::new() };
        state.follow_pools();
        for (target, health) in &mut state.health {
            let before = known.get(&target.pool).and_then(|pool| pool.get(&target.address));
            if health.state() == HealthState::Unknown
                && let Some(&before) = before
            {
                health.resume(before);
            }
        }
        state
    }

    /// The operator's intent.
    #[must_use]
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What was changed at run time.
    #[must_use]
    pub const fn changes(&self) -> &BTreeMap<Name, Changes> {
        &self.changes
    }

    /// Which backends the operator has drained.
    #[must_use]
    pub const fn drained(&self) -> &Drained {
        &self.drained
    }

    /// Takes a new config; what was changed at run time stays changed.
    pub fn set_spec(&mut self, spec: Spec) {
        for (name, service) in &spec.services {
            let same = self.spec.services.get(name).is_none_or(|old| {
                (&old.default_pool, &old.canary, &old.rules, &old.split)
                    == (&service.default_pool, &service.canary, &service.rules, &service.split)
            });
            if !same {
                let changes = self.changes.entry(name.clone()).or_default();
                *changes = changes.with(changes.overrides.clone());
            }
        }
        self.spec = spec;
        self.follow_pools();
    }

    /// The pool of a choice, if the service may use it.
    pub(super) fn resolve(
        &self,
        name: &Name,
        service: &ServiceSpec,
        choice: &PoolChoice,
    ) -> Result<PoolSpec, SwitchError> {
        let unfit = |error: super::spec::SpecError| SwitchError::Unfit(error.to_string());
        let pool = match choice {
            PoolChoice::Pool(pool) => self.spec.pools.get(pool).cloned().ok_or_else(|| {
                SwitchError::UnknownPool { asked: pool.to_string(), known: self.pool_names() }
            })?,
            PoolChoice::Backends(addresses) => {
                let like = self.spec.pools.get(&service.default_pool);
                let (mode, probe, balance) = like.map_or_else(Default::default, |pool| {
                    (pool.mode.clone(), pool.probe.clone(), pool.balance)
                });
                let backends = addresses.iter().map(|&address| BackendSpec { address, weight: 1 });
                PoolSpec::new(backends.collect(), mode, probe)
                    .and_then(|pool| pool.balanced(balance))
                    .map_err(unfit)?
            }
        };
        check_use(name, service, choice, &pool).map_err(unfit)?;
        Ok(pool)
    }

    /// Finds a service by name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn service(&self, asked: &str) -> Result<&Name, SwitchError> {
        let found = self.spec.services.keys().find(|name| name.as_str() == asked);
        found.ok_or_else(|| self.unknown_service(asked))
    }

    /// Finds a service by what a client calls its host: name, alias or virtual endpoint, in any case.
    #[must_use]
    pub fn service_by_host(&self, host: &str) -> Option<&Name> {
        let host = host.to_ascii_lowercase();
        let mut services = self.spec.services.iter();
        services
            .find(|(name, service)| {
                name.as_str().eq_ignore_ascii_case(&host)
                    || service.endpoint.address.to_string() == host
                    || service.aliases.contains(&host)
            })
            .map(|(name, _)| name)
    }

    /// The only service there is.
    #[must_use]
    pub fn only_service(&self) -> Option<&Name> {
        let mut names = self.spec.services.keys();
        names.next().filter(|_| names.next().is_none())
    }

    /// The error for a service that there is not.
    #[must_use]
    pub fn unknown_service(&self, asked: &str) -> SwitchError {
        let known = self.spec.services.iter();
        SwitchError::UnknownService {
            asked: asked.to_owned(),
            known: known.map(|(name, s)| format!("{name} ({})", s.endpoint)).collect(),
        }
    }

    fn pool_names(&self) -> Vec<String> {
        self.spec.pools.keys().map(ToString::to_string).collect()
    }

    /// Reads what a client asks a service to be switched to: a pool's name, or addresses separated by
    /// commas, without a port where the service's own is meant.
    ///
    /// # Errors
    ///
    /// It is neither, or not for this service.
    pub fn choice(&self, name: &Name, asked: &str) -> Result<(PoolChoice, PoolSpec), SwitchError> {
        let Some(service) = self.spec.services.get(name) else {
            return Err(self.unknown_service(name.as_str()));
        };
        let unknown =
            || SwitchError::UnknownPool { asked: asked.to_owned(), known: self.pool_names() };
        let choice = match self.spec.pools.keys().find(|pool| pool.as_str() == asked) {
            Some(pool) => PoolChoice::Pool(pool.clone()),
            None => {
                let port = service.endpoint.address.port();
                let addresses: Option<Vec<_>> =
                    asked.split(',').map(|text| address(text.trim(), port)).collect();
                PoolChoice::Backends(addresses.ok_or_else(unknown)?)
            }
        };
        let pool = self.resolve(name, service, &choice)?;
        Ok((choice, pool))
    }

    /// Backends of a pool whose answer is needed before flows go to it: those that are not known to be
    /// up, with how to ask.
    #[must_use]
    pub fn to_ask(&self, choice: &PoolChoice, pool: &PoolSpec) -> Vec<(Target, ProbeSpec)> {
        let Some(probe) = &pool.probe else { return Vec::new() };
        let text = choice.to_string();
        let doubtful = pool
            .backends
            .iter()
            .filter(|backend| self.health_of(&text, backend.address) != HealthState::Up);
        doubtful
            .map(|b| (Target { pool: text.clone(), address: b.address }, probe.clone()))
            .collect()
    }

    pub(super) fn check_answers(
        &self,
        name: &Name,
        choice: &PoolChoice,
        pool: &PoolSpec,
        answers: &[(Target, Answer)],
    ) -> Result<(), SwitchError> {
        let bad: Vec<String> = answers
            .iter()
            .filter_map(|(target, answer)| match answer {
                Answer::Good => None,
                Answer::Bad(why) => Some(format!("{}: {why}", target.address)),
            })
            .collect();
        let refused = match choice {
            PoolChoice::Backends(_) => !bad.is_empty(),
            PoolChoice::Pool(_) => bad.len() == pool.backends.len(),
        };
        if refused {
            let pool = choice.to_string();
            return Err(SwitchError::NotHealthy {
                service: name.clone(),
                pool,
                why: bad.join(", "),
            });
        }
        Ok(())
    }

    /// Takes a probe's answer in; says so if it changes a backend's state.
    pub fn observe(&mut self, target: &Target, answer: &Answer) -> Option<Transition> {
        self.health.get_mut(target)?.observe(answer)
    }

    /// Whether a backend of a pool is trusted.
    #[must_use]
    pub fn health_of(&self, pool: &str, address: SocketAddr) -> HealthState {
        self.health(pool, address).map_or(HealthState::Unknown, Health::state)
    }

    /// A backend's health.
    #[must_use]
    pub fn health(&self, pool: &str, address: SocketAddr) -> Option<&Health> {
        self.health.get(&Target { pool: pool.to_owned(), address })
    }

    /// Whether each backend of each pool is trusted.
    pub fn health_states(&self) -> impl Iterator<Item = (&Target, HealthState)> {
        self.health.iter().map(|(target, health)| (target, health.state()))
    }

    /// Everybody's health, as the state file keeps it.
    #[must_use]
    pub fn known_health(&self) -> BTreeMap<String, BTreeMap<SocketAddr, HealthState>> {
        let mut known: BTreeMap<String, BTreeMap<SocketAddr, HealthState>> = BTreeMap::new();
        for (target, health) in &self.health {
            known.entry(target.pool.clone()).or_default().insert(target.address, health.state());
        }
        known
    }

    /// What is to be probed, and how.
    #[must_use]
    pub fn targets(&self) -> BTreeMap<Target, ProbeSpec> {
        let mut targets = BTreeMap::new();
        for (text, pool) in self.pools() {
            let Some(probe) = &pool.probe else { continue };
            for backend in &pool.backends {
                let target = Target { pool: text.clone(), address: backend.address };
                targets.insert(target, probe.clone());
            }
        }
        targets
    }

    /// Services some of whose flows go to the pool of this text.
    #[must_use]
    pub fn users_of(&self, pool: &str) -> Vec<Name> {
        let services = self.spec.services.keys();
        services
            .filter(|name| {
                let split = self.split(name);
                split.is_some_and(|split| split.pools().any(|used| used.choice.to_string() == pool))
            })
            .cloned()
            .collect()
    }

    /// Every pool of the config, and those made of addresses that are in force.
    pub(super) fn pools(&self) -> BTreeMap<String, PoolSpec> {
        let named = self.spec.pools.iter().map(|(name, pool)| (name.to_string(), pool.clone()));
        let mut pools: BTreeMap<_, _> = named.collect();
        for split in self.changes.keys().filter_map(|name| self.split(name)) {
            for InForce { choice, pool } in split.pools() {
                pools.entry(choice.to_string()).or_insert_with(|| pool.clone());
            }
        }
        pools
    }

    /// Makes health follow the pools: new backends are unknown, gone ones forgotten.
    pub(super) fn follow_pools(&mut self) {
        let mut wanted = BTreeSet::new();
        for (text, pool) in self.pools() {
            for backend in &pool.backends {
                let target = Target { pool: text.clone(), address: backend.address };
                wanted.insert(target.clone());
                match &pool.probe {
                    None => {
                        self.health.insert(target, Health::without_probe());
                    }
                    Some(probe) => self
                        .health
                        .entry(target)
                        .or_insert_with(|| Health::new(probe.rise, probe.fall))
                        .set_thresholds(probe.rise, probe.fall),
                }
            }
        }
        self.health.retain(|target, _| wanted.contains(target));
    }
}

/// `ADDR:PORT`, or `ADDR` with the port given.
fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => SocketAddr::new(bare.parse::<IpAddr>().ok()?, port),
    };
    check_address(address).ok().map(|()| address)
}

mod drain;
mod split;

pub use split::{Split, SplitPool};

#[cfg(test)]
mod tests;
