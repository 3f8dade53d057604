//! How a pool's backends share its flows.

use std::fmt;

use super::spec::{MAX_POOL_SLOTS, SpecError};

/// Slots for each backend that a Maglev table has at least, so that equal backends' parts differ by 1 % at
/// most (Eisenbud et al., Maglev, NSDI 2016, section 3.4).
pub const SLOTS_PER_BACKEND: u32 = 100;

/// How a pool's backends share its new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// They take turns, by weight.
    #[default]
    RoundRobin,
    /// By the packet's tuple: every graylb with the same config sends it to the same backend.
    Maglev {
        /// Size of the table.
        size: TableSize,
    },
    /// By the client's address: a client stays with its backend.
    Sticky {
        /// Size of the table.
        size: TableSize,
        /// Which clients are one.
        prefixes: Prefixes,
    },
    /// Of two at random, the one with fewer flows for its weight.
    LeastConnections,
}

impl Balance {
    /// Its names, as the config takes them.
    pub const NAMES: [&str; 4] = ["round_robin", "maglev", "sticky", "least_connections"];

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => Self::NAMES[0],
            Self::Maglev { .. } => Self::NAMES[1],
            Self::Sticky { .. } => Self::NAMES[2],
            Self::LeastConnections => Self::NAMES[3],
        }
    }

    /// The size of its Maglev table, if it has one.
    #[must_use]
    pub const fn table(&self) -> Option<TableSize> {
        match self {
            Self::Maglev { size } | Self::Sticky { size, .. } => Some(*size),
            Self::RoundRobin | Self::LeastConnections => None,
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many leading bits of a client's address say who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Of IPv4 addresses: 1 to 32.
    pub v4: u8,
    /// Of IPv6 addresses: 1 to 128.
    pub v6: u8,
}

impl Default for Prefixes {
    /// Whole addresses.
    fn default() -> Self {
        Self { v4: 32, v6: 128 }
    }
}

/// The size of a Maglev table: a prime, so that every step through it meets every slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableSize(u32);

impl TableSize {
    /// Enough for 40 backends, and small enough for 60 services and a change.
    pub const DEFAULT: Self = Self(4099);
    /// The smallest: for one backend.
    pub const MIN: u32 = 101;
    /// The largest prime that one pool's slots may number.
    pub const MAX: u32 = 65_521;

    /// Checks `slots`.
    ///
    /// # Errors
    ///
    /// It is out of range or no prime; the text names the next one.
    pub fn new(slots: u32) -> Result<Self, SpecError> {
        if !(Self::MIN..=Self::MAX).contains(&slots) {
            return Err(SpecError(format!("{} to {} are allowed", Self::MIN, Self::MAX)));
        }
        if !is_prime(slots) {
            let next = next_prime(slots);
            return Err(SpecError(format!("{slots} is no prime: the next one is {next}")));
        }
        Ok(Self(slots))
    }

    /// The number of slots.
    #[must_use]
    pub const fn slots(self) -> u32 {
        self.0
    }

    /// Whether it has [`SLOTS_PER_BACKEND`] for so many.
    ///
    /// # Errors
    ///
    /// It has not; the text says which size has.
    pub fn check_backends(self, backends: usize) -> Result<(), SpecError> {
        let needed = (backends as u64) * u64::from(SLOTS_PER_BACKEND);
        if u64::from(self.0) >= needed {
            return Ok(());
        }
        Err(SpecError(if needed > u64::from(Self::MAX) {
            format!(
                "{backends} backends are too many for a Maglev table: it has {SLOTS_PER_BACKEND} slots for each, and {} at most, so {} backends are allowed",
                Self::MAX,
                Self::MAX / SLOTS_PER_BACKEND
            )
        } else {
            format!(
                "a Maglev table of {} slots is too small for {backends} backends, which need {SLOTS_PER_BACKEND} each: write maglev_size = {} or a larger prime",
                self.0,
                next_prime(needed as u32)
            )
        }))
    }
}

const _: () = assert!(TableSize::MAX <= MAX_POOL_SLOTS);

/// The smallest prime from `from` on.
fn next_prime(from: u32) -> u32 {
    (from..).find(|&number| is_prime(number)).unwrap_or(from)
}

fn is_prime(number: u32) -> bool {
    number >= 2 && (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_primes() {
        for size in [TableSize::MIN, TableSize::DEFAULT.slots(), 16_381, TableSize::MAX] {
            assert_eq!(TableSize::new(size).map(TableSize::slots), Ok(size));
        }
        let refused = |size| TableSize::new(size).expect_err("refused").0;
        assert_eq!(refused(4096), "4096 is no prime: the next one is 4099");
        assert_eq!(refused(97), "101 to 65521 are allowed");
        assert_eq!(refused(65_537), "101 to 65521 are allowed");
        assert_eq!(next_prime(TableSize::MAX + 1), 65_537, "none fits after the largest");
    }

    #[test]
    fn a_table_is_large_enough_for_its_backends() {
        let size = TableSize::DEFAULT;
        assert_eq!(size.check_backends(40), Ok(()));
        let refused = |backends| size.check_backends(backends).expect_err("refused").0;
        assert!(refused(41).ends_with("write maglev_size = 4111 or a larger prime"));
        assert!(refused(656).ends_with("so 655 backends are allowed"));
    }
}
