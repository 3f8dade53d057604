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

use super::{Observation, probe_once};
use crate::model::{health::Target, spec::ProbeSpec};

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
                let task = tokio::spawn(run(
                    target.clone(),
                    spec.clone(),
                    self.out.clone(),
                    Arc::clone(&self.permits),
                ));
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

async fn run(
    target: Target,
    spec: ProbeSpec,
    out: mpsc::Sender<Observation>,
    permits: Arc<Semaphore>,
) {
    let mut next = Instant::now();
    for round in 0_u64.. {
        time::sleep_until(next).await;
        next = Instant::now() + jittered(spec.interval, &target, round);
        let Ok(permit) = permits.acquire().await else { return };
        let asked = Instant::now();
        let answer = probe_once(&spec.kind, target.address, spec.timeout).await;
        drop(permit);
        let observation = Observation { target: target.clone(), answer, took: asked.elapsed() };
        if out.send(observation).await.is_err() {
            return;
        }
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
    use crate::model::{health::Answer, spec::ProbeKind};

    fn spec() -> ProbeSpec {
        ProbeSpec {
            kind: ProbeKind::Tcp,
            interval: Duration::from_millis(50),
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
