//! Probes of real listeners: who is not there takes no flows, who comes back does, and when nobody is
//! left the last good set stays.

use graylb_tests::{
    agent::Agent,
    backend::HttpBackend,
    eventually::{SOON, eventually},
    stage::Stage,
};

const HTTP: &str =
    r#"{ type = "http", path = "/", interval = "50ms", timeout = "50ms", rise = 2, fall = 2 }"#;
const TCP: &str = r#"{ type = "tcp", interval = "50ms", timeout = "50ms", rise = 2, fall = 2 }"#;

/// The pool in force, as the agent sees it: whether each backend is up and takes flows.
fn backends(agent: &Agent<'_>) -> Vec<(String, bool)> {
    let status = agent.status();
    let backends = status["services"][0]["backends"].as_array().expect("backends").clone();
    let one = |backend: &serde_json::Value| {
        let state = backend["state"].as_str().expect("a state").to_owned();
        (state, backend["takes_flows"].as_bool().expect("a flag"))
    };
    backends.iter().map(one).collect()
}

fn wait_for(agent: &Agent<'_>, wanted: [(&str, bool); 2]) {
    eventually(&format!("{wanted:?}"), SOON, || {
        let found = backends(agent);
        let same = found.iter().map(|(state, takes)| (state.as_str(), *takes)).eq(wanted);
        if same { Ok(()) } else { Err(found) }
    });
}

/// Both backends by themselves, so that the stage can be asked for turns meanwhile.
fn take_backends(stage: &mut Stage) -> [HttpBackend; 2] {
    let mut backends = stage.backends.drain(..2);
    [backends.next().expect("81"), backends.next().expect("82")]
}

fn check_comings_and_goings(probe: &str) {
    let mut stage = Stage::new(Some(probe));
    let [mut one, mut two] = take_backends(&mut stage);
    two.stop();
    let agent = stage.installation.start();
    wait_for(&agent, [("up", true), ("down", false)]);
    assert_eq!(stage.turns(4), ["81"; 4], "82 has never answered");
    two.resume();
    wait_for(&agent, [("up", true); 2]);
    assert_eq!(stage.turns(4), ["81", "82", "81", "82"]);
    one.stop();
    wait_for(&agent, [("down", false), ("up", true)]);
    assert_eq!(stage.turns(4), ["82"; 4]);

    // The last one goes: who was good last stays in force, and the agent says so.
    two.stop();
    wait_for(&agent, [("down", false), ("down", true)]);
    assert_eq!(agent.status()["services"][0]["last_good_kept"], true);
    let text = stage.installation.cli(&["status"]).stdout;
    assert!(
        text.contains("NOBODY IS UP: the last backends that were good stay in force"),
        "{text}"
    );
    two.resume();
    assert_eq!(stage.turns(2), ["82"; 2], "before any probe could say so");
    wait_for(&agent, [("down", false), ("up", true)]);
    one.resume();
    wait_for(&agent, [("up", true); 2]);
    assert_eq!(agent.status()["services"][0]["last_good_kept"], false);
    assert_eq!(stage.turns(4), ["81", "82", "81", "82"]);
}

#[test]
fn http_probes() {
    check_comings_and_goings(HTTP);
}

#[test]
fn tcp_probes() {
    check_comings_and_goings(TCP);
}

#[test]
fn no_flow_before_the_first_good_answer() {
    // The backends answer with 200, which is not wanted here.
    let probe = r#"{ type = "http", status = [204], interval = "50ms" }"#;
    let stage = Stage::new(Some(probe));
    let agent = stage.installation.launch();
    wait_for(&agent, [("down", false); 2]);
    let missing = agent.call("GET", "/readyz", "").expect_err("it is not ready");
    assert!(
        missing.starts_with("503: ") && missing.contains("no backend that answered its probe yet"),
        "{missing}"
    );
    let text = stage.installation.cli(&["status"]).stdout;
    assert!(
        text.contains("NOT IN THE KERNEL YET") && text.contains("status 200, wanted 204"),
        "{text}"
    );
    let failure = stage.host.run(|| graylb_tests::client::ask(Stage::endpoint()));
    assert_eq!(failure.expect_err("nobody is trusted").step, "connect");
}

#[test]
fn a_switch_to_a_pool_where_nobody_answers_is_refused() {
    let mut stage = Stage::new(Some(HTTP));
    stage.backends[2..].iter_mut().for_each(HttpBackend::stop);
    let agent = stage.installation.start();
    wait_for(&agent, [("up", true); 2]);
    let refused = stage.installation.cli(&["switch", "demo", "lua_upstream"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    for part in ["lua_upstream cannot take demo's traffic", "127.0.0.1:18083: connection refused"] {
        assert!(refused.stderr.contains(part), "no {part:?} in {refused:?}");
    }
    assert_eq!(stage.turns(2).len(), 2, "the old pool is at work");
    let forced = stage.installation.cli(&["switch", "demo", "lua_upstream", "--force"]);
    assert_eq!(forced.code, 0, "{forced:?}");
    stage.backends[2..].iter_mut().for_each(HttpBackend::resume);
    assert!(stage.turns(2).iter().all(|name| name == "83" || name == "84"));
}

#[test]
fn health_survives_a_restart() {
    let stage = Stage::new(Some(HTTP));
    let agent = stage.installation.start();
    wait_for(&agent, [("up", true); 2]);
    agent.stop();
    // Ready at once, since the backends are known: with a probe an hour away, too.
    stage.installation.configure(&Stage::config(Some(r#"{ type = "tcp", interval = "1h" }"#)));
    let agent = stage.installation.start();
    assert_eq!(backends(&agent), [("up".to_owned(), true), ("up".to_owned(), true)]);
    assert_eq!(stage.turns(2).len(), 2);
}
