//! Map access: the maps, and the only place that follows pointers into them.
//!
//! Entries are shared with other CPUs and with the agent without locks. What is written here is either
//! one aligned word whose lost update does no harm (`last_seen_ns`, state bits), a per-CPU counter, or
//! a whole entry by the kernel's own update.

use crate::access::{FibParams, empty_fib_params};
use core::ptr::NonNull;

use aya_ebpf::{
    Global,
    bindings::BPF_ANY,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use graylb_common::{
    address::{Address, AddressKey},
    backend::{Active, Backend, BackendCounters, Source},
    flow::{Flow, FlowKey, HalfOpen, NextHop},
    fragment::{FragmentKey, Fragmented},
    maps::{
        DEFAULT_BACKENDS, DEFAULT_HALF_OPEN_ENTRIES, DEFAULT_ROUTES, DEFAULT_RULES,
        DEFAULT_SERVICES, DEFAULT_SLOTS, DEFAULT_SOURCES, DEFAULT_TCP_ENTRIES, DEFAULT_UDP_ENTRIES,
        IDS_PER_SERVICE,
    },
    service::{RULE_SET_BITS, Route, Rule, RuleKey, Service, ServiceKey, Slot, Turn},
    settings::Settings,
    verdict::{SERVICE_VERDICTS, ServiceDrops, VERDICT_COUNT, Verdict, VerdictCounters},
};

use crate::maps_socket;

// The sizes are defaults: the agent sets them from its config when it loads the programs.
const SERVICES: usize = DEFAULT_SERVICES as usize;
const SERVICE_IDS: usize = SERVICES * IDS_PER_SERVICE as usize;
const ROUTES_MAX: usize = DEFAULT_ROUTES as usize;
const RULES_MAX: usize = DEFAULT_RULES as usize;
const BACKEND_ENTRIES: usize = DEFAULT_BACKENDS as usize;
const TCP: usize = DEFAULT_TCP_ENTRIES as usize;
const HALF_OPEN: usize = DEFAULT_HALF_OPEN_ENTRIES as usize;
const UDP: usize = DEFAULT_UDP_ENTRIES as usize;

/// Whether fragments are followed; set at load, see `graylb_common::maps`.
#[unsafe(no_mangle)]
static FOLLOW_FRAGMENTS: Global<u32> = Global::new(1);

/// Whether fragments are followed.
#[inline(always)]
pub fn follows_fragments() -> bool {
    FOLLOW_FRAGMENTS.load() != 0
}

/// Virtual endpoints of one family.
pub type ServiceMap<A> = &'static HashMap<ServiceKey<A>, Service, SERVICES>;

/// Virtual addresses of one family.
pub type AddressMap<A> = &'static HashMap<AddressKey<A>, Address, SERVICES>;

/// Client rules of one family.
pub type RuleMap<A> = &'static LpmTrie<RuleKey<A>, Rule, RULES_MAX>;

/// Datagrams of one family in fragments.
pub type FragmentMap<A> = &'static LruHashMap<FragmentKey<A>, Fragmented<A>, FRAGMENTS>;
/// How many are remembered: a flood of fragments evicts other fragments, no flow.
const FRAGMENTS: usize = 8192;

type Lru<K, V, const N: usize> = LruHashMap<K, V, N>;

macro_rules! maps {
    ($( $name:literal $ident:ident : $map:ty; )+) => {
        $( #[btf_map(name = $name)] static $ident: $map = <$map>::new(); )+
    };
}

maps! {
    "services_v4" SERVICES_V4: HashMap<ServiceKey<[u8; 4]>, Service, SERVICES>;
    "services_v6" SERVICES_V6: HashMap<ServiceKey<[u8; 16]>, Service, SERVICES>;
    "addresses_v4" ADDRESSES_V4: HashMap<AddressKey<[u8; 4]>, Address, SERVICES>;
    "addresses_v6" ADDRESSES_V6: HashMap<AddressKey<[u8; 16]>, Address, SERVICES>;
    "routes" ROUTES: Array<Route, ROUTES_MAX>;
    "rules_v4" RULES_V4: LpmTrie<RuleKey<[u8; 4]>, Rule, RULES_MAX>;
    "rules_v6" RULES_V6: LpmTrie<RuleKey<[u8; 16]>, Rule, RULES_MAX>;
    "slots" SLOTS: Array<Slot, { DEFAULT_SLOTS as usize }>;
    "turns" TURNS: Array<Turn, ROUTES_MAX>;
    "backends" BACKENDS: Array<Backend, BACKEND_ENTRIES>;
    "backend_stats" BACKEND_STATS: PerCpuArray<BackendCounters, BACKEND_ENTRIES>;
    "active" ACTIVE: Array<Active, BACKEND_ENTRIES>;
    "sources" SOURCES: Array<Source, { DEFAULT_SOURCES as usize }>;
    "tcp_v4" TCP_V4: Lru<FlowKey<[u8; 4]>, Flow<[u8; 4]>, TCP>;
    "tcp_v6" TCP_V6: Lru<FlowKey<[u8; 16]>, Flow<[u8; 16]>, TCP>;
    "half_open_v4" HALF_OPEN_V4: Lru<FlowKey<[u8; 4]>, HalfOpen<[u8; 4]>, HALF_OPEN>;
    "half_open_v6" HALF_OPEN_V6: Lru<FlowKey<[u8; 16]>, HalfOpen<[u8; 16]>, HALF_OPEN>;
    "udp_v4" UDP_V4: Lru<FlowKey<[u8; 4]>, Flow<[u8; 4]>, UDP>;
    "udp_v6" UDP_V6: Lru<FlowKey<[u8; 16]>, Flow<[u8; 16]>, UDP>;
    "verdicts" VERDICTS: PerCpuArray<VerdictCounters, 1>;
    "service_drops" SERVICE_DROPS: PerCpuArray<ServiceDrops, SERVICE_IDS>;
    "settings" SETTINGS: Array<Settings, 1>;
    "fragments_v4" FRAGMENTS_V4: Lru<FragmentKey<[u8; 4]>, Fragmented<[u8; 4]>, FRAGMENTS>;
    "fragments_v6" FRAGMENTS_V6: Lru<FragmentKey<[u8; 16]>, Fragmented<[u8; 16]>, FRAGMENTS>;
    "draft_v4" DRAFT_V4: PerCpuArray<Draft<[u8; 4]>, 1>;
    "draft_v6" DRAFT_V6: PerCpuArray<Draft<[u8; 16]>, 1>;
    "route_query" ROUTE_QUERY: PerCpuArray<RouteQuery, 1>;
}

/// Where a new flow's entries are written before they are inserted: they do not fit on a BPF stack of
/// 512 bytes. One per CPU; programs neither migrate nor interrupt each other.
#[repr(C)]
pub struct Draft<A> {
    /// The client's direction.
    pub forward: HalfOpen<A>,
    /// The backend's direction.
    pub reply: HalfOpen<A>,
    /// Key of `reply`.
    pub reply_key: FlowKey<A>,
}

/// A question to the routing tables and its answer, not on the stack for the same reason.
#[repr(C)]
pub struct RouteQuery {
    /// What is asked, and the kernel's answer.
    pub params: FibParams,
    /// What it means.
    pub hop: NextHop,
}

/// An LRU hash of flows, whatever its size.
pub trait FlowTable<A, V> {
    /// The entry under `key`.
    fn find(&'static self, key: &FlowKey<A>) -> Option<Entry<V>>;
    /// Inserts or replaces; false where the kernel has no memory for it.
    #[must_use]
    fn put(&'static self, key: &FlowKey<A>, value: &V) -> bool;
    /// Removes, if it is there.
    fn forget(&'static self, key: &FlowKey<A>);
}

impl<A, V, const N: usize> FlowTable<A, V> for LruHashMap<FlowKey<A>, V, N> {
    #[inline(always)]
    fn find(&'static self, key: &FlowKey<A>) -> Option<Entry<V>> {
        self.get_ptr_mut(key).and_then(NonNull::new).map(Entry)
    }

    #[inline(always)]
    fn put(&'static self, key: &FlowKey<A>, value: &V) -> bool {
        self.insert(key, value, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn forget(&'static self, key: &FlowKey<A>) {
        // An entry that is gone already is as good.
        let _absent_is_fine = self.remove(key);
    }
}

/// An entry in a flow map. It stays readable while the program runs; after an eviction on another CPU it
/// may show a flow that has taken its place, which costs that packet and no memory safety.
pub struct Entry<V>(NonNull<V>);

impl<V> Clone for Entry<V> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Entry<V> {}

impl<V> Entry<V> {
    /// What it holds.
    #[inline(always)]
    pub const fn value(&self) -> &V {
        // SAFETY: the pointer came, not null, from a look-up in a preallocated map in this run of the
        // program; its memory stays a V until the program ends.
        unsafe { self.0.as_ref() }
    }
}

impl<A> Entry<Flow<A>> {
    /// Notes a packet at `now_ns`.
    #[inline(always)]
    pub const fn touch(&self, now_ns: u64) {
        // SAFETY: as in `value`; an aligned word.
        unsafe { (*self.0.as_ptr()).last_seen_ns = now_ns }
    }

    /// The cached next hop, if it was found in this epoch.
    #[inline(always)]
    pub fn hop(&self, epoch: u32) -> Option<NextHop> {
        // SAFETY: as in `value`; aligned words. `epoch` is read before and after the rest, so that what
        // another CPU writes in between is noticed.
        unsafe {
            let hop = &raw const (*self.0.as_ptr()).hop;
            if (&raw const (*hop).epoch).read_volatile() != epoch {
                return None;
            }
            let found = hop.read_volatile();
            (found.epoch == epoch && (&raw const (*hop).epoch).read_volatile() == epoch)
                .then_some(found)
        }
    }

    /// Caches the next hop.
    #[inline(always)]
    pub fn set_hop(&self, epoch: u32, hop: &NextHop) {
        // SAFETY: as in `value`; aligned words. The entry is in no epoch while it is written.
        unsafe {
            let place = &raw mut (*self.0.as_ptr()).hop;
            (&raw mut (*place).epoch).write_volatile(0);
            (&raw mut (*place).ifindex).write_volatile(hop.ifindex);
            (&raw mut (*place).mtu).write_volatile(hop.mtu);
            (&raw mut (*place).kind).write_volatile(hop.kind);
            (&raw mut (*place).link).write_volatile(hop.link);
            (&raw mut (*place).epoch).write_volatile(epoch);
        }
    }

    /// Sets state bits.
    #[inline(always)]
    pub const fn mark(&self, bits: u32) {
        // SAFETY: as in `value`; an aligned word.
        unsafe { (*self.0.as_ptr()).state |= bits }
    }
}

impl<A> Entry<HalfOpen<A>> {
    /// The flow inside.
    #[inline(always)]
    pub const fn flow(&self) -> Entry<Flow<A>> {
        // SAFETY: as in `value`; the address of a field, which is never null.
        Entry(unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).flow) })
    }

    /// Notes the sequence number of the backend's SYN-ACK.
    #[inline(always)]
    pub const fn set_server_isn(&self, isn: u32) {
        // SAFETY: as in `value`; an aligned word.
        unsafe { (*self.0.as_ptr()).server_isn = isn }
    }
}

/// Finds a service.
#[inline(always)]
pub fn service<A>(map: ServiceMap<A>, key: &ServiceKey<A>) -> Option<&'static Service> {
    // SAFETY: the agent replaces entries as a whole, and a replaced one stays as it was until no program
    // that saw it runs any more.
    unsafe { map.get(key) }
}

/// Whether services are at an address.
#[inline(always)]
pub fn is_virtual<A>(map: AddressMap<A>, address: A) -> bool {
    map.get_ptr(&AddressKey { address }).is_some()
}

/// The route of a client by the longest of its service's rules that is for it.
#[inline(always)]
pub fn ruled<A: Copy>(map: RuleMap<A>, rules: u32, address: &A) -> Option<u32> {
    let bits = RULE_SET_BITS + 8 * size_of::<A>() as u32;
    let key = Key::new(bits, RuleKey { rules, address: *address });
    map.get(&key).map(|rule| rule.route)
}

/// Remembers a datagram's first fragment. Without memory for it the others lead nowhere.
#[inline(always)]
pub fn remember_fragment<A>(map: FragmentMap<A>, key: &FragmentKey<A>, value: &Fragmented<A>) {
    let _no_memory = map.insert(key, value, u64::from(BPF_ANY));
}

/// What a datagram's first fragment said.
#[inline(always)]
pub fn fragmented<A>(map: FragmentMap<A>, key: &FragmentKey<A>) -> Option<&'static Fragmented<A>> {
    // SAFETY: entries of a preallocated map stay readable while the program runs; one that is evicted meanwhile
    // may show another datagram's tuple, which costs a fragment.
    unsafe { map.get(key) }
}

/// Reads a route.
#[inline(always)]
pub fn route(index: u32) -> Option<&'static Route> {
    ROUTES.get(index)
}

/// Takes the next turn of a counter.
#[inline(always)]
pub fn take_turn(index: u32) -> Option<u64> {
    let turn = TURNS.get_ptr_mut(index)?;
    // SAFETY: array elements live as long as the map and are 8-byte aligned; every program changes this
    // word atomically, and the agent writes it only while no service points to it.
    Some(unsafe { fetch_add(&raw mut (*turn).next, 1) })
}

/// Flows to a backend that have not ended, and sockets that were connected to it. Either count may fall
/// below zero, when some end that were opened before the agent set it; the sum is none then.
#[inline(always)]
pub fn active_flows(backend: u32) -> Option<u64> {
    let sockets = maps_socket::active(backend);
    let all = |active: &Active| active.flows.cast_signed().saturating_add(sockets).max(0);
    ACTIVE.get(backend).map(|active| all(active).cast_unsigned())
}

/// One more, or (with -1) one less.
#[inline(always)]
pub fn add_active(backend: u32, change: i64) {
    if let Some(active) = ACTIVE.get_ptr_mut(backend) {
        // SAFETY: as in `take_turn`; the agent's corrections of this word may lose a change made at the
        // same time, which the next one mends.
        let _before = unsafe { fetch_add(&raw mut (*active).flows, change.cast_unsigned()) };
    }
}

/// Adds to a word and returns what it was. In assembly because core's AtomicU64 has no fetch_add for this
/// target.
///
/// # Safety
///
/// `word` points to an aligned word of a map that stays as long as the program runs.
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, mut value: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// Reads a slot.
#[inline(always)]
pub fn slot(index: u32) -> Option<&'static Slot> {
    SLOTS.get(index)
}

/// Reads a backend.
#[inline(always)]
pub fn backend(index: u32) -> Option<&'static Backend> {
    BACKENDS.get(index)
}

/// Reads a source address.
#[inline(always)]
pub fn source(index: u32) -> Option<&'static Source> {
    SOURCES.get(index)
}

/// What the agent may change at run time.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// This CPU's draft for a new flow.
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "a map is no owner: its elements are the kernel's")]
pub fn draft<A, const N: usize>(
    map: &'static PerCpuArray<Draft<A>, N>,
) -> Option<&'static mut Draft<A>> {
    // SAFETY: this CPU's own element; `Family::draft` is called once in a run of a program, so that
    // there is one reference, and programs do not interrupt each other.
    map.get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
}

/// This CPU's question to the routing tables, empty.
#[inline(always)]
pub fn route_query() -> Option<&'static mut RouteQuery> {
    let query = ROUTE_QUERY.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element, asked for once in a run of a program (`emit::emit`, `echo::answer`), so that there is
    // one reference; a struct of integers and unions of integers, for which zero is valid.
    unsafe {
        (&raw mut (*query).params).write(empty_fib_params());
        Some(&mut *query)
    }
}

/// Changes a backend's counters on this CPU.
#[inline(always)]
pub fn count_backend(index: u32, change: impl FnOnce(&mut BackendCounters)) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element, and programs do not migrate.
        change(unsafe { &mut *counters });
    }
}

/// Counts a new flow to a backend, in a program that packets may interrupt.
#[inline(always)]
pub fn count_opened_atomically(index: u32) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element, 8-byte aligned.
        let _before = unsafe { fetch_add(&raw mut (*counters).opened, 1) };
    }
}

/// Counts a verdict in a program that packets may interrupt.
#[inline(always)]
pub fn count_verdict_atomically(verdict: Verdict) {
    let index = verdict as usize;
    if index >= VERDICT_COUNT {
        return;
    }
    if let Some(counters) = VERDICTS.get_ptr_mut(0) {
        // SAFETY: as in `count_verdict`.
        let _before = unsafe { fetch_add(counters.cast::<u64>().add(index), 1) };
    }
}

/// The same value, of which the compiler knows nothing: it would drop a comparison whose outcome follows
/// from the type, but which the verifier wants to see.
#[inline(always)]
fn opaque(mut value: usize) -> usize {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) value, options(nomem, nostack, pure)) };
    value
}

/// Counts a verdict on this CPU.
#[inline(always)]
pub fn count_verdict(verdict: Verdict) {
    let index = opaque(verdict as usize);
    if index >= VERDICT_COUNT {
        return;
    }
    if let Some(counters) = VERDICTS.get_ptr_mut(0) {
        // SAFETY: VerdictCounters is VERDICT_COUNT words (asserted beside it), `index` is below that
        // (above), and the element is this CPU's own.
        unsafe { *counters.cast::<u64>().add(index) += 1 }
    }
}

/// Counts a verdict for a service on this CPU, if it is one of those.
#[inline(always)]
pub fn count_service_verdict(service: u32, verdict: Verdict) {
    let place = ServiceDrops::place(verdict);
    if place >= SERVICE_VERDICTS.len() {
        return;
    }
    if let Some(drops) = SERVICE_DROPS.get_ptr_mut(service) {
        // SAFETY: ServiceDrops is SERVICE_VERDICTS.len() words (asserted beside it), `place` is below that
        // (above), and the element is this CPU's own.
        unsafe { *drops.cast::<u64>().add(place) += 1 }
    }
}

macro_rules! accessors {
    ($( $name:ident $ident:ident : $map:ty; )+) => {
        $(
            #[doc = concat!("The map `", stringify!($name), "`.")]
            #[inline(always)]
            pub fn $name() -> &'static $map {
                &$ident
            }
        )+
    };
}

accessors! {
    services_v4 SERVICES_V4: HashMap<ServiceKey<[u8; 4]>, Service, SERVICES>;
    services_v6 SERVICES_V6: HashMap<ServiceKey<[u8; 16]>, Service, SERVICES>;
    addresses_v4 ADDRESSES_V4: HashMap<AddressKey<[u8; 4]>, Address, SERVICES>;
    addresses_v6 ADDRESSES_V6: HashMap<AddressKey<[u8; 16]>, Address, SERVICES>;
    rules_v4 RULES_V4: LpmTrie<RuleKey<[u8; 4]>, Rule, RULES_MAX>;
    rules_v6 RULES_V6: LpmTrie<RuleKey<[u8; 16]>, Rule, RULES_MAX>;
    tcp_v4 TCP_V4: Lru<FlowKey<[u8; 4]>, Flow<[u8; 4]>, TCP>;
    tcp_v6 TCP_V6: Lru<FlowKey<[u8; 16]>, Flow<[u8; 16]>, TCP>;
    half_open_v4 HALF_OPEN_V4: Lru<FlowKey<[u8; 4]>, HalfOpen<[u8; 4]>, HALF_OPEN>;
    half_open_v6 HALF_OPEN_V6: Lru<FlowKey<[u8; 16]>, HalfOpen<[u8; 16]>, HALF_OPEN>;
    udp_v4 UDP_V4: Lru<FlowKey<[u8; 4]>, Flow<[u8; 4]>, UDP>;
    udp_v6 UDP_V6: Lru<FlowKey<[u8; 16]>, Flow<[u8; 16]>, UDP>;
    fragments_v4 FRAGMENTS_V4: Lru<FragmentKey<[u8; 4]>, Fragmented<[u8; 4]>, FRAGMENTS>;
    fragments_v6 FRAGMENTS_V6: Lru<FragmentKey<[u8; 16]>, Fragmented<[u8; 16]>, FRAGMENTS>;
    draft_v4 DRAFT_V4: PerCpuArray<Draft<[u8; 4]>, 1>;
    draft_v6 DRAFT_V6: PerCpuArray<Draft<[u8; 16]>, 1>;
}
