//! A lab: the data plane loaded as the agent loads it, in a network of its own, with its counters
//! watched at every packet.

use std::{collections::BTreeMap, net::SocketAddr, panic::resume_unwind, thread, time::Duration};

use graylb_agent::{
    apply::{DataPlane, Options},
    compile::{BackendImage, Change, PoolImage, Select, ServiceImage, pool_number, round_robin},
    config::{FlowsConfig, LimitsConfig},
    model::{
        mode::Mode,
        spec::{Endpoint, Protocol},
    },
};
use graylb_common::{
    abi::ABI_VERSION,
    backend::BackendCounters,
    verdict::{ServiceDrops, VERDICTS, Verdict, VerdictCounters},
};

use super::{
    describe::{describe, difference},
    flows::Maps,
    run::{Entry, Expected, Outcome, Programs},
    topology,
};
use crate::sandbox::Sandbox;

/// Entries of each flow table: enough that no flow of a table of cases is evicted.
const FLOWS: u32 = 16384;
/// Services' ports start here: above the backends', and above what loopback makes of clients' ports.
const FIRST_PORT: u16 = 10_000;

/// The loaded programs and what belongs to them.
pub struct Lab {
    programs: Programs,
    /// The maps.
    pub maps: Maps,
    /// The agent's view of the maps.
    pub plane: DataPlane,
    numbers: u16,
    ports: u16,
    // Last, so that it is dropped after everything that holds something in it.
    _sandbox: Sandbox,
}

impl Lab {
    /// Runs `test` with a lab, in a thread that is in the lab's network namespace.
    pub fn with(test: impl FnOnce(&mut Self) + Send) {
        Self::sized(FLOWS, test);
    }

    /// The same, with flow tables of this size.
    pub fn sized(flows: u32, test: impl FnOnce(&mut Self) + Send) {
        let body = || test(&mut Self::open(flows));
        let result = thread::scope(|scope| scope.spawn(body).join());
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    fn open(flows: u32) -> Self {
        let sandbox = Sandbox::new();
        topology::enter(&sandbox);
        let plane = DataPlane::open(&Options {
            pin_dir: sandbox.pin_dir(),
            flows: FlowsConfig {
                tcp: flows,
                half_open: flows,
                udp: flows,
                udp_timeout: Duration::from_secs(60),
                ..FlowsConfig::default()
            },
            limits: LimitsConfig::default(),
            kernel_log: false,
            clsact: false,
        })
        .expect("open the data plane");
        Self {
            programs: Programs::open(&sandbox),
            maps: Maps::open(&sandbox.pin_dir().join(format!("abi-{ABI_VERSION}/maps"))),
            plane,
            numbers: 0,
            ports: FIRST_PORT,
            _sandbox: sandbox,
        }
    }

    /// The programs.
    #[must_use]
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// A number that no other case in this lab has: for its client.
    pub const fn number(&mut self) -> u16 {
        self.numbers += 1;
        self.numbers
    }

    /// A port that no other case in this lab has: for its service.
    pub const fn port(&mut self) -> u16 {
        self.ports += 1;
        self.ports
    }

    /// Puts a pool of weighted backends in force, slots in the order that the agent gives them.
    pub fn put(&mut self, service: Endpoint, pool: &str, backends: &[(SocketAddr, u16)]) -> u64 {
        self.put_in(service, Mode::Nat, pool, backends)
    }

    /// The same with a pool in this mode.
    pub fn put_in(
        &mut self,
        service: Endpoint,
        mode: Mode,
        pool: &str,
        backends: &[(SocketAddr, u16)],
    ) -> u64 {
        let weights: Vec<u16> = backends.iter().map(|(_, weight)| *weight).collect();
        let image = PoolImage {
            pool: pool_number(pool),
            mode,
            select: Select::Turns,
            backends: backends
                .iter()
                .map(|&(address, weight)| BackendImage { address, weight })
                .collect(),
            slots: round_robin(&weights),
        };
        self.put_image(service, ServiceImage::whole(0, image))
    }

    /// Puts an image in force.
    pub fn put_image(&mut self, service: Endpoint, image: ServiceImage) -> u64 {
        self.plane.apply(&Change::Put(service, Box::new(image))).expect("put a service in force")
    }

    /// Takes a service out.
    pub fn remove(&mut self, service: Endpoint) {
        self.plane.apply(&Change::Remove(service)).expect("remove a service");
    }

    /// A UDP flow without a packet for this long chooses anew.
    pub fn set_udp_timeout(&mut self, timeout: Duration) {
        self.plane.set_udp_timeout(timeout).expect("change a setting");
    }

    /// Counters of a service's backends, all pools together.
    #[must_use]
    pub fn counters(&self, service: Endpoint) -> BTreeMap<SocketAddr, BackendCounters> {
        let mut all = BTreeMap::<_, BackendCounters>::new();
        let counters = self.plane.backend_counters(&service).expect("read the backends' counters");
        for (_pool, address, counters) in counters {
            all.entry(address).or_default().add(&counters);
        }
        all
    }

    /// Flows of a service that have not ended, as the packet path counts them.
    #[must_use]
    pub fn active(&self, service: Endpoint) -> u64 {
        let counters = self.plane.counters().expect("read the backends' counters");
        let indices = self.plane.backend_indices(&service);
        indices.map(|(.., index)| counters[index as usize].active).sum()
    }

    /// Packets of a service that did not go on their way.
    #[must_use]
    pub fn drops(&self, service: Endpoint) -> ServiceDrops {
        self.plane.service_drops().expect("read the drops")[&service]
    }

    /// Packets by verdict.
    #[must_use]
    pub fn verdicts(&self) -> VerdictCounters {
        self.plane.verdicts().expect("read the verdicts")
    }

    /// Runs a packet and checks everything about it: the verdict counted and no other, the action, the
    /// bytes.
    pub fn check(&self, case: &str, entry: Entry, packet: &[u8], expected: &Expected) {
        let before = self.verdicts();
        let outcome = match self.programs.run(entry, packet) {
            Ok(outcome) => outcome,
            Err(error) => panic!("{case}\n  packet   {}: {error}", describe(packet)),
        };
        self.compare(case, &before, packet, &outcome, expected);
    }

    /// Checks an outcome against what it was to be.
    pub fn compare(
        &self,
        case: &str,
        before: &VerdictCounters,
        packet: &[u8],
        outcome: &Outcome,
        expected: &Expected,
    ) {
        let counted = counted(before, &self.verdicts());
        let about = format!("{case}\n  packet   {}", describe(packet));
        assert_eq!(counted, [(expected.verdict, 1)], "{about}: verdicts counted");
        assert_eq!(outcome.action, expected.action, "{about}: action");
        if let Some(bytes) = &expected.bytes {
            assert!(*bytes == outcome.bytes, "{about}\n{}", difference(bytes, &outcome.bytes));
        }
    }
}

/// Which verdicts were counted between two readings, and how often.
#[must_use]
pub fn counted(before: &VerdictCounters, after: &VerdictCounters) -> Vec<(Verdict, u64)> {
    let deltas = VERDICTS
        .iter()
        .map(|info| info.verdict)
        .map(|verdict| (verdict, after.get(verdict).wrapping_sub(before.get(verdict))));
    deltas.filter(|(_, delta)| *delta != 0).collect()
}

/// A TCP endpoint.
#[must_use]
pub const fn tcp(address: SocketAddr) -> Endpoint {
    Endpoint { address, protocol: Protocol::Tcp }
}

/// A UDP endpoint.
#[must_use]
pub const fn udp(address: SocketAddr) -> Endpoint {
    Endpoint { address, protocol: Protocol::Udp }
}
