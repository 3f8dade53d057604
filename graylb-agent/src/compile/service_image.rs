//! What the kernel is to hold, without saying where in the maps it lies.

use std::{collections::BTreeMap, net::SocketAddr};

use super::Select;
use crate::model::{mode::Mode, spec::Endpoint};

/// All services in the kernel.
pub type Image = BTreeMap<Endpoint, ServiceImage>;

/// One service's routing decision data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceImage {
    /// [`pool_number`] of the pool in force.
    pub pool: u32,
    /// How the packet path chooses among the slots.
    pub select: Select,
    /// [`super::salt`] of the endpoint.
    pub salt: u32,
    /// The pool's backends that take new flows, in the order of the spec.
    pub backends: Vec<BackendImage>,
    /// How packets get to them and back.
    pub mode: Mode,
    /// Indices into `backends`: what the packet path chooses among.
    pub slots: Vec<u32>,
}

impl ServiceImage {
    /// Whether both route alike: same pool and mode, same way to choose, and slot by slot the same
    /// backend. The order in which backends are listed does not matter.
    #[must_use]
    pub fn routes_like(&self, other: &Self) -> bool {
        self.pool == other.pool
            && self.mode == other.mode
            && self.select == other.select
            && self.salt == other.salt
            && self.routes().eq(other.routes())
    }

    fn routes(&self) -> impl Iterator<Item = Option<&BackendImage>> {
        self.slots.iter().map(|&slot| self.backends.get(slot as usize))
    }
}

/// One backend of a [`ServiceImage`].
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
