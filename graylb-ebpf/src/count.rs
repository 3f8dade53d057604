//! Counting: verdicts, and what happens on flows to each backend.

use graylb_common::{backend::handshake_bucket, verdict::Verdict};

use crate::maps;

/// Counts how a packet left.
#[inline(always)]
pub fn verdict(verdict: Verdict) {
    maps::count_verdict(verdict);
}

/// Counts a packet of a known service that does not go on its way; returns its verdict.
#[inline(always)]
pub fn for_service(service: u32, verdict: Verdict) -> Verdict {
    maps::count_service_verdict(service, verdict);
    verdict
}

/// Whether a verdict means that something is wrong in graylb or its limits, so that it is worth a line
/// in the log. Never one that a sender can cause at will.
#[inline(always)]
pub const fn is_rare(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::BadTable | Verdict::FlowTableFull | Verdict::RewriteFailed)
}

/// A new flow was sent to this backend.
#[inline(always)]
pub fn opened(backend: u32) {
    maps::count_backend(backend, |counters| counters.opened += 1);
    maps::add_active(backend, 1);
}

/// The socket hook sent a connection, or a socket's datagrams, to this backend.
#[inline(always)]
pub fn socket_opened(backend: u32) {
    maps::count_opened_atomically(backend);
}

/// The socket hook steered a connection or a datagram.
#[inline(always)]
pub fn socket_steered() {
    maps::count_verdict_atomically(Verdict::SocketSteered);
}

/// A TCP handshake completed.
#[inline(always)]
pub fn established(backend: u32) {
    maps::count_backend(backend, |counters| counters.established += 1);
}

/// A SYN was answered with a SYN-ACK, after this long.
#[inline(always)]
pub fn answered(backend: u32, took_ns: u64) {
    let bucket = handshake_bucket(took_ns);
    maps::count_backend(backend, |counters| {
        if let Some(count) = counters.handshake.get_mut(bucket) {
            *count += 1;
        }
    });
}

/// A SYN came again, and had not been answered.
#[inline(always)]
pub fn unanswered(backend: u32) {
    maps::count_backend(backend, |counters| counters.unanswered += 1);
}

/// A SYN was answered with a reset.
#[inline(always)]
pub fn refused(backend: u32) {
    maps::count_backend(backend, |counters| counters.refused += 1);
    maps::add_active(backend, -1);
}

/// An established TCP flow ended.
#[inline(always)]
pub fn closed(backend: u32) {
    maps::count_backend(backend, |counters| counters.closed += 1);
    maps::add_active(backend, -1);
}

/// A flow that nothing said the end of gave its place to a new one.
#[inline(always)]
pub fn replaced(backend: u32) {
    maps::add_active(backend, -1);
}
