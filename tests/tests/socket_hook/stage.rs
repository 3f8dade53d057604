//! What these tests stand on: a namespace with backends, an agent, and clients.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use graylb_tests::sandbox::Sandbox;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// How long anything that works may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Where clients go, IPv4.
pub const VIRTUAL: &str = "127.0.0.1:8000";
/// The same, IPv6.
pub const VIRTUAL_V6: &str = "[::1]:8000";
/// The same as [`VIRTUAL`] for an IPv6 socket.
pub const MAPPED: &str = "[::ffff:127.0.0.1]:8000";

/// A pool of two backends for each protocol and family, and another pool.
pub const SERVICES: &str = r#"
[services.tcp4]
address = "127.0.0.1:8000"
default_pool = "blue4"
[services.tcp6]
address = "[::1]:8000"
default_pool = "blue6"
[services.udp4]
address = "127.0.0.1:8000"
protocol = "udp"
default_pool = "blue4"
[services.udp6]
address = "[::1]:8000"
protocol = "udp"
default_pool = "blue6"
[services.other]
address = "127.0.0.1:8001"
protocol = "udp"
default_pool = "green4"
[pools.blue4]
backends = ["127.0.0.1:18081", "127.0.0.1:18082"]
[pools.blue6]
backends = ["[::1]:18081", "[::1]:18082"]
[pools.green4]
backends = ["127.0.0.1:18083"]
"#;

/// The socket hook, and TC on loopback.
pub const BOTH: &str = "[socket_hook]\nenabled = true\n[interfaces.lo]\n";
/// The socket hook alone.
pub const HOOK_ALONE: &str = "[socket_hook]\nenabled = true\n[interfaces.elsewhere]\n";

/// Parses an address.
pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Looks until `look` finds something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A namespace with an agent's files in it.
pub struct Stage {
    name: String,
    directory: PathBuf,
    pin_dir: PathBuf,
}

impl Stage {
    /// Makes the namespace `role`, with a loopback and an interface that no packet passes.
    pub fn new(sandbox: &Sandbox, role: &str) -> Self {
        let name = format!("{}-{role}", sandbox.name());
        let directory = sandbox.directory().join(role);
        fs::create_dir(&directory).expect("make a directory");
        // All of a sandbox's pins lie below one directory.
        let stage = Self { name, directory, pin_dir: sandbox.pin_dir() };
        ip(&["netns", "add", &stage.name]);
        ip(&["-n", &stage.name, "link", "set", "lo", "up"]);
        ip(&["-n", &stage.name, "link", "add", "elsewhere", "type", "veth"]);
        stage
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let file = File::open(Path::new("/run/netns").join(&self.name));
            let file = file.expect("open the namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enter the namespace");
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command inside the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Where a map, program or link is pinned, by the end of its path.
    pub fn pin(&self, path: &str) -> PathBuf {
        self.pin_dir.join(format!("abi-{}", graylb_common::abi::ABI_VERSION)).join(path)
    }

    /// The config file.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("graylb.toml")
    }

    /// Writes a config, all but the section `agent`.
    pub fn configure(&self, config: &str) {
        let state = self.directory.join("state").join("state.json");
        let agent = format!("[agent]\npin_dir = {:?}\nstate_file = {state:?}\n", self.pin_dir);
        let flows = "[flows]\ntcp = 1024\nhalf_open = 1024\nudp = 1024\nudp_timeout = \"1s\"\n";
        fs::write(self.config_file(), format!("{agent}{flows}{config}")).expect("write the config");
    }

    /// Runs `graylb ARGUMENTS`.
    pub fn graylb(&self, arguments: &[&str]) -> Output {
        self.command(binary()).args(arguments).output().expect("run graylb")
    }

    /// Runs `graylb ARGUMENTS`, which must work; what it prints.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = self.graylb(arguments);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "graylb {arguments:?}: {why}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The status report.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.cli(&["status", "--json"])).expect("JSON")
    }

    /// New flows of a service that were sent to a backend of the pool in force, by its place.
    pub fn opened(&self, service: &str, backend: usize) -> u64 {
        let status = self.status();
        let mut services = status["services"].as_array().expect("services").iter();
        let service = services.find(|s| s["name"] == service).expect("the service");
        service["backends"][backend]["opened"].as_u64().expect("a counter")
    }

    /// A verdict's counter.
    pub fn verdict(&self, name: &str) -> u64 {
        self.status()["verdicts"][name].as_u64().expect("a counter")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&self) -> Agent<'_> {
        let log =
            OpenOptions::new().create(true).append(true).open(self.directory.join("agent.log"));
        let mut command = self.command(binary());
        command.args(["run", "--config"]).arg(self.config_file());
        let child = command.stderr(log.expect("open the log")).spawn().expect("start graylb");
        let mut agent = Agent { stage: self, child };
        eventually("the agent answers", || {
            let ended = agent.child.try_wait().expect("wait for graylb");
            assert_eq!(ended, None, "graylb ended:\n{}", self.log());
            self.graylb(&["status"]).status.success().then_some(())
        });
        agent
    }

    /// The files below `links` of the socket hook.
    pub fn socket_links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.pin("links")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("graylb_")).collect()
    }

    /// TCP and UDP servers at every backend address of [`SERVICES`], which answer with `mark` and their
    /// port.
    pub fn serve(&self, mark: &str) {
        for host in ["127.0.0.1", "[::1]"] {
            for port in 18081..=18083 {
                self.serve_at(address(&format!("{host}:{port}")), mark);
            }
        }
    }

    fn serve_at(&self, address: SocketAddr, mark: &str) {
        let text = format!("{mark}{}", address.port() % 100);
        let (tcp, udp) = self.run(|| (TcpListener::bind(address), UdpSocket::bind(address)));
        let (tcp, udp) = (tcp.expect("listen"), udp.expect("bind"));
        let name = text.clone();
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { continue };
                let peer =
                    stream.peer_addr().map_or_else(|_| String::new(), |p| p.ip().to_string());
                let _client_went_away = stream.write_all(format!("{name} {peer}").as_bytes());
            }
        });
        thread::spawn(move || {
            while let Ok((_, peer)) = udp.recv_from(&mut [0; 64]) {
                let _client_went_away = udp.send_to(text.as_bytes(), peer);
            }
        });
    }

    /// Connects and reads what the backend says, and whom the socket says it is connected to.
    pub fn ask(&self, target: &str) -> io::Result<(String, SocketAddr)> {
        self.run(|| {
            let mut stream = TcpStream::connect(target)?;
            let peer = stream.peer_addr()?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok((text, peer))
        })
    }

    /// Names of the backends that answer `count` connections, one after another.
    pub fn turns(&self, target: &str, count: usize) -> Vec<String> {
        let one = |_| {
            let (text, peer) = self.ask(target).unwrap_or_else(|e| panic!("{target}: {e}"));
            assert_eq!(peer, address(target));
            text.split(' ').next().unwrap_or_default().to_owned()
        };
        (0..count).map(one).collect()
    }

    /// A UDP socket, not connected.
    pub fn udp(&self, local: &str) -> Udp {
        let socket = self.run(|| UdpSocket::bind(local)).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
        Udp(socket)
    }
}

/// The `graylb` binary beside this test's executable.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("this executable's path");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    profile.join("graylb")
}

/// Runs `ip ARGUMENTS`.
pub fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("run ip");
    assert!(status.success(), "ip {arguments:?}");
}

/// A running agent; dropped, it is killed.
pub struct Agent<'s> {
    stage: &'s Stage,
    child: Child,
}

impl Agent<'_> {
    /// Ends it without warning.
    pub fn kill(mut self) {
        self.child.kill().expect("kill graylb");
        let _killed = self.child.wait().expect("wait for graylb");
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", self.stage.log());
        }
    }
}

/// A UDP client.
pub struct Udp(pub UdpSocket);

impl Udp {
    /// Sends to `target`; what the answer says and where it is from.
    pub fn ask_at(&self, target: &str) -> (String, SocketAddr) {
        self.0.send_to(b"?", target).expect("send");
        self.answer()
    }

    /// Sends to whom it is connected to.
    pub fn ask(&self) -> (String, SocketAddr) {
        self.0.send(b"?").expect("send");
        self.answer()
    }

    fn answer(&self) -> (String, SocketAddr) {
        let mut buffer = [0; 64];
        let (length, from) = self.0.recv_from(&mut buffer).expect("an answer");
        (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
    }
}
