//! Flow tables with far fewer entries than there are flows: the kernel evicts what was not used for
//! longest (roughly: its LRU lists are per CPU and approximate), new flows are still served, and the
//! counters follow.

use std::net::Ipv4Addr;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use graylb_agent::{
    config::{FlowsConfig, LimitsConfig},
    model::spec::Protocol,
};
use graylb_common::{
    flow::Flow,
    maps,
    verdict::{SERVICE_VERDICTS, VerdictCounters},
};
use graylb_tests::flow_lab::{FlowLab, Key, backend, rules, service};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Entries of each table.
const ENTRIES: u32 = 1024;
/// New flows, five times as many as fit: each takes two entries.
const NEW: u32 = 5000;

struct Traffic {
    lab: FlowLab,
    program: SchedClassifier,
}

impl Traffic {
    fn new() -> Self {
        let flows = FlowsConfig {
            tcp: ENTRIES,
            half_open: ENTRIES,
            udp: ENTRIES,
            ..FlowsConfig::default()
        };
        let mut lab = FlowLab::new(flows, LimitsConfig::default());
        lab.put(service(1, Protocol::Tcp), &[backend(0)]);
        let program =
            SchedClassifier::from_pin(lab.program(maps::PROGRAM_TC_IN)).expect("open the program");
        Self { lab, program }
    }

    /// Sends a segment through the TC program, on the loopback interface.
    fn send(&self, key: &Key, flags: u8, sequence: u32, acknowledgement: u32) {
        let frame = frame(key, flags, sequence, acknowledgement);
        let mut out = [0_u8; 256];
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::default()
        };
        self.program.test_run(options).expect("run the program");
    }

    fn verdicts(&self) -> VerdictCounters {
        self.lab.plane.verdicts().expect("verdicts")
    }

    /// Opens a connection, as its three packets pass by.
    fn connect(&self, client: u32) {
        let key = client_key(client);
        self.send(&key, SYN, 100, 0);
        self.send(&reply_key(client), SYN | ACK, 7, 101);
        self.send(&key, ACK, 101, 8);
    }

    /// Connections among these that are in the table, both ways.
    fn alive(&self, clients: impl Iterator<Item = u32>) -> usize {
        let table = self.lab.table::<Flow<[u8; 4]>>(maps::TCP_V4);
        let both = |client: &u32| {
            table.get(&client_key(*client), 0).is_ok() && table.get(&reply_key(*client), 0).is_ok()
        };
        clients.filter(both).count()
    }
}

fn client_key(client: u32) -> Key {
    Key {
        source: (0x7f00_0000 + client).to_be_bytes(),
        destination: [10, 96, 0, 1],
        source_port: 40_000,
        destination_port: 80,
    }
}

fn reply_key(client: u32) -> Key {
    Key {
        source: Ipv4Addr::from_bits(0x0ac0_0000).octets(),
        source_port: 8080,
        // graylb moves loopback clients to 127.64.0.0 towards backends on the host.
        destination: (0x7f40_0000 + client).to_be_bytes(),
        destination_port: 40_000,
    }
}

/// Ethernet, IPv4 and TCP headers. Nobody looks at the checksums here.
fn frame(key: &Key, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(key.source);
    frame.extend(key.destination);
    frame.extend(key.source_port.to_be_bytes());
    frame.extend(key.destination_port.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend(acknowledgement.to_be_bytes());
    frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

#[test]
fn a_flood_of_syns_evicts_no_established_flow() {
    let mut traffic = Traffic::new();
    let established = 100;
    (0..established).for_each(|client| traffic.connect(client));
    for client in 1000..1000 + NEW {
        traffic.send(&client_key(client), SYN, 100, 0);
    }
    assert_eq!(traffic.alive(0..established), established as usize);
    assert_eq!(traffic.verdicts().flow_table_full, 0);
    let report = traffic.lab.sweep_now(&rules());
    let flows = report.backends[&0];
    println!("{NEW} SYNs into {ENTRIES} entries: {} half-open flows are left", flows.half_open);
    assert!(report.tables[1].entries <= u64::from(ENTRIES));
    assert_eq!(flows.established, u64::from(established));
    let active = traffic.lab.active().get(&0, 0).expect("counter").flows;
    // An entry alone is no flow that was counted, and goes with later sweeps.
    assert_eq!(active, flows.open());
    assert_eq!(report.vanished[&0] + active, u64::from(established + NEW));
}

#[test]
fn with_more_connections_than_room_new_ones_work_and_those_in_use_stay() {
    let mut traffic = Traffic::new();
    let in_use = 100;
    (0..in_use).for_each(|client| traffic.connect(client));
    for client in 1000..1000 + NEW {
        traffic.connect(client);
        let before = traffic.verdicts().delivered;
        traffic.send(&client_key(client), ACK, 101, 8);
        assert_eq!(traffic.verdicts().delivered, before + 1, "new connection {client} is served");
        if client % 10 == 0 {
            for client in 0..in_use {
                traffic.send(&client_key(client), ACK, 101, 8);
                traffic.send(&reply_key(client), ACK, 8, 101);
            }
        }
    }
    let alive = traffic.alive(0..in_use);
    println!(
        "{NEW} connections into {ENTRIES} entries: {alive} of {in_use} in use are left, and {} others",
        traffic.alive(1000..1000 + NEW)
    );
    assert_eq!(traffic.verdicts().flow_table_full, 0);
    let report = traffic.lab.sweep_now(&rules());
    assert!(report.tables[0].entries <= u64::from(ENTRIES));
    let active = traffic.lab.active().get(&0, 0).expect("counter").flows;
    assert_eq!(active, report.backends[&0].open());
    assert!(alive >= 90, "{alive} of {in_use} connections in use survived");
}

#[test]
fn what_a_service_does_not_take_is_counted_for_it() {
    let mut traffic = Traffic::new();
    traffic.lab.put(service(2, Protocol::Tcp), &[]);
    let other = Key { destination: [10, 96, 0, 2], ..client_key(1) };
    traffic.send(&client_key(1), ACK, 1, 1);
    traffic.send(&client_key(1), RST, 1, 1);
    traffic.send(&other, SYN, 1, 1);
    traffic.send(&client_key(2), SYN, 1, 1);
    traffic.send(&Key { destination: [10, 96, 0, 9], ..client_key(1) }, FIN | ACK, 1, 1);
    let drops = traffic.lab.plane.service_drops().expect("drops");
    let (first, second) = (drops[&service(1, Protocol::Tcp)], drops[&service(2, Protocol::Tcp)]);
    assert_eq!((first.no_flow, first.no_backend), (2, 0));
    assert_eq!((second.no_flow, second.no_backend), (0, 1));
    let all = traffic.verdicts();
    for &verdict in SERVICE_VERDICTS {
        let of_services = first.get(verdict).zip(second.get(verdict)).map(|(a, b)| a + b);
        assert_eq!(of_services, Some(all.get(verdict)), "{verdict:?}");
    }
    // Another service that gets the number starts from zero.
    let endpoint = service(1, Protocol::Tcp);
    traffic.lab.plane.apply(&graylb_agent::compile::Change::Remove(endpoint)).expect("remove");
    traffic.lab.put(service(3, Protocol::Tcp), &[backend(0)]);
    let drops = traffic.lab.plane.service_drops().expect("drops");
    assert_eq!(drops[&service(3, Protocol::Tcp)].no_flow, 0);
}
