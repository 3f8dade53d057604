//! What an earlier agent left in the maps: read back, checked, and taken over.

use std::collections::BTreeMap;

use graylb_common::{
    maps,
    service::{
        MAX_ROUTES, ROUTE_CANARY, ROUTE_RULES, ROUTE_STABLE, Route, SPLIT_CLIENT, SPLIT_FLOW,
        Service,
    },
};

use super::{
    ApplyError,
    backends::{Identity, backend_address},
    numbers::Numbers,
    tables::{Placed, Tables},
};
use crate::{
    compile::{BackendImage, PoolImage, ServiceImage, SplitImage},
    model::{
        mode::Mode,
        spec::Endpoint,
        split::{Cidr, Share, SplitBy},
    },
};

/// A service that holds together.
struct Found {
    image: ServiceImage,
    routes: Vec<Route>,
    indices: BTreeMap<Identity, u32>,
}

impl Tables {
    /// Reads what an earlier agent left in force. A service whose data does not hold together is taken
    /// out, and said so; it is put in again with the next changes.
    pub(super) fn reconcile(&mut self) -> Result<Vec<String>, ApplyError> {
        let mut notes = Vec::new();
        let mut in_force = BTreeMap::new();
        let mut rules = self.rules.read()?;
        for (endpoint, entry) in self.services.read()? {
            let clients = rules.get(&entry.rules).filter(|_| entry.rules != 0);
            match self.read_image(&endpoint, &entry, clients.cloned().unwrap_or_default()) {
                Ok(Found { image, routes, indices }) => {
                    in_force.extend(indices);
                    self.image.insert(endpoint, image);
                    self.placed.insert(endpoint, Placed { entry, routes });
                }
                Err(why) => {
                    self.services.remove(&endpoint)?;
                    notes.push(format!(
                        "service {endpoint} in the kernel was damaged ({why}) and taken out"
                    ));
                }
            }
        }
        self.services.reconcile_addresses(self.placed.keys())?;
        let rows = self.placed.values().map(|placed| (placed.entry.routes, placed.routes.clone()));
        self.routes.reconcile(&rows.collect::<Vec<_>>());
        let sets = self.placed.values().map(|placed| placed.entry.rules).filter(|set| *set != 0);
        self.rules.reconcile(std::mem::take(&mut rules), &sets.collect())?;
        let leases =
            self.placed.iter().map(|(endpoint, placed)| (*endpoint, placed.entry.lease_ns));
        self.leases = leases.filter(|(_, lease)| *lease != 0).collect();
        self.v4_services = self.placed.keys().filter(|e| e.address.is_ipv4()).count() as u32;
        let ids = self.placed.values().map(|placed| placed.entry.id).collect();
        self.service_ids = Numbers::new(self.services_limit * maps::IDS_PER_SERVICE, &ids);
        self.backends.reconcile(&in_force, &ids, &mut self.sources)?;
        self.sources.settle(&self.backends.source_places());
        if !self.placed.is_empty() {
            notes.push(format!("took over {} services from the pinned maps", self.placed.len()));
        }
        Ok(notes)
    }

    fn read_image(
        &mut self,
        endpoint: &Endpoint,
        entry: &Service,
        rules: BTreeMap<Cidr, u32>,
    ) -> Result<Found, String> {
        let ruled = rules.values().max().map_or(0, |last| last + 1);
        if ruled > MAX_ROUTES - ROUTE_RULES || (entry.rules != 0 && ruled == 0) {
            return Err(format!("rules {} lead to {ruled} pools", entry.rules));
        }
        let share = Share::new(entry.share).map_err(|error| error.to_string())?;
        let routes = self.routes.read(entry.routes, routes_count(share > Share::NONE, ruled))?;
        let mut indices = BTreeMap::new();
        let mut pools = Vec::new();
        for route in &routes {
            pools.push(self.read_pool(endpoint, entry, route, &mut indices)?);
        }
        let mut pools = pools.into_iter();
        let stable = pools.next().ok_or("no route")?;
        let canary = pools.next().filter(|_| share > Share::NONE).map(|pool| (share, pool));
        let split = SplitImage {
            salt: entry.split_salt,
            by: match entry.split_by {
                SPLIT_CLIENT => SplitBy::Client,
                SPLIT_FLOW => SplitBy::Flow,
                other => return Err(format!("a split by {other}")),
            },
            prefix: entry.split_prefix,
        };
        let image =
            ServiceImage { salt: entry.salt, split, stable, canary, ruled: pools.collect(), rules };
        Ok(Found { image, routes, indices })
    }

    fn read_pool(
        &mut self,
        endpoint: &Endpoint,
        entry: &Service,
        route: &Route,
        indices: &mut BTreeMap<Identity, u32>,
    ) -> Result<PoolImage, String> {
        let (select, slots) = self.routes.read_slots(route)?;
        let mut image = PoolImage {
            pool: route.pool,
            select,
            mode: Mode::Nat,
            backends: Vec::new(),
            slots: Vec::new(),
        };
        let mut places = BTreeMap::new();
        for index in slots {
            if let Some(known) = places.get(&index) {
                image.slots.push(*known);
                continue;
            }
            let backend = self.backends.entry(index).map_err(|error| error.to_string())?;
            let mode = self.sources.mode(&backend)?;
            let address = backend_address(&backend)
                .filter(|address| {
                    let same_family = address.is_ipv4() == endpoint.address.is_ipv4();
                    same_family || matches!(mode, Mode::Ipip(_))
                })
                .filter(|_| backend.service == entry.id)
                .ok_or_else(|| format!("a slot leads to backend {index}"))?;
            if image.backends.is_empty() {
                image.mode = mode.clone();
            } else if image.mode != mode {
                return Err(format!("a slot leads to backend {index}, which has another mode"));
            }
            let known = image.backends.len() as u32;
            places.insert(index, known);
            image.slots.push(known);
            let weight = u16::try_from(backend.weight).unwrap_or(u16::MAX);
            image.backends.push(BackendImage { address, weight });
            indices
                .insert(Identity { service: entry.id, pool: backend.pool, address, mode }, index);
        }
        Ok(image)
    }
}

/// How many routes a service has: up to the last that it needs.
const fn routes_count(canary: bool, ruled: u32) -> u32 {
    match (canary, ruled) {
        (false, 0) => ROUTE_STABLE + 1,
        (true, 0) => ROUTE_CANARY + 1,
        (_, ruled) => ROUTE_RULES + ruled,
    }
}
