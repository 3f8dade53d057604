//! Sections `services` and `pools`, and what must hold between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use toml::{Spanned, de::DeValue};

use super::{
    InterfaceConfig, LimitsConfig, SocketHookConfig, balance,
    diagnostic::{Report, Span, did_you_mean},
    mode, probe,
    read::{At, Section, integer, string},
    split,
};
use crate::model::spec::{
    BackendSpec, Endpoint, MAX_WEIGHT, Name, PoolSpec, Protocol, ServiceSpec, Spec, check_address,
};

/// Options of `[services.NAME]`.
pub(super) const SERVICE_KEYS: &[&str] = &[
    "address",
    "protocol",
    "aliases",
    "default_pool",
    "canary",
    "rules",
    "split_by",
    "split_prefix",
    "split_salt",
];
/// Options of `[pools.NAME]`.
pub(super) const POOL_KEYS: &[&str] = &[
    "backends",
    "mode",
    "sources",
    "source_ports",
    "balance",
    "maglev_size",
    "sticky_prefix_v4",
    "sticky_prefix_v6",
    "probe",
];
/// Options of a backend written as a table.
pub(super) const BACKEND_KEYS: &[&str] = &["address", "weight", "probe_address"];
/// Most services, and most pools, of one config.
const MAX_TABLES: usize = 4096;

/// Where things stand, for findings about relations.
#[derive(Default)]
struct Places {
    services: BTreeMap<Name, ServicePlaces>,
}

struct ServicePlaces {
    name: Span,
    default_pool: Span,
    /// Pools of the canary and of client rules.
    pools: Vec<(Name, Span)>,
    aliases: Vec<Span>,
}

/// Reads both sections.
pub(super) fn spec(
    top: &Section<'_>,
    interfaces: &[InterfaceConfig],
    socket_hook: &SocketHookConfig,
    limits: &LimitsConfig,
    report: &mut Report<'_>,
) -> Spec {
    let mut spec = Spec::default();
    let mut places = Places::default();
    for ((text, span), section) in tables(top, "pools", report) {
        let pool = pool(&section, report);
        if let Some(name) = name(&text, &span, report)
            && let Some(pool) = pool
        {
            spec.pools.insert(name, pool);
        }
    }
    let all_pools: Vec<String> =
        tables_quietly(top, "pools").into_iter().map(|((text, _), _)| text).collect();
    for ((text, span), section) in tables(top, "services", report) {
        let service = service(&section, &span, &all_pools, report);
        if let Some(name) = name(&text, &span, report)
            && let Some((service, at)) = service
        {
            spec.services.insert(name.clone(), service);
            places.services.insert(name, at);
        }
    }
    if spec.services.is_empty() && top.value("services").is_none() {
        report.error(&(0..0), "no service: write a table such as [services.shop]");
    }
    let on_loopback = interfaces.iter().any(|interface| interface.pattern.matches("lo"));
    check_services(&spec, &places, on_loopback || socket_hook.enabled, report);
    balance::check_slots(&spec, limits, report);
    spec
}

fn tables<'a>(
    top: &Section<'a>,
    key: &str,
    report: &mut Report<'_>,
) -> Vec<(At<String>, Section<'a>)> {
    let Some(section) = top.section(key, report) else { return Vec::new() };
    let tables = section.sections(report);
    if tables.len() > MAX_TABLES {
        report.error(
            &section.span(),
            format!("{} {key}: at most {MAX_TABLES} are allowed", tables.len()),
        );
    }
    tables
}

fn tables_quietly<'a>(top: &Section<'a>, key: &str) -> Vec<(At<String>, Section<'a>)> {
    tables(top, key, &mut Report::new("", ""))
}

fn name(text: &str, span: &Span, report: &mut Report<'_>) -> Option<Name> {
    Name::new(text).map_err(|error| report.error(span, error.to_string())).ok()
}

fn service(
    section: &Section<'_>,
    name: &Span,
    all_pools: &[String],
    report: &mut Report<'_>,
) -> Option<(ServiceSpec, ServicePlaces)> {
    section.refuse_unknown(SERVICE_KEYS, report);
    let address = address(section, report);
    let protocol = section.parsed::<Protocol>("protocol", report).map_or(Protocol::Tcp, |(p, _)| p);
    let aliases = aliases(section, report);
    let default_pool = section.string("default_pool", report);
    if section.value("default_pool").is_none() {
        section.missing("default_pool", "\"POOL\"", report);
    }
    let split = split::read(section, address.is_none_or(|address| address.is_ipv4()), report);
    for (pool, span) in &split.pools {
        check_pool_exists(pool.as_str(), span, all_pools, report);
    }
    let (pool, pool_span) = default_pool?;
    let default_pool = self::name(&pool, &pool_span, report)?;
    check_pool_exists(&pool, &pool_span, all_pools, report);
    if let Some(canary) = &split.canary
        && canary.pool.to_string() == default_pool.as_str()
    {
        let name = section.name("canary.pool");
        report.error(&pool_span, format!("{name} is the default pool, too: name another"));
    }
    let places = ServicePlaces {
        name: name.clone(),
        default_pool: pool_span,
        pools: split.pools,
        aliases: aliases.iter().map(|(_, span)| span.clone()).collect(),
    };
    let service = ServiceSpec {
        endpoint: Endpoint { address: address?, protocol },
        aliases: aliases.into_iter().map(|(alias, _)| alias).collect(),
        default_pool,
        canary: split.canary,
        rules: split.rules,
        split: split.split,
    };
    Some((service, places))
}

/// Whether there is a pool of this name. One that has a mistake of its own is reported there.
fn check_pool_exists(pool: &str, span: &Span, all_pools: &[String], report: &mut Report<'_>) {
    if all_pools.iter().any(|known| known == pool) {
        return;
    }
    let hint = did_you_mean(pool, all_pools.iter().map(String::as_str));
    let there = if all_pools.is_empty() {
        "there are none".to_owned()
    } else {
        format!("there are {}", all_pools.join(", "))
    };
    report.error(span, format!("there is no pool {pool}: {there}{hint}"));
}

fn address(section: &Section<'_>, report: &mut Report<'_>) -> Option<SocketAddr> {
    if section.value("address").is_none() {
        section.missing("address", "\"ADDRESS:PORT\"", report);
        return None;
    }
    let (text, span) = section.string("address", report)?;
    socket_address(&text, &span, &section.name("address"), report)
}

fn socket_address(
    text: &str,
    span: &Span,
    what: &str,
    report: &mut Report<'_>,
) -> Option<SocketAddr> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        let hint = if text.parse::<IpAddr>().is_ok() { "the port is missing, " } else { "" };
        report.error(span, format!("{what} = {text:?}: {hint}write IPv4:PORT as in \"127.0.0.1:8000\" or [IPv6]:PORT as in \"[::1]:8000\""));
        return None;
    };
    check_address(address).map_err(|error| report.error(span, format!("{what}: {error}"))).ok()?;
    Some(address)
}

fn aliases(section: &Section<'_>, report: &mut Report<'_>) -> Vec<At<String>> {
    let mut aliases = Vec::new();
    for value in section.array("aliases", report).unwrap_or_default() {
        let Some((text, span)) = string(value, &section.name("aliases"), report) else { continue };
        let ok = !text.is_empty()
            && text.len() <= 255
            && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
        if !ok {
            report.error(&span, format!("alias {text:?} is no host name, with or without :PORT"));
        }
        aliases.push((text.to_ascii_lowercase(), span));
    }
    aliases
}

fn pool(section: &Section<'_>, report: &mut Report<'_>) -> Option<PoolSpec> {
    section.refuse_unknown(POOL_KEYS, report);
    let balance = balance::balance(section, report);
    let mut probe = section.section("probe", report).map(|probe| probe::probe(&probe, report));
    if section.value("backends").is_none() {
        section.missing("backends", "[\"ADDRESS:PORT\", …]", report);
        return None;
    }
    let mode = mode::mode(section, report);
    let listed = section.array("backends", report)?;
    let mut backends = Vec::with_capacity(listed.len());
    for value in &listed {
        let Some((backend, asked_at)) = backend(value, &section.name("backends"), report) else {
            continue;
        };
        backends.push(backend);
        match (asked_at, &mut probe) {
            (Some((at, _)), Some(probe)) => {
                probe.elsewhere.insert(backend.address, at);
            }
            (Some((_, span)), None) => report.error(
                &span,
                format!("probe_address of {}, but the pool has no probe", backend.address),
            ),
            (None, _) => {}
        }
    }
    if backends.len() < listed.len() {
        return None;
    }
    let span = section.value("backends").map_or(section.span(), Spanned::span);
    let pool = PoolSpec::new(backends, mode?, probe)
        .map_err(|error| report.error(&span, format!("{}: {error}", section.name("backends"))))
        .ok()?;
    balance::apply(pool, balance, section, report)
}

/// A backend, and where it is asked how it is if not at its address.
fn backend(
    value: &Spanned<DeValue<'_>>,
    what: &str,
    report: &mut Report<'_>,
) -> Option<(BackendSpec, Option<At<SocketAddr>>)> {
    if let DeValue::String(text) = value.get_ref() {
        let address = socket_address(text, &value.span(), what, report)?;
        return Some((BackendSpec { address, weight: 1 }, None));
    }
    let section = Section::of(value, format!("{what}[]"), report)?;
    section.refuse_unknown(BACKEND_KEYS, report);
    let weight = match section.value("weight") {
        Some(weight) => {
            integer(weight, &section.name("weight"), 0..=u32::from(MAX_WEIGHT), report)? as u16
        }
        None => 1,
    };
    let asked_at = match section.string("probe_address", report) {
        Some((text, span)) => {
            let at = socket_address(&text, &span, &section.name("probe_address"), report)?;
            Some((at, span))
        }
        None => None,
    };
    Some((BackendSpec { address: address(&section, report)?, weight }, asked_at))
}

/// `local`: whether clients on this host reach services on loopback addresses.
fn check_services(spec: &Spec, places: &Places, local: bool, report: &mut Report<'_>) {
    let mut endpoints: BTreeMap<Endpoint, &Name> = BTreeMap::new();
    let mut aliases: BTreeMap<&str, &Name> = BTreeMap::new();
    for (name, service) in &spec.services {
        let Some(at) = places.services.get(name) else { continue };
        if let Some(other) = endpoints.insert(service.endpoint, name) {
            report.error(
                &at.name,
                format!("services {other} and {name} have the same address {}", service.endpoint),
            );
        }
        for (alias, span) in service.aliases.iter().zip(&at.aliases) {
            if let Some(other) = aliases.insert(alias, name) {
                report.error(span, format!("alias {alias:?} is of service {other} already"));
            }
        }
        let mut checked = BTreeSet::new();
        let default = (service.default_pool.clone(), at.default_pool.clone());
        for (used, span) in std::iter::once(&default).chain(&at.pools) {
            if let Some(pool) = spec.pools.get(used).filter(|_| checked.insert(used)) {
                check_pool(name, service, used, pool, span, report);
            }
        }
        let loopback = service.endpoint.address.ip().is_loopback();
        if loopback && !local {
            report.warning(&at.name, format!("service {name} is on the loopback address {}, but [interfaces.lo] is missing: nobody will reach it", service.endpoint.address));
        }
    }
}

/// Relations between a service and a pool that it is to use.
fn check_pool(
    name: &Name,
    service: &ServiceSpec,
    pool_name: &Name,
    pool: &PoolSpec,
    span: &Span,
    report: &mut Report<'_>,
) {
    if let Err(error) = crate::model::spec::check_use(name, service, pool_name, pool) {
        report.error(span, error.to_string());
    }
    let loopback = service.endpoint.address.ip().is_loopback();
    if !loopback && pool.backends.iter().any(|backend| backend.address.ip().is_loopback()) {
        report.warning(span, format!("service {name} is on {}, and pool {} has backends on loopback addresses: clients on other hosts cannot reach those", service.endpoint.address, pool_name));
    }
    let by_tcp = pool.probe.as_ref().is_some_and(|probe| probe.kind.is_by_tcp());
    if service.endpoint.protocol == Protocol::Udp && by_tcp {
        report.warning(span, format!("service {name} is UDP, and pool {} is probed by TCP: its backends must answer TCP on the same port too", pool_name));
    }
}
