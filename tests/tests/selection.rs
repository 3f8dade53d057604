//! The kernel's choice of a backend against the agent's: single SYNs through the loaded programs, each asked
//! by the destination that it leaves with.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, Map, MapData},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp},
};
use aya_obj::programs::XdpAttachType;
use graylb_agent::{
    apply::{ApplyError, DataPlane, Options},
    compile::{Change, PoolImage, ServiceImage, pool_image, salt},
    config::{FlowsConfig, LimitsConfig},
    model::{
        balance::{Balance, Prefixes, TableSize},
        mode::Mode,
        spec::{BackendSpec, Endpoint, PoolSpec, Protocol},
    },
};
use graylb_common::{abi::ABI_VERSION, backend::Active, hash, maps, service::Slot};
use graylb_tests::sandbox::Sandbox;

const MAGLEV: Balance = Balance::Maglev { size: TableSize::DEFAULT };

/// The image of a pool in mode nat with these backends.
fn nat_image(endpoint: &Endpoint, balance: Balance, backends: &[BackendSpec]) -> PoolImage {
    let pool = PoolSpec::new(backends.to_vec(), Mode::Nat, None).expect("pool");
    pool_image(endpoint, "pool", &pool.balanced(balance).expect("table"), backends)
}

/// A data plane with one service, and its programs.
struct Lab {
    plane: DataPlane,
    xdp: Xdp,
    tc: SchedClassifier,
    endpoint: Endpoint,
    image: PoolImage,
    salt: u32,
    sandbox: Sandbox,
}

fn open(sandbox: &Sandbox) -> DataPlane {
    let udp_timeout = Duration::from_secs(60);
    let flows = FlowsConfig {
        tcp: 1024,
        half_open: 1 << 16,
        udp: 1024,
        udp_timeout,
        ..FlowsConfig::default()
    };
    let options = Options {
        pin_dir: sandbox.pin_dir(),
        flows,
        limits: LimitsConfig::default(),
        kernel_log: false,
        clsact: false,
    };
    DataPlane::open(&options).expect("open the data plane")
}

fn pins(sandbox: &Sandbox) -> PathBuf {
    sandbox.pin_dir().join(format!("abi-{ABI_VERSION}"))
}

impl Lab {
    /// One whose service of this family shares its flows among backends of these weights.
    fn new(ipv4: bool, balance: Balance, weights: &[u16]) -> Self {
        let sandbox = Sandbox::new();
        let mut plane = open(&sandbox);
        let endpoint = Endpoint { address: address(ipv4, 0, 80), protocol: Protocol::Tcp };
        let image = nat_image(&endpoint, balance, &backends(ipv4, weights));
        let salt = salt(&endpoint);
        let whole = ServiceImage::whole(salt, image.clone());
        plane.apply(&Change::Put(endpoint, Box::new(whole))).expect("put the service in");
        let programs = pins(&sandbox).join("programs");
        let xdp = Xdp::from_pin(programs.join(maps::PROGRAM_XDP), XdpAttachType::Interface)
            .expect("open the XDP program's pin");
        let tc = SchedClassifier::from_pin(programs.join(maps::PROGRAM_TC_IN))
            .expect("open the TC program's pin");
        Self { plane, xdp, tc, endpoint, image, salt, sandbox }
    }

    /// Where the kernel sends a SYN from `client`.
    fn choice(&self, client: SocketAddr) -> SocketAddr {
        self.choice_by(client, |options| self.tc.test_run(options))
    }

    /// The same by XDP, of which each run waits for the kernel's RCU.
    fn choice_by_xdp(&self, client: SocketAddr) -> SocketAddr {
        self.choice_by(client, |options| self.xdp.test_run(options))
    }

    fn choice_by(
        &self,
        client: SocketAddr,
        run: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, ProgramError>,
    ) -> SocketAddr {
        let packet = syn(client, self.endpoint.address);
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = run(options).expect("run the program");
        assert_eq!(result.data_size_out as usize, packet.len());
        let to = destination(&out);
        assert_ne!(to, self.endpoint.address, "{client} was sent nowhere");
        to
    }

    /// Where the agent's functions say that it goes.
    fn expected(&self, hash: u32) -> SocketAddr {
        let place = hash::place(hash, self.image.slots.len() as u32);
        self.backend(self.image.slots[place as usize])
    }

    fn backend(&self, index: u32) -> SocketAddr {
        self.image.backends[index as usize].address
    }

    /// How often each backend was chosen by SYNs of so many clients.
    fn shares(&self, clients: u32) -> Vec<u32> {
        let mut counts: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for number in 0..clients {
            *counts.entry(self.choice(self.client(number))).or_default() += 1;
        }
        let of = |address| counts.get(&address).copied().unwrap_or(0);
        self.image.backends.iter().map(|backend| of(backend.address)).collect()
    }

    /// A client of the service's family; all are different.
    fn client(&self, number: u32) -> SocketAddr {
        client(self.endpoint.address.is_ipv4(), number)
    }

    /// A map, by its pin.
    fn map<V: aya::Pod>(&self, name: &str) -> Array<MapData, V> {
        let path = pins(&self.sandbox).join("maps").join(name);
        let map = MapData::from_pin(path).and_then(Map::from_map_data).expect("open the map's pin");
        map.try_into().expect("an array")
    }

    /// Puts another image of the pool in force.
    fn put(&mut self, image: PoolImage) -> Result<u64, ApplyError> {
        let image = ServiceImage::whole(self.salt, image);
        self.plane.apply(&Change::Put(self.endpoint, Box::new(image)))
    }

    /// Says how many flows each backend has. Indices are given out from 0 on, in the order of the image.
    fn set_active(&self, flows: &[u64]) {
        let mut active: Array<MapData, Active> = self.map(maps::ACTIVE);
        for (index, &flows) in flows.iter().enumerate() {
            active.set(index as u32, Active { flows }, 0).expect("set");
        }
    }
}

/// Addresses of documentation networks (RFC 5737, RFC 3849): number 0 is the service, others are backends.
fn address(ipv4: bool, number: u16, port: u16) -> SocketAddr {
    let ip: IpAddr = if ipv4 {
        Ipv4Addr::from(0xc633_6400 + u32::from(number)).into()
    } else {
        Ipv6Addr::from((0x2001_0db8 << 96) + u128::from(number)).into()
    };
    SocketAddr::new(ip, port)
}

fn backends(ipv4: bool, weights: &[u16]) -> Vec<BackendSpec> {
    let of = |(number, &weight): (usize, &u16)| BackendSpec {
        address: address(ipv4, number as u16 + 1, 8080),
        weight,
    };
    weights.iter().enumerate().map(of).collect()
}

/// A client from anywhere in 10.0.0.0/8 or 2001:db8:100::/40. An odd factor keeps different numbers different.
fn client(ipv4: bool, number: u32) -> SocketAddr {
    let scattered = number.wrapping_mul(0x9e37_79b1);
    let port = (scattered >> 16) as u16 | 1024;
    let ip: IpAddr = if ipv4 {
        Ipv4Addr::from(0x0a00_0000 | (scattered & 0x00ff_ffff)).into()
    } else {
        let interface = u64::from(scattered).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let subnet = u128::from(scattered & 0x00ff_ffff) << 64;
        Ipv6Addr::from((0x2001_0db8_0100 << 80) | subnet | u128::from(interface)).into()
    };
    SocketAddr::new(ip, port)
}

/// Another address in the same prefix, if there is one.
fn sibling(ip: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match ip {
        IpAddr::V4(ip) => {
            Ipv4Addr::from(ip.to_bits() ^ u32::MAX.checked_shr(prefix).unwrap_or(0)).into()
        }
        IpAddr::V6(ip) => {
            Ipv6Addr::from(ip.to_bits() ^ u128::MAX.checked_shr(prefix).unwrap_or(0)).into()
        }
    }
}

/// An Ethernet frame with a SYN. Checksums are left out: nobody on the way looks at them.
fn syn(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut frame = vec![0; 12];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => panic!("one packet, one family"),
    }
    frame.extend(source.port().to_be_bytes());
    frame.extend(destination.port().to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn destination(frame: &[u8]) -> SocketAddr {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if frame[12..14] == [0x08, 0x00] {
        let ip: [u8; 4] = frame[30..34].try_into().expect("four bytes");
        SocketAddr::new(Ipv4Addr::from(ip).into(), port(36))
    } else {
        let ip: [u8; 16] = frame[38..54].try_into().expect("sixteen bytes");
        SocketAddr::new(Ipv6Addr::from(ip).into(), port(56))
    }
}

fn client_hash(salt: u32, client: SocketAddr, prefix: u8) -> u32 {
    match client.ip() {
        IpAddr::V4(ip) => hash::client(salt, &ip.octets(), prefix),
        IpAddr::V6(ip) => hash::client(salt, &ip.octets(), prefix),
    }
}

fn tuple_hash(salt: u32, client: SocketAddr) -> u32 {
    match client.ip() {
        IpAddr::V4(ip) => hash::tuple(salt, &ip.octets(), client.port()),
        IpAddr::V6(ip) => hash::tuple(salt, &ip.octets(), client.port()),
    }
}

#[test]
fn round_robin_takes_strict_turns() {
    for ipv4 in [true, false] {
        let lab = Lab::new(ipv4, Balance::RoundRobin, &[2, 1, 1]);
        for number in 0..400 {
            let slot = lab.image.slots[number as usize % lab.image.slots.len()];
            assert_eq!(lab.choice(lab.client(number)), lab.backend(slot), "turn {number}");
        }
    }
}

#[test]
fn maglev_chooses_as_the_agent_says() {
    for ipv4 in [true, false] {
        let lab = Lab::new(ipv4, MAGLEV, &[1, 1, 2, 5, 1]);
        for number in 0..5000 {
            let client = lab.client(number);
            let expected = lab.expected(tuple_hash(lab.salt, client));
            if number % 10 == 0 {
                assert_eq!(lab.choice_by_xdp(client), expected, "{client} by XDP");
            } else {
                assert_eq!(lab.choice(client), expected, "{client} by TC");
            }
        }
    }
}

#[test]
fn sticky_clients_stay_together() {
    let cases = [(true, 32, 128), (true, 24, 64), (true, 9, 1), (false, 32, 128), (false, 8, 56)];
    for (ipv4, v4, v6) in cases {
        let prefix = if ipv4 { v4 } else { v6 };
        let balance = Balance::Sticky { size: TableSize::DEFAULT, prefixes: Prefixes { v4, v6 } };
        let lab = Lab::new(ipv4, balance, &[1, 3, 1]);
        for number in 0..2000 {
            let client = lab.client(number);
            let expected = lab.expected(client_hash(lab.salt, client, prefix));
            let other_port = SocketAddr::new(client.ip(), client.port() ^ 1);
            let sibling = SocketAddr::new(sibling(client.ip(), prefix), client.port());
            for client in [client, other_port, sibling] {
                assert_eq!(lab.choice(client), expected, "{client} of /{prefix}");
            }
        }
    }
}

/// Each SYN adds an active flow to the backend that it chose, so that idle ones fill up evenly, by weight.
#[test]
fn least_connections_evens_out() {
    for ipv4 in [true, false] {
        let lab = Lab::new(ipv4, Balance::LeastConnections, &[1, 1, 1, 1]);
        let shares = lab.shares(2000);
        println!("2000 flows to four equal backends: {shares:?}");
        assert!(shares.iter().all(|share| (485..=515).contains(share)), "{shares:?}");

        let lab = Lab::new(ipv4, Balance::LeastConnections, &[3, 1]);
        let shares = lab.shares(2000);
        println!("2000 flows to weights 3 and 1: {shares:?}");
        assert!((1480..=1520).contains(&shares[0]), "3 to 1: {shares:?}");
    }
}

#[test]
fn least_connections_avoids_the_busy() {
    let lab = Lab::new(true, Balance::LeastConnections, &[1, 1, 1]);
    lab.set_active(&[1_000_000, 0, 0]);
    let shares = lab.shares(900);
    assert_eq!(shares[0], 0, "the other of any two is idler: {shares:?}");

    // A count below zero is none, not a lot: chosen whenever it is one of the two, two times in three.
    let lab = Lab::new(true, Balance::LeastConnections, &[1, 1, 1]);
    lab.set_active(&[2000_u64.wrapping_neg(), 1_000_000, 1_000_000]);
    let shares = lab.shares(900);
    assert!((500..=700).contains(&shares[0]), "{shares:?}");

    let lab = Lab::new(false, Balance::LeastConnections, &[7]);
    assert_eq!(lab.shares(50), [50], "one alone is chosen");
}

/// Prints docs/balancing.md's times: run with `-- --ignored --nocapture --test-threads 1`.
#[test]
#[ignore = "measures, and asserts nothing"]
fn measure_puts() {
    const ROUNDS: usize = 15;
    for slots in [4099, 16_381, 65_521] {
        let size = TableSize::new(slots).expect("a prime");
        let balance = Balance::Maglev { size };
        let mut lab = Lab::new(true, balance, &[1; 10]);
        let [mut filled, mut put, mut each] = [vec![], vec![], vec![]];
        for round in 0..ROUNDS {
            let start = Instant::now();
            let image = nat_image(&lab.endpoint, balance, &backends(true, &[1; 10][round % 2..]));
            filled.push(start.elapsed());
            let start = Instant::now();
            lab.put(image).expect("put");
            put.push(start.elapsed());
            let mut map: Array<MapData, Slot> = lab.map(maps::SLOTS);
            let start = Instant::now();
            for place in maps::DEFAULT_SLOTS - slots..maps::DEFAULT_SLOTS {
                map.set(place, Slot { backend: 0 }, 0).expect("set");
            }
            each.push(start.elapsed());
            // What was replaced rests for a second before its place is free again.
            if slots > 16_000 {
                std::thread::sleep(Duration::from_millis(1100));
            }
        }
        let [filled, put, each] = [filled, put, each].map(median);
        println!(
            "{slots} slots: filled in {filled:.1?}, put in {put:.1?}; one by one {each:.1?} more"
        );
    }
}

/// Prints docs/balancing.md's cost of a new flow, in the kernel's own nanoseconds of single runs.
#[test]
#[ignore = "measures, and asserts nothing"]
fn measure_new_flows() {
    let size = TableSize::DEFAULT;
    let sticky = Balance::Sticky { size, prefixes: Prefixes { v4: 24, v6: 64 } };
    let balances = [Balance::RoundRobin, MAGLEV, sticky, Balance::LeastConnections];
    for ipv4 in [true, false] {
        let labs = balances.map(|balance| Lab::new(ipv4, balance, &[1; 10]));
        let mut times = [const { Vec::new() }; 4];
        for number in 0..5000 {
            for (lab, times) in labs.iter().zip(&mut times) {
                let packet = syn(lab.client(number), lab.endpoint.address);
                let options =
                    TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() };
                times.push(lab.tc.test_run(options).expect("run the program").duration);
            }
        }
        for (balance, times) in balances.iter().zip(times) {
            println!("ipv4 {ipv4}, {balance}: {:?} for a new flow", median(times));
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A half-open flow answers a SYN that is sent again, whatever was put in force meanwhile.
#[test]
fn a_syn_sent_again_goes_to_the_same_backend() {
    for balance in [Balance::RoundRobin, MAGLEV, Balance::LeastConnections] {
        let mut lab = Lab::new(true, balance, &[1, 1, 1]);
        let client = lab.client(1);
        let first = lab.choice(client);
        let mut others = backends(true, &[1, 1, 1]);
        others.retain(|backend| backend.address != first);
        let image = nat_image(&lab.endpoint, balance, &others);
        lab.put(image).expect("put");
        assert_eq!(lab.choice(client), first, "{balance}");
        assert_ne!(lab.choice(lab.client(2)), first, "{balance}: a new client");
    }
}

/// What an earlier agent put in force is read back as it was, so that a restart changes nothing.
#[test]
fn a_restart_finds_the_selection_again() {
    let prefixes = Prefixes { v4: 24, v6: 64 };
    let sticky = Balance::Sticky { size: TableSize::DEFAULT, prefixes };
    let cases = [(true, MAGLEV), (false, sticky), (false, Balance::LeastConnections)];
    for (ipv4, balance) in cases {
        let Lab { plane, endpoint, image, salt, sandbox, .. } = Lab::new(ipv4, balance, &[1, 2, 3]);
        drop(plane);
        let plane = open(&sandbox);
        let found = plane.installed().get(&endpoint).expect("the service");
        assert!(found.stable.routes_like(&image), "{balance}");
        assert_eq!((found.stable.select, found.salt), (image.select, salt));
    }
}
