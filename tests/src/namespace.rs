//! Network namespaces: made under a sandbox's name, entered by a thread or a program, gone with the
//! sandbox.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::PathBuf,
    process::Command,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    eventually::{SOON, eventually},
    sandbox::Sandbox,
};

/// A network namespace. Its sandbox's janitor removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with its loopback up, and without duplicate address detection, which would keep new IPv6
    /// addresses from being used for a second.
    ///
    /// # Panics
    ///
    /// The machine refuses; tests need root.
    #[must_use]
    pub fn add(sandbox: &Sandbox, role: &str) -> Self {
        let name = format!("{}-{role}", sandbox.name());
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0");
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
        namespace.ip("link set lo up");
        namespace
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Moves the calling thread in, for good. What a thread in a namespace opens stays in it, wherever it
    /// is used.
    ///
    /// # Panics
    ///
    /// The namespace is gone.
    pub fn enter(&self) {
        let file = File::open(self.path()).expect("open the namespace");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("enter the namespace");
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    ///
    /// # Panics
    ///
    /// `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.enter();
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command that runs `program` inside. Only the network differs: `ip netns exec` would mount another
    /// /sys over the one that has the BPF file system.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Runs `ip` on it, with arguments separated by blanks.
    ///
    /// # Panics
    ///
    /// `ip` fails.
    pub fn ip(&self, arguments: &str) {
        let arguments: Vec<&str> =
            ["-n", &self.name].into_iter().chain(arguments.split_whitespace()).collect();
        run("ip", &arguments);
    }

    /// Sets a sysctl, by its path below /proc/sys; those of the network belong to the namespace of the
    /// thread that opens them.
    ///
    /// # Panics
    ///
    /// There is none, or it takes no such value.
    pub fn sysctl(&self, path: &str, value: &str) {
        let file = format!("/proc/sys/{path}");
        self.run(|| fs::write(&file, value).unwrap_or_else(|e| panic!("{file} = {value}: {e}")));
    }

    /// Forwards between its interfaces.
    pub fn forward(&self) {
        self.sysctl("net/ipv4/ip_forward", "1");
        self.sysctl("net/ipv6/conf/all/forwarding", "1");
    }

    /// Connects it to `other` by a veth pair: `device` here, `other_device` there, both up.
    pub fn connect(&self, device: &str, other: &Self, other_device: &str) {
        let (here, there) = (&self.name, &other.name);
        let pair = format!(
            "link add {device} netns {here} type veth peer name {other_device} netns {there}"
        );
        run("ip", &pair.split_whitespace().collect::<Vec<_>>());
        self.ip(&format!("link set dev {device} up"));
        other.ip(&format!("link set dev {other_device} up"));
    }

    /// Gives `device` an address, which is in use at once.
    pub fn address(&self, device: &str, address: &str) {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("address add {address} dev {device} {nodad}"));
    }

    /// Makes a veth end fit for a peer that runs native XDP: checksums are finished before a packet
    /// leaves, since XDP sees packets as they are, and packets are received through NAPI, which is how XDP
    /// redirects to a veth device.
    pub fn face_xdp(&self, device: &str) {
        let target = format!("--net={}", self.path().display());
        run("nsenter", &[&target, "ethtool", "-K", device, "tx", "off", "gro", "on"]);
    }

    /// Waits until every link is up and every address is in use.
    ///
    /// # Panics
    ///
    /// They do not come up.
    pub fn wait_usable(&self) {
        eventually("links and addresses are usable", SOON, || {
            let tentative = output("ip", &["-n", &self.name, "-6", "address", "show", "tentative"]);
            let links = output("ip", &["-n", &self.name, "-o", "link", "show"]);
            let down = links.lines().find(|l| l.contains("NO-CARRIER") || l.contains("state DOWN"));
            match (tentative.trim(), down) {
                ("", None) => Ok(()),
                (tentative, down) => Err(format!("{tentative} {down:?}")),
            }
        });
    }
}

/// Runs a command that must succeed.
///
/// # Panics
///
/// It does not.
pub fn run(program: &str, arguments: &[&str]) {
    let _text = output(program, arguments);
}

/// Runs a command that must succeed, and returns what it prints.
///
/// # Panics
///
/// It does not succeed.
#[must_use]
pub fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
