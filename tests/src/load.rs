//! Load: workers that do the same thing over and over, and a tally in which every failure has its reason.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    client::{self, Connection, Failure, Reply},
    eventually::{SOON, eventually},
    namespace::Namespace,
};

/// Pause between two requests on a long connection, which leaves the machine to those who measure.
const THINKING: Duration = Duration::from_millis(1);

/// What came of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were answered as they should be.
    pub good: u64,
    /// Failures by reason.
    pub failures: BTreeMap<String, u64>,
    /// Good answers by backend.
    pub backends: BTreeMap<String, u64>,
    /// How long the slowest took.
    pub slowest: Duration,
}

impl Tally {
    /// Counts what a request came to.
    pub fn count(&mut self, result: &Result<Reply, Failure>, took: Duration) {
        self.slowest = self.slowest.max(took);
        match result {
            Ok(reply) => {
                self.good += 1;
                *self.backends.entry(reply.backend.clone()).or_default() += 1;
            }
            Err(failure) => self.fail(failure.to_string()),
        }
    }

    /// Counts a failure.
    pub fn fail(&mut self, reason: String) {
        *self.failures.entry(reason).or_default() += 1;
    }

    fn add(&mut self, other: Self) {
        self.good += other.good;
        self.slowest = self.slowest.max(other.slowest);
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
        for (backend, count) in other.backends {
            *self.backends.entry(backend).or_default() += count;
        }
    }

    /// Insists that nothing failed.
    ///
    /// # Panics
    ///
    /// Something did.
    pub fn assert_clean(&self) {
        assert!(self.failures.is_empty() && self.good > 0, "{self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed: u64 = self.failures.values().sum();
        write!(f, "{} good, {failed} failed, slowest {:.1?}", self.good, self.slowest)?;
        write!(f, ", by backend {:?}, failures {:?}", self.backends, self.failures)
    }
}

/// Workers under way. Dropped, they stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts `workers` threads in `namespace`; each makes itself a round by `prepare` and repeats it.
    #[must_use]
    pub fn start<R: FnMut(&mut Tally)>(
        namespace: &Namespace,
        workers: usize,
        prepare: impl Fn() -> R + Clone + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let worker = |_| {
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            let (namespace, prepare) = (namespace.clone(), prepare.clone());
            thread::spawn(move || {
                namespace.enter();
                let mut tally = Tally::default();
                let mut round = prepare();
                while !stop.load(Ordering::Relaxed) {
                    round(&mut tally);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                tally
            })
        };
        let workers = (0..workers).map(worker).collect();
        Self { stop, rounds, workers }
    }

    /// Short requests, each over a connection of its own.
    #[must_use]
    pub fn short(namespace: &Namespace, target: SocketAddr, workers: usize) -> Self {
        Self::start(namespace, workers, move || {
            move |tally: &mut Tally| {
                let started = Instant::now();
                tally.count(&client::ask(target), started.elapsed());
            }
        })
    }

    /// Requests over one connection for each worker, which must stay with its backend. A connection that
    /// fails is opened again.
    #[must_use]
    pub fn long(namespace: &Namespace, target: SocketAddr, workers: usize) -> Self {
        Self::start(namespace, workers, move || {
            let mut connection: Option<(Connection, Option<String>)> = None;
            move |tally: &mut Tally| {
                let started = Instant::now();
                let result = on_connection(&mut connection, target);
                if result.is_err() {
                    connection = None;
                }
                tally.count(&result, started.elapsed());
                thread::sleep(THINKING);
            }
        })
    }

    /// Waits until `count` more rounds are done.
    pub fn wait_rounds(&self, count: u64) {
        let goal = self.rounds.load(Ordering::Relaxed) + count;
        eventually("the load goes on", SOON, || match self.rounds.load(Ordering::Relaxed) {
            rounds if rounds >= goal => Ok(()),
            rounds => Err(format!("{rounds} rounds of {goal}")),
        });
    }

    /// Stops the workers and adds up what came of them.
    ///
    /// # Panics
    ///
    /// A worker did.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for worker in self.workers.drain(..) {
            total.add(worker.join().expect("a worker panicked"));
        }
        total
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _panicked = worker.join();
        }
    }
}

fn on_connection(
    connection: &mut Option<(Connection, Option<String>)>,
    target: SocketAddr,
) -> Result<Reply, Failure> {
    let (connection, backend) = match connection {
        Some(open) => open,
        None => connection.insert((Connection::open(target)?, None)),
    };
    let reply = connection.ask()?;
    match backend {
        Some(backend) if *backend != reply.backend => Err(Failure {
            step: "answer",
            why: format!("the connection moved from {backend} to {}", reply.backend),
        }),
        _ => {
            *backend = Some(reply.backend.clone());
            Ok(reply)
        }
    }
}
