//! Waiting for something to become true: by asking again and again, up to a deadline.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Long enough for anything that works, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Looks until `look` finds something, and returns it.
///
/// # Panics
///
/// Nothing is found within `limit`; the panic says what the last look saw.
pub fn eventually<T, E: Debug>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(found) => return found,
            Err(saw) if Instant::now() > deadline => {
                panic!("{what}: not within {limit:?}; last seen: {saw:?}")
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
