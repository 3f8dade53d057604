//! The table: balanced, the same for everybody, and little disturbed when a backend leaves.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn addresses(count: usize) -> Vec<SocketAddr> {
    (0..count)
        .map(|n| SocketAddr::new([10, 0, (n / 250) as u8, (n % 250) as u8].into(), 80))
        .collect()
}

fn equal(count: usize) -> Vec<(SocketAddr, u16)> {
    addresses(count).into_iter().map(|address| (address, 1)).collect()
}

fn size(slots: u32) -> TableSize {
    TableSize::new(slots).expect("a prime")
}

/// Who takes each slot, by address.
fn takers(backends: &[(SocketAddr, u16)], size: TableSize) -> Vec<SocketAddr> {
    maglev(backends, size).into_iter().map(|slot| backends[slot as usize].0).collect()
}

fn counts(slots: &[u32], backends: usize) -> Vec<u32> {
    let mut counts = vec![0; backends];
    slots.iter().for_each(|&slot| counts[slot as usize] += 1);
    counts
}

/// Of the slots that need not move when backend `gone` leaves, how many do, and how many there are.
fn disruption(backends: &[(SocketAddr, u16)], gone: usize, size: TableSize) -> (usize, usize) {
    let before = takers(backends, size);
    let leaver = backends[gone].0;
    let mut others = backends.to_vec();
    others.remove(gone);
    let after = takers(&others, size);
    let kept = before.iter().zip(&after).filter(|(before, _)| **before != leaver);
    let moved = kept.clone().filter(|(before, after)| before != after).count();
    (moved, kept.count())
}

/// Tables are the same on every agent of every version; one that changed would move clients at an upgrade. The
/// numbers come from a second implementation, written from the paper and the module's text.
#[test]
fn a_table_never_changes() {
    let slots = maglev(&equal(5), size(503));
    assert_eq!(slots[..12], [0, 1, 2, 2, 0, 1, 0, 3, 1, 2, 0, 4]);
    assert_eq!(hash::words(0, &slots), 1_242_441_698);
    let weighted: Vec<_> = addresses(5).into_iter().zip(1..).collect();
    let slots = maglev(&weighted, size(503));
    assert_eq!(slots[..12], [3, 1, 2, 4, 3, 1, 3, 3, 1, 2, 3, 4]);
    assert_eq!(hash::words(0, &slots), 890_581_636);
}

#[test]
fn nobody_no_slots() {
    assert_eq!(maglev(&[], TableSize::DEFAULT), [0_u32; 0]);
    let idle: Vec<_> = addresses(3).into_iter().map(|address| (address, 0)).collect();
    assert_eq!(maglev(&idle, TableSize::DEFAULT), [0_u32; 0]);
    let mut one = idle;
    one[1].1 = 1;
    assert_eq!(maglev(&one, TableSize::DEFAULT), [1; TableSize::DEFAULT.slots() as usize]);
}

#[test]
fn the_largest_pool_fits() {
    let backends = equal(655);
    let counts = counts(&maglev(&backends, size(TableSize::MAX)), backends.len());
    assert_eq!((counts.iter().min(), counts.iter().max()), (Some(&100), Some(&101)));
}

#[test]
fn a_light_backend_has_a_slot() {
    let mut backends: Vec<_> = addresses(40).into_iter().map(|address| (address, 1000)).collect();
    backends[7].1 = 1;
    assert_eq!(counts(&maglev(&backends, TableSize::DEFAULT), 40)[7], 1);
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|ip| IpAddr::V4(ip.into())),
        any::<u128>().prop_map(|ip| IpAddr::V6(ip.into())),
    ];
    (ip, 1..=u16::MAX).prop_map(SocketAddr::from)
}

/// Backends with weights from `from` on; no address twice.
fn pool(from: u16) -> impl Strategy<Value = Vec<(SocketAddr, u16)>> {
    let backend = (any_address(), from..=20);
    proptest::collection::vec(backend, 1..=40).prop_map(|mut backends| {
        let mut seen = BTreeSet::new();
        backends.retain(|(address, _)| seen.insert(*address));
        backends
    })
}

proptest! {
    #[test]
    fn an_order_is_a_permutation(
        address in any_address(),
        slots in prop_oneof![Just(101), Just(4099), Just(16_381)],
    ) {
        let mut order: Vec<u32> = Order::new(address, size(slots)).collect();
        order.sort_unstable();
        prop_assert!(order.into_iter().eq(0..slots));
    }

    /// The paper's bound: with a hundred slots each, equal backends differ by 1 % at most.
    #[test]
    fn equal_backends_have_equal_parts(backends in pool(1)) {
        let backends: Vec<_> = backends.into_iter().map(|(address, _)| (address, 1)).collect();
        let counts = counts(&maglev(&backends, TableSize::DEFAULT), backends.len());
        let (min, max) = (counts.iter().min().copied(), counts.iter().max().copied());
        prop_assert!(max <= min.map(|min| min + 1), "{:?} to {:?}", min, max);
        prop_assert!(min.is_some_and(|min| min >= 100));
    }

    /// A backend's slots are within one turn of each backend of what its weight says.
    #[test]
    fn weights_are_respected(backends in pool(0)) {
        let total: u32 = backends.iter().map(|(_, weight)| u32::from(*weight)).sum();
        prop_assume!(total > 0);
        let counts = counts(&maglev(&backends, TableSize::DEFAULT), backends.len());
        for ((_, weight), count) in backends.iter().zip(counts) {
            let part = f64::from(*weight) / f64::from(total);
            let share = f64::from(TableSize::DEFAULT.slots()) * part;
            let turns = 1.0 + backends.len() as f64 * part;
            prop_assert!((f64::from(count) - share).abs() <= turns, "{count} of {share}");
            prop_assert_eq!(count == 0, *weight == 0);
        }
    }

    /// Another agent may list the same backends in another order.
    #[test]
    fn two_agents_choose_alike(
        (one, other) in pool(0).prop_flat_map(|pool| (Just(pool.clone()), Just(pool).prop_shuffle())),
    ) {
        let size = size(1009);
        prop_assert_eq!(takers(&one, size), takers(&other, size));
    }

    /// docs/balancing.md has what is typical, 2 to 3 % for many backends. Some sets of addresses are less
    /// lucky with their permutations: a search for bad ones found 11 %.
    #[test]
    fn few_move_when_one_leaves(backends in pool(1), gone: proptest::sample::Index) {
        prop_assume!(backends.len() > 1);
        let backends: Vec<_> = backends.into_iter().map(|(address, _)| (address, 1)).collect();
        let (moved, kept) = disruption(&backends, gone.index(backends.len()), TableSize::DEFAULT);
        prop_assert!(moved * 100 <= kept * 25, "{moved} of {kept}");
    }
}

/// Prints docs/balancing.md's table: `cargo test -p graylb-agent measure_disruption -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and asserts nothing"]
fn measure_disruption() {
    for slots in [1009, 4099, 16_381, 65_521] {
        for count in [2, 3, 5, 10, 20, 40, 100, 400] {
            if size(slots).check_backends(count).is_err() {
                continue;
            }
            let backends = equal(count);
            let leavers = count.min(40);
            let shares: Vec<f64> = (0..leavers)
                .map(|gone| {
                    let (moved, kept) = disruption(&backends, gone, size(slots));
                    100.0 * moved as f64 / kept as f64
                })
                .collect();
            let mean = shares.iter().sum::<f64>() / leavers as f64;
            let worst = shares.iter().copied().fold(0.0, f64::max);
            let start = std::time::Instant::now();
            let counts = counts(&maglev(&backends, size(slots)), count);
            let took = start.elapsed();
            let spread = counts.iter().max().zip(counts.iter().min());
            println!(
                "{slots} slots, {count} backends: {mean:.2} % move, {worst:.2} % at worst; parts {spread:?}; filled in {took:.1?}"
            );
        }
    }
}
