//! Fragments of IP datagrams: handed on, or dropped where they are for a virtual address.

use graylb_common::settings::ADDRESS_DROP_FRAGMENTS;

use crate::{access::Frame, family::Family, maps};

/// Whether a fragment is dropped.
#[inline(always)]
pub fn is_dropped<Fam: Family, F: Frame>(frame: &F) -> bool {
    maps::settings().is_some_and(|settings| settings.addresses & ADDRESS_DROP_FRAGMENTS != 0)
        && Fam::destination(frame)
            .is_some_and(|address| maps::is_virtual(Fam::addresses(), address))
}
