//! Which compiler builds the eBPF programs. Whichever it is gets the name [`BPF_TOOLCHAIN`] with rustup,
//! which is where graylb-agent's build script looks.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::{apt::Apt, linker};
use crate::process::{self, Stop};

/// The chosen toolchain's name.
pub(crate) const BPF_TOOLCHAIN: &str = "graylb-bpf";

/// Debian's compiler, cargo, and core for the BPF target, which need no nightly.
const PACKAGED: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Where those are.
const PACKAGED_SYSROOT: &str = "/usr";
/// The oldest compiler that takes graylb.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Where the BPF target's core comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Built from rust-src by a nightly.
    Nightly,
    /// Prebuilt, in the system's packages.
    Packaged,
}

/// What was taken and why.
pub(super) struct Choice {
    pub(super) kind: Kind,
    pub(super) reason: String,
}

/// Takes what is linked already; else a nightly with rust-src, the usual way; else Debian's packages.
pub(super) fn choose(apt: &mut Apt) -> anyhow::Result<Choice> {
    if let Some(compiler) = sysroot(BPF_TOOLCHAIN).as_deref().and_then(Compiler::at) {
        linker::ensure(compiler.llvm, apt)?;
        let reason = format!("{} as {BPF_TOOLCHAIN}, as before", compiler.describe());
        return Ok(Choice { kind: compiler.kind, reason });
    }
    let mut why_not = "no nightly toolchain with rust-src".to_owned();
    for name in nightlies()? {
        let Some(compiler) = sysroot(&name).as_deref().and_then(Compiler::at) else { continue };
        if !linker::possible(compiler.llvm, apt) {
            why_not = format!("no bpf-linker for LLVM {} of {name}", compiler.llvm);
            continue;
        }
        linker::ensure(compiler.llvm, apt)?;
        link(&compiler.sysroot)?;
        let reason = format!("{}, the usual way: it has rust-src", compiler.describe());
        return Ok(Choice { kind: compiler.kind, reason });
    }
    install_packaged(apt, &why_not)?;
    let compiler = Compiler::at(PACKAGED_SYSROOT)
        .context("the packages are installed, but /usr/bin/rustc knows no BPF target")?;
    linker::ensure(compiler.llvm, apt)?;
    link(PACKAGED_SYSROOT)?;
    let reason = format!("{}, since there is {why_not}", compiler.describe());
    Ok(Choice { kind: compiler.kind, reason })
}

/// A compiler that can build for BPF.
struct Compiler {
    sysroot: String,
    kind: Kind,
    release: String,
    llvm: u32,
}

impl Compiler {
    /// The compiler under a sysroot, if it has a core for BPF or the source of one.
    fn at(sysroot: &str) -> Option<Self> {
        let root = Path::new(sysroot);
        let version = process::output(process::command(root.join("bin/rustc")).arg("-vV")).ok()?;
        let release = field(&version, "release")?.to_owned();
        let llvm = field(&version, "LLVM version")?.split('.').next()?.parse().ok()?;
        let rustlib = root.join("lib/rustlib");
        let kind = if rustlib.join("bpfel-unknown-none").exists() {
            Kind::Packaged
        } else if release.contains("nightly")
            && rustlib.join("src/rust/library/core/Cargo.toml").exists()
        {
            Kind::Nightly
        } else {
            return None;
        };
        Some(Self { sysroot: sysroot.to_owned(), kind, release, llvm })
    }

    fn describe(&self) -> String {
        let Self { sysroot, release, llvm, kind } = self;
        let kind = match kind {
            Kind::Nightly => "rustup's",
            Kind::Packaged => "the system's",
        };
        format!("{kind} rustc {release} (LLVM {llvm}) in {sysroot}")
    }
}

/// Where a toolchain of rustup's is, if it is there.
pub(crate) fn sysroot(toolchain: &str) -> Option<String> {
    let mut rustup = process::command("rustup");
    rustup.args(["run", toolchain, "rustc", "--print", "sysroot"]);
    process::output(&mut rustup).ok().map(|root| root.trim().to_owned())
}

/// Whether the compiler under a sysroot builds core for BPF itself.
pub(crate) fn needs_build_std(sysroot: &str) -> bool {
    Compiler::at(sysroot).is_some_and(|compiler| compiler.kind == Kind::Nightly)
}

fn nightlies() -> anyhow::Result<Vec<String>> {
    let list = process::output(process::command("rustup").args(["toolchain", "list"]))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect())
}

fn link(sysroot: &str) -> anyhow::Result<()> {
    println!("setup: naming the compiler in {sysroot} {BPF_TOOLCHAIN} with rustup");
    let mut rustup = process::command("rustup");
    process::quietly(rustup.args(["toolchain", "link", BPF_TOOLCHAIN, sysroot]), Stop::All)
}

fn install_packaged(apt: &mut Apt, why_not: &str) -> anyhow::Result<()> {
    let installed = Apt::installed(&PACKAGED);
    let new_enough = installed.get(PACKAGED[0]).is_some_and(|version| at_least(version, OLDEST));
    if new_enough && installed.len() == PACKAGED.len() {
        return Ok(());
    }
    let by_hand = "rustup toolchain install nightly --component rust-src";
    if !Apt::exists() {
        bail!(
            "no compiler for the BPF target: {why_not}, and no apt-get to install Debian's with. Install one by hand ({by_hand}) and start again"
        );
    }
    if rustix::process::geteuid().is_root() {
        match apt.candidate(PACKAGED[0]) {
            Some(version) if at_least(&version, OLDEST) => {}
            found => {
                let found = found.map_or("none".into(), |version| format!("only {version}"));
                bail!(
                    "no compiler for the BPF target: {why_not}, and of the package {} APT offers {found}, where {OLDEST} or later is needed. Debian's security suite (for example bookworm-security) has one: add it to APT's sources; or {by_hand}",
                    PACKAGED[0]
                );
            }
        }
    }
    apt.install(&PACKAGED, &format!("a compiler for the BPF target ({why_not})"))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Compares the first two numbers of versions.
fn at_least(version: &str, oldest: &str) -> bool {
    let numbers = |text: &str| {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    numbers(version).is_some_and(|version| numbers(oldest).is_some_and(|oldest| version >= oldest))
}

#[cfg(test)]
mod tests {
    use super::{at_least, field};

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("1.96.0+dfsg1-1~deb12u2", "1.95"));
        assert!(at_least("1.100.0", "1.95"));
        assert!(!at_least("1.85.0+dfsg3-1~deb12u3", "1.95"));
        assert!(!at_least("(none)", "1.95"));
    }

    #[test]
    fn fields_are_found() {
        let text = "binary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(field(text, "LLVM version"), Some("22.1.8"));
        assert_eq!(field(text, "host"), None);
    }
}
