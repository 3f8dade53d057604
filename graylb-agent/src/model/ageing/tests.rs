//! Which flows go, which stay, and what counters become.

use graylb_common::flow::FLOW_FIN;
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000_000 * SECOND;

fn rules() -> Rules {
    Rules {
        timeouts: Timeouts {
            tcp: Duration::from_secs(7440),
            tcp_closed: Duration::from_secs(60),
            half_open: Duration::from_secs(60),
            udp: Duration::from_secs(30),
        },
        leaving: BTreeSet::from([7]),
    }
}

const fn seen(idle_s: u64, state: u32) -> Seen {
    Seen { last_seen_ns: NOW - idle_s * SECOND, state, backend: 1 }
}

fn decide(table: Table, entry: Seen, other: Other) -> Option<End> {
    end(table, entry, other, &rules(), NOW)
}

#[test]
fn each_state_has_its_timeout() {
    let closed = FLOW_FIN | FLOW_CLOSED;
    let reset = FLOW_RESET | FLOW_CLOSED;
    let cases = [
        ("established", Table::Tcp, 0, 7440, End::Idle),
        ("closed by one end", Table::Tcp, FLOW_FIN, 7440, End::Idle),
        ("closed by both ends", Table::Tcp, closed, 60, End::Closed),
        ("reset", Table::Tcp, reset, 10, End::Reset),
        ("half-open", Table::HalfOpen, 0, 60, End::Unfinished),
        ("refused", Table::HalfOpen, FLOW_RESET, 10, End::Reset),
        ("UDP", Table::Udp, 0, 30, End::Idle),
    ];
    for (what, table, state, timeout_s, why) in cases {
        for other in [Other::NotExpected, Other::Found(seen(timeout_s + 1, state))] {
            assert_eq!(decide(table, seen(timeout_s, state), other), None, "{what}");
            assert_eq!(decide(table, seen(timeout_s + 1, state), other), Some(why), "{what}");
        }
    }
}

#[test]
fn the_livelier_direction_counts() {
    let lively = Other::Found(seen(3, 0));
    assert_eq!(decide(Table::Tcp, seen(9999, 0), lively), None);
    assert_eq!(decide(Table::Udp, seen(31, 0), lively), None);
}

#[test]
fn the_end_may_be_noted_on_either_direction() {
    let other = Other::Found(seen(11, FLOW_RESET | FLOW_CLOSED));
    assert_eq!(decide(Table::Tcp, seen(11, FLOW_CLOSED), other), Some(End::Reset));
}

#[test]
fn an_entry_alone_goes_after_its_grace() {
    assert_eq!(decide(Table::Tcp, seen(10, 0), Other::Missing), None);
    assert_eq!(decide(Table::Tcp, seen(11, 0), Other::Missing), Some(End::Alone));
    assert_eq!(decide(Table::Tcp, seen(11, 0), Other::NotExpected), None);
}

#[test]
fn udp_flows_leave_a_backend_that_is_down_and_tcp_flows_do_not() {
    let there = Seen { backend: 7, ..seen(0, 0) };
    for other in [Other::NotExpected, Other::Missing, Other::Found(there)] {
        assert_eq!(decide(Table::Udp, there, other), Some(End::BackendDown));
        assert_eq!(decide(Table::Tcp, there, other), None);
    }
    assert!(there.may_end(Table::Udp, &rules(), NOW));
}

fn table() -> impl Strategy<Value = Table> {
    prop_oneof![Just(Table::Tcp), Just(Table::HalfOpen), Just(Table::Udp)]
}

fn entry() -> impl Strategy<Value = Seen> {
    (0..20_000_u64, 0..64_u32).prop_map(|(idle_s, state)| seen(idle_s, state))
}

fn other() -> impl Strategy<Value = Other> {
    prop_oneof![Just(Other::NotExpected), Just(Other::Missing), entry().prop_map(Other::Found)]
}

proptest! {
    /// Nothing that had a packet within every timeout goes.
    #[test]
    fn what_is_alive_stays(table in table(), entry in entry(), other in other()) {
        let livelier = match other { Other::Found(o) => o.idle(NOW).min(entry.idle(NOW)), _ => entry.idle(NOW) };
        if livelier <= LONE_GRACE.min(RESET_TIMEOUT) {
            prop_assert_eq!(decide(table, entry, other), None);
        }
    }

    /// Both directions come to one decision, so they go together.
    #[test]
    fn both_directions_agree(table in table(), a in entry(), b in entry()) {
        prop_assert_eq!(decide(table, a, Other::Found(b)), decide(table, b, Other::Found(a)));
    }

    /// A flow of which only the client's direction comes by stays for its whole timeout: that the other has
    /// no entry says nothing. It goes as one with two directions would that were as idle as it is.
    #[test]
    fn one_way_flows_live_by_their_own_direction(table in table(), entry in entry()) {
        let decided = decide(table, entry, Other::NotExpected);
        prop_assert_ne!(decided, Some(End::Alone));
        prop_assert_eq!(decided, decide(table, entry, Other::Found(entry)));
        let (timeout, _) = limit(table, entry.state, &rules().timeouts);
        prop_assert_eq!(decided.is_some(), entry.idle(NOW) > timeout);
        prop_assert_eq!(decided.is_some(), entry.may_end(table, &rules(), NOW));
    }

    /// A longer silence never saves a flow.
    #[test]
    fn silence_only_ends(table in table(), entry in entry(), other in other(), later_s in 0..100_000_u64) {
        if decide(table, entry, other).is_some() {
            let later = NOW + later_s * SECOND;
            prop_assert!(end(table, entry, other, &rules(), later).is_some());
        }
    }

    /// The cheap first look misses no flow that is not alone; state bits that end a flow are on both
    /// directions, as the packet path sets them.
    #[test]
    fn the_first_look_misses_nothing(table in table(), a in entry(), b in entry()) {
        let b = Seen { state: a.state, ..b };
        if decide(table, a, Other::Found(b)).is_some() {
            prop_assert!(a.may_end(table, &rules(), NOW));
        }
    }

    /// In a quiet sweep the counter becomes exactly what is left.
    #[test]
    fn a_quiet_sweep_corrects_exactly(counter in 0..1000_i64, found in 0..1000_i64, removed in 0..1000_i64) {
        let removed = removed.min(found);
        let audit = Audit { before: counter, after: counter, found, removed, churn: 0 };
        let correction = correction(&audit);
        prop_assert_eq!(counter + correction.add, found - removed);
        prop_assert_eq!(correction.vanished as i64, (counter - found).max(0));
    }

    /// With flows coming and going, a right counter is left right, whatever of it the sweep saw.
    #[test]
    fn a_right_counter_stays(
        there in 0..1000_i64,
        opened in 0..50_i64,
        closed in 0..50_i64,
        seen_opened in 0..50_i64,
        seen_closed in 0..50_i64,
    ) {
        let closed = closed.min(there);
        let found = there + seen_opened.min(opened) - seen_closed.min(closed);
        let after = there + opened - closed;
        let audit = Audit { before: there, after, found, removed: 0, churn: opened + closed };
        prop_assert_eq!(correction(&audit), Correction::default());
    }
}
