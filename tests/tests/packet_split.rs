//! Which pool a client's new flow goes to: shares, rules, and both together, checked against a model on random
//! splits and clients, over every hook, family and protocol.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use graylb_agent::{
    compile::{BackendImage, PoolImage, Select, ServiceImage, SplitImage, pool_number},
    model::{
        mode::Mode,
        spec::{Endpoint, Protocol},
        split::{Cidr, Share, SplitBy},
    },
};
use graylb_common::hash;
use graylb_tests::packet::{
    builder::{Packet, SYN},
    lab::Lab,
    path::{Path, Place},
    run::Hook,
    topology::Family,
};

/// Pools have one backend each, so that the backend says which pool it was.
const STABLE: u8 = 0;
const CANARY: u8 = 1;
const RULED: u8 = 2;

const fn path(hook: Hook, family: Family) -> Path {
    Path { hook, place: Place::Routed, family }
}

fn pool(family: Family, name: &str, backend: u8) -> PoolImage {
    let address = path(Hook::Xdp, family).backend(backend);
    PoolImage {
        pool: pool_number(name),
        select: Select::Turns,
        backends: vec![BackendImage { address, weight: 1 }],
        mode: Mode::Nat,
        slots: vec![0],
    }
}

/// Numbers without a pattern, the same in every run.
struct Dice(u32);

impl Dice {
    fn roll(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        hash::words(0x6469_6365, &[self.0])
    }

    fn below(&mut self, limit: u32) -> u32 {
        hash::place(self.roll(), limit)
    }

    /// An address in one of a few neighbourhoods, so that rules hold for some.
    fn client(&mut self, family: Family) -> IpAddr {
        let (network, host) = (self.below(4), self.roll());
        match family {
            Family::V4 => Ipv4Addr::from_bits(0x0b00_0000 | network << 20 | host & 0xf_ffff).into(),
            Family::V6 => {
                let high = 0x2001_0db8_u128 << 96 | u128::from(network) << 80;
                Ipv6Addr::from_bits(high | u128::from(host) << 40 | u128::from(self.roll())).into()
            }
        }
    }

    fn rules(&mut self, family: Family) -> BTreeMap<Cidr, u32> {
        let longest = if family == Family::V4 { 32 } else { 128 };
        let count = [0, 1, 5, 40][self.below(4) as usize];
        (0..count)
            .map(|_| (Cidr::covering(self.client(family), self.below(longest + 1) as u8), 0))
            .collect()
    }

    fn image(&mut self, family: Family) -> ServiceImage {
        let share = [0, 1, 500, 5000, 9999, 10_000][self.below(6) as usize];
        let longest = if family == Family::V4 { 32 } else { 128 };
        let rules = self.rules(family);
        ServiceImage {
            salt: self.roll(),
            split: SplitImage {
                salt: self.roll(),
                by: if self.below(3) == 0 { SplitBy::Flow } else { SplitBy::Client },
                prefix: 1 + self.below(longest) as u8,
            },
            stable: pool(family, "stable", STABLE),
            canary: Some((Share::new(share).expect("a share"), pool(family, "canary", CANARY)))
                .filter(|_| share > 0),
            ruled: if rules.is_empty() { Vec::new() } else { vec![pool(family, "ruled", RULED)] },
            rules,
        }
    }
}

/// Where a client is to go: what docs/splits.md says, in other words than the program's.
fn wanted(image: &ServiceImage, client: SocketAddr) -> u8 {
    if image.rules.keys().any(|network| network.contains(client.ip())) {
        return RULED;
    }
    let Some((share, _)) = &image.canary else { return STABLE };
    let SplitImage { salt, by, prefix } = image.split;
    let port = (by == SplitBy::Flow).then_some(client.port());
    let bucket = match client.ip() {
        IpAddr::V4(ip) => {
            let network = Cidr::covering(ip.into(), if port.is_some() { 32 } else { prefix });
            let IpAddr::V4(network) = network.address() else { unreachable!("IPv4 stays IPv4") };
            hash::bucket(salt, &network.octets(), 32, port)
        }
        IpAddr::V6(ip) => {
            let network = Cidr::covering(ip.into(), if port.is_some() { 128 } else { prefix });
            let IpAddr::V6(network) = network.address() else { unreachable!("IPv6 stays IPv6") };
            hash::bucket(salt, &network.octets(), 128, port)
        }
    };
    if bucket < u32::from(share.of_10000()) { CANARY } else { STABLE }
}

fn check(lab: &mut Lab, path: Path, service: Endpoint, client: SocketAddr, backend: u8) {
    let packet = match service.protocol {
        Protocol::Tcp => Packet::tcp(client, service.address, SYN).numbered(7, 0),
        Protocol::Udp => Packet::udp(client, service.address).filled(4),
    };
    let packet = path.from_client(packet);
    let name = format!("{client} to {service} ({path})");
    let expected = path.carried(&packet, client, backend);
    lab.check(&name, path.client_entry(), &packet.bytes(), &expected);
}

fn service(lab: &mut Lab, family: Family, protocol: Protocol) -> Endpoint {
    Endpoint { address: SocketAddr::new(family.service(), lab.port()), protocol }
}

#[test]
fn program_and_model_agree_on_random_splits() {
    Lab::with(|lab| {
        let mut dice = Dice(0);
        let mut seen = [0; 3];
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let service = service(lab, family, protocol);
                for round in 0..30 {
                    let image = dice.image(family);
                    lab.put_image(service, image.clone());
                    for number in 0..40 {
                        let port = 20_000 + round * 40 + number;
                        let client = SocketAddr::new(dice.client(family), port);
                        let pool = wanted(&image, client);
                        seen[usize::from(pool)] += 1;
                        let hook = Hook::IN[usize::from(number) % 3];
                        check(lab, path(hook, family), service, client, pool);
                    }
                }
            }
        }
        println!("stable, canary, ruled: {seen:?}");
        assert!(seen.iter().all(|count| *count > 500), "{seen:?}");
    });
}

/// What each client of a few gets while the share goes up and down: it only joins on the way up, only leaves on the
/// way down, and in the same place each time.
#[test]
fn shares_only_add_and_only_take() {
    Lab::with(|lab| {
        let family = Family::V4;
        let service = service(lab, family, Protocol::Tcp);
        let mut dice = Dice(7);
        let clients: Vec<IpAddr> = (0..60).map(|_| dice.client(family)).collect();
        let base = ServiceImage {
            rules: BTreeMap::new(),
            ruled: Vec::new(),
            split: SplitImage { salt: 9, by: SplitBy::Client, prefix: 32 },
            ..dice.image(family)
        };
        let mut before: Vec<bool> = vec![false; clients.len()];
        let mut last = 0;
        for (step, share) in (0..).zip([100, 1000, 2500, 5000, 9000, 4000, 1000, 0, 2500, 10_000]) {
            let canary = (Share::new(share).expect("a share"), pool(family, "canary", CANARY));
            lab.put_image(
                service,
                ServiceImage { canary: Some(canary).filter(|_| share > 0), ..base.clone() },
            );
            let now: Vec<bool> = clients
                .iter()
                .map(|&client| {
                    wanted(&with_share(&base, share), SocketAddr::new(client, 1)) == CANARY
                })
                .collect();
            for (number, (&client, &in_canary)) in (0..).zip(clients.iter().zip(&now)) {
                let client = SocketAddr::new(client, 30_000 + step * 60 + number);
                let backend = if in_canary { CANARY } else { STABLE };
                check(lab, path(Hook::Xdp, family), service, client, backend);
            }
            let moved = before.iter().zip(&now).filter(|(before, now)| before != now);
            let joined = share > last;
            assert!(moved.clone().all(|(_, now)| *now == joined), "from {last} to {share}");
            (before, last) = (now, share);
        }
        assert!(before.iter().all(|in_canary| *in_canary), "everybody");
    });
}

fn with_share(base: &ServiceImage, share: u16) -> ServiceImage {
    let canary = (Share::new(share).expect("a share"), base.stable.clone());
    ServiceImage { canary: Some(canary), ..base.clone() }
}

/// A pool that stays as it is keeps its slots and its turn when another pool of the service changes; what was
/// replaced is given out again.
#[test]
fn unchanged_pools_stay_where_they_are() {
    Lab::with(|lab| {
        let family = Family::V4;
        let service = service(lab, family, Protocol::Udp);
        let turns = |backends: &[u8]| {
            let mut image = pool(family, "stable", STABLE);
            image.backends = backends
                .iter()
                .map(|&n| BackendImage { address: path(Hook::Xdp, family).backend(n), weight: 1 })
                .collect();
            image.slots = (0..backends.len() as u32).collect();
            image
        };
        let whole = ServiceImage::whole(1, turns(&[0, 1, 2]));
        let split = SplitImage { salt: 1, by: SplitBy::Client, prefix: 32 };
        lab.put_image(service, whole.clone());
        for turn in 0..300_u16 {
            // A share of nobody but this one's own network, which none of the clients is in.
            let rules = BTreeMap::from([("11.255.0.0/16".parse().expect("a network"), 0)]);
            let other = ServiceImage {
                split,
                rules,
                ruled: vec![pool(family, &format!("other{turn}"), CANARY)],
                ..whole.clone()
            };
            lab.put_image(service, if turn % 2 == 0 { other } else { whole.clone() });
            let client = SocketAddr::new(Ipv4Addr::new(11, 0, 0, 1).into(), 20_000 + turn);
            check(lab, path(Hook::Tc, family), service, client, (turn % 3) as u8);
        }
    });
}
