//! Kernel calls that neither aya nor rustix has.
#![expect(unsafe_code, reason = "system calls take pointers, and return descriptors as numbers")]

use std::{
    ffi::CString,
    io,
    net::UdpSocket,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_OBJ_GET` and `BPF_LINK_UPDATE` of bpf(2) (enum bpf_cmd, include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;
/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h, since Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjectGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_UPDATE` reads.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// bpf(2). The kernel may change `attributes`, also where it returns an error.
///
/// # Safety
///
/// `T` is the part of `union bpf_attr` that belongs to `command`, without padding, and every pointer in it is
/// to memory that lives over the call and that the command may read or write as far as it says.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's; the size of what the pointer leads to is passed with it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a pinned object. aya does so too, but lets nobody see the descriptor.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let mut get = ObjectGet { pathname: pathname.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the command's attributes; it reads a string that ends and lives over the call.
    let object = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    let object = libc::c_int::try_from(object).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just made for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Puts `program` in the place of the one that the link pinned at `path` holds; nothing happens in
/// between that sees neither.
///
/// # Errors
///
/// `NotFound`: there is no link at `path`. `ENOLINK`: what the link was attached to is gone.
pub(super) fn update_pinned_link(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open_pinned(path)?;
    let number = |fd: libc::c_int| u32::try_from(fd).map_err(io::Error::other);
    let mut update = LinkUpdate {
        link_fd: number(link.as_raw_fd())?,
        new_prog_fd: number(program.as_raw_fd())?,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the command's attributes, which have no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut update) }.map(drop)
}

/// The number of this thread's network namespace, which programs see too.
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_has_a_number() {
        assert_ne!(netns_cookie().expect("cookie"), 0);
    }

    #[test]
    fn a_link_that_is_not_there_is_told_apart() {
        let file = std::fs::File::open("/").expect("a descriptor");
        let program = std::os::fd::AsFd::as_fd(&file);
        let error = update_pinned_link(Path::new("/nonexistent"), program).expect_err("no link");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
