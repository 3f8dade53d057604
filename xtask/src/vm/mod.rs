//! `cargo xtask vm`: other kernels. Boots Debian's packaged ones in qemu, has each load every program through its
//! verifier, and runs the packet tests and a few of the real agent's there.
//!
//! Nothing is installed but qemu and the tools that pack the machine's only file system, an initramfs of busybox,
//! graylb, the tests and what they call. Emulated, so that it runs where there is no virtualization.

mod initramfs;
mod kernel;
mod page;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use self::kernel::Kernel;
use crate::{
    process,
    setup::{self, Purpose},
};

/// Kernel series that are tried unless told otherwise: Debian 12's and its backports'.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// Memory of a machine, in megabytes. Tests run two at a time, each with tables of its own.
const MEMORY: &str = "4096";
/// A machine that has not finished by then is stopped.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What a machine said.
#[derive(Debug, Default)]
struct Report {
    /// The kernel's release.
    release: String,
    /// Where the agent was attached, in its words.
    attached: Vec<String>,
    /// Programs: name, bytes, and instructions that the verifier went through.
    programs: Vec<Program>,
    passed: usize,
    failed: Vec<String>,
    problems: Vec<String>,
    done: bool,
}

#[derive(Debug)]
struct Program {
    name: String,
    bytes: u64,
    verified: u64,
}

/// Which tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tests {
    /// None: the programs are loaded and attached.
    None,
    /// Those where kernels may differ.
    Some,
    /// All packet tests.
    All,
}

/// Boots each series' newest kernel and runs the tests; with `fix`, writes what they said into the docs.
pub(crate) fn run(series: &[String], tests: Tests, fix: bool) -> anyhow::Result<()> {
    setup::run(Purpose::Vm)?;
    let tests = initramfs::tests(tests)?;
    let series: Vec<&str> = match series {
        [] => SERIES.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let directory = process::workspace().join("target/vm");
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let mut reports = Vec::new();
    for series in series {
        let kernel = kernel::newest(series, &directory)?;
        let image = initramfs::build(&kernel, &tests, &directory)?;
        println!("\n== {}", kernel.release);
        let report = boot(&kernel, &image)?;
        println!("{}", report.summary());
        reports.push(report);
    }
    page::check(&reports, fix)?;
    let bad: Vec<&str> =
        reports.iter().filter(|report| !report.is_good()).map(|r| r.release.as_str()).collect();
    if !bad.is_empty() {
        bail!("not all is well on {}", bad.join(", "));
    }
    Ok(())
}

/// Runs a machine to its end and listens to it.
fn boot(kernel: &Kernel, image: &Path) -> anyhow::Result<Report> {
    let mut qemu = process::command("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY]);
    qemu.args(["-nographic", "-no-reboot", "-nic", "none", "-append"]);
    qemu.arg("console=ttyS0 panic=-1 quiet").arg("-kernel").arg(&kernel.image).arg("-initrd");
    qemu.arg(image).stdout(Stdio::piped());
    let mut machine = qemu.spawn().context("cannot run qemu-system-x86_64")?;
    let output = machine.stdout.take().context("qemu's output")?;
    let (lines, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let mut report = Report { release: kernel.release.clone(), ..Report::default() };
    let end = Instant::now() + PATIENCE;
    loop {
        match said.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => report.take(&line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                let stop = crate::interrupt::check();
                if stop.is_err() || Instant::now() > end {
                    machine.kill().context("cannot stop qemu")?;
                    machine.wait()?;
                    stop?;
                    report.problems.push(format!("not done after {PATIENCE:?}"));
                    break;
                }
            }
        }
    }
    machine.wait().context("qemu")?;
    Ok(report)
}

impl Report {
    /// Takes in one line of what the machine says.
    fn take(&mut self, line: &str) {
        let Some(line) = line.find("VM-").map(|start| &line[start..]) else {
            if !self.problems.is_empty() || line.contains("Kernel panic") {
                // What follows a problem explains it.
                println!("    {line}");
            }
            if line.contains("Kernel panic") || line.contains("Out of memory") {
                self.problems.push(line.to_owned());
            }
            return;
        };
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "VM-OK" => self.passed += 1,
            "VM-FAILED" => self.failed.push(rest.to_owned()),
            "VM-ATTACHED" => self.attached.push(rest.to_owned()),
            "VM-PROBLEM" | "VM-PROBLEM:" => self.problems.push(rest.to_owned()),
            "VM-DONE" => self.done = true,
            "VM-PROGRAM" => {
                let words: Vec<&str> = rest.split(' ').collect();
                let number = |place: usize| words.get(place).and_then(|word| word.parse().ok());
                self.programs.push(Program {
                    name: words[0].to_owned(),
                    bytes: number(1).unwrap_or(0),
                    verified: number(2).unwrap_or(0),
                });
            }
            _ => {}
        }
    }

    fn is_good(&self) -> bool {
        self.done && self.failed.is_empty() && self.problems.is_empty() && !self.programs.is_empty()
    }

    fn summary(&self) -> String {
        let mut lines: Vec<String> =
            self.attached.iter().map(|line| format!("attached: {line}")).collect();
        let programs = self.programs.iter();
        lines.extend(programs.map(|p| {
            format!("{:<16} {:>8} bytes, {:>8} instructions verified", p.name, p.bytes, p.verified)
        }));
        lines.extend(self.failed.iter().map(|test| format!("FAILED {test}")));
        lines.extend(self.problems.iter().map(|problem| format!("PROBLEM {problem}")));
        let end = if self.done { "" } else { "; the machine did not come to its end" };
        lines.push(format!("{} tests passed, {} failed{end}", self.passed, self.failed.len()));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn reports_are_read() {
        let mut report = Report::default();
        for line in [
            "\u{1b}[2JVM-KERNEL 6.1.0",
            "VM-ATTACHED lo by tc: loopback",
            "VM-PROGRAM graylb_xdp 1234 56789",
            "VM-OK packet_tcp connections",
            "noise",
            "VM-DONE",
        ] {
            report.take(line);
        }
        assert!(report.is_good(), "{report:?}");
        assert_eq!(
            (report.passed, report.programs[0].bytes, report.programs[0].verified),
            (1, 1234, 56789)
        );
        report.take("VM-FAILED packet_tcp connections");
        assert!(!report.is_good() && report.summary().contains("FAILED packet_tcp connections"));
    }
}
