//! Draining: commands, and how far it has got.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::{CommandError, Daemon, SAVE_RETRY, handle::Reply};
use crate::compile::pool_number;

/// Draining as a client asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainRequest {
    /// The pool: a name, or addresses separated by commas as a switch was given them.
    pub pool: String,
    /// Its backends that are meant; all where there are none.
    pub backends: Vec<SocketAddr>,
    /// Whether they are to be drained, or to take new flows again.
    pub drained: bool,
    /// Even if nobody is left to take a service's new flows.
    pub force: bool,
    /// Who asks, for the log.
    pub by: String,
}

/// How far draining has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// The pool.
    pub pool: String,
    /// Its backends that were asked about.
    pub backends: Vec<Draining>,
    /// Flows that are left on them together.
    pub flows: u64,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warning: Option<String>,
}

/// A backend that is drained, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Its address.
    pub address: SocketAddr,
    /// Whether an operator wants no new flows there.
    pub drained: bool,
    /// Whether new flows go there, for whatever reason.
    pub takes_flows: bool,
    /// Flows that have not ended, through all services.
    pub flows: u64,
    /// The longest that one of them had no packet from its client, when the flow tables were last looked over.
    pub longest_idle_seconds: u64,
}

impl Daemon {
    pub(super) fn drain(&mut self, request: &DrainRequest) -> Reply<DrainReport> {
        let DrainRequest { pool, backends, drained, force, by } = request;
        let before = self.state.drain(pool, backends, *drained, *force)?;
        let failed = self.settle_all();
        if !failed.is_empty() {
            let why = failed.join("; ");
            self.state.restore_drained(before);
            self.settle_all().iter().for_each(|failed| error!("{failed}"));
            return Err(CommandError::Kernel(why));
        }
        let what = if *drained { "drained" } else { "taking new flows again" };
        let which = backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let which = if which.is_empty() { "all backends" } else { &which };
        info!("{which} of {pool} {what}, by {by}");
        let warning = self.save().err().map(|error| {
            warn!("draining is in force, but not saved: {error}");
            self.save_again = Some(tokio::time::Instant::now() + SAVE_RETRY);
            format!("in force, but not saved yet, so that a restart would undo it: {error}")
        });
        Ok(DrainReport { warning, ..self.drained(pool, backends)? })
    }

    pub(super) fn drained(&self, pool: &str, backends: &[SocketAddr]) -> Reply<DrainReport> {
        let backends = self.state.backends_of(pool, backends)?;
        let counters =
            self.plane.counters().map_err(|error| CommandError::Kernel(error.to_string()))?;
        let (number, flows) = (pool_number(pool), self.flows.report());
        let mut report =
            DrainReport { pool: pool.to_owned(), backends: Vec::new(), flows: 0, warning: None };
        for address in backends {
            let mut draining = Draining {
                address,
                drained: self.state.drained().contains(pool, address),
                takes_flows: false,
                flows: 0,
                longest_idle_seconds: 0,
            };
            for service in self.state.spec().services.values() {
                let endpoint = &service.endpoint;
                let image = self.plane.installed().get(endpoint);
                draining.takes_flows |= image.is_some_and(|image| image.leads_to(number, address));
                for (_, _, index) in self
                    .plane
                    .backend_indices(endpoint)
                    .filter(|(pool, known, _)| (*pool, *known) == (number, address))
                {
                    draining.flows +=
                        counters.get(index as usize).map_or(0, |totals| totals.active);
                    let idle = flows.backends.get(&index).map_or(0, |f| f.longest_idle.as_secs());
                    draining.longest_idle_seconds = draining.longest_idle_seconds.max(idle);
                }
            }
            report.flows += draining.flows;
            report.backends.push(draining);
        }
        Ok(report)
    }
}
