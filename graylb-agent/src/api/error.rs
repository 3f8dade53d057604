//! Errors as `/v1` says them: a stable code, a text, and what would do.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::{daemon::CommandError, model::state::SwitchError};

/// Body of every error on `/v1`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable, for programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// What would have done, where that is a list.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub allowed: Vec<String>,
}

/// An error on `/v1`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let detail =
            ErrorDetail { code: code.into(), message: message.into(), allowed: Vec::new() };
        Self { status, body: ErrorBody { error: detail } }
    }
}

/// Status and stable code of a refused command.
pub(super) const fn classify(error: &CommandError) -> (StatusCode, &'static str) {
    match error {
        CommandError::Refused(SwitchError::UnknownService { .. }) => {
            (StatusCode::NOT_FOUND, "unknown_service")
        }
        CommandError::Refused(SwitchError::UnknownPool { .. }) => {
            (StatusCode::NOT_FOUND, "unknown_pool")
        }
        CommandError::Refused(SwitchError::Unfit(_)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "unfit_pool")
        }
        CommandError::Refused(SwitchError::Outdated { .. }) => {
            (StatusCode::PRECONDITION_FAILED, "outdated")
        }
        CommandError::Refused(SwitchError::UnknownRevision { .. }) => {
            (StatusCode::NOT_FOUND, "unknown_revision")
        }
        CommandError::Refused(SwitchError::Rollout(_)) => (StatusCode::CONFLICT, "rollout"),
        CommandError::Refused(SwitchError::UnknownBackend { .. }) => {
            (StatusCode::NOT_FOUND, "unknown_backend")
        }
        CommandError::Refused(SwitchError::LastOnes { .. }) => {
            (StatusCode::CONFLICT, "nobody_left")
        }
        CommandError::Refused(SwitchError::NotHealthy { .. }) => {
            (StatusCode::CONFLICT, "pool_not_healthy")
        }
        CommandError::Config(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_config"),
        CommandError::Kernel(_) => (StatusCode::INTERNAL_SERVER_ERROR, "kernel_refused"),
        CommandError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let (status, code) = classify(&error);
        let mut api_error = Self::new(status, code, error.to_string());
        if let CommandError::Refused(
            SwitchError::UnknownPool { known, .. } | SwitchError::UnknownService { known, .. },
        ) = error
        {
            api_error.body.error.allowed = known;
        }
        api_error
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
