//! `/v1/services/NAME/rollout`: starts, commands and shows a service's rollout.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{Context, Peer, error::ApiError, split::Expected};
use crate::{
    config::parse_duration,
    daemon::{Order, PlanAsked, RolloutReport, ServiceRef},
    model::{
        judge::{GateSetting, Gates},
        split::Share,
    },
};

/// Body of a start. Times are as in `90s` or `2m`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutBody {
    /// The pool that is to get the traffic: a name, or addresses separated by commas.
    pub to: String,
    /// The canary's shares, growing, up to 100%.
    pub steps: Vec<Share>,
    /// How long each is held at least.
    pub hold: String,
    /// How much longer for want of samples, before the rollout pauses.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patience: Option<String>,
    /// How long the kernel keeps the share without hearing of the agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lease: Option<String>,
    /// Limits of gates, as in `failures=2%`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub gates: Vec<String>,
    /// Samples of each pool that a gate needs to pass.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_samples: Option<u64>,
}

impl RolloutBody {
    fn plan(self) -> Result<PlanAsked, String> {
        let mut gates = Gates::default();
        for text in &self.gates {
            gates = gates.with(text.parse::<GateSetting>().map_err(|error| error.to_string())?);
        }
        gates.min_samples = self.min_samples.unwrap_or(gates.min_samples);
        let time = |name: &str, text: &str| -> Result<Duration, String> {
            let time = parse_duration(text).filter(|time| *time <= LONGEST);
            time.ok_or_else(|| {
                format!("{name} {text:?} is no time of up to {} days: write 90s or 2m", 30)
            })
        };
        let lease = self.lease.as_deref().map(|text| time("lease", text)).transpose()?;
        if lease.is_some_and(|lease| lease < SHORTEST_LEASE) {
            return Err(format!("the lease must be {SHORTEST_LEASE:?} at least"));
        }
        Ok(PlanAsked {
            to: self.to,
            steps: self.steps,
            hold: time("hold", &self.hold)?,
            patience: self.patience.as_deref().map(|text| time("patience", text)).transpose()?,
            lease,
            gates,
        })
    }
}

/// Longest time of a plan.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// The agent renews it four times a second, and may be busy for a while.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_rollout", message)
}

type Answer = Result<Json<RolloutReport>, ApiError>;

pub(super) async fn start(
    State(context): State<Context>,
    Path(name): Path<String>,
    Extension(peer): Extension<Peer>,
    expected: Expected,
    body: Result<Json<RolloutBody>, JsonRejection>,
) -> Answer {
    let plan = super::split::read(body)?.plan().map_err(invalid)?;
    let (service, by) = (ServiceRef::Named(name), peer.0.to_string());
    Ok(Json(context.daemon.start_rollout(service, plan, expected.revision(), by).await?))
}

pub(super) async fn status(
    State(context): State<Context>,
    Path(name): Path<String>,
    Extension(peer): Extension<Peer>,
) -> Answer {
    order(&context, name, Order::Status, peer).await
}

pub(super) async fn command(
    State(context): State<Context>,
    Path((name, command)): Path<(String, String)>,
    Extension(peer): Extension<Peer>,
) -> Answer {
    let asked = match command.as_str() {
        "pause" => Order::Pause,
        "resume" => Order::Resume,
        "promote" => Order::Promote,
        "abort" => Order::Abort,
        _ => {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "no_such_path",
                format!("a rollout has no {command:?}: pause, resume, promote or abort it"),
            ));
        }
    };
    order(&context, name, asked, peer).await
}

async fn order(context: &Context, name: String, order: Order, peer: Peer) -> Answer {
    let (service, by) = (ServiceRef::Named(name), peer.0.to_string());
    Ok(Json(context.daemon.rollout(service, order, by).await?))
}
