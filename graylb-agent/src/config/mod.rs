//! The config file: TOML in, types that cannot be invalid out.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::model::spec::Spec;

/// How graylb attaches to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TC on loopback, veth and other virtual devices; native XDP on a NIC whose driver takes it, else TC.
    #[default]
    Auto,
    /// TC (TCX).
    Tc,
    /// Native XDP, and TC on the way out.
    Xdp,
}

/// An interface that graylb attaches to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Its name, 1 to 15 bytes.
    pub name: String,
    /// How.
    pub attach: AttachMode,
}

/// The agent's own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Directory on a BPF file system for maps, programs and links.
    pub pin_dir: PathBuf,
    /// The file that keeps what was switched at run time.
    pub state_file: PathBuf,
    /// Log filter, as tracing-subscriber's `EnvFilter` takes it.
    pub log: String,
    /// Rare diagnostic events of the packet path are logged.
    pub kernel_log: bool,
}

/// The API's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// File that holds the token; needed when `listen` is not a loopback address.
    pub token_file: Option<PathBuf>,
}

/// Sizes (entries per IP family) and timeouts of the flow tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowsConfig {
    /// Established TCP flows.
    pub tcp: u32,
    /// TCP flows in their handshake.
    pub half_open: u32,
    /// UDP flows.
    pub udp: u32,
    /// A UDP flow without a packet for this long chooses its backend anew.
    pub udp_timeout: Duration,
}

/// A whole config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The agent's own settings.
    pub agent: AgentConfig,
    /// The API's settings.
    pub api: ApiConfig,
    /// Where to attach; not empty, no name twice.
    pub interfaces: Vec<InterfaceConfig>,
    /// Flow tables.
    pub flows: FlowsConfig,
    /// Services and pools.
    pub spec: Spec,
}
