//! The ways through: which hook, which family, and where the backend is. A path knows where the packets
//! of each side enter, and what a rewritten packet must look like when it leaves.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use graylb_common::verdict::Verdict;

use super::{
    builder::{Mac, Packet},
    run::{Action, Entry, Expected, Hook},
    topology::{self, EXT, EXT_MAC, Family, GATEWAY_MAC, INT, INT_MAC, LO},
};

/// Where a path's backends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind another interface than the clients.
    Routed,
    /// Behind the clients' interface.
    OneArmed,
    /// On this host, the clients outside: their replies pass the program on the way out.
    Local,
    /// On this host, as the clients are.
    Loopback,
}

/// A way through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The hook on the way in.
    pub hook: Hook,
    /// Where the backends are.
    pub place: Place,
    /// The IP version.
    pub family: Family,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.hook, self.place, self.family)
    }
}

/// Linux gives its clients ports from here to 60999.
const FIRST_EPHEMERAL: u16 = 32768;
/// The port below which only privileged programs listen.
const FIRST_UNPRIVILEGED: u16 = 1024;

impl Path {
    /// Every path.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut paths = Vec::new();
        for place in [Place::Routed, Place::OneArmed, Place::Local, Place::Loopback] {
            paths.extend(Self::to(place));
        }
        paths
    }

    /// Every path to one place.
    #[must_use]
    pub fn to(place: Place) -> Vec<Self> {
        let mut paths = Vec::new();
        for family in Family::ALL {
            paths.extend(Hook::IN.map(|hook| Self { hook, place, family }));
        }
        paths
    }

    /// A client, different for each `number` below 7000.
    #[must_use]
    pub const fn client(&self, number: u16) -> SocketAddr {
        let ip = match self.place {
            Place::Loopback => self.family.loopback(),
            Place::Routed | Place::OneArmed | Place::Local => {
                self.family.client((number % 200) as u8 + 1)
            }
        };
        SocketAddr::new(ip, FIRST_EPHEMERAL + number)
    }

    /// The virtual endpoint at `port`.
    #[must_use]
    pub const fn service(&self, port: u16) -> SocketAddr {
        let ip = match self.place {
            Place::Loopback => self.family.loopback(),
            Place::Routed | Place::OneArmed | Place::Local => self.family.service(),
        };
        SocketAddr::new(ip, port)
    }

    /// Backend `number`.
    #[must_use]
    pub const fn backend(&self, number: u8) -> SocketAddr {
        let ip = match self.place {
            Place::Routed => self.family.backend(number),
            Place::OneArmed => self.family.arm(number),
            Place::Local => self.family.local(number),
            Place::Loopback => self.family.loopback(),
        };
        SocketAddr::new(ip, 8080 + number as u16)
    }

    /// The address by which a backend sees `client`: its own, except on loopback, where another
    /// connection of the client, from the same port to the backend itself, must stay apart.
    #[must_use]
    pub fn source_ip(&self, client: SocketAddr) -> IpAddr {
        if self.place == Place::Loopback && client.ip() == Ipv4Addr::LOCALHOST {
            Ipv4Addr::new(127, 64, 0, 1).into()
        } else {
            client.ip()
        }
    }

    /// How a backend sees one of this path's clients. Where loopback has but one address, the port moves.
    #[must_use]
    pub fn source(&self, client: SocketAddr) -> SocketAddr {
        let ip = self.source_ip(client);
        let port = if self.place == Place::Loopback && ip == client.ip() {
            client.port() - FIRST_EPHEMERAL + FIRST_UNPRIVILEGED
        } else {
            client.port()
        };
        SocketAddr::new(ip, port)
    }

    /// Where clients' packets enter.
    #[must_use]
    pub const fn client_entry(&self) -> Entry {
        match self.place {
            Place::Routed | Place::OneArmed | Place::Local => {
                Entry { hook: self.hook, interface: EXT }
            }
            Place::Loopback => Entry { hook: self.hook, interface: LO },
        }
    }

    /// Where backends' packets enter.
    #[must_use]
    pub const fn backend_entry(&self) -> Entry {
        match self.place {
            Place::Routed => Entry { hook: self.hook, interface: INT },
            Place::OneArmed => Entry { hook: self.hook, interface: EXT },
            Place::Local => Entry { hook: Hook::TcOut, interface: EXT },
            Place::Loopback => Entry { hook: self.hook, interface: LO },
        }
    }

    /// The packet in a client's frame.
    #[must_use]
    pub const fn from_client(&self, packet: Packet) -> Packet {
        match self.place {
            Place::Routed | Place::OneArmed | Place::Local => packet.hop(GATEWAY_MAC, EXT_MAC),
            Place::Loopback => packet,
        }
    }

    /// The packet in the frame of backend `number`.
    #[must_use]
    pub const fn from_backend(&self, packet: Packet, number: u8) -> Packet {
        match self.place {
            Place::Routed => packet.hop(topology::backend_mac(number), INT_MAC),
            Place::OneArmed => packet.hop(topology::arm_mac(number), EXT_MAC),
            Place::Local => packet.hop(EXT_MAC, GATEWAY_MAC),
            Place::Loopback => packet,
        }
    }

    /// What a client's packet must be on its way to backend `number`, seen from `source`.
    #[must_use]
    pub fn carried(&self, packet: &Packet, source: SocketAddr, number: u8) -> Expected {
        let packet = packet.clone().readdressed(source, self.backend(number));
        match self.place {
            Place::Routed => self.redirected(&packet, INT_MAC, topology::backend_mac(number)),
            Place::OneArmed => self.redirected(&packet, EXT_MAC, topology::arm_mac(number)),
            Place::Local | Place::Loopback => {
                Expected::new(Verdict::Delivered, Action::Pass, packet.bytes())
            }
        }
    }

    /// What a backend's packet must be on its way from `service` to `client`.
    #[must_use]
    pub fn returned(&self, packet: &Packet, service: SocketAddr, client: SocketAddr) -> Expected {
        let packet = packet.clone().readdressed(service, client);
        match self.place {
            Place::Routed | Place::OneArmed => self.redirected(&packet, EXT_MAC, GATEWAY_MAC),
            Place::Local => Expected::new(Verdict::Replied, Action::Pass, packet.bytes()),
            Place::Loopback => Expected::new(Verdict::Delivered, Action::Pass, packet.bytes()),
        }
    }

    /// One hop on; where that is back out of the interface it came from, XDP has an action of its own.
    /// Under TC the kernel fills the MAC addresses in, after the program.
    #[must_use]
    pub fn redirected(&self, packet: &Packet, from: Mac, to: Mac) -> Expected {
        let (from, to) =
            if self.hook == Hook::Xdp { (from, to) } else { (packet.macs.1, packet.macs.0) };
        let back = self.place == Place::OneArmed && self.hook == Hook::Xdp;
        let action = if back { Action::Transmit } else { Action::Redirect };
        Expected::new(Verdict::Redirected, action, packet.clone().routed(from, to).bytes())
    }
}
