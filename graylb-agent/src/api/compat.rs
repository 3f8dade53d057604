//! The endpoints that scripts written for an OpenResty and Lua switch call, answer for answer.

use axum::{
    Extension,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
};
use serde::Deserialize;

use super::{Context, Peer, error::classify, guard::is_literal};
use crate::daemon::{Asked as Change, ChangeRequest, Changed, ServiceRef};

#[derive(Deserialize)]
pub(super) struct Asked {
    host: Option<String>,
    upstream: Option<String>,
    ups: Option<String>,
}

type Answer = (StatusCode, String);

/// `/_switch_upstream?upstream=NAME`
pub(super) async fn switch_upstream(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Answer {
    let Some(upstream) = asked.upstream.filter(|upstream| !upstream.is_empty()) else {
        return (StatusCode::BAD_REQUEST, "upstream is nil\n".into());
    };
    match switch(&context, peer, &headers, asked.host, upstream).await {
        Ok((host, Changed { from, to, .. })) => (
            StatusCode::OK,
            format!("Current upstream is :{from}\n{host} change upstream from {from} to {to}\n"),
        ),
        Err(answer) => answer,
    }
}

/// `/ups_update?ups=NAME` or `ADDR[:PORT][,ADDR:PORT…]`
pub(super) async fn ups_update(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Answer {
    let Some(ups) = asked.ups.filter(|ups| !ups.is_empty()) else {
        return (StatusCode::BAD_REQUEST, "usage: /ups_update?ups=x.x.x.x\n".into());
    };
    match switch(&context, peer, &headers, asked.host, ups).await {
        Ok((host, Changed { from, to, .. })) => {
            (StatusCode::OK, format!("{host} update upstream from {from} to {to}\n"))
        }
        Err(answer) => answer,
    }
}

/// Switches, and says by what name the service was found.
async fn switch(
    context: &Context,
    peer: Peer,
    headers: &HeaderMap,
    host: Option<String>,
    to: String,
) -> Result<(String, Changed), Answer> {
    let header = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("");
    // `host=` must be right; the Host header may as well be the API's own address.
    let (asked, may_be_only) = match host {
        Some(host) => (host, false),
        None => (header.to_owned(), is_literal(header)),
    };
    let request = ChangeRequest {
        service: ServiceRef::Host { host: asked.clone(), may_be_only },
        asked: Change::Switch(to),
        force: false,
        expected: None,
        by: peer.0.to_string(),
    };
    match context.daemon.change(request).await {
        Ok((changed, endpoint)) => {
            let api = context.listen.to_string();
            let host = match endpoint {
                Some(endpoint)
                    if asked.is_empty()
                        || asked == api
                        || may_be_only && asked != endpoint.to_string() =>
                {
                    endpoint.to_string()
                }
                _ => asked,
            };
            Ok((host, changed))
        }
        Err(error) => Err((classify(&error).0, format!("{error}\n"))),
    }
}
