//! The real agent: its config, its process, its command line and its API.

use std::{
    fs::{self, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    api::Api,
    binary::BINARY,
    client::Connection,
    eventually::{SOON, eventually},
    namespace::Namespace,
    sandbox::Sandbox,
};

/// Everything that one agent needs, in one sandbox: namespace, config, pins, state file, log.
#[derive(Debug)]
pub struct Installation {
    namespace: Namespace,
    directory: PathBuf,
    pin_dir: PathBuf,
}

impl Installation {
    /// Where the agent's API listens, in its namespace.
    pub const API: &str = "127.0.0.1:7878";

    /// Prepares one in `namespace`; `config` is all but the sections `agent` and `flows`, which are
    /// written here: the sandbox's paths, and small tables.
    #[must_use]
    pub fn new(sandbox: &Sandbox, namespace: &Namespace, config: &str) -> Self {
        let installation = Self {
            namespace: namespace.clone(),
            directory: sandbox.directory().to_owned(),
            pin_dir: sandbox.pin_dir(),
        };
        installation.configure(config);
        installation
    }

    /// Writes another config.
    ///
    /// # Panics
    ///
    /// The file cannot be written.
    pub fn configure(&self, config: &str) {
        let (pins, state) = (self.pin_dir.display(), self.state_file());
        let text = format!(
            "[agent]\npin_dir = {:?}\nstate_file = {state:?}\nlog = \"info,graylb_agent=debug\"\n\
             [flows]\ntcp = 65536\nhalf_open = 16384\nudp = 16384\n{config}",
            pins.to_string()
        );
        fs::write(self.config_file(), text).expect("write the config");
    }

    /// The config file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("graylb.toml")
    }

    /// The state file, in a directory of its own.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.directory.join("state").join("state.json")
    }

    /// The pin directory.
    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Where a map, program or link is pinned, by the end of its path.
    #[must_use]
    pub fn pin(&self, path: &str) -> PathBuf {
        self.pin_dir.join(format!("abi-{}", graylb_common::abi::ABI_VERSION)).join(path)
    }

    /// What the agents have logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// Waits for a text in the log.
    pub fn wait_log(&self, text: &str) {
        eventually(&format!("{text:?} is logged"), SOON, || {
            let log = self.log();
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }

    /// `graylb ARGUMENTS`, in the namespace.
    #[must_use]
    pub fn graylb(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(&BINARY.to_string_lossy());
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// `WRAPPER… graylb ARGUMENTS`, in the namespace.
    #[must_use]
    pub fn wrapped(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        let (program, before) = wrapper.split_first().expect("a program");
        let mut command = self.namespace.command(program);
        command.args(before).arg(&*BINARY).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `graylb ARGUMENTS` and returns exit code, stdout and stderr.
    ///
    /// # Panics
    ///
    /// It cannot be run, or is killed.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.graylb(arguments).output().expect("run graylb"))
    }

    /// `graylb run` with a config, which is to fail by itself.
    ///
    /// # Panics
    ///
    /// It runs.
    #[must_use]
    pub fn fail_to_start(&self, config: &Path) -> Ran {
        let mut command = self.run_command(config);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start graylb");
        let ended = || child.try_wait().expect("wait for graylb").ok_or("it runs");
        let limit = SOON;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("graylb ends by itself", limit, ended)
        }));
        if let Err(panic) = result {
            let _gone = child.kill();
            let _gone = child.wait();
            std::panic::resume_unwind(panic);
        }
        Ran::from(child.wait_with_output().expect("read graylb's output"))
    }

    fn run_command(&self, config: &Path) -> Command {
        let mut command = self.graylb(&["run", "--config"]);
        command.arg(config);
        command
    }

    /// Starts the agent and waits until it answers, ready or not.
    ///
    /// # Panics
    ///
    /// It ends, or does not answer in time.
    #[must_use]
    pub fn launch(&self) -> Agent<'_> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file());
        let child =
            self.run_command(&self.config_file()).stderr(log.expect("open the log")).spawn();
        let mut agent = Agent { installation: self, child: child.expect("start graylb") };
        eventually("the agent answers", SOON, || agent.assert_alive().call("GET", "/healthz", ""));
        agent
    }

    /// Starts the agent and waits until everything is in place.
    ///
    /// # Panics
    ///
    /// It ends, or is not ready in time.
    #[must_use]
    pub fn start(&self) -> Agent<'_> {
        let agent = self.launch();
        agent.wait_ready();
        agent
    }

    /// Runs curl in the namespace; returns the status and the whole body.
    ///
    /// # Panics
    ///
    /// curl fails.
    #[must_use]
    pub fn curl(&self, path: &str, arguments: &[&str]) -> (u16, String) {
        let output = self
            .namespace
            .command("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--write-out", "%{http_code}"])
            .args(arguments)
            .arg(format!("http://{}{path}", Self::API))
            .output()
            .expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        let (body, status) = text.split_at(text.len() - 3);
        (status.parse().expect("a status"), body.to_owned())
    }

    /// A connection to the API.
    ///
    /// # Panics
    ///
    /// Nobody is there.
    #[must_use]
    pub fn api(&self) -> Api {
        let target: SocketAddr = Self::API.parse().expect("an address");
        let connection = self.namespace.run(|| Connection::open(target));
        Api(connection.unwrap_or_else(|failure| panic!("API: {failure}")))
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("not killed"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running agent. Dropped, it is killed; a test that fails prints the log.
#[derive(Debug)]
pub struct Agent<'i> {
    installation: &'i Installation,
    child: Child,
}

impl Agent<'_> {
    fn assert_alive(&mut self) -> &Self {
        if let Some(status) = self.child.try_wait().expect("wait for graylb") {
            panic!("graylb has ended ({status}):\n{}", self.installation.log());
        }
        self
    }

    /// One call over a connection of its own; the body of a 200.
    ///
    /// # Errors
    ///
    /// Nobody answers, or not with 200.
    pub fn call(&self, method: &str, path: &str, body: &str) -> Result<String, String> {
        let target: SocketAddr = Installation::API.parse().expect("an address");
        let answer = self.installation.namespace.run(|| {
            let mut connection = Connection::open(target)?;
            connection.request(method, path, "Connection: close\r\n", body)
        });
        match answer {
            Ok((200, body)) => Ok(body),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// Waits until `/readyz` says so.
    pub fn wait_ready(&self) {
        eventually("the agent is ready", SOON, || self.call("GET", "/readyz", ""));
    }

    /// The status report.
    ///
    /// # Panics
    ///
    /// There is none.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let text = self.call("GET", "/v1/status", "").expect("a status report");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Its process's number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends it without warning, if it has not ended.
    pub fn end(mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }

    /// Ends it without warning (SIGKILL).
    ///
    /// # Panics
    ///
    /// It is gone already.
    pub fn kill(mut self) {
        assert_eq!(self.child.try_wait().expect("wait for graylb"), None, "it ended by itself");
        kill_process(self.pid(), Signal::KILL).expect("kill graylb");
        let _killed = self.child.wait().expect("wait for graylb");
    }

    /// Asks it to end (SIGTERM), and waits until it has, without an error.
    ///
    /// # Panics
    ///
    /// It does not end, or not well.
    pub fn stop(mut self) {
        kill_process(self.pid(), Signal::TERM).expect("stop graylb");
        let status = eventually("the agent stops", Duration::from_secs(5), || {
            self.child.try_wait().expect("wait for graylb").ok_or("it runs")
        });
        assert!(status.success(), "{status}\n{}", self.installation.log());
    }

    /// Stops it where it is (SIGSTOP), as if it hung.
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).expect("freeze graylb");
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("thaw graylb");
    }

    /// Asks it to read its config again (SIGHUP).
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn hang_up(&self) {
        kill_process(self.pid(), Signal::HUP).expect("signal graylb");
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if std::thread::panicking() {
            eprintln!("graylb's log:\n{}", self.installation.log());
        }
    }
}
