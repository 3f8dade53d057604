//! Rewritten packet → its next hop.

use graylb_common::verdict::Verdict;

use crate::{
    access::{Frame, Route, empty_fib_params},
    family::{Family, KeyOf},
    parse::Packet,
};

/// How a packet leaves: what is counted, and what the kernel is told.
#[must_use]
pub struct Exit {
    /// What is counted.
    pub verdict: Verdict,
    /// The hook's return value.
    pub action: i32,
}

impl Exit {
    #[inline(always)]
    fn plain<F: Frame>(verdict: Verdict) -> Self {
        Self { verdict, action: F::action(verdict) }
    }

    #[inline(always)]
    const fn redirected(action: i32) -> Self {
        Self { verdict: Verdict::Redirected, action }
    }
}

/// Sends a packet whose tuple is now `key` on its way.
#[inline(always)]
pub fn emit<Fam: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam>,
    key: &KeyOf<Fam>,
) -> Result<Exit, Verdict> {
    if frame.on_loopback() {
        return Ok(Exit::plain::<F>(Verdict::Delivered));
    }
    let mut params = empty_fib_params();
    Fam::fill_route(&mut params, key);
    params.__bindgen_anon_1.tot_len = frame.length_for_mtu(packet.length);
    match frame.route(&mut params) {
        Route::Neighbour { ifindex, macs } => {
            forward::<Fam, F>(frame, packet)?;
            let Some(ethernet) = frame.window::<12>(0) else { return Err(Verdict::RewriteFailed) };
            ethernet.set::<[u16; 6], 0>(macs);
            Ok(Exit::redirected(frame.redirect(ifindex)))
        }
        Route::Unresolved { ifindex } => match frame.redirect_unresolved(ifindex) {
            Some(action) => {
                forward::<Fam, F>(frame, packet)?;
                Ok(Exit::redirected(action))
            }
            None => Ok(Exit::plain::<F>(Verdict::HandedToStack)),
        },
        Route::Host { fits: true } => Ok(Exit::plain::<F>(Verdict::Delivered)),
        Route::Host { fits: false } => Ok(Exit::plain::<F>(Verdict::HandedToStack)),
    }
}

/// What a router does to a packet that it forwards.
#[inline(always)]
fn forward<Fam: Family, F: Frame>(frame: &mut F, packet: &Packet<Fam>) -> Result<(), Verdict> {
    if packet.ttl <= 1 {
        return Err(Verdict::TtlExceeded);
    }
    if Fam::decrement_ttl(frame) { Ok(()) } else { Err(Verdict::RewriteFailed) }
}
