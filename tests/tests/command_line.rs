//! The command line: each exit code, provoked, and `graylb check` on good and bad files.

use std::{fs, path::Path};

use graylb_tests::{agent::Ran, stage::Stage};

#[test]
fn done_is_0() {
    let stage = Stage::new(None);
    let _agent = stage.installation.start();
    let file = stage.installation.config_file();
    for arguments in [
        ["check", &file.to_string_lossy()].as_slice(),
        &["status"],
        &["status", "--json"],
        &["switch", "demo", "lua_upstream"],
        &["reload"],
        &["--version"],
        &["--help"],
    ] {
        let Ran { code, stdout, stderr } = stage.installation.cli(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(!stdout.is_empty(), "{arguments:?}");
    }
    let switched = stage.installation.cli(&["switch", "demo", "default_upstream"]);
    assert_eq!(
        switched.stdout,
        "demo switched from lua_upstream to default_upstream (generation 3)\n"
    );
    let addresses = "127.0.0.1:18084,127.0.0.1:18081";
    let switched = stage.installation.cli(&["switch", "demo", addresses]);
    assert_eq!(
        switched.stdout,
        format!("demo switched from default_upstream to {addresses} (generation 4)\n")
    );
    assert_eq!(stage.turns(2), ["84", "81"]);
    let status = stage.installation.cli(&["status"]).stdout;
    for part in [
        "lo by tc: loopback",
        "demo  127.0.0.1:8000/tcp  -> 127.0.0.1:18084,127.0.0.1:18081 (switched, default is default_upstream), round_robin, generation 4",
        "pools: default_upstream, lua_upstream",
    ] {
        assert!(status.contains(part), "no {part:?} in {status}");
    }
}

#[test]
fn refused_is_1() {
    let stage = Stage::new(None);
    let _agent = stage.installation.start();
    let cli = |arguments: &[&str]| stage.installation.cli(arguments);
    let refused = cli(&["switch", "demo", "nowhere"]);
    assert_eq!(
        (refused.code, refused.stderr.as_str()),
        (1, "graylb: there is no pool \"nowhere\"; there are: default_upstream, lua_upstream\n")
    );
    let refused = cli(&["switch", "nobody", "lua_upstream"]);
    assert_eq!(
        (refused.code, refused.stderr.as_str()),
        (1, "graylb: there is no service \"nobody\"; there are: demo (127.0.0.1:8000/tcp)\n")
    );
    assert_eq!(cli(&["check", "/nonexistent/graylb.toml"]).code, 1);
    assert_eq!(cli(&["run", "--config", "/nonexistent/graylb.toml"]).code, 1);
    assert_eq!(cli(&["status", "--token-file", "/nonexistent/token"]).code, 1);
    assert_eq!(stage.turns(2), ["81", "82"]);
}

#[test]
fn a_wrong_command_line_is_2() {
    let stage = Stage::new(None);
    for arguments in [
        [].as_slice(),
        &["swtich", "demo", "lua_upstream"],
        &["switch", "demo"],
        &["status", "--api", "nonsense"],
        &["run"],
    ] {
        let Ran { code, stdout, stderr } = stage.installation.cli(arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(stderr.contains("--help") || stderr.contains("Usage: graylb"), "{stderr}");
    }
}

#[test]
fn unreachable_is_3() {
    let stage = Stage::new(None);
    for arguments in [["status"].as_slice(), &["switch", "demo", "lua_upstream"], &["reload"]] {
        let Ran { code, stderr, .. } = stage.installation.cli(arguments);
        assert_eq!(code, 3, "{arguments:?}");
        assert!(
            stderr.starts_with("graylb: cannot reach the agent at 127.0.0.1:7878: "),
            "{stderr}"
        );
    }
    // Somebody else's HTTP server is no agent.
    let Ran { code, stderr, .. } = stage.installation.cli(&["status", "--api", "127.0.0.1:18081"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("not graylb's answer"), "{stderr}");
}

#[test]
fn a_system_that_refuses_is_4() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let _agent = installation.start();
    let pins = installation.pin_dir().to_string_lossy().into_owned();
    assert_eq!(installation.cli(&["unload", "--pin-dir", &pins]).code, 4);
    // The API's port is taken, and found so before anything is loaded.
    let taken = installation.fail_to_start(&installation.config_file());
    assert_eq!(taken.code, 4, "{taken:?}");
    assert!(taken.stderr.contains("cannot listen on 127.0.0.1:7878 (api.listen)"), "{taken:?}");
    assert_eq!(stage.turns(2), ["81", "82"]);
}

#[test]
fn examples_are_good() {
    let stage = Stage::new(None);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in fs::read_dir(directory).expect("read examples") {
        let path = entry.expect("an entry").path();
        let Ran { code, stdout, stderr } =
            stage.installation.cli(&["check", &path.to_string_lossy()]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{}", path.display());
        assert!(
            stdout.ends_with("the config is good\n") && !stdout.contains("warning"),
            "{stdout}"
        );
        seen += 1;
    }
    assert!(seen >= 3, "{seen} examples");
}

#[test]
fn check_lists_every_mistake() {
    let stage = Stage::new(None);
    let file = stage.sandbox.directory().join("bad.toml");
    let text = r#"[agnet]
[interfaces.lo]
atach = "tc"
[services.demo]
address = "127.0.0.1"
default_pool = "poool"
[pools.pool]
backends = ["127.0.0.1:18081", "127.0.0.1:18081"]
probe = { type = "htp" }
"#;
    fs::write(&file, text).expect("write the config");
    let Ran { code, stdout, stderr } = stage.installation.cli(&["check", &file.to_string_lossy()]);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    let found: Vec<&str> =
        stderr.lines().filter(|line| line.contains(&*file.to_string_lossy())).collect();
    let expected = [
        ("1:2", "did you mean \"agent\"?"),
        ("3:1", "did you mean \"attach\"?"),
        ("5:11", "the port is missing"),
        ("6:16", "did you mean \"pool\"?"),
        ("8:12", "127.0.0.1:18081 is listed twice"),
        ("9:18", "did you mean \"http\"?"),
    ];
    assert_eq!(found.len(), expected.len(), "{stderr}");
    for (line, (place, part)) in found.iter().zip(expected) {
        let place = format!("{}:{place}: error: ", file.display());
        assert!(line.contains(&place) && line.contains(part), "no {place}{part} in {line}");
    }
    assert!(stderr.ends_with("6 mistakes; nothing was changed\n"), "{stderr}");
}
