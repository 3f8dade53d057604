//! `/v1`, in JSON, and what health checks ask.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

use super::{Context, Peer, error::ApiError};
use crate::{
    daemon::{Reload, ServiceRef, ServiceReport, StatusReport, SwitchRequest, Switched},
    model::state::SwitchError,
};

type Answer<T> = Result<Json<T>, ApiError>;

/// Body of a switch: a pool, or addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchBody {
    /// A pool's name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pool: Option<String>,
    /// Addresses that take turns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backends: Option<Vec<String>>,
    /// Switch even if nobody there answers.
    #[serde(default)]
    pub force: bool,
}

pub(super) async fn services(State(context): State<Context>) -> Answer<Vec<ServiceReport>> {
    Ok(Json(context.daemon.status().await?.services))
}

pub(super) async fn service(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Answer<ServiceReport> {
    let StatusReport { services, .. } = context.daemon.status().await?;
    let known = services.iter().map(|service| service.name.clone()).collect();
    match services.into_iter().find(|service| service.name == name) {
        Some(service) => Ok(Json(service)),
        None => Err(crate::daemon::CommandError::from(SwitchError::UnknownService {
            asked: name,
            known,
        })
        .into()),
    }
}

pub(super) async fn switch(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Result<Json<SwitchBody>, JsonRejection>,
) -> Answer<Switched> {
    let Json(body) =
        body.map_err(|error| ApiError::new(error.status(), "invalid_body", error.body_text()))?;
    let to = match (body.pool, body.backends) {
        (Some(pool), None) => pool,
        (None, Some(backends)) => backends.join(","),
        _ => {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_body",
                "send either {\"pool\": NAME} or {\"backends\": [\"ADDRESS:PORT\", …]}",
            ));
        }
    };
    let service = ServiceRef::Named(name);
    let request = SwitchRequest { service, to, force: body.force, by: peer.0.to_string() };
    let (switched, _) = context.daemon.switch(request).await?;
    Ok(Json(switched))
}

pub(super) async fn status(State(context): State<Context>) -> Answer<StatusReport> {
    Ok(Json(context.daemon.status().await?))
}

pub(super) async fn reload(State(context): State<Context>) -> Answer<Reload> {
    Ok(Json(context.daemon.reload().await?))
}

/// The agent answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Every service is in the kernel, every interface attached.
pub(super) async fn readyz(State(context): State<Context>) -> Result<Response, ApiError> {
    let readiness = context.daemon.readiness().await?;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(readiness)).into_response())
}

pub(super) async fn not_found() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "there is no such path; /v1/status is a good start",
    )
}

pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method: switch and reload are POST, the others GET",
    )
}
