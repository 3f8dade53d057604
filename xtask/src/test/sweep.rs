//! Leftovers of test runs that were killed together with their janitors: network namespaces, pin
//! directories and temporary directories called `glbt-PID-…` whose process is gone.

use std::{fs, path::Path};

use crate::process;

/// What every name begins with; graylb-tests' sandbox gives them.
const PREFIX: &str = "glbt-";

/// Removes them, saying what.
pub(super) fn leftovers() {
    for namespace in names(Path::new("/run/netns")) {
        println!("sweeping: network namespace {namespace} of a run that is gone");
        let mut list = process::command("ip");
        let pids = process::output(list.args(["netns", "pids", &namespace])).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // It may have ended by itself.
                let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let mut delete = process::command("ip");
        report(process::output(delete.args(["netns", "delete", &namespace])).map(drop));
    }
    for parent in [Path::new("/sys/fs/bpf"), &std::env::temp_dir()] {
        for name in names(parent) {
            let directory = parent.join(name);
            println!("sweeping: {} of a run that is gone", directory.display());
            report(fs::remove_dir_all(&directory).map_err(Into::into));
        }
    }
}

fn report(done: anyhow::Result<()>) {
    if let Err(error) = done {
        println!("sweeping: {error:#}");
    }
}

/// Names in a directory that belong to a process that is gone.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| owner(name).is_some_and(|pid| !is_alive(pid))).collect()
}

/// The process in a name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::{is_alive, owner};

    #[test]
    fn only_names_of_tests_have_an_owner() {
        assert_eq!(owner("glbt-123-4"), Some(123));
        assert_eq!(owner("glbt-123-4-client"), Some(123));
        assert_eq!(owner("graylb"), None);
        assert_eq!(owner("glbt-x-1"), None);
        assert!(is_alive(std::process::id()));
    }
}
