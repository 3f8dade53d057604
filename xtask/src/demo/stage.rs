//! What the demo plays with: four backends, the agent and its files.

use std::{
    fs::{self, DirBuilder, File},
    net::TcpStream,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{BACKEND_PORTS, DEFAULT_API_PORT, PIN_DIR, SERVICE_PORT, janitor::Janitor};
use crate::{interrupt, process};

/// Everything that is waited for has happened by then.
const DEADLINE: Duration = Duration::from_secs(15);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);
/// Lines of the agent's log that a failure shows.
const LOG_TAIL: usize = 40;

/// The stage.
pub(super) struct Stage<'janitor> {
    graylb: PathBuf,
    api_port: u16,
    directory: PathBuf,
    janitor: &'janitor Janitor,
    backends: Vec<(u16, Child)>,
    agent: Option<Child>,
}

impl<'janitor> Stage<'janitor> {
    /// A directory that only root can enter, with the files that the programs need.
    pub(super) fn new(
        graylb: PathBuf,
        api_port: u16,
        janitor: &'janitor Janitor,
    ) -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("graylb-demo-{}", janitor.token()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        janitor.remove(&directory)?;
        fs::write(directory.join("graylb.toml"), config(&directory, api_port))?;
        // So that the commands can be run as they are printed.
        fs::write(
            directory.join(".curlrc"),
            "silent\nshow-error\nmax-time = 5\nnoproxy = \"*\"\n",
        )?;
        Ok(Self { graylb, api_port, directory, janitor, backends: Vec::new(), agent: None })
    }

    /// Starts the backends, then the agent, and waits until the service is in the kernel.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        for port in BACKEND_PORTS {
            self.start_backend(port)?;
        }
        // Not earlier: with the backends' ports taken, no other demo can be at work on the pins.
        self.janitor.unload(&self.graylb, PIN_DIR)?;
        let log = File::create(self.directory.join("agent.log"))?;
        let mut agent = process::command(&self.graylb);
        agent.args(["run", "--config"]).arg(self.config_file());
        agent.stdout(log.try_clone()?).stderr(log);
        self.agent = Some(process::spawn(&mut agent)?);
        self.until("the agent puts the service in the kernel", |stage| {
            if let Some(agent) = &mut stage.agent
                && let Some(status) = agent.try_wait()?
            {
                bail!("the agent ended with {status}");
            }
            let report = stage.report();
            Ok(report.is_some_and(|report| {
                report["services"][0]["generation"].is_u64() && backends(&report, "up").len() == 2
            }))
        })
    }

    /// Starts one backend and waits until it listens.
    pub(super) fn start_backend(&mut self, port: u16) -> anyhow::Result<()> {
        let mut backend = process::command(std::env::current_exe()?);
        backend.args(["demo-backend", &port.to_string()]);
        self.backends.push((port, process::spawn(&mut backend)?));
        self.until(&format!("a backend listens on port {port}"), |stage| {
            if let Some((_, child)) = stage.backends.last_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("the backend on port {port} ended with {status}");
            }
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })
    }

    /// Kills a backend's process.
    pub(super) fn stop_backend(&mut self, port: u16) -> anyhow::Result<()> {
        let place = self.backends.iter().position(|(its, _)| *its == port);
        let (_, mut child) = self.backends.remove(place.context("no such backend")?);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Waits until the agent holds exactly these backends of the pool in force to be up.
    pub(super) fn until_up(&mut self, ports: &[u16]) -> anyhow::Result<()> {
        let wanted: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        self.until(&format!("the agent sees {} up and no other", wanted.join(" and ")), |stage| {
            Ok(stage.report().is_some_and(|report| backends(&report, "up") == wanted))
        })
    }

    /// Waits until something has happened.
    fn until(
        &mut self,
        what: &str,
        mut happened: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        while !happened(self)? {
            if started.elapsed() > DEADLINE {
                bail!("waited {DEADLINE:?} in vain for this: {what}");
            }
            interrupt::pause(LOOK)?;
        }
        Ok(())
    }

    /// Runs a command line as a user would type it, and returns what it prints.
    pub(super) fn shell(&self, line: &str) -> anyhow::Result<String> {
        let mut shell = process::command("sh");
        process::output(shell.args(["-c", line]).env("CURL_HOME", &self.directory))
    }

    fn report(&self) -> Option<Value> {
        let text = process::output(self.status().arg("--json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn status(&self) -> Command {
        let mut status = process::command(&self.graylb);
        status.args(["status", "--api", &self.api()]).stderr(Stdio::null());
        status
    }

    /// Holds everything as it is until somebody asks for the end.
    pub(super) fn until_interrupted(&self) {
        while interrupt::pause(LOOK).is_ok() {}
    }

    /// Shows the end of the agent's log.
    pub(super) fn show_log(&self) {
        let log = fs::read(self.directory.join("agent.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        if !lines.is_empty() {
            eprintln!("\nThe end of the agent's log:");
        }
        lines.iter().skip(lines.len().saturating_sub(LOG_TAIL)).for_each(|l| eprintln!("  | {l}"));
    }

    /// The API's address.
    pub(super) fn api(&self) -> String {
        format!("127.0.0.1:{}", self.api_port)
    }

    /// A command line of graylb's own, as one types it in the workspace.
    pub(super) fn graylb(&self, arguments: &str) -> String {
        let program = self.graylb.strip_prefix(process::workspace()).unwrap_or(&self.graylb);
        let api = match self.api_port {
            DEFAULT_API_PORT => String::new(),
            _ => format!(" --api {}", self.api()),
        };
        format!("{} {arguments}{api}", program.display())
    }

    /// The agent's config.
    pub(super) fn config_file(&self) -> PathBuf {
        self.directory.join("graylb.toml")
    }
}

/// Addresses of the first service's backends in a state.
fn backends(report: &Value, state: &str) -> Vec<String> {
    let all = report["services"][0]["backends"].as_array().map_or(&[][..], Vec::as_slice);
    let those = all.iter().filter(|backend| backend["state"] == state);
    those.filter_map(|backend| backend["address"].as_str().map(str::to_owned)).collect()
}

fn config(directory: &Path, api_port: u16) -> String {
    let [a, b, c, d] = BACKEND_PORTS;
    let probe = "probe = { type = \"http\", path = \"/\", interval = \"200ms\" }";
    format!(
        "[agent]
pin_dir = \"{PIN_DIR}\"
state_file = \"{}/state.json\"

[api]
listen = \"127.0.0.1:{api_port}\"

[interfaces.lo]

[services.demo]
address = \"127.0.0.1:{SERVICE_PORT}\"
default_pool = \"default_upstream\"

[pools.default_upstream]
backends = [\"127.0.0.1:{a}\", \"127.0.0.1:{b}\"]
{probe}

[pools.lua_upstream]
backends = [\"127.0.0.1:{c}\", \"127.0.0.1:{d}\"]
{probe}
",
        directory.display()
    )
}
