//! Map image → maps: where each service's data lies, and the order of writes that makes a change whole.
//!
//! A change writes backends and slots into places that no service points to, and then the service's
//! entry: one map write, before which the old generation is in force and after which the new one is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use graylb_common::{
    backend::BackendCounters,
    maps,
    service::{Service, Slot, Turn},
    settings::Settings,
    verdict::{ServiceDrops, VerdictCounters},
};

use super::{
    ApplyError,
    backends::{BackendTotals, Backends, Identity, backend_address},
    batch,
    numbers::Numbers,
    regions::Regions,
    services::ServiceMaps,
    sources::SourceTable,
};
use crate::{
    compile::{BackendImage, Change, Image, Select, ServiceImage},
    model::{mode::Mode, spec::Endpoint},
};

/// graylb's maps, and what is in them.
pub(super) struct Tables {
    services: ServiceMaps,
    slots: Array<MapData, Slot>,
    turns: Array<MapData, Turn>,
    backends: Backends,
    verdicts: PerCpuArray<MapData, VerdictCounters>,
    service_drops: PerCpuArray<MapData, ServiceDrops>,
    settings: Array<MapData, Settings>,
    image: Image,
    entries: BTreeMap<Endpoint, Service>,
    service_ids: Numbers,
    regions: Regions,
    sources: SourceTable,
    /// Services per family and slots that fit.
    services_limit: u32,
    slots_limit: u32,
    /// How many of `entries` are of IPv4.
    v4_services: u32,
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
        // The sizes are the maps' own: pinned ones keep theirs.
        let slots: Array<MapData, Slot> = take(ebpf, maps::SLOTS)?;
        let turns: Array<MapData, Turn> = take(ebpf, maps::TURNS)?;
        let services_limit = turns.len() / maps::TURNS_PER_SERVICE;
        let slots_limit = slots.len();
        Ok(Self {
            services: ServiceMaps::take(ebpf)?,
            slots,
            turns,
            backends: Backends::take(ebpf)?,
            verdicts: take(ebpf, maps::VERDICTS)?,
            service_drops: take(ebpf, maps::SERVICE_DROPS)?,
            settings: take(ebpf, maps::SETTINGS)?,
            image: Image::new(),
            entries: BTreeMap::new(),
            service_ids: Numbers::new(services_limit * maps::IDS_PER_SERVICE, &BTreeSet::new()),
            regions: Regions::new(slots_limit, []),
            sources: SourceTable::take(ebpf)?,
            services_limit,
            slots_limit,
            v4_services: 0,
        })
    }

    pub(super) const fn installed(&self) -> &Image {
        &self.image
    }

    pub(super) fn generation(&self, endpoint: &Endpoint) -> Option<u64> {
        self.entries.get(endpoint).map(|entry| entry.generation)
    }

    /// Reads what an earlier agent left in force. A service whose data does not hold together is taken
    /// out, and said so; it is put in again with the next changes.
    pub(super) fn reconcile(&mut self) -> Result<Vec<String>, ApplyError> {
        let mut notes = Vec::new();
        let mut in_force = BTreeMap::new();
        for (endpoint, entry) in self.services.read()? {
            match self.read_image(&endpoint, &entry) {
                Ok((image, indices)) => {
                    in_force.extend(indices);
                    self.image.insert(endpoint, image);
                    self.entries.insert(endpoint, entry);
                }
                Err(why) => {
                    self.services.remove(&endpoint)?;
                    notes.push(format!(
                        "service {endpoint} in the kernel was damaged ({why}) and taken out"
                    ));
                }
            }
        }
        let taken = self.entries.values().map(|entry| (entry.slots_start, entry.slots_count));
        self.regions = Regions::new(self.slots_limit, taken);
        self.v4_services = self.entries.keys().filter(|e| e.address.is_ipv4()).count() as u32;
        let ids = self.entries.values().map(|entry| entry.id).collect();
        self.service_ids = Numbers::new(self.services_limit * maps::IDS_PER_SERVICE, &ids);
        self.backends.reconcile(&in_force, &ids, &mut self.sources)?;
        self.sources.settle(&self.backends.source_places());
        if !self.entries.is_empty() {
            notes.push(format!("took over {} services from the pinned maps", self.entries.len()));
        }
        Ok(notes)
    }

    fn read_image(
        &mut self,
        endpoint: &Endpoint,
        entry: &Service,
    ) -> Result<(ServiceImage, BTreeMap<Identity, u32>), String> {
        let end = entry.slots_start.checked_add(entry.slots_count);
        if end.is_none_or(|end| end > self.slots_limit) {
            return Err(format!("slots {} + {}", entry.slots_start, entry.slots_count));
        }
        let select = Select::from_abi(entry.select, entry.prefix)
            .ok_or_else(|| format!("select {} by prefix {}", entry.select, entry.prefix))?;
        let mut image = ServiceImage {
            pool: entry.pool,
            select,
            salt: entry.salt,
            mode: Mode::Nat,
            backends: Vec::new(),
            slots: Vec::new(),
        };
        let mut places = BTreeMap::new();
        let mut indices = BTreeMap::new();
        for place in entry.slots_start..entry.slots_start + entry.slots_count {
            let slot = self.slots.get(&place, 0).map_err(|error| error.to_string())?;
            if let Some(known) = places.get(&slot.backend) {
                image.slots.push(*known);
                continue;
            }
            let backend = self.backends.entry(slot.backend).map_err(|error| error.to_string())?;
            let mode = self.sources.mode(&backend)?;
            let address = backend_address(&backend)
                .filter(|address| {
                    let same_family = address.is_ipv4() == endpoint.address.is_ipv4();
                    same_family || matches!(mode, Mode::Ipip(_))
                })
                .filter(|_| backend.service == entry.id)
                .ok_or_else(|| format!("slot {place} leads to backend {}", slot.backend))?;
            if image.backends.is_empty() {
                image.mode = mode.clone();
            } else if image.mode != mode {
                return Err(format!("slot {place} leads to a backend of another mode"));
            }
            let known = image.backends.len() as u32;
            places.insert(slot.backend, known);
            image.slots.push(known);
            let weight = u16::try_from(backend.weight).unwrap_or(u16::MAX);
            image.backends.push(BackendImage { address, weight });
            let identity = Identity { service: entry.id, pool: backend.pool, address, mode };
            indices.insert(identity, slot.backend);
        }
        Ok((image, indices))
    }

    /// Puts one change in force.
    pub(super) fn apply(&mut self, change: &Change) -> Result<u64, ApplyError> {
        match change {
            Change::Put(endpoint, image) => self.put(*endpoint, image),
            Change::Remove(endpoint) => self.remove(endpoint).map(|()| 0),
        }
    }

    fn put(&mut self, endpoint: Endpoint, image: &ServiceImage) -> Result<u64, ApplyError> {
        let old = self.entries.get(&endpoint).copied();
        let id = match old {
            Some(entry) => entry.id,
            None => self.free_service_id(&endpoint)?,
        };
        let put = self.put_under(id, old, endpoint, image);
        if put.is_err() && old.is_none() {
            self.service_ids.give_back(id);
        }
        put
    }

    fn put_under(
        &mut self,
        id: u32,
        old: Option<Service>,
        endpoint: Endpoint,
        image: &ServiceImage,
    ) -> Result<u64, ApplyError> {
        let generation = old.map_or(0, |entry| entry.generation) + 1;
        let mut indices = Vec::with_capacity(image.backends.len());
        for backend in &image.backends {
            indices.push(self.put_backend(id, image, backend)?);
        }
        let now = Instant::now();
        let count = image.slots.len() as u32;
        let start = match count {
            0 => 0,
            _ => self
                .regions
                .take(count, now)
                .ok_or_else(|| full(maps::SLOTS, self.slots_limit, "limits.slots"))?,
        };
        // The generation before this one steps through the other counter.
        let turn = id * 2 + (generation % 2) as u32;
        let (select, prefix) = image.select.to_abi();
        let entry = Service {
            generation,
            id,
            pool: image.pool,
            slots_start: start,
            slots_count: count,
            turn,
            select,
            prefix,
            reserved: 0,
            salt: image.salt,
            reserved2: 0,
        };
        let written = self
            .write_slots(start, &indices, &image.slots)
            .and_then(|()| set(&mut self.turns, maps::TURNS, turn, Turn { next: 0 }))
            .and_then(|()| self.services.write(&endpoint, entry));
        if let Err(error) = written {
            self.regions.give_back(start, count, now);
            return Err(error);
        }
        if let Some(old) = old {
            self.regions.give_back(old.slots_start, old.slots_count, now);
        }
        if self.entries.insert(endpoint, entry).is_none() {
            self.v4_services += u32::from(endpoint.address.is_ipv4());
        }
        self.image.insert(endpoint, image.clone());
        Ok(generation)
    }

    fn remove(&mut self, endpoint: &Endpoint) -> Result<(), ApplyError> {
        self.services.remove(endpoint)?;
        if let Some(entry) = self.entries.remove(endpoint) {
            self.regions.give_back(entry.slots_start, entry.slots_count, Instant::now());
            self.v4_services -= u32::from(endpoint.address.is_ipv4());
            self.service_ids.give_back(entry.id);
            self.image.remove(endpoint);
            self.backends.forget_service(entry.id)?;
        }
        Ok(())
    }

    fn free_service_id(&mut self, endpoint: &Endpoint) -> Result<u32, ApplyError> {
        let size = self.services_limit;
        let none_left = || full("services", size, "limits.services");
        // The map of the endpoint's family may be full before the numbers, which both share, are.
        let v4 = self.v4_services;
        let same_family =
            if endpoint.address.is_ipv4() { v4 } else { self.entries.len() as u32 - v4 };
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
        backend: &BackendImage,
    ) -> Result<u32, ApplyError> {
        let Self { entries, image: installed, backends, sources, .. } = self;
        // Those of this change lead nowhere yet, and are not to be displaced either.
        let keep = || {
            let mut keep = in_force(entries, installed);
            keep.extend(image.backends.iter().map(|backend| Identity::of(service, image, backend)));
            keep
        };
        let place = match image.mode.sources() {
            Some(list) => sources.place(list, || {
                backends.release(&keep())?;
                Ok(backends.source_places())
            })?,
            None => (0, 0),
        };
        backends.put(Identity::of(service, image, backend), backend.weight, place, keep)
    }

    fn write_slots(
        &mut self,
        start: u32,
        indices: &[u32],
        slots: &[u32],
    ) -> Result<(), ApplyError> {
        let led = slots.iter().map(|&slot| match indices.get(slot as usize) {
            Some(&backend) => Ok(Slot { backend }),
            None => Err(ApplyError::text(format!("slot {slot} of {} backends", indices.len()))),
        });
        let led = led.collect::<Result<Vec<_>, _>>()?;
        let places: Vec<u32> = (start..).take(led.len()).collect();
        batch::update(self.slots.map().fd().as_fd(), &places, &led)
            .map_err(|error| write_error(maps::SLOTS, error))
    }

    pub(super) fn set_udp_timeout(&mut self, timeout: Duration) -> Result<(), ApplyError> {
        let udp_timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.change_settings(|settings| Settings { udp_timeout_ns, ..settings })
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
        for (endpoint, entry) in &self.entries {
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
        let entry = self.entries.get(endpoint);
        let mine = entry.into_iter().flat_map(|entry| self.backends.of_service(entry.id));
        mine.map(|(identity, index)| (identity.pool, identity.address, index))
    }

    pub(super) fn backend_counters(
        &self,
        endpoint: &Endpoint,
    ) -> Result<Vec<(u32, SocketAddr, BackendCounters)>, ApplyError> {
        let Some(entry) = self.entries.get(endpoint) else { return Ok(Vec::new()) };
        let mut counters: BTreeMap<(u32, SocketAddr), BackendCounters> = BTreeMap::new();
        for (Identity { pool, address, .. }, index) in self.backends.of_service(entry.id) {
            counters.entry((*pool, *address)).or_default().add(&self.backends.counters(index)?);
        }
        Ok(counters.into_iter().map(|((pool, address), total)| (pool, address, total)).collect())
    }
}

/// The backends that services lead to.
fn in_force(entries: &BTreeMap<Endpoint, Service>, image: &Image) -> BTreeSet<Identity> {
    let services = entries.iter().filter_map(|(endpoint, entry)| {
        let image = image.get(endpoint)?;
        Some(image.backends.iter().map(|backend| Identity::of(entry.id, image, backend)))
    });
    services.flatten().collect()
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
