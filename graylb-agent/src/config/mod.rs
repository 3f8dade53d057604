//! The config file: TOML in, types that cannot be invalid out.
//!
//! Every mistake in a file is reported at once, with its place. Nothing is read but the file itself.

mod balance;
pub mod diagnostic;
mod mode;
mod read;
mod services;
mod settings;

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::DeTable;

pub use self::diagnostic::{ConfigErrors, Diagnostic};
use self::{
    diagnostic::{Report, Severity},
    read::Section,
};
pub use crate::model::interfaces::{AttachMode, InterfaceConfig};
use crate::model::spec::Spec;

/// Longest config file, in bytes.
const MAX_FILE_LEN: u64 = 4 << 20;

/// Tables at the top of the file.
const TOP_KEYS: &[&str] =
    &["agent", "api", "flows", "interfaces", "socket_hook", "services", "pools"];

/// Every option, by the table that it is in; docs/config.md has a line for each.
pub const OPTIONS: &[(&str, &[&str])] = &[
    ("agent", settings::AGENT_KEYS),
    ("api", settings::API_KEYS),
    ("flows", settings::FLOWS_KEYS),
    ("interfaces.NAME", settings::INTERFACE_KEYS),
    ("socket_hook", settings::SOCKET_HOOK_KEYS),
    ("services.NAME", services::SERVICE_KEYS),
    ("pools.NAME", services::POOL_KEYS),
    ("pools.NAME.backends[]", services::BACKEND_KEYS),
    ("pools.NAME.probe", services::PROBE_KEYS),
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
    /// Where to attach; not empty, no two that hold for an interface equally.
    pub interfaces: Vec<InterfaceConfig>,
    /// The socket hook.
    pub socket_hook: SocketHookConfig,
    /// Flow tables.
    pub flows: FlowsConfig,
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
        let socket_hook = settings::socket_hook(&top, &mut report);
        let config = Self {
            agent: settings::agent(&top, &mut report),
            api: settings::api(&top, &mut report),
            flows: settings::flows(&top, &mut report),
            spec: services::spec(&top, &interfaces, &socket_hook, &mut report),
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
        options
    }
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
    /// About how much kernel memory each flow table takes, in bytes: entries × (key and value, each
    /// rounded up to 8, plus 64 for the element's header and its place in the bucket and LRU lists).
    #[must_use]
    pub fn memory(&self) -> [(&'static str, u64); 6] {
        use graylb_common::{
            flow::{Flow, FlowKey, HalfOpen},
            maps,
        };
        const fn bytes<K, V>(entries: u32) -> u64 {
            const HEADER: usize = 64;
            let element = size_of::<K>().next_multiple_of(8) + size_of::<V>() + HEADER;
            entries as u64 * element as u64
        }
        type V4 = [u8; 4];
        type V6 = [u8; 16];
        [
            (maps::TCP_V4, bytes::<FlowKey<V4>, Flow<V4>>(self.tcp)),
            (maps::TCP_V6, bytes::<FlowKey<V6>, Flow<V6>>(self.tcp)),
            (maps::HALF_OPEN_V4, bytes::<FlowKey<V4>, HalfOpen<V4>>(self.half_open)),
            (maps::HALF_OPEN_V6, bytes::<FlowKey<V6>, HalfOpen<V6>>(self.half_open)),
            (maps::UDP_V4, bytes::<FlowKey<V4>, Flow<V4>>(self.udp)),
            (maps::UDP_V6, bytes::<FlowKey<V6>, Flow<V6>>(self.udp)),
        ]
    }
}

#[cfg(test)]
mod tests;
