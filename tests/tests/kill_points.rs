//! The agent is killed at each step of starting, reloading, switching and unloading: at the entry of each call
//! into the kernel that changes something, found by strace. What is left must be a whole data plane, the old
//! one or the new one, and the next agent must go on from it; and nothing may be left after unloading.
//!
//! Some of the points are tried, evenly spread; all of them with `GRAYLB_KILL_POINTS=all`.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
};

use graylb_tests::{
    agent::Installation,
    client,
    eventually::{SOON, eventually},
    namespace::{Namespace, output},
    stage::Stage,
};

/// Calls that change what others see.
const CALLS: &[&str] =
    &["bpf", "mkdir", "unlink", "rename", "rmdir", "fsync", "sendto", "capset", "prctl"];
/// Points of one call that are tried where not all are.
const SAMPLE: usize = 2;
/// Small tables are made and removed fast.
const SMALL: &str = "[limits]\nslots = 4096\nbackends = 256\nservices = 16\nsources = 16\n";

/// Agents under strace. A kill point is the nth entry of a call by the agent's first thread.
struct Scene {
    stage: Stage,
}

/// What became of a process under strace.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// The kill point was reached.
    Killed,
    /// It did what it was to do, without coming by the point.
    Survived,
}

impl Scene {
    fn new(more: &str) -> Self {
        let stage = Stage::new(None);
        let other = Namespace::add(&stage.sandbox, "other");
        stage.host.connect("veth", &other, "far");
        stage.host.wait_usable();
        stage.installation.configure(&format!(
            "{}[interfaces.veth]\nattach = \"xdp\"\n{SMALL}{more}",
            Stage::config(None)
        ));
        Self { stage }
    }

    fn installation(&self) -> &Installation {
        &self.stage.installation
    }

    /// `graylb ARGUMENTS` that is killed at a point.
    fn spawn_doomed(&self, call: &str, nth: usize, arguments: &[&str]) -> Child {
        let log = File::create(self.stage.sandbox.directory().join("doomed.log")).expect("a log");
        let inject = injection(call, nth);
        let mut command =
            self.installation().wrapped(&strace(call, "/dev/null", &[&inject]), arguments);
        let output = log.try_clone().expect("a log");
        command.stdout(output).stderr(log).spawn().expect("start strace")
    }

    /// Asks a running agent for something, and kills it at a point of doing so, which `ask` notices. Then it
    /// is killed anyway.
    fn ask_doomed(&self, call: &str, nth: usize, ask: &dyn Fn() -> bool) -> Fate {
        let agent = self.installation().start();
        let (pid, inject) = (agent.number().to_string(), injection(call, nth));
        let log = self.stage.sandbox.directory().join("strace.log");
        let output = File::create(&log).expect("a log");
        // The first thread alone, which does what is asked for; attached it says so.
        let mut strace = Command::new("strace");
        strace.args(["--output=/dev/null", "--trace", call, &inject, "--attach", &pid]);
        let mut strace = strace.stdin(Stdio::null()).stderr(output).spawn().expect("strace");
        eventually("strace is attached", SOON, || {
            let said = fs::read_to_string(&log).expect("strace's log");
            if said.contains("attached") { Ok(()) } else { Err(said) }
        });
        let fate = if ask() { Fate::Survived } else { Fate::Killed };
        agent.end();
        let _status = strace.wait().expect("wait for strace");
        fate
    }

    /// Starts an agent that is killed at a point, or when it is ready.
    fn start_doomed(&self, call: &str, nth: usize) -> Fate {
        let config = self.installation().config_file();
        let mut child =
            self.spawn_doomed(call, nth, &["run", "--config", &config.to_string_lossy()]);
        let fate = eventually("the agent is killed, or ready", SOON, || {
            if child.try_wait().expect("wait for strace").is_some() {
                return Ok(Fate::Killed);
            }
            let (status, _) = self.ask("/readyz").ok_or("it does not answer")?;
            if status == 200 { Ok(Fate::Survived) } else { Err("it is not ready") }
        });
        if fate == Fate::Survived {
            kill_tracee(&child);
        }
        let _status = child.wait().expect("wait for strace");
        fate
    }

    fn ask(&self, path: &str) -> Option<(u16, String)> {
        self.stage.host.run(|| {
            let target = Installation::API.parse().expect("an address");
            let mut connection = client::Connection::open(target).ok()?;
            connection.request("GET", path, "Connection: close\r\n", "").ok()
        })
    }

    /// Who answers a connection, at once.
    fn answer(&self) -> Result<String, client::Failure> {
        self.stage.host.run(|| client::ask(Stage::endpoint())).map(|reply| reply.backend)
    }

    /// Who answers two connections, in the order of their names.
    fn answers(&self, at: &str) -> Vec<String> {
        let answer = || self.answer().unwrap_or_else(|failure| panic!("{failure} after {at}"));
        let mut both = vec![answer(), answer()];
        both.sort_unstable();
        both
    }

    /// Whether connections are answered by these in turn, or refused. What went with the agent, or was unpinned, the
    /// kernel detaches a little later: connections that meet that are cut.
    fn check_whole_or_gone(&self, pool: [&str; 2], at: &str) {
        eventually(&format!("a whole data plane or none after {at}"), SOON, || {
            match (self.answer(), self.answer()) {
                (Ok(one), Ok(two))
                    if [&one, &two].iter().all(|name| pool.contains(&name.as_str())) =>
                {
                    Ok(())
                }
                (Err(one), Err(two)) if one.step == "connect" && two.step == "connect" => Ok(()),
                mixed => Err(mixed),
            }
        });
    }

    /// The next agent is ready, routes to one of the pools, and finds nothing damaged.
    fn check_next_agent(&self, pools: &[[&str; 2]], at: &str) {
        let agent = self.installation().start();
        let mut turns = self.stage.turns(2);
        turns.sort_unstable();
        assert!(pools.iter().any(|pool| turns == *pool), "{turns:?} after {at}");
        let status = agent.status();
        assert_eq!(status["problems"], serde_json::json!([]), "after {at}");
        agent.stop();
        let log = self.installation().log();
        assert!(!log.contains("damaged"), "after {at}:\n{log}");
        let state = self.installation().state_file();
        let directory = fs::read_dir(state.parent().expect("a directory")).expect("read it");
        assert!(directory.count() <= 1, "the state file alone, after {at}");
    }

    /// Unloading leaves nothing.
    fn check_unload(&self, at: &str) {
        let pins = self.installation().pin_dir().to_string_lossy().into_owned();
        let unloaded = self.installation().cli(&["unload", "--pin-dir", &pins]);
        assert_eq!(unloaded.code, 0, "{unloaded:?} after {at}");
        assert!(!self.installation().pin_dir().exists(), "after {at}");
        eventually("nothing is attached", SOON, || {
            let link = output("ip", &["-n", self.stage.host.name(), "link", "show", "veth"]);
            if link.contains("xdp") { Err(link) } else { Ok(()) }
        });
        eventually("nobody answers", SOON, || match self.answer() {
            Err(failure) if failure.step == "connect" => Ok(()),
            other => Err(format!("{other:?} after {at}")),
        });
    }
}

/// strace's option that kills.
fn injection(call: &str, nth: usize) -> String {
    format!("--inject={call}:signal=SIGKILL:when={nth}")
}

/// strace's command line for one call.
fn strace<'a>(call: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut line = vec!["strace", "--follow-forks", "--quiet=all"];
    line.extend(["--output", output, "--signal=none", "--interruptible=never", "--trace"]);
    line.push(call);
    line.extend(more);
    line.push("--");
    line
}

/// Kills the process that strace runs; strace ends with it.
fn kill_tracee(strace: &Child) {
    let children = format!("/proc/{0}/task/{0}/children", strace.id());
    let children = fs::read_to_string(children).unwrap_or_default();
    for child in children.split_whitespace() {
        let killed = Command::new("kill").args(["-KILL", child]).status();
        assert!(killed.expect("run kill").success());
    }
}

/// The points of a call to try, as far as they go: all, or every so many so that about [`SAMPLE`] are tried.
fn points(most: usize) -> impl Iterator<Item = usize> {
    let all = std::env::var_os("GRAYLB_KILL_POINTS").is_some_and(|value| value == "all");
    (1..).step_by(if all { 1 } else { most.div_ceil(SAMPLE).max(1) })
}

/// How often an agent does a call until it is ready, roughly.
fn count(scene: &Scene, call: &str) -> usize {
    let log = scene.stage.sandbox.directory().join("calls");
    let config = scene.installation().config_file();
    let output = log.to_string_lossy().into_owned();
    let arguments = ["run", "--config", &config.to_string_lossy()];
    let mut command = scene.installation().wrapped(&strace(call, &output, &[]), &arguments);
    let mut child = command.stderr(Stdio::null()).spawn().expect("start strace");
    eventually("the agent is ready", SOON, || match scene.ask("/readyz") {
        Some((200, _)) => Ok(()),
        other => Err(other),
    });
    kill_tracee(&child);
    let _status = child.wait().expect("wait for strace");
    fs::read_to_string(&log).expect("calls").lines().filter(|line| line.contains('(')).count()
}

/// What a scene is like before each try, what is tried and killed, and what must hold then.
struct Phase<'a> {
    name: &'a str,
    scene: &'a Scene,
    /// Tries once with a kill point.
    attempt: &'a dyn Fn(&str, usize) -> Fate,
    /// Pools that may answer afterwards, and whether nobody may.
    pools: &'a [[&'a str; 2]],
    may_be_gone: bool,
}

impl Phase<'_> {
    /// Tries the points of all calls; `most` says how often a call is done at most, roughly. Returns how often
    /// something was killed.
    fn run(&self, most: impl Fn(&str) -> usize, between: impl Fn(&str)) -> usize {
        let mut killed = 0;
        for call in CALLS {
            for nth in points(most(call)) {
                let at = format!("{call} {nth} of {}", self.name);
                let fate = (self.attempt)(call, nth);
                if self.may_be_gone {
                    self.scene.check_whole_or_gone(self.pools[0], &at);
                } else {
                    let answers = self.scene.answers(&at);
                    assert!(
                        self.pools.iter().any(|pool| answers == *pool),
                        "{answers:?} after {at}"
                    );
                }
                self.scene.check_next_agent(self.pools, &at);
                between(&at);
                if fate == Fate::Survived {
                    break;
                }
                killed += 1;
            }
        }
        println!("{}: killed {killed} times", self.name);
        killed
    }
}

const DEFAULT: [&str; 2] = ["81", "82"];
const OTHER: [&str; 2] = ["83", "84"];

fn check_first_starts(more: &str) {
    let scene = Scene::new(more);
    let phase = Phase {
        name: "a first start",
        scene: &scene,
        attempt: &|call, nth| scene.start_doomed(call, nth),
        pools: &[DEFAULT],
        may_be_gone: true,
    };
    let most = |call: &str| {
        let most = count(&scene, call);
        scene.check_unload("counting");
        most
    };
    assert!(phase.run(most, |at| scene.check_unload(at)) >= SAMPLE);
}

#[test]
fn first_starts() {
    check_first_starts("");
}

#[test]
fn first_starts_with_the_socket_hook() {
    check_first_starts("[socket_hook]\nenabled = true\n");
}

/// A start that takes over what another agent left, a switch among it.
#[test]
fn restarts() {
    let scene = Scene::new("");
    let agent = scene.installation().start();
    scene.installation().api().switch("demo", "lua_upstream");
    agent.stop();
    let phase = Phase {
        name: "a restart",
        scene: &scene,
        attempt: &|call, nth| scene.start_doomed(call, nth),
        pools: &[OTHER],
        may_be_gone: false,
    };
    assert!(phase.run(|call| count(&scene, call), |_| {}) >= SAMPLE);
    scene.check_unload("restarts");
}

/// A running agent is asked to switch.
#[test]
fn switches() {
    let scene = Scene::new("");
    scene.installation().start().stop();
    let phase = Phase {
        name: "a switch",
        scene: &scene,
        attempt: &|call, nth| {
            // To and fro; what was in force before does not matter.
            scene.ask_doomed(call, nth, &|| {
                let switch = |pool| scene.installation().cli(&["switch", "demo", pool]).code == 0;
                switch("lua_upstream") && switch("default_upstream")
            })
        },
        pools: &[DEFAULT, OTHER],
        may_be_gone: false,
    };
    assert!(phase.run(|_| SAMPLE, |_| {}) >= SAMPLE);
    scene.check_unload("switches");
}

/// A running agent is asked to read a config that takes an interface and a service away, and adds others.
#[test]
fn reloads() {
    let scene = Scene::new("");
    scene.stage.host.ip("link add second type veth peer name unused");
    let installation = scene.installation();
    let before = format!("{}[interfaces.veth]\nattach = \"xdp\"\n{SMALL}", Stage::config(None));
    let after = format!(
        "{}[interfaces.second]\nattach = \"tc\"\n[socket_hook]\nenabled = true\n\
         [services.second]\naddress = \"127.0.0.1:8001\"\ndefault_pool = \"lua_upstream\"\n{SMALL}",
        Stage::config(None)
            .replace("default_pool = \"default_upstream\"", "default_pool = \"lua_upstream\"")
    );
    installation.start().stop();
    let phase = Phase {
        name: "a reload",
        scene: &scene,
        attempt: &|call, nth| {
            installation.configure(&before);
            let fate = scene.ask_doomed(call, nth, &|| {
                installation.configure(&after);
                installation.cli(&["reload"]).code == 0
            });
            installation.configure(&before);
            fate
        },
        pools: &[DEFAULT, OTHER],
        may_be_gone: false,
    };
    assert!(phase.run(|_| 5 * SAMPLE, |_| {}) >= SAMPLE);
    scene.check_unload("reloads");
}

/// Unloading itself is cut short; the next one finishes it.
#[test]
fn unloads() {
    let scene = Scene::new("[socket_hook]\nenabled = true\n");
    let pins = scene.installation().pin_dir().to_string_lossy().into_owned();
    let mut killed = 0;
    for call in ["unlink", "rmdir"] {
        for nth in points(5 * SAMPLE) {
            scene.installation().start().stop();
            let mut child = scene.spawn_doomed(call, nth, &["unload", "--pin-dir", &pins]);
            let status = child.wait().expect("wait for strace");
            scene.check_whole_or_gone(DEFAULT, &format!("{call} {nth} of unloading"));
            if status.success() {
                break;
            }
            scene.check_unload(&format!("{call} {nth} of unloading"));
            killed += 1;
        }
    }
    println!("unloading: killed {killed} times");
    assert!(killed >= SAMPLE);
}
