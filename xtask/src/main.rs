//! graylb's own chores: `cargo xtask setup|build|demo|test|tidy|vm`.
#![forbid(unsafe_code)]

mod build;
mod demo;
mod interrupt;
mod process;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{demo::DemoArguments, interrupt::Interrupted, setup::Purpose};

/// Exit code of a shell's command that SIGINT ended.
const INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "graylb's own chores", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what building, the demo and the tests need and is missing
    Setup,
    /// Set up, and build target/release/graylb
    Build,
    /// Set up, build, and show a switch on this host with curl (as root)
    Demo(DemoArguments),
    /// Set up, and run every check and test (as root)
    Test,
    /// Look the tracked files over for what neither compiler nor clippy sees
    Tidy {
        /// Write the generated parts of the docs anew
        #[arg(long)]
        fix: bool,
    },
    /// Set up qemu, and try other kernels: their verifiers, the packet tests, a few of the agent's (as root)
    Vm {
        /// Series of Debian's kernels, such as 6.1; 6.1 and 6.12 unless told otherwise
        series: Vec<String>,
        /// No tests: only load and attach the programs
        #[arg(long, conflicts_with = "all")]
        load: bool,
        /// All packet tests, which takes a quarter of an hour for each kernel
        #[arg(long)]
        all: bool,
        /// Write the table in docs/kernels.md anew
        #[arg(long)]
        fix: bool,
    },
    /// One HTTP backend of the demo
    #[command(hide = true)]
    DemoBackend {
        /// Port on 127.0.0.1
        port: u16,
    },
    /// Cleans up after the demo once standard input ends
    #[command(hide = true)]
    DemoJanitor {
        /// What the demo's processes have in their environment
        token: String,
    },
}

fn main() -> ExitCode {
    let Arguments { chore } = Arguments::parse();
    let done = match chore {
        Chore::DemoBackend { port } => demo::backend::serve(port),
        Chore::DemoJanitor { token } => demo::janitor::clean_up_after(&token),
        chore => interrupt::watch().and_then(|()| match chore {
            Chore::Setup => setup::run(Purpose::Test),
            Chore::Build => build::release(),
            Chore::Demo(arguments) => demo::run(&arguments),
            Chore::Test => test::run(),
            Chore::Tidy { fix: false } => tidy::check(),
            Chore::Tidy { fix: true } => tidy::fix(),
            Chore::Vm { series, load, all, fix } => {
                let tests = match (load, all) {
                    (true, _) => vm::Tests::None,
                    (_, true) => vm::Tests::All,
                    _ => vm::Tests::Some,
                };
                vm::run(&series, tests, fix)
            }
            Chore::DemoBackend { .. } | Chore::DemoJanitor { .. } => Ok(()),
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("xtask: {error}");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
