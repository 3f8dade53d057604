//! The cgroup that the socket hook is attached to.

use std::{
    fs::{self, File},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::ApplyError;

/// Magic number of a cgroup2 file system (CGROUP2_SUPER_MAGIC, include/uapi/linux/magic.h).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// The mounts that this process sees.
const MOUNTS: &str = "/proc/self/mounts";

/// A cgroup, open.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Where it was found.
    pub(super) path: PathBuf,
    /// To attach to.
    pub(super) directory: File,
    /// The kernel's number for it.
    pub(super) id: u64,
}

impl Cgroup {
    /// The one configured, else the root of the first cgroup2 file system that is mounted.
    pub(super) fn open(configured: Option<&Path>) -> Result<Self, ApplyError> {
        let path = match configured {
            Some(path) => path.to_owned(),
            None => mounted()?,
        };
        let tried = |error| {
            ApplyError::new(
                format!("cannot open the socket hook's cgroup {}", path.display()),
                error,
            )
        };
        let directory = File::open(&path).map_err(tried)?;
        let id = directory.metadata().map_err(tried)?.ino();
        let magic = rustix::fs::fstatfs(&directory).map_err(|error| tried(error.into()))?.f_type;
        if magic as u64 & 0xffff_ffff != CGROUP2_MAGIC {
            return Err(ApplyError::text(format!(
                "the socket hook cannot be attached to {}, which is on no cgroup2 file system: {} is there to choose from, or leave socket_hook.cgroup out",
                path.display(),
                mounted().map_or_else(|_| "none".to_owned(), |there| there.display().to_string())
            )));
        }
        Ok(Self { path, directory, id })
    }
}

fn mounted() -> Result<PathBuf, ApplyError> {
    let mounts = fs::read_to_string(MOUNTS)
        .map_err(|error| ApplyError::new(format!("cannot read {MOUNTS}"), error))?;
    first_cgroup2(&mounts).ok_or_else(|| {
        ApplyError::text(
            "the socket hook needs a cgroup2 file system and none is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup`), or set socket_hook.enabled = false",
        )
    })
}

/// The first mount point of a cgroup2 file system in a table of mounts (proc_pid_mounts(5)).
fn first_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| unescaped(place))
    })
}

/// Blanks and backslashes are written as a backslash and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = (byte == b'\\')
            .then(|| std::str::from_utf8(after.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cgroup2_mount_is_found() {
        let mounts = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
            none /sys/fs/cg\\040roup cgroup2 rw 0 0\n\
            none /late cgroup2 rw 0 0\n";
        assert_eq!(first_cgroup2(mounts), Some("/sys/fs/cg roup".into()));
        assert_eq!(first_cgroup2("proc /proc proc rw 0 0\n\n"), None);
    }

    #[test]
    fn broken_escapes_stay() {
        assert_eq!(unescaped("/a\\04"), Path::new("/a\\04"));
        assert_eq!(unescaped("/a\\999b"), Path::new("/a\\999b"));
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused() {
        let error = Cgroup::open(Some(Path::new("/proc"))).expect_err("no cgroup").to_string();
        assert!(error.contains("/proc, which is on no cgroup2 file system"), "{error}");
    }
}
