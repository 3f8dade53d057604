//! TC on the way out: replies of backends on this host are rewritten, everything else is left alone,
//! also what would be ours on the way in.

use graylb_agent::model::spec::{Endpoint, Protocol};
use graylb_common::{flow::FLOW_REPLY, verdict::Verdict};
use graylb_tests::packet::{
    builder::{ACK, FIN, Packet, RST, SYN},
    flows::Table,
    lab::Lab,
    path::{Path, Place},
    run::{Entry, Expected, Hook},
    topology::{EXT, INT},
};

const ISN: u32 = 40;
const SERVER_ISN: u32 = 70;
const OUT: Entry = Entry { hook: Hook::TcOut, interface: EXT };

fn paths() -> Vec<Path> {
    Path::to(Place::Local).into_iter().filter(|path| path.hook == Hook::Tc).collect()
}

fn passes_out(lab: &Lab, name: &str, packet: &Packet) {
    let packet = packet.bytes();
    lab.check(name, OUT, &packet, &Expected::unchanged(Verdict::HostOutput, &packet));
}

/// What a backend on this host sends through the program on the way out.
fn replies(lab: &Lab, name: &str, path: Path, service: Endpoint, packet: &Packet) {
    let client = packet.destination;
    let expected = path.returned(packet, service.address, client);
    lab.check(name, path.backend_entry(), &packet.bytes(), &expected);
}

fn goes_in(lab: &Lab, name: &str, path: Path, packet: &Packet) {
    let expected = path.carried(packet, packet.source, 0);
    lab.check(name, path.client_entry(), &packet.bytes(), &expected);
}

#[test]
fn a_service_is_none_for_packets_on_their_way_out() {
    Lab::with(|lab| {
        for path in paths() {
            let address = path.service(lab.port());
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                lab.put(Endpoint { address, protocol }, "out", &[(path.backend(0), 1)]);
            }
            let client = path.client(lab.number());
            for flags in [SYN, ACK, SYN | ACK, RST, FIN | ACK, 0] {
                let packet = Packet::tcp(client, address, flags);
                passes_out(lab, &format!("flags {flags:02x}"), &packet);
            }
            passes_out(lab, "a datagram", &Packet::udp(client, address).filled(9));
            for table in [Table::Tcp, Table::HalfOpen, Table::Udp] {
                assert_eq!(lab.maps.flow(table, (client, address)), None);
            }
        }
    });
}

/// The client's direction of a flow belongs to the way in, whatever state it is in.
#[test]
fn a_clients_packets_on_their_way_out_are_left_alone() {
    Lab::with(|lab| {
        for path in paths() {
            let service = Endpoint { address: path.service(lab.port()), protocol: Protocol::Tcp };
            lab.put(service, "out", &[(path.backend(0), 1)]);
            let client = path.client(lab.number());
            let segment = |flags, seq, ack| {
                path.from_client(Packet::tcp(client, service.address, flags).numbered(seq, ack))
            };
            let syn = segment(SYN, ISN, 0);
            let completing = segment(ACK, ISN + 1, SERVER_ISN + 1);
            goes_in(lab, "a SYN", path, &syn);
            passes_out(lab, "the SYN on its way out", &syn);
            passes_out(lab, "an acknowledgement of a half-open flow", &completing);
            let syn_ack = Packet::tcp(path.backend(0), client, SYN | ACK);
            let syn_ack = path.from_backend(syn_ack.numbered(SERVER_ISN, ISN + 1), 0);
            replies(lab, "the SYN-ACK", path, service, &syn_ack);
            passes_out(lab, "an acknowledgement on its way out", &completing);
            assert_eq!(lab.maps.flow(Table::Tcp, (client, service.address)), None, "promoted");
            goes_in(lab, "the acknowledgement", path, &completing);
            passes_out(lab, "a reset on its way out", &segment(RST, ISN + 1, 0));
            let counters = lab.counters(service)[&path.backend(0)];
            assert_eq!((counters.established, counters.closed), (1, 0));
            replies(lab, "the SYN-ACK again", path, service, &syn_ack);
        }
    });
}

#[test]
fn a_clients_datagrams_on_their_way_out_are_left_alone() {
    Lab::with(|lab| {
        for path in paths() {
            let service = Endpoint { address: path.service(lab.port()), protocol: Protocol::Udp };
            lab.put(service, "out", &[(path.backend(0), 1)]);
            let client = path.client(lab.number());
            let packet = path.from_client(Packet::udp(client, service.address).filled(30));
            goes_in(lab, "a datagram", path, &packet);
            passes_out(lab, "a datagram on its way out", &packet);
            let reply = Packet::udp(path.backend(0), client).filled(31);
            replies(lab, "the reply", path, service, &path.from_backend(reply, 0));
        }
    });
}

/// A packet that this host forwards was rewritten on its way in, or is none of ours: even one with the
/// tuple of a reply is left alone.
#[test]
fn forwarded_packets_are_left_alone() {
    Lab::with(|lab| {
        for path in paths() {
            let service = Endpoint { address: path.service(lab.port()), protocol: Protocol::Udp };
            lab.put(service, "out", &[(path.backend(0), 1)]);
            let client = path.client(lab.number());
            let packet = path.from_client(Packet::udp(client, service.address).filled(30));
            goes_in(lab, "a datagram", path, &packet);
            let reply = Packet::udp(path.backend(0), client).filled(31);
            let reply = path.from_backend(reply, 0).bytes();
            let before = lab.verdicts();
            let outcome = lab.programs().run_forwarded(INT, EXT, &reply);
            let expected = Expected::unchanged(Verdict::HostOutput, &reply);
            lab.compare("a forwarded reply", &before, &reply, &outcome, &expected);
            let key = (path.backend(0), client);
            let flow = lab.maps.flow(Table::Udp, key).expect("the reply's entry");
            assert_eq!(flow.state, FLOW_REPLY);
        }
    });
}
