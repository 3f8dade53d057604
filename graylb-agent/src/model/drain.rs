//! Backends that take no new flows because an operator said so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

/// Which backends of which pools are drained: existing flows go on, new ones go elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained(BTreeMap<String, BTreeSet<SocketAddr>>);

impl Drained {
    /// From what is kept.
    #[must_use]
    pub fn new(mut kept: BTreeMap<String, BTreeSet<SocketAddr>>) -> Self {
        kept.retain(|_, backends| !backends.is_empty());
        Self(kept)
    }

    /// What is to be kept.
    #[must_use]
    pub const fn kept(&self) -> &BTreeMap<String, BTreeSet<SocketAddr>> {
        &self.0
    }

    /// Whether a backend of a pool is drained.
    #[must_use]
    pub fn contains(&self, pool: &str, backend: SocketAddr) -> bool {
        self.0.get(pool).is_some_and(|backends| backends.contains(&backend))
    }

    /// Drains backends of a pool, or lets them take new flows again.
    pub fn set(&mut self, pool: &str, backends: &[SocketAddr], drained: bool) {
        if drained {
            self.0.entry(pool.to_owned()).or_default().extend(backends);
        } else if let Some(known) = self.0.get_mut(pool) {
            known.retain(|backend| !backends.contains(backend));
            if known.is_empty() {
                self.0.remove(pool);
            }
        }
    }
}
