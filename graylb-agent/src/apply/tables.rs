//! Map image → maps: where each service's data lies, and the order of writes that makes a change whole.
//!
//! A change writes backends, slots, routes and rules into places that no service points to, and then the
//! service's entry: one map write, before which the old generation is in force and after which the new one is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use graylb_common::{
    backend::BackendCounters,
    maps,
    service::{ROUTE_CANARY, Route, SPLIT_CLIENT, SPLIT_FLOW, Service},
    settings::{ADDRESS_ECHO, Settings},
    verdict::{ServiceDrops, VerdictCounters},
};

use super::{
    ApplyError,
    backends::{BackendTotals, Backends, Identity},
    batch,
    numbers::Numbers,
    routes::RouteTable,
    rules::RuleTable,
    services::ServiceMaps,
    sources::SourceTable,
};
use crate::{
    compile::{BackendImage, Change, Image, PoolImage, ServiceImage},
    config::AddressesConfig,
    model::{
        spec::Endpoint,
        split::{Cidr, SplitBy},
    },
};

/// graylb's maps, and what is in them.
pub(super) struct Tables {
    pub(super) services: ServiceMaps,
    pub(super) routes: RouteTable,
    pub(super) rules: RuleTable,
    pub(super) backends: Backends,
    pub(super) verdicts: PerCpuArray<MapData, VerdictCounters>,
    pub(super) service_drops: PerCpuArray<MapData, ServiceDrops>,
    pub(super) settings: Array<MapData, Settings>,
    pub(super) image: Image,
    pub(super) placed: BTreeMap<Endpoint, Placed>,
    /// [`Service::lease_ns`] of services that have one.
    pub(super) leases: BTreeMap<Endpoint, u64>,
    pub(super) service_ids: Numbers,
    pub(super) sources: SourceTable,
    /// Services per family that fit.
    pub(super) services_limit: u32,
    /// How many of `placed` are of IPv4.
    pub(super) v4_services: u32,
}

/// Where a service's data lies.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// Its entry.
    pub(super) entry: Service,
    /// Its routes, from [`Service::routes`] on.
    pub(super) routes: Vec<Route>,
}

/// Takes a map out of the loaded object.
pub(super) fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, ApplyError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| ApplyError::text(format!("the eBPF object has no map {name}")))?;
    M::try_from(map).map_err(|error| ApplyError::new(format!("map {name}"), error))
}

impl Tables {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        let service_drops: PerCpuArray<MapData, ServiceDrops> = take(ebpf, maps::SERVICE_DROPS)?;
        // The size is the map's own: a pinned one keeps its.
        let services_limit = service_drops.len() / maps::IDS_PER_SERVICE;
        Ok(Self {
            services: ServiceMaps::take(ebpf)?,
            routes: RouteTable::take(ebpf)?,
            rules: RuleTable::take(ebpf)?,
            backends: Backends::take(ebpf)?,
            verdicts: take(ebpf, maps::VERDICTS)?,
            service_drops,
            settings: take(ebpf, maps::SETTINGS)?,
            image: Image::new(),
            placed: BTreeMap::new(),
            leases: BTreeMap::new(),
            service_ids: Numbers::new(services_limit * maps::IDS_PER_SERVICE, &BTreeSet::new()),
            sources: SourceTable::take(ebpf)?,
            services_limit,
            v4_services: 0,
        })
    }

    pub(super) const fn installed(&self) -> &Image {
        &self.image
    }

    pub(super) fn generation(&self, endpoint: &Endpoint) -> Option<u64> {
        self.placed.get(endpoint).map(|placed| placed.entry.generation)
    }

    /// The end of the lease on a service's canary, by the kernel's clock; 0: there is none.
    pub(super) fn lease(&self, endpoint: &Endpoint) -> u64 {
        self.leases.get(endpoint).copied().unwrap_or(0)
    }

    /// Sets it, for the generation in force and those that follow.
    pub(super) fn set_lease(
        &mut self,
        endpoint: Endpoint,
        lease_ns: u64,
    ) -> Result<(), ApplyError> {
        if let Some(placed) = self.placed.get_mut(&endpoint)
            && placed.entry.lease_ns != lease_ns
        {
            let entry = Service { lease_ns, ..placed.entry };
            self.services.write(&endpoint, entry)?;
            placed.entry = entry;
        }
        match lease_ns {
            0 => self.leases.remove(&endpoint),
            lease_ns => self.leases.insert(endpoint, lease_ns),
        };
        Ok(())
    }

    /// Puts one change in force.
    pub(super) fn apply(&mut self, change: &Change) -> Result<u64, ApplyError> {
        match change {
            Change::Put(endpoint, image) => self.put(*endpoint, image),
            Change::Remove(endpoint) => self.remove(endpoint).map(|()| 0),
        }
    }

    fn put(&mut self, endpoint: Endpoint, image: &ServiceImage) -> Result<u64, ApplyError> {
        let old = self.placed.get(&endpoint).cloned();
        let id = match &old {
            Some(placed) => placed.entry.id,
            None => self.free_service_id(&endpoint)?,
        };
        let put = self.put_under(id, old.as_ref(), endpoint, image);
        if put.is_err() && old.is_none() {
            self.service_ids.give_back(id);
        }
        put
    }

    /// Writes what differs aside, puts it in force by the service's entry, and frees what it replaces.
    fn put_under(
        &mut self,
        id: u32,
        old: Option<&Placed>,
        endpoint: Endpoint,
        image: &ServiceImage,
    ) -> Result<u64, ApplyError> {
        let mut fresh = Vec::new();
        let placed = match self.write_aside(id, old, endpoint, image, &mut fresh) {
            Ok(placed) => placed,
            Err(error) => {
                fresh.iter().for_each(|route| self.routes.give_back_pool(route));
                return Err(error);
            }
        };
        if let Err(error) = self.services.write(&endpoint, placed.entry) {
            self.free(&placed, old, image.rules.keys().copied());
            return Err(error);
        }
        let generation = placed.entry.generation;
        let before = self.image.insert(endpoint, image.clone());
        if let Some(old) = old {
            let clients = before.map(|image| image.rules).unwrap_or_default();
            self.free(old, Some(&placed), clients.into_keys());
        } else {
            self.v4_services += u32::from(endpoint.address.is_ipv4());
        }
        self.placed.insert(endpoint, placed);
        Ok(generation)
    }

    /// Writes pools, routes and rules that are not there yet into places that nothing points to. `fresh` has the
    /// pools that were written, also on an error.
    fn write_aside(
        &mut self,
        id: u32,
        old: Option<&Placed>,
        endpoint: Endpoint,
        image: &ServiceImage,
        fresh: &mut Vec<Route>,
    ) -> Result<Placed, ApplyError> {
        let old_image = self.image.get(&endpoint).cloned().filter(|_| old.is_some());
        let mut there: Vec<(PoolImage, Route)> = match (&old_image, old) {
            (Some(image), Some(placed)) => {
                let routes = placed.routes.iter().filter(|route| **route != Route::NONE);
                image.pools().cloned().zip(routes.copied()).collect()
            }
            _ => Vec::new(),
        };
        let mut routes = Vec::new();
        for pool in image.pools() {
            let known = there.iter().find(|(other, _)| other.routes_like(pool));
            let route = match known {
                Some((_, route)) => *route,
                None => {
                    let route = self.write_pool(id, image, pool)?;
                    fresh.push(route);
                    there.push((pool.clone(), route));
                    route
                }
            };
            if routes.len() == ROUTE_CANARY as usize && image.canary.is_none() {
                routes.push(Route::NONE);
            }
            routes.push(route);
        }
        let same_rules = old_image.as_ref().is_some_and(|old| old.rules == image.rules);
        let old_rules = old.filter(|_| same_rules).map(|old| old.entry.rules);
        let rules = match old_rules {
            Some(rules) => rules,
            None => self.rules.put(&image.rules)?,
        };
        let row = match old.filter(|old| old.routes == routes) {
            Some(old) => old.entry.routes,
            None => self.routes.put_row(&routes).inspect_err(|_| {
                if old_rules.is_none() {
                    self.rules.retire(rules, image.rules.keys().copied());
                }
            })?,
        };
        let entry = Service {
            generation: old.map_or(0, |old| old.entry.generation) + 1,
            lease_ns: self.leases.get(&endpoint).copied().unwrap_or(0),
            id,
            salt: image.salt,
            split_salt: image.split.salt,
            routes: row,
            rules,
            share: image.canary.as_ref().map_or(0, |(share, _)| share.of_10000()),
            split_by: match image.split.by {
                SplitBy::Client => SPLIT_CLIENT,
                SplitBy::Flow => SPLIT_FLOW,
            },
            split_prefix: image.split.prefix,
        };
        Ok(Placed { entry, routes })
    }

    fn write_pool(
        &mut self,
        id: u32,
        image: &ServiceImage,
        pool: &PoolImage,
    ) -> Result<Route, ApplyError> {
        let mut indices = Vec::with_capacity(pool.backends.len());
        for backend in &pool.backends {
            indices.push(self.put_backend(id, image, pool, backend)?);
        }
        self.routes.put_pool(pool, &indices)
    }

    /// Frees what `gone` has and `stays` has not; `clients` are those of its rules.
    fn free(&mut self, gone: &Placed, stays: Option<&Placed>, clients: impl Iterator<Item = Cidr>) {
        let kept = stays.map_or(&[][..], |stays| &stays.routes).iter().map(|route| route.turn);
        // Routes of one pool share its slots and counter.
        let mut done: BTreeSet<u32> = kept.collect();
        for route in gone.routes.iter().filter(|route| **route != Route::NONE) {
            if done.insert(route.turn) {
                self.routes.give_back_pool(route);
            }
        }
        if stays.is_none_or(|stays| stays.entry.routes != gone.entry.routes) {
            self.routes.give_back_row(gone.entry.routes, gone.routes.len() as u32);
        }
        if stays.is_none_or(|stays| stays.entry.rules != gone.entry.rules) {
            self.rules.retire(gone.entry.rules, clients);
        }
    }

    fn remove(&mut self, endpoint: &Endpoint) -> Result<(), ApplyError> {
        self.services.remove(endpoint)?;
        self.leases.remove(endpoint);
        if let Some(placed) = self.placed.remove(endpoint) {
            let clients = self.image.remove(endpoint).map(|image| image.rules).unwrap_or_default();
            self.free(&placed, None, clients.into_keys());
            self.v4_services -= u32::from(endpoint.address.is_ipv4());
            self.service_ids.give_back(placed.entry.id);
            self.backends.forget_service(placed.entry.id)?;
        }
        Ok(())
    }

    fn free_service_id(&mut self, endpoint: &Endpoint) -> Result<u32, ApplyError> {
        let size = self.services_limit;
        let none_left = || full("services", size, "limits.services");
        // The map of the endpoint's family may be full before the numbers, which both share, are.
        let v4 = self.v4_services;
        let same_family =
            if endpoint.address.is_ipv4() { v4 } else { self.placed.len() as u32 - v4 };
        if same_family >= size {
            return Err(none_left());
        }
        let id = self.service_ids.take().ok_or_else(none_left)?;
        // What an earlier service of this number dropped.
        let zeros = vec![ServiceDrops::default(); super::possible_cpus()];
        let written = PerCpuValues::try_from(zeros)
            .map_err(|error| ApplyError::new("per-CPU counters", error))
            .and_then(|zeros| {
                let set = self.service_drops.set(id, zeros, 0);
                set.map_err(|error| write_error(maps::SERVICE_DROPS, error))
            });
        if written.is_err() {
            self.service_ids.give_back(id);
        }
        written.map(|()| id)
    }

    /// The backend's index, where its entry is as it should be.
    fn put_backend(
        &mut self,
        service: u32,
        image: &ServiceImage,
        pool: &PoolImage,
        backend: &BackendImage,
    ) -> Result<u32, ApplyError> {
        let Self { placed, image: installed, backends, sources, .. } = self;
        // Those of this change lead nowhere yet, and are not to be displaced either.
        let keep = || {
            let mut keep = in_force(placed, installed);
            keep.extend(identities(service, image));
            keep
        };
        let place = match pool.mode.sources() {
            Some(list) => sources.place(list, || {
                backends.release(&keep())?;
                Ok(backends.source_places())
            })?,
            None => (0, 0),
        };
        backends.put(Identity::of(service, pool, backend), backend.weight, place, keep)
    }

    pub(super) fn set_udp_timeout(&mut self, timeout: Duration) -> Result<(), ApplyError> {
        let udp_timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.change_settings(|settings| Settings { udp_timeout_ns, ..settings })
    }

    pub(super) fn set_addresses(&mut self, config: &AddressesConfig) -> Result<(), ApplyError> {
        let addresses = if config.echo { ADDRESS_ECHO } else { 0 };
        self.change_settings(|settings| Settings { addresses, ..settings })
    }

    /// Makes every cached next hop void. The epoch goes on from where an earlier agent left it: a value
    /// that comes back would revive what was cached then.
    pub(super) fn forget_next_hops(&mut self) -> Result<(), ApplyError> {
        self.change_settings(|settings| Settings {
            route_epoch: settings.route_epoch.wrapping_add(1),
            ..settings
        })
    }

    fn change_settings(
        &mut self,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Result<(), ApplyError> {
        let settings =
            self.settings.get(&0, 0).map_err(|error| read_error(maps::SETTINGS, error))?;
        set(&mut self.settings, maps::SETTINGS, 0, change(settings))
    }

    pub(super) fn verdicts(&self) -> Result<VerdictCounters, ApplyError> {
        let per_cpu =
            self.verdicts.get(&0, 0).map_err(|error| read_error(maps::VERDICTS, error))?;
        let mut total = VerdictCounters::default();
        per_cpu.iter().for_each(|counters| total.add(counters));
        Ok(total)
    }

    /// Packets of each service that did not go on their way, all CPUs together, by endpoint.
    pub(super) fn service_drops(&self) -> Result<BTreeMap<Endpoint, ServiceDrops>, ApplyError> {
        let cpus = super::possible_cpus();
        let map = self.service_drops.map().fd().as_fd();
        let all = batch::read_array::<ServiceDrops>(map, self.service_ids.end(), cpus)
            .map_err(|error| read_error(maps::SERVICE_DROPS, error))?;
        let mut drops = BTreeMap::new();
        for (endpoint, Placed { entry, .. }) in &self.placed {
            let mut total = ServiceDrops::default();
            all.chunks(cpus)
                .nth(entry.id as usize)
                .into_iter()
                .flatten()
                .for_each(|c| total.add(c));
            drops.insert(*endpoint, total);
        }
        Ok(drops)
    }

    /// Every backend's counters by index, all CPUs together.
    pub(super) fn counters(&self) -> Result<Vec<BackendTotals>, ApplyError> {
        self.backends.all_counters().map_err(|error| read_error(maps::BACKEND_STATS, error))
    }

    /// Where the backends' indices end; it follows.
    pub(super) fn backends_end(&self) -> Arc<AtomicU32> {
        self.backends.end()
    }

    /// Counts the socket hook's connected sockets from zero.
    pub(super) fn forget_sockets(&mut self) -> Result<(), ApplyError> {
        self.backends.forget_sockets()
    }

    pub(super) fn backend_indices(
        &self,
        endpoint: &Endpoint,
    ) -> impl Iterator<Item = (u32, SocketAddr, u32)> {
        let placed = self.placed.get(endpoint).into_iter();
        let mine = placed.flat_map(|placed| self.backends.of_service(placed.entry.id));
        mine.map(|(identity, index)| (identity.pool, identity.address, index))
    }

    pub(super) fn backend_counters(
        &self,
        endpoint: &Endpoint,
    ) -> Result<Vec<(u32, SocketAddr, BackendCounters)>, ApplyError> {
        let Some(Placed { entry, .. }) = self.placed.get(endpoint) else { return Ok(Vec::new()) };
        let mut counters: BTreeMap<(u32, SocketAddr), BackendCounters> = BTreeMap::new();
        for (Identity { pool, address, .. }, index) in self.backends.of_service(entry.id) {
            counters.entry((*pool, *address)).or_default().add(&self.backends.counters(index)?);
        }
        Ok(counters.into_iter().map(|((pool, address), total)| (pool, address, total)).collect())
    }
}

/// The backends that services lead to.
fn in_force(placed: &BTreeMap<Endpoint, Placed>, image: &Image) -> BTreeSet<Identity> {
    let services = placed
        .iter()
        .filter_map(|(endpoint, placed)| Some((placed.entry.id, image.get(endpoint)?)));
    services.flat_map(|(service, image)| identities(service, image)).collect()
}

/// The backends of a service's pools.
fn identities(service: u32, image: &ServiceImage) -> impl Iterator<Item = Identity> {
    image.pools().flat_map(move |pool| {
        pool.backends.iter().map(move |backend| Identity::of(service, pool, backend))
    })
}

pub(super) fn set<V: aya::Pod>(
    map: &mut Array<MapData, V>,
    name: &str,
    index: u32,
    value: V,
) -> Result<(), ApplyError> {
    map.set(index, value, 0).map_err(|error| write_error(name, error))
}

pub(super) fn write_error(map: &str, error: impl std::error::Error) -> ApplyError {
    ApplyError::new(format!("the kernel refused a write to map {map}"), error)
}

pub(super) fn read_error(map: &str, error: impl std::error::Error) -> ApplyError {
    ApplyError::new(format!("cannot read map {map}"), error)
}

pub(super) fn full(map: &str, size: u32, option: &str) -> ApplyError {
    ApplyError::text(format!(
        "map {map} is full: all of its {size} entries are in use; raise {option}, `graylb unload` and start again"
    ))
}
