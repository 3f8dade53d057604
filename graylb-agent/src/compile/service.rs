//! Desired state → map image.

use std::collections::BTreeMap;

use super::{
    BackendImage, Image, PoolImage, Select, ServiceImage, SplitImage, pool_number, salt, slots,
    split_salt,
};
use crate::model::{
    spec::{BackendSpec, Endpoint, Name, PoolSpec, ServiceSpec},
    split::Share,
    state::{InForce, Split, State},
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

/// What the kernel is to hold for one service: of each pool the backends that take flows. When there is none in
/// the stable pool, what it holds of that already, which is the last set that was good; `None` when that is
/// nothing; an empty pool when the operator has drained all of it. A canary without any has no share, and clients with rules to such a pool are as others.
#[must_use]
pub fn compile_service(
    state: &State,
    name: &Name,
    service: &ServiceSpec,
    installed: &Image,
) -> Option<ServiceImage> {
    service_image(state, service, &state.split(name)?, installed, None)
}

/// The same after a forced change: pools of which nobody is up have all their backends in it.
#[must_use]
pub fn compile_forced(
    state: &State,
    name: &Name,
    service: &ServiceSpec,
    installed: &Image,
) -> Option<ServiceImage> {
    service_image(state, service, &state.split(name)?, installed, Some(Forced))
}

/// See [`compile_forced`].
#[derive(Clone, Copy)]
struct Forced;

fn service_image(
    state: &State,
    service: &ServiceSpec,
    split: &Split,
    installed: &Image,
    forced: Option<Forced>,
) -> Option<ServiceImage> {
    let endpoint = &service.endpoint;
    let image = |in_force: &InForce| {
        let mut takers: Vec<BackendSpec> = in_force.takers(state).copied().collect();
        if takers.is_empty() && forced.is_some() {
            takers.clone_from(&in_force.pool.backends);
        }
        let name = in_force.choice.to_string();
        (!takers.is_empty()).then(|| pool_image(endpoint, &name, &in_force.pool, &takers))
    };
    let stable = match image(&split.stable) {
        Some(stable) => stable,
        None if split.stable.is_drained(state) => {
            let name = split.stable.choice.to_string();
            pool_image(endpoint, &name, &split.stable.pool, &[])
        }
        None => last_good(state, split, &installed.get(endpoint)?.stable, endpoint),
    };
    let canary = split.canary.as_ref().filter(|(share, _)| *share > Share::NONE);
    let canary = canary.and_then(|(share, pool)| Some((*share, image(pool)?)));
    let places: BTreeMap<String, u32> =
        split.ruled.iter().map(|pool| pool.choice.to_string()).zip(0..).collect();
    let rules = split.rules.iter();
    Some(ServiceImage {
        salt: salt(endpoint),
        split: SplitImage {
            salt: split_salt(endpoint, service.split.salt.as_deref()),
            by: service.split.by,
            prefix: if endpoint.address.is_ipv4() {
                service.split.prefixes.v4
            } else {
                service.split.prefixes.v6
            },
        },
        canary,
        // A pool without takers keeps its place, so that the rules stay as they are.
        ruled: split
            .ruled
            .iter()
            .map(|pool| image(pool).unwrap_or_else(|| stable.clone()))
            .collect(),
        rules: rules
            .filter_map(|(client, choice)| Some((*client, *places.get(&choice.to_string())?)))
            .collect(),
        stable,
    })
}

/// The stable pool's last set that was good, without those of it that have been drained since, unless these are
/// all.
fn last_good(state: &State, split: &Split, last: &PoolImage, endpoint: &Endpoint) -> PoolImage {
    let name = split.stable.choice.to_string();
    let pool = &split.stable.pool;
    let left = pool.backends.iter().filter(|backend| {
        let there = last.backends.iter().any(|known| known.address == backend.address);
        there && backend.weight > 0 && !state.drained().contains(&name, backend.address)
    });
    let left: Vec<BackendSpec> = left.copied().collect();
    if last.pool != pool_number(&name) || left.is_empty() {
        return last.clone();
    }
    pool_image(endpoint, &name, pool, &left)
}

/// The image of a pool whose flows these of its backends share.
#[must_use]
pub fn pool_image(
    endpoint: &Endpoint,
    name: &str,
    pool: &PoolSpec,
    backends: &[BackendSpec],
) -> PoolImage {
    let balance = pool.balance;
    PoolImage {
        pool: pool_number(name),
        mode: pool.mode.clone(),
        select: Select::of(balance, endpoint.address.is_ipv4()),
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
            let pool = pool_image(&endpoint, "pool", &pool, backends);
            Image::from([(endpoint, ServiceImage::whole(salt(&endpoint), pool))])
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
