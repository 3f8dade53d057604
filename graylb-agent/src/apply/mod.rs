//! The only part that talks to BPF: loads, attaches, pins, and writes what [`crate::compile`] decided.

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    compile::{Change, Image},
    config::{FlowsConfig, InterfaceConfig},
    model::spec::Endpoint,
};
use graylb_common::{backend::BackendCounters, settings::Settings, verdict::VerdictCounters};

/// How the data plane is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/sys/fs/bpf/graylb` or another directory on a BPF file system.
    pub pin_dir: PathBuf,
    /// Sizes of the flow tables.
    pub flows: FlowsConfig,
    /// Log diagnostic events.
    pub kernel_log: bool,
}

/// Where an interface is attached, and why so.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// `tc` or `xdp`.
    pub hook: String,
    /// One sentence.
    pub reason: String,
}

/// Why something about the data plane failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(pub String);

/// The loaded data plane. Dropping it leaves programs, maps and links pinned and at work.
#[derive(Debug)]
pub struct DataPlane;

impl DataPlane {
    /// Loads the programs, over the maps pinned by an earlier agent if there are any, and takes the lock
    /// that keeps a second agent away. Nothing is attached yet, and links of the earlier agent keep their
    /// programs until [`DataPlane::attach`].
    pub fn open(_options: &Options) -> Result<Self, ApplyError> {
        todo!()
    }
    /// Attaches to exactly these interfaces: takes over pinned links in place, adds missing ones, and
    /// detaches from interfaces that are not listed. One result for each interface, in order.
    pub fn attach(
        &mut self,
        _interfaces: &[InterfaceConfig],
    ) -> Vec<Result<Attachment, ApplyError>> {
        todo!()
    }
    /// What the kernel holds.
    #[must_use]
    pub fn installed(&self) -> &Image {
        todo!()
    }
    /// The generation of a service in the kernel.
    #[must_use]
    pub fn generation(&self, _endpoint: &Endpoint) -> Option<u64> {
        todo!()
    }
    /// Puts one change in force and returns the service's new generation (0 for a removal). On an error
    /// what was in force still is.
    pub fn apply(&mut self, _change: &Change) -> Result<u64, ApplyError> {
        todo!()
    }
    /// Changes settings in the running programs.
    pub fn set_settings(&mut self, _settings: Settings) -> Result<(), ApplyError> {
        todo!()
    }
    /// Packets by verdict, all CPUs together.
    pub fn verdicts(&self) -> Result<VerdictCounters, ApplyError> {
        todo!()
    }
    /// Counters of a service's backends, for each pool number and backend address that was in force
    /// since the maps were made.
    pub fn backend_counters(
        &self,
        _endpoint: &Endpoint,
    ) -> Result<Vec<(u32, SocketAddr, BackendCounters)>, ApplyError> {
        todo!()
    }
}

/// Removes everything below `pin_dir`, whatever its ABI version: links first, which detaches them. Refused
/// while an agent runs. Returns what was removed, a line each; nothing there is no error.
pub fn unload(_pin_dir: &std::path::Path) -> Result<Vec<String>, ApplyError> {
    todo!()
}
