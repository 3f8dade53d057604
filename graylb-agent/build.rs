//! Builds the eBPF object, which the agent carries inside it.
//!
//! Which toolchain: `GRAYLB_BPF_TOOLCHAIN` if set; else `graylb-bpf`, the name that `cargo xtask setup`
//! gives to the one it chose; else nightly if it has rust-src.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, bail};
use aya_build::{Package, Toolchain};

const EBPF: &str = "../graylb-ebpf";
const COMMON: &str = "../graylb-common";
/// aya-build's own switch, for lints: they look at no object, but the agent's source includes one.
const SKIP: &str = "AYA_BUILD_SKIP";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=GRAYLB_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed={COMMON}");
    println!("cargo:rerun-if-env-changed={SKIP}");
    if env::var_os(SKIP).is_some() {
        let object = Path::new(&env::var("OUT_DIR")?).join("graylb-ebpf");
        return fs::write(object, "").context("cannot write an empty eBPF object");
    }
    let toolchain = toolchain()?;
    let package =
        Package { name: "graylb-ebpf", root_dir: EBPF, no_default_features: false, features: &[] };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain)).with_context(|| {
        format!("the eBPF object did not build with toolchain {toolchain}; `cargo xtask setup` installs what it needs")
    })
}

fn toolchain() -> anyhow::Result<String> {
    if let Ok(name) = env::var("GRAYLB_BPF_TOOLCHAIN") {
        return Ok(name);
    }
    if sysroot("graylb-bpf").is_some() {
        return Ok("graylb-bpf".into());
    }
    if sysroot("nightly").is_some_and(|root| {
        Path::new(&root).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    }) {
        return Ok("nightly".into());
    }
    bail!("no toolchain for the BPF target: run `cargo xtask setup` once")
}

fn sysroot(toolchain: &str) -> Option<String> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
