//! bpf-linker, which must speak the compiler's LLVM.

use std::{env, path::PathBuf};

use anyhow::bail;

use super::apt::Apt;
use crate::process::{self, Stop};

/// The version that is installed where none fits.
const VERSION: &str = "0.13.0";
/// LLVM majors that this version can be built for (its features).
const LLVM_MAJORS: [u32; 3] = [21, 22, 23];

/// Whether there is a bpf-linker for this LLVM, or could be.
pub(super) fn possible(llvm: u32, apt: &mut Apt) -> bool {
    fits(llvm)
        || LLVM_MAJORS.contains(&llvm)
            && (llvm_prefix(llvm).is_some() || apt.candidate(&format!("llvm-{llvm}-dev")).is_some())
}

/// Builds bpf-linker if none that fits is there.
pub(super) fn ensure(llvm: u32, apt: &mut Apt) -> anyhow::Result<()> {
    if fits(llvm) {
        return Ok(());
    }
    if !LLVM_MAJORS.contains(&llvm) {
        bail!(
            "the BPF compiler speaks LLVM {llvm}, and bpf-linker {VERSION} is for {LLVM_MAJORS:?}: install a bpf-linker for LLVM {llvm} by hand"
        );
    }
    let package = format!("llvm-{llvm}-dev");
    let needed = [package.as_str(), "libzstd-dev"];
    let present = Apt::installed(&needed);
    let missing: Vec<&str> =
        needed.into_iter().filter(|name| !present.contains_key(*name)).collect();
    if Apt::exists() && !missing.is_empty() {
        apt.install(&missing, "to build bpf-linker")?;
    }
    let Some(prefix) = llvm_prefix(llvm) else {
        bail!("LLVM {llvm} with its headers is not in /usr/lib/llvm-{llvm}: install {package}");
    };
    let found = process::find("bpf-linker").map_or("there is none".to_owned(), |file| {
        format!("the one at {} is for another LLVM and is replaced", file.display())
    });
    println!("setup: building bpf-linker {VERSION} for LLVM {llvm} (a minute or two): {found}");
    let mut install = process::cargo(["install", "bpf-linker", "--version", VERSION, "--locked"]);
    install.args(["--force", "--no-default-features", "--features", &format!("llvm-{llvm}")]);
    // Without it the build looks in /usr/lib64.
    install.env("LLVM_PREFIX", prefix);
    process::quietly(&mut install, Stop::All)?;
    if !fits(llvm) {
        let found = process::find("bpf-linker").unwrap_or_default();
        bail!(
            "bpf-linker is built, but PATH leads to {}, which is for another LLVM: remove that one",
            found.display()
        );
    }
    Ok(())
}

/// Whether the bpf-linker in PATH runs and is linked with this LLVM.
fn fits(llvm: u32) -> bool {
    let Some(linker) = process::find("bpf-linker") else { return false };
    let runs = process::output(process::command(&linker).arg("--version")).is_ok();
    let libraries = process::output(process::command("ldd").arg(&linker)).unwrap_or_default();
    runs && links(&libraries, llvm)
}

/// Whether `ldd` found this LLVM. One that has LLVM inside names none, and is taken on trust.
fn links(libraries: &str, llvm: u32) -> bool {
    let names = [format!("libLLVM.so.{llvm}"), format!("libLLVM-{llvm}.so")];
    !libraries.contains("libLLVM")
        || libraries.lines().any(|line| {
            !line.contains("not found") && names.iter().any(|name| line.trim().starts_with(name))
        })
}

/// Where this LLVM is, with its headers.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let given = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let prefix = given.unwrap_or_else(|| format!("/usr/lib/llvm-{llvm}").into());
    prefix.join("include/llvm-c").exists().then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::links;

    #[test]
    fn the_linked_llvm_decides() {
        let shared = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f5363400000)\n\tlibc.so.6 => /lib/libc.so.6\n";
        assert!(links(shared, 22));
        assert!(!links(shared, 21));
        assert!(!links("\tlibLLVM.so.22.1 => not found\n", 22));
        assert!(links("\tlibc.so.6 => /lib/libc.so.6\n", 22));
    }
}
