//! `/v1/services/NAME/...`: changes of where a service's new flows go.
//!
//! Each answer carries the revision of the split as its ETag; a request with `If-Match` is carried out only if
//! that is still the revision (RFC 9110, 13.1.1).

use std::collections::BTreeMap;

use axum::{
    Extension, Json,
    extract::{FromRequestParts, Path, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

use super::{Context, Peer, error::ApiError};
use crate::{
    daemon::{Asked, ChangeRequest, ServiceRef},
    model::split::{Cidr, Share},
};

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

/// Body of a canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryBody {
    /// Its pool: a name, or addresses separated by commas.
    pub pool: String,
    /// Its part of the clients, as in `5%`.
    pub share: Share,
    /// Even if nobody there answers.
    #[serde(default)]
    pub force: bool,
}

/// Client rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RulesBody {
    /// Networks of clients, and the pool that each goes to.
    pub rules: BTreeMap<Cidr, String>,
    /// Even if nobody in a pool answers.
    #[serde(default)]
    pub force: bool,
}

/// Body of an undo.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoBody {
    /// The revision to go back to; the one before the last where it is missing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<u64>,
    /// Even if nobody there answers.
    #[serde(default)]
    pub force: bool,
}

/// A revision as an entity tag.
pub(super) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// The revision that a request is about, from its `If-Match`.
pub(super) struct Expected(Option<u64>);

impl Expected {
    /// The revision, if one is expected.
    pub(super) const fn revision(&self) -> Option<u64> {
        self.0
    }
}

impl<S: Sync> FromRequestParts<S> for Expected {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let Some(header) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = header.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        match quoted.and_then(|number| number.parse().ok()) {
            Some(revision) => Ok(Self(Some(revision))),
            None => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_if_match",
                format!(
                    "If-Match is {text:?}: send back an ETag as it came, as in \"3\" with the quotes"
                ),
            )),
        }
    }
}

/// What is changed, by whom, on what condition.
pub(super) struct Request {
    context: Context,
    peer: Peer,
    name: String,
    expected: Expected,
}

impl FromRequestParts<Context> for Request {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Response> {
        let path = Path::<String>::from_request_parts(parts, context).await;
        let Path(name) = path.map_err(|rejection| rejection.into_response())?;
        let peer = Extension::<Peer>::from_request_parts(parts, context).await;
        let Extension(peer) = peer.map_err(|rejection| rejection.into_response())?;
        let expected = Expected::from_request_parts(parts, context).await;
        let expected = expected.map_err(|error| error.into_response())?;
        Ok(Self { context: context.clone(), peer, name, expected })
    }
}

impl Request {
    async fn change(self, asked: Asked, force: bool) -> Result<Response, ApiError> {
        let request = ChangeRequest {
            service: ServiceRef::Named(self.name),
            asked,
            force,
            expected: self.expected.0,
            by: self.peer.0.to_string(),
        };
        let (changed, _) = self.context.daemon.change(request).await?;
        Ok(([(header::ETAG, etag(changed.revision))], Json(changed)).into_response())
    }
}

type Body<T> = Result<Json<T>, JsonRejection>;

pub(super) fn read<T>(body: Body<T>) -> Result<T, ApiError> {
    let Json(body) =
        body.map_err(|error| ApiError::new(error.status(), "invalid_body", error.body_text()))?;
    Ok(body)
}

pub(super) async fn switch(request: Request, body: Body<SwitchBody>) -> Result<Response, ApiError> {
    let body = read(body)?;
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
    request.change(Asked::Switch(to), body.force).await
}

pub(super) async fn set_canary(
    request: Request,
    body: Body<CanaryBody>,
) -> Result<Response, ApiError> {
    let CanaryBody { pool, share, force } = read(body)?;
    request.change(Asked::Canary { pool, share }, force).await
}

pub(super) async fn end_canary(request: Request) -> Result<Response, ApiError> {
    request.change(Asked::NoCanary, false).await
}

pub(super) async fn rules(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let (revision, rules) = context.daemon.rules(ServiceRef::Named(name)).await?;
    let body = RulesBody { rules, force: false };
    Ok(([(header::ETAG, etag(revision))], Json(body)).into_response())
}

pub(super) async fn set_rules(
    request: Request,
    body: Body<RulesBody>,
) -> Result<Response, ApiError> {
    let RulesBody { rules, force } = read(body)?;
    request.change(Asked::Rules(rules), force).await
}

pub(super) async fn undo(
    request: Request,
    headers: HeaderMap,
    body: Body<UndoBody>,
) -> Result<Response, ApiError> {
    // A POST without a body is the plain undo.
    let body =
        if headers.contains_key(header::CONTENT_TYPE) { read(body)? } else { UndoBody::default() };
    request.change(Asked::Undo(body.to), body.force).await
}
