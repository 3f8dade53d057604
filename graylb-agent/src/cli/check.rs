//! `graylb check`

use std::{fmt::Write as _, path::Path};

use super::{Exit, fail, print};
use crate::{
    apply::possible_cpus,
    config::{Config, map_sizes},
};

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
    let cpus = possible_cpus() as u64;
    writeln!(text, "kernel memory, about ({cpus} possible CPUs):")?;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut total = 0;
    for size in map_sizes(&config.flows, &config.limits) {
        let bytes = size.memory(cpus);
        let (name, entries) = (size.name, size.entries);
        write!(text, "  {name:<13} {entries:>9} entries {:>9.1} MiB", mebibytes(bytes))?;
        if size.grows() {
            writeln!(text, " when full")?;
        } else {
            total += bytes;
            writeln!(text)?;
        }
    }
    writeln!(text, "  {:<13} {:>27.1} MiB", "total", mebibytes(total))?;
    writeln!(text, "the config is good")
}
