//! A network for the modes in which backends do not answer through graylb, or not to the client: graylb
//! and the backends are neighbours on one link, and graylb is nobody's router.

use std::net::{IpAddr, SocketAddr, TcpStream};

use crate::{
    eventually::{SOON, eventually},
    namespace::Namespace,
    sandbox::Sandbox,
    topology::{Family, Routed},
};

/// A client, graylb, and two backends, with a bridge between graylb and the backends.
///
/// ```text
/// client 10.1.0.2 -- gc  graylb  g0 10.2.0.1 -- [bridge] -- 10.2.0.11 backend 1
///        fd01::2                    fd02::1        └─────── 10.2.0.12 backend 2
///        10.3.N.1 ------------- direct ------------------- 10.3.N.2 backend N
/// ```
///
/// Client and virtual address are as in [`Routed`]. Backends know no way to the client before
/// [`OneLink::answer_directly`].
#[derive(Debug)]
pub struct OneLink {
    /// Where clients are.
    pub client: Namespace,
    /// Where the agent runs.
    pub graylb: Namespace,
    /// Where the backends are.
    pub backends: [Namespace; 2],
    bridge: Namespace,
}

impl OneLink {
    /// graylb's interfaces.
    pub const INTERFACES: [&str; 2] = ["gc", "g0"];

    /// Builds it; it is usable on return.
    #[must_use]
    pub fn new(sandbox: &Sandbox) -> Self {
        let graylb = Namespace::add(sandbox, "graylb");
        graylb.forward();
        let client = Namespace::add(sandbox, "client");
        client.connect("uplink", &graylb, "gc");
        let bridge = Namespace::add(sandbox, "bridge");
        bridge.ip("link add name br0 type bridge");
        bridge.ip("link set br0 up");
        graylb.connect("g0", &bridge, "port0");
        let backends = [Namespace::add(sandbox, "one"), Namespace::add(sandbox, "two")];
        for (namespace, port) in backends.iter().zip(["port1", "port2"]) {
            namespace.connect("uplink", &bridge, port);
        }
        for port in ["port0", "port1", "port2"] {
            bridge.ip(&format!("link set {port} master br0"));
        }
        let network = Self { client, graylb, backends, bridge };
        Family::BOTH.into_iter().for_each(|family| network.give_addresses(family));
        network.wait_usable();
        network
    }

    fn give_addresses(&self, family: Family) {
        let (length, all) = if family == Family::V4 { (24, 32) } else { (64, 128) };
        let give = |namespace: &Namespace, device: &str, address: IpAddr, length: u32| {
            namespace.address(device, &format!("{address}/{length}"));
        };
        give(&self.graylb, "lo", Routed::virtual_address(family), all);
        give(&self.graylb, "gc", family.pick("10.1.0.1", "fd01::1", 0).ip(), length);
        for source in Self::sources(family) {
            give(&self.graylb, "g0", source, length);
        }
        give(&self.client, "uplink", Routed::client_address(family), length);
        let (flag, gateway) = match family {
            Family::V4 => ("-4", "10.1.0.1"),
            Family::V6 => ("-6", "fd01::1"),
        };
        self.client.ip(&format!("{flag} route add default via {gateway}"));
        for (number, backend) in self.backends.iter().enumerate() {
            give(backend, "uplink", Self::backend_address(family, number, 0).ip(), length);
        }
    }

    fn wait_usable(&self) {
        let others = [&self.client, &self.graylb, &self.bridge];
        others.into_iter().chain(&self.backends).for_each(Namespace::wait_usable);
    }

    /// graylb's addresses on the link.
    #[must_use]
    pub fn sources(family: Family) -> [IpAddr; 2] {
        [("10.2.0.1", "fd02::1"), ("10.2.0.2", "fd02::2")]
            .map(|(v4, v6)| family.pick(v4, v6, 0).ip())
    }

    /// Backend `number`, 0 or 1, on the link.
    #[must_use]
    pub fn backend_address(family: Family, number: usize, port: u16) -> SocketAddr {
        match number {
            0 => family.pick("10.2.0.11", "fd02::11", port),
            _ => family.pick("10.2.0.12", "fd02::12", port),
        }
    }

    /// Makes every end that faces graylb fit for native XDP there.
    pub fn face_xdp(&self) {
        self.client.face_xdp("uplink");
        self.bridge.face_xdp("port0");
    }

    /// Has the bridge cut every packet to the link's MTU and finish its checksums on the way to the
    /// backends: what arrives there is what a wire would carry.
    pub fn finish_packets(&self) {
        for port in ["port1", "port2"] {
            self.bridge.face_xdp(port);
        }
    }

    /// Connects each backend with the client, as the way of its answers. They come from the virtual
    /// address, by another link than the one that leads there.
    pub fn answer_directly(&self) {
        for device in ["all", "default"] {
            self.client.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0");
        }
        for (number, backend) in self.backends.iter().enumerate() {
            let device = format!("direct{number}");
            backend.connect("direct", &self.client, &device);
            for (namespace, device, host) in [(&self.client, &*device, 1), (backend, "direct", 2)] {
                namespace.address(device, &format!("10.3.{number}.{host}/24"));
                namespace.address(device, &format!("fd03:{number}::{host}/64"));
            }
            backend.ip(&format!("route add 10.1.0.0/24 via 10.3.{number}.1"));
            backend.ip(&format!("-6 route add fd01::/64 via fd03:{number}::1"));
        }
        self.wait_usable();
    }

    /// Makes backend `number` known to graylb as a neighbour, which otherwise its probes do. Somebody must
    /// listen on `address`.
    pub fn introduce(&self, address: SocketAddr) {
        eventually(&format!("{address} can be reached"), SOON, || {
            self.graylb.run(|| TcpStream::connect(address).map(drop))
        });
    }
}
