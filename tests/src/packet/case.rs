//! Cases: one client, one service, a few backends, and packets one after another, each with what must
//! become of it. A case says nothing about hooks, families and places: it runs on any [`Path`].

use graylb_agent::model::spec::Protocol;
use graylb_common::verdict::Verdict;

use super::{exchange::Exchange, lab::Lab, path::Path};

/// A backend's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// [`graylb_common::backend::BackendCounters::opened`].
    Opened,
    /// [`graylb_common::backend::BackendCounters::established`].
    Established,
    /// [`graylb_common::backend::BackendCounters::refused`].
    Refused,
    /// [`graylb_common::backend::BackendCounters::closed`].
    Closed,
    /// [`graylb_common::backend::BackendCounters::unanswered`].
    Unanswered,
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

/// What happens in a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// The client sends.
    Client,
    /// This backend sends.
    Backend(u8),
    /// A pool of these backends is put in force.
    Switch(&'static [u8]),
    /// UDP flow entries are made to look idle.
    Age { client: bool, backend: Option<u8> },
}

/// One event of a case and what must follow from it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub(super) event: Event,
    pub(super) flags: u8,
    pub(super) numbers: (u32, u32),
    pub(super) length: usize,
    pub(super) checksum: bool,
    pub(super) fate: Fate,
    pub(super) counts: &'static [(u8, Count)],
    pub(super) leaves: Option<Leaves>,
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
        let exchange = Exchange::new(lab, path, self.protocol);
        exchange.put(lab, self.pool);
        for (place, step) in self.steps.iter().enumerate() {
            let name = format!("{} ({path}), step {}", self.name, place + 1);
            exchange.step(lab, &name, step);
        }
    }
}
