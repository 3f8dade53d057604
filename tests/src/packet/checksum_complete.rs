//! Test runs with CHECKSUM_COMPLETE: the kernel gives the packet a sum over all of it, as some NICs do,
//! and fails the run with EBADMSG where that sum is wrong afterwards (net/bpf/test_run.c).
//! aya does not pass the flag, hence the system call here.

#![expect(unsafe_code, reason = "the bpf system call, with a flag that aya does not offer")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::programs::SchedClassifier;

use super::run::WrongSum;

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// Of `union bpf_attr`, same file.
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

/// The `test` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    return_value: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Whether this kernel has the flag.
pub(super) fn supported(program: &SchedClassifier) -> bool {
    match system_call(program, &[], &[0; 64], &mut [0; 64]) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        Err(error) => panic!("run a program with CHECKSUM_COMPLETE: {error}"),
    }
}

/// Runs the program; returns its value and the packet's length, or that the sum is wrong.
pub(super) fn test_run(
    program: &SchedClassifier,
    context: &[u8],
    packet: &[u8],
    out: &mut [u8],
) -> Result<(u32, usize), WrongSum> {
    match system_call(program, context, packet, out) {
        Ok(result) => Ok(result),
        Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => Err(WrongSum),
        Err(error) => panic!("run the program: {error}"),
    }
}

fn system_call(
    program: &SchedClassifier,
    context: &[u8],
    packet: &[u8],
    out: &mut [u8],
) -> io::Result<(u32, usize)> {
    let fd = program.fd().map_err(io::Error::other)?;
    let mut attributes = Attributes {
        program: fd.as_fd().as_raw_fd().cast_unsigned(),
        size_in: packet.len() as u32,
        size_out: out.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_size_in: context.len() as u32,
        context_in: if context.is_empty() { 0 } else { context.as_ptr() as u64 },
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        ..Attributes::default()
    };
    // SAFETY: `attributes` has the layout of bpf_attr's `test` member and its size is passed with it; the
    // pointers in it are to slices that outlive the call, with their lengths beside them, and only `out`,
    // borrowed mutably, is written to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>() as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((attributes.return_value, attributes.size_out as usize))
}
