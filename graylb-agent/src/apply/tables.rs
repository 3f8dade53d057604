//! Map image → maps: where each service's data lies, and the order of writes that makes a change whole.
//!
//! A change writes backends and slots into places that no service points to, and then the service's
//! entry: one map write, before which the old generation is in force and after which the new one is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use graylb_common::{
    backend::{
        Active, Backend, BackendCounters, FAMILY_V4, FAMILY_V6, MODE_DSR, MODE_IPIP, MODE_NAT,
        MODE_SNAT,
    },
    maps,
    service::{Service, ServiceKey, Slot, Turn},
    settings::Settings,
    verdict::VerdictCounters,
};

use super::{
    ApplyError,
    layout::{address_bytes, endpoint, ip_address, key},
    regions::Regions,
    slot_table,
    sources::{Place, SourceTable},
};
use crate::{
    compile::{BackendImage, Change, Image, Select, ServiceImage},
    model::{mode::Mode, spec::Endpoint},
};

type Services<A> = HashMap<MapData, ServiceKey<A>, Service>;

/// What makes a backend's entry its own: an entry in use changes only in what is for readers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    /// Number of the service.
    service: u32,
    /// Number of the pool.
    pool: u32,
    address: SocketAddr,
    mode: Mode,
}

/// graylb's maps, and what is in them.
pub(super) struct Tables {
    services_v4: Services<[u8; 4]>,
    services_v6: Services<[u8; 16]>,
    slots: Array<MapData, Slot>,
    turns: Array<MapData, Turn>,
    backends: Array<MapData, Backend>,
    backend_stats: PerCpuArray<MapData, BackendCounters>,
    active: Array<MapData, Active>,
    verdicts: PerCpuArray<MapData, VerdictCounters>,
    settings: Array<MapData, Settings>,
    image: Image,
    entries: BTreeMap<Endpoint, Service>,
    indices: BTreeMap<Identity, u32>,
    regions: Regions,
    sources: SourceTable,
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
        Ok(Self {
            services_v4: take(ebpf, maps::SERVICES_V4)?,
            services_v6: take(ebpf, maps::SERVICES_V6)?,
            slots: take(ebpf, maps::SLOTS)?,
            turns: take(ebpf, maps::TURNS)?,
            backends: take(ebpf, maps::BACKENDS)?,
            backend_stats: take(ebpf, maps::BACKEND_STATS)?,
            active: take(ebpf, maps::ACTIVE)?,
            verdicts: take(ebpf, maps::VERDICTS)?,
            settings: take(ebpf, maps::SETTINGS)?,
            image: Image::new(),
            entries: BTreeMap::new(),
            indices: BTreeMap::new(),
            regions: Regions::new(maps::MAX_SLOTS, []),
            sources: SourceTable::take(ebpf)?,
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
        for (endpoint, entry) in self.read_services()? {
            match self.read_image(&endpoint, &entry) {
                Ok((image, indices)) => {
                    self.indices.extend(indices);
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
        self.regions = Regions::new(maps::MAX_SLOTS, taken);
        self.sources.settle();
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
        &mut self,
        endpoint: &Endpoint,
        entry: &Service,
    ) -> Result<(ServiceImage, BTreeMap<Identity, u32>), String> {
        let end = entry.slots_start.checked_add(entry.slots_count);
        if end.is_none_or(|end| end > maps::MAX_SLOTS) {
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
            let backend = self.backends.get(&slot.backend, 0).map_err(|error| error.to_string())?;
            let mode = self.read_mode(&backend)?;
            let address = ip_address(&backend.address, backend.family)
                .map(|ip| SocketAddr::new(ip, backend.port))
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

    fn read_mode(&mut self, backend: &Backend) -> Result<Mode, String> {
        match backend.mode {
            MODE_NAT => Ok(Mode::Nat),
            MODE_SNAT => self.sources.read(backend).map(Mode::Snat),
            MODE_DSR => Ok(Mode::Dsr),
            MODE_IPIP => self.sources.read(backend).map(Mode::Ipip),
            other => Err(format!("a backend has mode {other}")),
        }
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
        let generation = old.map_or(0, |entry| entry.generation) + 1;
        let mut indices = Vec::with_capacity(image.backends.len());
        for backend in &image.backends {
            indices.push(self.write_backend(id, image, backend)?);
        }
        let now = Instant::now();
        let count = image.slots.len() as u32;
        let start = match count {
            0 => 0,
            _ => self.regions.take(count, now).ok_or_else(|| full(maps::SLOTS, maps::MAX_SLOTS))?,
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
            .and_then(|()| self.write_service(&endpoint, entry));
        if let Err(error) = written {
            self.regions.give_back(start, count, now);
            return Err(error);
        }
        if let Some(old) = old {
            self.regions.give_back(old.slots_start, old.slots_count, now);
        }
        self.entries.insert(endpoint, entry);
        self.image.insert(endpoint, image.clone());
        Ok(generation)
    }

    fn remove(&mut self, endpoint: &Endpoint) -> Result<(), ApplyError> {
        self.remove_service(endpoint)?;
        if let Some(entry) = self.entries.remove(endpoint) {
            self.regions.give_back(entry.slots_start, entry.slots_count, Instant::now());
            self.indices.retain(|identity, _| identity.service != entry.id);
        }
        self.image.remove(endpoint);
        Ok(())
    }

    fn free_service_id(&self, endpoint: &Endpoint) -> Result<u32, ApplyError> {
        let same_family = self
            .entries
            .keys()
            .filter(|e| e.address.is_ipv4() == endpoint.address.is_ipv4())
            .count();
        if same_family >= maps::MAX_SERVICES as usize {
            return Err(full("services", maps::MAX_SERVICES));
        }
        let used: BTreeSet<u32> = self.entries.values().map(|entry| entry.id).collect();
        (0..2 * maps::MAX_SERVICES)
            .find(|id| !used.contains(id))
            .ok_or_else(|| full("services", maps::MAX_SERVICES))
    }

    /// The backend's index; its entry is written unless it is there as it should be.
    fn write_backend(
        &mut self,
        service: u32,
        image: &ServiceImage,
        backend: &BackendImage,
    ) -> Result<u32, ApplyError> {
        let place = match image.mode.sources() {
            Some(sources) => {
                let indices = &self.indices;
                self.sources.place(sources, || {
                    let used = indices.keys().filter_map(|identity| identity.mode.sources());
                    used.cloned().collect()
                })?
            }
            None => (0, 0),
        };
        let identity = Identity {
            service,
            pool: image.pool,
            address: backend.address,
            mode: image.mode.clone(),
        };
        let entry = backend_entry(&identity, backend.weight, place);
        if let Some(&index) = self.indices.get(&identity) {
            set(&mut self.backends, maps::BACKENDS, index, entry)?;
            return Ok(index);
        }
        let index = self.free_backend_index()?;
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| ApplyError::new(format!("cannot read {what}"), error))?;
        let zeros = PerCpuValues::try_from(vec![BackendCounters::default(); cpus])
            .map_err(|error| ApplyError::new("per-CPU counters", error))?;
        self.backend_stats
            .set(index, zeros, 0)
            .map_err(|error| write_error(maps::BACKEND_STATS, error))?;
        set(&mut self.active, maps::ACTIVE, index, Active::default())?;
        set(&mut self.backends, maps::BACKENDS, index, entry)?;
        self.indices.insert(identity, index);
        Ok(index)
    }

    /// An index that no backend has; when there is none left, that of a backend not in force any more.
    fn free_backend_index(&mut self) -> Result<u32, ApplyError> {
        if self.indices.len() >= maps::MAX_BACKENDS as usize {
            let in_force: BTreeSet<Identity> = self
                .entries
                .iter()
                .flat_map(|(endpoint, entry)| {
                    let backends = self.image.get(endpoint).map_or(&[][..], |i| &i.backends);
                    let mode = self.image.get(endpoint).map(|i| i.mode.clone()).unwrap_or_default();
                    backends.iter().map(move |backend| Identity {
                        service: entry.id,
                        pool: entry.pool,
                        address: backend.address,
                        mode: mode.clone(),
                    })
                })
                .collect();
            self.indices.retain(|identity, _| in_force.contains(identity));
        }
        let used: BTreeSet<u32> = self.indices.values().copied().collect();
        (0..maps::MAX_BACKENDS)
            .find(|index| !used.contains(index))
            .ok_or_else(|| full(maps::BACKENDS, maps::MAX_BACKENDS))
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
        slot_table::write(&mut self.slots, start, &led.collect::<Result<Vec<_>, _>>()?)
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

    pub(super) fn backend_counters(
        &self,
        endpoint: &Endpoint,
    ) -> Result<Vec<(u32, SocketAddr, BackendCounters)>, ApplyError> {
        let Some(entry) = self.entries.get(endpoint) else { return Ok(Vec::new()) };
        let mine = self.indices.iter().filter(|(identity, _)| identity.service == entry.id);
        let mut counters: BTreeMap<(u32, SocketAddr), BackendCounters> = BTreeMap::new();
        for (identity, index) in mine {
            let per_cpu = self
                .backend_stats
                .get(index, 0)
                .map_err(|error| read_error(maps::BACKEND_STATS, error))?;
            let total = counters.entry((identity.pool, identity.address)).or_default();
            per_cpu.iter().for_each(|counters| total.add(counters));
        }
        Ok(counters.into_iter().map(|((pool, address), total)| (pool, address, total)).collect())
    }
}

pub(super) fn set<V: aya::Pod>(
    map: &mut Array<MapData, V>,
    name: &str,
    index: u32,
    value: V,
) -> Result<(), ApplyError> {
    map.set(index, value, 0).map_err(|error| write_error(name, error))
}

fn write_error(map: &str, error: MapError) -> ApplyError {
    ApplyError::new(format!("the kernel refused a write to map {map}"), error)
}

fn read_error(map: &str, error: MapError) -> ApplyError {
    ApplyError::new(format!("cannot read map {map}"), error)
}

pub(super) fn full(map: &str, size: u32) -> ApplyError {
    ApplyError::text(format!("map {map} is full: all of its {size} entries are in use"))
}

fn backend_entry(identity: &Identity, weight: u16, (start, count): Place) -> Backend {
    let address = identity.address;
    Backend {
        address: address_bytes(address.ip()),
        port: address.port(),
        family: if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 },
        mode: match identity.mode {
            Mode::Nat => MODE_NAT,
            Mode::Snat(_) => MODE_SNAT,
            Mode::Dsr => MODE_DSR,
            Mode::Ipip(_) => MODE_IPIP,
        },
        service: identity.service,
        pool: identity.pool,
        weight: u32::from(weight),
        sources_start: start,
        sources_count: count,
    }
}
