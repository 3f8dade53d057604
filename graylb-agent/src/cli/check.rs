//! `graylb check`

use std::{fmt::Write as _, path::Path};

use super::{Exit, fail, print};
use crate::config::Config;

pub(super) fn check(path: &Path) -> Exit {
    let (config, warnings) = match Config::load(path) {
        Ok(loaded) => loaded,
        Err(errors) => return fail(Exit::Refused, errors),
    };
    let mut text = String::new();
    for warning in &warnings {
        text.push_str(&format!("{warning}\n"));
    }
    // Writing to a String does not fail.
    let _infallible = summary(&mut text, &config);
    print(&text)
}

fn summary(text: &mut String, config: &Config) -> std::fmt::Result {
    writeln!(text, "services:")?;
    for (name, service) in &config.spec.services {
        writeln!(text, "  {name}  {}  default pool {}", service.endpoint, service.default_pool)?;
    }
    writeln!(text, "pools:")?;
    for (name, pool) in &config.spec.pools {
        let probe = if pool.probe.is_some() { "probed" } else { "not probed" };
        writeln!(text, "  {name}  {} backends, {}, {probe}", pool.backends.len(), pool.balance)?;
    }
    writeln!(text, "flow tables, about:")?;
    for (map, bytes) in config.flows.memory() {
        writeln!(text, "  {map:<13} {:>8.1} MiB", bytes as f64 / f64::from(1 << 20))?;
    }
    writeln!(text, "the config is good")
}
