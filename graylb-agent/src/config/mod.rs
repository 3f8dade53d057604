//! The config file: TOML in, types that cannot be invalid out.
//!
//! Every mistake in a file is reported at once, with its place. Nothing is read but the file itself.

mod balance;
pub mod diagnostic;
mod memory;
mod mode;
mod probe;
mod read;
mod services;
mod settings;
mod split;

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::DeTable;

pub use self::read::parse_duration;
pub use self::{
    diagnostic::{ConfigErrors, Diagnostic},
    memory::{MapSize, map_sizes},
};
use self::{
    diagnostic::{Report, Severity},
    read::Section,
};
pub use crate::model::interfaces::{AttachMode, InterfaceConfig};
use crate::model::{ageing::Timeouts, spec::Spec};

/// Longest config file, in bytes.
const MAX_FILE_LEN: u64 = 64 << 20;

/// Tables at the top of the file.
const TOP_KEYS: &[&str] = &[
    "agent",
    "api",
    "flows",
    "limits",
    "addresses",
    "interfaces",
    "socket_hook",
    "services",
    "pools",
];

/// Every option, by the table that it is in; docs/config.md has a line for each.
pub const OPTIONS: &[(&str, &[&str])] = &[
    ("agent", settings::AGENT_KEYS),
    ("api", settings::API_KEYS),
    ("flows", settings::FLOWS_KEYS),
    ("limits", settings::LIMITS_KEYS),
    ("addresses", settings::ADDRESSES_KEYS),
    ("interfaces.NAME", settings::INTERFACE_KEYS),
    ("socket_hook", settings::SOCKET_HOOK_KEYS),
    ("services.NAME", services::SERVICE_KEYS),
    ("services.NAME.canary", split::CANARY_KEYS),
    ("pools.NAME", services::POOL_KEYS),
    ("pools.NAME.backends[]", services::BACKEND_KEYS),
    ("pools.NAME.probe", probe::PROBE_KEYS),
];

/// The hook at sockets of clients on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketHookConfig {
    /// Whether it is attached.
    pub enabled: bool,
    /// The cgroup whose processes it is for; without it the root of the first cgroup2 mount.
    pub cgroup: Option<PathBuf>,
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
    /// An established TCP flow without a packet for this long is forgotten.
    pub tcp_timeout: Duration,
    /// The same for one that both ends have closed.
    pub tcp_closed_timeout: Duration,
    /// The same for one in its handshake.
    pub half_open_timeout: Duration,
    /// A UDP flow without a packet for this long chooses its backend anew.
    pub udp_timeout: Duration,
    /// UDP flows leave a backend whose probes failed.
    pub udp_leave_down: bool,
    /// From the end of one look over the tables to the next.
    pub sweep_interval: Duration,
}

/// Sizes of the tables that the agent writes, in entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Services per IP family.
    pub services: u32,
    /// Slots of all services together.
    pub slots: u32,
    /// Backends, counted for each service and pool that they are in.
    pub backends: u32,
    /// Source addresses of all pools together.
    pub sources: u32,
    /// Routes, one for each pool of each service, of all services together.
    pub routes: u32,
    /// Client rules of all services of a family together.
    pub rules: u32,
}

/// What becomes of packets to virtual addresses that are none of their services'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressesConfig {
    /// Echo requests are answered, unless the address is this host's own.
    pub echo: bool,
}

/// A whole config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The agent's own settings.
    pub agent: AgentConfig,
    /// The API's settings.
    pub api: ApiConfig,
    /// Where to attach; not empty, no two that hold for an interface equally.
    pub interfaces: Vec<InterfaceConfig>,
    /// The socket hook.
    pub socket_hook: SocketHookConfig,
    /// Flow tables.
    pub flows: FlowsConfig,
    /// The other tables.
    pub limits: LimitsConfig,
    /// What else comes to virtual addresses.
    pub addresses: AddressesConfig,
    /// Services and pools.
    pub spec: Spec,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or [`Config::parse`]'s.
    pub fn load(path: &Path) -> Result<(Self, Vec<Diagnostic>), ConfigErrors> {
        let file = path.display().to_string();
        let text = read_file(path).map_err(|why| ConfigErrors {
            findings: vec![Diagnostic {
                severity: Severity::Error,
                place: file.clone(),
                message: why,
                excerpt: String::new(),
            }],
        })?;
        Self::parse(&text, &file)
    }

    /// Reads a text; `file` names it in findings. Returns the config and what is worth a look.
    ///
    /// # Errors
    ///
    /// Every mistake in the text.
    pub fn parse(text: &str, file: &str) -> Result<(Self, Vec<Diagnostic>), ConfigErrors> {
        let mut report = Report::new(file, text);
        let (table, syntax_errors) = DeTable::parse_recoverable(text);
        if !syntax_errors.is_empty() {
            for error in &syntax_errors {
                report.error(&error.span().unwrap_or(0..0), error.message().replace('\n', ", "));
            }
            // What the parser made of the rest may not be what was meant.
            return Err(report.finish().err().unwrap_or(ConfigErrors { findings: Vec::new() }));
        }
        let top = Section::top(&table);
        top.refuse_unknown(TOP_KEYS, &mut report);
        let interfaces = settings::interfaces(&top, &mut report);
        let limits = settings::limits(&top, &mut report);
        let socket_hook = settings::socket_hook(&top, &mut report);
        let config = Self {
            agent: settings::agent(&top, &mut report),
            api: settings::api(&top, &mut report),
            flows: settings::flows(&top, &mut report),
            addresses: settings::addresses(&top, &mut report),
            spec: services::spec(&top, &interfaces, &socket_hook, &limits, &mut report),
            limits,
            interfaces,
            socket_hook,
        };
        report.finish().map(|warnings| (config, warnings))
    }

    /// Options that differ from `running` and that only a restart of the agent brings in force.
    #[must_use]
    pub fn needs_restart(&self, running: &Self) -> Vec<&'static str> {
        let mut options = Vec::new();
        let mut compare = |name, same: bool| {
            if !same {
                options.push(name);
            }
        };
        let (a, b) = (&self.agent, &running.agent);
        compare("agent.pin_dir", a.pin_dir == b.pin_dir);
        compare("agent.state_file", a.state_file == b.state_file);
        compare("agent.log", a.log == b.log);
        compare("agent.kernel_log", a.kernel_log == b.kernel_log);
        compare("api.listen", self.api.listen == running.api.listen);
        compare("api.token_file", self.api.token_file == running.api.token_file);
        compare("flows.tcp", self.flows.tcp == running.flows.tcp);
        compare("flows.half_open", self.flows.half_open == running.flows.half_open);
        compare("flows.udp", self.flows.udp == running.flows.udp);
        let (a, b) = (&self.limits, &running.limits);
        compare("limits.services", a.services == b.services);
        compare("limits.slots", a.slots == b.slots);
        compare("limits.backends", a.backends == b.backends);
        compare("limits.sources", a.sources == b.sources);
        compare("limits.routes", a.routes == b.routes);
        compare("limits.rules", a.rules == b.rules);
        options
    }
}

/// A length of time as the config writes it, for the command line.
///
/// # Errors
///
/// It is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    read::parse_duration(text)
        .ok_or_else(|| "write a number and ms, s, m or h, as in 30s".to_owned())
}

fn read_file(path: &Path) -> Result<String, String> {
    let tried = |error: std::io::Error| format!("cannot read the config: {error}");
    let mut text = String::new();
    let file = fs::File::open(path).map_err(tried)?;
    file.take(MAX_FILE_LEN + 1).read_to_string(&mut text).map_err(tried)?;
    if text.len() as u64 > MAX_FILE_LEN {
        return Err(format!("the config is longer than {MAX_FILE_LEN} bytes"));
    }
    Ok(text)
}

impl FlowsConfig {
    /// The timeouts, as the ageing of flows wants them.
    #[must_use]
    pub const fn timeouts(&self) -> Timeouts {
        Timeouts {
            tcp: self.tcp_timeout,
            tcp_closed: self.tcp_closed_timeout,
            half_open: self.half_open_timeout,
            udp: self.udp_timeout,
        }
    }
}

#[cfg(test)]
mod tests;
