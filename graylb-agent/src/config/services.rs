//! Sections `services` and `pools`, and what must hold between them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use toml::{Spanned, de::DeValue};

use super::{
    InterfaceConfig, LimitsConfig, SocketHookConfig, balance,
    diagnostic::{Report, Span, did_you_mean},
    mode,
    read::{At, Section, integer, string},
};
use crate::model::spec::{
    BackendSpec, Endpoint, MAX_WEIGHT, Name, PoolSpec, ProbeKind, ProbeSpec, Protocol, ServiceSpec,
    Spec, check_address,
};

/// Options of `[services.NAME]`.
pub(super) const SERVICE_KEYS: &[&str] = &["address", "protocol", "aliases", "default_pool"];
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
pub(super) const BACKEND_KEYS: &[&str] = &["address", "weight"];
/// Options of `probe`.
pub(super) const PROBE_KEYS: &[&str] =
    &["type", "path", "host", "status", "interval", "timeout", "rise", "fall"];

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
    let (pool, pool_span) = default_pool?;
    let default_pool = self::name(&pool, &pool_span, report)?;
    check_pool_exists(&pool, &pool_span, all_pools, report);
    let places = ServicePlaces {
        name: name.clone(),
        default_pool: pool_span,
        aliases: aliases.iter().map(|(_, span)| span.clone()).collect(),
    };
    let service = ServiceSpec {
        endpoint: Endpoint { address: address?, protocol },
        aliases: aliases.into_iter().map(|(alias, _)| alias).collect(),
        default_pool,
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
    let probe = section.section("probe", report).map(|probe| self::probe(&probe, report));
    if section.value("backends").is_none() {
        section.missing("backends", "[\"ADDRESS:PORT\", …]", report);
        return None;
    }
    let mode = mode::mode(section, report);
    let listed = section.array("backends", report)?;
    let backends: Vec<_> = listed
        .iter()
        .filter_map(|value| backend(value, &section.name("backends"), report))
        .collect();
    if backends.len() < listed.len() {
        return None;
    }
    let span = section.value("backends").map_or(section.span(), Spanned::span);
    let pool = PoolSpec::new(backends, mode?, probe)
        .map_err(|error| report.error(&span, format!("{}: {error}", section.name("backends"))))
        .ok()?;
    balance::apply(pool, balance, section, report)
}

fn backend(
    value: &Spanned<DeValue<'_>>,
    what: &str,
    report: &mut Report<'_>,
) -> Option<BackendSpec> {
    if let DeValue::String(text) = value.get_ref() {
        let address = socket_address(text, &value.span(), what, report)?;
        return Some(BackendSpec { address, weight: 1 });
    }
    let section = Section::of(value, format!("{what}[]"), report)?;
    section.refuse_unknown(BACKEND_KEYS, report);
    let weight = match section.value("weight") {
        Some(weight) => {
            integer(weight, &section.name("weight"), 0..=u32::from(MAX_WEIGHT), report)? as u16
        }
        None => 1,
    };
    Some(BackendSpec { address: address(&section, report)?, weight })
}

fn probe(section: &Section<'_>, report: &mut Report<'_>) -> ProbeSpec {
    const HOUR: Duration = Duration::from_secs(3600);
    const COUNTS: std::ops::RangeInclusive<u32> = 1..=100;
    section.refuse_unknown(PROBE_KEYS, report);
    let interval = section
        .duration("interval", Duration::from_millis(50)..=HOUR, report)
        .map_or(Duration::from_secs(1), |(interval, _)| interval);
    let timeout = match section.duration("timeout", Duration::from_millis(10)..=HOUR, report) {
        Some((timeout, span)) if timeout > interval => {
            report.error(&span, format!("{} is {timeout:?}, longer than the interval of {interval:?}: at most the interval is allowed", section.name("timeout")));
            interval
        }
        Some((timeout, _)) => timeout,
        None => interval.min(Duration::from_millis(500)),
    };
    ProbeSpec {
        kind: probe_kind(section, report),
        interval,
        timeout,
        rise: section.integer("rise", COUNTS, report).unwrap_or(2),
        fall: section.integer("fall", COUNTS, report).unwrap_or(3),
    }
}

fn probe_kind(section: &Section<'_>, report: &mut Report<'_>) -> ProbeKind {
    if section.value("type").is_none() {
        section.missing("type", "\"tcp\" or \"http\"", report);
        return ProbeKind::Tcp;
    }
    let Some((kind, span)) = section.string("type", report) else { return ProbeKind::Tcp };
    match kind.as_str() {
        "http" => http_probe(section, report),
        "tcp" => {
            for key in ["path", "host", "status"] {
                if let Some(value) = section.value(key) {
                    report.error(
                        &value.span(),
                        format!(
                            "{} is for probes of type \"http\", this one is \"tcp\"",
                            section.name(key)
                        ),
                    );
                }
            }
            ProbeKind::Tcp
        }
        _ => {
            let hint = did_you_mean(&kind, ["tcp", "http"]);
            report.error(
                &span,
                format!("{} = {kind:?}: tcp or http are allowed{hint}", section.name("type")),
            );
            ProbeKind::Tcp
        }
    }
}

fn http_probe(section: &Section<'_>, report: &mut Report<'_>) -> ProbeKind {
    let path = match section.string("path", report) {
        Some((path, span)) => {
            if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
                report.error(
                    &span,
                    format!("{} = {path:?}: start it with /, and no spaces", section.name("path")),
                );
            }
            path
        }
        None => "/".to_owned(),
    };
    let host = section.string("host", report).and_then(|(host, span)| {
        let ok = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic());
        if !ok {
            report.error(&span, format!("{} = {host:?} is no host name", section.name("host")));
        }
        ok.then_some(host)
    });
    let mut statuses = Vec::new();
    for value in section.array("status", report).unwrap_or_default() {
        match status_range(value) {
            Some(range) => statuses.push(range),
            None => report.error(
                &value.span(),
                format!(
                    "{}: a status from 100 to 599 or a range such as \"200-299\" is allowed",
                    section.name("status")
                ),
            ),
        }
    }
    if statuses.is_empty() {
        statuses.push((200, 399));
    }
    ProbeKind::Http { path, host, statuses }
}

fn status_range(value: &Spanned<DeValue<'_>>) -> Option<(u16, u16)> {
    let (low, high) = match value.get_ref() {
        DeValue::Integer(number) => {
            let status = number.as_str().parse().ok()?;
            (status, status)
        }
        DeValue::String(text) => {
            let (low, high) = text.split_once('-').unwrap_or((text, text));
            (low.trim().parse().ok()?, high.trim().parse().ok()?)
        }
        _ => return None,
    };
    (100 <= low && low <= high && high <= 599).then_some((low, high))
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
        if let Some(pool) = spec.pools.get(&service.default_pool) {
            check_pool(name, service, pool, &at.default_pool, report);
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
    pool: &PoolSpec,
    span: &Span,
    report: &mut Report<'_>,
) {
    if let Err(error) = crate::model::spec::check_use(name, service, &service.default_pool, pool) {
        report.error(span, error.to_string());
    }
    let loopback = service.endpoint.address.ip().is_loopback();
    if !loopback && pool.backends.iter().any(|backend| backend.address.ip().is_loopback()) {
        report.warning(span, format!("service {name} is on {}, and pool {} has backends on loopback addresses: clients on other hosts cannot reach those", service.endpoint.address, service.default_pool));
    }
    if service.endpoint.protocol == Protocol::Udp && pool.probe.is_some() {
        report.warning(span, format!("service {name} is UDP, and pool {} is probed by TCP: its backends must answer TCP on the same port too", service.default_pool));
    }
}
