//! Route → place in its slots. All weighting is in the slots, which the agent fills; here they are only
//! indexed, by a counter, by a hash or at random.
//!
//! A place is below `slots_count`, which is not 0. Nothing is remembered of a choice but the flow itself: a
//! SYN that is sent again meets its half-open flow and is not chosen for anew, and under the hashes a later SYN
//! of the same tuple is led to the same slot.

use graylb_common::{
    hash,
    service::{Route, Service},
    verdict::Verdict,
};

use crate::{
    access::random,
    family::{Family, KeyOf},
    maps,
    select::Choice,
};

/// The next in turn.
#[inline(always)]
pub fn turn(route: &Route) -> Result<u32, Verdict> {
    let turn = maps::take_turn(route.turn).ok_or(Verdict::BadTable)?;
    Ok(turn.checked_rem(u64::from(route.slots_count)).unwrap_or(0) as u32)
}

/// By the client's tuple; the salt stands for its destination and protocol.
#[inline(always)]
pub fn tuple<Fam: Family>(key: &KeyOf<Fam>, service: &Service, route: &Route) -> u32 {
    let hash = hash::tuple(service.salt, &key.source, key.source_port);
    hash::place(hash, route.slots_count)
}

/// By the client's address, as far as it says who the client is.
#[inline(always)]
pub fn sticky<Fam: Family>(key: &KeyOf<Fam>, service: &Service, route: &Route) -> u32 {
    let hash = hash::client(service.salt, &key.source, route.prefix);
    hash::place(hash, route.slots_count)
}

/// Two at random, not the same where there are two.
#[inline(always)]
pub fn two(route: &Route) -> (u32, u32) {
    let count = route.slots_count;
    let first = hash::place(random(), count);
    let second = first + 1 + hash::place(random(), count.wrapping_sub(1));
    (first, if second < count { second } else { second.wrapping_sub(count) })
}

/// Of two backends the one with fewer active flows for its weight; the first where both are alike.
#[inline(always)]
pub fn less_busy(first: Choice, second: Choice) -> Choice {
    let (mine, other) = (second.backend.weight, first.backend.weight);
    if is_less_busy(second.index, mine, first.index, other) { second } else { first }
}

/// Whether a backend has fewer active flows for its weight than the other. A function of its own in the
/// kernel, so that its look-ups do not take from the stack of those who choose.
#[inline(never)]
fn is_less_busy(backend: u32, weight: u32, other: u32, other_weight: u32) -> bool {
    // Fractions are compared by cross-multiplication. Neither factor is over 32 bits.
    active(backend) * u64::from(other_weight) < active(other) * u64::from(weight)
}

/// A backend's active flows, at most what 32 bits hold.
#[inline(always)]
fn active(backend: u32) -> u64 {
    maps::active_flows(backend).map_or(0, |flows| flows.min(u64::from(u32::MAX)))
}
