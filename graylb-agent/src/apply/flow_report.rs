//! What a sweep of the flow tables found.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::ageing::End;

/// The latest sweep, and totals since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowReport {
    /// Sweeps so far.
    pub sweeps: u64,
    /// How long the latest took, pauses included.
    pub took: Duration,
    /// How much of that was work.
    pub busy: Duration,
    /// How full the tables are.
    pub tables: Vec<TableFill>,
    /// Flows by backend (index), as the latest sweep found them, before it removed any.
    pub backends: BTreeMap<u32, BackendFlows>,
    /// Flows removed, in total, by reason.
    pub ended: BTreeMap<End, u64>,
    /// Flows, in total, that left the tables without being counted as ended, by backend (index): evicted
    /// from a full table, or replaced by a new flow on the same tuple.
    pub vanished: BTreeMap<u32, u64>,
}

/// How full a flow table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFill {
    /// The map.
    pub table: String,
    /// Entries in it; two make a flow.
    pub entries: u64,
    /// Entries that fit.
    pub size: u64,
}

/// A backend's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendFlows {
    /// TCP flows that are established and not closed.
    pub established: u64,
    /// TCP flows in their handshake.
    pub half_open: u64,
    /// UDP flows.
    pub udp: u64,
    /// TCP flows that have ended and stay for late packets.
    pub closing: u64,
    /// The longest that an open flow has had no packet from its client.
    pub longest_idle: Duration,
    /// Low half of the oldest generation that chose this backend for an open flow.
    pub oldest_generation: Option<u32>,
}

impl BackendFlows {
    /// Adds another index's to these.
    pub fn add(&mut self, other: &Self) {
        self.established += other.established;
        self.half_open += other.half_open;
        self.udp += other.udp;
        self.closing += other.closing;
        self.longest_idle = self.longest_idle.max(other.longest_idle);
        let oldest = [self.oldest_generation, other.oldest_generation];
        self.oldest_generation = oldest.into_iter().flatten().min();
    }

    /// Flows that have not ended.
    #[must_use]
    pub const fn open(&self) -> u64 {
        self.established + self.half_open + self.udp
    }
}
