//! Reloading: a good file is in force at once, a bad one changes nothing and says where it is bad.

use std::fs;

use graylb_tests::{
    backend::HttpBackend,
    client::{self, Connection},
    eventually::{SOON, eventually},
    stage::Stage,
};

/// The stage's config with another default pool's backends.
fn config(backends: &str) -> String {
    let old = r#"["127.0.0.1:18081", "127.0.0.1:18082"]"#;
    let config = Stage::config(None);
    assert!(config.contains(old));
    config.replace(old, backends)
}

const REVERSED: &str = r#"["127.0.0.1:18082", "127.0.0.1:18081"]"#;
const ONLY_82: &str = r#"["127.0.0.1:18082"]"#;

#[test]
fn a_good_file_takes_effect() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    assert_eq!(stage.turns(4), ["81", "82", "81", "82"]);
    installation.configure(&config(ONLY_82));
    assert_eq!(stage.turns(2), ["81", "82"], "not before a reload");
    let ran = installation.cli(&["reload"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "the config is in force\n"), "{ran:?}");
    assert_eq!(stage.turns(4), ["82"; 4]);

    installation.configure(&config(REVERSED));
    agent.hang_up();
    eventually("SIGHUP is heeded", SOON, || {
        let turns = stage.turns(2);
        if turns.contains(&"81".to_owned()) { Ok(()) } else { Err(turns) }
    });
}

#[test]
fn a_bad_file_changes_nothing() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    let generation = agent.status()["services"][0]["generation"].clone();
    installation.configure(&format!("{}\n[servces.x]\n", config(r#"["127.0.0.1"]"#)));
    let file = installation.config_file();
    let text = fs::read_to_string(&file).expect("read the config");
    let line_of = |part: &str| {
        let before = text.split(part).next().expect("a part");
        format!("{}:{}:", file.display(), before.matches('\n').count() + 1)
    };
    let places = [line_of("\"127.0.0.1\"]"), line_of("servces")];

    let ran = installation.cli(&["reload"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in places.iter().map(String::as_str).chain(["2 mistakes; nothing was changed"]) {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }
    agent.hang_up();
    installation.wait_log("reload refused, nothing changed:");
    for place in &places {
        assert!(installation.log().contains(place), "no {place} in the log");
    }
    assert_eq!(agent.status()["services"][0]["generation"], generation);
    assert_eq!(stage.turns(4), ["81", "82", "81", "82"]);
}

#[test]
fn a_switch_is_not_undone() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    installation.api().switch("demo", "lua_upstream");
    installation.configure(&config(ONLY_82));
    assert_eq!(installation.cli(&["reload"]).code, 0);
    assert_eq!(stage.turns(4), ["83", "84", "83", "84"]);
    // The pool that it was switched to goes: the default is better than nothing, and said so.
    let (without, _) = config(ONLY_82).split_once("[pools.lua_upstream]").map_or_else(
        || panic!("no such pool"),
        |(before, after)| (before.to_owned(), after.to_owned()),
    );
    installation.configure(&without);
    assert_eq!(installation.cli(&["reload"]).code, 0);
    assert_eq!(stage.turns(2), ["82"; 2]);
    let problem = agent.status()["services"][0]["problem"].clone();
    assert!(problem.as_str().is_some_and(|p| p.contains("lua_upstream")), "{problem}");
}

#[test]
fn services_come_and_go() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let _agent = installation.start();
    let second = "127.0.0.1:8001".parse().expect("an address");
    let services = format!(
        "{}\n[services.second]\naddress = \"{second}\"\ndefault_pool = \"lua_upstream\"\n",
        Stage::config(None)
    );
    installation.configure(&services);
    assert_eq!(installation.cli(&["reload"]).code, 0);
    assert_eq!(client::turns(&stage.host, second, 2), ["83", "84"]);
    let mut open = stage.host.run(|| Connection::open(second)).expect("connect");
    let home = open.ask().expect("an answer").backend;

    installation.configure(&Stage::config(None));
    assert_eq!(installation.cli(&["reload"]).code, 0);
    let failure = stage.host.run(|| client::ask(second)).expect_err("the service is gone");
    assert_eq!(failure.step, "connect");
    assert_eq!(open.ask().expect("an established connection").backend, home);
    assert_eq!(stage.turns(2), ["81", "82"]);
}

#[test]
fn what_needs_a_restart_is_said() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let _agent = installation.start();
    installation
        .configure(&format!("{}\n[api]\nlisten = \"127.0.0.1:7979\"\n", Stage::config(None)));
    let ran = installation.cli(&["reload"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.stdout,
        "note: in force after a restart only: api.listen\nthe config is in force\n"
    );
}

#[test]
fn a_new_backend_is_probed_first() {
    let mut stage = Stage::new(None);
    stage.backends.iter_mut().take(2).for_each(HttpBackend::stop);
    stage.backends[0].resume();
    let probed = Stage::config(Some(r#"{ type = "tcp", interval = "50ms" }"#));
    stage.installation.configure(&probed.replace(r#", "127.0.0.1:18082""#, ""));
    let _agent = stage.installation.start();
    assert_eq!(stage.turns(2), ["81"; 2]);
    stage.installation.configure(&probed);
    assert_eq!(stage.installation.cli(&["reload"]).code, 0);
    assert_eq!(stage.turns(4), ["81"; 4], "82 is not there");
    stage.backends[1].resume();
    eventually("82 takes flows", SOON, || {
        let turns = stage.turns(2);
        if turns.contains(&"82".to_owned()) { Ok(()) } else { Err(turns) }
    });
}
