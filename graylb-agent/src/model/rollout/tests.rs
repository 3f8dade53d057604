//! Rollouts through any series of looks, commands, failures and restarts.

use proptest::prelude::*;

use super::*;
use crate::model::{
    choice::PoolChoice,
    judge::{Gates, counts::BUCKETS},
    spec::Name,
};

const HOLD: u64 = 1000;
const WELL: Capacity = Capacity { up: 4, all: 4 };
const DEAD: Capacity = Capacity { up: 0, all: 4 };

fn plan() -> Plan {
    let steps = ["1%", "5%", "25%", "100%"].map(|share| share.parse().expect("a share"));
    let to = PoolChoice::Pool(Name::new("green").expect("a name"));
    let plan = Plan::new(to, steps.to_vec(), HOLD).expect("a plan");
    Plan { patience_ms: 5 * HOLD, gates: Gates::all(), ..plan }
}

fn add(counts: &mut Counts, opened: u64, refused: u64) {
    let established = opened - refused;
    counts.opened += opened;
    counts.refused += refused;
    counts.established += established;
    counts.closed += established;
    counts.handshake[BUCKETS / 3] += established;
}

/// A rollout, and the world that it sees.
struct Lab {
    rollout: Rollout,
    totals: Window,
    canary: Capacity,
    stable: Capacity,
    /// Shares that were put in force.
    shares: Vec<Share>,
}

impl Lab {
    fn new() -> Self {
        Self {
            rollout: Rollout::new(plan()),
            totals: Window::default(),
            canary: WELL,
            stable: WELL,
            shares: Vec::new(),
        }
    }

    /// Flows come, time goes by, one looks; returns what is to be done.
    fn look(&mut self, flows: u64, refused: u64, elapsed_ms: u64) -> Option<Step> {
        add(&mut self.totals.canary, flows, refused.min(flows));
        add(&mut self.totals.stable, flows * 9, 0);
        let Self { totals, canary, stable, .. } = *self;
        self.rollout.look(&Seen { elapsed_ms, totals, canary, stable })
    }

    fn act(&mut self, step: &Step) {
        self.rollout.did(step, &self.totals);
        match step {
            Step::Share(share) => self.shares.push(*share),
            Step::Back => self.shares.push(Share::NONE),
            Step::Promote => {}
        }
    }

    fn go(&mut self, flows: u64, refused: u64, elapsed_ms: u64) -> Option<Step> {
        let step = self.look(flows, refused, elapsed_ms);
        step.iter().for_each(|step| self.act(step));
        step
    }

    /// At the step of this place, with nothing counted yet.
    fn at(step: usize) -> Self {
        let mut lab = Self::new();
        for _ in 0..100 {
            if lab.rollout.phase == (Phase::Holding { step, held_ms: 0 }) {
                return lab;
            }
            lab.go(300, 0, HOLD);
        }
        panic!("step {step} is never entered: {:?}", lab.rollout);
    }
}

#[test]
fn a_good_canary_is_promoted_step_by_step() {
    let mut lab = Lab::new();
    let steps: Vec<Step> = (0..30).filter_map(|_| lab.go(100, 0, HOLD / 2)).collect();
    let mut expected: Vec<Step> = plan().steps.into_iter().map(Step::Share).collect();
    expected.push(Step::Promote);
    assert_eq!(steps, expected);
    assert_eq!(lab.rollout.phase, Phase::Promoted);
    assert_eq!(lab.go(100, 100, HOLD), None);
}

#[test]
fn a_breach_goes_back_from_each_step_at_once() {
    for step in 0..4 {
        let mut lab = Lab::at(step);
        assert_eq!(lab.go(100, 30, 1), Some(Step::Back), "{step}");
        let Phase::RolledBack { why } = &lab.rollout.phase else { panic!("{:?}", lab.rollout) };
        assert!(why.contains("failures: fail, 30 of 100 (30.00%) against"), "{why}");
        assert_eq!(lab.rollout.window.canary.refused, 30, "the numbers are kept");

        let mut lab = Lab::at(step);
        lab.canary = DEAD;
        assert_eq!(lab.go(0, 0, 1), Some(Step::Back), "{step}");
    }
}

#[test]
fn paused_it_still_goes_back() {
    let mut lab = Lab::at(1);
    lab.rollout.pause("lunch").expect("it pauses");
    assert_eq!(lab.go(300, 0, 100 * HOLD), None);
    assert_eq!(lab.go(100, 50, 1), Some(Step::Back));
}

#[test]
fn without_samples_it_waits_and_then_pauses() {
    let mut lab = Lab::at(1);
    let steps: Vec<Step> = (0..20).filter_map(|_| lab.go(1, 0, HOLD)).collect();
    assert_eq!(steps, []);
    let Phase::Paused { step: 1, why } = &lab.rollout.phase else { panic!("{:?}", lab.rollout) };
    assert!(why.contains("200 of each are needed"), "{why}");
    // More flows alone do not take it further; an operator does, and it has its full time again.
    assert_eq!(lab.go(1000, 0, 10 * HOLD), None);
    lab.rollout.resume().expect("it resumes");
    assert_eq!(lab.go(0, 0, HOLD - 1), None);
    assert_eq!(lab.go(0, 0, 1), Some(Step::Share(plan().steps[2])));
}

#[test]
fn the_way_back_is_as_wide_as_the_stable_pool() {
    let mut lab = Lab::at(2);
    lab.rollout.did(&Step::Share(Share::new(9000).expect("a share")), &Window::default());
    lab.stable = Capacity { up: 1, all: 4 };
    lab.rollout.abort("enough").expect("it aborts");
    assert_eq!(lab.go(0, 0, 1), Some(Step::Share(Share::new(7500).expect("a share"))));
    assert!(lab.rollout.is_ramping());
    assert_eq!(lab.go(0, 0, 1), None, "no further");
    lab.stable.up = 0;
    assert_eq!(lab.go(0, 0, 1), None, "nor forward again");
    lab.stable.up = 2;
    assert_eq!(lab.go(0, 0, 1), Some(Step::Back));
    assert_eq!(lab.rollout.phase, Phase::Aborted { why: "enough".into() });

    // A canary of which nobody is up has nothing to hold on to.
    let mut lab = Lab::at(2);
    (lab.canary, lab.stable) = (DEAD, Capacity { up: 1, all: 4 });
    assert_eq!(lab.go(0, 0, 1), Some(Step::Back));
}

#[test]
fn commands_that_do_not_fit_are_refused() {
    let mut lab = Lab::at(1);
    assert!(matches!(lab.rollout.resume(), Err(RolloutError::NotPaused(_))));
    lab.rollout.abort("enough").expect("it aborts");
    assert_eq!(lab.rollout.pause("late"), Err(RolloutError::GoingBack));
    assert_eq!(lab.rollout.promote(), Err(RolloutError::GoingBack));
    assert_eq!(lab.go(0, 0, 0), Some(Step::Back));
    for refused in [lab.rollout.pause(""), lab.rollout.resume(), lab.rollout.abort("")] {
        assert!(matches!(refused, Err(RolloutError::Over(_))));
    }
}

#[test]
fn plans_are_checked() {
    let to = PoolChoice::Pool(Name::new("green").expect("a name"));
    for (steps, why) in [
        (vec![], "1 to 100 are allowed"),
        (vec!["0%", "100%"], "more than the one before"),
        (vec!["5%", "5%", "100%"], "more than the one before"),
        (vec!["5%", "50%"], "the last one must be 100%"),
    ] {
        let steps = steps.into_iter().map(|step| step.parse().expect("a share")).collect();
        let error = Plan::new(to.clone(), steps, 1).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    Look { flows: u64, refused: u64, elapsed_ms: u64, is_done: bool },
    Canary(u32),
    Stable(u32),
    Pause,
    Resume,
    Abort,
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let refused = prop_oneof![20 => Just(0_u64), 1 => 0..300_u64];
    let look = (0..400_u64, refused, 0..2 * HOLD, prop::bool::weighted(0.8)).prop_map(
        |(flows, refused, elapsed_ms, is_done)| Event::Look { flows, refused, elapsed_ms, is_done },
    );
    prop_oneof![
        60 => look,
        1 => (0..=4_u32).prop_map(Event::Canary),
        3 => (0..=4_u32).prop_map(Event::Stable),
        2 => Just(Event::Pause),
        4 => Just(Event::Resume),
        1 => Just(Event::Abort),
        4 => Just(Event::Restart),
    ]
}

/// What a rollout does is allowed after what was before.
fn check(lab: &Lab, before: &Rollout, elapsed_ms: u64, step: &Step) -> Result<(), TestCaseError> {
    let now = &lab.rollout;
    let failed = now.findings.iter().any(|finding| finding.ruling == Ruling::Fail);
    let passed = |rollout: &Rollout| {
        let mut waited = rollout.findings.iter().filter(|f| f.gate.is_waited_for());
        waited.all(|f| f.ruling == Ruling::Pass) && !rollout.findings.is_empty()
    };
    match (step, &before.phase) {
        (Step::Share(share), _) if matches!(now.phase, Phase::GoingBack { .. }) => {
            prop_assert!(*share < before.share, "on the way back the share only shrinks");
        }
        (Step::Share(share), phase) => {
            prop_assert!(!failed, "further after a breach: {now:?}");
            let place = before.plan.steps.iter().position(|step| *step == before.share);
            let next = place.map_or(0, |place| place + 1);
            prop_assert_eq!(Some(share), before.plan.steps.get(next), "a step is skipped");
            if let Phase::Holding { held_ms, .. } = phase {
                prop_assert!(passed(now) && held_ms + elapsed_ms >= HOLD, "{now:?}");
            }
        }
        (Step::Promote, phase) => {
            let Phase::Holding { held_ms, .. } = phase else { panic!("promoted from {phase:?}") };
            prop_assert!(passed(now) && !failed && held_ms + elapsed_ms >= HOLD, "{now:?}");
            prop_assert_eq!(before.share, Share::ALL);
        }
        (Step::Back, _) => {
            prop_assert!(matches!(now.phase, Phase::GoingBack { .. }), "{now:?}");
            let is_enough = lab.stable.up * 2 >= lab.stable.all && lab.stable.up > 0;
            let nothing_to_lose = lab.canary.up == 0 || before.share == Share::NONE;
            prop_assert!(is_enough || nothing_to_lose, "too much for the stable pool");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn whatever_happens(events in proptest::collection::vec(event(), 1..200)) {
        let mut lab = Lab::new();
        for event in events {
            let before = lab.rollout.clone();
            match event {
                Event::Look { flows, refused, elapsed_ms, is_done } => {
                    let step = lab.look(flows, refused, elapsed_ms);
                    if let Some(step) = &step {
                        check(&lab, &before, elapsed_ms, step)?;
                    }
                    let breach = lab.rollout.findings.iter().any(|f| f.ruling == Ruling::Fail);
                    if breach && !before.is_over() {
                        prop_assert!(
                            matches!(lab.rollout.phase, Phase::GoingBack { .. }),
                            "a breach and no way back: {:?}", lab.rollout
                        );
                    }
                    step.iter().filter(|_| is_done).for_each(|step| lab.act(step));
                }
                Event::Canary(up) => lab.canary.up = up,
                Event::Stable(up) => lab.stable.up = up,
                Event::Pause => { let _refused = lab.rollout.pause("by hand"); }
                Event::Resume => { let _refused = lab.rollout.resume(); }
                Event::Abort => { let _refused = lab.rollout.abort("by hand"); }
                Event::Restart => {
                    let text = serde_json::to_string(&lab.rollout).expect("it is written");
                    let read: Rollout = serde_json::from_str(&text).expect("it is read");
                    prop_assert_eq!((&read.phase, read.since), (&before.phase, before.since));
                    prop_assert_eq!((read.share, read.window), (before.share, before.window));
                    lab.rollout = read;
                }
            }
            if before.is_over() {
                prop_assert_eq!(&before.phase, &lab.rollout.phase, "it is over");
            }
        }
        // From wherever it is there is a way back, once the stable pool is well.
        if !lab.rollout.is_over() {
            let _going_already = lab.rollout.abort("enough");
            lab.stable = WELL;
            prop_assert_eq!(lab.go(0, 0, 0), Some(Step::Back));
            prop_assert!(lab.rollout.is_over() && lab.rollout.share == Share::NONE);
        }
    }
}
