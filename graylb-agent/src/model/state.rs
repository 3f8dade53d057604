//! The desired state: the operator's intent, what was overridden at run time, and what is known of the
//! backends. Pure: commands and observations in, decisions out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    choice::PoolChoice,
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

/// Where a service's new flows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// What was chosen.
    pub choice: PoolChoice,
    /// Its backends and probe.
    pub pool: PoolSpec,
    /// Whether it was switched to at run time.
    pub overridden: bool,
    /// Why an override is not followed, if so.
    pub problem: Option<String>,
}

impl InForce {
    /// The backends that take new flows.
    pub fn takers<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a BackendSpec> {
        let pool = self.choice.to_string();
        self.pool.backends.iter().filter(move |backend| {
            backend.weight > 0 && state.health_of(&pool, backend.address) == HealthState::Up
        })
    }
}

/// The desired state.
#[derive(Clone, Debug, Default)]
pub struct State {
    spec: Spec,
    switches: BTreeMap<Name, PoolChoice>,
    health: BTreeMap<Target, Health>,
}

impl State {
    /// Starts from the config, what was switched before, and what an earlier agent of the same boot knew.
    #[must_use]
    pub fn new(
        spec: Spec,
        switches: BTreeMap<Name, PoolChoice>,
        known: &BTreeMap<String, BTreeMap<SocketAddr, HealthState>>,
    ) -> Self {
        let mut state = Self { spec, switches, health: BTreeMap::new() };
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

    /// What was overridden at run time.
    #[must_use]
    pub const fn switches(&self) -> &BTreeMap<Name, PoolChoice> {
        &self.switches
    }

    /// Takes a new config; what was switched stays switched.
    pub fn set_spec(&mut self, spec: Spec) {
        self.spec = spec;
        self.follow_pools();
    }

    /// Where a service's new flows go; `None` where there is no such service.
    #[must_use]
    pub fn in_force(&self, name: &Name) -> Option<InForce> {
        let service = self.spec.services.get(name)?;
        let default = || {
            let pool = self.spec.pools.get(&service.default_pool)?.clone();
            let choice = PoolChoice::Pool(service.default_pool.clone());
            Some(InForce { choice, pool, overridden: false, problem: None })
        };
        let Some(choice) = self.switches.get(name) else { return default() };
        match self.resolve(name, service, choice) {
            Ok(pool) => {
                Some(InForce { choice: choice.clone(), pool, overridden: true, problem: None })
            }
            Err(error) => {
                let problem = format!("was switched to {choice}, which is not followed: {error}");
                Some(InForce { problem: Some(problem), ..default()? })
            }
        }
    }

    /// The pool of a choice, if the service may use it.
    fn resolve(
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

    /// Backends of a choice whose answer is needed before a switch to it: those that are not known to be
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

    /// Switches a service. `answers` are those that [`State::to_ask`] asked for. Returns what was in
    /// force before.
    ///
    /// # Errors
    ///
    /// Nobody in a pool, or somebody in a list of addresses, does not answer, and `force` is not set.
    pub fn switch(
        &mut self,
        name: &Name,
        choice: &PoolChoice,
        answers: &[(Target, Answer)],
        force: bool,
    ) -> Result<InForce, SwitchError> {
        let Some(service) = self.spec.services.get(name) else {
            return Err(self.unknown_service(name.as_str()));
        };
        let pool = self.resolve(name, service, choice)?;
        let before = self.in_force(name).ok_or_else(|| self.unknown_service(name.as_str()))?;
        if !force {
            self.check_answers(name, choice, &pool, answers)?;
        }
        if *choice == PoolChoice::Pool(service.default_pool.clone()) {
            self.switches.remove(name);
        } else {
            self.switches.insert(name.clone(), choice.clone());
        }
        self.follow_pools();
        for (target, answer) in answers {
            let _seen_with_the_switch = self.observe(target, answer);
        }
        Ok(before)
    }

    fn check_answers(
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

    /// Puts back what a switch replaced, when the kernel did not take it.
    pub fn restore(&mut self, name: &Name, override_before: Option<PoolChoice>) {
        match override_before {
            Some(choice) => self.switches.insert(name.clone(), choice),
            None => self.switches.remove(name),
        };
        self.follow_pools();
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

    /// Services whose flows go to the pool of this text.
    #[must_use]
    pub fn users_of(&self, pool: &str) -> Vec<Name> {
        let services = self.spec.services.keys();
        services
            .filter(|name| self.in_force(name).is_some_and(|f| f.choice.to_string() == pool))
            .cloned()
            .collect()
    }

    /// Every pool of the config, and those made of addresses that are in force.
    fn pools(&self) -> BTreeMap<String, PoolSpec> {
        let named = self.spec.pools.iter().map(|(name, pool)| (name.to_string(), pool.clone()));
        let mut pools: BTreeMap<_, _> = named.collect();
        for name in self.switches.keys() {
            if let Some(InForce { choice: choice @ PoolChoice::Backends(_), pool, .. }) =
                self.in_force(name)
            {
                pools.entry(choice.to_string()).or_insert(pool);
            }
        }
        pools
    }

    /// Makes health follow the pools: new backends are unknown, gone ones forgotten.
    fn follow_pools(&mut self) {
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

#[cfg(test)]
mod tests;
