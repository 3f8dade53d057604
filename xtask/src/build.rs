//! `cargo xtask build`, and where the programs are.

use std::{
    env,
    io::{IsTerminal as _, stderr},
    path::PathBuf,
    process::Command,
};

use anyhow::Context as _;

use crate::{
    process::{self, Stop},
    setup::{self, Purpose},
};

/// Sets up and builds for use.
pub(crate) fn release() -> anyhow::Result<()> {
    setup::run(Purpose::Build)?;
    println!("Building graylb (release)");
    with_progress(&mut process::cargo(["build", "--release", "--package", "graylb-agent"]))?;
    println!("{}", target_directory()?.join("release/graylb").display());
    Ok(())
}

/// Builds what the demo runs, in the profile that the tests share, which is built soonest.
pub(crate) fn development() -> anyhow::Result<PathBuf> {
    println!("Building graylb");
    with_progress(&mut process::cargo(["build", "--package", "graylb-agent"]))?;
    development_program()
}

/// Where a build in the development profile puts the program.
pub(crate) fn development_program() -> anyhow::Result<PathBuf> {
    Ok(target_directory()?.join("debug/graylb"))
}

/// On a terminal cargo shows its own progress; elsewhere it would fill the log with crate names.
fn with_progress(command: &mut Command) -> anyhow::Result<()> {
    if stderr().is_terminal() {
        process::shown(command)
    } else {
        process::quietly(command, Stop::All)
    }
}

/// Cargo's target directory, wherever the user has put it: this program is in it.
fn target_directory() -> anyhow::Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask is")?;
    xtask.ancestors().nth(2).map(PathBuf::from).context("xtask is not in a target directory")
}
