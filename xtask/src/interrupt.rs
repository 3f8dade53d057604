//! SIGINT, SIGTERM and SIGHUP become an error that every wait returns, so that a chore ends through its
//! ordinary clean-up. A second one ends the process at once.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Somebody asked this process to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Starts to listen for the signals.
pub(crate) fn watch() -> anyhow::Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag unset, and a second one finds it set.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(asked))
            .and_then(|_| flag::register(signal, Arc::clone(asked)))
            .context("cannot listen for signals")?;
    }
    Ok(())
}

/// Fails once a signal has come.
pub(crate) fn check() -> Result<(), Interrupted> {
    match ASKED.get() {
        Some(asked) if asked.load(Ordering::Relaxed) => Err(Interrupted),
        _ => Ok(()),
    }
}

/// Sleeps a moment between two looks at something.
pub(crate) fn pause(length: Duration) -> Result<(), Interrupted> {
    check()?;
    thread::sleep(length);
    check()
}
