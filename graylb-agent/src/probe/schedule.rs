//! Which backends are probed when.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::{self, Instant},
};

use super::{Observation, Prober};
use crate::model::{
    health::{Answer, Target},
    probe::ProbeSpec,
};

/// Most probes under way at once.
const MAX_CONCURRENT: usize = 256;

/// Runs the probes of a set of targets.
#[derive(Debug)]
pub struct Probes {
    running: BTreeMap<Target, (ProbeSpec, AbortHandle)>,
    out: mpsc::Sender<Observation>,
    permits: Arc<Semaphore>,
}

impl Probes {
    /// No targets yet; what is found goes to `out`.
    #[must_use]
    pub fn new(out: mpsc::Sender<Observation>) -> Self {
        Self { running: BTreeMap::new(), out, permits: Arc::new(Semaphore::new(MAX_CONCURRENT)) }
    }

    /// Makes exactly `targets` probed from now on. New ones are probed at once, unchanged ones keep their
    /// rhythm.
    pub fn set(&mut self, targets: &BTreeMap<Target, ProbeSpec>) {
        self.running.retain(|target, (spec, task)| {
            let same = targets.get(target) == Some(&*spec);
            if !same {
                task.abort();
            }
            same
        });
        for (target, spec) in targets {
            if !self.running.contains_key(target) {
                let prober = Prober::new(target.clone(), spec.clone());
                let task = tokio::spawn(run(prober, self.out.clone(), Arc::clone(&self.permits)));
                self.running.insert(target.clone(), (spec.clone(), task.abort_handle()));
            }
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

async fn run(prober: Prober, out: mpsc::Sender<Observation>, permits: Arc<Semaphore>) {
    let (target, spec) = (prober.target(), prober.spec());
    let mut streak = Streak::default();
    for round in 0_u64.. {
        let Ok(permit) = permits.acquire().await else { return };
        let asked = Instant::now();
        let answer = prober.ask().await;
        drop(permit);
        streak.add(answer == Answer::Good);
        let observation = Observation { target: target.clone(), answer, took: asked.elapsed() };
        if out.send(observation).await.is_err() {
            return;
        }
        let interval = spec.interval_after(streak.length);
        time::sleep_until(asked + jittered(interval, target, round)).await;
    }
}

/// How many of the latest answers say the same.
#[derive(Default)]
struct Streak {
    good: bool,
    length: u32,
}

impl Streak {
    const fn add(&mut self, good: bool) {
        self.length = if self.good == good { self.length.saturating_add(1) } else { 1 };
        self.good = good;
    }
}

/// The interval, a tenth more or less by target and round, so that many targets drift apart.
fn jittered(interval: Duration, target: &Target, round: u64) -> Duration {
    let mut hasher = DefaultHasher::new();
    (target, round).hash(&mut hasher);
    let per_mille = 900 + (hasher.finish() % 201) as u32;
    interval * per_mille / 1000
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::probe::ProbeKind;

    fn spec() -> ProbeSpec {
        ProbeSpec {
            kind: ProbeKind::Tcp,
            port: None,
            elsewhere: BTreeMap::new(),
            interval: Duration::from_millis(50),
            doubt_interval: Duration::from_millis(50),
            timeout: Duration::from_millis(50),
            rise: 1,
            fall: 1,
        }
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        let target = Target { pool: "p".into(), address: "127.0.0.1:1".parse().expect("address") };
        for round in 0..1000 {
            let interval = jittered(Duration::from_secs(1), &target, round);
            assert!((900..=1100).contains(&interval.as_millis()), "{interval:?}");
        }
    }

    #[tokio::test]
    async fn targets_come_and_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let target = Target { pool: "p".into(), address };
        let (out, mut observations) = mpsc::channel(8);
        let mut probes = Probes::new(out);
        probes.set(&BTreeMap::from([(target.clone(), spec())]));
        for _ in 0..2 {
            let seen = observations.recv().await.expect("observation");
            assert_eq!((seen.target, seen.answer), (target.clone(), Answer::Good));
        }
        drop(listener);
        while observations.recv().await.expect("observation").answer == Answer::Good {}
        probes.set(&BTreeMap::new());
        drop(probes);
        // The last sender is gone with the tasks.
        while observations.recv().await.is_some() {}
    }
}
