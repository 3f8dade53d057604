//! Desired state → map image.

use super::{BackendImage, Image, Select, ServiceImage, pool_number, salt, slots};
use crate::model::{
    spec::{BackendSpec, Endpoint, Name, PoolSpec, ServiceSpec},
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
    Some(image(&service.endpoint, &in_force.choice.to_string(), &in_force.pool, &takers))
}

/// The image of a service whose flows these backends of a pool share.
#[must_use]
pub fn image(
    endpoint: &Endpoint,
    name: &str,
    pool: &PoolSpec,
    backends: &[BackendSpec],
) -> ServiceImage {
    let balance = pool.balance;
    ServiceImage {
        pool: pool_number(name),
        mode: pool.mode.clone(),
        select: Select::of(balance, endpoint.address.is_ipv4()),
        salt: salt(endpoint),
        backends: backends
            .iter()
            .map(|backend| BackendImage { address: backend.address, weight: backend.weight })
            .collect(),
        slots: slots(balance, backends),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::diff,
        model::{
            balance::{Balance, Prefixes, TableSize},
            mode::Mode,
            spec::Protocol,
        },
    };

    /// Another way to choose is a change, though backends and weights stay; the same way is none.
    #[test]
    fn a_changed_balance_is_a_change() {
        let endpoint = Endpoint {
            address: "192.0.2.10:80".parse().expect("address"),
            protocol: Protocol::Tcp,
        };
        let backend =
            |text: &str| BackendSpec { address: text.parse().expect("address"), weight: 2 };
        let backends = [backend("198.51.100.1:80"), backend("198.51.100.2:80")];
        let size = TableSize::DEFAULT;
        let sticky = |v4, v6| Balance::Sticky { size, prefixes: Prefixes { v4, v6 } };
        let image_of = |balance, backends: &[BackendSpec]| {
            let pool = PoolSpec::new(backends.to_vec(), Mode::Nat, None).expect("pool");
            let pool = pool.balanced(balance).expect("table");
            Image::from([(endpoint, image(&endpoint, "pool", &pool, backends))])
        };
        let balances = [
            Balance::RoundRobin,
            Balance::LeastConnections,
            Balance::Maglev { size },
            sticky(32, 128),
            sticky(24, 128),
        ];
        for (place, &balance) in balances.iter().enumerate() {
            let installed = image_of(balance, &backends);
            for (other, &wanted) in balances.iter().enumerate() {
                let changes = diff(&installed, &image_of(wanted, &backends)).len();
                assert_eq!(changes, usize::from(place != other), "{balance:?} to {wanted:?}");
            }
        }
        let [a, b] = backends;
        let listed_otherwise = image_of(sticky(24, 128), &[b, a]);
        assert_eq!(diff(&image_of(sticky(24, 128), &[a, b]), &listed_otherwise), []);
        assert_eq!(diff(&image_of(sticky(24, 64), &[a, b]), &listed_otherwise), [], "IPv4 here");
    }
}
