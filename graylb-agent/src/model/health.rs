//! Whether one backend is to be trusted, from the answers to its probes. Pure: no clock, no I/O.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where a backend's trust stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Not probed yet: takes no flows.
    Unknown,
    /// Takes new flows.
    Up,
    /// Takes none.
    Down,
}

/// A backend in a pool: what is probed, and what health belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The pool, as [`super::choice::PoolChoice`] writes it.
    pub pool: String,
    /// The backend.
    pub address: SocketAddr,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As it should be.
    Good,
    /// Why not, in a few words.
    Bad(String),
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: HealthState,
    /// Now.
    pub to: HealthState,
}

/// One backend's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    state: HealthState,
    rise: u32,
    fall: u32,
    last_good: bool,
    streak: u32,
    reason: String,
    answers: Answers,
}

/// Answers to probes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Good ones.
    pub good: u64,
    /// Bad ones.
    pub bad: u64,
}

impl Health {
    /// A backend that nobody probes: taken to be well.
    #[must_use]
    pub fn without_probe() -> Self {
        Self { reason: "not probed".into(), ..Self::resumed(HealthState::Up, 1, 1) }
    }

    /// A backend that is about to be probed: up after the first good answer, and from then on changed by
    /// `rise` good or `fall` bad answers in a row.
    #[must_use]
    pub fn new(rise: u32, fall: u32) -> Self {
        Self { reason: "not probed yet".into(), ..Self::resumed(HealthState::Unknown, rise, fall) }
    }

    /// A backend in the state that an earlier agent last knew.
    #[must_use]
    pub fn resumed(state: HealthState, rise: u32, fall: u32) -> Self {
        Self {
            state,
            rise,
            fall,
            last_good: false,
            streak: 0,
            reason: "as before the restart".into(),
            answers: Answers::default(),
        }
    }

    /// Takes over the state that an earlier agent last knew.
    pub fn resume(&mut self, state: HealthState) {
        *self = Self::resumed(state, self.rise, self.fall);
    }

    /// The same backend under other thresholds.
    pub const fn set_thresholds(&mut self, rise: u32, fall: u32) {
        self.rise = rise;
        self.fall = fall;
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> HealthState {
        self.state
    }

    /// The latest evidence.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Answers so far.
    #[must_use]
    pub const fn answers(&self) -> Answers {
        self.answers
    }

    /// Takes an answer in; says so if it changes the state.
    pub fn observe(&mut self, answer: &Answer) -> Option<Transition> {
        let good = *answer == Answer::Good;
        self.answers.good += u64::from(good);
        self.answers.bad += u64::from(!good);
        self.streak = if good == self.last_good { self.streak.saturating_add(1) } else { 1 };
        self.last_good = good;
        self.reason = match answer {
            Answer::Good => "probe answered".into(),
            Answer::Bad(why) => why.clone(),
        };
        let to = match (self.state, good) {
            (HealthState::Unknown, true) => HealthState::Up,
            (HealthState::Unknown, false) => HealthState::Down,
            (HealthState::Down, true) if self.streak >= self.rise => HealthState::Up,
            (HealthState::Up, false) if self.streak >= self.fall => HealthState::Down,
            (state, _) => state,
        };
        let from = std::mem::replace(&mut self.state, to);
        (from != to).then_some(Transition { from, to })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(good: bool) -> Answer {
        if good { Answer::Good } else { Answer::Bad("refused".into()) }
    }

    proptest! {
        #[test]
        fn never_up_without_a_good_answer(bad in 1..50_usize, rise in 1..5_u32, fall in 1..5_u32) {
            let mut health = Health::new(rise, fall);
            for _ in 0..bad {
                let _change = health.observe(&answer(false));
                prop_assert_ne!(health.state(), HealthState::Up);
            }
        }

        #[test]
        fn changes_need_answers_in_a_row(
            answers in proptest::collection::vec(any::<bool>(), 1..100),
            rise in 1..5_u32,
            fall in 1..5_u32,
        ) {
            let mut health = Health::resumed(HealthState::Up, rise, fall);
            for (place, good) in answers.iter().enumerate() {
                let Some(change) = health.observe(&answer(*good)) else { continue };
                let needed = if change.to == HealthState::Up { rise } else { fall } as usize;
                prop_assert!(place + 1 >= needed);
                prop_assert!(answers[place + 1 - needed..=place].iter().all(|a| a == good));
                prop_assert_eq!(change.to == HealthState::Up, *good);
            }
        }
    }

    #[test]
    fn the_first_answer_decides_and_later_ones_need_company() {
        let mut health = Health::new(2, 3);
        assert_eq!(health.observe(&answer(true)).map(|t| t.to), Some(HealthState::Up));
        assert_eq!(health.observe(&answer(false)), None);
        assert_eq!(health.observe(&answer(false)), None);
        assert_eq!(health.observe(&answer(false)).map(|t| t.to), Some(HealthState::Down));
        assert_eq!(health.reason(), "refused");
        assert_eq!(health.observe(&answer(true)), None);
        assert_eq!(health.observe(&answer(true)).map(|t| t.to), Some(HealthState::Up));
    }
}
