//! Cases: one client, one service, a few backends, and packets one after another, each with what must
//! become of it. A case says nothing about hooks, families and places: it runs on any [`Path`].

use std::{collections::BTreeMap, net::SocketAddr};

use graylb_agent::model::spec::{Endpoint, Protocol};
use graylb_common::{backend::BackendCounters, flow::FLOW_REPLY, verdict::Verdict};

use super::{
    builder::Packet,
    flows::{Table, Tuple},
    lab::Lab,
    path::Path,
    run::{Entry, Expected, Hook},
};

/// A backend's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// [`BackendCounters::opened`].
    Opened,
    /// [`BackendCounters::established`].
    Established,
    /// [`BackendCounters::refused`].
    Refused,
    /// [`BackendCounters::closed`].
    Closed,
}

/// What must become of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// Rewritten, on its way to this backend.
    ToBackend(u8),
    /// Rewritten, on its way to the client.
    ToClient,
    /// Handed on unchanged.
    Unchanged(Verdict),
    /// Handed on unchanged, being of no flow and to no service.
    Foreign,
    /// Dropped.
    Dropped(Verdict),
}

/// What the flow tables must hold of the client's tuple after a packet.
#[derive(Clone, Copy, Debug)]
pub enum Leaves {
    /// Nothing.
    Nothing,
    /// A handshake with this backend.
    HalfOpen(u8),
    /// A connection to this backend.
    Established(u8),
    /// A connection to the first, and beside it a handshake with the second.
    Both(u8, u8),
    /// A UDP flow to this backend.
    Pinned(u8),
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Client,
    Backend(u8),
    Switch(&'static [u8]),
    Age { client: bool, backend: Option<u8> },
}

/// One event of a case and what must follow from it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    event: Event,
    flags: u8,
    numbers: (u32, u32),
    length: usize,
    checksum: bool,
    fate: Fate,
    counts: &'static [(u8, Count)],
    leaves: Option<Leaves>,
}

const fn step(event: Event, flags: u8, fate: Fate) -> Step {
    Step {
        event,
        flags,
        numbers: (0, 0),
        length: 0,
        checksum: true,
        fate,
        counts: &[],
        leaves: None,
    }
}

/// The client sends a segment (a datagram where the case is UDP's); it goes to backend 0.
#[must_use]
pub const fn client(flags: u8) -> Step {
    step(Event::Client, flags, Fate::ToBackend(0))
}

/// A backend sends a segment or datagram to where the client's packets come from; it goes to the client.
#[must_use]
pub const fn backend(number: u8, flags: u8) -> Step {
    step(Event::Backend(number), flags, Fate::ToClient)
}

/// Another pool, of these backends, is put in force.
#[must_use]
pub const fn switch(pool: &'static [u8]) -> Step {
    step(Event::Switch(pool), 0, Fate::ToClient)
}

/// Makes the UDP flow look idle: the client's direction, and that of this backend.
#[must_use]
pub const fn age(client: bool, backend: Option<u8>) -> Step {
    step(Event::Age { client, backend }, 0, Fate::ToClient)
}

impl Step {
    /// With these sequence and acknowledgement numbers.
    #[must_use]
    pub const fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.numbers = (sequence, acknowledgement);
        self
    }

    /// With so many bytes of payload.
    #[must_use]
    pub const fn data(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// A UDP datagram without a checksum.
    #[must_use]
    pub const fn without_checksum(mut self) -> Self {
        self.checksum = false;
        self
    }

    /// It must go to this backend.
    #[must_use]
    pub const fn to(mut self, backend: u8) -> Self {
        self.fate = Fate::ToBackend(backend);
        self
    }

    /// It must be handed on unchanged.
    #[must_use]
    pub const fn passes(mut self, verdict: Verdict) -> Self {
        self.fate = Fate::Unchanged(verdict);
        self
    }

    /// It must be handed on unchanged, being of no flow and to no service.
    #[must_use]
    pub const fn is_foreign(mut self) -> Self {
        self.fate = Fate::Foreign;
        self
    }

    /// It must be dropped.
    #[must_use]
    pub const fn drops(mut self, verdict: Verdict) -> Self {
        self.fate = Fate::Dropped(verdict);
        self
    }

    /// These counters must go up by one, and no other.
    #[must_use]
    pub const fn counts(mut self, counts: &'static [(u8, Count)]) -> Self {
        self.counts = counts;
        self
    }

    /// The flow tables must hold this afterwards.
    #[must_use]
    pub const fn leaves(mut self, leaves: Leaves) -> Self {
        self.leaves = Some(leaves);
        self
    }
}

/// A described series of packets.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The backends in force at first, in turn.
    pub pool: &'static [u8],
    /// What happens.
    pub steps: &'static [Step],
}

/// Runs every case on every path, in one lab; prints how many that were.
pub fn run_all(cases: &[Case], paths: &[Path]) {
    Lab::with(|lab| {
        for case in cases {
            for path in paths {
                case.run(lab, *path);
            }
        }
        println!("{} cases on {} paths", cases.len(), paths.len());
    });
}

impl Case {
    /// Runs on one path, with a client and a service of its own.
    pub fn run(&self, lab: &mut Lab, path: Path) {
        let address = path.service(lab.port());
        let client = path.client(lab.number());
        let session = Session {
            path,
            service: Endpoint { address, protocol: self.protocol },
            client,
            source: path.source(client),
        };
        session.put(lab, self.pool);
        for (place, step) in self.steps.iter().enumerate() {
            let name = format!("{} ({path}), step {}", self.name, place + 1);
            session.step(lab, &name, step);
        }
    }
}

/// A running case.
struct Session {
    path: Path,
    service: Endpoint,
    client: SocketAddr,
    source: SocketAddr,
}

impl Session {
    fn put(&self, lab: &mut Lab, pool: &[u8]) {
        let backends: Vec<_> = pool.iter().map(|&n| (self.path.backend(n), 1)).collect();
        lab.put(self.service, &format!("{pool:?}"), &backends);
    }

    fn to_backend(&self) -> Tuple {
        (self.client, self.service.address)
    }

    fn to_client(&self, backend: u8) -> Tuple {
        (self.path.backend(backend), self.source)
    }

    fn step(&self, lab: &mut Lab, name: &str, step: &Step) {
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
        }
    }
}

/// A backend that was never in force has no counters, which is as good as zeros.
fn without_zeros(
    counters: BTreeMap<SocketAddr, BackendCounters>,
) -> BTreeMap<SocketAddr, BackendCounters> {
    counters.into_iter().filter(|(_, value)| *value != BackendCounters::default()).collect()
}
