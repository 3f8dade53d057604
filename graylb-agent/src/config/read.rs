//! Typed reading of TOML tables that keeps places and goes on after a mistake.

use std::{ops::RangeInclusive, str::FromStr, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::diagnostic::{Report, Span, did_you_mean};

/// A value and where it stands.
pub type At<T> = (T, Span);

/// A table of the config file.
#[derive(Clone)]
pub struct Section<'a> {
    path: String,
    table: &'a DeTable<'a>,
    span: Span,
}

impl<'a> Section<'a> {
    /// The file's top level.
    pub fn top(table: &'a Spanned<DeTable<'a>>) -> Self {
        Self { path: String::new(), table: table.get_ref(), span: 0..0 }
    }

    /// The value as a table, or a mistake.
    pub fn of(
        value: &'a Spanned<DeValue<'a>>,
        path: String,
        report: &mut Report<'_>,
    ) -> Option<Self> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Self { path, table, span: value.span() }),
            other => {
                let found = other.type_str();
                report.error(&value.span(), format!("{path} is a table, found {found}"));
                None
            }
        }
    }

    /// Where the table begins.
    pub fn span(&self) -> Span {
        self.span.clone()
    }

    /// `path.key`.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes keys that are not among `known`.
    pub fn refuse_unknown(&self, known: &[&str], report: &mut Report<'_>) {
        for key in self.table.keys() {
            let found = key.get_ref().as_ref();
            if !known.contains(&found) {
                let hint = did_you_mean(found, known.iter().copied());
                report.error(
                    &key.span(),
                    format!(
                        "unknown option {:?}: allowed are {}{hint}",
                        self.name(found),
                        known.join(", ")
                    ),
                );
            }
        }
    }

    /// The sub-table under `key`, if there is one.
    pub fn section(&self, key: &str, report: &mut Report<'_>) -> Option<Section<'a>> {
        let value = self.table.get(key)?;
        Section::of(value, self.name(key), report)
    }

    /// Each entry of this table as a sub-table, with its key.
    pub fn sections(&self, report: &mut Report<'_>) -> Vec<(At<String>, Section<'a>)> {
        self.table
            .iter()
            .filter_map(|(key, value)| {
                let name = key.get_ref().to_string();
                let section = Section::of(value, self.name(&name), report)?;
                Some(((name, key.span()), section))
            })
            .collect()
    }

    /// Each entry of this table, with its key.
    pub fn values(&self) -> impl Iterator<Item = (At<String>, &'a Spanned<DeValue<'a>>)> {
        let entries = self.table.iter();
        entries.map(|(key, value)| ((key.get_ref().to_string(), key.span()), value))
    }

    /// The raw value under `key`.
    pub fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    /// Notes that `key` must be there.
    pub fn missing(&self, key: &str, example: &str, report: &mut Report<'_>) {
        report.error(&self.span, format!("{} is missing: write {key} = {example}", self.name(key)));
    }

    /// A string.
    pub fn string(&self, key: &str, report: &mut Report<'_>) -> Option<At<String>> {
        let value = self.table.get(key)?;
        string(value, &self.name(key), report)
    }

    /// A string that parses.
    pub fn parsed<T>(&self, key: &str, report: &mut Report<'_>) -> Option<At<T>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let (text, span) = self.string(key, report)?;
        match text.parse() {
            Ok(value) => Some((value, span)),
            Err(error) => {
                report.error(&span, format!("{} = {text:?}: {error}", self.name(key)));
                None
            }
        }
    }

    /// A whole number in a range.
    pub fn integer(
        &self,
        key: &str,
        allowed: RangeInclusive<u32>,
        report: &mut Report<'_>,
    ) -> Option<u32> {
        let value = self.table.get(key)?;
        integer(value, &self.name(key), allowed, report)
    }

    /// true or false.
    pub fn boolean(&self, key: &str, report: &mut Report<'_>) -> Option<bool> {
        let value = self.table.get(key)?;
        let found = value.get_ref();
        found.as_bool().or_else(|| {
            let message =
                format!("{} is true or false, found {}", self.name(key), found.type_str());
            report.error(&value.span(), message);
            None
        })
    }

    /// A length of time in a range.
    pub fn duration(
        &self,
        key: &str,
        allowed: RangeInclusive<Duration>,
        report: &mut Report<'_>,
    ) -> Option<At<Duration>> {
        let (text, span) = self.string(key, report)?;
        let Some(duration) = parse_duration(&text) else {
            report.error(
                &span,
                format!("{} = {text:?} is no length of time: write a number and ms, s, m or h, as in \"500ms\"", self.name(key)),
            );
            return None;
        };
        if !allowed.contains(&duration) {
            report.error(
                &span,
                format!(
                    "{} = {text:?}: {:?} to {:?} are allowed",
                    self.name(key),
                    allowed.start(),
                    allowed.end()
                ),
            );
            return None;
        }
        Some((duration, span))
    }

    /// The elements of an array.
    pub fn array(
        &self,
        key: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<&'a Spanned<DeValue<'a>>>> {
        let value = self.table.get(key)?;
        match value.get_ref() {
            DeValue::Array(array) => Some(array.iter().collect()),
            other => {
                let message = format!("{} is an array, found {}", self.name(key), other.type_str());
                report.error(&value.span(), message);
                None
            }
        }
    }
}

/// A value as a string.
pub fn string(
    value: &Spanned<DeValue<'_>>,
    name: &str,
    report: &mut Report<'_>,
) -> Option<At<String>> {
    match value.get_ref() {
        DeValue::String(text) => Some((text.to_string(), value.span())),
        other => {
            report.error(&value.span(), format!("{name} is a string, found {}", other.type_str()));
            None
        }
    }
}

/// A value as a whole number in a range.
pub fn integer(
    value: &Spanned<DeValue<'_>>,
    name: &str,
    allowed: RangeInclusive<u32>,
    report: &mut Report<'_>,
) -> Option<u32> {
    let found = match value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
        other => {
            let found = other.type_str();
            report.error(&value.span(), format!("{name} is a whole number, found {found}"));
            return None;
        }
    };
    let number =
        found.and_then(|number| u32::try_from(number).ok()).filter(|n| allowed.contains(n));
    if number.is_none() {
        let found = found.map_or_else(|| "too large a number".to_owned(), |n| n.to_string());
        let (low, high) = (allowed.start(), allowed.end());
        report.error(&value.span(), format!("{name} = {found}: {low} to {high} are allowed"));
    }
    number
}

/// `500ms`, `2s`, `1m`, `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(unit_ms)?))
}
