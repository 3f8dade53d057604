//! Clients on this host: the daemon's part in the socket hook.

use tracing::{info, warn};

use super::Daemon;
use crate::{apply::SocketHook, config::SocketHookConfig};

/// Whether the socket hook is attached.
#[derive(Debug, Default)]
pub(super) struct LocalClients {
    /// Where it is.
    pub(super) hook: Option<SocketHook>,
    /// Why it is not as the config says.
    pub(super) failed: Option<String>,
}

impl Daemon {
    /// Attaches the socket hook as configured, or detaches it. On an error it stays as it was.
    pub(super) fn attach_socket_hook(&mut self, config: &SocketHookConfig) {
        match self.plane.attach_socket_hook(config) {
            Ok(hook) => {
                if let Some(SocketHook { cgroup, reason }) = &hook {
                    info!("socket hook at {}: {reason}", cgroup.display());
                }
                self.local = LocalClients { hook, failed: None };
            }
            Err(error) => {
                warn!("{error}");
                self.local.failed = Some(error.to_string());
            }
        }
    }
}
