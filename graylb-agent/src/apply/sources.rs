//! Source addresses in the map `sources`: each list of them once, however many backends use it.
//!
//! An entry in use is never changed; a list that nobody uses any more gives its place up when there is no
//! other left.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use graylb_common::{
    backend::{Backend, FAMILY_V4, FAMILY_V6, Source},
    maps,
};

use super::{
    ApplyError,
    layout::{address_bytes, ip_address},
    regions::Regions,
    tables::{full, set, take},
};
use crate::model::mode::Sources;

/// Where a list lies: first entry and length.
pub(super) type Place = (u32, u32);

/// The map, and which list lies where.
pub(super) struct SourceTable {
    map: Array<MapData, Source>,
    places: BTreeMap<Sources, Place>,
    regions: Regions,
}

impl SourceTable {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        Ok(Self {
            map: take(ebpf, maps::SOURCES)?,
            places: BTreeMap::new(),
            regions: Regions::new(maps::MAX_SOURCES, []),
        })
    }

    /// Reads the list of a backend that an earlier agent wrote.
    pub(super) fn read(&mut self, backend: &Backend) -> Result<Sources, String> {
        let (start, count) = (backend.sources_start, backend.sources_count);
        let end = start.checked_add(count).filter(|end| *end <= maps::MAX_SOURCES);
        let end = end.ok_or_else(|| format!("sources {start} + {count}"))?;
        let mut addresses = Vec::new();
        let mut ports = (0, 0);
        for place in start..end {
            let source = self.map.get(&place, 0).map_err(|error| error.to_string())?;
            let address = ip_address(&source.address, source.family);
            addresses.push(address.ok_or_else(|| format!("source {place} is not in use"))?);
            ports = (source.port_low, source.port_high);
        }
        let sources = Sources::new(addresses, ports).map_err(|error| error.to_string())?;
        self.places.insert(sources.clone(), (start, count));
        Ok(sources)
    }

    /// Makes everything free that [`SourceTable::read`] has not seen.
    pub(super) fn settle(&mut self) {
        self.regions = Regions::new(maps::MAX_SOURCES, self.places.values().copied());
    }

    /// Where the list lies; it is written if it is nowhere yet. `in_use` are the lists that backends have.
    pub(super) fn place(
        &mut self,
        sources: &Sources,
        in_use: impl FnOnce() -> BTreeSet<Sources>,
    ) -> Result<Place, ApplyError> {
        if let Some(place) = self.places.get(sources) {
            return Ok(*place);
        }
        let count = sources.addresses.len() as u32;
        let start = match self.regions.take(count, Instant::now()) {
            Some(start) => start,
            None => {
                let in_use = in_use();
                self.places.retain(|known, _| in_use.contains(known));
                self.settle();
                self.regions
                    .take(count, Instant::now())
                    .ok_or_else(|| full(maps::SOURCES, maps::MAX_SOURCES))?
            }
        };
        for (place, address) in (start..).zip(&sources.addresses) {
            set(&mut self.map, maps::SOURCES, place, entry(*address, sources.ports))?;
        }
        self.places.insert(sources.clone(), (start, count));
        Ok((start, count))
    }
}

fn entry(address: IpAddr, (port_low, port_high): (u16, u16)) -> Source {
    let family = if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
    Source { address: address_bytes(address), port_low, port_high, family, reserved: [0; 3] }
}
