//! One test's corner of the machine: network namespaces, a pin directory and a directory for files, all
//! under one unique name, gone when the test ends, fails or is killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// Where BPF file systems are mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Magic number of a BPF file system (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Waits for its standard input to end, which it does with the test's process however that ends, and
/// removes everything under the name in `$1`. Signals from a terminal do not reach it.
const JANITOR: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
# Programs started a moment before may still be on their way into a namespace: look twice.
for _ in 1 2; do
    for ns in $(ip netns list | cut -d' ' -f1 | grep -E "^$1-"); do
        ip netns pids "$ns" | xargs -r kill -9
        ip netns delete "$ns"
    done
done
rm -rf "/sys/fs/bpf/$1" "$2"
"#;

/// A unique name and everything made under it.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    directory: PathBuf,
    janitor: Child,
}

impl Sandbox {
    /// A new corner. Mounts the BPF file system where there is none.
    ///
    /// # Panics
    ///
    /// The machine refuses; tests need root.
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure_bpffs();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("glbt-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).expect("make the sandbox's directory");
        let janitor = Command::new("setsid")
            .args(["--wait", "sh", "-c", JANITOR, "janitor", &name])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the janitor");
        Self { name, directory, janitor }
    }

    /// The unique name; namespaces are called this, a dash and their role.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for files, which only root can write to.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where an agent may pin; not made yet.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.name)
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        if let Err(error) = self.janitor.wait() {
            eprintln!("the janitor of {} was lost: {error}", self.name);
        }
    }
}

/// Mounts the BPF file system once, also when several test processes want it at the same time.
fn ensure_bpffs() {
    static MOUNTED: Once = Once::new();
    MOUNTED.call_once(|| {
        let lock = rustix::fs::open(BPFFS, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .expect("open /sys/fs/bpf");
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("lock /sys/fs/bpf");
        let stat = rustix::fs::statfs(BPFFS).expect("look at /sys/fs/bpf");
        if stat.f_type as u64 & 0xffff_ffff != BPF_FS_MAGIC {
            rustix::mount::mount("bpf", BPFFS, "bpf", rustix::mount::MountFlags::empty(), None)
                .expect("mount the BPF file system (are you root?)");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_behind() {
        let sandbox = Sandbox::new();
        let (name, directory, pins) =
            (sandbox.name().to_owned(), sandbox.directory().to_owned(), sandbox.pin_dir());
        let status = Command::new("ip").args(["netns", "add", &format!("{name}-a")]).status();
        assert!(status.expect("ip").success());
        fs::create_dir(&pins).expect("make the pin directory");
        drop(sandbox);
        assert!(!directory.exists() && !pins.exists());
        assert!(!Path::new("/run/netns").join(format!("{name}-a")).exists());
    }
}
