//! `cargo xtask demo`: a real switch on this host, step by step, with curl, every answer checked.
//!
//! In: root, free ports, nothing of graylb's in the kernel. Out: a transcript; and whatever happens, nothing
//! that was started, attached or pinned is left (see [`janitor`]).

pub(crate) mod backend;
pub(crate) mod janitor;
mod preflight;
mod script;
mod stage;

use std::path::PathBuf;

use clap::Args;

use self::{janitor::Janitor, stage::Stage};
use crate::{
    build,
    interrupt::Interrupted,
    process,
    setup::{self, Purpose},
};

/// Where the demo's agent pins.
const PIN_DIR: &str = "/sys/fs/bpf/graylb";
/// The virtual endpoint's port.
const SERVICE_PORT: u16 = 8000;
/// The backends' ports: two pools of two.
const BACKEND_PORTS: [u16; 4] = [18081, 18082, 18083, 18084];
/// Where `graylb` looks for the API if it is told nothing else.
const DEFAULT_API_PORT: u16 = 7878;

/// Options of the demo.
#[derive(Args)]
pub(crate) struct DemoArguments {
    /// Leave everything running at the end, to try more, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// The API's port on 127.0.0.1
    #[arg(long, default_value_t = DEFAULT_API_PORT)]
    port: u16,
    /// Run this graylb instead of building one
    #[arg(long, hide = true)]
    graylb: Option<PathBuf>,
}

/// Shows it.
pub(crate) fn run(arguments: &DemoArguments) -> anyhow::Result<()> {
    preflight::root()?;
    let janitor = Janitor::start()?;
    let done = prepare_and_play(arguments, &janitor);
    let cleaned = janitor.finish();
    match done {
        Ok(()) => {
            cleaned?;
            println!(
                "\nThe demo is over. Its processes have ended, and nothing is attached or pinned."
            );
            Ok(())
        }
        Err(error) => {
            if error.is::<Interrupted>() && cleaned.is_ok() {
                println!("\nStopped and cleaned up: no process, no program, no pin is left.");
            }
            if let Err(remains) = cleaned {
                eprintln!("xtask: {remains:#}");
            }
            Err(error)
        }
    }
}

fn prepare_and_play(arguments: &DemoArguments, janitor: &Janitor) -> anyhow::Result<()> {
    process::mark_with(janitor.token());
    // Before a long set-up, and again after it.
    preflight::nothing_in_the_way(arguments.port)?;
    setup::run(Purpose::Demo)?;
    let graylb = match &arguments.graylb {
        Some(program) => program.clone(),
        None => build::development()?,
    };
    preflight::nothing_in_the_way(arguments.port)?;
    let mut stage = Stage::new(graylb, arguments.port, janitor)?;
    println!(
        "\nFour small HTTP servers listen on 127.0.0.1:18081 to 18084, and graylb runs with {}.",
        stage.config_file().display()
    );
    let played = stage.start().and_then(|()| script::play(&mut stage));
    if let Err(error) = played {
        if !error.is::<Interrupted>() {
            stage.show_log();
        }
        return Err(error);
    }
    if arguments.keep {
        script::invite(&stage);
        stage.until_interrupted();
    }
    Ok(())
}
