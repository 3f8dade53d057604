//! A pool's balance → what the packet path does, and the slots that it does it with.

use graylb_common::{
    hash,
    service::{
        PROTOCOL_TCP, PROTOCOL_UDP, SELECT_LEAST, SELECT_STICKY, SELECT_TUPLE, SELECT_TURNS,
    },
};

use super::{
    maglev::{identity, maglev},
    round_robin,
};
use crate::model::{
    balance::Balance,
    spec::{BackendSpec, Endpoint, Protocol},
};

/// Seed of a service's salt.
const SALT_SEED: u32 = 0x7361_6c74;

/// Seed of the salt for the share.
const SPLIT_SEED: u32 = 0x7370_6c74;

/// How the packet path chooses among a pool's slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// In turn.
    #[default]
    Turns,
    /// By the packet's tuple.
    Tuple,
    /// By so many leading bits of the client's address.
    Sticky {
        /// 1 to the bits of an address.
        prefix: u8,
    },
    /// Of two at random, the one whose backend has fewer active flows for its weight.
    Least,
}

impl Select {
    /// Of a pool with this balance, for clients of one IP family.
    #[must_use]
    pub const fn of(balance: Balance, ipv4: bool) -> Self {
        match balance {
            Balance::RoundRobin => Self::Turns,
            Balance::Maglev { .. } => Self::Tuple,
            Balance::Sticky { prefixes, .. } => {
                Self::Sticky { prefix: if ipv4 { prefixes.v4 } else { prefixes.v6 } }
            }
            Balance::LeastConnections => Self::Least,
        }
    }

    /// As a route's entry in the kernel says it: `select` and `prefix`.
    #[must_use]
    pub const fn to_abi(self) -> (u8, u8) {
        match self {
            Self::Turns => (SELECT_TURNS, 0),
            Self::Tuple => (SELECT_TUPLE, 0),
            Self::Sticky { prefix } => (SELECT_STICKY, prefix),
            Self::Least => (SELECT_LEAST, 0),
        }
    }

    /// What such an entry says; `None` where it makes no sense.
    #[must_use]
    pub const fn from_abi(select: u8, prefix: u8) -> Option<Self> {
        match (select, prefix) {
            (SELECT_TURNS, _) => Some(Self::Turns),
            (SELECT_TUPLE, _) => Some(Self::Tuple),
            (SELECT_STICKY, 1..=128) => Some(Self::Sticky { prefix }),
            (SELECT_LEAST, _) => Some(Self::Least),
            _ => None,
        }
    }
}

/// The slots of backends that share their flows like this: indices into `backends`.
#[must_use]
pub fn slots(balance: Balance, backends: &[BackendSpec]) -> Vec<u32> {
    if backends.is_empty() {
        return Vec::new();
    }
    if let Some(size) = balance.table() {
        let takers: Vec<_> = backends.iter().map(|b| (b.address, b.weight)).collect();
        return maglev(&takers, size);
    }
    let weights: Vec<u16> = backends.iter().map(|backend| backend.weight).collect();
    round_robin(&weights)
}

/// A service's salt: the hash of its endpoint, so that it is the same on every agent, differs from service to
/// service, and stands for three of the five parts of a tuple in the packet path's hash.
#[must_use]
pub fn salt(endpoint: &Endpoint) -> u32 {
    let protocol = match endpoint.protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
    };
    let [a, b, c, d, port] = identity(endpoint.address);
    hash::words(SALT_SEED, &[a, b, c, d, port, u32::from(protocol)])
}

/// The salt by which a service's clients get their buckets, independent of [`salt`]: who goes to the canary
/// must not say to which of its backends. Services that name the same salt choose alike.
#[must_use]
pub fn split_salt(endpoint: &Endpoint, named: Option<&str>) -> u32 {
    let whole = match named {
        Some(named) => crc32fast::hash(named.as_bytes()),
        None => salt(endpoint),
    };
    hash::words(SPLIT_SEED, &[whole])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::balance::{Prefixes, TableSize};

    #[test]
    fn what_the_kernel_holds_reads_back() {
        let size = TableSize::DEFAULT;
        let prefixes = Prefixes { v4: 24, v6: 64 };
        for balance in [
            Balance::RoundRobin,
            Balance::Maglev { size },
            Balance::Sticky { size, prefixes },
            Balance::LeastConnections,
        ] {
            for ipv4 in [true, false] {
                let select = Select::of(balance, ipv4);
                let (number, prefix) = select.to_abi();
                assert_eq!(Select::from_abi(number, prefix), Some(select));
            }
        }
        assert_eq!(Select::from_abi(4, 0), None);
        assert_eq!(Select::from_abi(SELECT_STICKY, 0), None);
        assert_eq!(Select::from_abi(SELECT_STICKY, 129), None);
    }

    /// A salt that changed would move every client of a running service.
    #[test]
    fn salts_never_change() {
        let salt = |address: &str, protocol| {
            self::salt(&Endpoint { address: address.parse().expect("address"), protocol })
        };
        assert_eq!(salt("192.0.2.10:80", Protocol::Tcp), 0x5277_5507);
        assert_eq!(salt("192.0.2.10:80", Protocol::Udp), 0x30ca_2424);
        assert_eq!(salt("[2001:db8::10]:80", Protocol::Tcp), 0x7c3e_f32e);
    }
}
