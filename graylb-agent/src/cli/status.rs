//! `graylb status`, for people.

use std::fmt::{self, Write as _};

use crate::{
    apply::{Attachment, SocketHook},
    daemon::{ServiceReport, StatusReport},
    model::health::HealthState,
};

pub(super) fn table(report: &StatusReport) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _infallible = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &StatusReport) -> fmt::Result {
    writeln!(
        text,
        "graylb {} (pid {}, up {} s), config {}, pins {}",
        report.version, report.pid, report.uptime_seconds, report.config, report.pin_dir
    )?;
    for interface in &report.interfaces {
        let Attachment { interface, pattern, hook, reason } = interface;
        let by = if pattern == interface { String::new() } else { format!(" ({pattern:?})") };
        writeln!(text, "{interface}{by} by {hook}: {reason}")?;
    }
    if let Some(SocketHook { cgroup, reason }) = &report.socket_hook {
        writeln!(text, "socket hook at {}: {reason}", cgroup.display())?;
    }
    for problem in &report.problems {
        writeln!(text, "PROBLEM: {problem}")?;
    }
    for service in &report.services {
        write_service(text, service)?;
    }
    writeln!(text, "\npools: {}", report.pools.join(", "))?;
    let seen: Vec<String> = report
        .verdicts
        .iter()
        .filter(|(_, packets)| **packets > 0)
        .map(|(name, packets)| format!("{name} {packets}"))
        .collect();
    writeln!(text, "packets: {}", seen.join(", "))
}

fn write_service(text: &mut String, service: &ServiceReport) -> fmt::Result {
    let origin = if service.overridden {
        format!("switched, default is {}", service.default_pool)
    } else {
        "default".to_owned()
    };
    let generation = match service.generation {
        Some(generation) => format!("generation {generation}"),
        None => "NOT IN THE KERNEL YET: no backend has answered its probe".to_owned(),
    };
    writeln!(
        text,
        "\n{}  {}/{}  -> {} ({origin}), {}, {generation}",
        service.name, service.address, service.protocol, service.pool, service.balance
    )?;
    if service.last_good_kept {
        writeln!(text, "  NOBODY IS UP: the last backends that were good stay in force")?;
    }
    if let Some(problem) = &service.problem {
        writeln!(text, "  PROBLEM: {problem}")?;
    }
    let header =
        ["backend", "weight", "state", "takes flows", "opened", "established", "refused", "closed"];
    let [b, w, s, t, o, e, r, c] = header;
    writeln!(text, "  {b:<28} {w:>6}  {s:<8} {t:<11} {o:>9} {e:>11} {r:>8} {c:>9}  reason")?;
    for backend in &service.backends {
        let state = match backend.state {
            HealthState::Unknown => "unknown",
            HealthState::Up => "up",
            HealthState::Down => "DOWN",
        };
        let takes = if backend.takes_flows { "yes" } else { "no" };
        writeln!(
            text,
            "  {:<28} {:>6}  {state:<8} {takes:<11} {:>9} {:>11} {:>8} {:>9}  {}",
            backend.address.to_string(),
            backend.weight,
            backend.opened,
            backend.established,
            backend.refused,
            backend.closed,
            backend.reason
        )?;
    }
    Ok(())
}
