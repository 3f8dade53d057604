//! Backends in the maps: which index each has, its entry there, its counters.
//!
//! An index belongs to one service × pool × backend. It is given to another only when no index was never
//! used, and only if its backend is not in force and has no flow left: flows point to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapData, PerCpuArray, PerCpuValues},
};
use graylb_common::{
    backend::{Active, Backend, BackendCounters, FAMILY_V4, FAMILY_V6, MODE_NAT},
    maps,
};

use super::{
    ApplyError, batch,
    numbers::Numbers,
    tables::{full, read_error, set, take, write_error},
};
use crate::compile::BackendImage;

/// A backend's identity: service number, pool number, address.
pub(super) type Identity = (u32, u32, SocketAddr);

/// [`Backend::service`] of an entry whose service is gone; flows may still lead to it.
const NO_SERVICE: u32 = u32::MAX;
/// Lowest address, for ranges over [`Identity`].
const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Where a backend is, and what was last written there.
#[derive(Clone, Copy, Debug)]
struct Place {
    index: u32,
    entry: Backend,
}

/// The maps indexed by backend.
pub(super) struct Backends {
    entries: Array<MapData, Backend>,
    stats: PerCpuArray<MapData, BackendCounters>,
    active: Array<MapData, Active>,
    cpus: usize,
    known: BTreeMap<Identity, Place>,
    /// Indices of removed services' backends.
    orphans: BTreeSet<u32>,
    numbers: Numbers,
    /// What the sweeps audit up to.
    end: Arc<AtomicU32>,
}

impl Backends {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        let entries: Array<MapData, Backend> = take(ebpf, maps::BACKENDS)?;
        let stats: PerCpuArray<MapData, BackendCounters> = take(ebpf, maps::BACKEND_STATS)?;
        let active: Array<MapData, Active> = take(ebpf, maps::ACTIVE)?;
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| ApplyError::new(format!("cannot read {what}"), error))?;
        let limit = entries.len().min(stats.len()).min(active.len());
        Ok(Self {
            entries,
            stats,
            active,
            cpus,
            known: BTreeMap::new(),
            orphans: BTreeSet::new(),
            numbers: Numbers::new(limit, &BTreeSet::new()),
            end: Arc::default(),
        })
    }

    /// The entry at an index, whatever it is.
    pub(super) fn entry(&self, index: u32) -> Result<Backend, ApplyError> {
        self.entries.get(&index, 0).map_err(|error| read_error(maps::BACKENDS, error))
    }

    /// Takes over what an earlier agent left: `in_force` by their indices, and, for their counters and
    /// flows, the others of `services` (numbers) and of services that are gone.
    pub(super) fn reconcile(
        &mut self,
        in_force: &BTreeMap<Identity, u32>,
        services: &BTreeSet<u32>,
    ) -> Result<(), ApplyError> {
        self.known.clear();
        self.orphans.clear();
        let fd = self.entries.map().fd().as_fd();
        let all = batch::read_array::<Backend>(fd, self.numbers.limit(), 1).map_err(|error| {
            ApplyError::new(format!("cannot read map {}", maps::BACKENDS), error)
        })?;
        for (identity, &index) in in_force {
            if let Some(&entry) = all.get(index as usize) {
                self.known.insert(*identity, Place { index, entry });
            }
        }
        let indices: BTreeSet<u32> = in_force.values().copied().collect();
        for (index, entry) in (0..).zip(&all).filter(|(index, _)| !indices.contains(index)) {
            let Some(address) = backend_address(entry) else { continue };
            let identity = (entry.service, entry.pool, address);
            if services.contains(&entry.service) && !self.known.contains_key(&identity) {
                self.known.insert(identity, Place { index, entry: *entry });
            } else if self.flows(index)? > 0 {
                self.orphans.insert(index);
            }
        }
        let known = self.known.values().map(|place| place.index);
        let used = known.chain(self.orphans.iter().copied()).collect();
        self.numbers = Numbers::new(self.numbers.limit(), &used);
        self.end.store(self.numbers.end(), Ordering::Relaxed);
        Ok(())
    }

    /// Where the audited indices end; it follows.
    pub(super) fn end(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.end)
    }

    /// The backend's index; its entry is written unless it is there as it should be. `in_force` says
    /// which must not be displaced.
    pub(super) fn put(
        &mut self,
        service: u32,
        pool: u32,
        image: &BackendImage,
        in_force: impl FnOnce() -> BTreeSet<Identity>,
    ) -> Result<u32, ApplyError> {
        let identity = (service, pool, image.address);
        let entry = backend_entry(service, pool, image);
        if let Some(place) = self.known.get_mut(&identity) {
            if place.entry != entry {
                set(&mut self.entries, maps::BACKENDS, place.index, entry)?;
                place.entry = entry;
            }
            return Ok(place.index);
        }
        let index = match self.numbers.take() {
            Some(index) => index,
            None => self.reclaim(&in_force())?,
        };
        if let Err(error) = self.begin(index, entry) {
            self.numbers.give_back(index);
            return Err(error);
        }
        self.end.store(self.numbers.end(), Ordering::Relaxed);
        self.known.insert(identity, Place { index, entry });
        Ok(index)
    }

    /// Writes a backend's first entry, with counters at zero.
    fn begin(&mut self, index: u32, entry: Backend) -> Result<(), ApplyError> {
        let zeros = PerCpuValues::try_from(vec![BackendCounters::default(); self.cpus])
            .map_err(|error| ApplyError::new("per-CPU counters", error))?;
        self.stats.set(index, zeros, 0).map_err(|error| write_error(maps::BACKEND_STATS, error))?;
        set(&mut self.active, maps::ACTIVE, index, Active::default())?;
        set(&mut self.entries, maps::BACKENDS, index, entry)
    }

    /// Frees what is neither in force nor has a flow, and gives one of it out.
    fn reclaim(&mut self, in_force: &BTreeSet<Identity>) -> Result<u32, ApplyError> {
        let retired = self.known.iter().filter(|(identity, _)| !in_force.contains(identity));
        let retired: Vec<_> = retired.map(|(identity, place)| (*identity, place.index)).collect();
        for (identity, index) in retired {
            if self.flows(index)? == 0 {
                self.known.remove(&identity);
                self.numbers.give_back(index);
            }
        }
        for index in self.orphans.clone() {
            if self.flows(index)? == 0 {
                self.orphans.remove(&index);
                self.numbers.give_back(index);
            }
        }
        let size = self.numbers.limit();
        self.numbers.take().ok_or_else(|| full(maps::BACKENDS, size, "limits.backends"))
    }

    fn flows(&self, index: u32) -> Result<u64, ApplyError> {
        let active = self.active.get(&index, 0).map_err(|error| read_error(maps::ACTIVE, error))?;
        Ok(active.flows.cast_signed().max(0).cast_unsigned())
    }

    /// Forgets a removed service's backends; their indices stay taken while flows lead to them.
    pub(super) fn forget_service(&mut self, service: u32) -> Result<(), ApplyError> {
        let mine: Vec<Identity> = self.of_service(service).map(|(identity, _)| identity).collect();
        for identity in mine {
            let Some(Place { index, entry }) = self.known.remove(&identity) else { continue };
            self.orphans.insert(index);
            let entry = Backend { service: NO_SERVICE, ..entry };
            set(&mut self.entries, maps::BACKENDS, index, entry)?;
        }
        Ok(())
    }

    /// A service's backends of every pool that was in force, with their indices.
    pub(super) fn of_service(&self, service: u32) -> impl Iterator<Item = (Identity, u32)> {
        let mine = self.known.range((service, 0, FIRST)..);
        mine.take_while(move |((of, ..), _)| *of == service)
            .map(|(identity, place)| (*identity, place.index))
    }

    /// One backend's counters, all CPUs together.
    pub(super) fn counters(&self, index: u32) -> Result<BackendCounters, ApplyError> {
        let per_cpu =
            self.stats.get(&index, 0).map_err(|error| read_error(maps::BACKEND_STATS, error))?;
        Ok(total(&per_cpu))
    }

    /// Every backend's counters, all CPUs together, and active flows, by index.
    pub(super) fn all_counters(&self) -> io::Result<Vec<BackendTotals>> {
        let end = self.numbers.end();
        let stats = self.stats.map().fd().as_fd();
        let stats = batch::read_array::<BackendCounters>(stats, end, self.cpus)?;
        let active = batch::read_array::<Active>(self.active.map().fd().as_fd(), end, 1)?;
        let totals = stats.chunks(self.cpus).zip(active).map(|(per_cpu, active)| BackendTotals {
            counters: total(per_cpu),
            active: active.flows.cast_signed().max(0).cast_unsigned(),
        });
        Ok(totals.collect())
    }
}

/// One backend's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendTotals {
    /// What happened on its flows, all CPUs together.
    pub counters: BackendCounters,
    /// Flows that have not ended.
    pub active: u64,
}

fn total(per_cpu: &[BackendCounters]) -> BackendCounters {
    let mut total = BackendCounters::default();
    per_cpu.iter().for_each(|counters| total.add(counters));
    total
}

fn backend_entry(service: u32, pool: u32, image: &BackendImage) -> Backend {
    let (address, family) = match image.address.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), FAMILY_V4),
        IpAddr::V6(ip) => (ip, FAMILY_V6),
    };
    Backend {
        address: address.octets(),
        port: image.address.port(),
        family,
        mode: MODE_NAT,
        service,
        pool,
        weight: u32::from(image.weight),
        sources_start: 0,
        sources_count: 0,
    }
}

/// The address in an entry, `None` if it is not in use.
pub(super) fn backend_address(backend: &Backend) -> Option<SocketAddr> {
    let address = Ipv6Addr::from(backend.address);
    let address = match backend.family {
        FAMILY_V4 => IpAddr::V4(address.to_ipv4_mapped()?),
        FAMILY_V6 => IpAddr::V6(address),
        _ => return None,
    };
    Some(SocketAddr::new(address, backend.port))
}
