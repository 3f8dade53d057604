//! Other programs: found, run with a sign of life, stopped with this process.
//!
//! Each runs in a process group of its own and gets Ctrl-C from here, so that it ends the same way whether
//! the terminal or a supervisor asks.

use std::{
    collections::VecDeque,
    env,
    ffi::{OsStr, OsString},
    io::{self, BufRead as _, BufReader, Read},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::interrupt;

/// From one look at a running program to the next.
const LOOK: Duration = Duration::from_millis(20);
/// From one sign of life to the next.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Lines of a failed program's output that are shown.
const TAIL: usize = 100;
/// After a program's end, its output is there by then.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// In the environment of what is to end with the demo, however that ends.
pub(crate) const TOKEN: &str = "GRAYLB_DEMO";

static DEMO_TOKEN: OnceLock<String> = OnceLock::new();

/// Marks every program that is started from now on as the demo's.
pub(crate) fn mark_with(token: &str) {
    // One demo in a process.
    DEMO_TOKEN.get_or_init(|| token.to_owned());
}

/// A program from PATH, cargo's directory or the administrator's.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path()).stdin(Stdio::null());
    // `cargo run` sets these for its child, the last two by .cargo/config.toml. A cargo below would see
    // another environment than the user's own cargo, and each would build again what the other has built.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_MANIFEST_")
            || text == "RUSTC_BOOTSTRAP"
            || text == "CARGO_TERM_QUIET"
        {
            command.env_remove(name);
        }
    }
    if let Some(token) = DEMO_TOKEN.get() {
        command.env(TOKEN, token);
    }
    command
}

/// Cargo, in the workspace.
pub(crate) fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = command("cargo");
    cargo.args(arguments).current_dir(workspace());
    cargo
}

/// The workspace's directory.
pub(crate) fn workspace() -> PathBuf {
    let mut directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    directory.pop();
    directory
}

/// Cargo's directory for programs; a new machine may not have it in PATH.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(env::home_dir()?.join(".cargo"))).map(|home| home.join("bin"))
}

fn path() -> OsString {
    let given = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&given).collect();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    for directory in cargo_bin().into_iter().chain(more) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    env::join_paths(directories).unwrap_or(given)
}

/// Where a program is, if it is anywhere.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&path()).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// What a short program prints, if it succeeds. Ctrl-C takes effect once it has ended.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    interrupt::check()?;
    // Ctrl-C would make a failure of it, and a failure may mean something to the caller.
    let output = command.process_group(0).output();
    let output = output.with_context(|| format!("cannot run {}", line(command)))?;
    interrupt::check()?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", line(command), output.status, stderr.trim());
    }
    Ok(stdout)
}

/// The command line, as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// How a program is asked to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It and what it started.
    All,
    /// It alone, and it may finish what must not be torn (apt, when dpkg is at work).
    Gently,
}

/// Runs a long program without its output: a sign of life now and then, the last lines if it fails.
pub(crate) fn quietly(command: &mut Command, stop: Stop) -> anyhow::Result<()> {
    let started = Instant::now();
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as _),
        child.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    let readers = streams.map(|stream| {
        let tail = Arc::clone(&tail);
        thread::spawn(move || stream.into_iter().for_each(|stream| keep_tail(stream, &tail)))
    });
    let last = || {
        let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().rev().find(|line: &&String| !line.trim().is_empty()).cloned()
    };
    let mut next = HEARTBEAT;
    let status = wait(&mut child, stop, || {
        if started.elapsed() >= next {
            next += HEARTBEAT;
            let doing = last().unwrap_or_default();
            println!("    {:>3} s: {}", started.elapsed().as_secs(), doing.trim());
        }
    })?;
    // What the program has started and left behind may hold the pipes open.
    let ended = Instant::now();
    while !readers.iter().all(JoinHandle::is_finished) && ended.elapsed() < LAST_WORDS {
        thread::sleep(LOOK);
    }
    if status.success() {
        return Ok(());
    }
    for line in tail.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        eprintln!("  | {line}");
    }
    bail!("{} ended with {status}; its last lines are above", line(command))
}

/// Runs a program that prints for itself.
pub(crate) fn shown(command: &mut Command) -> anyhow::Result<()> {
    let status = wait(&mut spawn(command)?, Stop::All, || {})?;
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

/// Starts a program in a process group of its own.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    interrupt::check()?;
    command.process_group(0).spawn().with_context(|| format!("cannot run {}", line(command)))
}

/// Waits for a program, calling `look` again and again. On a signal, stops it and fails.
pub(crate) fn wait(
    child: &mut Child,
    stop: Stop,
    mut look: impl FnMut(),
) -> anyhow::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            interrupt::check()?;
            return Ok(status);
        }
        if let Err(interrupted) = interrupt::check() {
            if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
                // Not waited for yet, so the number is still its own. It may have ended: no matter.
                let _ended = match stop {
                    Stop::All => kill_process_group(pid, Signal::INT),
                    Stop::Gently => kill_process(pid, Signal::INT),
                };
            }
            child.wait()?;
            return Err(interrupted.into());
        }
        look();
        thread::sleep(LOOK);
    }
}

fn keep_tail(stream: impl Read, tail: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        // Of cargo's progress only the latest is worth a line.
        if tail.back().is_some_and(|last| is_progress(last)) {
            tail.pop_back();
        }
        tail.push_back(line);
        if tail.len() > TAIL {
            tail.pop_front();
        }
    }
}

/// Runs a program, passes its output on line by line, and returns it, too.
pub(crate) fn teed(mut command: Command) -> anyhow::Result<(ExitStatus, Vec<String>)> {
    let (reader, writer) = io::pipe()?;
    let mut child = spawn(command.stdout(writer.try_clone()?).stderr(writer))?;
    // It holds the writing ends, and the pipe is to end with the child.
    drop(command);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).into_owned();
            println!("{text}");
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    let status = wait(&mut child, Stop::All, || {})?;
    let mut lines = Vec::new();
    // What the program has started and left behind may hold the pipe open.
    while let Ok(line) = receiver.recv_timeout(LAST_WORDS) {
        lines.push(line);
    }
    Ok((status, lines))
}

fn is_progress(line: &str) -> bool {
    let line = line.trim_start();
    ["Compiling ", "Checking ", "Downloaded "].iter().any(|start| line.starts_with(start))
}
