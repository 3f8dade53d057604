//! Where the `graylb` binary is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// The `graylb` binary beside this test's executable, built if it is missing or older than its sources:
/// cargo builds a package's binaries for its own tests only. `GRAYLB_BINARY` names it where there is no cargo.
pub(crate) static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(binary) = std::env::var_os("GRAYLB_BINARY") {
        return binary.into();
    }
    let test = std::env::current_exe().expect("this executable's path");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let binary = profile.join("graylb");
    if !is_fresh(&binary) {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "graylb-agent", "--bin", "graylb"]);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        if profile.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        assert!(build.status().expect("run cargo").success(), "graylb does not build");
    }
    binary
});

/// Whether the binary is at least as new as every file that cargo made it from, by its dep-info.
fn is_fresh(binary: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let Some(built) = modified(binary) else { return false };
    let Ok(sources) = fs::read_to_string(binary.with_extension("d")) else { return false };
    let sources = sources.split_once(": ").unwrap_or_default().1;
    // Blanks in paths are escaped; such a checkout is built once for each test executable.
    sources.split_whitespace().all(|path| modified(Path::new(path)).is_some_and(|t| t <= built))
}
