//! Programs → one device. Links are pinned, so that they outlive the agent; a pinned link gets the new
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
    util::KernelVersion,
};
use graylb_common::maps::{PROGRAM_TC_IN, PROGRAM_TC_OUT, PROGRAM_XDP};
use tracing::warn;

use super::{
    ApplyError, clsact,
    links::{Hook, LinkPin},
    pins::Pins,
};
use crate::model::interfaces::{AttachMode, Device};

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

/// Attaching to one device.
pub(super) struct Attempt<'a> {
    ebpf: &'a mut Ebpf,
    pins: &'a Pins,
    device: &'a Device,
    clsact: bool,
    /// Hooks that were not attached before.
    made: Vec<LinkPin>,
}

impl<'a> Attempt<'a> {
    /// Nothing done yet; TC by clsact or by TCX.
    pub(super) const fn new(
        ebpf: &'a mut Ebpf,
        pins: &'a Pins,
        device: &'a Device,
        clsact: bool,
    ) -> Self {
        Self { ebpf, pins, device, clsact, made: Vec::new() }
    }

    /// Attaches every hook that the device needs, and removes those that it had and needs no more.
    pub(super) fn run(&mut self, mode: AttachMode) -> Result<(Hook, String), ApplyError> {
        let (hook, reason) = match mode {
            AttachMode::Tc | AttachMode::Xdp => {
                let hook = if mode == AttachMode::Xdp { Hook::Xdp } else { Hook::TcIn };
                (hook, "configured".to_owned())
            }
            AttachMode::Auto => choose(self.device),
        };
        let (hook, mut reason) = match self.hook(hook) {
            Ok(()) => (hook, reason),
            Err(error) if hook == Hook::Xdp && mode == AttachMode::Auto => {
                self.hook(Hook::TcIn)?;
                (Hook::TcIn, error.to_string())
            }
            Err(error) if hook == Hook::Xdp => {
                return Err(ApplyError::text(format!(
                    "{error}; attach = \"tc\" works on every interface"
                )));
            }
            Err(error) => return Err(error),
        };
        let mut needed = vec![hook];
        if !self.device.loopback {
            // Replies of backends on this host leave here; loopback shows both directions on the way in.
            self.hook(Hook::TcOut)?;
            needed.push(Hook::TcOut);
        }
        if self.clsact {
            reason.push_str("; by clsact, since there is no TCX before Linux 6.6");
        }
        for link in self.pins.links_of(&self.device.name) {
            if !needed.contains(&link.hook) || link.clsact != self.by_clsact(link.hook) {
                link.remove()?;
            }
        }
        Ok((hook, reason))
    }

    /// Takes away what this attempt attached.
    pub(super) fn undo(&self) {
        for link in &self.made {
            if let Err(error) = link.remove() {
                warn!("{error}");
            }
        }
    }

    fn by_clsact(&self, hook: Hook) -> bool {
        self.clsact && hook != Hook::Xdp
    }

    fn hook(&mut self, hook: Hook) -> Result<(), ApplyError> {
        let name = self.device.name.as_str();
        let clsact = self.by_clsact(hook);
        let pin = self.pins.link(hook, clsact, name);
        let new = pin.device() != self.device.index;
        match hook {
            Hook::Xdp => attach_xdp(program(self.ebpf, PROGRAM_XDP)?, name, &pin.path)?,
            Hook::TcIn | Hook::TcOut => {
                let (program_name, direction) = match hook {
                    Hook::TcOut => (PROGRAM_TC_OUT, TcAttachType::Egress),
                    Hook::TcIn | Hook::Xdp => (PROGRAM_TC_IN, TcAttachType::Ingress),
                };
                let program = program(self.ebpf, program_name)?;
                if clsact {
                    // First the marker: what it marks must not be forgotten.
                    pin.mark(self.device.index)?;
                    if new {
                        self.made.push(pin);
                    }
                    return clsact::attach(program, self.device, hook);
                }
                attach_tcx(program, name, direction, &pin.path)?;
            }
        }
        if new {
            self.made.push(pin);
        }
        Ok(())
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

fn attach_tcx(
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
    if KernelVersion::current().is_ok_and(|running| running < KernelVersion::new(5, 9, 0)) {
        // Without a link aya attaches by netlink, which would stay on the device for good.
        return Err(ApplyError::text(format!(
            "{}: links of XDP programs, which outlive the agent, need Linux 5.9",
            tried()
        )));
    }
    let id = program
        .attach(interface, XdpMode::Driver)
        .map_err(|error| refused_xdp(interface, &tried(), error))?;
    let link = program.take_link(id).map_err(|error| ApplyError::new(tried(), error))?;
    let link: FdLink = link.try_into().map_err(|_not_a_link: LinkError| {
        ApplyError::text(format!(
            "{}: the kernel attached it without a link, which would not outlive the agent",
            tried()
        ))
    })?;
    pin(link, path)
}

/// The kernel's errors (dev_xdp_attach, net/core/dev.c, and drivers) in words.
fn refused_xdp(interface: &str, tried: &str, error: ProgramError) -> ApplyError {
    let code = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    let meaning = match code {
        Some(libc::EOPNOTSUPP) => {
            "its driver cannot run XDP (generic XDP, which the kernel has in its place, would corrupt packets)".to_owned()
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            format!("another XDP program is on it, see `ip link show {interface}`")
        }
        Some(libc::ERANGE) => {
            format!("its MTU is too large for XDP, see `ip link show {interface}`")
        }
        _ => return ApplyError::new(tried, error),
    };
    ApplyError::text(format!("{}: {meaning}", ApplyError::new(tried, error)))
}

fn pin(link: FdLink, path: &Path) -> Result<(), ApplyError> {
    link.pin(path).map(drop).map_err(|error| {
        ApplyError::new(format!("cannot pin the link at {}", path.display()), error)
    })
}
