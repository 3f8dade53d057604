//! The HTTP API: requests become typed commands to the daemon, answers become JSON or text.
//!
//! Nothing is changed here. What a request may do is decided in [`guard`] before it is looked at.

mod compat;
mod drain;
mod error;
mod guard;
mod metrics;
mod rollout;
mod server;
mod split;
mod v1;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{any, get, post, put},
};

pub use self::{
    drain::DrainBody,
    error::{ErrorBody, ErrorDetail},
    rollout::RolloutBody,
    server::serve,
    split::{CanaryBody, RulesBody, SwitchBody, UndoBody},
};
use crate::daemon::Handle;

/// Longest request body, in bytes.
const MAX_BODY: usize = 64 << 10;

/// The same where client rules are sent.
const MAX_RULES_BODY: usize = 8 << 20;

/// What every request sees.
#[derive(Clone)]
pub struct Context {
    /// The daemon.
    pub daemon: Handle,
    /// What `Authorization: Bearer` must carry; `None`: nothing is asked.
    pub token: Option<Arc<str>>,
    /// Where the API listens.
    pub listen: SocketAddr,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// All routes.
pub fn router(context: Context) -> Router {
    Router::new()
        .route("/_switch_upstream", any(compat::switch_upstream))
        .route("/ups_update", any(compat::ups_update))
        .route("/v1/services", get(v1::services))
        .route("/v1/services/{name}", get(v1::service))
        .route("/v1/services/{name}/switch", post(split::switch))
        .route("/v1/services/{name}/canary", put(split::set_canary).delete(split::end_canary))
        .route(
            "/v1/services/{name}/rules",
            get(split::rules).put(split::set_rules).layer(DefaultBodyLimit::max(MAX_RULES_BODY)),
        )
        .route("/v1/services/{name}/undo", post(split::undo))
        .route("/v1/services/{name}/rollout", get(rollout::status).post(rollout::start))
        .route("/v1/services/{name}/rollout/{command}", post(rollout::command))
        .route("/v1/pools/{name}/drain", get(drain::progress).post(drain::drain))
        .route("/v1/pools/{name}/undrain", post(drain::undrain))
        .route("/v1/status", get(v1::status))
        .route("/v1/reload", post(v1::reload))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(v1::healthz))
        .route("/readyz", get(v1::readyz))
        .fallback(v1::not_found)
        .method_not_allowed_fallback(v1::method_not_allowed)
        .layer(middleware::from_fn_with_state(context.clone(), guard::check))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(context)
}

#[cfg(test)]
mod tests;
