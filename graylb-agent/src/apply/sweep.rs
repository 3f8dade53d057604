//! The flow tables, looked over: what is over goes, what is left is counted.
//!
//! In: the pinned maps, rules and a time. Out: a [`FlowReport`]. The rules are
//! [`crate::model::ageing`]'s. Reads go in slices with pauses between them, so that a sweep of millions of
//! entries disturbs nobody; packets are never held up, since the kernel locks one bucket at a time.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{Array, IterableMap as _, Map, MapData, MapError, PerCpuArray},
};
use graylb_common::{
    backend::{Active, BackendCounters, MODE_NAT, MODE_SNAT},
    flow::{FLOW_CHALLENGED, FLOW_REPLY, Flow, FlowKey, HalfOpen},
    maps,
};

use super::{
    ApplyError,
    batch::{self, FlowMap, Slice},
    flow_report::{BackendFlows, FlowReport, TableFill},
};
use crate::model::ageing::{Audit, End, Other, Rules, Seen, Table, correction, end};

/// Entries read in one system call: a few hundred microseconds, during which a kernel without preemption
/// lets nobody else have the CPU.
const SLICE: usize = 512;
/// One in so many entries that look alive is checked for its other direction, others in later sweeps.
const LONE_CHECKS: u32 = 16;

/// An entry that holds a flow.
trait Entry<A>: Pod {
    fn flow(&self) -> &Flow<A>;
}

impl<A: Copy + 'static> Entry<A> for Flow<A> {
    fn flow(&self) -> &Flow<A> {
        self
    }
}

impl<A: Copy + 'static> Entry<A> for HalfOpen<A> {
    fn flow(&self) -> &Flow<A> {
        &self.flow
    }
}

/// The tables of one address family.
struct Family<A> {
    tcp: FlowMap<FlowKey<A>, Flow<A>>,
    half_open: FlowMap<FlowKey<A>, HalfOpen<A>>,
    udp: FlowMap<FlowKey<A>, Flow<A>>,
    names: [&'static str; 3],
}

/// Looks the flow tables over.
pub struct Sweeper {
    v4: Family<[u8; 4]>,
    v6: Family<[u8; 16]>,
    active: Array<MapData, Active>,
    stats: PerCpuArray<MapData, BackendCounters>,
    cpus: usize,
    backends_end: Arc<AtomicU32>,
    round: u32,
    report: FlowReport,
}

/// What one sweep has found so far.
struct Tally<'r> {
    rules: &'r Rules,
    now_ns: u64,
    round: u32,
    backends: BTreeMap<u32, BackendFlows>,
    removed: BTreeMap<u32, i64>,
    ended: BTreeMap<End, u64>,
}

impl Sweeper {
    /// Opens the maps pinned in `maps`. Backends with an index below `backends_end` are audited.
    pub(super) fn open(maps: &Path, backends_end: Arc<AtomicU32>) -> Result<Self, ApplyError> {
        let wrong = |error: MapError| ApplyError::new("cannot open the pinned counters", error);
        let pinned = |name: &str| MapData::from_pin(maps.join(name)).map_err(wrong);
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| ApplyError::new(format!("cannot read {what}"), error))?;
        Ok(Self {
            v4: Family::open(maps, [maps::TCP_V4, maps::HALF_OPEN_V4, maps::UDP_V4])?,
            v6: Family::open(maps, [maps::TCP_V6, maps::HALF_OPEN_V6, maps::UDP_V6])?,
            active: Array::try_from(Map::Array(pinned(maps::ACTIVE)?)).map_err(wrong)?,
            stats: PerCpuArray::try_from(Map::PerCpuArray(pinned(maps::BACKEND_STATS)?))
                .map_err(wrong)?,
            cpus,
            backends_end,
            round: 0,
            report: FlowReport::default(),
        })
    }

    /// One look over every table at kernel time `now_ns` (CLOCK_MONOTONIC_COARSE). `pause` is called after
    /// each slice with the time that it took.
    ///
    /// # Errors
    ///
    /// A map cannot be read; nothing that was not over has been removed.
    pub fn sweep(
        &mut self,
        rules: &Rules,
        now_ns: u64,
        pause: &mut dyn FnMut(Duration),
    ) -> Result<&FlowReport, ApplyError> {
        let started = Instant::now();
        let mut busy = Duration::ZERO;
        let mut pause = |took: Duration| {
            busy += took;
            pause(took);
        };
        self.round = self.round.wrapping_add(1);
        let mut tally = Tally::new(rules, now_ns, self.round);
        let failed = |error: io::Error| ApplyError::new("cannot read the flow tables", error);
        let before = self.counters().map_err(failed)?;
        let mut tables = Vec::new();
        self.v4.sweep(&mut tally, &mut tables, &mut pause).map_err(failed)?;
        self.v6.sweep(&mut tally, &mut tables, &mut pause).map_err(failed)?;
        let after = self.counters().map_err(failed)?;
        self.correct(&tally, &before, &after)?;
        for (why, flows) in tally.ended {
            *self.report.ended.entry(why).or_default() += flows;
        }
        self.report.tables = tables;
        self.report.backends = tally.backends;
        self.report.sweeps += 1;
        self.report.took = started.elapsed();
        self.report.busy = busy;
        Ok(&self.report)
    }

    /// Each backend's active flows and changes counted, by index.
    fn counters(&self) -> io::Result<Vec<(i64, u64)>> {
        let end = self.backends_end.load(Ordering::Relaxed);
        let active = batch::read_array::<Active>(self.active.map().fd().as_fd(), end, 1)?;
        let stats = self.stats.map().fd().as_fd();
        let stats = batch::read_array::<BackendCounters>(stats, end, self.cpus)?;
        let changes = stats.chunks(self.cpus).map(|cpus| {
            let each = |c: &BackendCounters| c.opened + c.established + c.refused + c.closed;
            cpus.iter().map(each).fold(0, u64::wrapping_add)
        });
        let flows = active.iter().map(|active| active.flows.cast_signed());
        Ok(flows.zip(changes).collect())
    }

    /// Mends `active` where it is off.
    fn correct(
        &mut self,
        tally: &Tally<'_>,
        before: &[(i64, u64)],
        after: &[(i64, u64)],
    ) -> Result<(), ApplyError> {
        for (index, (before, after)) in (0_u32..).zip(before.iter().zip(after)) {
            let found = tally.backends.get(&index).map_or(0, BackendFlows::open);
            let correction = correction(&Audit {
                before: before.0,
                after: after.0,
                found: i64::try_from(found).unwrap_or(i64::MAX),
                removed: tally.removed.get(&index).copied().unwrap_or(0),
                churn: i64::try_from(after.1.wrapping_sub(before.1)).unwrap_or(i64::MAX),
            });
            if correction.vanished > 0 {
                *self.report.vanished.entry(index).or_default() += correction.vanished;
            }
            if correction.add == 0 {
                continue;
            }
            let wrong = |error: MapError| ApplyError::new(format!("map {}", maps::ACTIVE), error);
            let now = self.active.get(&index, 0).map_err(wrong)?.flows.cast_signed();
            let flows = now.saturating_add(correction.add).max(0).cast_unsigned();
            self.active.set(index, Active { flows }, 0).map_err(wrong)?;
        }
        Ok(())
    }
}

impl<A: Copy + PartialEq + 'static> Family<A> {
    fn open(maps: &Path, names: [&'static str; 3]) -> Result<Self, ApplyError> {
        let [tcp, half_open, udp] = names;
        Ok(Self {
            tcp: FlowMap::open(&maps.join(tcp))?,
            half_open: FlowMap::open(&maps.join(half_open))?,
            udp: FlowMap::open(&maps.join(udp))?,
            names,
        })
    }

    fn sweep(
        &mut self,
        tally: &mut Tally<'_>,
        tables: &mut Vec<TableFill>,
        pause: &mut dyn FnMut(Duration),
    ) -> io::Result<()> {
        let Self { tcp, half_open, udp, names } = self;
        let contested = |key: &FlowKey<A>| half_open.get(key).is_some();
        let fills = [
            (tcp.size(), scan(tcp, Table::Tcp, &contested, tally, pause)?),
            (half_open.size(), scan(half_open, Table::HalfOpen, &|_| false, tally, pause)?),
            (udp.size(), scan(udp, Table::Udp, &|_| false, tally, pause)?),
        ];
        tables.extend(names.iter().zip(fills).map(|(name, (size, entries))| TableFill {
            table: (*name).to_owned(),
            entries,
            size: u64::from(size),
        }));
        Ok(())
    }
}

/// Looks one table over; returns how many entries are left in it.
fn scan<A: Copy + PartialEq + 'static, V: Entry<A>>(
    map: &mut FlowMap<FlowKey<A>, V>,
    table: Table,
    contested: &dyn Fn(&FlowKey<A>) -> bool,
    tally: &mut Tally<'_>,
    pause: &mut dyn FnMut(Duration),
) -> io::Result<u64> {
    let mut entries: u64 = 0;
    let mut began = Instant::now();
    map.scan(&mut Slice::new(SLICE, 1), &mut |map, slice| {
        entries += slice.keys.len() as u64;
        for (place, (key, value)) in (0_u32..).zip(slice.keys.iter().zip(&slice.values)) {
            let flow = value.flow();
            let forward = flow.state & FLOW_REPLY == 0;
            if forward {
                tally.count(table, flow);
            }
            let check_lone = place.wrapping_add(tally.round) % LONE_CHECKS == 0;
            if check_lone || forward && seen(flow).may_end(table, tally.rules, tally.now_ns) {
                entries = entries.saturating_sub(judge(map, table, key, contested, tally));
            }
        }
        pause(began.elapsed());
        began = Instant::now();
    })?;
    Ok(entries)
}

/// Decides one flow as it is now, and takes its entries out if it is over. Returns how many went.
fn judge<A: Copy + PartialEq + 'static, V: Entry<A>>(
    map: &mut FlowMap<FlowKey<A>, V>,
    table: Table,
    key: &FlowKey<A>,
    contested: &dyn Fn(&FlowKey<A>) -> bool,
    tally: &mut Tally<'_>,
) -> u64 {
    let Some(value) = map.get(key) else { return 0 };
    let flow = value.flow();
    let two_ways = flow.mode == u32::from(MODE_NAT) || flow.mode == u32::from(MODE_SNAT);
    let other_key = flow.rewrite.reversed();
    // Its place may have been taken by another flow to the same backend.
    let other = two_ways
        .then(|| map.get(&other_key))
        .flatten()
        .filter(|other| other.flow().rewrite.reversed() == *key);
    let forward = flow.state & FLOW_REPLY == 0;
    if !forward && other.is_some() {
        return 0;
    }
    let direction = match &other {
        Some(other) => Other::Found(seen(other.flow())),
        None if two_ways => Other::Missing,
        None => Other::NotExpected,
    };
    let Some(why) = end(table, seen(flow), direction, tally.rules, tally.now_ns) else { return 0 };
    // A new connection on the same tuple may be about to take this entry over.
    if flow.state & FLOW_CHALLENGED != 0 && contested(key) {
        return 0;
    }
    let whatever = why == End::BackendDown;
    if !remove(map, key, &value, whatever) {
        return 0;
    }
    let went = match other {
        None => 1,
        Some(other) if remove(map, &other_key, &other, whatever) => 2,
        Some(_) => match map.get(&other_key) {
            // A packet came the other way.
            Some(now) if now.flow().rewrite.reversed() == *key => {
                map.put_back(key, &value);
                return 0;
            }
            _ => 1,
        },
    };
    tally.ended(table, flow, why);
    went
}

/// Takes an entry out. If it has changed since it was read, it is put back, unless it is to go `whatever`
/// happened to it; a packet that comes in the microseconds between finds no flow, as if it had come just
/// after the timeout.
fn remove<A: Copy + PartialEq + 'static, V: Entry<A>>(
    map: &mut FlowMap<FlowKey<A>, V>,
    key: &FlowKey<A>,
    as_read: &V,
    whatever: bool,
) -> bool {
    let Some(gone) = map.take_out(key) else { return false };
    let (now, then) = (gone.flow(), as_read.flow());
    let same = now.rewrite == then.rewrite && (whatever || now.last_seen_ns == then.last_seen_ns);
    if !same {
        map.put_back(key, &gone);
    }
    same
}

const fn seen<A>(flow: &Flow<A>) -> Seen {
    Seen { last_seen_ns: flow.last_seen_ns, state: flow.state, backend: flow.backend }
}

impl<'r> Tally<'r> {
    const fn new(rules: &'r Rules, now_ns: u64, round: u32) -> Self {
        Self {
            rules,
            now_ns,
            round,
            backends: BTreeMap::new(),
            removed: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// Counts a flow, by its client's direction.
    fn count<A>(&mut self, table: Table, flow: &Flow<A>) {
        let seen = seen(flow);
        let backend = self.backends.entry(flow.backend).or_default();
        if !seen.is_open(table) {
            backend.closing += 1;
            return;
        }
        match table {
            Table::Tcp => backend.established += 1,
            Table::HalfOpen => backend.half_open += 1,
            Table::Udp => backend.udp += 1,
        }
        backend.longest_idle = backend.longest_idle.max(seen.idle(self.now_ns));
        let generation = backend.oldest_generation.get_or_insert(flow.generation);
        *generation = flow.generation.min(*generation);
    }

    fn ended<A>(&mut self, table: Table, flow: &Flow<A>, why: End) {
        *self.ended.entry(why).or_default() += 1;
        // Without the client's direction it was not counted, and its counter is mended as a difference.
        if flow.state & FLOW_REPLY == 0 && seen(flow).is_open(table) {
            *self.removed.entry(flow.backend).or_default() += 1;
        }
    }
}
