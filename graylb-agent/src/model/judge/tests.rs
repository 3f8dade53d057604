//! Windows and what the gates say of them.

use proptest::prelude::*;

use super::{counts::BUCKETS, *};

/// Counts of a pool that is well: `opened` flows with handshakes in bucket 8.
fn well(opened: u64) -> Counts {
    let mut handshake = [0; BUCKETS];
    handshake[8] = opened;
    Counts { opened, established: opened, closed: opened, handshake, ..Counts::default() }
}

fn ruling(window: &Window, gate: Gate) -> Ruling {
    let findings = judge(window, &Gates::all(), 5);
    findings.iter().find(|finding| finding.gate == gate).expect("the gate is on").ruling
}

#[test]
fn each_gate_hears_its_own_fault() {
    let stable = well(10_000);
    let canary = well(500);
    let mut late = canary;
    late.handshake = [0; BUCKETS];
    late.handshake[15] = 500;
    let mut tail = canary;
    tail.handshake[8] = 450;
    tail.handshake[18] = 50;
    for (what, canary, failing) in [
        ("well", canary, vec![]),
        ("refuses", Counts { refused: 60, ..canary }, vec![Gate::Failures]),
        ("silent", Counts { unanswered: 60, ..canary }, vec![Gate::Failures]),
        ("resets", Counts { reset_early: 500, ..canary }, vec![Gate::EarlyResets]),
        ("half-open", Counts { expired: 60, ..canary }, vec![Gate::Expired]),
        ("mute", Counts { closed_empty: 120, ..canary }, vec![Gate::ClosedEmpty]),
        ("late", late, vec![Gate::HandshakeP50, Gate::HandshakeP90, Gate::HandshakeP99]),
        ("late tail", tail, vec![Gate::HandshakeP99]),
    ] {
        let findings = judge(&Window { canary, stable }, &Gates::all(), 5);
        let found: Vec<Gate> =
            findings.iter().filter(|f| f.ruling == Ruling::Fail).map(|f| f.gate).collect();
        assert_eq!(found, failing, "{what}: {findings:#?}");
    }
}

#[test]
fn few_samples_are_inconclusive_and_few_failures_no_breach() {
    let window = |canary| Window { canary, stable: well(10_000) };
    assert_eq!(ruling(&window(well(199)), Gate::Failures), Ruling::Inconclusive);
    assert_eq!(ruling(&window(well(200)), Gate::Failures), Ruling::Pass);
    let one = Counts { refused: 1, ..well(1) };
    assert_eq!(ruling(&window(one), Gate::Failures), Ruling::Inconclusive);
    let four = Counts { refused: 4, ..well(4) };
    assert_eq!(ruling(&window(four), Gate::Failures), Ruling::Inconclusive);
    // Every one of a few is enough.
    let all = Counts { refused: 10, ..well(10) };
    assert_eq!(ruling(&window(all), Gate::Failures), Ruling::Fail);
    // Without anything to compare with nothing is concluded.
    let alone = Window { canary: Counts { refused: 100, ..well(1000) }, stable: Counts::default() };
    assert_eq!(ruling(&alone, Gate::Failures), Ruling::Inconclusive);
    assert_eq!(ruling(&Window::default(), Gate::HandshakeP50), Ruling::Inconclusive);
}

#[test]
fn as_bad_as_the_stable_pool_is_no_breach() {
    let bad = |opened| Counts { refused: opened / 10, reset_early: opened / 5, ..well(opened) };
    let window = Window { canary: bad(5000), stable: bad(50_000) };
    let findings = judge(&window, &Gates::all(), 5);
    assert!(findings.iter().all(|finding| finding.ruling == Ruling::Pass), "{findings:#?}");
}

#[test]
fn what_is_fast_is_not_slow() {
    let (mut canary, mut stable) = (well(0), well(0));
    stable.handshake[4] = 5000;
    canary.handshake[11] = 5000;
    // 64 times as long, but 4 ms at most.
    assert_eq!(ruling(&Window { canary, stable }, Gate::HandshakeP50), Ruling::Pass);
    canary.handshake[12] = 15_000;
    assert_eq!(ruling(&Window { canary, stable }, Gate::HandshakeP50), Ruling::Fail);
}

#[test]
fn settings_are_read() {
    for text in ["failures=2%", "handshake_p99=8x", "expired=off"] {
        assert!(text.parse::<GateSetting>().is_ok(), "{text}");
    }
    for (text, why) in [
        ("speed=2x", "there is no gate \"speed\"; there are failures, early_resets"),
        ("failures", "as in failures=1%"),
        ("failures=2x", "as in failures=1%"),
        ("handshake_p50=3x", "as in handshake_p50=2x"),
        ("handshake_p50=1x", "as in handshake_p50=2x"),
        ("expired=2%", "does not count that yet"),
    ] {
        let error = text.parse::<GateSetting>().expect_err(text).to_string();
        assert!(error.contains(why), "{error}");
    }
    let gates = Gates::default().with("failures=off".parse().expect("a setting"));
    assert!(gates.on().all(|(gate, _)| gate != Gate::Failures));
}

fn counts() -> impl Strategy<Value = Counts> {
    let rest = (0..3000_u64, 0..3000_u64, 0..3000_u64, 0..3000_u64, 0..3000_u64);
    let handshake = proptest::array::uniform24(prop_oneof![3 => Just(0), 1 => 0..1000_u64]);
    (0..3000_u64, 0..3000_u64, rest, handshake).prop_map(
        |(opened, established, rest, handshake)| {
            let (refused, unanswered, reset_early, closed, expired) = rest;
            let closed_empty = reset_early / 2;
            Counts {
                opened,
                established,
                refused,
                unanswered,
                reset_early,
                closed,
                closed_empty,
                expired,
                handshake,
            }
        },
    )
}

proptest! {
    /// Whatever the kernel counts: nothing panics, the same pools never fail, and no pass without samples.
    #[test]
    fn any_counts_are_judged(canary in counts(), stable in counts()) {
        for finding in judge(&Window { canary, stable }, &Gates::all(), 5) {
            prop_assert!(finding.evidence.is_finite(), "{finding:?}");
            let samples = |counts: &Counts| match finding.gate.quantile() {
                _ if finding.gate.part(counts).of() > 0 => finding.gate.part(counts).of(),
                _ => counts.handshake.iter().sum(),
            };
            if finding.ruling == Ruling::Pass {
                prop_assert!(samples(&canary) >= 200 && samples(&stable) >= 200, "{finding:?}");
            }
        }
        for finding in judge(&Window { canary, stable: canary }, &Gates::all(), 5) {
            prop_assert!(finding.ruling != Ruling::Fail, "{finding:?}");
        }
    }
}
