//! The pin directory: where maps, programs and links live between two agents.
//!
//! ```text
//! PIN_DIR/abi-N/maps/NAME  .../programs/NAME  .../links/...
//! ```
//!
//! [`super::links`] has the names of interfaces' links; PROGRAM:cgroup-ID is one of the socket hook.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::Program};
use graylb_common::{abi::ABI_VERSION, maps::SOCKET_PROGRAMS};
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    mount::MountFlags,
};

use super::{
    ApplyError,
    links::{Hook, LinkPin},
};
use crate::{config::MapSize, trust};

/// Where BPF file systems are mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Magic number of a BPF file system (BPF_FS_MAGIC, include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const ABI_PREFIX: &str = "abi-";

/// An open, locked pin directory.
#[derive(Debug)]
pub(super) struct Pins {
    base: PathBuf,
    root: PathBuf,
    fresh: bool,
    _lock: OwnedFd,
}

impl Pins {
    /// Makes the directories and takes the lock, which ends with the process.
    pub(super) fn open(base: &Path) -> Result<Self, ApplyError> {
        ensure_bpffs(base)?;
        make_dir(base)?;
        check_owner(base)?;
        let lock = lock(base)?;
        refuse_other_abi(base)?;
        let root = base.join(format!("{ABI_PREFIX}{ABI_VERSION}"));
        let fresh = !root.exists();
        for dir in [root.clone(), root.join("maps"), root.join("programs"), root.join("links")] {
            make_dir(&dir)?;
        }
        Ok(Self { base: base.to_owned(), root, fresh, _lock: lock })
    }

    /// Where the maps are pinned, by their names.
    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The pin of a hook of an interface.
    pub(super) fn link(&self, hook: Hook, clsact: bool, interface: &str) -> LinkPin {
        LinkPin::new(&self.root.join("links"), hook, clsact, interface)
    }

    /// Every pinned link and marker.
    pub(super) fn links(&self) -> Result<Vec<LinkPin>, ApplyError> {
        let directory = self.root.join("links");
        let names = names(&directory)?;
        Ok(names.iter().filter_map(|name| LinkPin::parse(directory.join(name))).collect())
    }

    /// Pinned links and markers of an interface.
    pub(super) fn links_of(&self, interface: &str) -> impl Iterator<Item = LinkPin> {
        let any = [false, true].into_iter().flat_map(|by| Hook::ALL.map(|hook| (hook, by)));
        any.map(move |(hook, clsact)| self.link(hook, clsact, interface))
            .filter(|pin| fs::symlink_metadata(&pin.path).is_ok())
    }

    /// Where a link of the socket hook is pinned. The cgroup's number tells whether a pinned link is to
    /// the cgroup that is wanted.
    pub(super) fn socket_link(&self, program: &str, cgroup: u64) -> PathBuf {
        self.root.join("links").join(format!("{program}:cgroup-{cgroup}"))
    }

    /// Checks the pinned maps against what this agent wants of them. A map of another size is kept, and
    /// said so.
    pub(super) fn check_maps(&self, sizes: &[MapSize]) -> Result<Vec<String>, ApplyError> {
        let mut notes = Vec::new();
        for MapSize { name, entries: wanted, .. } in sizes {
            let path = self.map(name);
            if !path.exists() {
                continue;
            }
            let info = MapInfo::from_pin(&path).map_err(|error| {
                ApplyError::new(format!("cannot open the pinned map {}", path.display()), error)
            })?;
            if info.max_entries() != *wanted {
                notes.push(format!(
                    "map {name} keeps its {} entries, the config says {wanted}: what is in it is in use; `graylb unload` and a new start change its size",
                    info.max_entries()
                ));
            }
        }
        Ok(notes)
    }

    /// Pins a program under `name` in place of the one before.
    pub(super) fn replace_program(
        &self,
        program: &mut Program,
        name: &str,
    ) -> Result<(), ApplyError> {
        let path = self.root.join("programs").join(name);
        let tried = || format!("cannot pin the program {}", path.display());
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(ApplyError::new(tried(), error));
        }
        program.pin(&path).map_err(|error| ApplyError::new(tried(), error))
    }

    /// Removes every pinned link of the socket hook but these, first what steers.
    pub(super) fn remove_other_socket_links(&self, wanted: &[PathBuf]) -> Result<(), ApplyError> {
        let links = self.socket_links()?;
        links
            .iter()
            .filter(|path| !wanted.contains(path))
            .for_each(|path| self.remove_socket_link(path));
        Ok(())
    }

    /// Whether the socket hook is attached anywhere.
    pub(super) fn has_socket_links(&self) -> Result<bool, ApplyError> {
        self.socket_links().map(|links| !links.is_empty())
    }

    /// Every pinned link of the socket hook, first what steers.
    fn socket_links(&self) -> Result<Vec<PathBuf>, ApplyError> {
        let directory = self.root.join("links");
        let names = link_names(&directory)?;
        let of_sockets = names.iter().filter(|name| socket_program(name).is_some());
        Ok(of_sockets.map(|name| directory.join(name)).collect())
    }

    /// Removes one pinned link of the socket hook.
    pub(super) fn remove_socket_link(&self, path: &Path) {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!("cannot detach {}: {error}", path.display());
        }
    }

    /// Removes the pins of programs that are not attached any more.
    pub(super) fn remove_programs(&self, names: &[&str]) {
        for name in names {
            let path = self.root.join("programs").join(name);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }

    /// Removes everything if this process made it.
    pub(super) fn abandon_if_fresh(&self) {
        if self.fresh {
            let mut removed = Vec::new();
            if let Err(error) = remove_all(&self.base, &mut removed) {
                tracing::warn!("{error}");
            }
        }
    }
}

/// The place in [`SOCKET_PROGRAMS`] of the program that a pinned link is named after.
fn socket_program(link: &str) -> Option<usize> {
    let (program, _) = link.split_once(':')?;
    SOCKET_PROGRAMS.iter().position(|name| *name == program)
}

/// Names in a directory of links in the order in which they are to be removed: those of the socket hook,
/// first what steers, then those of interfaces.
fn link_names(directory: &Path) -> Result<Vec<String>, ApplyError> {
    let mut names = names(directory)?;
    names.sort_by_key(|name| std::cmp::Reverse(socket_program(name)));
    Ok(names)
}

/// What [`unload`] removed, a line each.
pub type UnloadReport = Vec<String>;

/// Removes everything below `pin_dir`, whatever its ABI version: links first, which detaches them. Nothing
/// there is no error.
///
/// # Errors
///
/// An agent is running on the pins; the directory is none of graylb's; something cannot be removed.
pub fn unload(pin_dir: &Path) -> Result<UnloadReport, ApplyError> {
    let mut removed = Vec::new();
    if !pin_dir.exists() {
        return Ok(removed);
    }
    let _lock = lock(pin_dir)?;
    remove_all(pin_dir, &mut removed)?;
    Ok(removed)
}

fn remove_all(base: &Path, removed: &mut UnloadReport) -> Result<(), ApplyError> {
    let mut roots = Vec::new();
    for name in names(base)? {
        if !name.starts_with(ABI_PREFIX) {
            return Err(ApplyError::text(format!(
                "{} holds {name}, which is not graylb's: nothing removed there",
                base.display()
            )));
        }
        roots.push(base.join(name));
    }
    for root in roots {
        for (kind, what) in [("links", "detached"), ("programs", "program"), ("maps", "map")] {
            let dir = root.join(kind);
            let found = if kind == "links" { link_names(&dir) } else { names(&dir) };
            for name in found? {
                let path = dir.join(&name);
                match LinkPin::parse(path.clone()).filter(|_| kind == "links") {
                    Some(link) => link.remove()?,
                    None => remove(&path, fs::remove_file)?,
                }
                removed.push(format!("{what} {}", name.replace("%2E", ".").replace("%25", "%")));
            }
            if dir.exists() {
                remove(&dir, fs::remove_dir)?;
            }
        }
        remove(&root, fs::remove_dir)?;
    }
    remove(base, fs::remove_dir)
}

fn remove(path: &Path, how: fn(PathBuf) -> io::Result<()>) -> Result<(), ApplyError> {
    how(path.to_owned())
        .map_err(|error| ApplyError::new(format!("cannot remove {}", path.display()), error))
}

/// Names in a directory; none where there is no directory.
fn names(dir: &Path) -> Result<Vec<String>, ApplyError> {
    let tried = |error| ApplyError::new(format!("cannot read {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(tried(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(tried)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn refuse_other_abi(base: &Path) -> Result<(), ApplyError> {
    let mine = format!("{ABI_PREFIX}{ABI_VERSION}");
    match names(base)?.into_iter().find(|name| *name != mine) {
        None => Ok(()),
        Some(other) => Err(ApplyError::text(format!(
            "{} holds pins of {other}, and this graylb speaks {mine}. They go on moving traffic. Either run the graylb that made them, or run `graylb unload --pin-dir {}`, which ends their flows, and start again",
            base.display(),
            base.display()
        ))),
    }
}

/// Takes the directory's lock.
fn lock(base: &Path) -> Result<OwnedFd, ApplyError> {
    let tried = || format!("cannot lock {}", base.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = rustix::fs::open(base, flags, Mode::empty())
        .map_err(|error| ApplyError::new(tried(), error))?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ApplyError::text(format!(
            "another graylb agent is running on {}: stop it first, or give this one another agent.pin_dir",
            base.display()
        ))),
        Err(error) => Err(ApplyError::new(tried(), error)),
    }
}

fn make_dir(path: &Path) -> Result<(), ApplyError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(ApplyError::new(format!("cannot make {}", path.display()), error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Mounts a BPF file system at /sys/fs/bpf if `base` needs it there and there is none.
fn ensure_bpffs(base: &Path) -> Result<(), ApplyError> {
    let parent = base.parent().filter(|parent| parent.is_absolute()).ok_or_else(|| {
        ApplyError::text(format!("agent.pin_dir {} is not an absolute path", base.display()))
    })?;
    if !is_bpffs(parent) && parent == Path::new(BPFFS) {
        rustix::mount::mount("bpf", BPFFS, "bpf", MountFlags::empty(), None).map_err(|error| {
            ApplyError::new(
                format!("cannot mount a BPF file system at {BPFFS} (are you root?)"),
                error,
            )
        })?;
    }
    if !is_bpffs(parent) {
        return Err(ApplyError::text(format!(
            "{} is not on a BPF file system, so agent.pin_dir cannot be {}: use a directory in {BPFFS}",
            parent.display(),
            base.display()
        )));
    }
    Ok(())
}

/// Refuses pins that somebody else could replace.
fn check_owner(base: &Path) -> Result<(), ApplyError> {
    let refused =
        |why: String| ApplyError::text(format!("agent.pin_dir {}: {why}", base.display()));
    trust::check(base).map_err(|error| refused(error.to_string()))?;
    let owner = fs::symlink_metadata(base)
        .map_err(|error| ApplyError::new(format!("cannot read {}", base.display()), error))?
        .uid();
    let me = rustix::process::geteuid().as_raw();
    if owner == me {
        return Ok(());
    }
    Err(refused(format!("belongs to user {owner}, not to the agent's user {me}")))
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}
