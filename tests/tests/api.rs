//! The API as curl sees it: the endpoints that older scripts call, text for text, and `/v1` in JSON.

use graylb_tests::{
    agent::{Agent, Installation},
    stage::Stage,
};
use serde_json::{Value, json};

/// GET without more.
fn get(installation: &Installation, path: &str) -> (u16, String) {
    installation.curl(path, &[])
}

fn answer(status: u16, text: &str) -> (u16, String) {
    (status, text.to_owned())
}

/// The answer as JSON, and its status.
fn json_of((status, text): (u16, String)) -> (u16, Value) {
    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (status, value)
}

fn pool_in_force(agent: &Agent<'_>) -> Value {
    agent.status()["services"][0]["pool"].clone()
}

#[test]
fn switch_upstream() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    let switch = "/_switch_upstream?upstream=";
    // Found as the only service there is, since the Host header is the API's own address.
    assert_eq!(
        get(installation, &format!("{switch}lua_upstream")),
        answer(
            200,
            "Current upstream is :default_upstream\n\
             127.0.0.1:8000 change upstream from default_upstream to lua_upstream\n"
        )
    );
    assert_eq!(stage.turns(4), ["83", "84", "83", "84"], "in force when it is answered");
    // By an alias, in the Host header.
    assert_eq!(
        installation
            .curl(&format!("{switch}default_upstream"), &["--header", "Host: shop.example"]),
        answer(
            200,
            "Current upstream is :lua_upstream\n\
             shop.example change upstream from lua_upstream to default_upstream\n"
        )
    );
    assert_eq!(stage.turns(2), ["81", "82"]);
    // By host=, whatever the Host header says.
    for host in ["127.0.0.1:8000", "shop.example", "demo"] {
        assert_eq!(
            installation.curl(
                &format!("{switch}default_upstream&host={host}"),
                &["--header", "Host: elsewhere.example"]
            ),
            answer(
                200,
                &format!(
                    "Current upstream is :default_upstream\n\
                     {host} change upstream from default_upstream to default_upstream\n"
                )
            )
        );
    }
    for nothing in ["/_switch_upstream", "/_switch_upstream?upstream="] {
        assert_eq!(get(installation, nothing), answer(400, "upstream is nil\n"));
    }
    assert_eq!(pool_in_force(&agent), "default_upstream");
}

#[test]
fn ups_update() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    assert_eq!(
        get(installation, "/ups_update?ups=127.0.0.1:18084"),
        answer(200, "127.0.0.1:8000 update upstream from default_upstream to 127.0.0.1:18084\n")
    );
    assert_eq!(stage.turns(2), ["84"; 2]);
    assert_eq!(
        get(installation, "/ups_update?ups=127.0.0.1:18083,127.0.0.1:18081&host=shop.example"),
        answer(
            200,
            "shop.example update upstream from 127.0.0.1:18084 to 127.0.0.1:18083,127.0.0.1:18081\n"
        )
    );
    assert_eq!(stage.turns(4), ["83", "81", "83", "81"]);
    assert_eq!(
        get(installation, "/ups_update?ups=lua_upstream"),
        answer(
            200,
            "127.0.0.1:8000 update upstream from 127.0.0.1:18083,127.0.0.1:18081 to lua_upstream\n"
        )
    );
    for nothing in ["/ups_update", "/ups_update?ups="] {
        assert_eq!(get(installation, nothing), answer(400, "usage: /ups_update?ups=x.x.x.x\n"));
    }
    assert_eq!(pool_in_force(&agent), "lua_upstream");
}

#[test]
fn compatible_refusals() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    let no_pool = "there is no pool \"nowhere\"; there are: default_upstream, lua_upstream\n";
    assert_eq!(get(installation, "/_switch_upstream?upstream=nowhere"), answer(404, no_pool));
    assert_eq!(get(installation, "/ups_update?ups=nowhere"), answer(404, no_pool));
    let no_host = "there is no service \"nobody.example\"; there are: demo (127.0.0.1:8000/tcp)\n";
    let by_query = "/_switch_upstream?upstream=lua_upstream&host=nobody.example";
    assert_eq!(get(installation, by_query), answer(404, no_host));
    let by_header = ["--header", "Host: nobody.example"];
    assert_eq!(
        installation.curl("/_switch_upstream?upstream=lua_upstream", &by_header),
        answer(404, no_host)
    );
    // A pool that would not do: the service itself.
    let (status, text) = get(installation, "/ups_update?ups=127.0.0.1:8000");
    assert_eq!(status, 422, "{text}");
    assert!(text.contains("service demo's own address"), "{text}");
    // A web page somewhere else must not switch.
    let cross_site = "requests from web pages of other sites are refused\n";
    for header in [
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Origin: http://evil.example",
        "Origin: null",
    ] {
        for path in ["/_switch_upstream?upstream=lua_upstream", "/ups_update?ups=lua_upstream"] {
            let refused = installation.curl(path, &["--header", header]);
            assert_eq!(refused, answer(403, cross_site), "{header}");
        }
    }
    assert_eq!(pool_in_force(&agent), "default_upstream");
    assert_eq!(stage.turns(2), ["81", "82"]);
    let own =
        ["--header", "Sec-Fetch-Site: same-origin", "--header", "Origin: http://127.0.0.1:7878"];
    let (status, text) = installation.curl("/_switch_upstream?upstream=lua_upstream", &own);
    assert_eq!(status, 200, "graylb's own page may: {text}");
}

#[test]
fn one_of_several_services() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    installation.configure(&format!(
        "{}\n[services.second]\naddress = \"127.0.0.1:8001\"\ndefault_pool = \"lua_upstream\"\n",
        Stage::config(None)
    ));
    let _agent = installation.start();
    let switch = "/_switch_upstream?upstream=lua_upstream";
    let (status, text) = get(installation, switch);
    assert_eq!(
        (status, text.as_str()),
        (
            404,
            "there is no service \"127.0.0.1:7878\"; there are: \
             demo (127.0.0.1:8000/tcp), second (127.0.0.1:8001/tcp)\n"
        )
    );
    let by_endpoint = ["--header", "Host: 127.0.0.1:8000"];
    assert_eq!(
        installation.curl(switch, &by_endpoint),
        answer(
            200,
            "Current upstream is :default_upstream\n\
             127.0.0.1:8000 change upstream from default_upstream to lua_upstream\n"
        )
    );
}

#[test]
fn v1_reads() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    assert_eq!(get(installation, "/healthz"), answer(200, "ok\n"));
    assert_eq!(
        json_of(get(installation, "/readyz")),
        (200, json!({ "ready": true, "missing": [] }))
    );
    assert_eq!(stage.turns(3), ["81", "82", "81"]);
    let (status, services) = json_of(get(installation, "/v1/services"));
    assert_eq!(status, 200);
    let backend = |port: u16, opened: u64| {
        json!({
            "address": format!("127.0.0.1:{port}"), "weight": 1, "state": "up",
            "reason": "not probed", "takes_flows": true, "drained": false, "opened": opened,
            "established": opened, "refused": 0, "closed": opened, "active": 0, "half_open": 0,
            "longest_idle_seconds": 0, "oldest_generation": null, "vanished": 0,
            "probes_good": 0, "probes_bad": 0,
        })
    };
    let demo = json!({
        "name": "demo", "address": "127.0.0.1:8000", "protocol": "tcp",
        "aliases": ["shop.example"], "balance": "round_robin", "default_pool": "default_upstream",
        "pool": "default_upstream", "overridden": false, "generation": 1,
        "last_good_kept": false, "backends": [backend(18081, 2), backend(18082, 1)], "former": [],
        "others": [], "revision": 0, "rules": 0, "split": "default_upstream",
        "drops": {
            "no_flow": 0, "no_backend": 0, "bad_table": 0, "no_tuple": 0, "flow_table_full": 0,
            "fragment_short": 0,
            "no_route": 0, "ttl_exceeded": 0, "rewrite_failed": 0,
        },
    });
    assert_eq!(services, json!([demo]));
    assert_eq!(json_of(get(installation, "/v1/services/demo")), (200, demo.clone()));
    let (status, report) = json_of(get(installation, "/v1/status"));
    assert_eq!((status, &report["services"]), (200, &json!([demo])));
    assert_eq!(report["pools"], json!(["default_upstream", "lua_upstream"]));
    assert_eq!(report["problems"], json!([]));
    assert_eq!(report["interfaces"][0]["interface"], "lo");
    assert!(report["verdicts"]["delivered"].as_u64().is_some_and(|count| count > 0));
    drop(agent);
}

#[test]
fn v1_switches() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let _agent = installation.start();
    let post = |body: &str| {
        json_of(installation.curl(
            "/v1/services/demo/switch",
            &["--header", "Content-Type: application/json", "--data", body],
        ))
    };
    assert_eq!(
        post(r#"{ "pool": "lua_upstream" }"#),
        (
            200,
            json!({
                "service": "demo", "from": "default_upstream", "to": "lua_upstream",
                "before": "default_upstream", "split": "lua_upstream", "revision": 1,
                "generation": 2,
            })
        )
    );
    assert_eq!(stage.turns(2), ["83", "84"]);
    let (status, switched) = post(r#"{ "backends": ["127.0.0.1:18082", "127.0.0.1:18084"] }"#);
    assert_eq!((status, &switched["to"]), (200, &json!("127.0.0.1:18082,127.0.0.1:18084")));
    assert_eq!(stage.turns(2), ["82", "84"]);
    assert_eq!(
        json_of(installation.curl("/v1/reload", &["--request", "POST"])),
        (200, json!({ "notes": [] }))
    );
    assert_eq!(stage.turns(2).len(), 2, "a reload leaves the switch");
    for (body, status, code) in [
        ("{}", 422, "invalid_body"),
        (r#"{ "pool": "lua_upstream", "backends": ["127.0.0.1:18081"] }"#, 422, "invalid_body"),
        (r#"{ "pol": "lua_upstream" }"#, 422, "invalid_body"),
        (r#"{ "pool": 5 }"#, 422, "invalid_body"),
        ("{ pool", 400, "invalid_body"),
        (r#"{ "pool": "nowhere" }"#, 404, "unknown_pool"),
        (r#"{ "backends": ["127.0.0.1:0"] }"#, 404, "unknown_pool"),
        (r#"{ "backends": ["10.0.0.1:80"] }"#, 422, "unfit_pool"),
        (r#"{ "backends": ["[::1]:80"] }"#, 422, "unfit_pool"),
    ] {
        let (found, answer) = post(body);
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{body}: {answer}");
    }
    assert_eq!(
        post(r#"{ "pool": "nowhere" }"#).1["error"]["allowed"],
        json!(["default_upstream", "lua_upstream"])
    );
}

#[test]
fn v1_errors_have_codes() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let _agent = installation.start();
    let post = ["--request", "POST"];
    let cases: [(&str, &[&str], u16, &str); 8] = [
        ("/v1/services/nobody", &[], 404, "unknown_service"),
        ("/v1/nothing", &[], 404, "no_such_path"),
        ("/", &[], 404, "no_such_path"),
        ("/v1/reload", &[], 405, "method_not_allowed"),
        ("/v1/status", &post, 405, "method_not_allowed"),
        ("/v1/status", &["--header", "Host: evil.example"], 403, "forbidden_host"),
        ("/v1/status", &["--header", "Origin: http://evil.example"], 403, "cross_site"),
        (
            "/v1/services/demo/switch",
            &["--data", r#"{ "pool": "lua_upstream" }"#],
            415,
            "invalid_body",
        ),
    ];
    for (path, arguments, status, code) in cases {
        let (found, answer) = json_of(installation.curl(path, arguments));
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{path}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{answer}");
    }
    assert_eq!(stage.turns(2), ["81", "82"]);
}

#[test]
fn a_token_is_asked_for() {
    use std::os::unix::fs::PermissionsExt as _;
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let token = stage.sandbox.directory().join("token");
    std::fs::write(&token, "s3cret\n").expect("write the token");
    installation.configure(&format!("{}\n[api]\ntoken_file = {token:?}\n", Stage::config(None)));
    let refused = installation.fail_to_start(&installation.config_file());
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("can be read by others (mode 644): chmod 600 it"),
        "{refused:?}"
    );
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("chmod");

    // Launched, not started: readiness is asked with the token only.
    let _agent = installation.launch();
    let switch = "/_switch_upstream?upstream=lua_upstream";
    let no_token = "send the token as Authorization: Bearer TOKEN\n";
    assert_eq!(get(installation, switch), answer(401, no_token));
    for header in
        ["Authorization: Bearer s3cre", "Authorization: Bearer s3crett", "Authorization: s3cret"]
    {
        assert_eq!(
            installation.curl(switch, &["--header", header]),
            answer(401, no_token),
            "{header}"
        );
    }
    assert_eq!(json_of(get(installation, "/v1/status")).1["error"]["code"], "no_token");
    assert_eq!(stage.turns(2), ["81", "82"]);
    let (status, text) = installation.curl(switch, &["--header", "Authorization: Bearer s3cret"]);
    assert_eq!(status, 200, "{text}");
    let file = token.to_string_lossy();
    assert_eq!(installation.cli(&["status", "--token-file", &file]).code, 0);
    assert_eq!(installation.cli(&["status"]).code, 1, "refused without it");
}
