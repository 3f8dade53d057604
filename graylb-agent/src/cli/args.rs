//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  graylb check /etc/graylb/graylb.toml            look a config over
  graylb run --config /etc/graylb/graylb.toml     start the agent (as root)
  graylb status                                   where each service's traffic goes
  graylb status --drops                           what became of packets, and why
  graylb switch shop green                        send shop's new connections to pool green
  graylb switch shop 10.0.0.7:80,10.0.0.8:80      ... or to these backends
  curl 'http://127.0.0.1:7878/_switch_upstream?upstream=green' -H 'Host: shop.example'

Exit codes:
  0  done
  1  refused, or the config has mistakes; nothing changed
  2  the command line is wrong
  3  the agent cannot be reached
  4  the kernel or the system refused";

/// Moves the traffic of a service from one pool of backends to another, in the kernel, at once and
/// without dropping a connection.
#[derive(Debug, Parser)]
#[command(name = "graylb", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start the agent: load the programs, attach them, probe the backends, serve the API
    ///
    /// Runs in the foreground until SIGTERM or SIGINT. Programs and maps stay in the kernel then and go on
    /// moving traffic; the next start takes them over. SIGHUP reads the config again.
    Run {
        /// The config file
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
    },
    /// Look a config over: every mistake with its place, and what it would take
    Check {
        /// The config file
        #[arg(value_name = "FILE")]
        config: PathBuf,
    },
    /// Show services, where their traffic goes, and how the backends are
    Status {
        #[command(flatten)]
        client: ClientArguments,
        /// As JSON, as the API says it
        #[arg(long, conflicts_with = "drops")]
        json: bool,
        /// What became of packets, by verdict, instead
        #[arg(long)]
        drops: bool,
        /// With --drops: verdicts that no packet had, too
        #[arg(long, requires = "drops")]
        all: bool,
    },
    /// Send a service's new connections to another pool; existing ones stay where they are
    Switch {
        #[command(flatten)]
        client: ClientArguments,
        /// The service's name
        service: String,
        /// A pool's name, or addresses separated by commas
        pool: String,
        /// Even if no backend there answers its probe
        #[arg(long)]
        force: bool,
    },
    /// Read the config again; one with mistakes changes nothing
    Reload {
        #[command(flatten)]
        client: ClientArguments,
    },
    /// Detach and remove everything from the kernel; refused while an agent runs
    Unload {
        /// Where it is pinned
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/graylb")]
        pin_dir: PathBuf,
    },
}

#[derive(Args, Clone, Debug)]
pub(super) struct ClientArguments {
    /// The agent's API
    #[arg(long, value_name = "ADDRESS:PORT", env = "GRAYLB_API", default_value_t = crate::DEFAULT_API)]
    pub(super) api: SocketAddr,
    /// File with the API's token
    #[arg(long, value_name = "FILE", env = "GRAYLB_TOKEN_FILE")]
    pub(super) token_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        super::Arguments::command().debug_assert();
    }
}
