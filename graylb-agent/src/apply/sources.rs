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
    backend::{Backend, FAMILY_V4, FAMILY_V6, MODE_DSR, MODE_IPIP, MODE_NAT, MODE_SNAT, Source},
    maps,
};

use super::{
    ApplyError,
    layout::{address_bytes, ip_address},
    regions::Regions,
    tables::{full, set, take},
};
use crate::model::mode::{Mode, Sources};

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
        let map: Array<MapData, Source> = take(ebpf, maps::SOURCES)?;
        let regions = Regions::new(map.len(), []);
        Ok(Self { map, places: BTreeMap::new(), regions })
    }

    /// Reads the mode of a backend that an earlier agent wrote.
    pub(super) fn mode(&mut self, backend: &Backend) -> Result<Mode, String> {
        match backend.mode {
            MODE_NAT => Ok(Mode::Nat),
            MODE_SNAT => self.read(backend).map(Mode::Snat),
            MODE_DSR => Ok(Mode::Dsr),
            MODE_IPIP => self.read(backend).map(Mode::Ipip),
            other => Err(format!("a backend has mode {other}")),
        }
    }

    /// Reads its list.
    fn read(&mut self, backend: &Backend) -> Result<Sources, String> {
        let (start, count) = (backend.sources_start, backend.sources_count);
        let end = start.checked_add(count).filter(|end| *end <= self.map.len());
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

    /// Makes everything free but these places.
    pub(super) fn settle(&mut self, in_use: &BTreeSet<Place>) {
        let size = self.map.len();
        let inside = |(start, count): &Place| start.checked_add(*count).is_some_and(|e| e <= size);
        self.places.retain(|_, place| in_use.contains(place));
        self.regions = Regions::new(size, in_use.iter().copied().filter(inside));
    }

    /// Where the list lies; it is written if it is nowhere yet. `in_use` are the places of lists that
    /// backends have.
    pub(super) fn place(
        &mut self,
        sources: &Sources,
        in_use: impl FnOnce() -> Result<BTreeSet<Place>, ApplyError>,
    ) -> Result<Place, ApplyError> {
        if let Some(place) = self.places.get(sources) {
            return Ok(*place);
        }
        let count = sources.addresses.len() as u32;
        let start = match self.regions.take(count, Instant::now()) {
            Some(start) => start,
            None => {
                self.settle(&in_use()?);
                self.regions
                    .take(count, Instant::now())
                    .ok_or_else(|| full(maps::SOURCES, self.map.len(), "limits.sources"))?
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
