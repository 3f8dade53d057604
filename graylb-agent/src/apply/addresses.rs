//! Virtual addresses in the maps: those that services in force are at, one map for each address family.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use graylb_common::{
    address::{Address, AddressKey},
    maps,
};

use super::{
    ApplyError,
    tables::{read_error, take, write_error},
};
use crate::model::spec::Endpoint;

type Addresses<A> = HashMap<MapData, AddressKey<A>, Address>;

/// The maps, and what is in them.
pub(super) struct AddressMaps {
    v4: Addresses<[u8; 4]>,
    v6: Addresses<[u8; 16]>,
    services: BTreeMap<IpAddr, BTreeSet<Endpoint>>,
}

impl AddressMaps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        Ok(Self {
            v4: take(ebpf, maps::ADDRESSES_V4)?,
            v6: take(ebpf, maps::ADDRESSES_V6)?,
            services: BTreeMap::new(),
        })
    }

    /// A service is at its address.
    pub(super) fn add(&mut self, endpoint: &Endpoint) -> Result<(), ApplyError> {
        let ip = endpoint.address.ip();
        let mut services = self.services.get(&ip).cloned().unwrap_or_default();
        if services.insert(*endpoint) {
            self.write(ip, services.len())?;
            self.services.insert(ip, services);
        }
        Ok(())
    }

    /// A service is there no longer.
    pub(super) fn remove(&mut self, endpoint: &Endpoint) -> Result<(), ApplyError> {
        let ip = endpoint.address.ip();
        let Some(services) = self.services.get_mut(&ip) else { return Ok(()) };
        services.remove(endpoint);
        let left = services.len();
        if left > 0 {
            return self.write(ip, left);
        }
        self.services.remove(&ip);
        self.erase(ip)
    }

    /// Makes the maps what these services ask for, whatever they held.
    pub(super) fn reconcile<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Endpoint>,
    ) -> Result<(), ApplyError> {
        self.services.clear();
        for endpoint in services {
            self.services.entry(endpoint.address.ip()).or_default().insert(*endpoint);
        }
        for ip in self.held()? {
            if !self.services.contains_key(&ip) {
                self.erase(ip)?;
            }
        }
        let wanted: Vec<_> = self.services.iter().map(|(ip, all)| (*ip, all.len())).collect();
        wanted.into_iter().try_for_each(|(ip, services)| self.write(ip, services))
    }

    fn held(&self) -> Result<Vec<IpAddr>, ApplyError> {
        let mut held = Vec::new();
        for key in self.v4.keys() {
            held.push(key.map_err(|error| read_error(maps::ADDRESSES_V4, error))?.address.into());
        }
        for key in self.v6.keys() {
            held.push(key.map_err(|error| read_error(maps::ADDRESSES_V6, error))?.address.into());
        }
        Ok(held)
    }

    fn write(&mut self, ip: IpAddr, services: usize) -> Result<(), ApplyError> {
        let value = Address { services: services as u32 };
        match ip {
            IpAddr::V4(ip) => self
                .v4
                .insert(AddressKey { address: ip.octets() }, value, 0)
                .map_err(|error| write_error(maps::ADDRESSES_V4, error)),
            IpAddr::V6(ip) => self
                .v6
                .insert(AddressKey { address: ip.octets() }, value, 0)
                .map_err(|error| write_error(maps::ADDRESSES_V6, error)),
        }
    }

    fn erase(&mut self, ip: IpAddr) -> Result<(), ApplyError> {
        let erased = match ip {
            IpAddr::V4(ip) => self.v4.remove(&AddressKey { address: ip.octets() }),
            IpAddr::V6(ip) => self.v6.remove(&AddressKey { address: ip.octets() }),
        };
        match erased {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(ApplyError::new(format!("cannot remove address {ip}"), error)),
        }
    }
}
