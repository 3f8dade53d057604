//! A case at work: its packets are sent, and what became of them is checked, from the bytes to the flow
//! tables.

use std::{collections::BTreeMap, net::SocketAddr};

use graylb_agent::model::spec::{Endpoint, Protocol};
use graylb_common::{backend::BackendCounters, flow::FLOW_REPLY, verdict::Verdict};

use super::{
    builder::Packet,
    case::{Count, Event, Fate, Leaves, Step},
    flows::{Table, Tuple},
    lab::Lab,
    path::Path,
    run::{Entry, Expected, Hook},
};

/// A running case.
pub(super) struct Exchange {
    path: Path,
    service: Endpoint,
    client: SocketAddr,
    source: SocketAddr,
}

impl Exchange {
    /// A client and a service that no other case in this lab has.
    pub(super) fn new(lab: &mut Lab, path: Path, protocol: Protocol) -> Self {
        let address = path.service(lab.port());
        let client = path.client(lab.number());
        let service = Endpoint { address, protocol };
        Self { path, service, client, source: path.source(client) }
    }

    /// Puts a pool of these backends in force, one turn each.
    pub(super) fn put(&self, lab: &mut Lab, pool: &[u8]) {
        let backends: Vec<_> = pool.iter().map(|&n| (self.path.backend(n), 1)).collect();
        lab.put(self.service, &format!("{pool:?}"), &backends);
    }

    fn to_backend(&self) -> Tuple {
        (self.client, self.service.address)
    }

    fn to_client(&self, backend: u8) -> Tuple {
        (self.path.backend(backend), self.source)
    }

    /// Lets a step happen, and checks everything that must follow from it.
    pub(super) fn step(&self, lab: &mut Lab, name: &str, step: &Step) {
        match step.event {
            Event::Switch(pool) => self.put(lab, pool),
            Event::Age { client, backend } => {
                if client {
                    lab.maps.age(self.to_backend());
                }
                if let Some(backend) = backend {
                    lab.maps.age(self.to_client(backend));
                }
            }
            Event::Client => {
                let packet = self.path.from_client(self.packet(step, self.to_backend()));
                self.send(lab, name, step, self.path.client_entry(), &packet);
            }
            Event::Backend(number) => {
                let packet = self.packet(step, self.to_client(number));
                let packet = self.path.from_backend(packet, number);
                self.send(lab, name, step, self.path.backend_entry(), &packet);
            }
        }
        if let Some(leaves) = step.leaves {
            self.check_tables(lab, name, leaves);
        }
    }

    fn packet(&self, step: &Step, (source, destination): Tuple) -> Packet {
        let packet = match self.service.protocol {
            Protocol::Tcp => Packet::tcp(source, destination, step.flags)
                .numbered(step.numbers.0, step.numbers.1),
            Protocol::Udp if step.checksum => Packet::udp(source, destination),
            Protocol::Udp => Packet::udp(source, destination).without_checksum(),
        };
        packet.filled(step.length)
    }

    fn send(&self, lab: &Lab, name: &str, step: &Step, entry: Entry, packet: &Packet) {
        let expected = match step.fate {
            Fate::ToBackend(number) => self.path.carried(packet, self.source, number),
            Fate::ToClient => self.path.returned(packet, self.service.address, self.client),
            Fate::Unchanged(verdict) => Expected::unchanged(verdict, &packet.bytes()),
            Fate::Foreign => {
                let out = entry.hook == Hook::TcOut;
                let verdict = if out { Verdict::HostOutput } else { Verdict::NotService };
                Expected::unchanged(verdict, &packet.bytes())
            }
            Fate::Dropped(verdict) => Expected::dropped(verdict),
        };
        let mut wanted = lab.counters(self.service);
        for (number, count) in step.counts {
            let counters = wanted.entry(self.path.backend(*number)).or_default();
            *count.of(counters) += 1;
        }
        lab.check(name, entry, &packet.bytes(), &expected);
        assert_eq!(without_zeros(lab.counters(self.service)), without_zeros(wanted), "{name}");
    }

    fn check_tables(&self, lab: &Lab, name: &str, leaves: Leaves) {
        match leaves {
            Leaves::Nothing => {
                for table in [Table::Tcp, Table::HalfOpen, Table::Udp] {
                    self.check_no_flow(lab, name, table, self.to_backend());
                }
            }
            Leaves::HalfOpen(number) => {
                self.check_flow(lab, name, Table::HalfOpen, number);
                self.check_no_flow(lab, name, Table::Tcp, self.to_backend());
            }
            Leaves::Established(number) => {
                self.check_flow(lab, name, Table::Tcp, number);
                self.check_no_flow(lab, name, Table::HalfOpen, self.to_backend());
                self.check_no_flow(lab, name, Table::HalfOpen, self.to_client(number));
            }
            Leaves::Both(connection, handshake) => {
                self.check_flow(lab, name, Table::Tcp, connection);
                self.check_flow(lab, name, Table::HalfOpen, handshake);
            }
            Leaves::Pinned(number) => self.check_flow(lab, name, Table::Udp, number),
        }
    }

    fn check_no_flow(&self, lab: &Lab, name: &str, table: Table, at: Tuple) {
        assert_eq!(lab.maps.flow(table, at), None, "{name}: {table:?} flow of {at:?}");
    }

    /// Both directions are there, and each says what the other's tuple is.
    fn check_flow(&self, lab: &Lab, name: &str, table: Table, number: u8) {
        let backend = self.path.backend(number);
        let about = format!("{name}: {table:?} flow to {backend}");
        let forward = lab.maps.flow(table, self.to_backend()).expect(&about);
        let reply = lab.maps.flow(table, self.to_client(number)).expect(&about);
        assert_eq!(forward.rewrite, (self.source, backend), "{about}");
        assert_eq!(reply.rewrite, (self.service.address, self.client), "{about}");
        assert_eq!((forward.backend, reply.backend), (backend, backend), "{about}");
        assert_eq!(forward.generation, reply.generation, "{about}");
        assert_eq!((forward.state & FLOW_REPLY, reply.state & FLOW_REPLY), (0, FLOW_REPLY));
    }
}

impl Count {
    const fn of(self, counters: &mut BackendCounters) -> &mut u64 {
        match self {
            Self::Opened => &mut counters.opened,
            Self::Established => &mut counters.established,
            Self::Refused => &mut counters.refused,
            Self::Closed => &mut counters.closed,
            Self::Unanswered => &mut counters.unanswered,
        }
    }
}

/// A backend that was never in force has no counters, which is as good as zeros. Times are not compared.
fn without_zeros(
    counters: BTreeMap<SocketAddr, BackendCounters>,
) -> BTreeMap<SocketAddr, BackendCounters> {
    let timeless = |counters| BackendCounters { handshake: Default::default(), ..counters };
    let counters = counters.into_iter().map(|(address, counters)| (address, timeless(counters)));
    counters.filter(|(_, value)| *value != BackendCounters::default()).collect()
}
