//! Backends in the maps: which index each has, its entry there, its counters.
//!
//! An index belongs to one service × pool × backend × mode. It is given to another only when no index was never
//! used, and only if its backend is not in force and has no flow left: flows point to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
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
    backend::{
        Active, Backend, BackendCounters, FAMILY_V4, FAMILY_V6, MODE_DSR, MODE_IPIP, MODE_NAT,
        MODE_SNAT,
    },
    maps,
};

use super::{
    ApplyError, batch,
    layout::{address_bytes, ip_address},
    numbers::Numbers,
    sources::{Place, SourceTable},
    tables::{full, read_error, set, take, write_error},
};
use crate::{
    compile::{BackendImage, PoolImage},
    model::mode::Mode,
};

/// What makes a backend's entry its own: an entry in use changes only in what is for readers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    /// Number of the service.
    pub(super) service: u32,
    /// Number of the pool.
    pub(super) pool: u32,
    pub(super) address: SocketAddr,
    pub(super) mode: Mode,
}

impl Identity {
    /// That of a backend of a service's pool.
    pub(super) fn of(service: u32, image: &PoolImage, backend: &BackendImage) -> Self {
        Self { service, pool: image.pool, address: backend.address, mode: image.mode.clone() }
    }

    /// The least one of a service.
    const fn first(service: u32) -> Self {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self { service, pool: 0, address, mode: Mode::Nat }
    }
}

/// [`Backend::service`] of an entry whose service is gone; flows may still lead to it.
const NO_SERVICE: u32 = u32::MAX;

/// Where a backend is, and what was last written there.
#[derive(Clone, Copy, Debug)]
struct Known {
    index: u32,
    entry: Backend,
}

/// The maps indexed by backend.
pub(super) struct Backends {
    entries: Array<MapData, Backend>,
    stats: PerCpuArray<MapData, BackendCounters>,
    active: Array<MapData, Active>,
    /// Sockets that the socket hook connected.
    sockets: Array<MapData, Active>,
    cpus: usize,
    known: BTreeMap<Identity, Known>,
    /// Indices of removed services' backends, and where their sources lie.
    orphans: BTreeMap<u32, Place>,
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
        let sockets: Array<MapData, Active> = take(ebpf, maps::SOCKET_ACTIVE)?;
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| ApplyError::new(format!("cannot read {what}"), error))?;
        let limit = entries.len().min(stats.len()).min(active.len()).min(sockets.len());
        Ok(Self {
            entries,
            stats,
            active,
            sockets,
            cpus,
            known: BTreeMap::new(),
            orphans: BTreeMap::new(),
            numbers: Numbers::new(limit, &BTreeSet::new()),
            end: Arc::default(),
        })
    }

    /// The entry at an index, whatever it is.
    pub(super) fn entry(&self, index: u32) -> Result<Backend, ApplyError> {
        self.entries.get(&index, 0).map_err(|error| read_error(maps::BACKENDS, error))
    }

    /// Takes over what an earlier agent left: `in_force` by their indices, and, for their counters and
    /// flows, the others of `services` (numbers) and of services that are gone. `sources` reads their modes.
    pub(super) fn reconcile(
        &mut self,
        in_force: &BTreeMap<Identity, u32>,
        services: &BTreeSet<u32>,
        sources: &mut SourceTable,
    ) -> Result<(), ApplyError> {
        self.known.clear();
        self.orphans.clear();
        let fd = self.entries.map().fd().as_fd();
        let all = batch::read_array::<Backend>(fd, self.numbers.limit(), 1).map_err(|error| {
            ApplyError::new(format!("cannot read map {}", maps::BACKENDS), error)
        })?;
        for (identity, &index) in in_force {
            if let Some(&entry) = all.get(index as usize) {
                self.known.insert(identity.clone(), Known { index, entry });
            }
        }
        let indices: BTreeSet<u32> = in_force.values().copied().collect();
        for (index, entry) in (0..).zip(&all).filter(|(index, _)| !indices.contains(index)) {
            let Some(address) = backend_address(entry) else { continue };
            let (service, pool) = (entry.service, entry.pool);
            let mode = if services.contains(&service) { sources.mode(entry).ok() } else { None };
            let identity = mode.map(|mode| Identity { service, pool, address, mode });
            match identity.filter(|identity| !self.known.contains_key(identity)) {
                Some(identity) => {
                    self.known.insert(identity, Known { index, entry: *entry });
                }
                None if self.flows(index)? > 0 => {
                    self.orphans.insert(index, source_place(entry));
                }
                None => {}
            }
        }
        let known = self.known.values().map(|known| known.index);
        let used = known.chain(self.orphans.keys().copied()).collect();
        self.numbers = Numbers::new(self.numbers.limit(), &used);
        self.end.store(self.numbers.end(), Ordering::Relaxed);
        Ok(())
    }

    /// Where the audited indices end; it follows.
    pub(super) fn end(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.end)
    }

    /// The backend's index; its entry is written unless it is there as it should be. `keep` says which
    /// must not be displaced.
    pub(super) fn put(
        &mut self,
        identity: Identity,
        weight: u16,
        sources: Place,
        keep: impl FnOnce() -> BTreeSet<Identity>,
    ) -> Result<u32, ApplyError> {
        let entry = backend_entry(&identity, weight, sources);
        if let Some(known) = self.known.get_mut(&identity) {
            if known.entry != entry {
                set(&mut self.entries, maps::BACKENDS, known.index, entry)?;
                known.entry = entry;
            }
            return Ok(known.index);
        }
        let index = match self.numbers.take() {
            Some(index) => index,
            None => {
                self.release(&keep())?;
                let size = self.numbers.limit();
                let index = self.numbers.take();
                index.ok_or_else(|| full(maps::BACKENDS, size, "limits.backends"))?
            }
        };
        if let Err(error) = self.begin(index, entry) {
            self.numbers.give_back(index);
            return Err(error);
        }
        self.end.store(self.numbers.end(), Ordering::Relaxed);
        self.known.insert(identity, Known { index, entry });
        Ok(index)
    }

    /// Writes a backend's first entry, with counters at zero.
    fn begin(&mut self, index: u32, entry: Backend) -> Result<(), ApplyError> {
        let zeros = PerCpuValues::try_from(vec![BackendCounters::default(); self.cpus])
            .map_err(|error| ApplyError::new("per-CPU counters", error))?;
        self.stats.set(index, zeros, 0).map_err(|error| write_error(maps::BACKEND_STATS, error))?;
        set(&mut self.active, maps::ACTIVE, index, Active::default())?;
        set(&mut self.sockets, maps::SOCKET_ACTIVE, index, Active::default())?;
        set(&mut self.entries, maps::BACKENDS, index, entry)
    }

    /// Frees what is neither to be kept nor has a flow.
    pub(super) fn release(&mut self, keep: &BTreeSet<Identity>) -> Result<(), ApplyError> {
        let retired = self.known.iter().filter(|(identity, _)| !keep.contains(identity));
        let retired: Vec<_> =
            retired.map(|(identity, known)| (identity.clone(), known.index)).collect();
        for (identity, index) in retired {
            if self.flows(index)? == 0 {
                self.known.remove(&identity);
                self.numbers.give_back(index);
            }
        }
        let orphans: Vec<u32> = self.orphans.keys().copied().collect();
        for index in orphans {
            if self.flows(index)? == 0 {
                self.orphans.remove(&index);
                self.numbers.give_back(index);
            }
        }
        Ok(())
    }

    /// Where the sources of all backends lie, of those of removed services, too.
    pub(super) fn source_places(&self) -> BTreeSet<Place> {
        let known = self.known.values().map(|known| source_place(&known.entry));
        known.chain(self.orphans.values().copied()).filter(|(_, count)| *count > 0).collect()
    }

    /// Flows and connected sockets that lead there.
    fn flows(&self, index: u32) -> Result<u64, ApplyError> {
        let active = self.active.get(&index, 0).map_err(|error| read_error(maps::ACTIVE, error))?;
        let sockets = self.sockets.get(&index, 0);
        let sockets = sockets.map_err(|error| read_error(maps::SOCKET_ACTIVE, error))?;
        Ok(count(active) + count(sockets))
    }

    /// Counts connected sockets from zero.
    pub(super) fn forget_sockets(&mut self) -> Result<(), ApplyError> {
        let indices: Vec<u32> = (0..self.sockets.len()).collect();
        let zeros = vec![Active::default(); indices.len()];
        batch::update(self.sockets.map().fd().as_fd(), &indices, &zeros)
            .map_err(|error| write_error(maps::SOCKET_ACTIVE, error))
    }

    /// Forgets a removed service's backends; their indices stay taken while flows lead to them.
    pub(super) fn forget_service(&mut self, service: u32) -> Result<(), ApplyError> {
        let mine: Vec<_> = self.of_service(service).map(|(identity, _)| identity.clone()).collect();
        for identity in mine {
            let Some(Known { index, entry }) = self.known.remove(&identity) else { continue };
            self.orphans.insert(index, source_place(&entry));
            let entry = Backend { service: NO_SERVICE, ..entry };
            set(&mut self.entries, maps::BACKENDS, index, entry)?;
        }
        Ok(())
    }

    /// A service's backends of every pool that was in force, with their indices.
    pub(super) fn of_service(&self, service: u32) -> impl Iterator<Item = (&Identity, u32)> {
        let mine = self.known.range(Identity::first(service)..);
        mine.take_while(move |(identity, _)| identity.service == service)
            .map(|(identity, known)| (identity, known.index))
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
        let sockets = batch::read_array::<Active>(self.sockets.map().fd().as_fd(), end, 1)?;
        let active =
            active.into_iter().zip(sockets).map(|(flows, sockets)| count(flows) + count(sockets));
        let totals = stats
            .chunks(self.cpus)
            .zip(active)
            .map(|(per_cpu, active)| BackendTotals { counters: total(per_cpu), active });
        Ok(totals.collect())
    }
}

/// One backend's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendTotals {
    /// What happened on its flows, all CPUs together.
    pub counters: BackendCounters,
    /// Flows that have not ended, and sockets that the socket hook connected.
    pub active: u64,
}

impl BackendTotals {
    /// Adds another index's to these.
    pub const fn add(&mut self, other: &Self) {
        self.counters.add(&other.counters);
        self.active += other.active;
    }
}

/// What a counter says; below zero it may be for a while, when flows end that it missed.
fn count(active: Active) -> u64 {
    active.flows.cast_signed().max(0).cast_unsigned()
}

fn total(per_cpu: &[BackendCounters]) -> BackendCounters {
    let mut total = BackendCounters::default();
    per_cpu.iter().for_each(|counters| total.add(counters));
    total
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

const fn source_place(backend: &Backend) -> Place {
    (backend.sources_start, backend.sources_count)
}

/// The address in an entry, `None` if it is not in use.
pub(super) fn backend_address(backend: &Backend) -> Option<SocketAddr> {
    let ip = ip_address(&backend.address, backend.family)?;
    Some(SocketAddr::new(ip, backend.port))
}
