//! Which stretches of the flat slot table are free. Pure but for the time that is passed in.
//!
//! A stretch that was given back rests before it is given out again, because a program that looked its
//! service up just before the switch may still read the old one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// How long a stretch rests. A program run takes microseconds; this is beyond any doubt.
pub(super) const REST: Duration = Duration::from_secs(1);

/// Free stretches of a table.
#[derive(Debug)]
pub(super) struct Regions {
    /// Start → length; neighbours are joined.
    free: BTreeMap<u32, u32>,
    /// The same as (length, start).
    by_length: BTreeSet<(u32, u32)>,
    /// Given back, oldest first: when, start, length.
    resting: VecDeque<(Instant, u32, u32)>,
}

impl Regions {
    /// A table of `size` with the stretches of `taken` (start, length) in use.
    pub(super) fn new(size: u32, taken: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut taken: Vec<_> = taken.into_iter().filter(|(_, length)| *length > 0).collect();
        taken.sort_unstable();
        let mut regions =
            Self { free: BTreeMap::new(), by_length: BTreeSet::new(), resting: VecDeque::new() };
        let mut next = 0;
        for (start, length) in taken {
            if start > next {
                regions.add(next, start - next);
            }
            next = next.max(start.saturating_add(length));
        }
        if next < size {
            regions.add(next, size - next);
        }
        regions
    }

    /// Takes a stretch of `length` out of the smallest that fits; `None` when there is none.
    pub(super) fn take(&mut self, length: u32, now: Instant) -> Option<u32> {
        self.wake(now);
        let &(available, start) = self.by_length.range((length, 0)..).next()?;
        self.strike(start, available);
        if available > length {
            self.add(start + length, available - length);
        }
        Some(start)
    }

    /// Gives a stretch back that no service points to from `now` on.
    pub(super) fn give_back(&mut self, start: u32, length: u32, now: Instant) {
        if length > 0 {
            self.resting.push_back((now, start, length));
        }
    }

    fn wake(&mut self, now: Instant) {
        while let Some(&(since, start, length)) = self.resting.front()
            && now.duration_since(since) >= REST
        {
            self.resting.pop_front();
            self.join(start, length);
        }
    }

    fn join(&mut self, mut start: u32, mut length: u32) {
        if let Some((&before, &before_length)) = self.free.range(..start).next_back()
            && before + before_length == start
        {
            self.strike(before, before_length);
            start = before;
            length += before_length;
        }
        if let Some(&after_length) = self.free.get(&(start + length)) {
            self.strike(start + length, after_length);
            length += after_length;
        }
        self.add(start, length);
    }

    fn add(&mut self, start: u32, length: u32) {
        self.free.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn strike(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn starts_around_what_is_taken() {
        let now = Instant::now();
        let mut regions = Regions::new(10, [(4, 2), (0, 1)]);
        assert_eq!(regions.take(4, now), Some(6));
        assert_eq!(regions.take(3, now), Some(1));
        assert_eq!(regions.take(1, now), None);
    }

    #[test]
    fn a_stretch_rests_before_it_is_given_out_again() {
        let now = Instant::now();
        let mut regions = Regions::new(2, []);
        assert_eq!(regions.take(2, now), Some(0));
        regions.give_back(0, 2, now);
        assert_eq!(regions.take(1, now), None);
        assert_eq!(regions.take(2, now + REST), Some(0));
    }

    proptest! {
        #[test]
        fn stretches_in_use_never_overlap(steps in proptest::collection::vec((any::<bool>(), 1_u32..20), 1..200)) {
            let mut now = Instant::now();
            let mut regions = Regions::new(100, []);
            let mut used: Vec<(u32, u32)> = Vec::new();
            for (take, length) in steps {
                now += REST;
                if take {
                    if let Some(start) = regions.take(length, now) {
                        prop_assert!(start + length <= 100);
                        prop_assert!(used.iter().all(|&(s, l)| start + length <= s || s + l <= start));
                        used.push((start, length));
                    }
                } else if let Some((start, length)) = used.pop() {
                    regions.give_back(start, length, now);
                }
            }
            for (start, length) in used {
                regions.give_back(start, length, now);
            }
            prop_assert_eq!(regions.take(100, now + REST), Some(0));
        }
    }
}
