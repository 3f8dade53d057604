//! The API, request by request.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::guard::{Refusal, is_literal, judge};

const SWITCH: &str = "/_switch_upstream";
const STATUS: &str = "/v1/status";

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    pairs.iter().map(pair).collect()
}

fn ask(
    path: &str,
    token: Option<&str>,
    pairs: &[(&'static str, &'static str)],
) -> Result<(), Refusal> {
    let compatible = path == SWITCH;
    judge(&headers(pairs), path, &["shop.example".to_owned()], token, compatible)
}

#[test]
fn curl_and_the_operators_own_page_are_let_through() {
    assert_eq!(ask(SWITCH, None, &[("host", "127.0.0.1:7878")]), Ok(()));
    assert_eq!(ask(STATUS, None, &[("host", "localhost:7878")]), Ok(()));
    assert_eq!(ask(STATUS, None, &[("host", "Shop.Example")]), Ok(()));
    assert_eq!(ask(STATUS, None, &[]), Ok(()), "HTTP/1.0 has no Host header");
    let own = [("host", "127.0.0.1:7878"), ("origin", "http://127.0.0.1:7878")];
    assert_eq!(ask(STATUS, None, &own), Ok(()));
    let typed = [("host", "127.0.0.1:7878"), ("sec-fetch-site", "none")];
    assert_eq!(ask(SWITCH, None, &typed), Ok(()));
}

#[test]
fn pages_of_other_sites_are_refused() {
    for site in ["cross-site", "same-site", "something-new"] {
        let from = [("host", "127.0.0.1:7878"), ("sec-fetch-site", site)];
        assert_eq!(ask(SWITCH, None, &from), Err(Refusal::CrossSite), "{site}");
    }
    for origin in ["http://evil.example", "null", "http://127.0.0.1:7879"] {
        let from = [("host", "127.0.0.1:7878"), ("origin", origin)];
        assert_eq!(ask(STATUS, None, &from), Err(Refusal::CrossSite), "{origin}");
    }
}

#[test]
fn names_that_are_not_ours_are_refused() {
    assert_eq!(ask(STATUS, None, &[("host", "evil.example:7878")]), Err(Refusal::ForeignHost));
    // The compatible paths look the name up themselves, and answer with the services that there are.
    assert_eq!(ask(SWITCH, None, &[("host", "evil.example")]), Ok(()));
}

#[test]
fn the_token_must_be_whole() {
    let host = ("host", "10.0.0.1:7878");
    let with = |value| ask(STATUS, Some("secret"), &[host, ("authorization", value)]);
    assert_eq!(with("Bearer secret"), Ok(()));
    for wrong in
        ["Bearer secre", "Bearer secrets", "Bearer ", "secret", "Basic secret", "Bearer Secret"]
    {
        assert_eq!(with(wrong), Err(Refusal::NoToken), "{wrong}");
    }
    assert_eq!(ask(SWITCH, Some("secret"), &[host]), Err(Refusal::NoToken));
    assert_eq!(ask("/healthz", Some("secret"), &[host]), Ok(()));
}

#[test]
fn literal_hosts() {
    for host in ["127.0.0.1", "127.0.0.1:1", "[::1]:7878", "[::1]", "localhost", "LOCALHOST:9", ""]
    {
        assert!(is_literal(host), "{host}");
    }
    for host in ["localhost.evil.example", "127.0.0.1.evil.example", "a:b:c", "[evil]:1", "1.2.3"] {
        assert!(!is_literal(host), "{host}");
    }
}
