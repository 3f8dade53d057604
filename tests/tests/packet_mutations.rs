//! Packets with random bytes changed, the same on every run: each must leave with one verdict, unchanged
//! where the verdict says so, and XDP and TC must make the same of it.

use graylb_common::verdict::{Verdict, VerdictKind};
use graylb_tests::packet::{
    builder::{ACK, Packet, SYN},
    describe::{describe, difference},
    lab::{Lab, counted, tcp, udp},
    path::{Path, Place},
    run::{Action, Entry, Hook},
    topology::{EXT, EXT_MAC, Family, GATEWAY_MAC},
};

const ROUNDS: usize = 5000;
/// Changes in one packet, at most.
const CHANGES: u64 = 3;
const ETHERNET: usize = 14;
/// Most bytes of a packet that the changes are made in: headers and the start of the payload.
const HEADERS: u64 = 100;

/// Marsaglia's xorshift64: random enough to find odd packets, and the same everywhere.
struct Random(u64);

impl Random {
    const fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn seeds(lab: &mut Lab) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for family in Family::ALL {
        let path = Path { hook: Hook::Xdp, place: Place::Routed, family };
        let service = path.service(lab.port());
        lab.put(tcp(service), "seed", &[(path.backend(0), 1), (path.backend(1), 1)]);
        lab.put(udp(service), "seed", &[(path.backend(0), 1), (path.backend(1), 1)]);
        let client = path.client(lab.number());
        let packets = [
            Packet::tcp(client, service, SYN).numbered(1, 0).tcp_options(&[2, 4, 5, 180]),
            Packet::tcp(client, service, ACK).numbered(2, 2).filled(33),
            Packet::udp(client, service).filled(40),
            Packet::udp(client, service).without_checksum().filled(1),
            Packet::icmp(client, service, 8).filled(56),
        ];
        for packet in packets {
            let packet = packet.hop(GATEWAY_MAC, EXT_MAC);
            seeds.push(packet.bytes());
            if family == Family::V4 {
                seeds.push(packet.option_words(3).bytes());
            }
        }
    }
    seeds
}

/// A seed with a few bytes changed behind the MAC addresses, and sometimes cut. What the kernel makes no
/// test packet of, for TC, is left out (see `packet_truncated`).
fn mutated(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = seeds[random.below(seeds.len() as u64) as usize].clone();
    for _ in 0..=random.below(CHANGES) {
        let place = random.below(HEADERS.min(packet.len() as u64)) as usize;
        // EtherTypes below 1536 and MAC addresses are no business of graylb's.
        if place >= 2 * 6 {
            packet[place] ^= match random.below(4) {
                0 => 1 << random.below(8),
                1 => 0xff,
                _ => random.below(256) as u8,
            };
        }
    }
    if random.below(5) == 0 {
        let shortest = (ETHERNET + 40).min(packet.len());
        let spare = (packet.len() - shortest) as u64;
        packet.truncate(shortest + random.below(spare + 1) as usize);
    }
    packet
}

/// Runs the packet and checks what can be said about any packet.
fn run(lab: &Lab, hook: Hook, packet: &[u8]) -> (Verdict, Vec<u8>) {
    let before = lab.verdicts();
    let entry = Entry { hook, interface: EXT };
    let outcome = match lab.programs().run(entry, packet) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{hook:?}, {}: {error}", describe(packet)),
    };
    let counted = counted(&before, &lab.verdicts());
    let [(verdict, 1)] = counted[..] else {
        panic!("{hook:?}, {}: verdicts {counted:?}", describe(packet));
    };
    match verdict.kind() {
        VerdictKind::Passed => {
            assert_eq!(outcome.action, Action::Pass, "{hook:?}, {}", describe(packet));
            assert!(packet == outcome.bytes, "{}", difference(packet, &outcome.bytes));
        }
        VerdictKind::Answered => {
            assert_ne!(outcome.action, Action::Drop, "{hook:?}, {}", describe(packet));
        }
        VerdictKind::Dropped => assert_eq!(outcome.action, Action::Drop, "{}", describe(packet)),
        VerdictKind::Forwarded => {
            assert_ne!(outcome.action, Action::Drop, "{}", describe(packet));
            assert_eq!(packet.len(), outcome.bytes.len(), "{}", describe(packet));
        }
    }
    (verdict, outcome.bytes)
}

#[test]
fn every_hook_makes_the_same_of_any_packet() {
    Lab::with(|lab| {
        let seeds = seeds(lab);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut seen = std::collections::BTreeMap::new();
        for round in 0..ROUNDS {
            let packet = mutated(&mut random, &seeds);
            let (verdict, bytes) = run(lab, Hook::Xdp, &packet);
            *seen.entry(format!("{verdict:?}")).or_insert(0) += 1;
            for hook in [Hook::Tc, Hook::TcSummed] {
                let (by_tc, out) = run(lab, hook, &packet);
                assert_eq!(verdict, by_tc, "round {round}, {hook:?}, {}", describe(&packet));
                if verdict.kind() == VerdictKind::Forwarded {
                    // Under TC the kernel fills the MAC addresses in, after the program.
                    let same = bytes[12..] == out[12..];
                    assert!(same, "round {round}, {hook:?}\n{}", difference(&bytes, &out));
                }
            }
        }
        println!("{ROUNDS} packets: {seen:?}");
    });
}
