//! `graylb status`, for people.

use std::fmt::{self, Write as _};

use crate::{
    apply::{Attachment, SocketHook},
    daemon::{BackendReport, CanaryReport, FormerPool, PoolReport, ServiceReport, StatusReport},
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
    writeln!(text, "packets: {}", seen.join(", "))?;
    write_flows(text, report)
}

fn write_flows(text: &mut String, report: &StatusReport) -> fmt::Result {
    let percent = |entries: u64, size: u64| 100.0 * entries as f64 / size.max(1) as f64;
    let used = report.flow_tables.iter().filter(|fill| fill.entries > 0);
    let tables: Vec<String> = used
        .map(|fill| {
            let (entries, size) = (fill.entries, fill.size);
            format!("{} {entries}/{size} ({:.0} %)", fill.table, percent(entries, size))
        })
        .collect();
    if !tables.is_empty() {
        writeln!(text, "flow tables: {}", tables.join(", "))?;
    }
    let ended = report.flows_ended.iter().filter(|(_, flows)| **flows > 0);
    let ended: Vec<String> = ended.map(|(why, flows)| format!("{why} {flows}")).collect();
    if !ended.is_empty() {
        writeln!(text, "flows removed since the agent started: {}", ended.join(", "))?;
    }
    Ok(())
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
        "\n{}  {}/{}  -> {} ({origin}), {}, {generation}, revision {}",
        service.name,
        service.address,
        service.protocol,
        service.pool,
        service.balance,
        service.revision
    )?;
    if let Some(CanaryReport { pool, share, starved }) = &service.canary {
        let starved =
            if *starved { ": NOBODY THERE IS UP, its part stays with the others" } else { "" };
        writeln!(text, "  canary: {share} of the clients to {pool}{starved}")?;
    }
    if service.rules > 0 {
        writeln!(text, "  client rules: {} (`graylb rules list {}`)", service.rules, service.name)?;
    }
    if service.last_good_kept {
        writeln!(text, "  NOBODY IS UP: the last backends that were good stay in force")?;
    }
    if let Some(problem) = &service.problem {
        writeln!(text, "  PROBLEM: {problem}")?;
    }
    let header = [
        "backend",
        "weight",
        "state",
        "takes flows",
        "active",
        "opened",
        "established",
        "refused",
        "closed",
    ];
    let [b, w, s, t, a, o, e, r, c] = header;
    writeln!(text, "  {b:<28} {w:>6}  {s:<8} {t:<11} {a:>8} {o:>9} {e:>11} {r:>8} {c:>9}  reason")?;
    service.backends.iter().try_for_each(|backend| write_backend(text, backend))?;
    for PoolReport { pool, balance, backends } in &service.others {
        writeln!(text, "  {pool}, {balance}:")?;
        backends.iter().try_for_each(|backend| write_backend(text, backend))?;
    }
    for former in &service.former {
        write_former(text, former)?;
    }
    Ok(())
}

fn write_backend(text: &mut String, backend: &BackendReport) -> fmt::Result {
    let state = match backend.state {
        _ if backend.drained => "drained",
        HealthState::Unknown => "unknown",
        HealthState::Up => "up",
        HealthState::Down => "DOWN",
    };
    let takes = if backend.takes_flows { "yes" } else { "no" };
    writeln!(
        text,
        "  {:<28} {:>6}  {state:<8} {takes:<11} {:>8} {:>9} {:>11} {:>8} {:>9}  {}",
        backend.address.to_string(),
        backend.weight,
        backend.active,
        backend.opened,
        backend.established,
        backend.refused,
        backend.closed,
        backend.reason
    )
}

/// A pool that was switched away from, while it has flows.
fn write_former(text: &mut String, former: &FormerPool) -> fmt::Result {
    let active: u64 = former.backends.iter().map(|backend| backend.active).sum();
    if active == 0 {
        return Ok(());
    }
    let idle = former.backends.iter().map(|backend| backend.longest_idle_seconds).max();
    let oldest = former.backends.iter().filter_map(|backend| backend.oldest_generation).min();
    let oldest = oldest.map_or_else(String::new, |g| format!(", the oldest of generation {g}"));
    writeln!(
        text,
        "  {} still has {active} flows{oldest}, idle for {} s at most",
        former.pool,
        idle.unwrap_or_default()
    )
}
