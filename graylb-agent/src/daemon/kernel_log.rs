//! The programs' log records → the agent's log.

use std::io;

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// Passes records on for as long as the agent runs.
pub(super) async fn forward(logger: EbpfLogger<&'static dyn log::Log>) {
    if let Err(error) = pump(logger).await {
        warn!("the programs' log cannot be read any more: {error}");
    }
}

async fn pump(logger: EbpfLogger<&'static dyn log::Log>) -> io::Result<()> {
    #[expect(
        deprecated,
        reason = "EbpfLogger has no AsFd; it owns its descriptor for as long as it lives"
    )]
    let mut logger = AsyncFd::new(logger)?;
    loop {
        let mut ready = logger.readable_mut().await?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
