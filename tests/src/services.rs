//! Four services on the virtual address of [`OneLink`], one for each family and protocol, with two backends
//! each; and what a client must get of them, whatever the pools' mode.

use std::{net::SocketAddr, time::Instant};

use graylb_common::verdict::{VERDICTS, VerdictKind};

use crate::{
    agent::Agent,
    client::{Connection, Reply, UdpClient},
    link::OneLink,
    namespace::Namespace,
    topology::{Family, Routed},
    transfer::{Direction, transfer},
};

/// Port of the TCP services.
pub const PORT: u16 = 80;
/// Port of the UDP services.
pub const DNS: u16 = 53;
/// What the backends call themselves.
pub const NAMES: [&str; 2] = ["one", "two"];

/// A service's address.
#[must_use]
pub fn endpoint(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(Routed::virtual_address(family), port)
}

/// The config, with backends where `backend` says for the service's family, their number and the service's
/// port, and the pool options that `options` gives for the family.
#[must_use]
pub fn config(
    attach: &str,
    backend: impl Fn(Family, usize, u16) -> SocketAddr,
    options: impl Fn(Family) -> String,
) -> String {
    let mut text: String = OneLink::INTERFACES
        .map(|name| format!("[interfaces.{name}]\nattach = \"{attach}\"\n"))
        .concat();
    for family in Family::BOTH {
        for (protocol, service_port) in [("tcp", PORT), ("udp", DNS)] {
            let name = format!("{protocol}_{}", family.name());
            let [one, two] = [0, 1].map(|number| backend(family, number, service_port));
            text.push_str(&format!(
                "[services.{name}]\naddress = \"{}\"\nprotocol = \"{protocol}\"\n\
                 default_pool = \"{name}\"\n[pools.{name}]\nbackends = [\"{one}\", \"{two}\"]\n{}\n",
                endpoint(family, service_port),
                options(family)
            ));
        }
    }
    text
}

/// Requests over both protocols in strict turns, then a transfer of `length` bytes each way; who the
/// backends saw.
///
/// # Panics
///
/// Anything is not as it should be.
#[must_use]
pub fn check(client: &Namespace, family: Family, length: u64) -> Vec<Reply> {
    let replies = client.run(|| {
        let tcp = endpoint(family, PORT);
        let mut open: Vec<Connection> =
            (0..4).map(|_| Connection::open(tcp).expect("connect")).collect();
        let udp: Vec<UdpClient> =
            (0..4).map(|_| UdpClient::open(endpoint(family, DNS)).expect("a socket")).collect();
        let mut replies = Vec::new();
        for round in 0..3 {
            for (connection, name) in open.iter_mut().zip(NAMES.into_iter().cycle()) {
                let reply = connection.ask().unwrap_or_else(|e| panic!("{tcp}: {e}"));
                assert_eq!(reply.backend, name, "{tcp}");
                assert_eq!(connection.stream().peer_addr().expect("peer"), tcp);
                replies.push(reply);
            }
            for (client, name) in udp.iter().zip(NAMES.into_iter().cycle()) {
                let payload = "x".repeat(round * 600);
                let reply = client.ask(&payload).unwrap_or_else(|e| panic!("UDP {family:?}: {e}"));
                assert_eq!(reply.backend, name, "UDP {family:?}, round {round}");
                replies.push(reply);
            }
        }
        replies
    });
    for direction in [Direction::Down, Direction::Up] {
        check_transfer(client, family, direction, length);
    }
    replies
}

fn check_transfer(client: &Namespace, family: Family, direction: Direction, length: u64) {
    let started = Instant::now();
    let (sent, came) = client.run(|| {
        let connection = Connection::open(endpoint(family, PORT)).expect("connect");
        transfer(connection.stream(), direction, length)
            .unwrap_or_else(|error| panic!("{family:?} {direction:?}: {error}"))
    });
    assert_eq!(sent, came, "{family:?} {direction:?}: the hashes differ");
    println!("{family:?} {direction:?}: {length} bytes in {:.1?}", started.elapsed());
}

/// Insists that no packet was dropped.
///
/// # Panics
///
/// One was.
pub fn nothing_was_dropped(agent: &Agent<'_>) {
    let verdicts = &agent.status()["verdicts"];
    for dropped in VERDICTS.iter().filter(|info| info.kind == VerdictKind::Dropped) {
        assert_eq!(verdicts[dropped.name], 0, "{verdicts}");
    }
}
