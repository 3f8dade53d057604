//! graylb's agent: loads the packet path, keeps it in step with what the operator wants and what the
//! backends can do, and offers the API that changes it.
//!
//! Commands and observations go to one owner, [`daemon`]; what follows from them is pure ([`model`],
//! [`compile`]); only [`apply`] talks to the kernel's BPF maps.

pub mod apply;
pub mod compile;
pub mod config;
pub mod model;
pub mod probe;
pub mod store;
