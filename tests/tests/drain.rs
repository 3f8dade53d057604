//! Draining: no new connections at once, the old ones go on, and the operator hears when they are gone.

use std::{process::Stdio, time::Instant};

use graylb_tests::{
    agent::Ran,
    client::{self, Connection},
    eventually::{SOON, eventually},
    load::Load,
    stage::Stage,
};

const ONE: &str = "127.0.0.1:18081";

fn graylb(stage: &Stage, arguments: &[&str]) -> Ran {
    stage.installation.cli(arguments)
}

fn done(stage: &Stage, arguments: &[&str]) -> String {
    let ran = graylb(stage, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
    ran.stdout
}

/// A connection to the backend of this name.
fn connected_to(stage: &Stage, name: &str) -> Connection {
    eventually("a connection to that backend", SOON, || {
        let mut connection = stage
            .host
            .run(|| Connection::open(Stage::endpoint()))
            .unwrap_or_else(|failure| panic!("{failure}"));
        let found = connection.ask().expect("an answer").backend;
        if found == name { Ok(connection) } else { Err(found) }
    })
}

#[test]
fn a_backend_is_drained_and_its_last_connection_waited_for() {
    let stage = Stage::new(None);
    let agent = stage.installation.start();
    let short = Load::short(&stage.host, Stage::endpoint(), 1);
    let mut old = connected_to(&stage, "81");
    let said = done(&stage, &["drain", "default_upstream", ONE]);
    assert!(said.starts_with(&format!("{ONE}  drained, ")), "{said}");
    assert_eq!(stage.turns(6), ["82"; 6]);
    assert_eq!(old.ask().expect("an answer").backend, "81", "it goes on");
    let text = done(&stage, &["status"]);
    assert!(text.contains("drained"), "{text}");

    // Not safe yet; then the connection ends while somebody waits.
    let waiting = |wait| ["drain", "default_upstream", ONE, "--wait", wait];
    let early = graylb(&stage, &waiting("300ms"));
    assert_eq!(early.code, 1, "{early:?}");
    assert!(early.stderr.contains("1 flows are left"), "{early:?}");
    let mut command = stage.installation.graylb(&waiting("60s"));
    let mut waiter = command.stdout(Stdio::piped()).spawn().expect("start graylb");
    let began = Instant::now();
    drop(old);
    let status = eventually("the waiter ends", SOON, || {
        waiter.try_wait().expect("wait for graylb").ok_or("it waits")
    });
    assert!(status.success(), "after {:?}", began.elapsed());

    // It outlives the agent, and is taken back.
    agent.kill();
    let _agent = stage.installation.start();
    assert_eq!(stage.turns(4), ["82"; 4]);
    done(&stage, &["undrain", "default_upstream", ONE]);
    assert_eq!(stage.turns(2).len(), 2);
    connected_to(&stage, "81");
    let short = short.finish();
    println!("{short}");
    short.assert_clean();
}

#[test]
fn the_last_ones_need_force() {
    let stage = Stage::new(None);
    let _agent = stage.installation.start();
    let refused = |arguments: &[&str], part: &str| {
        let ran = graylb(&stage, arguments);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(part), "no {part:?} in {ran:?}");
        assert_eq!(stage.turns(2).len(), 2, "nothing changed");
    };
    refused(&["drain", "default_upstream"], "default_upstream would have nobody left for demo");
    refused(&["drain", "nowhere"], "there is no pool \"nowhere\"");
    refused(
        &["drain", "lua_upstream", ONE],
        "lua_upstream has no backend 127.0.0.1:18081; it has:",
    );
    // A pool that nothing goes to may be drained whole.
    done(&stage, &["drain", "lua_upstream"]);
    done(&stage, &["undrain", "lua_upstream"]);

    let mut old = connected_to(&stage, "82");
    done(&stage, &["drain", "default_upstream", "--force"]);
    let failure = stage.host.run(|| client::ask(Stage::endpoint())).expect_err("nobody is left");
    assert_eq!(failure.step, "connect");
    assert_eq!(old.ask().expect("an answer").backend, "82");
    done(&stage, &["switch", "demo", "lua_upstream"]);
    assert_eq!(stage.turns(2), ["83", "84"]);
    done(&stage, &["undrain", "default_upstream"]);
    done(&stage, &["switch", "demo", "default_upstream"]);
    assert_eq!(stage.turns(4).len(), 4);
}
