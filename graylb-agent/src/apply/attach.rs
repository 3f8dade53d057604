//! Which devices are attached, kept in step with which are wanted; [`super::hooks`] does one device.

use std::collections::BTreeMap;

use aya::Ebpf;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::{ApplyError, hooks::Attempt, links::Hook, pins::Pins};
use crate::model::interfaces::{AttachMode, Wanted};

/// Where an interface is attached, and why so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// The name or pattern of the config that holds for it.
    #[serde(default)]
    pub pattern: String,
    /// `tc` or `xdp`.
    pub hook: String,
    /// One sentence.
    pub reason: String,
}

/// Knows what this process has attached.
#[derive(Debug)]
pub(super) struct Attacher {
    /// TC by clsact.
    clsact: bool,
    /// By interface name.
    attached: BTreeMap<String, Attached>,
}

#[derive(Debug)]
struct Attached {
    device: u32,
    mode: AttachMode,
    attachment: Attachment,
}

impl Attacher {
    /// Nothing attached yet; TC by clsact or by TCX.
    pub(super) const fn new(clsact: bool) -> Self {
        Self { clsact, attached: BTreeMap::new() }
    }

    /// See [`super::DataPlane::attach`].
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        wanted: &[Wanted],
    ) -> Vec<Result<Attachment, ApplyError>> {
        self.detach_others(pins, wanted);
        wanted.iter().map(|wanted| self.attach_one(ebpf, pins, wanted)).collect()
    }

    /// Removes links on devices that are not wanted. Comes first: a device that got another name must be
    /// free before it is attached under that.
    fn detach_others(&mut self, pins: &Pins, wanted: &[Wanted]) {
        let devices: BTreeMap<&str, u32> =
            wanted.iter().map(|w| (w.device.name.as_str(), w.device.index)).collect();
        let is_wanted = |name: &str, index: u32| devices.get(name) == Some(&index);
        self.attached.retain(|name, attached| is_wanted(name, attached.device));
        let links = pins.links().unwrap_or_else(|error| {
            warn!("{error}");
            Vec::new()
        });
        for link in links {
            // What this process attached needs no second look, which would cost system calls each time.
            if self.attached.contains_key(&link.interface)
                || is_wanted(&link.interface, link.device())
            {
                continue;
            }
            match link.remove() {
                Ok(()) => debug!("removed {}", link.path.display()),
                Err(error) => warn!("{error}"),
            }
        }
    }

    fn attach_one(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        wanted: &Wanted,
    ) -> Result<Attachment, ApplyError> {
        let Wanted { device, rule } = wanted;
        let pattern = rule.pattern.to_string();
        if let Some(attached) = self.attached.get_mut(&device.name)
            && attached.mode == rule.attach
        {
            attached.attachment.pattern = pattern;
            return Ok(attached.attachment.clone());
        }
        let mut attempt = Attempt::new(ebpf, pins, device, self.clsact);
        let (hook, reason) = match attempt.run(rule.attach) {
            Ok(attached) => attached,
            Err(error) => {
                attempt.undo();
                return Err(match self.attached.get(&device.name) {
                    Some(Attached { attachment, .. }) => ApplyError::text(format!(
                        "{error}; {} is still attached by {}",
                        device.name, attachment.hook
                    )),
                    None => error,
                });
            }
        };
        let hook = if hook == Hook::Xdp { "xdp" } else { "tc" };
        let attachment =
            Attachment { interface: device.name.clone(), pattern, hook: hook.to_owned(), reason };
        let attached =
            Attached { device: device.index, mode: rule.attach, attachment: attachment.clone() };
        self.attached.insert(device.name.clone(), attached);
        Ok(attachment)
    }
}
