//! The machine's only file system: busybox, graylb, the tests, the programs that these call, and their libraries.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::{Tests, kernel::Kernel};
use crate::process::{self, Stop};

/// The first process.
const INIT: &str = include_str!("guest.sh");
/// What busybox stands in for.
const APPLETS: &str = "sh mount insmod cat ls mkdir sleep poweroff grep sed tail head ps rm ln cp mv chmod uname cut sort wc kill true false sysctl timeout xargs setsid env id test stat tr find readlink seq";
/// Programs of this system that the tests call.
const PROGRAMS: [&str; 6] = ["ip", "tc", "ethtool", "nsenter", "bpftool", "curl"];
/// Modules that graylb and the tests need, in the order in which they load.
const MODULES: [&str; 6] = ["llc", "stp", "bridge", "veth", "sch_ingress", "cls_bpf"];
/// Tests that run: packets of each kind through each hook, clsact, and the real agent's switches. Emulation is
/// slow: with `--all` all packet tests run.
const TESTS: [&str; 9] = [
    "packet_tcp",
    "packet_udp",
    "packet_icmp",
    "packet_ipip",
    "packet_parse",
    "packet_mutations",
    "packet_split",
    "clsact",
    "switching",
];

/// Builds the tests and graylb; returns the test programs that run in the machine.
pub(super) fn tests(wanted: Tests) -> anyhow::Result<Vec<PathBuf>> {
    println!("vm: building graylb and the tests");
    let crates = ["--workspace", "--exclude", "graylb-ebpf"];
    let mut build = process::cargo(["build", "--quiet"].into_iter().chain(crates));
    process::quietly(&mut build, Stop::All)?;
    if wanted == Tests::None {
        return Ok(Vec::new());
    }
    let arguments = ["test", "--no-run", "--message-format=json"].into_iter().chain(crates);
    let messages = process::output(&mut process::cargo(arguments))?;
    let programs = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?;
        let is_wanted = match wanted {
            Tests::None => false,
            Tests::Some => TESTS.contains(&name),
            Tests::All => TESTS.contains(&name) || name.starts_with("packet_"),
        };
        let program = message["executable"].as_str().filter(|_| is_wanted)?;
        Some(PathBuf::from(program))
    });
    let programs: Vec<PathBuf> = programs.collect();
    if programs.is_empty() {
        bail!("cargo built no packet test");
    }
    Ok(programs)
}

/// Packs it; returns the image.
pub(super) fn build(
    kernel: &Kernel,
    tests: &[PathBuf],
    directory: &Path,
) -> anyhow::Result<PathBuf> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in ["bin", "dev", "modules", "proc", "run", "sys", "tests", "tmp", "etc"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let busybox = process::find("busybox").context("busybox is not installed")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in APPLETS.split(' ') {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let path = process::find(program).with_context(|| format!("{program} is not installed"))?;
        put(&path, &root.join("bin").join(program), &mut libraries)?;
    }
    let graylb = process::workspace().join("target/debug/graylb");
    put(&graylb, &root.join("bin/graylb"), &mut libraries)?;
    for test in tests {
        let name = test.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.rsplit_once('-').map_or(name.as_str(), |(name, _)| name).to_owned();
        put(test, &root.join("tests").join(name), &mut libraries)?;
    }
    for library in libraries {
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a library's directory")?)?;
        fs::copy(&library, place)?;
    }
    for module in MODULES {
        unpack_module(kernel, module, &root.join("modules"))?;
    }
    let image = directory.join(format!("{}.cpio", kernel.release));
    pack(&root, &image)?;
    fs::remove_dir_all(&root)?;
    Ok(image)
}

/// Copies a program without its debug information, and notes its libraries.
fn put(from: &Path, to: &Path, libraries: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let mut strip = process::command("strip");
    process::quietly(strip.arg("-o").arg(to).arg(from), Stop::All)?;
    let needed = process::output(process::command("ldd").arg(from))?;
    let paths = needed.split_whitespace().filter(|word| word.starts_with('/'));
    libraries.extend(paths.map(ToOwned::to_owned));
    Ok(())
}

/// Copies a kernel's module, unpacked. One that is built in is none.
fn unpack_module(kernel: &Kernel, name: &str, to: &Path) -> anyhow::Result<()> {
    let file = to.join(format!("{name}.ko"));
    let mut find = process::command("find");
    find.arg(&kernel.modules).args(["-name", &format!("{name}.ko*")]);
    let found = process::output(&mut find)?;
    let Some(module) = found.lines().next() else { return Ok(()) };
    if module.ends_with(".xz") {
        let mut unpack = process::command("xz");
        unpack.args(["--decompress", "--stdout", module]).stdout(File::create(file)?);
        let status = unpack.status().context("cannot run xz")?;
        if !status.success() {
            bail!("xz cannot unpack {module}: {status}");
        }
    } else {
        fs::copy(module, file)?;
    }
    Ok(())
}

fn pack(root: &Path, image: &Path) -> anyhow::Result<()> {
    let mut find = process::command("find");
    let names = process::output(find.arg(".").current_dir(root))?;
    let list = image.with_extension("list");
    fs::write(&list, names)?;
    let mut cpio = process::command("cpio");
    cpio.args(["--create", "--format=newc", "--quiet"]).current_dir(root);
    cpio.stdin(File::open(&list)?).stdout(File::create(image)?);
    let status = cpio.status().context("cannot run cpio")?;
    if !status.success() {
        bail!("cpio cannot pack {}: {status}", root.display());
    }
    fs::remove_file(list)?;
    Ok(())
}
