//! Which devices are attached, kept in step with which are wanted; [`super::hooks`] does one device.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::{ApplyError, hooks::Attempt, links::Hook, pins::Pins};
use crate::model::interfaces::{AttachMode, Device, Wanted};

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

/// How much is attached at once. The kernel waits for its CPUs at each new TCX hook, about 10 ms, and
/// whoever calls waits with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Everything that is not attached, also what was refused before.
    Everything,
    /// This many devices, not counting what was refused before.
    New(usize),
}

/// What came of attaching.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Attached {
    /// Where the programs are.
    pub attachments: Vec<Attachment>,
    /// Why they are not where they should be.
    pub refused: Vec<ApplyError>,
    /// There are devices that the effort did not suffice for.
    pub more: bool,
}

/// Knows what this process has attached.
#[derive(Debug)]
pub(super) struct Attacher {
    /// TC by clsact.
    clsact: bool,
    /// By interface name.
    attached: BTreeMap<String, Tried<Attachment>>,
    /// By interface name; such an interface may still be attached as it was before.
    refused: BTreeMap<String, Tried<ApplyError>>,
}

/// What came of an attempt.
#[derive(Debug)]
struct Tried<T> {
    device: u32,
    mode: AttachMode,
    outcome: T,
}

impl Attacher {
    /// Nothing attached yet; TC by clsact or by TCX.
    pub(super) const fn new(clsact: bool) -> Self {
        Self { clsact, attached: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// See [`super::DataPlane::attach`].
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        wanted: &[Wanted],
        effort: Effort,
    ) -> Attached {
        let first = self.attached.is_empty();
        self.detach(pins, wanted, !first);
        let mut budget = match effort {
            Effort::Everything => {
                self.refused.clear();
                usize::MAX
            }
            Effort::New(count) => count,
        };
        let mut result = Attached::default();
        for Wanted { device, rule } in wanted {
            let pattern = rule.pattern.to_string();
            if let Some(tried) = self.refused.get(&device.name)
                && tried.mode == rule.attach
            {
                result.refused.push(tried.outcome.clone());
                continue;
            }
            let is_new = self.attached.get(&device.name).is_none_or(|a| a.mode != rule.attach);
            if is_new && budget == 0 {
                result.more = true;
                continue;
            }
            if is_new {
                budget -= 1;
                self.attach_one(ebpf, pins, device, rule.attach);
            }
            match (self.refused.get(&device.name), self.attached.get_mut(&device.name)) {
                (Some(refused), _) => result.refused.push(refused.outcome.clone()),
                (None, Some(attached)) => {
                    attached.outcome.pattern = pattern;
                    result.attachments.push(attached.outcome.clone());
                }
                (None, None) => {}
            }
        }
        // A start that comes to nothing leaves what an earlier agent attached elsewhere.
        if first && (result.refused.is_empty() || !result.attachments.is_empty()) {
            self.detach(pins, wanted, true);
        }
        result
    }

    /// Removes links that are in the way: on no device any more, on one that is wanted under another name
    /// now, or under a name that another device has now. With `all`, also those on devices that are not wanted.
    fn detach(&mut self, pins: &Pins, wanted: &[Wanted], all: bool) {
        let by_name: BTreeMap<&str, u32> =
            wanted.iter().map(|w| (w.device.name.as_str(), w.device.index)).collect();
        let by_index: BTreeSet<u32> = by_name.values().copied().collect();
        let is_wanted = |name: &str, index: u32| by_name.get(name) == Some(&index);
        self.attached.retain(|name, tried| is_wanted(name, tried.device));
        self.refused.retain(|name, tried| is_wanted(name, tried.device));
        let links = pins.links().unwrap_or_else(|error| {
            warn!("{error}");
            Vec::new()
        });
        for link in links {
            // What this process attached needs no second look, which would cost system calls each time.
            if self.attached.contains_key(&link.interface) {
                continue;
            }
            let device = link.device();
            let in_the_way = device == 0
                || by_name.contains_key(link.interface.as_str())
                || by_index.contains(&device);
            if is_wanted(&link.interface, device) || !(in_the_way || all) {
                continue;
            }
            match link.remove() {
                Ok(()) => debug!("removed {}", link.path.display()),
                Err(error) => warn!("{error}"),
            }
        }
    }

    fn attach_one(&mut self, ebpf: &mut Ebpf, pins: &Pins, device: &Device, mode: AttachMode) {
        let name = &device.name;
        let mut attempt = Attempt::new(ebpf, pins, device, self.clsact);
        match attempt.run(mode) {
            Ok((hook, reason)) => {
                let outcome = Attachment {
                    interface: name.clone(),
                    pattern: String::new(),
                    hook: if hook == Hook::Xdp { "xdp" } else { "tc" }.to_owned(),
                    reason,
                };
                let tried = Tried { device: device.index, mode, outcome };
                self.attached.insert(name.clone(), tried);
                self.refused.remove(name);
            }
            Err(error) => {
                attempt.undo();
                let outcome = match self.attached.get(name) {
                    Some(before) => ApplyError::text(format!(
                        "{error}; {name} is still attached by {}",
                        before.outcome.hook
                    )),
                    None => error,
                };
                self.refused.insert(name.clone(), Tried { device: device.index, mode, outcome });
            }
        }
    }
}
