//! What must hold before the demo touches anything.

use std::{net::TcpListener, path::Path};

use anyhow::bail;

use super::{BACKEND_PORTS, PIN_DIR, SERVICE_PORT};
use crate::process;

/// Loading programs takes root.
pub(super) fn root() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo loads programs into the kernel, which takes root: run it as root");
    }
    Ok(())
}

/// Neither a graylb of the user's own nor anybody on the demo's ports.
pub(super) fn nothing_in_the_way(api_port: u16) -> anyhow::Result<()> {
    if Path::new(PIN_DIR).exists() {
        bail!(
            "{PIN_DIR} is there: a graylb of your own is at work (`graylb status` shows it), or was stopped and left its programs at work. The demo leaves it alone and does not start. To remove it: stop the agent, then `graylb unload`"
        );
    }
    if api_port == SERVICE_PORT || BACKEND_PORTS.contains(&api_port) {
        bail!("the demo uses port {api_port} itself: give --port another one");
    }
    let ports = [SERVICE_PORT, api_port].into_iter().chain(BACKEND_PORTS);
    let taken: Vec<String> = ports
        .filter_map(|port| {
            let error = TcpListener::bind(("127.0.0.1", port)).err()?;
            Some(format!("127.0.0.1:{port} is not free ({error}{})", holder(port)))
        })
        .collect();
    if !taken.is_empty() {
        let remedy = if taken.iter().any(|line| line.contains(&format!(":{api_port} "))) {
            ", or give --port another one for the API"
        } else {
            ""
        };
        bail!("{}: the demo needs it; stop what listens there{remedy}", taken.join("; "));
    }
    Ok(())
}

/// Who has a port, as ss says it.
fn holder(port: u16) -> String {
    let mut ss = process::command("ss");
    ss.args(["-Hltnp", &format!("sport = :{port}")]);
    let text = process::output(&mut ss).unwrap_or_default();
    match text.split_once("users:") {
        Some((_, users)) => format!(": {}", users.lines().next().unwrap_or("").trim()),
        None => String::new(),
    }
}
