//! `cargo xtask setup`: finds out what is missing, installs only that, and says what and why.
//!
//! A machine needs rustup's stable toolchain, a C linker and git to get here. The rest is installed from
//! the system's packages and with cargo. Nothing is asked of the network when nothing is missing.

mod apt;
mod linker;
mod toolchain;

use std::path::Path;

use anyhow::{Context as _, bail};

use self::{apt::Apt, toolchain::Kind};
use crate::process;

pub(crate) use self::toolchain::{BPF_TOOLCHAIN, needs_build_std, sysroot};

/// What is about to be done; each includes the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Build graylb.
    Build,
    /// Run the demo.
    Demo,
    /// Run the tests and checks.
    Test,
    /// Try other kernels.
    Vm,
}

/// A program that is needed, and the package that Debian has it in.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: Purpose,
    why: &'static str,
}

const TOOLS: [Tool; 17] = [
    Tool { program: "cc", package: "gcc libc6-dev", purpose: Purpose::Build, why: "to link" },
    Tool { program: "curl", package: "curl", purpose: Purpose::Demo, why: "to ask and to switch" },
    Tool {
        program: "ss",
        package: "iproute2",
        purpose: Purpose::Demo,
        why: "to see who has a port",
    },
    Tool { program: "bpftool", package: "bpftool", purpose: Purpose::Demo, why: "to look at maps" },
    Tool {
        program: "ip",
        package: "iproute2",
        purpose: Purpose::Test,
        why: "for network namespaces",
    },
    Tool { program: "ethtool", package: "ethtool", purpose: Purpose::Test, why: "for offloads" },
    Tool { program: "setsid", package: "util-linux", purpose: Purpose::Test, why: "for janitors" },
    Tool {
        program: "nsenter",
        package: "util-linux",
        purpose: Purpose::Test,
        why: "for network namespaces",
    },
    Tool {
        program: "tc",
        package: "iproute2",
        purpose: Purpose::Test,
        why: "to see what is attached",
    },
    Tool { program: "kill", package: "procps", purpose: Purpose::Test, why: "to send signals" },
    Tool {
        program: "strace",
        package: "strace",
        purpose: Purpose::Test,
        why: "to kill the agent at each step",
    },
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: Purpose::Vm,
        why: "to boot other kernels",
    },
    Tool { program: "busybox", package: "busybox-static", purpose: Purpose::Vm, why: "for them" },
    Tool { program: "cpio", package: "cpio", purpose: Purpose::Vm, why: "to pack their files" },
    Tool { program: "xz", package: "xz-utils", purpose: Purpose::Vm, why: "to unpack modules" },
    Tool { program: "strip", package: "binutils", purpose: Purpose::Vm, why: "for small files" },
    Tool { program: "xargs", package: "findutils", purpose: Purpose::Test, why: "for janitors" },
];

/// Installs what `purpose` needs and is missing.
pub(crate) fn run(purpose: Purpose) -> anyhow::Result<()> {
    let mut apt = Apt::default();
    if process::find("rustup").is_none() {
        bail!(
            "rustup is not in PATH or ~/.cargo/bin, and the eBPF programs are built through it: install rustup with its stable toolchain first"
        );
    }
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| tool.purpose <= purpose && process::find(tool.program).is_none())
        .collect();
    if !missing.is_empty() {
        let why: Vec<String> =
            missing.iter().map(|tool| format!("{} {}", tool.program, tool.why)).collect();
        let mut packages: Vec<&str> =
            missing.iter().flat_map(|tool| tool.package.split(' ')).collect();
        packages.sort_unstable();
        packages.dedup();
        apt.install(&packages, &why.join(", "))?;
    }
    let bpf = toolchain::choose(&mut apt)?;
    println!("setup: eBPF: {}", bpf.reason);
    if purpose >= Purpose::Test {
        components()?;
        clippy_for_bpf(bpf.kind, &mut apt)?;
    }
    Ok(())
}

/// What the checks of the host's crates need.
fn components() -> anyhow::Result<()> {
    for (component, check) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if process::output(&mut process::cargo([check, "--version"])).is_ok() {
            continue;
        }
        println!("setup: rustup component {component}, for the checks");
        let mut rustup = process::command("rustup");
        rustup.args(["component", "add", component]);
        process::quietly(&mut rustup, process::Stop::All).with_context(|| {
            format!(
                "the toolchain has no {component} and rustup cannot add it: install a toolchain of rustup's default profile, which carries it"
            )
        })?;
    }
    Ok(())
}

/// Clippy for the compiler that builds the eBPF programs.
fn clippy_for_bpf(kind: Kind, apt: &mut Apt) -> anyhow::Result<()> {
    let Some(root) = sysroot(BPF_TOOLCHAIN) else { return Ok(()) };
    if Path::new(&root).join("bin/clippy-driver").exists() {
        return Ok(());
    }
    match kind {
        Kind::Packaged => apt.install(&["rust-web-clippy"], "clippy for the eBPF programs"),
        Kind::Nightly => {
            let name = Path::new(&root).file_name().unwrap_or_default().to_string_lossy();
            let mut rustup = process::command("rustup");
            rustup.args(["component", "add", "clippy", "--toolchain", &*name]);
            println!("setup: clippy of {name}, for the eBPF programs");
            process::quietly(&mut rustup, process::Stop::All)
        }
    }
}
