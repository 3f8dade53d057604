//! The network around the programs: two interfaces of a router in a namespace of the test's own, with
//! fixed addresses, static routes and permanent neighbours, so that every next hop is known beforehand.
//!
//! ```text
//! clients 198.51.100.0/24 ── gateway 192.0.2.1 ── ext [router] int ── backends 10.1.0.1 …
//!                     one-armed backends 192.0.2.11 … ─┘ └─ backends of the router itself 10.2.0.1 …
//! ```

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
};

use rustix::fs::{Mode, OFlags};

use super::builder::Mac;
use crate::sandbox::Sandbox;

/// Index of the loopback interface, in every namespace.
pub const LO: u32 = 1;
/// Index of the interface towards clients.
pub const EXT: u32 = 101;
/// Index of the interface towards backends.
pub const INT: u32 = 201;
/// Name of the interface towards clients.
pub const EXT_NAME: &str = "ext";

/// Address of `ext`.
pub const EXT_MAC: Mac = [2, 0, 0, 0, 1, 0];
/// Address of the clients' gateway.
pub const GATEWAY_MAC: Mac = [2, 0, 0, 0, 1, 1];
/// Address of `int`.
pub const INT_MAC: Mac = [2, 0, 0, 0, 2, 0];
/// MTU of both interfaces.
pub const MTU: usize = 1500;
/// MTU of the route to [`Family::narrow`].
pub const NARROW_MTU: usize = 1380;
/// How many backends there are in each place.
pub const BACKENDS: u8 = 3;

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
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The address that reads `v4` or `v6`.
    const fn pick(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Self::V4 => {
                let [a, b, c, d] = v4;
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            Self::V6 => {
                let [a, b, c, d, e, f, g, h] = v6;
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
            }
        }
    }

    /// A client behind the gateway.
    #[must_use]
    pub const fn client(self, number: u8) -> IpAddr {
        let n = number as u16;
        self.pick([198, 51, 100, number], [0x2001, 0xdb8, 0xc, 0, 0, 0, 0xc0de, n])
    }

    /// The virtual address, on no interface.
    #[must_use]
    pub const fn service(self) -> IpAddr {
        self.pick([192, 0, 2, 80], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x80])
    }

    /// Backend `number` behind `int`; its MAC address is [`backend_mac`].
    #[must_use]
    pub const fn backend(self, number: u8) -> IpAddr {
        self.pick([10, 1, 0, number + 1], [0xfd00, 1, 0, 0, 0, 0, 0, number as u16 + 1])
    }

    /// A neighbour on `int` that does not answer.
    #[must_use]
    pub const fn silent(self) -> IpAddr {
        self.pick([10, 1, 0, 99], [0xfd00, 1, 0, 0, 0, 0, 0, 0x99])
    }

    /// Backend `number` on the clients' side; its MAC address is [`arm_mac`].
    #[must_use]
    pub const fn arm(self, number: u8) -> IpAddr {
        let n = number as u16;
        self.pick([192, 0, 2, 11 + number], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11 + n])
    }

    /// Backend `number` on the router itself.
    #[must_use]
    pub const fn local(self, number: u8) -> IpAddr {
        self.pick([10, 2, 0, number + 1], [0xfd00, 2, 0, 0, 0, 0, 0, number as u16 + 1])
    }

    /// The loopback address.
    #[must_use]
    pub const fn loopback(self) -> IpAddr {
        self.pick([127, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1])
    }

    /// An address that no route leads to.
    #[must_use]
    pub const fn nowhere(self) -> IpAddr {
        self.pick([203, 0, 113, 1], [0xfd00, 0xdead, 0, 0, 0, 0, 0, 1])
    }

    /// An address behind backend 0, by a route that takes packets of [`NARROW_MTU`]. Locked: otherwise
    /// IPv4 packets that are forwarded do not mind it (net.ipv4.ip_forward_use_pmtu).
    #[must_use]
    pub const fn narrow(self) -> IpAddr {
        self.pick([10, 4, 0, 1], [0xfd00, 4, 0, 0, 0, 0, 0, 1])
    }

    /// An address whose route says "unreachable".
    #[must_use]
    pub const fn unreachable(self) -> IpAddr {
        self.pick([10, 3, 0, 1], [0xfd00, 3, 0, 0, 0, 0, 0, 1])
    }
}

/// MAC address of backend `number` behind `int`.
#[must_use]
pub const fn backend_mac(number: u8) -> Mac {
    [2, 0, 0, 0, 2, number + 1]
}

/// MAC address of backend `number` on the clients' side.
#[must_use]
pub const fn arm_mac(number: u8) -> Mac {
    [2, 0, 0, 0, 1, 11 + number]
}

/// Makes the namespace and moves this thread into it.
///
/// # Panics
///
/// The machine refuses.
pub fn enter(sandbox: &Sandbox) {
    let name = format!("{}-router", sandbox.name());
    run(Command::new("ip").args(["netns", "add", &name]), "");
    run(Command::new("ip").args(["-n", &name, "-batch", "-"]), &commands());
    let path = format!("/run/netns/{name}");
    let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .expect("open the namespace");
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .expect("enter the namespace");
    for family in ["ipv4", "ipv6"] {
        fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1")
            .expect("switch forwarding on");
    }
}

/// What `ip -batch` is to do. Far ends of the veth pairs stay without addresses, so that nothing but the
/// tests' own packets is on them.
fn commands() -> String {
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("link add ext index {EXT} address {} type veth peer name extp", text(EXT_MAC)),
        format!("link add int index {INT} address {} type veth peer name intp", text(INT_MAC)),
    ];
    for device in ["ext", "extp", "int", "intp"] {
        lines.push(format!("link set {device} addrgenmode none mtu {MTU} up"));
    }
    for address in ["192.0.2.254/24", "2001:db8:1::fe/64 nodad"] {
        lines.push(format!("address add {address} dev ext"));
    }
    for address in ["10.1.0.254/24", "fd00:1::fe/64 nodad"] {
        lines.push(format!("address add {address} dev int"));
    }
    for gateway in ["192.0.2.1", "2001:db8:1::1"] {
        lines.push(format!("neighbour add {gateway} lladdr {} dev ext", text(GATEWAY_MAC)));
    }
    lines.push("route add 198.51.100.0/24 via 192.0.2.1".to_owned());
    lines.push("route add 2001:db8:c::/64 via 2001:db8:1::1".to_owned());
    for family in Family::ALL {
        let prefix = if family == Family::V4 { "32" } else { "128 nodad" };
        for n in 0..BACKENDS {
            let (backend, arm) = (family.backend(n), family.arm(n));
            lines.push(format!("neighbour add {backend} lladdr {} dev int", text(backend_mac(n))));
            lines.push(format!("neighbour add {arm} lladdr {} dev ext", text(arm_mac(n))));
            lines.push(format!("address add {}/{prefix} dev int", family.local(n)));
        }
        lines.push(format!("route add unreachable {}", family.unreachable()));
        let (narrow, gateway) = (family.narrow(), family.backend(0));
        lines.push(format!("route add {narrow} via {gateway} dev int mtu lock {NARROW_MTU}"));
    }
    lines.join("\n")
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn run(command: &mut Command, input: &str) {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("start ip (package iproute2)");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("write to ip");
    drop(stdin);
    let status = child.wait().expect("wait for ip");
    assert!(status.success(), "{command:?} failed: {status}\n{input}");
}
