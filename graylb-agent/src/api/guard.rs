//! Who may ask at all.
//!
//! A GET that changes state is convenient for curl and a gift to any web page that the operator has open.
//! So: nothing from another site (`Sec-Fetch-Site`, `Origin`), nothing under a host name that is not ours
//! (DNS rebinding), and off loopback nothing without the token.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tracing::warn;

use super::{Context, Peer, error::ApiError};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    CrossSite,
    ForeignHost,
    NoToken,
}

/// Lets a request through, or answers it.
pub(super) async fn check(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let compatible = matches!(path, "/_switch_upstream" | "/ups_update");
    let aliases = context.daemon.aliases();
    let Err(refusal) =
        judge(request.headers(), path, &aliases, context.token.as_deref(), compatible)
    else {
        return next.run(request).await;
    };
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.to_string());
    warn!("refused {path} from {}: {refusal:?}", peer.unwrap_or_default());
    let (status, code, message) = match refusal {
        Refusal::CrossSite => (
            StatusCode::FORBIDDEN,
            "cross_site",
            "requests from web pages of other sites are refused",
        ),
        Refusal::ForeignHost => (
            StatusCode::FORBIDDEN,
            "forbidden_host",
            "the Host header is neither an IP address, nor localhost, nor an alias of a service",
        ),
        Refusal::NoToken => {
            (StatusCode::UNAUTHORIZED, "no_token", "send the token as Authorization: Bearer TOKEN")
        }
    };
    if compatible {
        return (status, format!("{message}\n")).into_response();
    }
    ApiError::new(status, code, message).into_response()
}

/// Decides by what a request says of itself.
pub(super) fn judge(
    headers: &HeaderMap,
    path: &str,
    aliases: &[String],
    token: Option<&str>,
    compatible: bool,
) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text("host").unwrap_or("");
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(Refusal::CrossSite);
    }
    if text("origin").is_some_and(|origin| origin.split_once("://").map(|(_, o)| o) != Some(host)) {
        return Err(Refusal::CrossSite);
    }
    // An unknown host on the compatible paths is answered there, with the services that there are.
    if !compatible && !is_literal(host) && !aliases.contains(&host.to_ascii_lowercase()) {
        return Err(Refusal::ForeignHost);
    }
    if let Some(token) = token
        && path != "/healthz"
    {
        let given = text(header::AUTHORIZATION.as_str());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("");
        if !same_secret(given.as_bytes(), token.as_bytes()) {
            return Err(Refusal::NoToken);
        }
    }
    Ok(())
}

/// Whether a Host header is an IP address or localhost, with or without a port: what a name under
/// somebody else's control cannot be. None at all (HTTP/1.0) counts, too.
pub(super) fn is_literal(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            name
        }
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Compares without telling by its time how much was right.
fn same_secret(given: &[u8], secret: &[u8]) -> bool {
    let differences = given.iter().zip(secret).fold(0_u8, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differences) == 0 && given.len() == secret.len()
}
