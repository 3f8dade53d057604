//! Desired state → map image.

use super::{BackendImage, Image, ServiceImage, pool_number, round_robin};
use crate::model::{
    spec::{BackendSpec, Mode, Name, ServiceSpec},
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
    Some(image(&in_force.choice.to_string(), &in_force.pool.mode, &takers))
}

/// The image of a pool with these backends.
#[must_use]
pub(crate) fn image(pool: &str, mode: &Mode, backends: &[BackendSpec]) -> ServiceImage {
    let weights: Vec<u16> = backends.iter().map(|backend| backend.weight).collect();
    ServiceImage {
        pool: pool_number(pool),
        mode: mode.clone(),
        backends: backends
            .iter()
            .map(|backend| BackendImage { address: backend.address, weight: backend.weight })
            .collect(),
        slots: round_robin(&weights),
    }
}
