//! Options of a service that divide its clients among pools.

use toml::Spanned;

use super::{
    diagnostic::{Report, Span, did_you_mean},
    read::{At, Section, integer, string},
};
use crate::model::{
    balance::Prefixes,
    choice::PoolChoice,
    spec::Name,
    split::{Canary, Cidr, Rules, Share, SplitBy, SplitSpec, check_rules},
};

/// Options of `canary`.
pub(super) const CANARY_KEYS: &[&str] = &["pool", "share"];
/// Longest salt, in bytes.
const MAX_SALT: usize = 255;

/// What was read, with the places of pools' names.
#[derive(Default)]
pub(super) struct Read {
    pub(super) canary: Option<Canary>,
    pub(super) rules: Rules,
    pub(super) split: SplitSpec,
    pub(super) pools: Vec<(Name, Span)>,
}

/// Reads them. Whether the pools are there, and fit, is for the caller to check.
pub(super) fn read(section: &Section<'_>, ipv4: bool, report: &mut Report<'_>) -> Read {
    let mut read = Read { split: split(section, ipv4, report), ..Read::default() };
    if let Some(table) = section.section("canary", report)
        && let Some((canary, pool)) = canary(&table, report)
    {
        read.canary = Some(canary);
        read.pools.push(pool);
    }
    if let Some(table) = section.section("rules", report) {
        for (network, value) in table.values() {
            let Some((client, pool)) = rule(&network, value, &table, report) else { continue };
            read.rules.insert(client, PoolChoice::Pool(pool.0.clone()));
            read.pools.push(pool);
        }
        if let Err(error) = check_rules(&read.rules, ipv4) {
            report.error(&table.span(), format!("{}: {error}", section.name("rules")));
        }
    }
    read
}

fn canary(table: &Section<'_>, report: &mut Report<'_>) -> Option<(Canary, At<Name>)> {
    table.refuse_unknown(CANARY_KEYS, report);
    for (key, example) in [("pool", "\"POOL\""), ("share", "\"5%\"")] {
        if table.value(key).is_none() {
            table.missing(key, example, report);
        }
    }
    let share = table.parsed::<Share>("share", report);
    let pool = name(table.string("pool", report)?, report)?;
    let canary = Canary { pool: PoolChoice::Pool(pool.0.clone()), share: share?.0 };
    Some((canary, pool))
}

fn rule(
    network: &At<String>,
    value: &Spanned<toml::de::DeValue<'_>>,
    table: &Section<'_>,
    report: &mut Report<'_>,
) -> Option<(Cidr, At<Name>)> {
    let client = network.0.parse::<Cidr>();
    let client = client.map_err(|error| report.error(&network.1, error.to_string())).ok();
    let pool = name(string(value, &table.name(&network.0), report)?, report)?;
    Some((client?, pool))
}

fn name((text, span): At<String>, report: &mut Report<'_>) -> Option<At<Name>> {
    let name = Name::new(&text).map_err(|error| report.error(&span, error.to_string())).ok()?;
    Some((name, span))
}

fn split(section: &Section<'_>, ipv4: bool, report: &mut Report<'_>) -> SplitSpec {
    let by = match section.string("split_by", report) {
        Some((text, _)) if text == SplitBy::NAMES[0] => SplitBy::Client,
        Some((text, _)) if text == SplitBy::NAMES[1] => SplitBy::Flow,
        Some((text, span)) => {
            let hint = did_you_mean(&text, SplitBy::NAMES);
            let allowed = SplitBy::NAMES.join(" or ");
            let name = section.name("split_by");
            report.error(&span, format!("{name} = {text:?}: {allowed} is allowed{hint}"));
            SplitBy::Client
        }
        None => SplitBy::default(),
    };
    let mut prefixes = Prefixes::default();
    if let Some(value) = section.value("split_prefix") {
        let (longest, prefix) = if ipv4 { (32, &mut prefixes.v4) } else { (128, &mut prefixes.v6) };
        let name = section.name("split_prefix");
        if by == SplitBy::Flow {
            report.error(&value.span(), format!("{name} has no use with split_by = \"flow\""));
        }
        if let Some(bits) = integer(value, &name, 1..=longest, report) {
            *prefix = bits as u8;
        }
    }
    let salt = section.string("split_salt", report).and_then(|(salt, span)| {
        let ok = (1..=MAX_SALT).contains(&salt.len());
        if !ok {
            let (name, found) = (section.name("split_salt"), salt.len());
            report.error(&span, format!("{name} has {found} bytes: 1 to {MAX_SALT} are allowed"));
        }
        ok.then_some(salt)
    });
    SplitSpec { by, prefixes, salt }
}
