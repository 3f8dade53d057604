//! What operators changed at run time about a service, and how to get back.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    choice::PoolChoice,
    split::{Canary, Rules},
};

/// Earlier splits that are kept for each service.
pub const MAX_PAST: usize = 32;

/// What differs from the config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// The stable pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<PoolChoice>,
    /// The canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryOverride>,
    /// The client rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Rules>,
}

/// A canary that is not the config's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CanaryOverride {
    /// There is none.
    None,
    /// This one.
    Some(Canary),
}

impl Overrides {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One change of a service's split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitChange {
    /// Another stable pool. If it was the canary, that has been promoted and is none any more.
    Stable(PoolChoice),
    /// A canary and its share, or none.
    Canary(Option<Canary>),
    /// Client rules, in place of all that there were.
    Rules(Rules),
    /// Back to what was in force as a revision; to the one before the last where `None`.
    Undo(Option<u64>),
}

/// A service's changes so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// What differs from the config.
    pub overrides: Overrides,
    /// Counts the changes of the service's split, by operators and by the config.
    pub revision: u64,
    /// What differed before, oldest first.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub past: VecDeque<Past>,
}

/// Something that was in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The revision that it was in force as.
    pub revision: u64,
    /// What differed from the config.
    pub overrides: Overrides,
}

impl Changes {
    /// The next revision, with these overrides.
    #[must_use]
    pub fn with(&self, overrides: Overrides) -> Self {
        let mut past = self.past.clone();
        past.push_back(Past { revision: self.revision, overrides: self.overrides.clone() });
        while past.len() > MAX_PAST {
            past.pop_front();
        }
        Self { overrides, revision: self.revision + 1, past }
    }

    /// What was in force as `revision`, or before the last one; `None` where that is not known any more.
    #[must_use]
    pub fn at(&self, revision: Option<u64>) -> Option<&Overrides> {
        match revision {
            None => self.past.back().map(|past| &past.overrides),
            Some(now) if now == self.revision => Some(&self.overrides),
            Some(revision) => {
                let mut past = self.past.iter().rev();
                past.find(|past| past.revision == revision).map(|past| &past.overrides)
            }
        }
    }
}
