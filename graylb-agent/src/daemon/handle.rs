//! How the API and signals talk to the daemon.

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{Readiness, StatusReport};
use crate::{
    model::{
        choice::PoolChoice,
        health::{Answer, Target},
        probe::ProbeSpec,
        spec::Name,
        state::SwitchError,
    },
    probe::Prober,
};

/// Commands that wait for the daemon, at most; further callers wait for room.
pub(super) const QUEUE: usize = 64;

/// Why a command was not carried out. Nothing has changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be done.
    #[error(transparent)]
    Refused(#[from] SwitchError),
    /// The config has mistakes.
    #[error("{0}")]
    Config(String),
    /// The kernel refused.
    #[error("{0}")]
    Kernel(String),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// An answer, or why there is none.
pub(super) type Reply<T> = Result<T, CommandError>;

/// How a client names a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRef {
    /// By its name in the config.
    Named(String),
    /// By what it calls its host.
    Host {
        /// Name, alias or virtual endpoint.
        host: String,
        /// Whether the only service there is may be meant even if the host is another.
        may_be_only: bool,
    },
}

/// A switch as a client asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchRequest {
    /// Which service.
    pub service: ServiceRef,
    /// To which pool or addresses.
    pub to: String,
    /// Even if nobody there answers.
    pub force: bool,
    /// Who asks, for the log.
    pub by: String,
}

/// A switch that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    /// The service.
    pub service: String,
    /// Where its new flows went before.
    pub from: String,
    /// Where they go now.
    pub to: String,
    /// Number of the data in force in the kernel.
    pub generation: u64,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warning: Option<String>,
}

/// A reload that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A switch that has been checked against the config.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) name: Name,
    pub(super) choice: PoolChoice,
    pub(super) to_ask: Vec<(Target, ProbeSpec)>,
    pub(super) endpoint: Option<SocketAddr>,
}

/// What the daemon is asked.
#[derive(Debug)]
pub enum Command {
    /// Check a switch.
    Prepare {
        /// Which service.
        service: ServiceRef,
        /// To what.
        asked: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<Prepared>>,
    },
    /// Carry a switch out.
    Switch {
        /// What was checked.
        prepared: Prepared,
        /// What backends answered.
        answers: Vec<(Target, Answer)>,
        /// Whatever they answered.
        force: bool,
        /// Who asks.
        by: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<Switched>>,
    },
    /// Read the config again.
    Reload {
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<Reload>>,
    },
    /// Say how things are.
    Status {
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<StatusReport>>,
    },
    /// Say whether everything is in place.
    Ready {
        /// Where the answer goes.
        reply: oneshot::Sender<Readiness>,
    },
}

/// Talks to the daemon; clones share it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) hosts: watch::Receiver<Arc<Vec<String>>>,
}

impl Handle {
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)
    }

    /// Host names by which services are known.
    #[must_use]
    pub fn aliases(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.hosts.borrow())
    }

    /// Switches a service. Backends that are not known to be up are asked first, here and not in the
    /// daemon. Returns with the kernel's data in force, and the service's virtual endpoint.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn switch(
        &self,
        request: SwitchRequest,
    ) -> Result<(Switched, Option<SocketAddr>), CommandError> {
        let SwitchRequest { service, to, force, by } = request;
        let prepared = self.ask(|reply| Command::Prepare { service, asked: to, reply }).await??;
        let endpoint = prepared.endpoint;
        let mut asking = JoinSet::new();
        for (target, probe) in prepared.to_ask.clone() {
            asking.spawn(async move {
                let answer = Prober::new(target.clone(), probe).ask().await;
                (target, answer)
            });
        }
        let answers = asking.join_all().await;
        let switched =
            self.ask(|reply| Command::Switch { prepared, answers, force, by, reply }).await??;
        Ok((switched, endpoint))
    }

    /// Reads the config again.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn reload(&self) -> Result<Reload, CommandError> {
        self.ask(|reply| Command::Reload { reply }).await?
    }

    /// How things are.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn status(&self) -> Result<StatusReport, CommandError> {
        self.ask(|reply| Command::Status { reply }).await?
    }

    /// Whether everything is in place.
    ///
    /// # Errors
    ///
    /// The agent is stopping.
    pub async fn readiness(&self) -> Result<Readiness, CommandError> {
        self.ask(|reply| Command::Ready { reply }).await
    }
}
