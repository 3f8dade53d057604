//! The `graylb` command: arguments in, exit code out.

mod args;
mod check;
mod drain;
mod drops;
mod rollout;
mod run;
mod split;
mod status;

use std::{
    fmt::Display,
    fs,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use serde_json::json;

use self::args::{Arguments, ClientArguments, Command};
use crate::{
    apply,
    client::{Client, ClientError},
    daemon::{Reload, StatusReport},
};

/// How a command ends, for scripts; `--help` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// It was done.
    Done = 0,
    /// It was refused, or the config has mistakes; nothing changed.
    Refused = 1,
    /// The agent cannot be reached.
    Unreachable = 3,
    /// The kernel or the system refused.
    Failed = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match command {
        Command::Run { config } => run::run(&config),
        Command::Check { config } => check::check(&config),
        Command::Unload { pin_dir } => unload(&pin_dir),
        Command::Status { client, json, drops, all } => call(&client, async |client: Client| {
            let report: StatusReport = client.get("/v1/status").await?;
            Ok(match (json, drops) {
                (true, _) => format!("{:#}\n", json!(report)),
                (false, true) => drops::table(&report, all),
                (false, false) => status::table(&report),
            })
        }),
        Command::Switch { client, change, pool } => split::switch(&client, change, pool),
        Command::Share { client, change, pool, share, end: _ } => {
            split::share(&client, change, pool.zip(share))
        }
        Command::Rules { command } => split::rules(command),
        Command::Rollout { command } => rollout::rollout(command),
        Command::Undo { client, change, revision } => split::undo(&client, change, revision),
        Command::Drain { client, pool, backends, force, wait, until } => {
            let patience = wait.map(|wait| drain::Patience { wait, until });
            drain::drain(&client, drain::Which { pool, backends }, force, patience)
        }
        Command::Undrain { client, pool, backends } => {
            drain::undrain(&client, drain::Which { pool, backends })
        }
        Command::Reload { client } => call(&client, async |client: Client| {
            let Reload { notes } = client.post("/v1/reload", &json!({})).await?;
            let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
            Ok(format!("{notes}the config is in force\n"))
        }),
    }
    .into()
}

/// Makes a call to the agent and prints what it returns.
fn call(
    arguments: &ClientArguments,
    call: impl AsyncFnOnce(Client) -> Result<String, ClientError>,
) -> Exit {
    let token = match &arguments.token_file {
        None => None,
        Some(path) => match fs::read_to_string(path) {
            Ok(token) => Some(token.trim().to_owned()),
            Err(error) => return fail(Exit::Refused, format_args!("{}: {error}", path.display())),
        },
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Failed, error),
    };
    match runtime.block_on(call(Client::new(arguments.api, token))) {
        Ok(text) => print(&text),
        Err(error @ ClientError::Unreachable { .. }) => fail(Exit::Unreachable, error),
        Err(error @ ClientError::Refused { .. }) => fail(Exit::Refused, error),
    }
}

fn unload(pin_dir: &std::path::Path) -> Exit {
    match apply::unload(pin_dir) {
        Ok(removed) if removed.is_empty() => {
            print(&format!("nothing to remove in {}\n", pin_dir.display()))
        }
        Ok(removed) => {
            let lines: String = removed.iter().map(|line| format!("{line}\n")).collect();
            print(&format!("{lines}removed {}\n", pin_dir.display()))
        }
        Err(error) => fail(Exit::Failed, error),
    }
}

/// Prints a result; a reader that has gone away is no failure.
fn print(text: &str) -> Exit {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(Exit::Failed, error),
        Ok(()) | Err(_) => Exit::Done,
    }
}

/// Says why, on stderr.
fn fail(exit: Exit, why: impl Display) -> Exit {
    // With stderr gone there is nobody left to tell.
    let _nobody_reads = writeln!(io::stderr(), "graylb: {why}");
    exit
}
