//! Numbers that are given out, come back, and are given out again: lowest first. Pure.

use std::collections::BTreeSet;

/// The numbers below a limit.
#[derive(Debug)]
pub(super) struct Numbers {
    /// Free ones below `end`.
    free: BTreeSet<u32>,
    /// Everything from here on is free.
    end: u32,
    limit: u32,
}

impl Numbers {
    /// The numbers below `limit`, with those of `used` given out.
    pub(super) fn new(limit: u32, used: &BTreeSet<u32>) -> Self {
        let end = used.last().map_or(0, |last| last + 1);
        Self { free: (0..end).filter(|number| !used.contains(number)).collect(), end, limit }
    }

    /// Gives the lowest free number out.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        let number = self.end;
        if number >= self.limit {
            return None;
        }
        self.end += 1;
        Some(number)
    }

    /// Takes a number back.
    pub(super) fn give_back(&mut self, number: u32) {
        self.free.insert(number);
    }

    /// Every number given out is below this one.
    pub(super) const fn end(&self) -> u32 {
        self.end
    }

    pub(super) const fn limit(&self) -> u32 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_number_is_given_out_twice(
            used in proptest::collection::btree_set(0..40_u32, 0..20),
            steps in proptest::collection::vec(any::<bool>(), 1..100),
        ) {
            let mut numbers = Numbers::new(40, &used);
            let mut out = used;
            for take in steps {
                if take {
                    match numbers.take() {
                        Some(number) => {
                            prop_assert!(number < 40 && out.insert(number));
                            prop_assert!((0..number).all(|lower| out.contains(&lower)), "lowest first");
                        }
                        None => prop_assert_eq!(out.len(), 40),
                    }
                } else if let Some(number) = out.pop_first() {
                    numbers.give_back(number);
                }
            }
        }
    }
}
