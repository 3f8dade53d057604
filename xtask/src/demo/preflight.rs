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
            "{PIN_DIR} is there: a graylb of your own (or another demo) is at work, or was stopped and left its programs at work; `graylb status` tells. The demo leaves it alone and does not start. To remove it: stop the agent, then `graylb unload`"
        );
    }
    if api_port == SERVICE_PORT || BACKEND_PORTS.contains(&api_port) {
        bail!("the demo uses port {api_port} itself: give --port another one");
    }
    let ports = [SERVICE_PORT, api_port].into_iter().chain(BACKEND_PORTS);
    let taken: Vec<(u16, String)> = ports
        .filter_map(|port| {
            let error = TcpListener::bind(("127.0.0.1", port)).err()?;
            let holder = holder(port).unwrap_or_else(|| error.to_string());
            Some((port, format!("127.0.0.1:{port} is taken ({holder})")))
        })
        .collect();
    if !taken.is_empty() {
        let of_the_api = taken.iter().any(|(port, _)| *port == api_port);
        let remedy = if of_the_api { ", or give --port another one for the API" } else { "" };
        let lines: Vec<String> = taken.into_iter().map(|(_, line)| line).collect();
        bail!("the demo needs a port that is in use: {}. Stop that{remedy}", lines.join(", "));
    }
    Ok(())
}

/// Who has a port, as ss says it: `users:(("nginx",pid=12,fd=5))`.
fn holder(port: u16) -> Option<String> {
    let mut ss = process::command("ss");
    let text = process::output(ss.args(["-Hltnp", &format!("sport = :{port}")])).ok()?;
    let (program, rest) = text.split_once("users:((\"")?.1.split_once('"')?;
    let pid: String = rest.split_once("pid=")?.1.chars().take_while(char::is_ascii_digit).collect();
    Some(format!("by {program}, pid {pid}"))
}
