//! What graylb's eBPF programs and its agent share: the types in the BPF maps, the names of the maps,
//! the verdicts, and the small pure functions that both sides must compute alike.
//!
//! Nothing here does I/O, allocates, or knows which side of the kernel boundary it runs on.

#![no_std]
#![deny(unsafe_code)]

pub mod abi;
pub mod address;
pub mod backend;
pub mod csum;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod maps;
pub mod service;
pub mod settings;
pub mod socket;
pub mod verdict;
