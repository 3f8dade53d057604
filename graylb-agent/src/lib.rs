//! graylb's agent: loads the packet path, keeps it in step with what the operator wants and what the
//! backends can do, and offers the API that changes it.
//!
//! Commands and observations go to one owner, [`daemon`]; what follows from them is pure ([`model`],
//! [`compile`]); only [`apply`] talks to the kernel's BPF maps.

pub mod api;
pub mod apply;
pub mod cli;
pub mod client;
pub mod compile;
pub mod config;
pub mod daemon;
pub mod model;
pub mod netlink;
pub mod privileges;
pub mod probe;
pub mod store;
pub mod telemetry;
pub mod trust;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where the API listens, and where its clients look for it, unless told otherwise.
pub const DEFAULT_API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7878);
