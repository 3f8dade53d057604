//! Backends → a Maglev table: which backend each hash leads to, so that each has its part and few hashes
//! move when a backend comes or goes.
//!
//! Population as in Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4: each backend has an order of its own in which it likes the slots, and they take turns, each
//! claiming the next slot that it likes and that is still free. Weights are turns: a backend of half the
//! heaviest one's weight takes every second one. All take the first, so that nobody is left without a slot.
//!
//! Nothing but addresses, ports, weights and the size goes in, not even the order of the backends: two agents
//! with the same config choose alike.

use std::net::{IpAddr, SocketAddr};

use graylb_common::hash;

use crate::model::balance::TableSize;

/// Seeds of the two hashes of a backend; any two different numbers do, as long as they never change.
const OFFSET_SEED: u32 = 0x6f66_6673;
const SKIP_SEED: u32 = 0x736b_6970;

/// A slot that nobody has claimed yet.
const FREE: u32 = u32::MAX;

/// Fills a table for backends of these addresses (none twice) and weights: each slot holds an index into
/// `backends`. Without any weight there are no slots.
#[must_use]
pub fn maglev(backends: &[(SocketAddr, u16)], size: TableSize) -> Vec<u32> {
    let mut takers: Vec<Taker> = backends
        .iter()
        .enumerate()
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(index, &(address, weight))| Taker {
            index: index as u32,
            address,
            weight: u64::from(weight),
            next_turn: 0,
            order: Order::new(address, size),
        })
        .collect();
    takers.sort_unstable_by_key(|taker| taker.address);
    let Some(heaviest) = takers.iter().map(|taker| taker.weight).max() else { return Vec::new() };
    let mut slots = vec![FREE; size.slots() as usize];
    let mut left = slots.len();
    // In each round the heaviest claims a slot at least.
    for round in 1..=u64::from(size.slots()) {
        for taker in &mut takers {
            if round * taker.weight < taker.next_turn {
                continue;
            }
            taker.next_turn += heaviest;
            if let Some(slot) = taker.order.find(|&slot| slots[slot as usize] == FREE) {
                slots[slot as usize] = taker.index;
                left -= 1;
            }
            if left == 0 {
                return slots;
            }
        }
    }
    slots
}

struct Taker {
    index: u32,
    address: SocketAddr,
    weight: u64,
    /// The next turn is in the first round whose number times the weight reaches this.
    next_turn: u64,
    order: Order,
}

/// The order in which a backend likes the slots: from a start in steps of one length, each slot once, since
/// the size is a prime.
struct Order {
    next: u32,
    skip: u32,
    size: u32,
    left: u32,
}

impl Order {
    fn new(address: SocketAddr, size: TableSize) -> Self {
        let size = size.slots();
        let identity = identity(address);
        Self {
            next: hash::words(OFFSET_SEED, &identity) % size,
            skip: hash::words(SKIP_SEED, &identity) % (size - 1) + 1,
            size,
            left: size,
        }
    }
}

impl Iterator for Order {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let slot = self.next;
        self.next = (slot + self.skip) % self.size;
        Some(slot)
    }
}

/// Who a backend is, for the hashes: its address (IPv4 in its IPv4-mapped form, RFC 4291, 2.5.5.2) as four
/// words, each little-endian, and its port.
pub(super) fn identity(address: SocketAddr) -> [u32; 5] {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let mut words = [0, 0, 0, 0, u32::from(address.port())];
    for (word, bytes) in words.iter_mut().zip(octets.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests;
