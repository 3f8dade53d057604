//! Every type of probe against real servers, good, bad, slow, silent and talking nonsense: one agent with a
//! pool for each case, and what it says of the pool's only backend.

mod servers;

use std::fmt::Write as _;

use graylb_tests::{
    agent::Installation,
    eventually::{SOON, eventually},
    sandbox::Sandbox,
    topology,
};
use servers::{Authority, Server, Show, Talk};

const HTTP_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";

const fn plain(port: u16, talk: Talk) -> Server {
    Server { port, tls: None, talk }
}

const fn tls(port: u16, show: Show, alpn: &'static [u8], talk: Talk) -> Server {
    Server { port, tls: Some((show, alpn)), talk }
}

const SERVERS: &[Server] = &[
    plain(9001, Talk::Http1),
    plain(9002, Talk::Http2),
    plain(9003, Talk::Grpc),
    plain(9004, Talk::Hang),
    plain(9005, Talk::Garbage),
    plain(9006, Talk::Cut),
    tls(9011, Show::Good, HTTP_1, Talk::Http1),
    tls(9012, Show::Good, HTTP_2, Talk::Http2),
    tls(9013, Show::Good, HTTP_2, Talk::Grpc),
    tls(9014, Show::Good, b"", Talk::Hang),
    tls(9015, Show::Good, b"", Talk::Garbage),
    tls(9016, Show::OtherName, b"", Talk::Http1),
    tls(9017, Show::Expired, b"", Talk::Http1),
    tls(9018, Show::Unknown, b"", Talk::Http1),
];
const ECHO: u16 = 9021;
const MUTE: u16 = 9022;
const NOBODY: u16 = 9099;

const TCP: &str = r#"type = "tcp""#;
const HTTP: &str = r#"type = "http""#;
const H2C: &str = r#"type = "http", http_version = "2""#;
/// CA stands for the file's path.
const HTTPS: &str = r#"type = "http", host = "shop.example", tls = true, tls_ca = "CA""#;
const H2: &str =
    r#"type = "http", http_version = "2", host = "shop.example:9012", tls = true, tls_ca = "CA""#;
const GRPC: &str = r#"type = "grpc""#;
const GRPCS: &str = r#"type = "grpc", service = "shop", tls = true, tls_ca = "CA""#;
const TRUSTING: &str = r#"type = "http", tls = true, tls_verify = false"#;

/// A probe, the port of its backend, and `up`, or what is said of one that is down.
const CASES: &[(&str, u16, &str)] = &[
    (TCP, 9001, "up"),
    (TCP, NOBODY, "connection refused"),
    (HTTP, 9001, "up"),
    (r#"type = "http", path = "/none""#, 9001, "status 404, wanted 200-399"),
    (r#"type = "http", path = "/none", status = [404]"#, 9001, "up"),
    (r#"type = "http", path = "/slow""#, 9001, "no answer within 400ms"),
    (r#"type = "http", body_matches = "^ready$|^ready\n$""#, 9001, "up"),
    (r#"type = "http", body_matches = "broken""#, 9001, "does not match"),
    (HTTP, 9004, "no answer within 400ms"),
    (HTTP, 9005, "not HTTP"),
    (HTTP, 9006, "not HTTP"),
    (HTTP, NOBODY, "connection refused"),
    (H2C, 9002, "up"),
    (H2C, 9001, "not HTTP"),
    (HTTP, 9002, "not HTTP"),
    (HTTPS, 9011, "up"),
    (H2, 9012, "up"),
    (H2, 9011, "TLS: "),
    (HTTPS, 9001, "TLS: "),
    (HTTP, 9011, "not HTTP"),
    (HTTPS, 9004, "no answer within 400ms"),
    (HTTPS, 9006, "TLS: "),
    (HTTPS, 9014, "no answer within 400ms"),
    (HTTPS, 9015, "not HTTP"),
    (HTTPS, 9016, "TLS: invalid peer certificate: certificate not valid for name"),
    (HTTPS, 9017, "TLS: invalid peer certificate: certificate expired"),
    (HTTPS, 9018, "TLS: invalid peer certificate: "),
    // No name is told: the certificate must be for the address.
    (r#"type = "http", tls = true, tls_ca = "CA""#, 9011, "up"),
    (r#"type = "http", tls = true, tls_ca = "CA", tls_name = "no.example""#, 9011, "not valid for"),
    (r#"type = "http", tls = true, tls_ca = "/nonexistent""#, 9011, "cannot read the CA file"),
    (r#"type = "http", tls = true"#, 9011, "TLS: "),
    (TRUSTING, 9016, "up"),
    (TRUSTING, 9017, "up"),
    (TRUSTING, 9018, "up"),
    (GRPC, 9003, "up"),
    (GRPCS, 9013, "up"),
    (r#"type = "grpc", service = "down""#, 9003, "NOT_SERVING, wanted SERVING"),
    (r#"type = "grpc", service = "else""#, 9003, "does not know the gRPC service \"else\""),
    (r#"type = "grpc", service = "slow""#, 9003, "no answer within 400ms"),
    (GRPC, 9002, "gRPC"),
    (GRPC, 9004, "no answer within 400ms"),
    (GRPC, 9005, "gRPC"),
    (GRPC, NOBODY, "connection refused"),
    (r#"type = "udp", send = "ping", expect = "pingping""#, ECHO, "up"),
    (r#"type = "udp", send_hex = "00 ff", expect_hex = "ff 00""#, ECHO, "up"),
    (r#"type = "udp", send = "ping", expect = "pong""#, ECHO, "which lacks \"pong\""),
    (r#"type = "udp", send = "ping""#, MUTE, "no answer within 400ms"),
    (r#"type = "udp", send = "ping""#, NOBODY, "connection refused"),
    (r#"type = "exec", command = ["/bin/sh", "-c", "test $GRAYLB_PORT = 9001"]"#, 9001, "up"),
    (r#"type = "exec", command = ["/bin/sh", "-c", "echo sick; exit 4"]"#, 9001, "4: sick"),
    (r#"type = "exec", command = ["/bin/sleep", "60"]"#, 9001, "no answer within 400ms"),
    (r#"type = "tcp", port = 9001"#, NOBODY, "up"),
    (r#"type = "tcp", port = 9099"#, 9001, "connection refused (asked 127.0.0.1:9099)"),
];

fn config(ca: &str) -> String {
    let mut text = "[interfaces.lo]\n".to_owned();
    for (number, (probe, port, _)) in CASES.iter().enumerate() {
        let probe = probe.replace("CA", ca);
        // Writing to a String does not fail.
        let _infallible = writeln!(
            text,
            "[services.s{number}]\naddress = \"127.0.0.1:{}\"\ndefault_pool = \"p{number}\"\n\
             [pools.p{number}]\nbackends = [\"127.0.0.1:{port}\"]\n\
             probe = {{ {probe}, interval = \"500ms\", timeout = \"400ms\" }}",
            7000 + number
        );
    }
    text
}

/// What `status` says of the only backend of each case.
fn found(status: &serde_json::Value) -> Vec<(String, String)> {
    let services = status["services"].as_array().expect("services");
    let mut found = vec![(String::new(), String::new()); CASES.len()];
    for service in services {
        let name = service["name"].as_str().expect("a name");
        let number: usize = name[1..].parse().expect("a number");
        let backend = &service["backends"][0];
        let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
        found[number] = (text("state"), text("reason"));
    }
    found
}

#[test]
fn every_type_meets_every_kind_of_server() {
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    let authority = Authority::new();
    let ca = authority.write(sandbox.directory());
    host.run(|| servers::serve(SERVERS, ECHO, MUTE, &authority));
    let installation = Installation::new(&sandbox, &host, &config(&ca.to_string_lossy()));
    let agent = installation.launch();
    eventually("each backend is as expected", SOON, || {
        let wrong: Vec<String> = found(&agent.status())
            .into_iter()
            .zip(CASES)
            .filter(|((state, reason), (_, _, wanted))| match *wanted {
                "up" => state != "up",
                part => state != "down" || !reason.contains(part),
            })
            .map(|(found, case)| format!("{case:?}: {found:?}"))
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    });
}

#[test]
fn authorities_that_change_are_read_again() {
    let sandbox = Sandbox::new();
    let host = topology::host(&sandbox);
    let [old, new] = [Authority::new(), Authority::new()];
    let ca = old.write(sandbox.directory());
    host.run(|| servers::serve(SERVERS, ECHO, MUTE, &new));
    let config = format!(
        "[interfaces.lo]\n[services.s0]\naddress = \"127.0.0.1:7000\"\ndefault_pool = \"p\"\n\
         [pools.p]\nbackends = [\"127.0.0.1:9011\"]\n\
         probe = {{ type = \"http\", tls = true, tls_ca = {ca:?}, interval = \"100ms\" }}"
    );
    let installation = Installation::new(&sandbox, &host, &config);
    let agent = installation.launch();
    let state = |wanted: &str| {
        eventually(&format!("the backend is {wanted}"), SOON, || {
            let (state, reason) = found(&agent.status()).swap_remove(0);
            if state == wanted { Ok(()) } else { Err((state, reason)) }
        });
    };
    state("down");
    new.write(sandbox.directory());
    state("up");
}
