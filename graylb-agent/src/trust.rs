//! Paths that the agent believes, as root: nobody else may be able to say what is found there.
//!
//! In: a path. Out: whether each directory, link and file on the way to it belongs to root or the agent's user
//! and can be changed by nobody else. Reads metadata only.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// Most symbolic links on the way, as in the kernel (MAXSYMLINKS, include/linux/namei.h).
const MAX_LINKS: u32 = 40;
/// Mode bits: writable by group or others.
const WRITABLE: u32 = 0o022;
/// Mode bit: in a directory, only its owner renames or removes a file.
const STICKY: u32 = 0o1000;

/// Why a path is not believed, or that it cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Somebody else could change what is there.
    #[error("{part} {why}: {remedy}")]
    Untrusted {
        /// The directory, link or file on the way.
        part: PathBuf,
        /// What was found.
        why: String,
        /// What would do.
        remedy: String,
    },
    /// It cannot be looked at.
    #[error("{part}: {error}")]
    Io {
        /// The directory, link or file on the way.
        part: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Checks the way to `path`, as far as it exists. Links are followed if nobody else could have made them.
///
/// # Errors
///
/// Something on the way belongs to another user, or can be written by others; or cannot be looked at.
pub fn check(path: &Path) -> Result<(), TrustError> {
    check_for(path, rustix::process::geteuid().as_raw())
}

fn check_for(path: &Path, me: u32) -> Result<(), TrustError> {
    let absolute = std::path::absolute(path)
        .map_err(|error| TrustError::Io { part: path.to_owned(), error })?;
    let mut ahead: VecDeque<OsString> = parts(&absolute);
    let mut behind = PathBuf::from("/");
    let mut links = 0;
    check_part(&behind, me)?;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            behind.pop();
            continue;
        }
        behind.push(&part);
        let Some(metadata) = check_part(&behind, me)? else { return Ok(()) };
        if metadata.is_symlink() {
            links += 1;
            let target = fs::read_link(&behind)
                .and_then(
                    |target| if links > MAX_LINKS { Err(too_many_links()) } else { Ok(target) },
                )
                .map_err(|error| TrustError::Io { part: behind.clone(), error })?;
            behind.pop();
            if target.is_absolute() {
                behind = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                ahead.push_front(part);
            }
        }
    }
    Ok(())
}

fn too_many_links() -> io::Error {
    io::Error::from(rustix::io::Errno::LOOP)
}

/// A path's names and `..`.
fn parts(path: &Path) -> VecDeque<OsString> {
    let named = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    named.map(|part| part.as_os_str().to_owned()).collect()
}

/// Checks one file, link or directory itself; `None` where there is none.
fn check_part(part: &Path, me: u32) -> Result<Option<Metadata>, TrustError> {
    let metadata = match fs::symlink_metadata(part) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TrustError::Io { part: part.to_owned(), error }),
    };
    let untrusted = |why, remedy| Err(TrustError::Untrusted { part: part.to_owned(), why, remedy });
    let (owner, mode) = (metadata.uid(), metadata.mode());
    if owner != 0 && owner != me {
        let why = format!("belongs to user {owner}");
        return untrusted(why, format!("root or user {me} must own it"));
    }
    // In a sticky directory others can add names, but not take over ours; a link has no mode of its own.
    let shared = metadata.is_dir() && mode & STICKY != 0 || metadata.is_symlink();
    if mode & WRITABLE != 0 && !shared {
        let why = format!("can be written by others (mode {:o})", mode & 0o7777);
        return untrusted(why, "chmod go-w it".to_owned());
    }
    Ok(Some(metadata))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const ME: u32 = 0;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn why(path: &Path) -> String {
        check_for(path, ME).expect_err("untrusted").to_string()
    }

    #[test]
    fn each_part_of_the_way_counts() {
        let base = tempfile::tempdir().expect("directory");
        let directory = base.path().join("a");
        let file = directory.join("config");
        fs::create_dir(&directory).expect("directory");
        fs::write(&file, "").expect("file");
        mode(&directory, 0o755);
        mode(&file, 0o644);
        check_for(&file, ME).expect("trusted");
        check_for(&directory.join("missing").join("x"), ME)
            .expect("what is not there is no danger");
        check_for(&directory.join("..").join("a").join("config"), ME).expect("trusted");
        mode(&file, 0o664);
        assert!(why(&file).contains("config can be written by others (mode 664): chmod go-w it"));
        mode(&file, 0o600);
        mode(&directory, 0o777);
        assert!(why(&file).contains("a can be written by others (mode 777)"));
        mode(&directory, 0o1777);
        check_for(&file, ME).expect("as in /tmp");
        std::os::unix::fs::chown(&file, Some(12345), None).expect("chown");
        assert!(why(&file).contains("belongs to user 12345: root or user 0 must own it"));
        check_for(&file, 12345).expect("one's own");
    }

    #[test]
    fn links_are_followed_if_nobody_else_could_have_made_them() {
        let base = tempfile::tempdir().expect("directory");
        let at = |name: &str| base.path().join(name);
        fs::create_dir(at("open")).expect("directory");
        fs::write(at("open/config"), "").expect("file");
        symlink("open/config", at("link")).expect("link");
        symlink(at("link"), at("second")).expect("link");
        check_for(&at("second"), ME).expect("trusted");
        mode(&at("open"), 0o777);
        assert!(why(&at("second")).contains("open can be written by others"));
        mode(&at("open"), 0o755);
        std::os::unix::fs::lchown(at("link"), Some(12345), None).expect("chown");
        assert!(why(&at("second")).contains("link belongs to user 12345"));
        symlink("round", at("round")).expect("link");
        assert!(why(&at("round")).contains("round: "));
    }
}
