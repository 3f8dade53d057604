//! Services in the maps: an endpoint's key and entry, one map for each address family.

use std::net::IpAddr;

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use graylb_common::{
    maps,
    service::{Service, ServiceKey},
};

use super::{
    ApplyError,
    addresses::AddressMaps,
    layout::{endpoint, key},
    tables::{read_error, take, write_error},
};
use crate::model::spec::Endpoint;

type Services<A> = HashMap<MapData, ServiceKey<A>, Service>;

/// The maps that packets' destinations are looked up in.
pub(super) struct ServiceMaps {
    v4: Services<[u8; 4]>,
    v6: Services<[u8; 16]>,
    addresses: AddressMaps,
}

impl ServiceMaps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        Ok(Self {
            v4: take(ebpf, maps::SERVICES_V4)?,
            v6: take(ebpf, maps::SERVICES_V6)?,
            addresses: AddressMaps::take(ebpf)?,
        })
    }

    /// Every service.
    pub(super) fn read(&self) -> Result<Vec<(Endpoint, Service)>, ApplyError> {
        let mut services = Vec::new();
        for item in self.v4.iter() {
            let (key, entry) = item.map_err(|error| read_error(maps::SERVICES_V4, error))?;
            services
                .extend(endpoint(key.address.into(), key.port, key.protocol).map(|e| (e, entry)));
        }
        for item in self.v6.iter() {
            let (key, entry) = item.map_err(|error| read_error(maps::SERVICES_V6, error))?;
            services
                .extend(endpoint(key.address.into(), key.port, key.protocol).map(|e| (e, entry)));
        }
        Ok(services)
    }

    /// Makes the addresses those of these services.
    pub(super) fn reconcile_addresses<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Endpoint>,
    ) -> Result<(), ApplyError> {
        self.addresses.reconcile(services)
    }

    /// Puts a service in force, in place of what it was before.
    pub(super) fn write(&mut self, endpoint: &Endpoint, entry: Service) -> Result<(), ApplyError> {
        match endpoint.address.ip() {
            IpAddr::V4(ip) => self
                .v4
                .insert(key(ip.octets(), endpoint), entry, 0)
                .map_err(|error| write_error(maps::SERVICES_V4, error)),
            IpAddr::V6(ip) => self
                .v6
                .insert(key(ip.octets(), endpoint), entry, 0)
                .map_err(|error| write_error(maps::SERVICES_V6, error)),
        }?;
        self.addresses.add(endpoint)
    }

    /// Takes a service out, if it is there.
    pub(super) fn remove(&mut self, endpoint: &Endpoint) -> Result<(), ApplyError> {
        let removed = match endpoint.address.ip() {
            IpAddr::V4(ip) => self.v4.remove(&key(ip.octets(), endpoint)),
            IpAddr::V6(ip) => self.v6.remove(&key(ip.octets(), endpoint)),
        };
        match removed {
            Ok(()) | Err(MapError::KeyNotFound) => self.addresses.remove(endpoint),
            Err(error) => Err(ApplyError::new(format!("cannot remove service {endpoint}"), error)),
        }
    }
}
