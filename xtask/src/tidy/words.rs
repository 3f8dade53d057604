//! Words and names that do not belong into tracked files.

use super::{Finding, Source};

/// File names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "helpers", "helper", "manager", "misc"];
/// Left for later; later is an issue, not a comment.
const REMINDERS: [&str; 3] = ["TODO", "FIXME", "XXX"];
/// Macros of unfinished work.
const UNFINISHED: [&str; 2] = ["todo", "dbg"];
/// Package registries, in two parts so that this file passes its own rule. Which host serves packages is the
/// machine's configuration.
const REGISTRIES: [(&str, &str); 4] =
    [("crates", "io"), ("pypi", "org"), ("npmjs", "org"), ("rubygems", "org")];

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = source.path.rsplit('/').next().unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        let what = format!("a file called {stem}: name it for what is in it");
        findings.push(Finding::new(source, 0, what));
    }
    // Cargo writes this one.
    if name == "Cargo.lock" {
        return findings;
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        let last = source.text.lines().count().saturating_sub(1);
        findings.push(Finding::new(source, last, "no newline at the end: add one"));
    }
    let remarks = if source.is_rust() { &source.views.comments } else { &source.text };
    for (number, line) in remarks.lines().enumerate() {
        if let Some(word) = REMINDERS.into_iter().find(|word| find_word(line, word).is_some()) {
            let what = format!("{word}: do it, or describe it as an issue");
            findings.push(Finding::new(source, number, what));
        }
    }
    for (number, line) in source.views.code.lines().enumerate() {
        let unfinished = |word: &&str| {
            find_word(line, word).is_some_and(|at| line[at + word.len()..].starts_with('!'))
        };
        if let Some(word) = UNFINISHED.into_iter().find(unfinished) {
            findings.push(Finding::new(source, number, format!("{word}!: finish or remove it")));
        }
    }
    for (number, line) in source.text.lines().enumerate() {
        let named = |(name, domain): &(&str, &str)| line.contains(&format!("{name}.{domain}"));
        if REGISTRIES.iter().any(named) {
            let what = "the host of a package registry: leave it to the machine's configuration";
            findings.push(Finding::new(source, number, what));
        }
    }
    findings
}

/// Where a whole word is in a line.
pub(super) fn find_word(line: &str, word: &str) -> Option<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .map(|(at, _)| at)
        .find(|at| !line[..*at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn each_rule_has_its_example() {
        let cases = [
            ("xtask/src/utils.rs", "//! A.\n", "a file called utils"),
            ("docs/a.md", "no end", "no newline"),
            ("xtask/src/a.rs", "// TODO later\n", "TODO"),
            ("docs/a.md", "FIXME\n", "FIXME"),
            ("xtask/src/a.rs", "fn a() { todo!() }\n", "todo!"),
            ("xtask/src/a.rs", "dbg!(1);\n", "dbg!"),
            ("docs/a.md", concat!("see crates", ".io\n"), "package registry"),
        ];
        for (path, text, what) in cases {
            let found = found(path, text);
            assert!(found.len() == 1 && found[0].contains(what), "{text}: {found:?}");
        }
    }

    #[test]
    fn words_are_whole_and_strings_are_no_code() {
        assert!(
            found("xtask/src/a.rs", "const A: &str = \"todo!() TODO\"; // mastodons\n").is_empty()
        );
        assert_eq!(find_word("a aya_ebpf aya::x", "aya"), Some(11));
        assert_eq!(find_word("aya_ebpf", "aya"), None);
    }
}
