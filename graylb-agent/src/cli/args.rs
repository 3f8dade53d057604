//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::model::split::{Cidr, Share};

const EXAMPLES: &str = "\
Examples:
  graylb check /etc/graylb/graylb.toml            look a config over
  graylb run --config /etc/graylb/graylb.toml     start the agent (as root)
  graylb status                                   where each service's traffic goes
  graylb status --drops                           what became of packets, and why
  graylb switch shop green                        send shop's new connections to pool green
  graylb switch shop 10.0.0.7:80,10.0.0.8:80      ... or to these backends
  graylb share shop green 5%                      send a twentieth of shop's clients to green
  graylb rules add shop 192.0.2.0/24 green        send our testers there, whatever the share
  graylb undo shop                                take that back
  graylb rollout start shop --to green --hold 5m  from 1% to all in steps, and back if it is worse
  graylb drain green 10.0.0.7:80 --wait 5m        no new connections there; wait for the others to end
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
    ///
    /// A canary and client rules stay, unless the pool was the canary: that is promoted.
    Switch {
        #[command(flatten)]
        client: ClientArguments,
        #[command(flatten)]
        change: ChangeArguments,
        /// A pool's name, or addresses separated by commas
        pool: String,
    },
    /// Send a share of a service's clients to a canary pool, or end that
    ///
    /// A share that grows only adds clients, one that shrinks takes the newest away. Existing connections stay
    /// where they are.
    Share {
        #[command(flatten)]
        client: ClientArguments,
        #[command(flatten)]
        change: ChangeArguments,
        /// The canary pool's name, or addresses separated by commas
        #[arg(required_unless_present = "end")]
        pool: Option<String>,
        /// Its part of the clients, as in 5% or 0.25%
        #[arg(required_unless_present = "end")]
        share: Option<Share>,
        /// No canary any more: all its clients go to the stable pool
        #[arg(long, conflicts_with_all = ["pool", "share"])]
        end: bool,
    },
    /// Send some clients to a pool of their own, whatever the share
    Rules {
        #[command(subcommand)]
        command: RulesCommand,
    },
    /// Send a growing share of a service's clients to another pool, and judge it on the way
    ///
    /// From step to step, as long as the canary is no worse than the stable pool; back by itself when it is, and
    /// also when the agent dies.
    Rollout {
        #[command(subcommand)]
        command: RolloutCommand,
    },
    /// Take the latest change of a service back, or all since a revision; that can be undone, too
    Undo {
        #[command(flatten)]
        client: ClientArguments,
        #[command(flatten)]
        change: ChangeArguments,
        /// The revision to go back to
        revision: Option<u64>,
    },
    /// Send no new connections to backends of a pool, and say how many are left there
    ///
    /// With --wait, exits with 0 once no more than --until are left: then it is safe to stop the process.
    Drain {
        #[command(flatten)]
        client: ClientArguments,
        /// The pool's name
        pool: String,
        /// Its backends; all of it if none is named
        backends: Vec<SocketAddr>,
        /// Even if nobody is left to take a service's new connections
        #[arg(long)]
        force: bool,
        /// Wait so long for the connections to end, as in 30s or 5m
        #[arg(long, value_name = "DURATION", value_parser = crate::config::duration)]
        wait: Option<Duration>,
        /// With --wait: until so many are left
        #[arg(long, value_name = "FLOWS", default_value_t = 0, requires = "wait")]
        until: u64,
    },
    /// Let drained backends take new connections again
    Undrain {
        #[command(flatten)]
        client: ClientArguments,
        /// The pool's name
        pool: String,
        /// Its backends; all of it if none is named
        backends: Vec<SocketAddr>,
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

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Start a rollout with its first step
    Start {
        #[command(flatten)]
        client: ClientArguments,
        /// The service's name
        service: String,
        #[command(flatten)]
        plan: PlanArguments,
        /// Only if the service is still at this revision, which `graylb status` shows
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<u64>,
    },
    /// Show how it is, what the gates say, and what happened
    Status {
        #[command(flatten)]
        target: RolloutTarget,
        /// As JSON, as the API says it
        #[arg(long)]
        json: bool,
    },
    /// Stay at the step; breaches are looked for as before
    Pause(RolloutTarget),
    /// Go on with the step, with its full time anew
    Resume(RolloutTarget),
    /// Make the canary the stable pool now, whatever the gates say
    Promote(RolloutTarget),
    /// Go back to the stable pool
    Abort(RolloutTarget),
}

#[derive(Args, Clone, Debug)]
pub(super) struct RolloutTarget {
    #[command(flatten)]
    pub(super) client: ClientArguments,
    /// The service's name
    pub(super) service: String,
}

#[derive(Args, Clone, Debug)]
pub(super) struct PlanArguments {
    /// The pool's name, or addresses separated by commas
    #[arg(long, value_name = "POOL")]
    pub(super) to: String,
    /// The canary's shares, growing, up to 100%
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SHARES",
        default_value = "1%,5%,25%,50%,100%"
    )]
    pub(super) steps: Vec<Share>,
    /// How long each is held at least, as in 90s or 2m
    #[arg(long, value_name = "TIME", default_value = "2m")]
    pub(super) hold: String,
    /// How much longer for want of samples, before it pauses; 10 times the hold, and 10m at least, unless given
    #[arg(long, value_name = "TIME")]
    pub(super) patience: Option<String>,
    /// How long the kernel keeps the share when the agent is gone
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(super) lease: String,
    /// A gate's limit, as in failures=2%, or failures=off; may be given several times
    #[arg(long = "gate", value_name = "GATE=LIMIT")]
    pub(super) gates: Vec<String>,
    /// Samples of each pool that a gate needs to pass [default: 200]
    #[arg(long, value_name = "COUNT")]
    pub(super) min_samples: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum RulesCommand {
    /// Show a service's client rules, a line each: a network and a pool
    List {
        #[command(flatten)]
        client: ClientArguments,
        /// The service's name
        service: String,
    },
    /// Put the rules of a file in place of all that there are
    Set {
        #[command(flatten)]
        client: ClientArguments,
        #[command(flatten)]
        change: ChangeArguments,
        /// The file, as `list` prints it: lines with a network and a pool, and what is behind # left out; -: stdin
        file: PathBuf,
    },
    /// Add a rule, or change it
    Add {
        #[command(flatten)]
        client: ClientArguments,
        #[command(flatten)]
        change: ChangeArguments,
        /// The clients' network, as in 192.0.2.0/24; where several hold, the smallest wins
        network: Cidr,
        /// The pool's name, or addresses separated by commas
        pool: String,
    },
    /// Remove a rule
    Remove {
        #[command(flatten)]
        client: ClientArguments,
        #[command(flatten)]
        change: ChangeArguments,
        /// The clients' network
        network: Cidr,
    },
}

/// What every change of a service's split takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ChangeArguments {
    /// The service's name
    pub(super) service: String,
    /// Even if no backend there answers its probe
    #[arg(long)]
    pub(super) force: bool,
    /// Only if the service is still at this revision, which `graylb status` shows
    #[arg(long, value_name = "REVISION", alias = "if-generation")]
    pub(super) if_revision: Option<u64>,
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
