//! Which pools a service's new flows are divided among, and changes of that.

use std::{collections::BTreeMap, fmt};

use super::{InForce, State, SwitchError};
use crate::model::{
    changes::{CanaryOverride, Changes, Overrides, SplitChange},
    choice::PoolChoice,
    health::{Answer, Target},
    probe::ProbeSpec,
    spec::{Name, ServiceSpec},
    split::{Canary, Rules, Share, check_rules},
};

/// Where a service's new flows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Those that neither the share nor a rule takes.
    pub stable: InForce,
    /// The canary's part.
    pub canary: Option<(Share, InForce)>,
    /// Clients that go to a pool of their own, whatever the share.
    pub rules: Rules,
    /// The pools of the rules, each once, in the order of their names.
    pub ruled: Vec<InForce>,
    /// Whether the stable pool was switched to at run time.
    pub overridden: bool,
    /// What was asked for and is not followed, and why.
    pub problems: Vec<String>,
}

/// A pool's part in a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitPool {
    /// It is the stable one.
    Stable,
    /// It is the canary.
    Canary,
    /// Rules lead to it.
    Ruled,
}

impl Split {
    /// Every pool, the stable one first.
    pub fn pools(&self) -> impl Iterator<Item = &InForce> {
        let canary = self.canary.iter().map(|(_, pool)| pool);
        std::iter::once(&self.stable).chain(canary).chain(&self.ruled)
    }

    /// Every pool with its part.
    pub fn parts(&self) -> impl Iterator<Item = (SplitPool, &InForce)> {
        let canary = self.canary.iter().map(|(_, pool)| (SplitPool::Canary, pool));
        let ruled = self.ruled.iter().map(|pool| (SplitPool::Ruled, pool));
        std::iter::once((SplitPool::Stable, &self.stable)).chain(canary).chain(ruled)
    }
}

impl fmt::Display for Split {
    /// `blue, 5% to green, 3 client rules`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stable.choice)?;
        if let Some((share, canary)) = &self.canary {
            write!(f, ", {share} to {}", canary.choice)?;
        }
        match self.rules.len() {
            0 => Ok(()),
            1 => f.write_str(", 1 client rule"),
            count => write!(f, ", {count} client rules"),
        }
    }
}

impl State {
    /// Where a service's new flows go; `None` where there is no such service.
    #[must_use]
    pub fn split(&self, name: &Name) -> Option<Split> {
        let none = Overrides::default();
        let overrides = self.changes.get(name).map_or(&none, |changes| &changes.overrides);
        self.split_of(name, overrides)
    }

    /// The number of changes that a service's split has seen.
    #[must_use]
    pub fn revision(&self, name: &Name) -> u64 {
        self.changes.get(name).map_or(0, |changes| changes.revision)
    }

    /// Where a service's new flows would go with these overrides.
    fn split_of(&self, name: &Name, overrides: &Overrides) -> Option<Split> {
        let service = self.spec.services.get(name)?;
        let mut problems = Vec::new();
        let mut resolve =
            |what: &str, choice: &PoolChoice| match self.resolve(name, service, choice) {
                Ok(pool) => Some(InForce { choice: choice.clone(), pool }),
                Err(error) => {
                    problems.push(format!("{what} {choice}, which is not followed: {error}"));
                    None
                }
            };
        let switched =
            overrides.stable.as_ref().and_then(|choice| resolve("was switched to", choice));
        let overridden = switched.is_some();
        let stable = match switched {
            Some(stable) => stable,
            None => InForce {
                choice: PoolChoice::Pool(service.default_pool.clone()),
                pool: self.spec.pools.get(&service.default_pool)?.clone(),
            },
        };
        let canary = effective_canary(service, overrides)
            .and_then(|Canary { pool, share }| Some((*share, resolve("has the canary", pool)?)));
        let rules = effective_rules(service, overrides);
        let mut ruled = BTreeMap::new();
        for choice in rules.values() {
            ruled
                .entry(choice.to_string())
                .or_insert_with(|| resolve("has rules that lead to", choice));
        }
        let followed =
            |choice: &PoolChoice| ruled.get(&choice.to_string()).is_some_and(Option::is_some);
        let rules = rules.iter().filter(|(_, choice)| followed(choice));
        let rules = rules.map(|(client, choice)| (*client, choice.clone())).collect();
        let ruled = ruled.into_values().flatten().collect();
        Some(Split { stable, canary, rules, ruled, overridden, problems })
    }

    /// Backends whose answer is needed before a change: those of the pools that it names that are not known
    /// to be up, with how to ask.
    ///
    /// # Errors
    ///
    /// There is no such service, pool or revision, or they do not fit.
    pub fn to_ask_before(
        &self,
        name: &Name,
        change: &SplitChange,
    ) -> Result<Vec<(Target, ProbeSpec)>, SwitchError> {
        let service =
            self.spec.services.get(name).ok_or_else(|| self.unknown_service(name.as_str()))?;
        let mut targets = BTreeMap::new();
        for choice in self.named(name, service, change)? {
            let pool = self.resolve(name, service, &choice)?;
            targets.extend(self.to_ask(&choice, &pool));
        }
        Ok(targets.into_iter().collect())
    }

    /// The pools that a change leads flows to.
    fn named(
        &self,
        name: &Name,
        service: &ServiceSpec,
        change: &SplitChange,
    ) -> Result<Vec<PoolChoice>, SwitchError> {
        let mut named: Vec<PoolChoice> = match change {
            SplitChange::Stable(choice) => vec![choice.clone()],
            SplitChange::Canary(canary) => {
                canary.iter().map(|canary| canary.pool.clone()).collect()
            }
            SplitChange::Rules(rules) => rules.values().cloned().collect(),
            SplitChange::Undo(_) => {
                let overrides = self.after(name, service, change)?;
                let stable = overrides.stable.clone();
                let canary =
                    effective_canary(service, &overrides).map(|canary| canary.pool.clone());
                let ruled = effective_rules(service, &overrides).values().cloned();
                stable.into_iter().chain(canary).chain(ruled).collect()
            }
        };
        named.sort_by_key(ToString::to_string);
        named.dedup();
        Ok(named)
    }

    /// Changes a service's split. `answers` are those that [`State::to_ask_before`] asked for. Returns what
    /// was in force before; [`State::restore`] takes the service's changes of before.
    ///
    /// # Errors
    ///
    /// The service is at another revision than `expected`; a pool does not fit; nobody in a pool, or somebody
    /// in a list of addresses, does not answer, and `force` is not set. Nothing has changed.
    pub fn change(
        &mut self,
        name: &Name,
        change: &SplitChange,
        answers: &[(Target, Answer)],
        force: bool,
        expected: Option<u64>,
    ) -> Result<Split, SwitchError> {
        let Some(service) = self.spec.services.get(name) else {
            return Err(self.unknown_service(name.as_str()));
        };
        let now = self.revision(name);
        if let Some(expected) = expected.filter(|expected| *expected != now) {
            return Err(SwitchError::Outdated { service: name.clone(), expected, now });
        }
        for choice in self.named(name, service, change)? {
            let pool = self.resolve(name, service, &choice)?;
            if !force {
                let text = choice.to_string();
                let mine = answers.iter().filter(|(target, _)| target.pool == text).cloned();
                self.check_answers(name, &choice, &pool, &mine.collect::<Vec<_>>())?;
            }
        }
        let overrides = self.after(name, service, change)?;
        let before = self.split(name).ok_or_else(|| self.unknown_service(name.as_str()))?;
        let changes = self.changes.entry(name.clone()).or_default();
        *changes = changes.with(overrides);
        self.follow_pools();
        for (target, answer) in answers {
            let _seen_with_the_change = self.observe(target, answer);
        }
        Ok(before)
    }

    /// Puts back a service's changes of before, when the kernel did not take what replaced them.
    pub fn restore(&mut self, name: &Name, before: Option<Changes>) {
        match before {
            Some(changes) => self.changes.insert(name.clone(), changes),
            None => self.changes.remove(name),
        };
        self.follow_pools();
    }

    /// The overrides after a change; what is as in the config is none.
    fn after(
        &self,
        name: &Name,
        service: &ServiceSpec,
        change: &SplitChange,
    ) -> Result<Overrides, SwitchError> {
        let changes = self.changes.get(name).cloned().unwrap_or_default();
        let mut overrides = changes.overrides.clone();
        match change {
            SplitChange::Stable(choice) => {
                let promoted =
                    effective_canary(service, &overrides).is_some_and(|c| c.pool == *choice);
                let default = PoolChoice::Pool(service.default_pool.clone());
                overrides.stable = Some(choice.clone()).filter(|choice| *choice != default);
                if promoted {
                    overrides.canary = canary_override(service, None);
                }
            }
            SplitChange::Canary(canary) => {
                if let Some(canary) = canary
                    && canary.pool == stable_choice(service, &overrides)
                {
                    return Err(SwitchError::Unfit(format!(
                        "{} is {name}'s stable pool already: it cannot be its canary, too",
                        canary.pool
                    )));
                }
                overrides.canary = canary_override(service, canary.clone());
            }
            SplitChange::Rules(rules) => {
                check_rules(rules, service.endpoint.address.is_ipv4())
                    .map_err(|error| SwitchError::Unfit(error.to_string()))?;
                overrides.rules = Some(rules.clone()).filter(|rules| *rules != service.rules);
            }
            SplitChange::Undo(revision) => {
                let found = changes.at(*revision).cloned();
                overrides = found.ok_or_else(|| unknown_revision(name, &changes, *revision))?;
            }
        }
        Ok(overrides)
    }
}

fn unknown_revision(name: &Name, changes: &Changes, asked: Option<u64>) -> SwitchError {
    let known: Vec<String> = changes.past.iter().map(|past| past.revision.to_string()).collect();
    SwitchError::UnknownRevision {
        service: name.clone(),
        asked: asked.map_or_else(|| "before this one".into(), |asked| asked.to_string()),
        known: if known.is_empty() { "none".into() } else { known.join(", ") },
    }
}

fn stable_choice(service: &ServiceSpec, overrides: &Overrides) -> PoolChoice {
    let default = || PoolChoice::Pool(service.default_pool.clone());
    overrides.stable.clone().unwrap_or_else(default)
}

fn canary_override(service: &ServiceSpec, canary: Option<Canary>) -> Option<CanaryOverride> {
    (canary != service.canary).then(|| canary.map_or(CanaryOverride::None, CanaryOverride::Some))
}

/// The canary in force, as far as it can be followed.
fn effective_canary<'a>(service: &'a ServiceSpec, overrides: &'a Overrides) -> Option<&'a Canary> {
    match &overrides.canary {
        Some(CanaryOverride::None) => None,
        Some(CanaryOverride::Some(canary)) => Some(canary),
        None => service.canary.as_ref(),
    }
}

fn effective_rules<'a>(service: &'a ServiceSpec, overrides: &'a Overrides) -> &'a Rules {
    overrides.rules.as_ref().unwrap_or(&service.rules)
}
