//! Map image → maps: where each service's data lies, and the order of writes that makes a change whole.
//!
//! A change writes backends and slots into places that no service points to, and then the service's
//! entry: one map write, before which the old generation is in force and after which the new one is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use graylb_common::{
    backend::BackendCounters,
    maps,
    service::{PROTOCOL_TCP, PROTOCOL_UDP, SELECT_TURNS, Service, ServiceKey, Slot, Turn},
    settings::Settings,
    verdict::{ServiceDrops, VerdictCounters},
};

use super::{
    ApplyError,
    backends::{BackendTotals, Backends, Identity, backend_address},
    batch,
    numbers::Numbers,
    regions::Regions,
};
use crate::{
    compile::{BackendImage, Change, Image, ServiceImage},
    model::spec::{Endpoint, Protocol},
};

type Services<A> = HashMap<MapData, ServiceKey<A>, Service>;

/// graylb's maps, and what is in them.
pub(super) struct Tables {
    services_v4: Services<[u8; 4]>,
    services_v6: Services<[u8; 16]>,
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
    /// Services per family and slots that fit.
    services_limit: u32,
    slots_limit: u32,
    /// How many of `entries` are of IPv4.
    v4_services: u32,
}

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
            services_v4: take(ebpf, maps::SERVICES_V4)?,
            services_v6: take(ebpf, maps::SERVICES_V6)?,
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
        for (endpoint, entry) in self.read_services()? {
            match self.read_image(&endpoint, &entry) {
                Ok((image, indices)) => {
                    in_force.extend(indices);
                    self.image.insert(endpoint, image);
                    self.entries.insert(endpoint, entry);
                }
                Err(why) => {
                    self.remove_service(&endpoint)?;
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
        self.backends.reconcile(&in_force, &ids)?;
        if !self.entries.is_empty() {
            notes.push(format!("took over {} services from the pinned maps", self.entries.len()));
        }
        Ok(notes)
    }

    fn read_services(&self) -> Result<Vec<(Endpoint, Service)>, ApplyError> {
        let mut services = Vec::new();
        for item in self.services_v4.iter() {
            let (key, entry) = item.map_err(|error| read_error(maps::SERVICES_V4, error))?;
            services
                .extend(endpoint(key.address.into(), key.port, key.protocol).map(|e| (e, entry)));
        }
        for item in self.services_v6.iter() {
            let (key, entry) = item.map_err(|error| read_error(maps::SERVICES_V6, error))?;
            services
                .extend(endpoint(key.address.into(), key.port, key.protocol).map(|e| (e, entry)));
        }
        Ok(services)
    }

    fn read_image(
        &self,
        endpoint: &Endpoint,
        entry: &Service,
    ) -> Result<(ServiceImage, BTreeMap<Identity, u32>), String> {
        let end = entry.slots_start.checked_add(entry.slots_count);
        if end.is_none_or(|end| end > self.slots_limit) {
            return Err(format!("slots {} + {}", entry.slots_start, entry.slots_count));
        }
        let mut image = ServiceImage { pool: entry.pool, backends: Vec::new(), slots: Vec::new() };
        let mut places = BTreeMap::new();
        let mut indices = BTreeMap::new();
        for place in entry.slots_start..entry.slots_start + entry.slots_count {
            let slot = self.slots.get(&place, 0).map_err(|error| error.to_string())?;
            if let Some(known) = places.get(&slot.backend) {
                image.slots.push(*known);
                continue;
            }
            let backend = self.backends.entry(slot.backend).map_err(|error| error.to_string())?;
            let address = backend_address(&backend)
                .filter(|address| address.is_ipv4() == endpoint.address.is_ipv4())
                .filter(|_| backend.service == entry.id)
                .ok_or_else(|| format!("slot {place} leads to backend {}", slot.backend))?;
            let known = image.backends.len() as u32;
            places.insert(slot.backend, known);
            image.slots.push(known);
            let weight = u16::try_from(backend.weight).unwrap_or(u16::MAX);
            image.backends.push(BackendImage { address, weight });
            indices.insert((entry.id, backend.pool, address), slot.backend);
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
            let in_force = || in_force(&self.entries, &self.image);
            indices.push(self.backends.put(id, image.pool, backend, in_force)?);
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
        let entry = Service {
            generation,
            id,
            pool: image.pool,
            slots_start: start,
            slots_count: count,
            turn,
            select: SELECT_TURNS,
            prefix: 0,
            reserved: 0,
            salt: 0,
            reserved2: 0,
        };
        let written = self
            .write_slots(start, &indices, &image.slots)
            .and_then(|()| set(&mut self.turns, maps::TURNS, turn, Turn { next: 0 }))
            .and_then(|()| self.write_service(&endpoint, entry));
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
        self.remove_service(endpoint)?;
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

    fn write_slots(
        &mut self,
        start: u32,
        indices: &[u32],
        slots: &[u32],
    ) -> Result<(), ApplyError> {
        for (place, &slot) in (start..).zip(slots) {
            let backend = *indices.get(slot as usize).ok_or_else(|| {
                ApplyError::text(format!("slot {slot} of {} backends", indices.len()))
            })?;
            set(&mut self.slots, maps::SLOTS, place, Slot { backend })?;
        }
        Ok(())
    }

    fn write_service(&mut self, endpoint: &Endpoint, entry: Service) -> Result<(), ApplyError> {
        match endpoint.address.ip() {
            IpAddr::V4(ip) => self
                .services_v4
                .insert(key(ip.octets(), endpoint), entry, 0)
                .map_err(|error| write_error(maps::SERVICES_V4, error)),
            IpAddr::V6(ip) => self
                .services_v6
                .insert(key(ip.octets(), endpoint), entry, 0)
                .map_err(|error| write_error(maps::SERVICES_V6, error)),
        }
    }

    fn remove_service(&mut self, endpoint: &Endpoint) -> Result<(), ApplyError> {
        let removed = match endpoint.address.ip() {
            IpAddr::V4(ip) => self.services_v4.remove(&key(ip.octets(), endpoint)),
            IpAddr::V6(ip) => self.services_v6.remove(&key(ip.octets(), endpoint)),
        };
        match removed {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(ApplyError::new(format!("cannot remove service {endpoint}"), error)),
        }
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

    pub(super) fn backend_indices(
        &self,
        endpoint: &Endpoint,
    ) -> impl Iterator<Item = (u32, SocketAddr, u32)> {
        let entry = self.entries.get(endpoint);
        let mine = entry.into_iter().flat_map(|entry| self.backends.of_service(entry.id));
        mine.map(|((_, pool, address), index)| (pool, address, index))
    }

    pub(super) fn backend_counters(
        &self,
        endpoint: &Endpoint,
    ) -> Result<Vec<(u32, SocketAddr, BackendCounters)>, ApplyError> {
        let Some(entry) = self.entries.get(endpoint) else { return Ok(Vec::new()) };
        let mine = self.backends.of_service(entry.id);
        mine.map(|((_, pool, address), index)| Ok((pool, address, self.backends.counters(index)?)))
            .collect()
    }
}

/// The backends that services lead to.
fn in_force(entries: &BTreeMap<Endpoint, Service>, image: &Image) -> BTreeSet<Identity> {
    let services = entries.iter().filter_map(|(endpoint, entry)| {
        let of = |backend: &BackendImage| (entry.id, entry.pool, backend.address);
        Some(image.get(endpoint)?.backends.iter().map(of))
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

pub(super) fn write_error(map: &str, error: MapError) -> ApplyError {
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

const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
    }
}

const fn key<A>(address: A, endpoint: &Endpoint) -> ServiceKey<A> {
    ServiceKey {
        address,
        port: endpoint.address.port(),
        protocol: protocol_number(endpoint.protocol),
        reserved: 0,
    }
}

fn endpoint(address: IpAddr, port: u16, protocol: u8) -> Option<Endpoint> {
    let protocol = match protocol {
        PROTOCOL_TCP => Protocol::Tcp,
        PROTOCOL_UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Endpoint { address: SocketAddr::new(address, port), protocol })
}
