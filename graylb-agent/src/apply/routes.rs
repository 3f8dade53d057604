//! Routes in the maps: each pool's slots and counter, and each service's routes in a row.
//!
//! Everything is written into places that nothing points to. What is given back rests, see [`Regions`].

use std::{collections::BTreeSet, os::fd::AsFd as _, time::Instant};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapData},
};
use graylb_common::{
    maps,
    service::{Route, Slot, Turn},
};

use super::{
    ApplyError, batch,
    numbers::Numbers,
    regions::Regions,
    tables::{full, set, take, write_error},
};
use crate::compile::{PoolImage, Select};

/// The maps that routes are made of, and which of their places are free.
pub(super) struct RouteTable {
    routes: Array<MapData, Route>,
    slots: Array<MapData, Slot>,
    turns: Array<MapData, Turn>,
    free_routes: Regions,
    free_slots: Regions,
    free_turns: Numbers,
}

impl RouteTable {
    /// Takes the maps out of the loaded object, with nothing in use.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        // The sizes are the maps' own: pinned ones keep theirs.
        let routes: Array<MapData, Route> = take(ebpf, maps::ROUTES)?;
        let slots: Array<MapData, Slot> = take(ebpf, maps::SLOTS)?;
        let turns: Array<MapData, Turn> = take(ebpf, maps::TURNS)?;
        Ok(Self {
            free_routes: Regions::new(routes.len(), []),
            free_slots: Regions::new(slots.len(), []),
            free_turns: Numbers::new(turns.len(), &BTreeSet::new()),
            routes,
            slots,
            turns,
        })
    }

    /// Notes what an earlier agent left in force: each service's first route, and its routes.
    pub(super) fn reconcile(&mut self, services: &[(u32, Vec<Route>)]) {
        let rows = services.iter().map(|(start, routes)| (*start, routes.len() as u32));
        self.free_routes = Regions::new(self.routes.len(), rows);
        // Routes of one service may share slots.
        let all = || services.iter().flat_map(|(_, routes)| routes).filter(|r| **r != Route::NONE);
        let slots: BTreeSet<_> =
            all().map(|route| (route.slots_start, route.slots_count)).collect();
        self.free_slots = Regions::new(self.slots.len(), slots);
        self.free_turns = Numbers::new(self.turns.len(), &all().map(|route| route.turn).collect());
    }

    /// Reads `count` routes from `start` on.
    pub(super) fn read(&self, start: u32, count: u32) -> Result<Vec<Route>, String> {
        let end = start.checked_add(count).filter(|end| *end <= self.routes.len());
        let end = end.ok_or_else(|| format!("routes {start} + {count}"))?;
        let read = |place| self.routes.get(&place, 0).map_err(|error| error.to_string());
        (start..end).map(read).collect()
    }

    /// How a route's slots are chosen, and which backend each leads to.
    pub(super) fn read_slots(&self, route: &Route) -> Result<(Select, Vec<u32>), String> {
        let (start, count) = (route.slots_start, route.slots_count);
        let end = start.checked_add(count).filter(|end| *end <= self.slots.len());
        let end = end.ok_or_else(|| format!("slots {start} + {count}"))?;
        let select = Select::from_abi(route.select, route.prefix)
            .ok_or_else(|| format!("select {} by prefix {}", route.select, route.prefix))?;
        if route.turn >= self.turns.len() {
            return Err(format!("turn {}", route.turn));
        }
        let read = |place| self.slots.get(&place, 0).map(|slot| slot.backend);
        let slots: Result<Vec<_>, _> = (start..end).map(read).collect();
        Ok((select, slots.map_err(|error| error.to_string())?))
    }

    /// Writes a pool's slots and counter; `indices` are its backends'.
    pub(super) fn put_pool(
        &mut self,
        pool: &PoolImage,
        indices: &[u32],
    ) -> Result<Route, ApplyError> {
        let count = pool.slots.len() as u32;
        let size = self.slots.len();
        let start = match count {
            0 => 0,
            _ => self
                .free_slots
                .take(count, Instant::now())
                .ok_or_else(|| full(maps::SLOTS, size, "limits.slots"))?,
        };
        let Some(turn) = self.free_turns.take() else {
            self.free_slots.give_back(start, count, Instant::now());
            return Err(full(maps::TURNS, self.turns.len(), "limits.routes"));
        };
        let (select, prefix) = pool.select.to_abi();
        let route = Route {
            pool: pool.pool,
            slots_start: start,
            slots_count: count,
            turn,
            select,
            prefix,
            reserved: 0,
        };
        let written = self
            .write_slots(start, indices, &pool.slots)
            .and_then(|()| set(&mut self.turns, maps::TURNS, turn, Turn { next: 0 }));
        match written {
            Ok(()) => Ok(route),
            Err(error) => {
                self.give_back_pool(&route);
                Err(error)
            }
        }
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

    /// Frees a pool's slots and counter.
    pub(super) fn give_back_pool(&mut self, route: &Route) {
        self.free_slots.give_back(route.slots_start, route.slots_count, Instant::now());
        self.free_turns.give_back(route.turn);
    }

    /// Writes a service's routes in a row; returns where it begins.
    pub(super) fn put_row(&mut self, routes: &[Route]) -> Result<u32, ApplyError> {
        let count = routes.len() as u32;
        let size = self.routes.len();
        let start = self
            .free_routes
            .take(count, Instant::now())
            .ok_or_else(|| full(maps::ROUTES, size, "limits.routes"))?;
        for (place, route) in (start..).zip(routes) {
            if let Err(error) = set(&mut self.routes, maps::ROUTES, place, *route) {
                self.give_back_row(start, count);
                return Err(error);
            }
        }
        Ok(start)
    }

    /// Frees a row of routes.
    pub(super) fn give_back_row(&mut self, start: u32, count: u32) {
        self.free_routes.give_back(start, count, Instant::now());
    }
}
