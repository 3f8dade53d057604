//! `cargo xtask tidy`: rules over the tracked files that neither compiler nor clippy checks. Fast, and each
//! finding says where, what, and what would do.

mod docs;
mod layers;
mod lexer;
mod shape;
mod unsafety;
mod words;

use std::{fmt, fs, path::PathBuf};

use anyhow::{Context as _, bail};

use self::lexer::Views;
use crate::process;

/// One file, as git knows it.
struct Source {
    /// From the workspace on, with slashes.
    path: String,
    text: String,
    views: Views,
}

impl Source {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let views = if path.ends_with(".rs") { Views::of(&text) } else { Views::default() };
        Self { path, text, views }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the whole file is there for tests.
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("/tests.rs")
    }

    /// Lines before the test module, if there is one at the file's end.
    fn lines_without_tests(&self) -> usize {
        let lines: Vec<&str> = self.views.code.lines().collect();
        let module = lines.windows(2).position(|pair| {
            pair[0].starts_with("#[cfg(test)]")
                && pair[1].starts_with("mod ")
                && pair[1].ends_with('{')
        });
        module.unwrap_or(lines.len())
    }
}

/// Something that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl Finding {
    /// `line` counts from 0.
    fn new(source: &Source, line: usize, what: impl Into<String>) -> Self {
        Self { path: source.path.clone(), line: line + 1, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Reports everything that is found.
pub(crate) fn check() -> anyhow::Result<()> {
    let sources = sources()?;
    let mut findings: Vec<Finding> = sources.iter().flat_map(check_one).collect();
    findings.extend(docs::check(&sources));
    findings.iter().for_each(|finding| println!("{finding}"));
    if !findings.is_empty() {
        bail!("tidy found {} things, listed above", findings.len());
    }
    println!("tidy: {} files are in order", sources.len());
    Ok(())
}

/// Writes what is generated.
pub(crate) fn fix() -> anyhow::Result<()> {
    let file = process::workspace().join(docs::VERDICTS_PAGE);
    fs::write(&file, docs::verdicts_page())
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("wrote {}", file.display());
    check()
}

fn check_one(source: &Source) -> Vec<Finding> {
    let mut findings = words::check(source);
    if source.is_rust() {
        findings.extend(layers::check(source));
        findings.extend(shape::check(source));
        findings.extend(unsafety::check(source));
    }
    findings
}

/// Tracked text files, as they are in the working tree.
fn sources() -> anyhow::Result<Vec<Source>> {
    let root = process::workspace();
    let mut git = process::command("git");
    let list = process::output(git.args(["ls-files", "-z"]).current_dir(&root))
        .context("tidy looks at what git tracks")?;
    let mut sources = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        let file: PathBuf = root.join(path);
        // A file may be deleted and not committed yet; what is no text is no concern of the rules.
        if let Ok(text) = fs::read_to_string(&file) {
            sources.push(Source::new(path, text));
        }
    }
    Ok(sources)
}
