//! The two networks that tests run in, both for IPv4 and IPv6.

use std::net::{IpAddr, SocketAddr};

use crate::{namespace::Namespace, sandbox::Sandbox};

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `v4` or `v6`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// The loopback address with a port.
    #[must_use]
    pub fn loopback(self, port: u16) -> SocketAddr {
        self.pick("127.0.0.1", "::1", port)
    }

    pub(crate) fn pick(self, v4: &str, v6: &str, port: u16) -> SocketAddr {
        let text = if self == Self::V4 { v4 } else { v6 };
        SocketAddr::new(text.parse().expect("an address"), port)
    }
}

/// A client, graylb, and two backends behind it, in four namespaces. Replies come back through graylb,
/// since it is everybody's way to everybody else.
///
/// ```text
/// client 10.1.0.2 -- gc  graylb  g1 -- 10.2.1.2 backend 1
///        fd01::2                 g2 -- 10.2.2.2 backend 2
/// ```
///
/// The virtual address is one of graylb's.
#[derive(Debug)]
pub struct Routed {
    /// Where clients are.
    pub client: Namespace,
    /// Where the agent runs.
    pub graylb: Namespace,
    /// Where the backends are.
    pub backends: [Namespace; 2],
}

impl Routed {
    /// graylb's interfaces.
    pub const INTERFACES: [&str; 3] = ["gc", "g1", "g2"];

    /// Builds it; it is usable on return.
    #[must_use]
    pub fn new(sandbox: &Sandbox) -> Self {
        let graylb = Namespace::add(sandbox, "graylb");
        graylb.forward();
        for family in Family::BOTH {
            let length = if family == Family::V4 { 32 } else { 128 };
            graylb.address("lo", &format!("{}/{length}", Self::virtual_address(family)));
        }
        let client = Namespace::add(sandbox, "client");
        join(&client, "uplink", &graylb, "gc", "10.1.0", "fd01:");
        let backends = [Namespace::add(sandbox, "one"), Namespace::add(sandbox, "two")];
        join(&backends[0], "uplink", &graylb, "g1", "10.2.1", "fd02:1:");
        join(&backends[1], "uplink", &graylb, "g2", "10.2.2", "fd02:2:");
        let routed = Self { client, graylb, backends };
        for namespace in [&routed.client, &routed.graylb].into_iter().chain(&routed.backends) {
            namespace.wait_usable();
        }
        routed
    }

    /// Makes every end that faces graylb fit for native XDP there.
    pub fn face_xdp(&self) {
        self.client.face_xdp("uplink");
        self.backends.iter().for_each(|backend| backend.face_xdp("uplink"));
    }

    /// The address of the virtual endpoints.
    #[must_use]
    pub fn virtual_address(family: Family) -> IpAddr {
        family.pick("10.9.0.1", "fd09::1", 0).ip()
    }

    /// The client's address.
    #[must_use]
    pub fn client_address(family: Family) -> IpAddr {
        family.pick("10.1.0.2", "fd01::2", 0).ip()
    }

    /// Where backend `number`, 0 or 1, listens on `port`.
    #[must_use]
    pub fn backend_address(family: Family, number: usize, port: u16) -> SocketAddr {
        match number {
            0 => family.pick("10.2.1.2", "fd02:1::2", port),
            _ => family.pick("10.2.2.2", "fd02:2::2", port),
        }
    }
}

/// Connects a host (address 2 of both networks) to graylb (address 1, the way to everywhere else).
fn join(host: &Namespace, device: &str, graylb: &Namespace, port: &str, v4: &str, v6: &str) {
    host.connect(device, graylb, port);
    graylb.address(port, &format!("{v4}.1/24"));
    graylb.address(port, &format!("{v6}:1/64"));
    host.address(device, &format!("{v4}.2/24"));
    host.address(device, &format!("{v6}:2/64"));
    host.ip(&format!("route add default via {v4}.1"));
    host.ip(&format!("-6 route add default via {v6}:1"));
}

/// One namespace with nothing but its loopback interface: client, graylb and backends are one host.
#[must_use]
pub fn host(sandbox: &Sandbox) -> Namespace {
    let host = Namespace::add(sandbox, "host");
    host.wait_usable();
    host
}
