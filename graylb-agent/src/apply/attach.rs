//! Programs → interfaces. Links are pinned, so that they outlive the agent; a pinned link gets the new
//! program in place, without a packet in between that sees none.

use std::{fs, io, path::Path};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::TcAttachOptions,
        xdp::XdpLink,
    },
};
use graylb_common::maps::{PROGRAM_TC_IN, PROGRAM_TC_OUT, PROGRAM_XDP};
use serde::{Deserialize, Serialize};

use super::{
    ApplyError,
    device::{Device, describe},
    pins::{Hook, Pins},
};
use crate::config::{AttachMode, InterfaceConfig};

/// Where an interface is attached, and why so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// `tc` or `xdp`.
    pub hook: String,
    /// One sentence.
    pub reason: String,
}

/// Attaches to exactly `interfaces`.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interfaces: &[InterfaceConfig],
) -> Vec<Result<Attachment, ApplyError>> {
    let mut wanted = Vec::new();
    let results = interfaces
        .iter()
        .map(|interface| {
            let result = attach_one(ebpf, pins, interface, &mut wanted);
            if result.is_err() {
                // Links of an earlier start on it, if any, stay as they are.
                wanted.extend(Hook::ALL.map(|hook| pins.link(hook, &interface.name)));
            }
            result
        })
        .collect();
    pins.remove_other_links(&wanted);
    results
}

fn attach_one(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interface: &InterfaceConfig,
    wanted: &mut Vec<std::path::PathBuf>,
) -> Result<Attachment, ApplyError> {
    let name = interface.name.as_str();
    let device = describe(name)?;
    let (hook, reason) = match interface.attach {
        AttachMode::Tc => (Hook::TcIn, "configured".to_owned()),
        AttachMode::Xdp => (Hook::Xdp, "configured".to_owned()),
        AttachMode::Auto => choose(&device),
    };
    let (hook, reason) = match attach_hook(ebpf, pins, hook, name) {
        Ok(()) => (hook, reason),
        Err(error) if hook == Hook::Xdp && interface.attach == AttachMode::Auto => {
            attach_hook(ebpf, pins, Hook::TcIn, name)?;
            (Hook::TcIn, format!("native XDP was refused ({error})"))
        }
        Err(error) => return Err(error),
    };
    wanted.push(pins.link(hook, name));
    if !device.loopback {
        // Replies of backends on this host leave here; loopback shows both directions on the way in.
        attach_hook(ebpf, pins, Hook::TcOut, name)?;
        wanted.push(pins.link(Hook::TcOut, name));
    }
    let hook = if hook == Hook::Xdp { "xdp" } else { "tc" };
    Ok(Attachment { interface: name.to_owned(), hook: hook.to_owned(), reason })
}

/// What `attach = "auto"` takes.
fn choose(device: &Device) -> (Hook, String) {
    match (device.loopback, &device.kind) {
        (true, _) => (Hook::TcIn, "loopback: its packets have unfinished checksums".to_owned()),
        (false, Some(kind)) => (
            Hook::TcIn,
            format!("{kind} device: its packets are large and have unfinished checksums"),
        ),
        (false, None) => (Hook::Xdp, "a NIC whose driver runs XDP".to_owned()),
    }
}

fn attach_hook(
    ebpf: &mut Ebpf,
    pins: &Pins,
    hook: Hook,
    interface: &str,
) -> Result<(), ApplyError> {
    let path = pins.link(hook, interface);
    match hook {
        Hook::Xdp => attach_xdp(program(ebpf, PROGRAM_XDP)?, interface, &path),
        Hook::TcIn => {
            attach_tc(program(ebpf, PROGRAM_TC_IN)?, interface, TcAttachType::Ingress, &path)
        }
        Hook::TcOut => {
            attach_tc(program(ebpf, PROGRAM_TC_OUT)?, interface, TcAttachType::Egress, &path)
        }
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ApplyError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| ApplyError::missing_program(name))?;
    program.try_into().map_err(|error| ApplyError::new(format!("program {name}"), error))
}

/// The link pinned at `path`, if there is one.
fn pinned(path: &Path) -> Result<Option<FdLink>, ApplyError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(FdLink::from(link))),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => {
            Err(ApplyError::new(format!("cannot open the pinned link {}", path.display()), error))
        }
    }
}

/// Removes the pin of a link whose device is gone.
fn forget(path: &Path) -> Result<(), ApplyError> {
    fs::remove_file(path).map_err(|error| {
        ApplyError::new(format!("cannot remove the dead link {}", path.display()), error)
    })
}

fn attach_tc(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
    path: &Path,
) -> Result<(), ApplyError> {
    if let Some(link) = pinned(path)? {
        if let Ok(link) = link.try_into()
            && program.attach_to_link(link).is_ok()
        {
            return Ok(());
        }
        forget(path)?;
    }
    let tried = || format!("cannot attach to {interface} by TC");
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(interface, direction, order)
        .map_err(|error| ApplyError::new(tried(), error))?;
    let link = program.take_link(id).map_err(|error| ApplyError::new(tried(), error))?;
    let link: FdLink = link.try_into().map_err(|error| ApplyError::new(tried(), error))?;
    pin(link, path)
}

fn attach_xdp(program: &mut Xdp, interface: &str, path: &Path) -> Result<(), ApplyError> {
    if let Some(link) = pinned(path)? {
        if let Ok(link) = XdpLink::try_from(link)
            && program.attach_to_link(link).is_ok()
        {
            return Ok(());
        }
        forget(path)?;
    }
    let tried = || format!("cannot attach to {interface} by native XDP");
    let id = program.attach(interface, XdpMode::Driver).map_err(|error| {
        let busy = error.to_string().contains("busy");
        let error = ApplyError::new(tried(), error);
        if busy {
            ApplyError::text(format!(
                "{error}: another XDP program is on it (`ip link show {interface}`); detach it or set attach = \"tc\""
            ))
        } else {
            ApplyError::text(format!("{error}; attach = \"tc\" works on every interface"))
        }
    })?;
    let link = program.take_link(id).map_err(|error| ApplyError::new(tried(), error))?;
    let link: FdLink = link.try_into().map_err(|_not_a_link: LinkError| {
        ApplyError::text(format!(
            "{}: the kernel attached it without a link, which would not outlive the agent",
            tried()
        ))
    })?;
    pin(link, path)
}

fn pin(link: FdLink, path: &Path) -> Result<(), ApplyError> {
    link.pin(path).map(drop).map_err(|error| {
        ApplyError::new(format!("cannot pin the link at {}", path.display()), error)
    })
}
