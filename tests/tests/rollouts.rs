//! Rollouts with the real agent and real connections: promoted, taken back, paused, and left alone by the agent.

use std::time::{Duration, Instant};

use graylb_tests::{
    agent::{Agent, Ran},
    eventually::eventually,
    load::Load,
    stage::Stage,
};
use serde_json::Value;

/// A rollout's time in these tests, and something over for a busy machine.
const WHOLE: Duration = Duration::from_secs(60);

/// A stage that shares out single flows: all clients are one address here.
fn stage(probe: Option<&str>) -> Stage {
    let stage = Stage::new(probe);
    stage.installation.configure(&config(probe));
    stage
}

fn config(probe: Option<&str>) -> String {
    Stage::config(probe).replace(
        "default_pool = \"default_upstream\"",
        "default_pool = \"default_upstream\"\nsplit_by = \"flow\"",
    )
}

fn rollout(stage: &Stage, arguments: &[&str]) -> Ran {
    stage.installation.cli(&[&["rollout"], arguments].concat())
}

fn done(stage: &Stage, arguments: &[&str]) -> String {
    let ran = rollout(stage, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
    ran.stdout
}

fn start(stage: &Stage, more: &[&str]) {
    let usual = ["start", "demo", "--to", "lua_upstream", "--min-samples", "100"];
    done(stage, &[&usual, more].concat());
}

fn report(agent: &Agent<'_>) -> Value {
    let text = agent.call("GET", "/v1/services/demo/rollout", "").expect("a rollout");
    serde_json::from_str(&text).expect("JSON")
}

fn wait_state(agent: &Agent<'_>, state: &str) -> Value {
    eventually(state, WHOLE, || {
        let report = report(agent);
        let is_there = report["state"].as_str().is_some_and(|text| text.starts_with(state));
        if is_there { Ok(report) } else { Err(format!("{report:#}")) }
    })
}

/// How many of `count` new connections the canary gets.
fn canary_turns(stage: &Stage, count: usize) -> usize {
    stage.turns(count).iter().filter(|name| ["83", "84"].contains(&name.as_str())).count()
}

#[test]
fn a_good_canary_is_promoted_without_a_failed_request() {
    let stage = stage(None);
    let agent = stage.installation.start();
    let load = Load::short(&stage.host, Stage::endpoint(), 2);
    start(&stage, &["--steps", "10%,50%,100%", "--hold", "1s"]);

    // One at a time, and nobody else decides meanwhile.
    for arguments in [
        &["rollout", "start", "demo", "--to", "lua_upstream"][..],
        &["switch", "demo", "lua_upstream"],
        &["share", "demo", "--end"],
        &["undo", "demo"],
    ] {
        let ran = stage.installation.cli(arguments);
        assert_eq!(ran.code, 1, "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains("a rollout of demo to lua_upstream is under way"), "{ran:?}");
    }
    let report = wait_state(&agent, "promoted");
    let shares: Vec<&str> = report["events"]
        .as_array()
        .expect("events")
        .iter()
        .filter_map(|event| event["what"].as_str()?.split(", ").nth(1)?.split(' ').next())
        .collect();
    assert_eq!(shares, ["50%", "100%", "100%"], "{report:#}");
    assert_eq!(canary_turns(&stage, 20), 20);
    let tally = load.finish();
    println!("{tally}");
    tally.assert_clean();
    let text = done(&stage, &["status", "demo"]);
    assert!(text.starts_with("demo to lua_upstream: promoted; 100% of the clients\n"), "{text}");
}

#[test]
fn a_canary_that_refuses_a_twentieth_is_taken_back() {
    let stage = stage(None);
    let dead = "{ address = \"127.0.0.1:18099\", weight = 1 }";
    stage.installation.configure(&config(None).replace(
        "\"127.0.0.1:18083\", \"127.0.0.1:18084\"",
        &format!("{{ address = \"127.0.0.1:18083\", weight = 19 }}, {dead}"),
    ));
    let agent = stage.installation.start();
    let load = Load::short(&stage.host, Stage::endpoint(), 2);
    let began = Instant::now();
    start(&stage, &["--steps", "20%,100%", "--hold", "60s"]);
    let report = wait_state(&agent, "rolled back: failures: fail, ");
    println!("taken back after {:.1?}: {}", began.elapsed(), report["state"]);
    assert_eq!(canary_turns(&stage, 50), 0);
    assert!(report["window"]["canary"]["refused"].as_u64() >= Some(5), "the numbers are kept");
    let status = agent.status();
    assert!(status["services"][0]["canary"].is_null(), "{status:#}");
    let _refusals = load.finish();
}

#[test]
fn a_canary_whose_backends_die_is_taken_back() {
    let mut stage = stage(Some(
        "{ type = \"tcp\", interval = \"500ms\", timeout = \"500ms\", rise = 1, fall = 1 }",
    ));
    let agent = stage.installation.start();
    start(&stage, &["--steps", "50%,100%", "--hold", "60s"]);
    stage.backends[2].stop();
    stage.backends[3].stop();
    wait_state(&agent, "rolled back: none of the canary's backends is up");
    assert_eq!(canary_turns(&stage, 20), 0);
}

#[test]
fn without_traffic_it_pauses_and_can_be_ended_either_way() {
    let stage = stage(None);
    let agent = stage.installation.start();
    let plan = ["--steps", "50%,100%", "--hold", "500ms", "--patience", "500ms"];
    start(&stage, &plan);
    let report = wait_state(&agent, "paused: nothing is certain after 1 s: failures: inconclusive");
    assert_eq!(report["share"], "50%");
    done(&stage, &["resume", "demo"]);
    done(&stage, &["pause", "demo"]);
    wait_state(&agent, "paused: by 127.0.0.1");
    let said = done(&stage, &["abort", "demo"]);
    assert!(said.starts_with("demo to lua_upstream: aborted: by 127.0.0.1"), "{said}");
    assert_eq!(canary_turns(&stage, 20), 0);
    let ran = rollout(&stage, &["resume", "demo"]);
    assert!(ran.code == 1 && ran.stderr.contains("the rollout is over (aborted"), "{ran:?}");

    start(&stage, &plan);
    let said = done(&stage, &["promote", "demo"]);
    assert!(said.starts_with("demo to lua_upstream: promoted"), "{said}");
    assert_eq!(canary_turns(&stage, 20), 20);
}

/// Waits until no new connection goes to the canary any more.
fn wait_for_the_lease(stage: &Stage, limit: Duration) {
    let began = Instant::now();
    eventually("the kernel brings the clients back", limit, || match canary_turns(stage, 40) {
        0 => Ok(()),
        canary => Err(format!("{canary} of 40 to the canary")),
    });
    println!("brought back {:.1?} after the agent went", began.elapsed());
}

#[test]
fn without_the_agent_the_kernel_brings_the_clients_back() {
    let stage = stage(None);
    let agent = stage.installation.start();
    start(&stage, &["--steps", "50%,100%", "--hold", "60s", "--lease", "2s"]);
    // Renewed, it lasts.
    let half = Instant::now();
    while half.elapsed() < Duration::from_secs(3) {
        assert!(canary_turns(&stage, 40) > 0);
    }
    agent.kill();
    assert!(canary_turns(&stage, 40) > 0, "not at once: agents are restarted");
    wait_for_the_lease(&stage, Duration::from_secs(5));

    // Another agent goes on in the middle of the step.
    let agent = stage.installation.start();
    eventually("the rollout goes on", WHOLE, || match canary_turns(&stage, 40) {
        0 => Err("all to the stable pool"),
        _ => Ok(()),
    });
    let report = report(&agent);
    assert!(report["events"].to_string().contains("the lease had run out"), "{report:#}");

    // One that hangs renews nothing.
    agent.freeze();
    wait_for_the_lease(&stage, Duration::from_secs(5));
    agent.thaw();
    eventually("the rollout goes on", WHOLE, || match canary_turns(&stage, 40) {
        0 => Err("all to the stable pool"),
        _ => Ok(()),
    });
    done(&stage, &["abort", "demo"]);
    assert_eq!(canary_turns(&stage, 40), 0);
}

#[test]
fn a_restart_in_the_middle_of_a_step_is_no_end() {
    let stage = stage(None);
    let agent = stage.installation.start();
    let load = Load::short(&stage.host, Stage::endpoint(), 2);
    start(&stage, &["--steps", "30%,100%", "--hold", "2s"]);
    load.wait_rounds(100);
    agent.kill();
    let agent = stage.installation.start();
    let report = report(&agent);
    assert_eq!((&report["share"], &report["over"]), (&"30%".into(), &false.into()), "{report:#}");
    wait_state(&agent, "promoted");
    load.finish().assert_clean();
}
