//! Sections `agent`, `api`, `flows`, `limits`, `addresses`, `interfaces` and `socket_hook`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use graylb_common::maps;

use super::{
    AddressesConfig, AgentConfig, ApiConfig, AttachMode, FlowsConfig, InterfaceConfig,
    LimitsConfig, SocketHookConfig,
    diagnostic::{Report, did_you_mean},
    read::Section,
};
use crate::model::interfaces::Pattern;

/// Options of `[agent]`.
pub(super) const AGENT_KEYS: &[&str] = &["pin_dir", "state_file", "log", "kernel_log"];
/// Options of `[api]`.
pub(super) const API_KEYS: &[&str] = &["listen", "token_file"];
/// Options of `[flows]`.
pub(super) const FLOWS_KEYS: &[&str] = &[
    "tcp",
    "half_open",
    "udp",
    "tcp_timeout",
    "tcp_closed_timeout",
    "half_open_timeout",
    "udp_timeout",
    "udp_leave_down",
    "sweep_interval",
];
/// Options of `[limits]`.
pub(super) const LIMITS_KEYS: &[&str] =
    &["services", "slots", "backends", "sources", "routes", "rules"];
/// Options of `[addresses]`.
pub(super) const ADDRESSES_KEYS: &[&str] = &["echo"];
/// Options of `[interfaces.NAME]`.
pub(super) const INTERFACE_KEYS: &[&str] = &["attach"];
/// Options of `[socket_hook]`.
pub(super) const SOCKET_HOOK_KEYS: &[&str] = &["enabled", "cgroup"];

/// Entries of a flow table.
const FLOW_ENTRIES: std::ops::RangeInclusive<u32> = 1024..=1 << 24;
type Durations = std::ops::RangeInclusive<Duration>;
const HOUR: u64 = 3600;
const TCP_TIMEOUT: Durations = Duration::from_secs(60)..=Duration::from_secs(240 * HOUR);
/// Of flows that may go any second.
const SHORT_TIMEOUT: Durations = Duration::from_secs(1)..=Duration::from_secs(HOUR);
const SWEEP_INTERVAL: Durations = Duration::from_secs(1)..=Duration::from_secs(600);
type Entries = std::ops::RangeInclusive<u32>;
const SERVICE_ENTRIES: Entries = 1..=1 << 16;
const SLOT_ENTRIES: Entries = 1..=1 << 24;
const BACKEND_ENTRIES: Entries = 1..=1 << 20;
const SOURCE_ENTRIES: Entries = 1..=1 << 16;
const ROUTE_ENTRIES: Entries = 1..=1 << 20;
const RULE_ENTRIES: Entries = 1..=1 << 20;
/// Routes for each service that fit unless told otherwise.
const ROUTES_PER_SERVICE: u32 = 8;

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            pin_dir: "/sys/fs/bpf/graylb".into(),
            state_file: "/var/lib/graylb/state.json".into(),
            log: "info".into(),
            kernel_log: false,
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { listen: crate::DEFAULT_API, token_file: None }
    }
}

impl Default for FlowsConfig {
    fn default() -> Self {
        Self {
            tcp: maps::DEFAULT_TCP_ENTRIES,
            half_open: maps::DEFAULT_HALF_OPEN_ENTRIES,
            udp: maps::DEFAULT_UDP_ENTRIES,
            // RFC 5382, REQ-5: at least 2 hours 4 minutes, so that TCP's keep-alive comes first.
            tcp_timeout: Duration::from_secs(124 * 60),
            // TCP_TIMEWAIT_LEN: after that the ends have forgotten the connection, too.
            tcp_closed_timeout: Duration::from_secs(60),
            half_open_timeout: Duration::from_secs(60),
            udp_timeout: Duration::from_secs(60),
            udp_leave_down: true,
            sweep_interval: Duration::from_secs(10),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            services: maps::DEFAULT_SERVICES,
            slots: maps::DEFAULT_SLOTS,
            backends: maps::DEFAULT_BACKENDS,
            sources: maps::DEFAULT_SOURCES,
            routes: maps::DEFAULT_ROUTES,
            rules: maps::DEFAULT_RULES,
        }
    }
}

impl Default for AddressesConfig {
    fn default() -> Self {
        Self { echo: true }
    }
}

pub(super) fn agent(top: &Section<'_>, report: &mut Report<'_>) -> AgentConfig {
    let mut config = AgentConfig::default();
    let Some(section) = top.section("agent", report) else { return config };
    section.refuse_unknown(AGENT_KEYS, report);
    if let Some(pin_dir) = absolute_path(&section, "pin_dir", report) {
        config.pin_dir = pin_dir;
    }
    if let Some(state_file) = absolute_path(&section, "state_file", report) {
        config.state_file = state_file;
    }
    if let Some((filter, span)) = section.string("log", report) {
        if let Err(error) = filter.parse::<tracing_subscriber::EnvFilter>() {
            report.error(&span, format!("agent.log = {filter:?} is no log filter ({error}): use error, warn, info, debug or trace"));
        }
        config.log = filter;
    }
    config.kernel_log = section.boolean("kernel_log", report).unwrap_or(config.kernel_log);
    config
}

fn absolute_path(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Option<PathBuf> {
    let (text, span) = section.string(key, report)?;
    if !text.starts_with('/') {
        report.error(
            &span,
            format!("{} = {text:?} is no absolute path: start it with /", section.name(key)),
        );
    }
    Some(text.into())
}

pub(super) fn api(top: &Section<'_>, report: &mut Report<'_>) -> ApiConfig {
    let mut config = ApiConfig::default();
    let Some(section) = top.section("api", report) else { return config };
    section.refuse_unknown(API_KEYS, report);
    config.token_file = section.string("token_file", report).map(|(path, _)| path.into());
    if let Some((listen, span)) = section.parsed::<SocketAddr>("listen", report) {
        if !listen.ip().is_loopback() && config.token_file.is_none() {
            report.error(
                &span,
                format!("api.listen = \"{listen}\" is reachable from other hosts, so api.token_file is needed: name a file that holds a token, or listen on 127.0.0.1"),
            );
        }
        config.listen = listen;
    }
    config
}

pub(super) fn flows(top: &Section<'_>, report: &mut Report<'_>) -> FlowsConfig {
    let mut config = FlowsConfig::default();
    let Some(section) = top.section("flows", report) else { return config };
    section.refuse_unknown(FLOWS_KEYS, report);
    config.tcp = section.integer("tcp", FLOW_ENTRIES, report).unwrap_or(config.tcp);
    config.half_open =
        section.integer("half_open", FLOW_ENTRIES, report).unwrap_or(config.half_open);
    config.udp = section.integer("udp", FLOW_ENTRIES, report).unwrap_or(config.udp);
    let mut duration = |key: &str, allowed: Durations, default: &mut Duration| {
        if let Some((found, _)) = section.duration(key, allowed, report) {
            *default = found;
        }
    };
    duration("tcp_timeout", TCP_TIMEOUT, &mut config.tcp_timeout);
    duration("tcp_closed_timeout", SHORT_TIMEOUT, &mut config.tcp_closed_timeout);
    duration("half_open_timeout", SHORT_TIMEOUT, &mut config.half_open_timeout);
    duration("udp_timeout", SHORT_TIMEOUT, &mut config.udp_timeout);
    duration("sweep_interval", SWEEP_INTERVAL, &mut config.sweep_interval);
    config.udp_leave_down =
        section.boolean("udp_leave_down", report).unwrap_or(config.udp_leave_down);
    config
}

pub(super) fn limits(top: &Section<'_>, report: &mut Report<'_>) -> LimitsConfig {
    let mut config = LimitsConfig::default();
    let Some(section) = top.section("limits", report) else { return config };
    section.refuse_unknown(LIMITS_KEYS, report);
    let mut entries = |key: &str, allowed: Entries, default: &mut u32| {
        *default = section.integer(key, allowed, report).unwrap_or(*default);
    };
    entries("services", SERVICE_ENTRIES, &mut config.services);
    entries("slots", SLOT_ENTRIES, &mut config.slots);
    entries("backends", BACKEND_ENTRIES, &mut config.backends);
    entries("sources", SOURCE_ENTRIES, &mut config.sources);
    // Enough for a canary of each service, and a change of it.
    config.routes = config.routes.max(config.services * ROUTES_PER_SERVICE);
    entries("routes", ROUTE_ENTRIES, &mut config.routes);
    entries("rules", RULE_ENTRIES, &mut config.rules);
    config
}

pub(super) fn addresses(top: &Section<'_>, report: &mut Report<'_>) -> AddressesConfig {
    let mut config = AddressesConfig::default();
    let Some(section) = top.section("addresses", report) else { return config };
    section.refuse_unknown(ADDRESSES_KEYS, report);
    config.echo = section.boolean("echo", report).unwrap_or(config.echo);
    config
}

pub(super) fn interfaces(top: &Section<'_>, report: &mut Report<'_>) -> Vec<InterfaceConfig> {
    let listed = top.section("interfaces", report).map(|section| section.sections(report));
    let listed = listed.unwrap_or_default();
    if listed.is_empty() {
        report.error(
            &(0..0),
            "no interface: write a table such as [interfaces.lo] for each interface that clients or backends are behind",
        );
    }
    let mut interfaces: Vec<InterfaceConfig> = Vec::new();
    for ((name, span), section) in listed {
        section.refuse_unknown(INTERFACE_KEYS, report);
        let attach = attach_mode(&section, report);
        let pattern = match Pattern::new(&name) {
            Ok(pattern) => pattern,
            Err(error) => {
                report.error(&span, error.to_string());
                continue;
            }
        };
        for other in &interfaces {
            if let Some(both) = pattern.tie(&other.pattern) {
                report.error(&span, format!("[interfaces.{:?}] and [interfaces.{name:?}] are equally good for an interface such as {both}: the more plain characters the better, then the more ?; make one of them more exact", other.pattern.as_str()));
            }
        }
        interfaces.push(InterfaceConfig { pattern, attach });
    }
    interfaces
}

pub(super) fn socket_hook(top: &Section<'_>, report: &mut Report<'_>) -> SocketHookConfig {
    let Some(section) = top.section("socket_hook", report) else {
        return SocketHookConfig::default();
    };
    section.refuse_unknown(SOCKET_HOOK_KEYS, report);
    SocketHookConfig {
        enabled: section.boolean("enabled", report).unwrap_or(false),
        cgroup: absolute_path(&section, "cgroup", report),
    }
}

fn attach_mode(section: &Section<'_>, report: &mut Report<'_>) -> AttachMode {
    const ALLOWED: [&str; 3] = ["auto", "tc", "xdp"];
    let Some((mode, span)) = section.string("attach", report) else { return AttachMode::Auto };
    match mode.as_str() {
        "auto" => AttachMode::Auto,
        "tc" => AttachMode::Tc,
        "xdp" => AttachMode::Xdp,
        "xdp-generic" => {
            report.error(&span, "attach = \"xdp-generic\" is refused: generic XDP sees packets whose checksums are not finished yet (GRO, veth, loopback) and would corrupt them; use \"tc\", which works on every interface");
            AttachMode::Auto
        }
        _ => {
            let hint = did_you_mean(&mode, ALLOWED);
            report.error(
                &span,
                format!("{} = {mode:?}: auto, tc or xdp are allowed{hint}", section.name("attach")),
            );
            AttachMode::Auto
        }
    }
}
