//! Client rules in the maps: sets by number, one trie for each address family.
//!
//! A set is written aside under a number that no service has, and in force once the service's entry names it. A
//! set that is in force no more rests before it is removed, see [`super::regions`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, MapError, lpm_trie::Key},
};
use graylb_common::{
    maps,
    service::{ROUTE_RULES, RULE_SET_BITS, Rule, RuleKey},
};

use super::{
    ApplyError,
    numbers::Numbers,
    regions::REST,
    tables::{full, read_error, take, write_error},
};
use crate::model::split::Cidr;

/// Clients and the places of their pools among those that rules lead to.
type Places = BTreeMap<Cidr, u32>;

/// Both tries, and which numbers are free.
pub(super) struct RuleTable {
    v4: LpmTrie<MapData, RuleKey<[u8; 4]>, Rule>,
    v6: LpmTrie<MapData, RuleKey<[u8; 16]>, Rule>,
    numbers: Numbers,
    /// In force no more, oldest first: since when, number, clients.
    resting: VecDeque<(Instant, u32, Vec<Cidr>)>,
}

/// Numbers of rule sets; 0 stands for none.
const MAX_SETS: u32 = 1 << 20;

impl RuleTable {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        Ok(Self {
            v4: take(ebpf, maps::RULES_V4)?,
            v6: take(ebpf, maps::RULES_V6)?,
            numbers: Numbers::new(MAX_SETS, &BTreeSet::from([0])),
            resting: VecDeque::new(),
        })
    }

    /// Reads every set.
    pub(super) fn read(&self) -> Result<BTreeMap<u32, Places>, ApplyError> {
        let mut sets: BTreeMap<u32, Places> = BTreeMap::new();
        let mut add = |number, address: IpAddr, bits: u32, rule: Rule| {
            let prefix = bits.saturating_sub(RULE_SET_BITS) as u8;
            if let Some(place) = rule.route.checked_sub(ROUTE_RULES) {
                sets.entry(number).or_default().insert(Cidr::covering(address, prefix), place);
            }
        };
        for item in self.v4.iter() {
            let (key, rule) = item.map_err(|error| read_error(maps::RULES_V4, error))?;
            add(key.data().rules, key.data().address.into(), key.prefix_len(), rule);
        }
        for item in self.v6.iter() {
            let (key, rule) = item.map_err(|error| read_error(maps::RULES_V6, error))?;
            add(key.data().rules, key.data().address.into(), key.prefix_len(), rule);
        }
        Ok(sets)
    }

    /// Notes which sets an earlier agent left in force, and removes the others.
    pub(super) fn reconcile(
        &mut self,
        sets: BTreeMap<u32, Places>,
        in_force: &BTreeSet<u32>,
    ) -> Result<(), ApplyError> {
        for (number, places) in sets {
            if !in_force.contains(&number) {
                self.remove(number, places.into_keys())?;
            }
        }
        self.numbers = Numbers::new(MAX_SETS, &in_force.iter().copied().chain([0]).collect());
        Ok(())
    }

    /// Writes a set; its number is 0 if it is empty.
    pub(super) fn put(&mut self, places: &Places) -> Result<u32, ApplyError> {
        self.remove_rested()?;
        if places.is_empty() {
            return Ok(0);
        }
        let number = self.numbers.take().ok_or_else(|| ApplyError::text("no number for rules"))?;
        for (client, place) in places {
            if let Err(error) = self.insert(number, *client, Rule { route: ROUTE_RULES + place }) {
                self.retire(number, places.keys().copied());
                return Err(error);
            }
        }
        Ok(number)
    }

    fn insert(&mut self, rules: u32, client: Cidr, rule: Rule) -> Result<(), ApplyError> {
        let bits = RULE_SET_BITS + u32::from(client.prefix());
        let (name, result) = match client.address() {
            IpAddr::V4(ip) => {
                let key = Key::new(bits, RuleKey { rules, address: ip.octets() });
                (maps::RULES_V4, self.v4.insert(&key, rule, 0))
            }
            IpAddr::V6(ip) => {
                let key = Key::new(bits, RuleKey { rules, address: ip.octets() });
                (maps::RULES_V6, self.v6.insert(&key, rule, 0))
            }
        };
        result.map_err(|error| match &error {
            MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::ENOSPC) => {
                full(name, maps::DEFAULT_RULES, "limits.rules")
            }
            _ => write_error(name, error),
        })
    }

    /// Has a set removed that is in force no more.
    pub(super) fn retire(&mut self, number: u32, clients: impl Iterator<Item = Cidr>) {
        if number != 0 {
            self.resting.push_back((Instant::now(), number, clients.collect()));
        }
    }

    fn remove_rested(&mut self) -> Result<(), ApplyError> {
        while let Some((since, ..)) = self.resting.front()
            && since.elapsed() >= REST
            && let Some((_, number, clients)) = self.resting.pop_front()
        {
            self.remove(number, clients)?;
            self.numbers.give_back(number);
        }
        Ok(())
    }

    fn remove(
        &mut self,
        rules: u32,
        clients: impl IntoIterator<Item = Cidr>,
    ) -> Result<(), ApplyError> {
        for client in clients {
            let bits = RULE_SET_BITS + u32::from(client.prefix());
            let (name, result) = match client.address() {
                IpAddr::V4(ip) => {
                    let key = Key::new(bits, RuleKey { rules, address: ip.octets() });
                    (maps::RULES_V4, self.v4.remove(&key))
                }
                IpAddr::V6(ip) => {
                    let key = Key::new(bits, RuleKey { rules, address: ip.octets() });
                    (maps::RULES_V6, self.v6.remove(&key))
                }
            };
            match result {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                // A set that was put by halves has clients that are not there.
                Err(MapError::SyscallError(call))
                    if call.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(write_error(name, error)),
            }
        }
        Ok(())
    }
}
