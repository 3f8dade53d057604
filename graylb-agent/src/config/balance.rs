//! How a pool shares its flows: the options `balance` and those that go with one kind of it.

use std::ops::RangeInclusive;

use super::{
    LimitsConfig,
    diagnostic::{Report, Span, did_you_mean},
    read::Section,
};
use crate::model::{
    balance::{Balance, Prefixes, TableSize},
    spec::{PoolSpec, Spec},
};

/// Reads them. A mistake is noted, and the default taken in its place.
pub(super) fn balance(section: &Section<'_>, report: &mut Report<'_>) -> Balance {
    let Some(name) = kind(section, report) else { return Balance::default() };
    let hashed = [Balance::NAMES[1], Balance::NAMES[2]];
    let sticky = [Balance::NAMES[2]];
    refuse_unless(&hashed, name, "maglev_size", section, report);
    refuse_unless(&sticky, name, "sticky_prefix_v4", section, report);
    refuse_unless(&sticky, name, "sticky_prefix_v6", section, report);
    match name {
        "maglev" => Balance::Maglev { size: size(section, report) },
        "sticky" => {
            let default = Prefixes::default();
            let prefixes = Prefixes {
                v4: prefix(section, "sticky_prefix_v4", 1..=32, report).unwrap_or(default.v4),
                v6: prefix(section, "sticky_prefix_v6", 1..=128, report).unwrap_or(default.v6),
            };
            Balance::Sticky { size: size(section, report), prefixes }
        }
        "least_connections" => Balance::LeastConnections,
        _ => Balance::RoundRobin,
    }
}

/// Gives a pool its balance, if its table is large enough for the backends.
pub(super) fn apply(
    pool: PoolSpec,
    balance: Balance,
    section: &Section<'_>,
    report: &mut Report<'_>,
) -> Option<PoolSpec> {
    let key = if section.value("maglev_size").is_some() { "maglev_size" } else { "balance" };
    pool.balanced(balance)
        .map_err(|error| {
            report.error(&span(section, key), format!("{}: {error}", section.name(key)))
        })
        .ok()
}

/// Checks that the services' slots, all in one table of the kernel, fit with their default pools in force.
pub(super) fn check_slots(spec: &Spec, limits: &LimitsConfig, report: &mut Report<'_>) {
    let pools = spec.services.values().filter_map(|service| spec.pools.get(&service.default_pool));
    let slots: u64 = pools.map(|pool| u64::from(pool.slots())).sum();
    if slots > u64::from(limits.slots) {
        report.error(
            &(0..0),
            format!("the services need {slots} slots together, {} fit: raise limits.slots, or use smaller maglev_size or rounder weights", limits.slots),
        );
    }
}

/// The name of the balance, one of [`Balance::NAMES`]; `None` after a mistake.
fn kind(section: &Section<'_>, report: &mut Report<'_>) -> Option<&'static str> {
    if section.value("balance").is_none() {
        return Some(Balance::default().name());
    }
    let (found, span) = section.string("balance", report)?;
    let known = Balance::NAMES.into_iter().find(|name| *name == found);
    if known.is_none() {
        let hint = did_you_mean(&found, Balance::NAMES);
        let (last, others) = (Balance::NAMES[3], Balance::NAMES[..3].join(", "));
        report.error(
            &span,
            format!(
                "{} = {found:?}: {others} or {last} are allowed{hint}",
                section.name("balance")
            ),
        );
    }
    known
}

fn refuse_unless(
    kinds: &[&str],
    kind: &str,
    key: &str,
    section: &Section<'_>,
    report: &mut Report<'_>,
) {
    if section.value(key).is_some() && !kinds.contains(&kind) {
        let of = kinds.iter().map(|kind| format!("{kind:?}")).collect::<Vec<_>>().join(" or ");
        report.error(
            &span(section, key),
            format!("{} is for balance = {of}, this pool's is {kind:?}", section.name(key)),
        );
    }
}

fn size(section: &Section<'_>, report: &mut Report<'_>) -> TableSize {
    let found = section.integer("maglev_size", TableSize::MIN..=TableSize::MAX, report);
    let Some(slots) = found else { return TableSize::DEFAULT };
    TableSize::new(slots).unwrap_or_else(|error| {
        let name = section.name("maglev_size");
        report.error(&span(section, "maglev_size"), format!("{name} = {error}"));
        TableSize::DEFAULT
    })
}

fn prefix(
    section: &Section<'_>,
    key: &str,
    allowed: RangeInclusive<u32>,
    report: &mut Report<'_>,
) -> Option<u8> {
    u8::try_from(section.integer(key, allowed, report)?).ok()
}

fn span(section: &Section<'_>, key: &str) -> Span {
    section.value(key).map_or(section.span(), toml::Spanned::span)
}
