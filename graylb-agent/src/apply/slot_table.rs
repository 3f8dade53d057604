//! Slots into the kernel's table, a whole stretch by one system call: one by one, the 4099 of a Maglev table
//! would make a switch wait five times as long.

#![expect(unsafe_code, reason = "aya has no batch operations; the system call takes pointers")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya::maps::{Array, IterableMap as _, MapData};
use graylb_common::{maps, service::Slot};

use super::ApplyError;

/// `BPF_MAP_UPDATE_BATCH` (include/uapi/linux/bpf.h, since Linux 5.6).
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// `batch` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes slots from place `start` on.
///
/// # Errors
///
/// The kernel refuses; some of them may be written.
pub(super) fn write(
    map: &mut Array<MapData, Slot>,
    start: u32,
    slots: &[Slot],
) -> Result<(), ApplyError> {
    if slots.is_empty() {
        return Ok(());
    }
    let places: Vec<u32> = (start..).take(slots.len()).collect();
    update(map.map().fd().as_fd(), &places, slots).map_err(|error| {
        let name = maps::SLOTS;
        ApplyError::new(format!("the kernel refused a write to map {name}"), error)
    })
}

/// `map` is the array `slots`, whose keys and values are of these types.
fn update(map: BorrowedFd<'_>, places: &[u32], slots: &[Slot]) -> io::Result<()> {
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: places.as_ptr() as u64,
        values: slots.as_ptr() as u64,
        count: places.len().min(slots.len()) as u32,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `batch` is the attributes of this command and its size is passed with it; the kernel reads
    // `count` keys and values, which the two slices hold, and writes `count` alone.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_BATCH,
            &raw mut batch,
            size_of::<Batch>() as libc::c_uint,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
