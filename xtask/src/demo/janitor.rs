//! Cleans up after the demo, however it ends, `kill -9` included.
//!
//! The janitor is a process of its own that reads orders from a pipe: what is to be undone. The pipe ends
//! with the demo. Then the janitor ends every process with the demo's token in its environment, carries the
//! orders out, and says what it could not do. An ordinary end goes the same way: there is no other clean-up.

use std::{
    env, fs,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Child, ChildStdin, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process;

/// Processes that do not end by then are killed.
const PATIENCE: Duration = Duration::from_secs(3);
/// From one look to the next. A process between fork and exec has no token yet, so that one look that finds
/// nothing is not enough.
const LOOK: Duration = Duration::from_millis(50);

/// The demo's end of the pipe.
pub(super) struct Janitor {
    token: String,
    process: Child,
    orders: ChildStdin,
}

impl Janitor {
    pub(super) fn start() -> anyhow::Result<Self> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let token = format!("{}-{}", std::process::id(), now.as_nanos());
        let mut process = process::command(env::current_exe()?)
            .args(["demo-janitor", &token])
            .stdin(Stdio::piped())
            // Ctrl-C at the terminal must not reach it, from its first instruction on.
            .process_group(0)
            .spawn()
            .context("cannot start the demo's janitor")?;
        let orders = process.stdin.take().context("the janitor has no standard input")?;
        Ok(Self { token, process, orders })
    }

    /// What the demo's processes have in their environment as [`process::TOKEN`].
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// At the end, `graylb unload`.
    pub(super) fn unload(&self, graylb: &Path, pin_dir: &str) -> anyhow::Result<()> {
        self.order(&format!("unload {pin_dir} {}", graylb.display()))
    }

    /// At the end, remove a directory.
    pub(super) fn remove(&self, directory: &Path) -> anyhow::Result<()> {
        self.order(&format!("remove {}", directory.display()))
    }

    fn order(&self, order: &str) -> anyhow::Result<()> {
        (&self.orders)
            .write_all(format!("{order}\n").as_bytes())
            .context("the demo's janitor is gone")
    }

    /// Has everything undone, and waits for it.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        drop(self.orders);
        let status = self.process.wait()?;
        if !status.success() {
            bail!("not everything of the demo could be removed, see above");
        }
        Ok(())
    }
}

/// The janitor's process.
pub(crate) fn clean_up_after(token: &str) -> anyhow::Result<()> {
    let orders: Vec<String> = io::stdin().lines().map_while(Result::ok).collect();
    end_processes(token);
    let mut failures = Vec::new();
    for order in orders {
        if let Err(error) = carry_out(&order) {
            failures.push(format!("{error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("the demo's janitor: {}", failures.join("; "));
    }
    Ok(())
}

fn carry_out(order: &str) -> anyhow::Result<()> {
    match order.split_once(' ') {
        Some(("unload", rest)) => {
            let (pin_dir, graylb) = rest.split_once(' ').context("unload without a program")?;
            if Path::new(pin_dir).exists() {
                let mut unload = process::command(graylb);
                process::output(unload.args(["unload", "--pin-dir", pin_dir]))?;
            }
            Ok(())
        }
        Some(("remove", directory)) => {
            fs::remove_dir_all(directory).with_context(|| format!("cannot remove {directory}"))
        }
        _ => bail!("no such order: {order}"),
    }
}

/// Asks all processes with the token to end, until there are none.
fn end_processes(token: &str) {
    let started = Instant::now();
    let mut quiet_looks = 0;
    while quiet_looks < 2 && started.elapsed() < 2 * PATIENCE {
        let found = processes_with(token);
        quiet_looks = if found.is_empty() { quiet_looks + 1 } else { 0 };
        let signal = if started.elapsed() < PATIENCE { Signal::TERM } else { Signal::KILL };
        for process in found {
            // It may have ended by itself.
            let _ended = pidfd_send_signal(process, signal);
        }
        thread::sleep(LOOK);
    }
}

/// Handles of the processes with the token. Each is opened before the environment is read: a number that is
/// given to another process in between leads to nobody.
fn processes_with(token: &str) -> Vec<OwnedFd> {
    let wanted = format!("{}={token}", process::TOKEN);
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let number: i32 = entry.file_name().to_str()?.parse().ok()?;
            let handle = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            environment
                .split(|byte| *byte == 0)
                .any(|pair| pair == wanted.as_bytes())
                .then_some(handle)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_processes_with_the_token_end() {
        let token = format!("test-{}", std::process::id());
        let sleep = |token: &str| {
            let mut sleep = Command::new("sleep");
            sleep.arg("60").env(process::TOKEN, token).spawn().expect("start sleep")
        };
        let (mut ours, mut other) = (sleep(&token), sleep("another"));
        // The loop inside ends once `ours` is waited for: a zombie has no environment.
        end_processes(&token);
        assert!(!ours.wait().expect("wait").success());
        assert!(other.try_wait().expect("look").is_none());
        other.kill().expect("kill");
        other.wait().expect("wait");
    }
}
