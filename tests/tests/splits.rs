//! Canary shares, client rules, and two operators, with the real agent and real connections from many addresses.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use graylb_tests::{
    agent::{Agent, Ran},
    client::Connection,
    eventually::{SOON, eventually},
    load::Load,
    stage::Stage,
};

/// The `n`th client; all of them are on this host, which is every address of 127.0.0.0/8.
fn client(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f01_0000 + n)
}

/// Which pool answers a client.
fn pool_of(stage: &Stage, client: Ipv4Addr) -> &'static str {
    let answer = stage.host.run(|| {
        let source = SocketAddr::new(client.into(), 0);
        Connection::open_from(source, Stage::endpoint())?.ask()
    });
    match answer.unwrap_or_else(|failure| panic!("{client}: {failure}")).backend.as_str() {
        "81" | "82" => "default_upstream",
        "83" | "84" => "lua_upstream",
        other => panic!("{other} answered"),
    }
}

/// Which of so many clients the canary gets.
fn canary_clients(stage: &Stage, count: u32) -> Vec<u32> {
    (0..count).filter(|n| pool_of(stage, client(*n)) == "lua_upstream").collect()
}

fn graylb(stage: &Stage, arguments: &[&str]) -> Ran {
    stage.installation.cli(arguments)
}

fn done(stage: &Stage, arguments: &[&str]) -> String {
    let ran = graylb(stage, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
    ran.stdout
}

fn refused(stage: &Stage, arguments: &[&str], part: &str) {
    let ran = graylb(stage, arguments);
    assert_eq!(ran.code, 1, "{arguments:?}: {ran:?}");
    assert!(ran.stderr.contains(part), "no {part:?} in {ran:?}");
}

fn service(agent: &Agent<'_>) -> serde_json::Value {
    agent.status()["services"][0].clone()
}

#[test]
fn a_share_only_adds_clients_and_is_promoted() {
    let stage = Stage::new(None);
    let agent = stage.installation.start();
    let said = done(&stage, &["share", "demo", "lua_upstream", "10%"]);
    assert_eq!(
        said,
        "demo: default_upstream, 10% to lua_upstream (revision 1; before: default_upstream)\n"
    );
    let ten = canary_clients(&stage, 400);
    // 40 expected, standard deviation 6.
    assert!((16..=64).contains(&ten.len()), "{} of 400", ten.len());
    assert_eq!(canary_clients(&stage, 400), ten, "the same clients each time");
    done(&stage, &["share", "demo", "lua_upstream", "30%"]);
    let thirty = canary_clients(&stage, 400);
    assert!(ten.iter().all(|client| thirty.contains(client)), "nobody left");
    assert!((84..=156).contains(&thirty.len()), "{} of 400", thirty.len());
    done(&stage, &["share", "demo", "lua_upstream", "10%"]);
    assert_eq!(canary_clients(&stage, 400), ten, "back to the same");
    let text = done(&stage, &["status"]);
    for part in ["canary: 10% of the clients to lua_upstream", "127.0.0.1:18083", "revision 3"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }

    let said = done(&stage, &["switch", "demo", "lua_upstream"]);
    assert!(said.starts_with("demo switched from default_upstream to lua_upstream"), "{said}");
    assert_eq!(canary_clients(&stage, 20).len(), 20);
    assert!(service(&agent)["canary"].is_null(), "it has been promoted");
    // One undo takes the promotion back, canary and all.
    done(&stage, &["undo", "demo"]);
    assert_eq!(canary_clients(&stage, 400), ten);
    done(&stage, &["share", "demo", "--end"]);
    assert_eq!(canary_clients(&stage, 100), Vec::<u32>::new());
}

/// Pearson's chi-square of the flows that a share of single flows sends to the canary, over 40 groups of 250: with 39
/// degrees of freedom it is above 73 in one of a thousand.
#[test]
fn a_share_of_flows_is_a_share() {
    const GROUPS: u32 = 40;
    const SIZE: u32 = 250;
    let stage = Stage::new(None);
    stage.installation.configure(&Stage::config(None).replace(
        "default_pool = \"default_upstream\"",
        "default_pool = \"default_upstream\"\nsplit_by = \"flow\"\n\
         canary = { pool = \"lua_upstream\", share = \"20%\" }",
    ));
    let _agent = stage.installation.start();
    let mut chi_square = 0.0;
    let mut total = 0;
    for _ in 0..GROUPS {
        let canary =
            stage.turns(SIZE as usize).iter().filter(|name| *name > &"82".to_owned()).count();
        total += canary;
        let (expected, found) = (f64::from(SIZE) * 0.2, canary as f64);
        chi_square += (found - expected).powi(2) / (expected * 0.8);
    }
    println!("{total} of {} flows, chi-square {chi_square:.1} of 40 groups", GROUPS * SIZE);
    assert!(chi_square < 80.0, "{chi_square}");
    let share = total as f64 / f64::from(GROUPS * SIZE);
    assert!((0.18..=0.22).contains(&share), "{share}");
}

#[test]
fn rules_win_over_the_share() {
    let stage = Stage::new(None);
    let agent = stage.installation.start();
    done(&stage, &["share", "demo", "lua_upstream", "100%"]);
    done(&stage, &["rules", "add", "demo", "127.1.0.0/24", "default_upstream"]);
    let said = done(&stage, &["rules", "add", "demo", "127.1.0.16/28", "lua_upstream"]);
    assert!(
        said.starts_with("demo: default_upstream, 100% to lua_upstream, 2 client rules"),
        "{said}"
    );
    let pool = |n| pool_of(&stage, client(n));
    assert_eq!(
        [0, 15, 16, 31, 32, 255, 256].map(pool),
        [
            "default_upstream",
            "default_upstream",
            "lua_upstream",
            "lua_upstream",
            "default_upstream",
            "default_upstream",
            "lua_upstream",
        ]
    );
    let listed = done(&stage, &["rules", "list", "demo"]);
    assert_eq!(listed, "127.1.0.0/24 default_upstream\n127.1.0.16/28 lua_upstream\n");

    // A file of thousands, in place of these; the agent starts again and has them all.
    let file = stage.sandbox.directory().join("rules");
    let lines: String =
        (0..5000).map(|n| format!("{} {}\n", client(2 * n), "default_upstream")).collect();
    std::fs::write(&file, format!("# testers\n{lines}")).expect("write the rules");
    done(&stage, &["rules", "set", "demo", &file.to_string_lossy()]);
    let even = |n: u32| if n.is_multiple_of(2) { "default_upstream" } else { "lua_upstream" };
    for n in [0, 1, 2, 3, 4998, 4999, 9998, 9999] {
        assert_eq!(pool_of(&stage, client(n)), even(n), "client {n}");
    }
    agent.kill();
    assert_eq!(pool_of(&stage, client(4998)), "default_upstream", "without an agent");
    let agent = stage.installation.start();
    assert_eq!(service(&agent)["rules"], 5000);
    assert_eq!(pool_of(&stage, client(4998)), "default_upstream");
    let log = stage.installation.log();
    assert!(!log.contains("damaged"), "{log}");
    done(&stage, &["rules", "remove", "demo", "127.1.0.0"]);
    assert_eq!(pool_of(&stage, client(0)), "lua_upstream");
}

#[test]
fn what_does_not_fit_is_refused() {
    let stage = Stage::new(None);
    let _agent = stage.installation.start();
    refused(&stage, &["share", "demo", "default_upstream", "5%"], "stable pool already");
    refused(&stage, &["share", "demo", "nowhere", "5%"], "there is no pool \"nowhere\"");
    refused(&stage, &["rules", "add", "demo", "2001:db8::/32", "lua_upstream"], "IPv4 address");
    refused(&stage, &["undo", "demo"], "no revision before this one to go back to");
    for (arguments, part) in [
        (["share", "demo", "lua_upstream", "5"], "write a percentage"),
        (["share", "demo", "lua_upstream", "101%"], "more than everybody"),
    ] {
        let ran = graylb(&stage, &arguments);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(part), "{ran:?}");
    }
    assert_eq!(canary_clients(&stage, 20), Vec::<u32>::new());
}

#[test]
fn two_operators_do_not_overwrite_each_other() {
    let stage = Stage::new(None);
    let agent = stage.installation.start();
    done(&stage, &["share", "demo", "lua_upstream", "5%"]);
    refused(
        &stage,
        &["share", "demo", "lua_upstream", "50%", "--if-revision", "0"],
        "demo is at revision 1, not 0",
    );
    done(&stage, &["share", "demo", "lua_upstream", "50%", "--if-revision", "1"]);

    // Many at once, all from the same view of things: one of them gets through.
    let winners = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for share in 1..=8 {
            let (stage, winners) = (&stage, &winners);
            scope.spawn(move || {
                let share = format!("{share}%");
                let ran =
                    graylb(stage, &["share", "demo", "lua_upstream", &share, "--if-revision", "2"]);
                if ran.code == 0 {
                    winners.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                } else {
                    assert!(ran.stderr.contains("not 2: somebody has changed it"), "{ran:?}");
                }
            });
        }
    });
    assert_eq!(winners.into_inner(), 1);
    assert_eq!(service(&agent)["revision"], 3);
}

/// The API's own words for it; revisions outlive the agent.
#[test]
fn revisions_are_tags_and_can_be_gone_back_to() {
    let stage = Stage::new(None);
    let agent = stage.installation.start();
    for share in ["5%", "50%", "6%"] {
        done(&stage, &["share", "demo", "lua_upstream", share]);
    }
    agent.stop();
    let agent = stage.installation.start();
    let (status, body) = stage.installation.curl(
        "/v1/services/demo/canary",
        &[
            "-X",
            "PUT",
            "-H",
            "If-Match: \"2\"",
            "-H",
            "Content-Type: application/json",
            "-d",
            r#"{"pool": "lua_upstream", "share": "7%"}"#,
        ],
    );
    assert_eq!(status, 412, "{body}");
    assert!(body.contains("\"outdated\""), "{body}");
    let (status, body) = stage.installation.curl(
        "/v1/services/demo/canary",
        &[
            "-X",
            "PUT",
            "-H",
            "If-Match: \"3\"",
            "-H",
            "Content-Type: application/json",
            "-d",
            r#"{"pool": "lua_upstream", "share": "7%"}"#,
        ],
    );
    assert_eq!(status, 200, "{body}");
    assert_eq!(service(&agent)["canary"]["share"], "7%");
    let (_, headers) =
        stage.installation.curl("/v1/services/demo", &["-D", "-", "-o", "/dev/null"]);
    assert!(headers.to_ascii_lowercase().contains("etag: \"4\""), "{headers}");

    // Back by number, and forth again.
    done(&stage, &["undo", "demo", "0"]);
    assert!(service(&agent)["canary"].is_null());
    done(&stage, &["undo", "demo"]);
    assert_eq!(service(&agent)["canary"]["share"], "7%");
    refused(
        &stage,
        &["undo", "demo", "99"],
        "no revision 99 to go back to; known are: 0, 1, 2, 3, 4",
    );
}

#[test]
fn a_canary_that_dies_gives_its_clients_back() {
    const PROBE: &str =
        r#"{ type = "tcp", interval = "50ms", timeout = "50ms", rise = 1, fall = 1 }"#;
    let mut stage = Stage::new(Some(PROBE));
    let mut canary: Vec<_> = stage.backends.drain(2..).collect();
    let agent = stage.installation.start();
    done(&stage, &["share", "demo", "lua_upstream", "100%"]);
    assert_eq!(pool_of(&stage, client(1)), "lua_upstream");
    let starved = |wanted: bool| {
        eventually(&format!("starved: {wanted}"), SOON, || {
            let canary = service(&agent)["canary"].clone();
            if canary["starved"] == wanted { Ok(()) } else { Err(canary) }
        });
    };
    canary.iter_mut().for_each(graylb_tests::backend::HttpBackend::stop);
    starved(true);
    assert_eq!(pool_of(&stage, client(1)), "default_upstream");
    let text = done(&stage, &["status"]);
    assert!(text.contains("NOBODY THERE IS UP"), "{text}");
    canary.iter_mut().for_each(graylb_tests::backend::HttpBackend::resume);
    starved(false);
    assert_eq!(pool_of(&stage, client(1)), "lua_upstream");
}

/// Shares, rules, switches and undos by the hundred under load: nothing fails.
#[test]
fn changes_under_load_cost_no_request() {
    let stage = Stage::new(None);
    let _agent = stage.installation.start();
    let short = Load::short(&stage.host, Stage::endpoint(), 2);
    let long = Load::long(&stage.host, Stage::endpoint(), 1);
    let mut changes = BTreeMap::new();
    for round in 0..25 {
        short.wait_rounds(5);
        let share = format!("{}%", 4 * round % 101);
        let network = format!("127.0.{round}.0/24");
        for arguments in [
            &["share", "demo", "lua_upstream", &share][..],
            &["rules", "add", "demo", &network, "lua_upstream"],
            &["switch", "demo", "lua_upstream"],
            &["undo", "demo"],
        ] {
            done(&stage, arguments);
            *changes.entry(arguments[0].to_owned()).or_insert(0) += 1;
        }
    }
    let (short, long) = (short.finish(), long.finish());
    println!("{changes:?}; short: {short}; long: {long}");
    short.assert_clean();
    long.assert_clean();
}
