//! Service and client → route: which of the service's pools a new flow goes to.
//!
//! A client rule decides, the longest one; else the client's bucket, which is the canary's below the share. So
//! a share that grows only adds clients, one that shrinks takes the newest away, and every graylb agrees. A share on
//! a lease that has run out is none.

use graylb_common::{
    hash,
    service::{ROUTE_CANARY, ROUTE_STABLE, Route, SPLIT_FLOW, Service},
};

use crate::{
    access::now_ns,
    family::{Family, KeyOf},
    maps,
};

/// The route of a new flow with this key; `None` where the table has none.
#[inline(always)]
pub fn route<Fam: Family>(key: &KeyOf<Fam>, service: &Service) -> Option<&'static Route> {
    let whole = service.rules == 0 && service.share == 0;
    let place = if whole { ROUTE_STABLE } else { place::<Fam>(key, service) };
    maps::route(service.routes.wrapping_add(place))
}

/// The place of the route among the service's.
#[inline(always)]
fn place<Fam: Family>(key: &KeyOf<Fam>, service: &Service) -> u32 {
    if service.rules != 0
        && let Some(route) = maps::ruled(Fam::rules(), service.rules, &key.source)
    {
        return route;
    }
    let port = if service.split_by == SPLIT_FLOW { Some(key.source_port) } else { None };
    let bucket = hash::bucket(service.split_salt, &key.source, service.split_prefix, port);
    if bucket < u32::from(service.share) && !lapsed(service) { ROUTE_CANARY } else { ROUTE_STABLE }
}

/// Whether the agent has not renewed the share in time: it is dead, or hangs, and watches no rollout.
#[inline(always)]
fn lapsed(service: &Service) -> bool {
    service.lease_ns != 0 && now_ns() > service.lease_ns
}
