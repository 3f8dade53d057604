//! Interfaces that come, go and change: the daemon's part in following them.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Daemon;
use crate::{
    apply::{Attached, Attachment, Effort},
    model::interfaces::{Device, InterfaceConfig, plan},
    netlink::Seen,
};

/// How soon an interface that was refused is tried again.
const ATTACH_RETRY: Duration = Duration::from_secs(5);
/// Devices that are attached before commands have their turn: new ones may come by the hundred, a switch
/// must not wait for them all.
const AT_ONCE: usize = 1;

/// What is attached, and what is not.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    /// The devices that there are.
    pub(super) devices: Vec<Device>,
    /// Where graylb is attached.
    pub(super) attached: Vec<Attachment>,
    /// Why it is not where it should be and could be.
    pub(super) failed: Vec<String>,
    /// Names of the config that no device has.
    absent: Vec<String>,
    /// There are more to attach.
    more: bool,
    /// When to go on, or to try again what has failed.
    pub(super) again: Option<Instant>,
}

impl Interfaces {
    pub(super) fn new(devices: Vec<Device>) -> Self {
        Self { devices, ..Self::default() }
    }

    /// What is missing, a sentence each.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let absent = self.absent.iter().map(|name| {
            format!("there is no interface {name} yet: it is attached when it appears")
        });
        let more = self.more.then(|| "some new interfaces are not attached yet".to_owned());
        self.failed.iter().cloned().chain(absent).chain(more)
    }
}

impl Daemon {
    /// Takes in what the kernel says about links and routes.
    pub(super) fn see(&mut self, seen: Seen) {
        // First what packets wait for.
        if seen.next_hops
            && let Err(error) = self.plane.forget_next_hops()
        {
            error!("{error}");
        }
        if let Some(devices) = seen.devices {
            self.interfaces.devices = devices;
            self.follow(Effort::New(AT_ONCE));
        }
    }

    /// Goes on attaching, or tries again what has failed.
    pub(super) fn attach_again(&mut self) {
        let more = self.interfaces.more;
        self.follow(if more { Effort::New(AT_ONCE) } else { Effort::Everything });
    }

    fn follow(&mut self, effort: Effort) {
        let rules = self.config.interfaces.clone();
        self.attach(&rules, effort);
    }

    /// Attaches to exactly what these rules say of the devices that there are, as far as the effort goes.
    pub(super) fn attach(&mut self, rules: &[InterfaceConfig], effort: Effort) {
        let plan = plan(rules, &self.interfaces.devices);
        let Attached { attachments: attached, refused, more } =
            self.plane.attach(&plan.wanted, effort);
        let failed: Vec<String> = refused.iter().map(ToString::to_string).collect();
        let now = &mut self.interfaces;
        for gone in now.attached.iter().filter(|old| !names(&attached, &old.interface)) {
            info!("no longer attached to {}", gone.interface);
        }
        for attachment in attached.iter().filter(|new| !now.attached.contains(new)) {
            let Attachment { interface, hook, reason, pattern } = attachment;
            info!("attached to {interface} by {hook} ([interfaces.{pattern:?}]): {reason}");
        }
        failed.iter().filter(|why| !now.failed.contains(why)).for_each(|why| warn!("{why}"));
        for name in plan.absent.iter().filter(|name| !now.absent.contains(name)) {
            warn!("there is no interface {name} yet: it is attached when it appears");
        }
        // Other changes that come by do not put a new attempt off.
        let planned = now.again.filter(|at| effort != Effort::Everything && *at > Instant::now());
        now.again = match (more, failed.is_empty()) {
            (true, _) => Some(Instant::now()),
            (false, false) => Some(planned.unwrap_or_else(|| Instant::now() + ATTACH_RETRY)),
            (false, true) => None,
        };
        now.more = more;
        now.attached = attached;
        now.failed = failed;
        now.absent = plan.absent;
    }
}

fn names(attachments: &[Attachment], interface: &str) -> bool {
    attachments.iter().any(|attachment| attachment.interface == interface)
}
