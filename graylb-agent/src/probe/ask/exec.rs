//! A command of the operator's, run as the agent's user with nothing in its environment but where to look.

use std::{net::SocketAddr, path::Path, process::Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
};

use super::{Asked, excerpt};
use crate::{
    model::{health::Target, probe::ExecProbe},
    trust,
};

/// Longest output that is read, in bytes; what is written beyond it is thrown away.
const MAX_OUTPUT: u64 = 4 << 10;
/// Where a command finds others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process group of a command that has not ended: killed with it, so that a time-out leaves nothing
/// of it behind.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _just_gone = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Runs it once, and waits for its end.
pub(super) async fn ask(probe: &ExecProbe, target: &Target, address: SocketAddr) -> Asked {
    let Some((program, arguments)) = probe.command.split_first() else {
        return Err("no command".into());
    };
    trust::check(Path::new(program)).map_err(|error| format!("not run: {error}"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("GRAYLB_POOL", &target.pool)
        .env("GRAYLB_BACKEND", target.address.to_string())
        .env("GRAYLB_ADDRESS", address.ip().to_string())
        .env("GRAYLB_PORT", address.port().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let (status, output) = finish(&mut child).await.map_err(|error| error.to_string())?;
    // Its number may be another's from now on.
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    let said = excerpt(&output);
    Err(if said.is_empty() { format!("{program}: {status}") } else { format!("{status}: {said}") })
}

/// How the command ended, and what it said: on stderr if anything, else on stdout.
async fn finish(child: &mut Child) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, stdout, stderr) = tokio::join!(child.wait(), said(stdout), said(stderr));
    Ok((status?, if stderr.is_empty() { stdout } else { stderr }))
}

async fn said(output: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut said = Vec::new();
    let Some(mut output) = output else { return said };
    // What cannot be read has not been said.
    let _unread = (&mut output).take(MAX_OUTPUT).read_to_end(&mut said).await;
    let _unread = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
    said
}
