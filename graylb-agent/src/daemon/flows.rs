//! What becomes of flows when backends go.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use super::Daemon;
use crate::{
    compile::pool_number,
    model::{health::HealthState, spec::Protocol},
};

impl Daemon {
    /// Tells the sweeps which backends UDP flows leave: those whose probes failed and that take no new
    /// flows any more. Backends that were only switched away from, or have left the config, keep theirs,
    /// and so does the last set that was good, when nobody is up.
    pub(super) fn lead_flows_away(&self) {
        self.flows.set_leaving(self.left_backends());
    }

    fn left_backends(&self) -> BTreeSet<u32> {
        if !self.config.flows.udp_leave_down {
            return BTreeSet::new();
        }
        let mut down: HashMap<(u32, SocketAddr), bool> = HashMap::new();
        for (target, state) in self.state.health_states() {
            let known = down.entry((pool_number(&target.pool), target.address)).or_insert(true);
            // Two pools whose numbers collide: only what is down in both is.
            *known &= state == HealthState::Down;
        }
        down.retain(|_, down| *down);
        if down.is_empty() {
            return BTreeSet::new();
        }
        let services = self.state.spec().services.values();
        let udp = services.filter(|service| service.endpoint.protocol == Protocol::Udp);
        let mut left = BTreeSet::new();
        for service in udp {
            let image = self.plane.installed().get(&service.endpoint);
            for (pool, address, index) in self.plane.backend_indices(&service.endpoint) {
                let takes_flows = image.is_some_and(|image| image.leads_to(pool, address));
                if !takes_flows && down.contains_key(&(pool, address)) {
                    left.insert(index);
                }
            }
        }
        left
    }
}
