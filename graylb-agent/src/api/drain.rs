//! `/v1/pools/NAME/drain`: backends are drained, and how far that has got.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use tokio::time::{self, Instant};

use super::{Context, Peer, error::ApiError};
use crate::daemon::{DrainReport, DrainRequest};

/// The longest that an answer is held back, in seconds: less than a request may take.
const MAX_WAIT: u64 = 25;
/// From one look at what is left to the next.
const LOOK: Duration = Duration::from_millis(100);

/// Which backends are drained, or take new flows again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainBody {
    /// Backends of the pool; all where there are none.
    #[serde(default)]
    pub backends: Vec<SocketAddr>,
    /// Even if nobody is left to take a service's new flows.
    #[serde(default)]
    pub force: bool,
}

/// What is waited for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Waiting {
    /// Backends of the pool, separated by commas; all where there are none.
    #[serde(default)]
    backends: String,
    /// Answer once no more flows than this are left.
    #[serde(default)]
    until: u64,
    /// Answer after so many seconds anyway.
    #[serde(default)]
    wait: u64,
}

async fn set(
    context: Context,
    Peer(peer): Peer,
    pool: String,
    body: Result<Json<DrainBody>, JsonRejection>,
    drained: bool,
) -> Result<Json<DrainReport>, ApiError> {
    let Json(DrainBody { backends, force }) =
        body.map_err(|error| ApiError::new(error.status(), "invalid_body", error.body_text()))?;
    let request = DrainRequest { pool, backends, drained, force, by: peer.to_string() };
    Ok(Json(context.daemon.drain(request).await?))
}

pub(super) async fn drain(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    Path(pool): Path<String>,
    body: Result<Json<DrainBody>, JsonRejection>,
) -> Result<Json<DrainReport>, ApiError> {
    set(context, peer, pool, body, true).await
}

pub(super) async fn undrain(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    Path(pool): Path<String>,
    body: Result<Json<DrainBody>, JsonRejection>,
) -> Result<Json<DrainReport>, ApiError> {
    set(context, peer, pool, body, false).await
}

pub(super) async fn progress(
    State(context): State<Context>,
    Path(pool): Path<String>,
    Query(Waiting { backends, until, wait }): Query<Waiting>,
) -> Result<Json<DrainReport>, ApiError> {
    let addresses = backends.split(',').filter(|text| !text.is_empty()).map(str::parse);
    let backends: Vec<SocketAddr> = addresses.collect::<Result<_, _>>().map_err(|_| {
        let message =
            format!("backends={backends}: write addresses with ports, separated by commas");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", message)
    })?;
    let end = Instant::now() + Duration::from_secs(wait.min(MAX_WAIT));
    loop {
        let report = context.daemon.drained(pool.clone(), backends.clone()).await?;
        if report.flows <= until || Instant::now() >= end {
            return Ok(Json(report));
        }
        time::sleep(LOOK).await;
    }
}
