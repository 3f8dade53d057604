//! What the kernel counted of a pool's flows, as far as it is judged.

use serde::{Deserialize, Serialize};

/// Buckets of handshake times: bucket b holds those from 2^b to below 2^(b+1) µs; the last one all above.
pub const BUCKETS: usize = graylb_common::backend::HANDSHAKE_BUCKETS;

/// Handshakes by time.
pub type Histogram = [u64; BUCKETS];

/// Counts of a pool's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Flows that were opened: SYNs that chose a backend.
    pub opened: u64,
    /// Handshakes that were completed.
    pub established: u64,
    /// SYNs that were answered by a reset.
    pub refused: u64,
    /// Flows whose SYN came again for want of an answer.
    pub unanswered: u64,
    /// Connections that the backend reset before it sent data.
    pub reset_early: u64,
    /// Connections that have ended.
    pub closed: u64,
    /// Those of them to which the backend sent no data.
    pub closed_empty: u64,
    /// Flows that were forgotten in their handshake.
    pub expired: u64,
    /// Handshake times.
    pub handshake: Histogram,
}

impl Counts {
    /// What came since `earlier`. Counters that were begun anew count from there.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if self.opened < earlier.opened || self.established < earlier.established {
            return *self;
        }
        let mut since = *self;
        for (count, before) in since.fields().into_iter().zip(earlier.clone().fields()) {
            *count = count.saturating_sub(*before);
        }
        since
    }

    fn fields(&mut self) -> Vec<&mut u64> {
        let Self {
            opened,
            established,
            refused,
            unanswered,
            reset_early,
            closed,
            closed_empty,
            expired,
            handshake,
        } = self;
        let single =
            [opened, established, refused, unanswered, reset_early, closed, closed_empty, expired];
        single.into_iter().chain(handshake).collect()
    }
}
