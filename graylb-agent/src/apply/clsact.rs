//! TC before TCX (Linux 6.6): filters at the device's clsact qdisc, put there by netlink.
//!
//! Such a filter stays with the device until it is taken away, whatever becomes of the agent. A fixed
//! priority and handle make a restart replace it in place.

use std::{io, mem};

use aya::{
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::Link as _,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
    util::KernelVersion,
};

use super::{ApplyError, links::Hook};
use crate::model::interfaces::Device;

/// First Linux with TCX.
const TCX: (u8, u8) = (6, 6);
/// Early among the filters of a device, since others must see what graylb has rewritten.
const PRIORITY: u16 = 10;
/// "gl"; no other filter of that priority has it.
const HANDLE: TcHandle = TcHandle::new(0x676c, 1);

/// Whether the running kernel needs clsact.
pub(super) fn needed() -> bool {
    let (major, minor) = TCX;
    KernelVersion::current().is_ok_and(|running| running < KernelVersion::new(major, minor, 0))
}

/// Puts the program on the device, in the place of an earlier one of ours.
pub(super) fn attach(
    program: &mut SchedClassifier,
    device: &Device,
    hook: Hook,
) -> Result<(), ApplyError> {
    let name = device.name.as_str();
    let tried = || format!("cannot attach to {name} by TC (clsact)");
    let there = ours(name, hook).map_err(|error| ApplyError::new(tried(), error))?;
    let attached = program.attach_to_link(there).or_else(|_none_there_to_replace| {
        // It may be there already: then adding it fails, and attaching does not.
        let qdisc = tc::qdisc_add_clsact(name);
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program
            .attach_with_options(name, direction(hook), TcAttachOptions::Netlink(options))
            .map_err(|error| match qdisc {
                Ok(()) => ApplyError::new(tried(), error),
                Err(why) => {
                    ApplyError::new(format!("{}: {error}; the qdisc cannot be added", tried()), why)
                }
            })
    })?;
    let link = program.take_link(attached).map_err(|error| ApplyError::new(tried(), error))?;
    // Dropping it would take the filter away with the agent.
    mem::forget(link);
    Ok(())
}

/// Takes our filter off the device with this index; that there is none, or no such device, is fine. The
/// qdisc stays, since others may have filters there.
pub(super) fn detach(index: u32, hook: Hook) -> Result<(), ApplyError> {
    let tried = || format!("cannot detach from the device with index {index}");
    let Some(name) = name(index).map_err(|error| ApplyError::new(tried(), error))? else {
        return Ok(());
    };
    let there = ours(&name, hook).map_err(|error| ApplyError::new(tried(), error))?;
    match there.detach() {
        Ok(()) => Ok(()),
        // No such filter, chain or qdisc (tc_del_tfilter, net/sched/cls_api.c), or no such device any more.
        Err(ProgramError::NetlinkError(error))
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(ApplyError::new(tried(), error)),
    }
}

/// Our filter on a device, whether it is there or not.
fn ours(name: &str, hook: Hook) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, direction(hook), PRIORITY, HANDLE, None)
}

const fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::TcIn | Hook::Xdp => TcAttachType::Ingress,
        Hook::TcOut => TcAttachType::Egress,
    }
}

/// The device's name, if there is one with this index.
fn name(index: u32) -> io::Result<Option<String>> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    if index == 0 {
        return Ok(None);
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match netdevice::index_to_name(&socket, index) {
        Ok(name) => Ok(Some(name)),
        Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
