//! What hangs a program on a device outlives the agent: a pinned link or, by clsact, the filter itself with
//! a marker for it. Their names, what device they are on, and how they are removed.
//!
//! ```text
//! HOOK:INTERFACE         a pinned link
//! clsact_HOOK:INTERFACE  a symbolic link that holds the device's index
//! ```

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
};

use super::{ApplyError, clsact, sys};

const CLSACT: &str = "clsact_";

/// A place in the kernel where a program hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// TC, in.
    TcIn,
    /// TC, out.
    TcOut,
    /// XDP.
    Xdp,
}

impl Hook {
    /// Every hook.
    pub(super) const ALL: [Self; 3] = [Self::TcIn, Self::TcOut, Self::Xdp];

    const fn name(self) -> &'static str {
        match self {
            Self::TcIn => "tc_in",
            Self::TcOut => "tc_out",
            Self::Xdp => "xdp",
        }
    }
}

/// A pinned link or a marker, by its place in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkPin {
    /// What it hangs.
    pub(super) hook: Hook,
    /// Attached by clsact: there is no link, the pin is a marker.
    pub(super) clsact: bool,
    /// The device's name when it was attached.
    pub(super) interface: String,
    /// Where it is.
    pub(super) path: PathBuf,
}

impl LinkPin {
    /// The pin of a hook of an interface. A BPF file system takes no dots in names, interfaces do.
    pub(super) fn new(directory: &Path, hook: Hook, clsact: bool, interface: &str) -> Self {
        let prefix = if clsact { CLSACT } else { "" };
        let escaped = interface.replace('%', "%25").replace('.', "%2E");
        let path = directory.join(format!("{prefix}{}:{escaped}", hook.name()));
        Self { hook, clsact, interface: interface.to_owned(), path }
    }

    /// What a file in the directory is; `None` if it is none of graylb's.
    pub(super) fn parse(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (hook, interface) = name.split_once(':')?;
        let (clsact, hook) = match hook.strip_prefix(CLSACT) {
            Some(hook) => (true, hook),
            None => (false, hook),
        };
        let hook = Hook::ALL.into_iter().find(|known| known.name() == hook)?;
        let interface = interface.replace("%2E", ".").replace("%25", "%");
        Some(Self { hook, clsact, interface, path })
    }

    /// Index of the device that it is on; 0: none any more, or it cannot be told.
    pub(super) fn device(&self) -> u32 {
        if self.clsact {
            let target = fs::read_link(&self.path).ok();
            return target.and_then(|index| index.to_str()?.parse().ok()).unwrap_or(0);
        }
        sys::open_pinned(&self.path).and_then(|link| link_device(&link)).unwrap_or(0)
    }

    /// Writes down that the device with this index has our filter.
    pub(super) fn mark(&self, device: u32) -> Result<(), ApplyError> {
        let tried = |error| ApplyError::new(format!("cannot make {}", self.path.display()), error);
        if self.device() == device {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(tried(error)),
            Ok(()) | Err(_) => {}
        }
        symlink(device.to_string(), &self.path).map_err(tried)
    }

    /// Takes the program off the device.
    pub(super) fn remove(&self) -> Result<(), ApplyError> {
        if self.clsact {
            clsact::detach(self.device(), self.hook)?;
        }
        fs::remove_file(&self.path).map_err(|error| {
            ApplyError::new(format!("cannot remove {}", self.path.display()), error)
        })
    }
}

/// Index of the device that a link is on, from what the kernel tells about its descriptor
/// (`bpf_xdp_link_show_fdinfo`, net/core/dev.c; `tcx_link_fdinfo`, kernel/bpf/tcx.c).
fn link_device(link: &OwnedFd) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    let index = text.lines().find_map(|line| line.strip_prefix("ifindex:")?.trim().parse().ok());
    index.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for interface in ["lo", "eth0.100", "a%2Eb", "veth1:x"] {
            for hook in Hook::ALL {
                for clsact in [false, true] {
                    let pin = LinkPin::new(Path::new("/d"), hook, clsact, interface);
                    assert!(!pin.path.to_str().expect("text").contains('.'));
                    assert_eq!(LinkPin::parse(pin.path.clone()), Some(pin));
                }
            }
        }
        assert_eq!(LinkPin::parse("/d/other:lo".into()), None);
        assert_eq!(LinkPin::parse("/d/lo".into()), None);
        for program in graylb_common::maps::SOCKET_PROGRAMS {
            assert_eq!(LinkPin::parse(format!("/d/{program}:cgroup-1").into()), None);
        }
    }
}
