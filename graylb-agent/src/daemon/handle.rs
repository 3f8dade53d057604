//! How the API and signals talk to the daemon.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    DrainReport, DrainRequest, Readiness, StatusReport,
    rollout::{Order, PlanAsked, RolloutReport},
};
use crate::{
    model::{
        changes::SplitChange,
        health::{Answer, Target},
        probe::ProbeSpec,
        spec::Name,
        split::{Cidr, Share},
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

/// A change as a client asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRequest {
    /// Of which service.
    pub service: ServiceRef,
    /// What.
    pub asked: Asked,
    /// Even if nobody there answers.
    pub force: bool,
    /// Only if the service's split is at this revision.
    pub expected: Option<u64>,
    /// Who asks, for the log.
    pub by: String,
}

/// What is to become of a service's split. A pool is a name, or addresses separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Another stable pool.
    Switch(String),
    /// A canary.
    Canary {
        /// Its pool.
        pool: String,
        /// Its part.
        share: Share,
    },
    /// No canary.
    NoCanary,
    /// These client rules, and no others.
    Rules(BTreeMap<Cidr, String>),
    /// Back to a revision; to the one before the last where `None`.
    Undo(Option<u64>),
}

/// A change that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The service.
    pub service: String,
    /// Its stable pool before.
    pub from: String,
    /// Its stable pool now.
    pub to: String,
    /// Where its new flows went before, in words.
    pub before: String,
    /// Where they go now.
    pub split: String,
    /// Number of changes that the service's split has seen.
    pub revision: u64,
    /// Number of the data in force in the kernel.
    pub generation: u64,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warning: Option<String>,
}

/// The revision of a service's split, and its client rules.
pub type ServiceRules = (u64, BTreeMap<Cidr, String>);

/// A reload that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A change that has been checked against the config.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) name: Name,
    pub(super) change: SplitChange,
    pub(super) to_ask: Vec<(Target, ProbeSpec)>,
    pub(super) endpoint: Option<SocketAddr>,
}

/// What the daemon is asked.
#[derive(Debug)]
pub enum Command {
    /// Check a change.
    Prepare {
        /// Of which service.
        service: ServiceRef,
        /// What.
        asked: Asked,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<Prepared>>,
    },
    /// Carry a change out.
    Change {
        /// What was checked.
        prepared: Prepared,
        /// What backends answered.
        answers: Vec<(Target, Answer)>,
        /// Whatever they answered.
        force: bool,
        /// The revision that it is a change of.
        expected: Option<u64>,
        /// Who asks.
        by: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<Changed>>,
    },
    /// Start a rollout.
    StartRollout {
        /// Its first share, checked.
        prepared: Prepared,
        /// What backends answered.
        answers: Vec<(Target, Answer)>,
        /// What it is to do.
        plan: PlanAsked,
        /// The revision that it is a change of.
        expected: Option<u64>,
        /// Who asks.
        by: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<RolloutReport>>,
    },
    /// Do something with a rollout.
    Rollout {
        /// Of which service.
        service: ServiceRef,
        /// What.
        order: Order,
        /// Who asks.
        by: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<RolloutReport>>,
    },
    /// Drain backends, or let them take new flows again.
    Drain {
        /// Which.
        request: DrainRequest,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<DrainReport>>,
    },
    /// Say how far draining has got.
    Drained {
        /// The pool.
        pool: String,
        /// Its backends; all where there are none.
        backends: Vec<SocketAddr>,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<DrainReport>>,
    },
    /// Say which client rules a service has.
    Rules {
        /// Which service.
        service: ServiceRef,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply<ServiceRules>>,
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

    /// Changes a service's split. Backends that are not known to be up are asked first, here and not in the
    /// daemon. Returns with the kernel's data in force, and the service's virtual endpoint.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn change(
        &self,
        request: ChangeRequest,
    ) -> Result<(Changed, Option<SocketAddr>), CommandError> {
        let ChangeRequest { service, asked, force, expected, by } = request;
        let (prepared, answers) = self.prepare(service, asked).await?;
        let endpoint = prepared.endpoint;
        let change = |reply| Command::Change { prepared, answers, force, expected, by, reply };
        Ok((self.ask(change).await??, endpoint))
    }

    /// Has a change checked, and the backends asked that it leads flows to.
    async fn prepare(
        &self,
        service: ServiceRef,
        asked: Asked,
    ) -> Result<(Prepared, Vec<(Target, Answer)>), CommandError> {
        let prepared = self.ask(|reply| Command::Prepare { service, asked, reply }).await??;
        let mut asking = JoinSet::new();
        for (target, probe) in prepared.to_ask.clone() {
            asking.spawn(async move {
                let answer = Prober::new(target.clone(), probe).ask().await;
                (target, answer)
            });
        }
        let answers = asking.join_all().await;
        Ok((prepared, answers))
    }

    /// Starts a rollout with its first step.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn start_rollout(
        &self,
        service: ServiceRef,
        plan: PlanAsked,
        expected: Option<u64>,
        by: String,
    ) -> Result<RolloutReport, CommandError> {
        let share = plan.steps.first().copied().unwrap_or(Share::NONE);
        let asked = Asked::Canary { pool: plan.to.clone(), share };
        let (prepared, answers) = self.prepare(service, asked).await?;
        self.ask(|reply| Command::StartRollout { prepared, answers, plan, expected, by, reply })
            .await?
    }

    /// Has something done with a rollout, and says how it is.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn rollout(
        &self,
        service: ServiceRef,
        order: Order,
        by: String,
    ) -> Result<RolloutReport, CommandError> {
        self.ask(|reply| Command::Rollout { service, order, by, reply }).await?
    }

    /// Drains backends, or lets them take new flows again.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn drain(&self, request: DrainRequest) -> Result<DrainReport, CommandError> {
        self.ask(|reply| Command::Drain { request, reply }).await?
    }

    /// How far draining has got.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn drained(
        &self,
        pool: String,
        backends: Vec<SocketAddr>,
    ) -> Result<DrainReport, CommandError> {
        self.ask(|reply| Command::Drained { pool, backends, reply }).await?
    }

    /// A service's client rules that are followed.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub async fn rules(&self, service: ServiceRef) -> Result<ServiceRules, CommandError> {
        self.ask(|reply| Command::Rules { service, reply }).await?
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
