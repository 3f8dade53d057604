//! What the kernel is to hold, without saying where in the maps it lies.

use std::{collections::BTreeMap, net::SocketAddr};

use super::Select;
use crate::model::{
    mode::Mode,
    spec::Endpoint,
    split::{Cidr, Share, SplitBy},
};

/// All services in the kernel.
pub type Image = BTreeMap<Endpoint, ServiceImage>;

/// One service's routing decision data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceImage {
    /// [`super::salt`] of the endpoint.
    pub salt: u32,
    /// How clients are told apart for the share.
    pub split: SplitImage,
    /// The stable pool.
    pub stable: PoolImage,
    /// The canary's share and pool.
    pub canary: Option<(Share, PoolImage)>,
    /// The pools that rules lead to.
    pub ruled: Vec<PoolImage>,
    /// Clients with a pool of their own: places in `ruled`.
    pub rules: BTreeMap<Cidr, u32>,
}

impl ServiceImage {
    /// One whose flows all go to one pool.
    #[must_use]
    pub const fn whole(salt: u32, stable: PoolImage) -> Self {
        Self {
            salt,
            split: SplitImage::NONE,
            stable,
            canary: None,
            ruled: Vec::new(),
            rules: BTreeMap::new(),
        }
    }

    /// Every pool, the stable one first.
    pub fn pools(&self) -> impl Iterator<Item = &PoolImage> {
        let canary = self.canary.iter().map(|(_, pool)| pool);
        std::iter::once(&self.stable).chain(canary).chain(&self.ruled)
    }

    /// Whether new flows go to this backend of the pool of this number.
    #[must_use]
    pub fn leads_to(&self, pool: u32, address: SocketAddr) -> bool {
        self.pools().filter(|image| image.pool == pool).any(|image| {
            image.backends.iter().any(|backend| backend.address == address && backend.weight > 0)
        })
    }

    /// Whether both route alike: the same clients to the same pools, and these alike. How clients are told apart
    /// matters with a canary only.
    #[must_use]
    pub fn routes_like(&self, other: &Self) -> bool {
        let canary = match (&self.canary, &other.canary) {
            (Some((share, pool)), Some((other_share, other_pool))) => {
                share == other_share && self.split == other.split && pool.routes_like(other_pool)
            }
            (None, None) => true,
            _ => false,
        };
        let ruled = self.ruled.iter().zip(&other.ruled);
        canary
            && self.salt == other.salt
            && self.stable.routes_like(&other.stable)
            && self.rules == other.rules
            && self.ruled.len() == other.ruled.len()
            && ruled.into_iter().all(|(pool, other)| pool.routes_like(other))
    }
}

/// How clients are told apart for the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitImage {
    /// Mixed into their hash.
    pub salt: u32,
    /// What is hashed.
    pub by: SplitBy,
    /// So many leading bits of the address.
    pub prefix: u8,
}

impl SplitImage {
    /// Where there is nothing to tell apart.
    pub const NONE: Self = Self { salt: 0, by: SplitBy::Client, prefix: 0 };
}

/// One pool of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolImage {
    /// [`pool_number`] of the pool.
    pub pool: u32,
    /// How the packet path chooses among the slots.
    pub select: Select,
    /// The pool's backends that take new flows, in the order of the spec.
    pub backends: Vec<BackendImage>,
    /// How packets get to them and back.
    pub mode: Mode,
    /// Indices into `backends`: what the packet path chooses among.
    pub slots: Vec<u32>,
}

impl PoolImage {
    /// Whether both route alike: same pool and mode, same way to choose, and slot by slot the same
    /// backend. The order in which backends are listed does not matter.
    #[must_use]
    pub fn routes_like(&self, other: &Self) -> bool {
        self.pool == other.pool
            && self.mode == other.mode
            && self.select == other.select
            && self.routes().eq(other.routes())
    }

    fn routes(&self) -> impl Iterator<Item = Option<&BackendImage>> {
        self.slots.iter().map(|&slot| self.backends.get(slot as usize))
    }
}

/// One backend of a [`PoolImage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendImage {
    /// Address and port.
    pub address: SocketAddr,
    /// Weight that the slots were filled by.
    pub weight: u16,
}

/// The number by which maps name a pool: the CRC-32 of its name, so that it needs no state and is the
/// same on every agent. For readers and counters only; nothing is decided by it.
#[must_use]
pub fn pool_number(pool: &str) -> u32 {
    crc32fast::hash(pool.as_bytes())
}
