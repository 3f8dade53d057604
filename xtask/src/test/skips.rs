//! Tests that did not run, against the list of those that need not.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, bail};

use crate::process;

/// Where tests write which of them skipped and why: `NAME: WHY`, a line each.
const VARIABLE: &str = "GRAYLB_SKIP_LOG";
/// Tests that may skip: `NAME: WHY`, a line each.
const ALLOWED: &str = "tests/allowed-skips.txt";

/// The log of one run.
pub(super) struct Log {
    file: PathBuf,
}

impl Log {
    pub(super) fn new() -> anyhow::Result<Self> {
        let file = process::workspace().join("target/skipped-tests.txt");
        let directory = file.parent().context("the log has no directory")?;
        fs::create_dir_all(directory)?;
        fs::write(&file, "").with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { file })
    }

    pub(super) fn pass_to(&self, command: &mut Command) {
        command.env(VARIABLE, &self.file);
    }

    /// Fails if a test did not run that is not on the list.
    pub(super) fn check(&self, lines: &[String]) -> anyhow::Result<()> {
        let logged = fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let skipped: Vec<String> = logged
            .lines()
            .map(str::to_owned)
            .chain(lines.iter().filter_map(|line| ignored(line)))
            .collect();
        skipped.iter().for_each(|line| println!("SKIPPED: {line}"));
        let allowed = fs::read_to_string(process::workspace().join(ALLOWED))
            .with_context(|| format!("cannot read {ALLOWED}"))?;
        let unexpected = not_allowed(&skipped, &allowed);
        if !unexpected.is_empty() {
            bail!(
                "tests did not run: {}. Make them run, or list them in {ALLOWED}",
                unexpected.join("; ")
            );
        }
        Ok(())
    }
}

/// The test that the harness ignored, if a line says so.
fn ignored(line: &str) -> Option<String> {
    let (name, why) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some(format!("{name}: ignored{why}"))
}

fn not_allowed<'a>(skipped: &'a [String], allowed: &str) -> Vec<&'a str> {
    let name = |line: &str| line.split_once(": ").map_or(line, |(name, _)| name).trim().to_owned();
    let allowed: Vec<String> =
        allowed.lines().filter(|line| !line.starts_with('#')).map(name).collect();
    skipped.iter().map(String::as_str).filter(|line| !allowed.contains(&name(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::{ignored, not_allowed};

    #[test]
    fn only_listed_tests_may_skip() {
        let skipped = ["xdp::native: no such driver".to_owned(), "ipv6::all: no IPv6".to_owned()];
        let allowed = "# why\nxdp::native: virtio only\n";
        assert_eq!(not_allowed(&skipped, allowed), ["ipv6::all: no IPv6"]);
        assert!(not_allowed(&skipped[..1], allowed).is_empty());
    }

    #[test]
    fn ignored_tests_are_skipped_tests() {
        assert_eq!(ignored("test a::b ... ignored, slow").as_deref(), Some("a::b: ignored, slow"));
        assert_eq!(ignored("test a::b ... ok"), None);
    }
}
