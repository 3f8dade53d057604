//! What is known of links and neighbours, and what an event changes about it. No I/O.

use std::collections::{BTreeMap, HashMap};

use super::message::{Event, Link, Neighbour};
use crate::model::interfaces::Device;

/// Neighbours that are remembered; of any beyond them each word counts as a change.
const MAX_NEIGHBOURS: usize = 1 << 16;

/// What must be done about a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(super) struct Effect {
    /// A next hop that was looked up before may be another now.
    pub(super) next_hops: bool,
    /// The devices, or their names, are others.
    pub(super) devices: bool,
}

impl Effect {
    /// Anything may have changed.
    pub(super) const ALL: Self = Self { next_hops: true, devices: true };

    pub(super) const fn any(self) -> bool {
        self.next_hops || self.devices
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            next_hops: self.next_hops || other.next_hops,
            devices: self.devices || other.devices,
        }
    }
}

/// Links by index, and the MAC addresses by which neighbours are reached.
#[derive(Debug, Default)]
pub(super) struct Table {
    links: BTreeMap<u32, Link>,
    neighbours: HashMap<Neighbour, Vec<u8>>,
}

impl Table {
    /// Takes an event in.
    pub(super) fn take(&mut self, event: Event) -> Effect {
        match event {
            Event::Link(link) => self.link(link),
            Event::LinkGone(index) => {
                self.neighbours.retain(|neighbour, _| neighbour.link != index);
                let known = self.links.remove(&index).is_some();
                Effect { next_hops: known, devices: known }
            }
            Event::Neighbour(neighbour, address) => {
                Effect { next_hops: self.neighbour(neighbour, address), devices: false }
            }
            Event::Routes => Effect { next_hops: true, devices: false },
            Event::Done | Event::Refused(_) => Effect::default(),
        }
    }

    fn link(&mut self, link: Link) -> Effect {
        match self.links.insert(link.device.index, link.clone()) {
            Some(old) if old == link => Effect::default(),
            Some(old) => Effect { next_hops: true, devices: old.device != link.device },
            None => Effect::ALL,
        }
    }

    /// Whether a packet that was sent to the neighbour as known before would go astray now. One that was
    /// unknown, or out of reach, has led to no next hop that somebody could still use; and whether the
    /// kernel has heard of the neighbour lately (REACHABLE, STALE, ...) changes nothing.
    fn neighbour(&mut self, neighbour: Neighbour, address: Option<Vec<u8>>) -> bool {
        let Some(address) = address else {
            return self.neighbours.remove(&neighbour).is_some() || self.is_full();
        };
        if self.is_full() && !self.neighbours.contains_key(&neighbour) {
            return true;
        }
        let old = self.neighbours.insert(neighbour, address.clone());
        old.is_some_and(|old| old != address)
    }

    fn is_full(&self) -> bool {
        self.neighbours.len() >= MAX_NEIGHBOURS
    }

    /// The devices that there are.
    pub(super) fn devices(&self) -> Vec<Device> {
        self.links.values().map(|link| link.device.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            device: Device { index, name: name.into(), loopback: false, kind: None },
            flags: 1,
            mtu: 1500,
            master: 0,
            address: vec![2, 0, 0, 0, 0, 1],
        }
    }

    fn neighbour(last: u8, address: Option<u8>) -> Event {
        let neighbour = Neighbour { link: 2, address: [10, 0, 0, last].into() };
        Event::Neighbour(neighbour, address.map(|a| vec![2, 0, 0, 0, 0, a]))
    }

    const NOTHING: Effect = Effect { next_hops: false, devices: false };
    const HOPS: Effect = Effect { next_hops: true, devices: false };

    #[test]
    fn links_count_when_they_change() {
        let mut table = Table::default();
        assert_eq!(table.take(Event::Link(link(2, "eth0"))), Effect::ALL);
        assert_eq!(table.take(Event::Link(link(2, "eth0"))), NOTHING);
        assert_eq!(table.take(Event::Link(Link { flags: 0, ..link(2, "eth0") })), HOPS);
        assert_eq!(table.take(Event::Link(Link { mtu: 9000, ..link(2, "eth0") })), HOPS);
        assert_eq!(table.take(Event::Link(link(2, "wan"))), Effect::ALL);
        assert_eq!(table.take(Event::Link(link(3, "eth0"))), Effect::ALL);
        assert_eq!(table.devices().len(), 2);
        assert_eq!(table.take(Event::LinkGone(2)), Effect::ALL);
        assert_eq!(table.take(Event::LinkGone(2)), NOTHING);
        assert_eq!(table.devices(), [link(3, "eth0").device]);
    }

    #[test]
    fn neighbours_count_when_their_address_changes() {
        let mut table = Table::default();
        for (event, effect) in [
            (neighbour(1, None), NOTHING),
            (neighbour(1, Some(7)), NOTHING),
            (neighbour(1, Some(7)), NOTHING),
            (neighbour(1, Some(8)), HOPS),
            (neighbour(2, Some(8)), NOTHING),
            (neighbour(1, None), HOPS),
            (neighbour(1, None), NOTHING),
            (neighbour(1, Some(9)), NOTHING),
        ] {
            assert_eq!(table.take(event.clone()), effect, "{event:?}");
        }
        assert_eq!(table.take(Event::Routes), HOPS);
        assert_eq!(table.take(Event::LinkGone(2)), NOTHING);
        assert_eq!(table.neighbours.len(), 0);
    }

    #[test]
    fn more_neighbours_than_are_remembered_are_all_suspect() {
        let mut table = Table::default();
        for number in 0..=MAX_NEIGHBOURS as u32 {
            let neighbour = Neighbour { link: 2, address: std::net::Ipv4Addr::from(number).into() };
            let effect = table.take(Event::Neighbour(neighbour, Some(vec![1])));
            assert_eq!(effect.next_hops, number as usize == MAX_NEIGHBOURS, "{number}");
        }
        assert_eq!(table.neighbours.len(), MAX_NEIGHBOURS);
    }
}
