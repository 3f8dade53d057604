//! What is in the maps: flow entries of either family as one kind of value, and the tables behind a
//! service. Tests also write here, to make states that packets alone would take too long to reach.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use graylb_common::{
    backend::{Backend, Source},
    flow::{Flow, FlowKey, HalfOpen, NextHop},
    maps,
    service::Slot,
};

/// Source and destination of a packet.
pub type Tuple = (SocketAddr, SocketAddr);

/// A flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `tcp_v4`, `tcp_v6`.
    Tcp,
    /// `half_open_v4`, `half_open_v6`.
    HalfOpen,
    /// `udp_v4`, `udp_v6`.
    Udp,
}

/// A flow entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What the tuple becomes.
    pub rewrite: Tuple,
    /// Address of the backend.
    pub backend: SocketAddr,
    /// Low half of the generation.
    pub generation: u32,
    /// `FLOW_*` bits.
    pub state: u32,
}

/// An address of one family, as the maps hold it.
trait Address: Copy + 'static {
    fn bytes(ip: IpAddr) -> Self;
    fn ip(self) -> IpAddr;
}

impl Address for [u8; 4] {
    fn bytes(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.octets(),
            IpAddr::V6(ip) => panic!("{ip} is not IPv4"),
        }
    }

    fn ip(self) -> IpAddr {
        self.into()
    }
}

impl Address for [u8; 16] {
    fn bytes(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V6(ip) => ip.octets(),
            IpAddr::V4(ip) => panic!("{ip} is not IPv6"),
        }
    }

    fn ip(self) -> IpAddr {
        self.into()
    }
}

fn key<A: Address>((source, destination): Tuple) -> FlowKey<A> {
    FlowKey {
        source: A::bytes(source.ip()),
        destination: A::bytes(destination.ip()),
        source_port: source.port(),
        destination_port: destination.port(),
    }
}

fn tuple<A: Address>(key: FlowKey<A>) -> Tuple {
    (
        SocketAddr::new(key.source.ip(), key.source_port),
        SocketAddr::new(key.destination.ip(), key.destination_port),
    )
}

type FlowMap<A> = HashMap<MapData, FlowKey<A>, Flow<A>>;

/// The flow tables of one family.
struct FamilyTables<A: Address> {
    tcp: FlowMap<A>,
    half_open: HashMap<MapData, FlowKey<A>, HalfOpen<A>>,
    udp: FlowMap<A>,
}

impl<A: Address> FamilyTables<A> {
    fn get(&self, table: Table, at: Tuple) -> Option<Flow<A>> {
        let at = key(at);
        let found = match table {
            Table::Tcp => self.tcp.get(&at, 0),
            Table::HalfOpen => self.half_open.get(&at, 0).map(|half_open| half_open.flow),
            Table::Udp => self.udp.get(&at, 0),
        };
        match found {
            Ok(flow) => Some(flow),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("read a flow table: {error}"),
        }
    }

    fn put(&mut self, table: Table, at: Tuple, flow: Flow<A>) {
        let at = key(at);
        let done = match table {
            Table::Tcp => self.tcp.insert(at, flow, 0),
            Table::HalfOpen => {
                let half_open = HalfOpen { flow, client_isn: 0, server_isn: 0 };
                self.half_open.insert(at, half_open, 0)
            }
            Table::Udp => self.udp.insert(at, flow, 0),
        };
        done.expect("write to a flow table");
    }

    /// A flow that was seen just now and whose tuple becomes `rewrite`.
    fn made_up(rewrite: Tuple) -> Flow<A> {
        Flow {
            last_seen_ns: u64::MAX,
            rewrite: key(rewrite),
            address_delta: 0,
            port_delta: 0,
            backend: 0,
            service: 0,
            generation: 0,
            state: 0,
            mode: 0,
            hop: NextHop::NONE,
        }
    }
}

/// The pinned maps.
pub struct Maps {
    v4: FamilyTables<[u8; 4]>,
    v6: FamilyTables<[u8; 16]>,
    backends: Array<MapData, Backend>,
    slots: Array<MapData, Slot>,
    sources: Array<MapData, Source>,
}

fn open<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &str, kind: fn(MapData) -> Map) -> M {
    let data = MapData::from_pin(dir.join(name)).expect("open a map's pin");
    M::try_from(kind(data)).expect("a map of its kind")
}

impl Maps {
    /// Opens the maps pinned in `dir`.
    ///
    /// # Panics
    ///
    /// A map is not there.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self {
            v4: FamilyTables {
                tcp: open(dir, maps::TCP_V4, Map::LruHashMap),
                half_open: open(dir, maps::HALF_OPEN_V4, Map::LruHashMap),
                udp: open(dir, maps::UDP_V4, Map::LruHashMap),
            },
            v6: FamilyTables {
                tcp: open(dir, maps::TCP_V6, Map::LruHashMap),
                half_open: open(dir, maps::HALF_OPEN_V6, Map::LruHashMap),
                udp: open(dir, maps::UDP_V6, Map::LruHashMap),
            },
            backends: open(dir, maps::BACKENDS, Map::Array),
            slots: open(dir, maps::SLOTS, Map::Array),
            sources: open(dir, maps::SOURCES, Map::Array),
        }
    }

    /// The flow of packets with this tuple.
    #[must_use]
    pub fn flow(&self, table: Table, at: Tuple) -> Option<Seen> {
        if at.0.is_ipv4() {
            self.v4.get(table, at).map(|flow| self.seen(&flow))
        } else {
            self.v6.get(table, at).map(|flow| self.seen(&flow))
        }
    }

    fn seen<A: Address>(&self, flow: &Flow<A>) -> Seen {
        let backend = self.backends.get(&flow.backend, 0).expect("the flow's backend");
        let ip = std::net::Ipv6Addr::from(backend.address).to_canonical();
        Seen {
            rewrite: tuple(flow.rewrite),
            backend: SocketAddr::new(ip, backend.port),
            generation: flow.generation,
            state: flow.state,
        }
    }

    /// Makes a UDP flow's direction look as if no packet had gone that way since the machine started.
    ///
    /// # Panics
    ///
    /// There is no such flow.
    pub fn age(&mut self, at: Tuple) {
        fn aged<A: Address>(tables: &mut FamilyTables<A>, at: Tuple) {
            let flow = tables.get(Table::Udp, at).expect("a flow to age");
            tables.put(Table::Udp, at, Flow { last_seen_ns: 0, ..flow });
        }
        if at.0.is_ipv4() { aged(&mut self.v4, at) } else { aged(&mut self.v6, at) }
    }

    /// Puts a made-up flow in the way: packets with tuple `at` would become `rewrite`.
    pub fn occupy(&mut self, table: Table, at: Tuple, rewrite: Tuple) {
        if at.0.is_ipv4() {
            self.v4.put(table, at, FamilyTables::made_up(rewrite));
        } else {
            self.v6.put(table, at, FamilyTables::made_up(rewrite));
        }
    }

    /// Leads slot `place` to `backend`, whatever that is.
    pub fn damage_slot(&mut self, place: u32, backend: u32) {
        self.slots.set(place, Slot { backend }, 0).expect("write a slot");
    }

    /// Takes every source address out, whoever uses it.
    pub fn lose_sources(&mut self) {
        for place in 0..maps::DEFAULT_SOURCES {
            self.sources.set(place, Source::default(), 0).expect("write a source");
        }
    }
}
