//! A pool's `mode`, and the sources that some modes need.

use std::net::IpAddr;

use super::{
    diagnostic::{Report, did_you_mean},
    read::{Section, string},
};
use crate::model::mode::{DEFAULT_SOURCE_PORTS, Mode, Sources};

/// The mode of a pool, `None` where a mistake was reported.
pub(super) fn mode(section: &Section<'_>, report: &mut Report<'_>) -> Option<Mode> {
    const ALLOWED: [&str; 4] = ["nat", "snat", "dsr", "ipip"];
    let (text, span) =
        section.string("mode", report).unwrap_or_else(|| ("nat".to_owned(), section.span()));
    match text.as_str() {
        "snat" => sources(section, &text, &["sources", "source_ports"], report).map(Mode::Snat),
        "ipip" => sources(section, &text, &["sources"], report).map(Mode::Ipip),
        "nat" | "dsr" => {
            refuse_source_options(section, &text, &[], report);
            Some(if text == "nat" { Mode::Nat } else { Mode::Dsr })
        }
        _ => {
            let hint = did_you_mean(&text, ALLOWED);
            report.error(
                &span,
                format!(
                    "{} = {text:?}: {} are allowed{hint}",
                    section.name("mode"),
                    ALLOWED.join(", ")
                ),
            );
            None
        }
    }
}

fn refuse_source_options(
    section: &Section<'_>,
    mode: &str,
    allowed: &[&str],
    report: &mut Report<'_>,
) {
    for key in ["sources", "source_ports"] {
        if let Some(value) = section.value(key).filter(|_| !allowed.contains(&key)) {
            let modes = if key == "sources" { "snat or ipip" } else { "snat" };
            report.error(
                &value.span(),
                format!("{} is for mode {modes}, this pool has {mode}", section.name(key)),
            );
        }
    }
}

fn sources(
    section: &Section<'_>,
    mode: &str,
    allowed: &[&str],
    report: &mut Report<'_>,
) -> Option<Sources> {
    refuse_source_options(section, mode, allowed, report);
    let Some(value) = section.value("sources") else {
        section.missing("sources", "[\"ADDRESS OF THIS HOST\", …]", report);
        return None;
    };
    let mut addresses = Vec::new();
    for item in section.array("sources", report)? {
        let (text, span) = string(item, &section.name("sources"), report)?;
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(address),
            Err(_) => {
                report.error(
                    &span,
                    format!(
                        "{} = {text:?}: write an IP address, without a port",
                        section.name("sources")
                    ),
                );
                return None;
            }
        }
    }
    let ports = source_ports(section, report)?;
    Sources::new(addresses, ports)
        .map_err(|error| {
            report.error(&value.span(), format!("{}: {error}", section.name("sources")))
        })
        .ok()
}

fn source_ports(section: &Section<'_>, report: &mut Report<'_>) -> Option<(u16, u16)> {
    if section.value("source_ports").is_none() {
        return Some(DEFAULT_SOURCE_PORTS);
    }
    let (text, span) = section.string("source_ports", report)?;
    let range = text.split_once('-').and_then(|(low, high)| {
        Some((low.trim().parse::<u16>().ok()?, high.trim().parse::<u16>().ok()?))
    });
    if range.is_none() {
        report.error(
            &span,
            format!(
                "{} = {text:?}: write two ports, as in \"10240-32767\"",
                section.name("source_ports")
            ),
        );
    }
    range
}
