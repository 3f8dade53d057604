//! `/v1`, in JSON, and what health checks ask.

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};

use super::{Context, error::ApiError, split::etag};
use crate::{
    daemon::{Reload, ServiceReport, StatusReport},
    model::state::SwitchError,
};

type Answer<T> = Result<Json<T>, ApiError>;

pub(super) async fn services(State(context): State<Context>) -> Answer<Vec<ServiceReport>> {
    Ok(Json(context.daemon.status().await?.services))
}

pub(super) async fn service(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let StatusReport { services, .. } = context.daemon.status().await?;
    let known = services.iter().map(|service| service.name.clone()).collect();
    match services.into_iter().find(|service| service.name == name) {
        Some(service) => {
            Ok(([(header::ETAG, etag(service.revision))], Json(service)).into_response())
        }
        None => Err(crate::daemon::CommandError::from(SwitchError::UnknownService {
            asked: name,
            known,
        })
        .into()),
    }
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
        "this path does not take this method: switch, undo, drain, undrain, reload and what a rollout is told are POST, canary is PUT and DELETE, rules GET and PUT, the others GET",
    )
}
