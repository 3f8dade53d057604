//! The data plane without traffic: its flow tables filled and read by hand, and swept.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use graylb_agent::{
    apply::{DataPlane, FlowReport, Options, Sweeper, kernel_clock_ns},
    compile::{BackendImage, Change, PoolImage, Select, ServiceImage},
    config::{FlowsConfig, LimitsConfig},
    model::{
        ageing::{Rules, Timeouts},
        mode::Mode,
        spec::{Endpoint, Protocol},
    },
};
use graylb_common::{
    abi::ABI_VERSION,
    backend::Active,
    flow::{Flow, FlowKey, NextHop},
    maps,
};

use crate::sandbox::Sandbox;

/// Key of an IPv4 flow.
pub type Key = FlowKey<[u8; 4]>;
/// One direction of an IPv4 flow.
pub type Entry = Flow<[u8; 4]>;
/// An IPv4 flow table.
pub type Table = HashMap<MapData, Key, Entry>;

/// The kernel time that sweeps are told, in nanoseconds: long after any uptime of the machine.
pub const NOW_NS: u64 = 1 << 60;

/// The rules that sweeps are told.
#[must_use]
pub fn rules() -> Rules {
    let seconds = Duration::from_secs;
    Rules {
        timeouts: Timeouts {
            tcp: seconds(7440),
            tcp_closed: seconds(60),
            half_open: seconds(60),
            udp: seconds(30),
        },
        leaving: [].into(),
    }
}

/// A loaded data plane, attached nowhere, in a corner of its own.
pub struct FlowLab {
    /// The data plane.
    pub plane: DataPlane,
    /// What looks its tables over.
    pub sweeper: Sweeper,
    /// Where it is pinned.
    pub sandbox: Sandbox,
}

impl FlowLab {
    /// Loads it with tables of these sizes.
    ///
    /// # Panics
    ///
    /// The kernel refuses.
    #[must_use]
    pub fn new(flows: FlowsConfig, limits: LimitsConfig) -> Self {
        let sandbox = Sandbox::new();
        let plane = open(&sandbox, flows, limits);
        let sweeper = plane.sweeper().expect("sweeper");
        Self { plane, sweeper, sandbox }
    }

    /// Where a program is pinned.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.sandbox.pin_dir().join(format!("abi-{ABI_VERSION}/programs/{name}"))
    }

    /// A map, by a handle of its own.
    ///
    /// # Panics
    ///
    /// It is not pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> MapData {
        map(&self.sandbox, name)
    }

    /// A flow table.
    ///
    /// # Panics
    ///
    /// It is none, or of other types.
    #[must_use]
    pub fn table<V: Pod>(&self, name: &str) -> HashMap<MapData, Key, V> {
        HashMap::try_from(Map::LruHashMap(self.map(name))).expect("a flow table")
    }

    /// The counters of active flows.
    ///
    /// # Panics
    ///
    /// They are not pinned.
    #[must_use]
    pub fn active(&self) -> Array<MapData, Active> {
        active(&self.sandbox)
    }

    /// Puts a service with these backends in force.
    ///
    /// # Panics
    ///
    /// The kernel refuses.
    pub fn put(&mut self, service: Endpoint, backends: &[SocketAddr]) {
        self.plane.apply(&put(service, 1, backends)).expect("put a service");
    }

    /// One sweep without pauses, at [`NOW_NS`].
    ///
    /// # Panics
    ///
    /// A map cannot be read.
    pub fn sweep(&mut self, rules: &Rules) -> FlowReport {
        self.sweeper.sweep(rules, NOW_NS, &mut |_| ()).expect("sweep").clone()
    }

    /// One sweep without pauses, now.
    ///
    /// # Panics
    ///
    /// A map cannot be read.
    pub fn sweep_now(&mut self, rules: &Rules) -> FlowReport {
        self.sweeper.sweep(rules, kernel_clock_ns(), &mut |_| ()).expect("sweep").clone()
    }

    /// Sweeps until every entry has been looked at twice over for its other direction.
    pub fn sweep_all(&mut self, rules: &Rules) -> FlowReport {
        for _ in 0..32 {
            self.sweep(rules);
        }
        self.sweep(rules)
    }
}

fn map(sandbox: &Sandbox, name: &str) -> MapData {
    let pin = sandbox.pin_dir().join(format!("abi-{ABI_VERSION}/maps/{name}"));
    MapData::from_pin(pin).expect("open a pinned map")
}

/// The counters of active flows of the data plane in `sandbox`.
///
/// # Panics
///
/// They are not pinned.
#[must_use]
pub fn active(sandbox: &Sandbox) -> Array<MapData, Active> {
    Array::try_from(Map::Array(map(sandbox, maps::ACTIVE))).expect("an array")
}

/// Opens the data plane in `sandbox`, over what is pinned there.
///
/// # Panics
///
/// The kernel refuses.
#[must_use]
pub fn open(sandbox: &Sandbox, flows: FlowsConfig, limits: LimitsConfig) -> DataPlane {
    DataPlane::open(&Options {
        pin_dir: sandbox.pin_dir(),
        flows,
        limits,
        kernel_log: false,
        clsact: false,
    })
    .expect("open the data plane (are you root?)")
}

/// A change that puts a service with these backends, in strict turns, in force.
#[must_use]
pub fn put(service: Endpoint, pool: u32, backends: &[SocketAddr]) -> Change {
    let images = backends.iter().map(|&address| BackendImage { address, weight: 1 });
    let image = PoolImage {
        pool,
        mode: Mode::Nat,
        select: Select::Turns,
        backends: images.collect(),
        slots: (0..).take(backends.len()).collect(),
    };
    Change::Put(service, Box::new(ServiceImage::whole(0, image)))
}

/// The `n`th TCP or UDP service.
#[must_use]
pub fn service(n: u32, protocol: Protocol) -> Endpoint {
    let address = Ipv4Addr::from_bits(0x0a60_0000 + n);
    Endpoint { address: SocketAddr::new(address.into(), 80), protocol }
}

/// The `n`th backend.
#[must_use]
pub fn backend(n: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0x0ac0_0000 + n).into(), 8080)
}

/// Both directions of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Key of the client's direction.
    pub key: Key,
    /// The client's direction.
    pub forward: Entry,
    /// Key of the backend's direction.
    pub reply_key: Key,
    /// The backend's direction.
    pub reply: Entry,
}

impl Pair {
    /// The flow of the `n`th client to the backend of this index, idle for so long either way.
    #[must_use]
    pub fn new(n: u32, backend: u32, idle: Duration) -> Self {
        let key = Key {
            source: (0x0b00_0000 + n).to_be_bytes(),
            destination: [10, 96, 0, 1],
            source_port: 40_000,
            destination_port: 80,
        };
        let rewrite = Key {
            destination: (0x0ac0_0000 + backend).to_be_bytes(),
            destination_port: 8080,
            ..key
        };
        let forward = Entry {
            last_seen_ns: NOW_NS - idle.as_nanos() as u64,
            rewrite,
            address_delta: 0,
            port_delta: 0,
            backend,
            service: 0,
            generation: 1,
            state: 0,
            mode: 0,
            hop: NextHop::NONE,
        };
        Self { key, forward, reply_key: rewrite.reversed(), reply: forward.counterpart(&key) }
    }

    /// The same with state bits on both directions.
    #[must_use]
    pub const fn with_state(mut self, bits: u32) -> Self {
        self.forward.state |= bits;
        self.reply.state |= bits;
        self
    }

    /// Inserts both directions.
    ///
    /// # Panics
    ///
    /// The kernel refuses.
    pub fn insert(&self, table: &mut Table) {
        table.insert(self.key, self.forward, 0).expect("insert a flow");
        table.insert(self.reply_key, self.reply, 0).expect("insert a flow");
    }

    /// Which directions are in the table.
    #[must_use]
    pub fn is_in(&self, table: &Table) -> [bool; 2] {
        [table.get(&self.key, 0).is_ok(), table.get(&self.reply_key, 0).is_ok()]
    }
}
