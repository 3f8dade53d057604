//! When a flow is over and its entries can go. Pure: entries, time and timeouts in, decisions out.
//!
//! Both directions of a flow share one fate, decided from the client's direction: the flow is as idle as
//! the livelier of the two. An entry whose other direction is gone (evicted) leads nowhere and goes after
//! a short grace, which covers the moment between the insertion of one direction and the other.

use std::{collections::BTreeSet, time::Duration};

use graylb_common::flow::{FLOW_CLOSED, FLOW_RESET};

/// A flow that ended by a reset goes after this long without a packet, or after
/// [`Timeouts::tcp_closed`] if that is less. Nothing is sent again after a reset, but packets that were
/// under way still come: nf_conntrack allows them as long (nf_conntrack_tcp_timeout_close).
pub const RESET_TIMEOUT: Duration = Duration::from_secs(10);

/// An entry without its other direction goes after this long without a packet.
pub const LONE_GRACE: Duration = Duration::from_secs(10);

/// How long flows stay without a packet either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP flows.
    pub tcp: Duration,
    /// TCP flows closed by both ends.
    pub tcp_closed: Duration,
    /// TCP flows in their handshake.
    pub half_open: Duration,
    /// UDP flows.
    pub udp: Duration,
}

/// What is decided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// By idle time.
    pub timeouts: Timeouts,
    /// Backends (indices) that UDP flows leave at once.
    pub leaving: BTreeSet<u32>,
}

/// Which kind of table an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Established TCP flows.
    Tcp,
    /// TCP flows in their handshake.
    HalfOpen,
    /// UDP flows.
    Udp,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Kernel clock of its last packet, in nanoseconds.
    pub last_seen_ns: u64,
    /// `FLOW_*` bits.
    pub state: u32,
    /// Index of its backend.
    pub backend: u32,
}

/// The other direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// It has none: its mode does not bring the backend's packets by.
    NotExpected,
    /// It is gone.
    Missing,
    /// It is there.
    Found(Seen),
}

/// Why a flow's entries go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Closed by both ends, and long enough ago.
    Closed,
    /// Reset, or refused by the backend.
    Reset,
    /// No packet for the timeout.
    Idle,
    /// The handshake was never completed.
    Unfinished,
    /// Its other direction is gone.
    Alone,
    /// UDP, and its backend is down.
    BackendDown,
}

impl End {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::Reset, Self::Idle, Self::Unfinished, Self::Alone, Self::BackendDown];

    /// Its name in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Unfinished => "unfinished",
            Self::Alone => "alone",
            Self::BackendDown => "backend_down",
        }
    }
}

impl Seen {
    /// How long there was no packet. A packet after `now_ns` was read counts as now.
    #[must_use]
    pub const fn idle(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.last_seen_ns))
    }

    /// Whether this direction alone would let the flow go: if not, no look at the other is needed.
    #[must_use]
    pub fn may_end(&self, table: Table, rules: &Rules, now_ns: u64) -> bool {
        table == Table::Udp && rules.leaving.contains(&self.backend)
            || self.idle(now_ns) > limit(table, self.state, &rules.timeouts).0
    }

    /// Whether the flow has not ended, so that it counts as active.
    #[must_use]
    pub const fn is_open(&self, table: Table) -> bool {
        match table {
            Table::Tcp => self.state & FLOW_CLOSED == 0,
            Table::HalfOpen => self.state & FLOW_RESET == 0,
            Table::Udp => true,
        }
    }
}

/// Whether a flow goes now, and why.
#[must_use]
pub fn end(table: Table, seen: Seen, other: Other, rules: &Rules, now_ns: u64) -> Option<End> {
    if table == Table::Udp && rules.leaving.contains(&seen.backend) {
        return Some(End::BackendDown);
    }
    let (idle, state) = match other {
        Other::Found(other) => {
            (seen.idle(now_ns).min(other.idle(now_ns)), seen.state | other.state)
        }
        Other::NotExpected | Other::Missing => (seen.idle(now_ns), seen.state),
    };
    let (limit, why) = limit(table, state, &rules.timeouts);
    if idle > limit {
        return Some(why);
    }
    (other == Other::Missing && idle > LONE_GRACE).then_some(End::Alone)
}

/// How long a flow in this state may be idle, and what it ends of after that.
fn limit(table: Table, state: u32, timeouts: &Timeouts) -> (Duration, End) {
    let reset = state & FLOW_RESET != 0;
    match table {
        Table::Tcp if state & FLOW_CLOSED != 0 && reset => {
            (timeouts.tcp_closed.min(RESET_TIMEOUT), End::Reset)
        }
        Table::Tcp if state & FLOW_CLOSED != 0 => (timeouts.tcp_closed, End::Closed),
        Table::Tcp => (timeouts.tcp, End::Idle),
        Table::HalfOpen if reset => (timeouts.half_open.min(RESET_TIMEOUT), End::Reset),
        Table::HalfOpen => (timeouts.half_open, End::Unfinished),
        Table::Udp => (timeouts.udp, End::Idle),
    }
}

/// What is known of a backend's `active` counter over one sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// The counter when the sweep began.
    pub before: i64,
    /// The counter when it was over.
    pub after: i64,
    /// Open flows that the sweep found, those that it removed included.
    pub found: i64,
    /// Open flows that it removed.
    pub removed: i64,
    /// Flows that opened, changed tables or ended meanwhile.
    pub churn: i64,
}

/// What an [`Audit`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Correction {
    /// What is to be added to the counter.
    pub add: i64,
    /// Flows that left the tables without being counted as ended: evicted, or replaced.
    pub vanished: u64,
}

/// How a counter is to be corrected. A sweep takes time, and what happened meanwhile it may have seen or
/// not: a difference within that is no evidence, and waits for a sweep that is quieter or a difference
/// that is larger.
#[must_use]
pub const fn correction(audit: &Audit) -> Correction {
    let drift = audit.found - (audit.before + audit.after) / 2;
    let drift = if drift.abs() > audit.churn { drift } else { 0 };
    Correction {
        add: drift - audit.removed,
        vanished: if drift < 0 { drift.unsigned_abs() } else { 0 },
    }
}

#[cfg(test)]
mod tests;
