//! Debian's packages: which are there, which could be, and getting them.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, bail};

use crate::process::{self, Stop};

/// apt, asked for new lists at most once.
#[derive(Default)]
pub(super) struct Apt {
    updated: bool,
}

impl Apt {
    /// Whether this machine has apt at all.
    pub(super) fn exists() -> bool {
        process::find("apt-get").is_some()
    }

    /// Versions of those of `packages` that are installed.
    pub(super) fn installed(packages: &[&str]) -> BTreeMap<String, String> {
        let mut query = process::command("dpkg-query");
        query.args(["-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]).args(packages);
        // It fails as soon as one is unknown, and still prints the others.
        let Ok(output) = query.output() else { return BTreeMap::new() };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter_map(|line| {
                let (package, version) = line.strip_prefix("installed ")?.split_once(' ')?;
                Some((package.to_owned(), version.to_owned()))
            })
            .collect()
    }

    /// The version that would be installed.
    pub(super) fn candidate(&mut self, package: &str) -> Option<String> {
        if !Self::exists() {
            return None;
        }
        self.update();
        let text = process::output(process::command("apt-cache").args(["policy", package])).ok()?;
        candidate_in(&text)
    }

    /// Installs packages, saying which and why.
    pub(super) fn install(&mut self, packages: &[&str], why: &str) -> anyhow::Result<()> {
        let list = packages.join(" ");
        let by_hand = format!("apt-get update && apt-get install --no-install-recommends {list}");
        if !Self::exists() {
            bail!(
                "{list} (Debian's names) is missing, needed {why}, and there is no apt-get here: install it by this system's own means and start again"
            );
        }
        if !rustix::process::geteuid().is_root() {
            bail!("{list} is missing, needed {why}. As root: {by_hand}");
        }
        self.update();
        println!("setup: installing {list}: {why}");
        let mut install = apt_get(&["install", "--yes", "--no-install-recommends"]);
        process::quietly(install.args(packages), Stop::Gently)
            .with_context(|| format!("cannot install {list}. By hand: {by_hand}"))
    }

    /// Fetches new lists: a new machine's are old or empty. If that fails, what is there may still do, and
    /// the installation says so if not.
    fn update(&mut self) {
        if self.updated || !rustix::process::geteuid().is_root() {
            return;
        }
        self.updated = true;
        println!("setup: apt-get update");
        if let Err(error) = process::quietly(&mut apt_get(&["update"]), Stop::Gently) {
            println!("setup: going on with the package lists that are there: {error:#}");
        }
    }
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut apt_get = process::command("apt-get");
    // Killing dpkg half-way would leave the system's packages torn, so the demo's end must not find it.
    apt_get.env_remove(process::TOKEN);
    apt_get.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    apt_get.args(["--quiet", "--option", "Dpkg::Use-Pty=0"]).args(arguments);
    apt_get
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::candidate_in;

    #[test]
    fn candidates_are_found() {
        let known =
            "llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1.8-1\n  Version table:\n";
        assert_eq!(candidate_in(known).as_deref(), Some("1:22.1.8-1"));
        assert_eq!(candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
