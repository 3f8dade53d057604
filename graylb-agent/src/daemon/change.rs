//! Changes of services' splits: checked, applied, remembered.

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    Changed, CommandError, Daemon, SAVE_RETRY, ServiceRef,
    handle::{Asked, Prepared, Reply, ServiceRules},
};
use crate::{
    apply::ApplyError,
    compile::{Change, compile_forced, compile_service},
    model::{
        changes::SplitChange,
        health::{Answer, Target},
        spec::Name,
        split::Canary,
        state::SwitchError,
    },
};

impl Daemon {
    pub(super) fn find(&self, service: &ServiceRef) -> Result<Name, SwitchError> {
        match service {
            ServiceRef::Named(name) => self.state.service(name).cloned(),
            ServiceRef::Host { host, may_be_only } => {
                let only = || self.state.only_service().filter(|_| *may_be_only);
                let found = self.state.service_by_host(host).or_else(only);
                found.cloned().ok_or_else(|| self.state.unknown_service(host))
            }
        }
    }

    pub(super) fn prepare(&self, service: &ServiceRef, asked: Asked) -> Reply<Prepared> {
        let name = self.find(service)?;
        let choice = |asked: &str| self.state.choice(&name, asked).map(|(choice, _)| choice);
        let change = match asked {
            Asked::Switch(pool) => SplitChange::Stable(choice(&pool)?),
            Asked::Canary { pool, share } => {
                SplitChange::Canary(Some(Canary { pool: choice(&pool)?, share }))
            }
            Asked::NoCanary => SplitChange::Canary(None),
            Asked::Rules(rules) => {
                let rules = rules.into_iter();
                let chosen = rules.map(|(client, pool)| Ok((client, choice(&pool)?)));
                SplitChange::Rules(chosen.collect::<Result<_, SwitchError>>()?)
            }
            Asked::Undo(revision) => SplitChange::Undo(revision),
        };
        let to_ask = self.state.to_ask_before(&name, &change)?;
        let endpoint =
            self.state.spec().services.get(&name).map(|service| service.endpoint.address);
        Ok(Prepared { name, change, to_ask, endpoint })
    }

    pub(super) fn rules(&self, service: &ServiceRef) -> Reply<ServiceRules> {
        let name = self.find(service)?;
        let split =
            self.state.split(&name).ok_or_else(|| self.state.unknown_service(name.as_str()))?;
        let rules = split.rules.into_iter().map(|(client, pool)| (client, pool.to_string()));
        Ok((self.state.revision(&name), rules.collect()))
    }

    pub(super) fn change(
        &mut self,
        prepared: &Prepared,
        answers: &[(Target, Answer)],
        force: bool,
        expected: Option<u64>,
        by: &str,
    ) -> Reply<Changed> {
        let Prepared { name, change, .. } = prepared;
        let changes_before = self.state.changes().get(name).cloned();
        let before = self.state.change(name, change, answers, force, expected)?;
        let generation = match self.apply_change(name, force) {
            Ok(generation) => generation,
            Err(error) => {
                self.state.restore(name, changes_before);
                error!("a change of {name} failed, nothing changed: {error}");
                return Err(CommandError::Kernel(error.to_string()));
            }
        };
        let now =
            self.state.split(name).ok_or_else(|| self.state.unknown_service(name.as_str()))?;
        let revision = self.state.revision(name);
        info!(
            "{name} changed from {before} to {now} by {by}, revision {revision}, generation {generation}"
        );
        self.probes.set(&self.state.targets());
        self.lead_flows_away();
        let warning = self.save().err().map(|error| {
            warn!("the change is in force, but not saved: {error}");
            self.save_again = Some(Instant::now() + SAVE_RETRY);
            format!("in force, but not saved yet, so that a restart would undo it: {error}")
        });
        Ok(Changed {
            service: name.to_string(),
            from: before.stable.choice.to_string(),
            to: now.stable.choice.to_string(),
            before: before.to_string(),
            split: now.to_string(),
            revision,
            generation,
            warning,
        })
    }

    /// Writes a changed service's image; with `force`, all of each pool of which nobody is up.
    fn apply_change(&mut self, name: &Name, force: bool) -> Result<u64, ApplyError> {
        let Some(service) = self.state.spec().services.get(name).cloned() else { return Ok(0) };
        let compile = if force { compile_forced } else { compile_service };
        let installed = self.plane.installed();
        let Some(wanted) = compile(&self.state, name, &service, installed) else { return Ok(0) };
        let unchanged =
            installed.get(&service.endpoint).is_some_and(|there| there.routes_like(&wanted));
        if unchanged {
            return Ok(self.plane.generation(&service.endpoint).unwrap_or(0));
        }
        self.plane.apply(&Change::Put(service.endpoint, Box::new(wanted)))
    }
}
