//! Debian's kernel packages, unpacked and not installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::process;

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// The image to boot.
    pub(super) image: PathBuf,
    /// Where its modules are.
    pub(super) modules: PathBuf,
}

/// Gets the newest kernel of a series (as in `6.1`) that this system's package lists have.
pub(super) fn newest(series: &str, directory: &Path) -> anyhow::Result<Kernel> {
    let pattern = format!("^linux-image-{}\\.[0-9].*-cloud-amd64$", series.replace('.', "\\."));
    let mut search = process::command("apt-cache");
    let found = process::output(search.args(["search", "--names-only", &pattern]))?;
    let packages = found.lines().filter_map(|line| line.split(' ').next());
    let Some(package) = packages.max_by_key(|package| numbers(package)) else {
        bail!(
            "the package lists have no kernel {series} (linux-image-{series}.*-cloud-amd64): apt-get update, or name another series"
        );
    };
    let release = package.trim_start_matches("linux-image-").to_owned();
    let unpacked = directory.join(package);
    if !unpacked.join("boot").exists() {
        println!("vm: getting {package}");
        let mut download = process::command("apt-get");
        download.args(["download", "--quiet", package]).current_dir(directory);
        process::quietly(&mut download, process::Stop::All)?;
        let deb = fs::read_dir(directory)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
            })
            .with_context(|| format!("apt-get download left no {package}_*.deb"))?;
        let mut unpack = process::command("dpkg-deb");
        process::quietly(unpack.arg("--extract").arg(&deb).arg(&unpacked), process::Stop::All)?;
        fs::remove_file(deb)?;
    }
    Ok(Kernel {
        image: unpacked.join(format!("boot/vmlinuz-{release}")),
        modules: unpacked.join(format!("lib/modules/{release}/kernel")),
        release,
    })
}

/// The numbers in a package's name: the newest has the highest.
fn numbers(package: &str) -> Vec<u64> {
    package.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn newer_packages_have_higher_numbers() {
        let name = |version: &str| format!("linux-image-{version}-cloud-amd64");
        assert!(numbers(&name("6.1.0-56")) > numbers(&name("6.1.0-9")));
        assert!(numbers(&name("6.12.117+deb12")) > numbers(&name("6.12.99+deb12")));
    }
}
