//! Sections `agent`, `api`, `flows`, `interfaces` and `socket_hook`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use graylb_common::maps;

use super::{
    AgentConfig, ApiConfig, AttachMode, FlowsConfig, InterfaceConfig, SocketHookConfig,
    diagnostic::{Report, did_you_mean},
    read::Section,
};
use crate::model::interfaces::Pattern;

/// Options of `[agent]`.
pub(super) const AGENT_KEYS: &[&str] = &["pin_dir", "state_file", "log", "kernel_log"];
/// Options of `[api]`.
pub(super) const API_KEYS: &[&str] = &["listen", "token_file"];
/// Options of `[flows]`.
pub(super) const FLOWS_KEYS: &[&str] = &["tcp", "half_open", "udp", "udp_timeout"];
/// Options of `[interfaces.NAME]`.
pub(super) const INTERFACE_KEYS: &[&str] = &["attach"];
/// Options of `[socket_hook]`.
pub(super) const SOCKET_HOOK_KEYS: &[&str] = &["enabled", "cgroup"];

/// Entries of a flow table.
const FLOW_ENTRIES: std::ops::RangeInclusive<u32> = 1024..=1 << 24;
const UDP_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

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
            udp_timeout: Duration::from_secs(60),
        }
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
    if let Some((timeout, _)) = section.duration("udp_timeout", UDP_TIMEOUT, report) {
        config.udp_timeout = timeout;
    }
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
