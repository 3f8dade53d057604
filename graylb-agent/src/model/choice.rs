//! What a service can be switched to.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::spec::Name;

/// A pool of the config, or backends named on the spot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolChoice {
    /// A pool by name.
    Pool(Name),
    /// Backends of equal weight, probed and balanced as the service's default pool is; if they take turns,
    /// then in this order.
    Backends(Vec<SocketAddr>),
}

impl fmt::Display for PoolChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => name.fmt(f),
            Self::Backends(addresses) => {
                for (place, address) in addresses.iter().enumerate() {
                    if place > 0 {
                        f.write_str(",")?;
                    }
                    address.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}
