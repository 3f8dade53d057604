//! Echo requests (ping) to a virtual address: answered here, as nobody else has the address. One that this host
//! has itself is left to it, and so is whatever is odd about a request.

use graylb_common::{csum, settings::ADDRESS_ECHO, verdict::Verdict};
use network_types::eth::EthHdr;

use crate::{
    access::{Frame, Route},
    family::{Family, TTL},
    maps::{self, RouteQuery},
};

/// Length of the ICMP header.
const HEADER: usize = 8;

/// Turns an echo request to a virtual address into its reply and sends it back; everything else is left alone.
/// Returns the action and fills `verdict` in.
#[inline(never)]
pub fn answer<Fam: Family, F: Frame>(frame: &mut F, verdict: &mut Verdict) -> i32 {
    let (result, action) = match is_ours::<Fam, F>(frame) {
        None => (Verdict::OtherProtocol, F::action(Verdict::OtherProtocol)),
        Some(()) => match turn_round::<Fam, F>(frame) {
            None => (Verdict::RewriteFailed, F::action(Verdict::RewriteFailed)),
            Some(()) => (Verdict::EchoAnswered, frame.reflect()),
        },
    };
    *verdict = result;
    action
}

/// Whether this is an echo request that is to be answered here.
#[inline(always)]
fn is_ours<Fam: Family, F: Frame>(frame: &F) -> Option<()> {
    let wanted = maps::settings()?.addresses & ADDRESS_ECHO != 0;
    if !wanted || frame.on_loopback() {
        return None;
    }
    let network = Fam::network(frame, EthHdr::LEN).ok()?;
    // A header with options (record route, source route) is one that only a host can answer rightly.
    let plain = network.transport == EthHdr::LEN + Fam::HEADER_LEN as usize;
    if network.protocol != Fam::ICMP || !plain || !Fam::is_answerable(&network.source) {
        return None;
    }
    let is_request = echo::<Fam, F>(frame)? == Fam::ECHO_REQUEST;
    // To a group of stations nobody answers for all of them.
    let to_group = frame.window::<1>(0)?.get::<u8, 0>() & 1 != 0;
    let is_virtual = || maps::is_virtual(Fam::addresses(), network.destination);
    (is_request && !to_group && is_virtual()).then_some(())?;
    let RouteQuery { params, hop } = maps::route_query()?;
    Fam::fill_route(params, &network.source, &network.destination);
    // The routing tables lead elsewhere, or refuse: they do not say that the address is this host's.
    match frame.route(params, hop) {
        Route::Host { fits: true } => None,
        Route::Host { fits: false } | Route::Neighbour | Route::Unresolved => Some(()),
    }
}

/// Type and code, in memory order.
#[inline(always)]
fn echo<Fam: Family, F: Frame>(frame: &F) -> Option<u16> {
    let icmp = frame.window::<HEADER>(EthHdr::LEN + Fam::HEADER_LEN as usize)?;
    Some(icmp.get::<u16, 0>())
}

/// Makes the request its reply: the way back, a new TTL, the other type. The bytes that it carries stay.
#[inline(always)]
fn turn_round<Fam: Family, F: Frame>(frame: &mut F) -> Option<()> {
    let network = Fam::network(frame, EthHdr::LEN).ok()?;
    let ethernet = frame.window::<{ EthHdr::LEN }>(0)?;
    let [a, b, c, d, e, f, kind] = ethernet.get::<[u16; 7], 0>();
    ethernet.set::<[u16; 7], 0>([d, e, f, a, b, c, kind]);
    // No sum changes with the order of what it covers.
    let swapped =
        Fam::write_addresses(frame, EthHdr::LEN, &network.destination, &network.source, 0);
    if !swapped || !Fam::set_ttl(frame, |_| TTL) {
        return None;
    }
    let icmp = frame.window::<HEADER>(EthHdr::LEN + Fam::HEADER_LEN as usize)?;
    let delta = csum::sub(Fam::ECHO_REPLY, Fam::ECHO_REQUEST);
    icmp.set::<u16, 0>(Fam::ECHO_REPLY);
    icmp.set::<u16, 2>(csum::updated(icmp.get::<u16, 2>(), delta));
    Some(())
}
