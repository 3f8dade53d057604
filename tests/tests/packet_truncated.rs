//! Frames cut off at every byte from the Ethernet header on (BPF_PROG_TEST_RUN takes none shorter):
//! what is cut within its headers is handed on unchanged, what is cut behind them is carried as it is.

use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{ACK, Packet, SYN},
    lab::{Lab, tcp, udp},
    path::{Path, Place},
    run::{Expected, Hook},
    topology::{EXT_MAC, Family, GATEWAY_MAC},
};

const ETHERNET: usize = 14;
const TCP: usize = 20;
const UDP: usize = 8;

/// A frame, and how long its headers are.
struct Frame {
    name: &'static str,
    packet: Packet,
    /// Up to here the verdict is `truncated`.
    headers: usize,
    /// What becomes of it from there on; `None`: it is carried to the backend.
    verdict: Option<Verdict>,
}

fn frames(lab: &mut Lab, path: Path) -> Vec<Frame> {
    let network = ETHERNET + if path.family == Family::V4 { 20 } else { 40 };
    // IPv6 says so in a header of its own.
    let fragment = network + if path.family == Family::V4 { 0 } else { 8 };
    let port = lab.port();
    let service = path.service(port);
    lab.put(tcp(service), "cut", &[(path.backend(0), 1)]);
    lab.put(udp(service), "cut", &[(path.backend(0), 1)]);
    let client = path.client(lab.number());
    let segment = |flags| Packet::tcp(client, service, flags).hop(GATEWAY_MAC, EXT_MAC).filled(9);
    let datagram = Packet::udp(client, service).hop(GATEWAY_MAC, EXT_MAC).filled(9);
    let frame = |name, packet, headers, verdict| Frame { name, packet, headers, verdict };
    let mut frames = vec![
        frame("UDP", datagram.clone(), network + UDP, None),
        frame("TCP of no flow", segment(ACK), network + TCP, Some(Verdict::NoFlow)),
        frame("TCP", segment(SYN).tcp_options(&[1; 40]), network + TCP, None),
        frame("VLAN", segment(SYN).tagged(0x8100, 5), ETHERNET, Some(Verdict::Vlan)),
        frame("fragment", datagram.clone().fragment(2, true), fragment, Some(Verdict::Fragment)),
    ];
    if path.family == Family::V4 {
        for words in 1..=10 {
            let header = network + words * 4;
            let udp = datagram.clone().option_words(words);
            let tcp = segment(SYN).option_words(words);
            frames.push(frame("UDP behind options", udp, header + UDP, None));
            frames.push(frame("TCP behind options", tcp, header + TCP, None));
        }
    } else {
        let extended = datagram.extended(0);
        frames.push(frame("extension", extended, network, Some(Verdict::Ipv6Extension)));
    }
    frames
}

/// The kernel makes no test packet for TC that ends within its IP header (bpf_prog_test_run_skb,
/// net/bpf/test_run.c, as found on 6.18); for XDP it makes any.
fn shortest(path: Path, packet: &Packet) -> usize {
    match path.family {
        _ if path.hook == Hook::Xdp || !packet.tags.is_empty() => ETHERNET,
        Family::V4 => ETHERNET + 20,
        Family::V6 => ETHERNET + 40,
    }
}

#[test]
fn at_every_byte() {
    Lab::with(|lab| {
        let mut count = 0;
        for path in Path::to(Place::Routed) {
            for Frame { name, packet, headers, verdict } in frames(lab, path) {
                let whole = packet.bytes();
                for length in shortest(path, &packet)..=whole.len() {
                    let cut = &whole[..length];
                    let expected = match verdict {
                        _ if length < headers => Expected::unchanged(Verdict::Truncated, cut),
                        Some(verdict) => Expected::unchanged(verdict, cut),
                        None => {
                            let mut expected = path.carried(&packet, packet.source, 0);
                            expected.bytes.as_mut().expect("a packet").truncate(length);
                            expected
                        }
                    };
                    let name = format!("{name}, {length} of {} bytes ({path})", whole.len());
                    lab.check(&name, path.client_entry(), cut, &expected);
                    count += 1;
                }
            }
        }
        println!("{count} cut frames");
    });
}
