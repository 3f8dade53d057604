//! Table `probe` of a pool: how its backends are asked whether they are well.

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf, time::Duration};

use hyper::header::{HeaderName, HeaderValue};
use toml::{Spanned, de::DeValue};

use super::{
    diagnostic::{Report, did_you_mean},
    read::{At, Section, string},
};
use crate::model::probe::{
    ExecProbe, GrpcProbe, HttpProbe, HttpVersion, ProbeKind, ProbeSpec, TlsProbe, UdpProbe,
};

/// Options of `probe`.
pub(super) const PROBE_KEYS: &[&str] = &[
    "type",
    "path",
    "host",
    "status",
    "method",
    "headers",
    "body_matches",
    "http_version",
    "tls",
    "tls_name",
    "tls_ca",
    "tls_verify",
    "service",
    "send",
    "send_hex",
    "expect",
    "expect_hex",
    "command",
    "port",
    "interval",
    "doubt_interval",
    "timeout",
    "rise",
    "fall",
];
/// Types of probes.
const TYPES: [&str; 5] = ["tcp", "http", "grpc", "udp", "exec"];
/// Options that only some types have, with those.
const OF_TYPES: &[(&[&str], &[&str])] = &[
    (&["path", "status", "method", "headers", "body_matches", "http_version"], &["http"]),
    (&["host", "tls", "tls_name", "tls_ca", "tls_verify"], &["http", "grpc"]),
    (&["service"], &["grpc"]),
    (&["send", "send_hex", "expect", "expect_hex"], &["udp"]),
    (&["command"], &["exec"]),
    (&["port"], &["tcp", "http", "grpc", "udp", "exec"]),
];
/// Request methods that a probe may use: those that change nothing, and POST for health checks that want it.
const METHODS: [&str; 4] = ["GET", "HEAD", "OPTIONS", "POST"];
/// Longest datagram that a probe sends, in bytes: one that fits everywhere (RFC 8200, 5).
const MAX_SEND: usize = 1200;
const HOUR: Duration = Duration::from_secs(3600);
const COUNTS: RangeInclusive<u32> = 1..=100;

/// Reads it. Where to ask single backends elsewhere is for the caller to fill in.
pub(super) fn probe(section: &Section<'_>, report: &mut Report<'_>) -> ProbeSpec {
    section.refuse_unknown(PROBE_KEYS, report);
    let intervals = Duration::from_millis(50)..=HOUR;
    let interval = section
        .duration("interval", intervals.clone(), report)
        .map_or(Duration::from_secs(1), |(interval, _)| interval);
    let doubt = section.duration("doubt_interval", intervals.clone(), report);
    let timeout = section.duration("timeout", Duration::from_millis(10)..=HOUR, report);
    ProbeSpec {
        kind: kind(section, report),
        port: section.integer("port", 1..=u32::from(u16::MAX), report).map(|port| port as u16),
        elsewhere: BTreeMap::new(),
        interval,
        doubt_interval: within(section, "doubt_interval", doubt, interval, report)
            .unwrap_or_else(|| (interval / 4).max(*intervals.start())),
        timeout: within(section, "timeout", timeout, interval, report)
            .unwrap_or_else(|| interval.min(Duration::from_millis(500))),
        rise: section.integer("rise", COUNTS, report).unwrap_or(2),
        fall: section.integer("fall", COUNTS, report).unwrap_or(3),
    }
}

/// A length of time that must not be longer than the interval.
fn within(
    section: &Section<'_>,
    key: &str,
    found: Option<At<Duration>>,
    interval: Duration,
    report: &mut Report<'_>,
) -> Option<Duration> {
    let (found, span) = found?;
    if found > interval {
        report.error(&span, format!("{} is {found:?}, longer than the interval of {interval:?}: at most the interval is allowed", section.name(key)));
        return Some(interval);
    }
    Some(found)
}

fn kind(section: &Section<'_>, report: &mut Report<'_>) -> ProbeKind {
    if section.value("type").is_none() {
        section.missing("type", "\"tcp\", \"http\", \"grpc\", \"udp\" or \"exec\"", report);
        return ProbeKind::Tcp;
    }
    let Some((kind, span)) = section.string("type", report) else { return ProbeKind::Tcp };
    if !TYPES.contains(&kind.as_str()) {
        let hint = match kind.as_str() {
            "https" => "; write type = \"http\" and tls = true".to_owned(),
            _ => did_you_mean(&kind, TYPES),
        };
        let name = section.name("type");
        report.error(&span, format!("{name} = {kind:?}: {} are allowed{hint}", TYPES.join(", ")));
        return ProbeKind::Tcp;
    }
    refuse_options_of_others(section, &kind, report);
    match kind.as_str() {
        "http" => ProbeKind::Http(http(section, report)),
        "grpc" => ProbeKind::Grpc(GrpcProbe {
            service: section.string("service", report).map_or_else(String::new, |(name, _)| name),
            host: host(section, "host", report),
            tls: tls(section, report),
        }),
        "udp" => ProbeKind::Udp(udp(section, report)),
        "exec" => ProbeKind::Exec(exec(section, report)),
        _ => ProbeKind::Tcp,
    }
}

fn refuse_options_of_others(section: &Section<'_>, kind: &str, report: &mut Report<'_>) {
    for (keys, types) in OF_TYPES.iter().filter(|(_, types)| !types.contains(&kind)) {
        for (key, value) in keys.iter().filter_map(|key| Some((key, section.value(key)?))) {
            let name = section.name(key);
            let types = types.join(" or ");
            let message = format!("{name} is for probes of type {types}, this one is {kind}");
            report.error(&value.span(), message);
        }
    }
}

fn http(section: &Section<'_>, report: &mut Report<'_>) -> HttpProbe {
    HttpProbe {
        method: one_of(section, "method", &METHODS, report).unwrap_or("GET").to_owned(),
        path: path(section, report),
        host: host(section, "host", report),
        headers: headers(section, report),
        statuses: statuses(section, report),
        body: body(section, report),
        version: match one_of(section, "http_version", &["1.1", "2"], report) {
            Some("2") => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        },
        tls: tls(section, report),
    }
}

/// A string that is one of a few.
fn one_of<'a>(
    section: &Section<'_>,
    key: &str,
    allowed: &[&'a str],
    report: &mut Report<'_>,
) -> Option<&'a str> {
    let (text, span) = section.string(key, report)?;
    let found = allowed.iter().find(|allowed| **allowed == text).copied();
    if found.is_none() {
        let hint = did_you_mean(&text, allowed.iter().copied());
        let name = section.name(key);
        let allowed = allowed.join(", ");
        report.error(&span, format!("{name} = {text:?}: {allowed} are allowed{hint}"));
    }
    found
}

fn path(section: &Section<'_>, report: &mut Report<'_>) -> String {
    let Some((path, span)) = section.string("path", report) else { return "/".to_owned() };
    if !path.starts_with('/') || path.parse::<hyper::http::uri::PathAndQuery>().is_err() {
        let name = section.name("path");
        report.error(&span, format!("{name} = {path:?}: start it with /, and no spaces"));
    }
    path
}

fn host(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Option<String> {
    let (host, span) = section.string(key, report)?;
    let ok = host.parse::<hyper::http::uri::Authority>().is_ok() && !host.contains('@');
    if !ok {
        report.error(&span, format!("{} = {host:?} is no host name", section.name(key)));
    }
    ok.then_some(host)
}

fn headers(section: &Section<'_>, report: &mut Report<'_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    let Some(table) = section.section("headers", report) else { return headers };
    for (name, value) in table.values() {
        let what = table.name(&name.0);
        let Some((text, span)) = string(value, &what, report) else { continue };
        if HeaderName::try_from(&name.0).is_err() {
            report.error(&name.1, format!("{what}: {:?} is no header name", name.0));
        } else if HeaderValue::try_from(&text).is_err() {
            report.error(&span, format!("{what} = {text:?} is no header value"));
        } else if ["connection", "content-length", "transfer-encoding"]
            .contains(&name.0.to_ascii_lowercase().as_str())
        {
            report.error(&name.1, format!("{what}: graylb itself sets this header"));
        } else {
            headers.push((name.0, text));
        }
    }
    headers
}

fn statuses(section: &Section<'_>, report: &mut Report<'_>) -> Vec<(u16, u16)> {
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
    statuses
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

fn body(section: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let (pattern, span) = section.string("body_matches", report)?;
    let name = section.name("body_matches");
    if let Err(error) = regex::bytes::Regex::new(&pattern) {
        let why = error.to_string();
        let last = why.lines().last().unwrap_or_default();
        report.error(&span, format!("{name} = {pattern:?} is no regular expression: {last}"));
        return None;
    }
    if section.value("method").and_then(|m| m.get_ref().as_str()) == Some("HEAD") {
        report.error(&span, format!("{name}: an answer to HEAD has no body"));
    }
    Some(pattern)
}

fn tls(section: &Section<'_>, report: &mut Report<'_>) -> Option<TlsProbe> {
    let wanted = section.boolean("tls", report).unwrap_or(false);
    let tls = TlsProbe {
        name: host(section, "tls_name", report),
        ca: section.string("tls_ca", report).and_then(|(path, span)| {
            let path = PathBuf::from(path);
            if !path.is_absolute() {
                let name = section.name("tls_ca");
                report
                    .error(&span, format!("{name} is {}: write an absolute path", path.display()));
            }
            path.is_absolute().then_some(path)
        }),
        verify: section.boolean("tls_verify", report).unwrap_or(true),
    };
    for key in ["tls_name", "tls_ca", "tls_verify"] {
        if let Some(value) = section.value(key).filter(|_| !wanted) {
            let name = section.name(key);
            report.error(&value.span(), format!("{name} is for TLS: write tls = true, too"));
        }
    }
    if let Some(value) = section.value("tls_ca").filter(|_| !tls.verify) {
        let name = section.name("tls_ca");
        report.error(&value.span(), format!("{name} has no use with tls_verify = false"));
    }
    wanted.then_some(tls)
}

fn udp(section: &Section<'_>, report: &mut Report<'_>) -> UdpProbe {
    let send = bytes(section, "send", "send_hex", report).unwrap_or_default();
    if section.value("send").is_none() && section.value("send_hex").is_none() {
        section.missing("send", "\"TEXT\", or send_hex = \"BYTES\"", report);
    } else if send.is_empty() || send.len() > MAX_SEND {
        let (name, found) = (section.name("send"), send.len());
        let message = format!("{name} has {found} bytes: 1 to {MAX_SEND} are allowed");
        report.error(&section.span(), message);
    }
    let expect = bytes(section, "expect", "expect_hex", report).unwrap_or_default();
    UdpProbe { send, expect }
}

/// Bytes as a text or in hexadecimal.
fn bytes(
    section: &Section<'_>,
    text_key: &str,
    hex_key: &str,
    report: &mut Report<'_>,
) -> Option<Vec<u8>> {
    let text = section.string(text_key, report);
    let Some((hex, span)) = section.string(hex_key, report) else {
        return text.map(|(text, _)| text.into_bytes());
    };
    let name = section.name(hex_key);
    if text.is_some() {
        report.error(&span, format!("{name} beside {text_key}: write one of them"));
    }
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok();
    let whole = digits.len().is_multiple_of(2) && digits.iter().all(char::is_ascii_hexdigit);
    let bytes = digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>().filter(|_| whole);
    if bytes.is_none() {
        report.error(&span, format!("{name} = {hex:?}: write pairs of hexadecimal digits"));
    }
    bytes
}

fn exec(section: &Section<'_>, report: &mut Report<'_>) -> ExecProbe {
    let name = section.name("command");
    let Some(listed) = section.array("command", report) else {
        if section.value("command").is_none() {
            section.missing("command", "[\"/PATH/OF/PROGRAM\", \"ARGUMENT\", …]", report);
        }
        return ExecProbe { command: Vec::new() };
    };
    let words: Vec<At<String>> =
        listed.into_iter().filter_map(|value| string(value, &name, report)).collect();
    match words.first() {
        Some((program, span)) if !program.starts_with('/') => report.error(
            span,
            format!(
                "{name} runs {program:?}: write the program's absolute path, no shell looks for it"
            ),
        ),
        None => report.error(&section.span(), format!("{name} is empty: name a program")),
        _ => {}
    }
    for (word, span) in words.iter().filter(|(word, _)| word.contains('\0')) {
        report.error(span, format!("{name} has a NUL in {word:?}"));
    }
    ExecProbe { command: words.into_iter().map(|(word, _)| word).collect() }
}
