//! Sweeps in the background: a thread of its own, at low priority and mostly asleep, so that neither
//! traffic nor the API nor probes wait for it.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

use super::{flow_report::FlowReport, sweep::Sweeper};
use crate::model::ageing::{Rules, Timeouts};

/// For each moment of work so many of rest: a sweep takes at most a tenth of one CPU.
const REST: u32 = 9;
/// The thread's niceness: behind whatever else wants to run.
const NICENESS: i32 = 10;

/// What the thread is told.
enum Order {
    Timing(Timeouts, Duration),
    Leave(BTreeSet<u32>),
}

/// The sweeps under way. Dropping it ends them after the current slice.
#[derive(Debug)]
pub struct FlowWatch {
    orders: Sender<Order>,
    latest: Arc<Mutex<Arc<FlowReport>>>,
}

impl FlowWatch {
    /// Starts the thread: a sweep at once, and `interval` after the end of each the next.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub fn start(sweeper: Sweeper, timeouts: Timeouts, interval: Duration) -> io::Result<Self> {
        let (orders, incoming) = channel();
        let latest = Arc::new(Mutex::new(Arc::new(FlowReport::default())));
        let rules = Rules { timeouts, leaving: BTreeSet::new() };
        let worker =
            Worker { sweeper, rules, interval, orders: incoming, latest: Arc::clone(&latest) };
        thread::Builder::new().name("graylb-sweep".into()).spawn(move || worker.run())?;
        Ok(Self { orders, latest })
    }

    /// What the latest sweep found.
    #[must_use]
    pub fn report(&self) -> Arc<FlowReport> {
        Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes timeouts and interval.
    pub fn set_timing(&self, timeouts: Timeouts, interval: Duration) {
        self.send(Order::Timing(timeouts, interval));
    }

    /// Makes UDP flows leave exactly these backends (indices), from now on; if there are any, at once.
    pub fn set_leaving(&self, backends: BTreeSet<u32>) {
        self.send(Order::Leave(backends));
    }

    fn send(&self, order: Order) {
        if self.orders.send(order).is_err() {
            warn!("the flow tables are not swept any more: their thread has ended");
        }
    }
}

struct Worker {
    sweeper: Sweeper,
    rules: Rules,
    interval: Duration,
    orders: Receiver<Order>,
    latest: Arc<Mutex<Arc<FlowReport>>>,
}

impl Worker {
    fn run(mut self) {
        // Without it the pauses alone must do.
        let _priority =
            rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
        loop {
            match self.sweep() {
                Some(true) => continue,
                Some(false) => {}
                None => return,
            }
            let due = Instant::now() + self.interval;
            loop {
                match self.orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Ok(order) => {
                        if self.obey(order) {
                            break;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// One sweep. Says whether another is wanted at once; `None`: nobody wants any more.
    fn sweep(&mut self) -> Option<bool> {
        let mut orders = Vec::new();
        let mut gone = false;
        let rules = self.rules.clone();
        let incoming = &self.orders;
        let swept = self.sweeper.sweep(&rules, kernel_clock_ns(), &mut |took| {
            let until = Instant::now() + took * REST;
            // After the agent's end, the rest of the sweep goes by without pauses.
            while !gone {
                match incoming.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(order) => orders.push(order),
                    Err(RecvTimeoutError::Timeout) => return,
                    Err(RecvTimeoutError::Disconnected) => gone = true,
                }
            }
        });
        match swept {
            Ok(report) => {
                let report = Arc::new(report.clone());
                *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = report;
            }
            Err(error) => warn!("{error}"),
        }
        if gone {
            return None;
        }
        let mut again = false;
        for order in orders {
            again |= self.obey(order);
        }
        Some(again)
    }

    /// Says whether a sweep is wanted at once.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Timing(timeouts, interval) => {
                self.rules.timeouts = timeouts;
                self.interval = interval;
                false
            }
            Order::Leave(backends) => {
                let more = backends.difference(&self.rules.leaving).next().is_some();
                self.rules.leaving = backends;
                more
            }
        }
    }
}

/// The clock that the packet path stamps flows with, in nanoseconds.
#[must_use]
pub fn kernel_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
