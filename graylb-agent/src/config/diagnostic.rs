//! What is wrong in a config file, where, and what would do.

use std::{fmt, ops::Range};

/// A place in the file, as byte offsets.
pub type Span = Range<usize>;

/// Whether a finding stops the config from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not, but is worth a look.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// `file:line:column`.
    pub place: String,
    /// What was found and what is allowed.
    pub message: String,
    /// The line of the file, and a second line that marks the place in it.
    pub excerpt: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}: {severity}: {}\n{}", self.place, self.message, self.excerpt)
    }
}

/// Why a config cannot be used: every mistake, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The findings; at least one.
    pub findings: Vec<Diagnostic>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        match self.findings.len() {
            1 => write!(f, "1 mistake; nothing was changed"),
            count => write!(f, "{count} mistakes; nothing was changed"),
        }
    }
}

/// Collects findings about one file.
#[derive(Debug)]
pub struct Report<'t> {
    file: &'t str,
    text: &'t str,
    found: Vec<(Span, Severity, String)>,
}

impl<'t> Report<'t> {
    /// Nothing found yet.
    pub const fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    /// Notes a mistake.
    pub fn error(&mut self, span: &Span, message: impl Into<String>) {
        self.found.push((span.clone(), Severity::Error, message.into()));
    }

    /// Notes something worth a look.
    pub fn warning(&mut self, span: &Span, message: impl Into<String>) {
        self.found.push((span.clone(), Severity::Warning, message.into()));
    }

    /// Everything found, in the order of the file: mistakes as an error, else the warnings.
    pub fn finish(mut self) -> Result<Vec<Diagnostic>, ConfigErrors> {
        self.found.sort_by_key(|(span, ..)| span.start);
        let (errors, warnings): (Vec<_>, Vec<_>) = self
            .found
            .iter()
            .map(|(span, severity, message)| self.diagnostic(span, *severity, message))
            .partition(|finding| finding.severity == Severity::Error);
        if errors.is_empty() { Ok(warnings) } else { Err(ConfigErrors { findings: errors }) }
    }

    fn diagnostic(&self, span: &Span, severity: Severity, message: &str) -> Diagnostic {
        let mut start = span.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text[line_start..].lines().next().unwrap_or("");
        let number = before.matches('\n').count() + 1;
        let column = self.text[line_start..start].chars().count() + 1;
        let room = line.chars().count().saturating_sub(column - 1).max(1);
        let marks = self.text.get(start..span.end).map_or(1, |marked| marked.chars().count());
        let gutter = number.to_string();
        let excerpt = format!(
            "  {gutter} | {line}\n  {} | {}{}",
            " ".repeat(gutter.len()),
            " ".repeat(column - 1),
            "^".repeat(marks.clamp(1, room))
        );
        Diagnostic {
            severity,
            place: format!("{}:{number}:{column}", self.file),
            message: message.to_owned(),
            excerpt,
        }
    }
}

/// `, did you mean "X"?` where one of `known` is close to `found`.
pub fn did_you_mean<'k>(found: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    /// Edits beyond which two words are not taken for one another.
    const CLOSE: usize = 3;
    known
        .into_iter()
        .map(|word| (distance(found, word), word))
        .filter(|(edits, word)| *edits <= CLOSE.min(word.len().div_ceil(2)))
        .min()
        .map_or_else(String::new, |(_, word)| format!("; did you mean {word:?}?"))
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
