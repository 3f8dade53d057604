//! A rollout and what happened to it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Rollout;

/// Events that are kept.
const MAX_EVENTS: usize = 200;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// What.
    pub what: String,
}

/// A rollout with its history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The rollout.
    pub rollout: Rollout,
    /// What happened, oldest first; the oldest go when there are too many.
    pub events: VecDeque<Event>,
}

impl Record {
    /// Of a rollout that begins.
    #[must_use]
    pub const fn new(rollout: Rollout) -> Self {
        Self { rollout, events: VecDeque::new() }
    }

    /// Remembers something.
    pub fn note(&mut self, unix_seconds: u64, what: String) {
        self.events.push_back(Event { unix_seconds, what });
        while self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }
}
