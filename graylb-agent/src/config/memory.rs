//! How large each map is to be, and about how much kernel memory that takes. Pure.

use graylb_common::{
    address::{Address, AddressKey},
    backend::{Active, Backend, BackendCounters, Source},
    flow::{Flow, FlowKey, HalfOpen},
    maps,
    service::{Route, Rule, RuleKey, Service, ServiceKey, Slot, Turn},
    verdict::ServiceDrops,
};

use super::{FlowsConfig, LimitsConfig};

type V4 = [u8; 4];
type V6 = [u8; 16];

/// A hash element's header (struct htab_elem, kernel/bpf/hashtab.c), in bytes.
const ELEMENT: usize = 48;
/// A trie node's header, in bytes.
const NODE: usize = 40;
/// A hash bucket; there are as many as entries, rounded up to a power of two.
const BUCKET: u64 = 16;

/// A map whose size is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSize {
    /// The map.
    pub name: &'static str,
    /// Entries that fit.
    pub entries: u32,
    kind: Kind,
}

/// How a map lies in memory, and bytes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Array(usize),
    PerCpuArray(usize),
    Hash(usize),
    Trie(usize),
}

impl MapSize {
    /// Whether it takes memory only as it is filled.
    #[must_use]
    pub const fn grows(&self) -> bool {
        matches!(self.kind, Kind::Trie(_))
    }

    /// About how much kernel memory it takes (full, if it grows) on a host with `cpus` possible CPUs, in bytes.
    #[must_use]
    pub const fn memory(&self, cpus: u64) -> u64 {
        let entries = self.entries as u64;
        match self.kind {
            // Nodes are made as rules are; at most two for each.
            Kind::Trie(bytes) => 2 * entries * bytes as u64,
            Kind::Array(bytes) => entries * bytes as u64,
            Kind::PerCpuArray(bytes) => entries * (bytes as u64 * cpus + size_of::<usize>() as u64),
            Kind::Hash(bytes) => {
                entries * bytes as u64 + self.entries.next_power_of_two() as u64 * BUCKET
            }
        }
    }
}

const fn array<V>(name: &'static str, entries: u32) -> MapSize {
    MapSize { name, entries, kind: Kind::Array(size_of::<V>().next_multiple_of(8)) }
}

const fn per_cpu_array<V>(name: &'static str, entries: u32) -> MapSize {
    MapSize { name, entries, kind: Kind::PerCpuArray(size_of::<V>().next_multiple_of(8)) }
}

const fn hash<K, V>(name: &'static str, entries: u32) -> MapSize {
    let bytes = ELEMENT + size_of::<K>().next_multiple_of(8) + size_of::<V>().next_multiple_of(8);
    MapSize { name, entries, kind: Kind::Hash(bytes) }
}

/// A trie's node: struct lpm_trie_node (kernel/bpf/lpm_trie.c), key and value.
const fn trie<K, V>(name: &'static str, entries: u32) -> MapSize {
    let bytes = NODE + size_of::<K>().next_multiple_of(8) + size_of::<V>().next_multiple_of(8);
    MapSize { name, entries, kind: Kind::Trie(bytes) }
}

/// Every map whose size is configured.
#[must_use]
pub fn map_sizes(flows: &FlowsConfig, limits: &LimitsConfig) -> Vec<MapSize> {
    vec![
        hash::<ServiceKey<V4>, Service>(maps::SERVICES_V4, limits.services),
        hash::<ServiceKey<V6>, Service>(maps::SERVICES_V6, limits.services),
        hash::<AddressKey<V4>, Address>(maps::ADDRESSES_V4, limits.services),
        hash::<AddressKey<V6>, Address>(maps::ADDRESSES_V6, limits.services),
        array::<Route>(maps::ROUTES, limits.routes),
        array::<Turn>(maps::TURNS, limits.routes),
        trie::<RuleKey<V4>, Rule>(maps::RULES_V4, limits.rules),
        trie::<RuleKey<V6>, Rule>(maps::RULES_V6, limits.rules),
        array::<Slot>(maps::SLOTS, limits.slots),
        array::<Backend>(maps::BACKENDS, limits.backends),
        per_cpu_array::<BackendCounters>(maps::BACKEND_STATS, limits.backends),
        array::<Active>(maps::ACTIVE, limits.backends),
        array::<Active>(maps::SOCKET_ACTIVE, limits.backends),
        per_cpu_array::<ServiceDrops>(maps::SERVICE_DROPS, limits.services * maps::IDS_PER_SERVICE),
        array::<Source>(maps::SOURCES, limits.sources),
        hash::<FlowKey<V4>, Flow<V4>>(maps::TCP_V4, flows.tcp),
        hash::<FlowKey<V6>, Flow<V6>>(maps::TCP_V6, flows.tcp),
        hash::<FlowKey<V4>, HalfOpen<V4>>(maps::HALF_OPEN_V4, flows.half_open),
        hash::<FlowKey<V6>, HalfOpen<V6>>(maps::HALF_OPEN_V6, flows.half_open),
        hash::<FlowKey<V4>, Flow<V4>>(maps::UDP_V4, flows.udp),
        hash::<FlowKey<V6>, Flow<V6>>(maps::UDP_V6, flows.udp),
    ]
}
