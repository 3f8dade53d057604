//! `cargo xtask test`: everything that must hold before a change is taken, in one run without a terminal.
//!
//! Stages do not depend on each other: after one that fails the others still run, and the end names all that
//! failed. The demo comes last, because it looks for a quiet host.
//!
//! A test that cannot run on this machine says so with `graylb_tests::skip::skipped`, which writes a line to
//! the file that `GRAYLB_SKIP_LOG` names. A file, because the test harness hides what passing tests print.
//! Those tests, and ignored ones, must be listed in `tests/allowed-skips.txt`: a suite that quietly shrinks
//! would stay green.

mod skips;
mod sweep;

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    build,
    interrupt::Interrupted,
    process::{self, Stop},
    setup::{self, BPF_TOOLCHAIN, Purpose},
    tidy,
};

/// What the demo's backends answer, in order; in a pair of turns either may be first.
const DEMO_ANSWERS: [&str; 24] = [
    "81", "82", "81", "82", "83", "84", "83", "84", "83", "83", "83", "83", "81", "82", "81", "82",
    "81", "81", "81", "81", "81", "82", "81", "82",
];

/// Everything but the eBPF programs, which the agent's build script builds.
const HOST_CRATES: [&str; 3] = ["--workspace", "--exclude", "graylb-ebpf"];

/// A stage's name, what it does, and what of its output belongs into the summary.
type Stage = (&'static str, fn(&mut Vec<String>) -> anyhow::Result<()>);

const STAGES: [Stage; 6] = [
    ("format", |_| process::quietly(&mut process::cargo(["fmt", "--all", "--check"]), Stop::All)),
    ("tidy", |_| tidy::check()),
    ("clippy", |_| clippy()),
    ("clippy-ebpf", |_| clippy_ebpf()),
    ("tests", tests),
    ("demo", |_| demo()),
];

/// How a stage ended.
struct Outcome {
    name: &'static str,
    took: Duration,
    error: Option<anyhow::Error>,
}

/// Runs all stages.
pub(crate) fn run() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the tests load programs and make network namespaces, which takes root: run it as root"
        );
    }
    setup::run(Purpose::Test)?;
    sweep::leftovers();
    let mut closing = Vec::new();
    let mut outcomes = Vec::new();
    for (name, stage) in STAGES {
        println!("\n== {name}");
        let started = Instant::now();
        let error = stage(&mut closing).err();
        if error.as_ref().is_some_and(|error| error.is::<Interrupted>()) {
            sweep::leftovers();
            return Err(Interrupted.into());
        }
        let outcome = Outcome { name, took: started.elapsed(), error };
        println!("{}", outcome.line());
        outcomes.push(outcome);
    }
    summarize(&closing, &outcomes)
}

impl Outcome {
    fn line(&self) -> String {
        let Self { name, took, error } = self;
        let took = took.as_secs_f64();
        match error {
            None => format!("ok      {name:<12} {took:>6.1} s"),
            Some(error) => format!("FAILED  {name:<12} {took:>6.1} s: {error:#}"),
        }
    }
}

fn summarize(closing: &[String], outcomes: &[Outcome]) -> anyhow::Result<()> {
    println!("\n== cargo test said");
    closing.iter().for_each(|line| println!("{line}"));
    println!("\n== summary");
    outcomes.iter().for_each(|outcome| println!("{}", outcome.line()));
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome.error.is_some())
        .map(|outcome| outcome.name)
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Lints of everything that runs on the host.
fn clippy() -> anyhow::Result<()> {
    let mut clippy = process::cargo(["clippy"].into_iter().chain(HOST_CRATES));
    // Clippy runs the agent's build script anew, and has no use for the eBPF object.
    clippy.env("AYA_BUILD_SKIP", "1");
    process::quietly(clippy.args(["--all-targets", "--", "--deny", "warnings"]), Stop::All)
}

/// Lints of the eBPF programs, with the compiler that builds them; the agent's build script only shows its
/// warnings.
fn clippy_ebpf() -> anyhow::Result<()> {
    let root = setup::sysroot(BPF_TOOLCHAIN).context("there is no BPF toolchain")?;
    let mut clippy = process::command("rustup");
    clippy.args(["run", BPF_TOOLCHAIN, "cargo", "clippy", "--package", "graylb-ebpf"]);
    clippy.args(["--target", "bpfel-unknown-none", "--target-dir", "target/ebpf-clippy"]);
    if setup::needs_build_std(&root) {
        clippy.args(["-Z", "build-std=core"]);
    }
    clippy.args(["--", "--deny", "warnings"]);
    // As aya-build has it, whose cfg the bindings choose the architecture by.
    clippy.env("RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH));
    process::quietly(clippy.current_dir(process::workspace()), Stop::All)
}

/// Unit, doc, packet and namespace tests, and which of them did not run.
fn tests(closing: &mut Vec<String>) -> anyhow::Result<()> {
    println!("Building the tests");
    build_all()?;
    let log = skips::Log::new()?;
    let mut run = process::cargo(["test"].into_iter().chain(HOST_CRATES));
    run.arg("--no-fail-fast");
    log.pass_to(&mut run);
    let (status, lines) = process::teed(run)?;
    closing.extend(lines.iter().filter(|line| is_result(line)).cloned());
    let skipped = log.check(&lines);
    if !status.success() {
        bail!("cargo test ended with {status}");
    }
    if !lines.iter().any(|line| line.starts_with("test result: ok")) {
        bail!("cargo test ran no test");
    }
    skipped
}

/// Builds tests and programs together. Not by `cargo test --no-run`, which would leave out the program that
/// the namespace tests and the demo run.
fn build_all() -> anyhow::Result<()> {
    let mut build = process::cargo(["build"].into_iter().chain(HOST_CRATES));
    process::quietly(build.arg("--all-targets"), Stop::All)
}

/// Whether a line of cargo test's says how a group of tests or a failed test came out.
fn is_result(line: &str) -> bool {
    let line = line.trim_start();
    ["Running ", "Doc-tests ", "test result: "].iter().any(|start| line.starts_with(start))
        || line.starts_with("test ") && line.ends_with("... FAILED")
}

/// The demo, from its command on, and who answered. It runs the program that the tests ran: as a package of
/// its own the agent would be built once more, with other features of its dependencies. Where the tests do
/// not build, it comes to that.
fn demo() -> anyhow::Result<()> {
    let mut demo = process::cargo(["run", "--quiet", "--package", "xtask", "--", "demo"]);
    if build_all().is_ok() {
        demo.arg("--graylb").arg(build::development_program()?);
    }
    let (status, lines) = process::teed(demo)?;
    if !status.success() {
        bail!("the demo ended with {status}");
    }
    let answers: Vec<&str> = lines.iter().filter_map(|line| line.strip_suffix(" server")).collect();
    if in_pairs(&answers) != in_pairs(&DEMO_ANSWERS) {
        bail!("the demo's answers should be {DEMO_ANSWERS:?}, and were {answers:?}");
    }
    Ok(())
}

fn in_pairs<'a>(answers: &[&'a str]) -> Vec<Vec<&'a str>> {
    let sorted = |pair: &[&'a str]| {
        let mut pair = pair.to_vec();
        pair.sort_unstable();
        pair
    };
    answers.chunks(2).map(sorted).collect()
}

#[cfg(test)]
mod tests_of_this {
    use super::{in_pairs, is_result};

    #[test]
    fn results_are_told_from_the_rest() {
        assert!(is_result("test result: ok. 3 passed; 0 failed"));
        assert!(is_result("     Running unittests src/lib.rs (target/debug/deps/a-1)"));
        assert!(is_result("test a::b ... FAILED"));
        assert!(!is_result("test a::b ... ok"));
    }

    #[test]
    fn either_of_a_pair_may_be_first() {
        assert_eq!(in_pairs(&["82", "81"]), in_pairs(&["81", "82"]));
        assert_ne!(in_pairs(&["81", "81"]), in_pairs(&["81", "82"]));
        assert_ne!(in_pairs(&["81", "82", "81"]), in_pairs(&["81", "82"]));
    }
}
