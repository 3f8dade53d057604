//! The version of everything that outlives one agent process in the kernel: map layouts, flow
//! semantics, names of maps and programs.
//!
//! The pin directory carries this number in its name. Any change of a size or an offset asserted
//! below, or of the meaning of a field, is a new version.

use crate::{
    address::{Address, AddressKey},
    backend::{Active, Backend, BackendCounters, Source},
    flow::{Flow, FlowKey, HalfOpen, NextHop},
    fragment::{FragmentKey, Fragmented},
    service::{Route, Rule, RuleKey, Service, ServiceKey, Slot, Turn},
    settings::Settings,
    socket::{SocketEndpoint, SocketKey, SocketPair, SocketSettings, Steered},
    verdict::ServiceDrops,
};

/// The layout version of the pinned maps and programs.
pub const ABI_VERSION: u32 = 2;

const fn assert_size<T>(bytes: usize) {
    assert!(size_of::<T>() == bytes, "a map layout changed: raise ABI_VERSION");
}

const _: () = {
    assert_size::<ServiceKey<[u8; 4]>>(8);
    assert_size::<ServiceKey<[u8; 16]>>(20);
    assert_size::<Service>(40);
    assert_size::<AddressKey<[u8; 4]>>(4);
    assert_size::<AddressKey<[u8; 16]>>(16);
    assert_size::<Address>(4);
    assert_size::<Route>(20);
    assert_size::<RuleKey<[u8; 4]>>(8);
    assert_size::<RuleKey<[u8; 16]>>(20);
    assert_size::<Rule>(4);
    assert_size::<Slot>(4);
    assert_size::<Turn>(8);
    assert_size::<Backend>(40);
    assert_size::<Source>(24);
    assert_size::<Active>(8);
    assert_size::<BackendCounters>(232);
    assert_size::<FlowKey<[u8; 4]>>(12);
    assert_size::<FlowKey<[u8; 16]>>(36);
    assert_size::<NextHop>(28);
    assert_size::<Flow<[u8; 4]>>(72);
    assert_size::<Flow<[u8; 16]>>(96);
    assert_size::<HalfOpen<[u8; 4]>>(80);
    assert_size::<HalfOpen<[u8; 16]>>(104);
    assert_size::<Settings>(16);
    assert_size::<ServiceDrops>(72);
    assert_size::<FragmentKey<[u8; 4]>>(16);
    assert_size::<FragmentKey<[u8; 16]>>(40);
    assert_size::<Fragmented<[u8; 4]>>(24);
    assert_size::<Fragmented<[u8; 16]>>(48);
    assert_size::<SocketEndpoint>(20);
    assert_size::<Steered>(52);
    assert_size::<SocketKey>(32);
    assert_size::<SocketPair>(32);
    assert_size::<SocketSettings>(16);
};
