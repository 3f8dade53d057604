//! How often the gates are wrong, and how late: drawn flows, judged after every few, with a fixed seed.
//!
//! `SIMULATE=10000 cargo test --release --package graylb-agent --lib simulation -- --nocapture` prints the table of
//! docs/judging.md.

use super::{counts::BUCKETS, *};

/// Flows of the canary's between two looks.
const LOOK: u64 = 10;
/// Steps that the chance of a false alarm is divided among.
const STEPS: usize = 5;

/// A SplitMix64 generator (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn hits(&mut self, rate: f64) -> bool {
        self.next() < rate
    }
}

/// How a pool behaves.
#[derive(Clone, Copy)]
struct Pool {
    refuses: f64,
    resets: f64,
    /// Added to each handshake, in µs.
    late: f64,
    /// Of the handshakes that are late.
    late_part: f64,
}

/// One flow in 500 fails, handshakes take 0.3 ms in the middle with a long tail.
const USUAL: Pool = Pool { refuses: 0.002, resets: 0.002, late: 0.0, late_part: 0.0 };

impl Pool {
    fn open(&self, random: &mut Random, counts: &mut Counts) {
        counts.opened += 1;
        if random.hits(self.refuses) {
            counts.refused += 1;
            return;
        }
        counts.established += 1;
        // Log-normal, by the sum of twelve.
        let normal: f64 = (0..12).map(|_| random.next()).sum::<f64>() - 6.0;
        let late = if random.hits(self.late_part) { self.late } else { 0.0 };
        let us = 300.0 * (0.8 * normal).exp() + late;
        counts.handshake[(us.max(1.0).log2() as usize).min(BUCKETS - 1)] += 1;
        counts.closed += 1;
        if random.hits(self.resets) {
            counts.reset_early += 1;
            counts.closed_empty += 1;
        }
    }
}

/// What came of one window.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// Taken back after so many of the canary's flows.
    Failed(u64),
    /// Not, though one looked all the time; whether it had passed when there were just enough samples.
    Stayed { passed: bool },
}

/// Opens `flows` of the canary's and 19 times as many of the stable pool's, and looks all the time.
fn window(seed: u64, canary: Pool, stable: Pool, flows: u64) -> Outcome {
    let mut random = Random(seed);
    let (mut window, gates) = (Window::default(), Gates::all());
    let mut passed = None;
    for flow in 1..=flows {
        canary.open(&mut random, &mut window.canary);
        for _ in 0..19 {
            stable.open(&mut random, &mut window.stable);
        }
        if flow % LOOK != 0 {
            continue;
        }
        let findings = judge(&window, &gates, STEPS);
        if findings.iter().any(|finding| finding.ruling == Ruling::Fail) {
            return Outcome::Failed(flow);
        }
        let waited = findings.iter().filter(|finding| finding.gate.is_waited_for());
        let done = waited.clone().all(|finding| finding.ruling != Ruling::Inconclusive);
        passed = passed.or(done.then_some(true));
    }
    Outcome::Stayed { passed: passed.is_some() }
}

struct Summary {
    failed: f64,
    passed: f64,
    median: u64,
    p95: u64,
}

fn simulate(runs: u64, canary: Pool, stable: Pool, flows: u64) -> Summary {
    let outcomes: Vec<Outcome> =
        (0..runs).map(|run| window(run * 7919 + 1, canary, stable, flows)).collect();
    let mut delays: Vec<u64> = outcomes
        .iter()
        .filter_map(
            |outcome| if let Outcome::Failed(flows) = outcome { Some(*flows) } else { None },
        )
        .collect();
    delays.sort_unstable();
    let at = |part: f64| delays.get((delays.len() as f64 * part) as usize).copied().unwrap_or(0);
    let stayed = outcomes.iter().filter(|outcome| **outcome == Outcome::Stayed { passed: true });
    Summary {
        failed: delays.len() as f64 / runs as f64,
        passed: stayed.count() as f64 / runs as f64,
        median: at(0.5),
        p95: at(0.95),
    }
}

/// How many runs; more where somebody wants the table.
fn runs() -> u64 {
    std::env::var("SIMULATE").ok().and_then(|runs| runs.parse().ok()).unwrap_or(20)
}

#[test]
fn how_often_and_how_late() {
    let both = Pool { refuses: 0.05, resets: 0.05, ..USUAL };
    let faults = [
        ("no difference", USUAL, USUAL, 2000, 0.0),
        ("both fail 5 % and reset 5 %", both, both, 2000, 0.0),
        ("at the limit: 1 % more refused", Pool { refuses: 0.012, ..USUAL }, USUAL, 2000, 0.0),
        ("refuses 3 %", Pool { refuses: 0.03, ..USUAL }, USUAL, 2000, 0.5),
        ("refuses 5 %", Pool { refuses: 0.05, ..USUAL }, USUAL, 2000, 1.0),
        ("refuses 20 %", Pool { refuses: 0.2, ..USUAL }, USUAL, 2000, 1.0),
        ("refuses all", Pool { refuses: 1.0, ..USUAL }, USUAL, 2000, 1.0),
        ("resets 5 %", Pool { resets: 0.05, ..USUAL }, USUAL, 2000, 1.0),
        ("resets all", Pool { resets: 1.0, ..USUAL }, USUAL, 2000, 1.0),
        ("50 ms late", Pool { late: 5e4, late_part: 1.0, ..USUAL }, USUAL, 2000, 1.0),
        ("a fifth 50 ms late", Pool { late: 5e4, late_part: 0.2, ..USUAL }, USUAL, 2000, 1.0),
        ("5 % 50 ms late", Pool { late: 5e4, late_part: 0.05, ..USUAL }, USUAL, 2000, 1.0),
    ];
    let runs = runs();
    println!("| canary | taken back | passed all the way | flows until then: median | 95 % |");
    println!("| --- | --- | --- | --- | --- |");
    for (what, canary, stable, flows, expected) in faults {
        let Summary { failed, passed, median, p95 } = simulate(runs, canary, stable, flows);
        println!("| {what} | {:.2}% | {:.2}% | {median} | {p95} |", failed * 100.0, passed * 100.0);
        if expected == 0.0 {
            assert!(failed <= 0.01, "{what}: {failed}");
        } else {
            assert!(failed >= expected * 0.9, "{what}: {failed}");
        }
    }
}
