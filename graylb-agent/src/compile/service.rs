//! Desired state → map image.

use super::{BackendImage, Image, Select, ServiceImage, pool_number, salt, slots};
use crate::model::{
    balance::Balance,
    spec::{BackendSpec, Endpoint, Name, ServiceSpec},
    state::State,
};

/// What the kernel is to hold for all services, given what it holds.
#[must_use]
pub fn compile(state: &State, installed: &Image) -> Image {
    let services = state.spec().services.iter();
    services
        .filter_map(|(name, service)| {
            Some((service.endpoint, compile_service(state, name, service, installed)?))
        })
        .collect()
}

/// What the kernel is to hold for one service: the backends that take flows; when there is none, what it
/// holds already, which is the last set that was good; `None` when that is nothing.
#[must_use]
pub fn compile_service(
    state: &State,
    name: &Name,
    service: &ServiceSpec,
    installed: &Image,
) -> Option<ServiceImage> {
    let in_force = state.in_force(name)?;
    let takers: Vec<BackendSpec> = in_force.takers(state).copied().collect();
    if takers.is_empty() {
        return installed.get(&service.endpoint).cloned();
    }
    let pool = in_force.choice.to_string();
    Some(image(&service.endpoint, &pool, in_force.pool.balance, &takers))
}

/// The image of a service whose flows these backends of a pool share.
#[must_use]
pub fn image(
    endpoint: &Endpoint,
    pool: &str,
    balance: Balance,
    backends: &[BackendSpec],
) -> ServiceImage {
    ServiceImage {
        pool: pool_number(pool),
        select: Select::of(balance, endpoint.address.is_ipv4()),
        salt: salt(endpoint),
        backends: backends
            .iter()
            .map(|backend| BackendImage { address: backend.address, weight: backend.weight })
            .collect(),
        slots: slots(balance, backends),
    }
}
